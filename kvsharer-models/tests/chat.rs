//! Conversations on a tiny model: a cached turn answers as the whole conversation run anew, and only new tokens run.

use burn::tensor::{DType, Device};
use kvsharer_core::{Cache, SearchModel, Stack};
use kvsharer_models::chat::{ChatTemplate, Conversation};
use kvsharer_models::{
    Decoder, GenerateOptions, Generated, ModelFiles, ModelTokenizer, Sampler, Sampling, generate, generate_batch,
    generate_from,
};
use serde_json::Map;
use std::path::PathBuf;

/// ChatML, whatever the tokenizer makes of it.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Answers disappear from the text once they are old.
const FORGETFUL: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + '\n' }}{% endif %}{% endfor %}";

fn model() -> (Decoder, ModelTokenizer) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny.gguf");
    let files = ModelFiles::open_gguf(&path).unwrap();
    (files.load(&Device::flex(), DType::F32).unwrap(), files.tokenizer().unwrap())
}

fn cache(model: &Decoder, rows: usize) -> Cache<'static> {
    Cache::new(model.shape(), Stack::new(), model.cache_options(rows, 256), &model.device()).unwrap()
}

fn options(max_tokens: usize) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.5, repetition_penalty: 1.2, ..Sampling::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..GenerateOptions::default() }
}

#[test]
fn a_cached_turn_answers_as_one_that_is_run_anew() {
    let (model, tokenizer) = model();
    for (template, cached) in [(CHATML, true), (FORGETFUL, false)] {
        let template = ChatTemplate::new(template, Map::new()).unwrap();
        let mut talk = Conversation::new(&template, &tokenizer, Some("be brief".into()), Map::new());
        let mut held = cache(&model, 1);
        for question in ["hello", "the world of others", "2024"] {
            let turn = talk.ask(question).unwrap();
            assert_eq!(turn.cached > 0, cached && question != "hello", "{question}");
            if turn.cached == 0 {
                held.reset();
            }
            assert_eq!(held.seen(), turn.cached);
            // Draws of a turn of its own, so that both are the same.
            let mut sampler = Sampler::new(options(9).sampling).unwrap();
            let text = (turn.ids.as_slice(), turn.cached);
            let found = generate_from(&model, &tokenizer, text, &mut held, &options(9), &mut sampler, |_| {}).unwrap();
            let anew = generate(&model, &tokenizer, &turn.ids, &mut cache(&model, 1), &options(9), |_| {}).unwrap();
            assert_eq!(found.ids, anew.ids, "{question}");
            talk.answer(turn, &found);
        }
        assert_eq!(talk.messages().len(), 7);
        talk.reset();
        assert_eq!(talk.ask("hello").unwrap().cached, 0);
    }
}

#[test]
fn the_models_own_spelling_of_an_answer_stays_in_the_cache() {
    let (model, tokenizer) = model();
    let template = ChatTemplate::new(CHATML, Map::new()).unwrap();
    let mut talk = Conversation::new(&template, &tokenizer, None, Map::new());
    let turn = talk.ask("hello").unwrap();
    // "hello" letter by letter, which the tokenizer would not do.
    let ids: Vec<u32> = "hello".chars().flat_map(|c| tokenizer.encode_bare(&c.to_string()).unwrap()).collect();
    assert_ne!(ids, tokenizer.encode_bare("hello").unwrap());
    let mut answer = generate(&model, &tokenizer, &turn.ids, &mut cache(&model, 1), &options(1), |_| {}).unwrap();
    answer.ids = ids.clone();
    answer.text = "hello".into();
    let asked = turn.ids.clone();
    talk.answer(turn, &answer);
    let next = talk.ask("again").unwrap();
    assert_eq!(next.cached, asked.len() + ids.len() - 1);
    assert!(next.ids.starts_with(&[asked, ids].concat()));
}

#[test]
fn a_refused_message_is_taken_back() {
    let (_, tokenizer) = model();
    let refusing =
        "{% if messages[-1].content == 'no' %}{{ raise_exception('never') }}{% endif %}{{ messages | length }}";
    let template = ChatTemplate::new(refusing, Map::new()).unwrap();
    let mut talk = Conversation::new(&template, &tokenizer, None, Map::new());
    assert!(talk.ask("no").unwrap_err().to_string().contains("never"));
    assert!(talk.messages().is_empty());
    assert!(talk.ask("yes").is_ok());
}

/// Rows of a batch are the texts that each prompt gives alone, whatever the lengths, the seeds and the passes.
#[test]
fn prompts_in_a_batch_give_what_they_give_alone() {
    let (model, tokenizer) = model();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    let ragged = vec![encode("hello the world"), encode("hello"), encode("2024 others sing of it in the world")];
    let even = vec![encode("hello"), encode("world"), encode("other")];
    let even: Vec<Vec<u32>> = even
        .into_iter()
        .map(|mut ids| {
            ids.truncate(1);
            ids
        })
        .collect();
    let stop = vec!["\u{7}never".to_owned(), "e".to_owned()];
    for (prompts, chunk, stop) in [(&ragged, 0, vec![]), (&ragged, 2, stop), (&even, 1, vec![])] {
        let shared = GenerateOptions { prefill_chunk: chunk, stop, ..options(12) };
        let batch = generate_batch(&model, &tokenizer, prompts, &mut cache(&model, 3), &shared).unwrap();
        for (row, (prompt, found)) in prompts.iter().zip(&batch).enumerate() {
            let mut own = shared.clone();
            own.sampling.seed = row as u64;
            let alone: Generated = generate(&model, &tokenizer, prompt, &mut cache(&model, 1), &own, |_| {}).unwrap();
            assert_eq!((&found.ids, &found.text, found.stopped), (&alone.ids, &alone.text, alone.stopped), "row {row}");
        }
    }
    assert!(generate_batch(&model, &tokenizer, &[], &mut cache(&model, 1), &options(1)).is_err());
    assert!(generate_batch(&model, &tokenizer, &[vec![], vec![1]], &mut cache(&model, 2), &options(1)).is_err());
}
