//! Prompts of different lengths in one batch: every row gives what it gives alone.

use burn::tensor::{DType, Device, Tensor};
use kvsharer_core::testing::max_difference;
use kvsharer_core::{Cache, SearchModel, Sharing, Stack};
use kvsharer_models::{Decoder, ModelError, ModelFiles};
use std::path::PathBuf;

fn tiny() -> Decoder {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny_llama_tied");
    ModelFiles::open_folder(&folder).unwrap().load(&Device::flex(), DType::F32).unwrap()
}

fn cache(model: &Decoder, rows: usize) -> Cache<'static> {
    let stack = Stack::new().with(Sharing::both([(3, 1)]).unwrap());
    Cache::new(model.shape(), stack, model.cache_options(rows, 32), &model.device()).unwrap()
}

/// Scores after the last token of each row: `[row, 1, vocab]`.
fn last(model: &Decoder, hidden: Tensor<3>) -> Tensor<3> {
    let tokens = hidden.dims()[1];
    model.logits(hidden.slice_dim(1, tokens - 1..tokens))
}

#[test]
fn padded_prompts_and_the_tokens_after_them_score_as_they_do_alone() {
    let model = tiny();
    let rows: [&[u32]; 4] = [&[5, 9, 13, 2, 8, 41, 7], &[3], &[11, 6, 30], &[1, 2, 3, 4, 5, 6, 7]];
    let next: [&[u32]; 4] = [&[17], &[21], &[4], &[33]];
    let mut batch = cache(&model, 4);
    let first = last(&model, model.forward_padded(&rows, &mut batch).unwrap());
    let second = last(&model, model.forward(&next, &mut batch).unwrap());
    for row in 0..4 {
        let mut alone = cache(&model, 1);
        for (found, tokens) in [(&first, rows[row]), (&second, next[row])] {
            let expected = last(&model, model.forward(&[tokens], &mut alone).unwrap());
            let error = max_difference(found.clone().slice_dim(0, row..row + 1), expected);
            assert!(error < 1e-4, "row {row}: {error}");
        }
    }
}

#[test]
fn rows_of_one_length_need_no_padding_and_give_the_same_bits() {
    let model = tiny();
    let rows: [&[u32]; 2] = [&[5, 9, 13], &[3, 1, 4]];
    let padded = model.forward_padded(&rows, &mut cache(&model, 2)).unwrap();
    assert_eq!(max_difference(padded, model.forward(&rows, &mut cache(&model, 2)).unwrap()), 0.0);
}

#[test]
fn padding_is_refused_where_it_cannot_be() {
    let model = tiny();
    let mut used = cache(&model, 2);
    assert!(matches!(model.forward_padded(&[&[1, 2], &[]], &mut used), Err(ModelError::EmptyPrompt)));
    assert!(matches!(model.forward_padded(&[], &mut used), Err(ModelError::EmptyPrompt)));
    model.forward(&[&[1, 2], &[3, 4]], &mut used).unwrap();
    let error = model.forward_padded(&[&[1, 2], &[3]], &mut used).unwrap_err();
    assert!(error.to_string().contains("before anything else runs"), "{error}");
    let error = model.forward_padded(&[&[1, 2], &[3]], &mut cache(&model, 3)).unwrap_err();
    assert!(error.to_string().contains("in 3 rows"), "{error}");
}
