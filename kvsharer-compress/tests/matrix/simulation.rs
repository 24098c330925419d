//! Donor and readers keep the same tokens, keys and values alike: outputs are those of a plain simulation on the host
//! that holds everything and looks at exactly the tokens that [`Cache::kept`] lists.

use crate::support::{Case, LAYERS, PROMPT, STEPS, Shared, TOKENS, cases, in_f32, kept, model, pairs, tokens};
use burn::tensor::{DType, Device, Tensor, TensorData};
use kvsharer_compress::parse_policy;
use kvsharer_core::testing::{max_difference, toy_tokens};
use kvsharer_core::{Attend, Cache, CacheError, LayerId, Positions, SearchModel, Sharing};
use std::ops::Range;

/// As in the toy model.
const THETA: f32 = 100.0;

struct Simulation {
    sharing: Sharing,
    /// Keys (rotated for their positions in the text) and values of every token so far, by layer and token:
    /// `[batch, kv_head, head_dim]`.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
    pass: Range<usize>,
    /// Older tokens that may be looked at, by layer, then row and head, oldest first.
    old: Vec<Vec<Vec<i64>>>,
    /// Whether a key stands at its place among those tokens, instead of in the text.
    cache_positions: bool,
    /// Padding before the first token of each row; empty if there is none.
    padding: Vec<usize>,
}

/// `[batch, kv_head, token, head_dim]` by token.
fn by_token(x: Tensor<4>) -> Vec<Vec<f32>> {
    (0..x.dims()[2]).map(|token| x.clone().slice_dim(2, token..token + 1).try_into_vec_as().unwrap()).collect()
}

/// Turns a key by `shift` positions.
fn turn(key: &[f32], shift: f32) -> Vec<f32> {
    if shift == 0.0 {
        return key.to_vec();
    }
    let half = key.len() / 2;
    let angle = |i: usize| (shift * THETA.powf(-((i % half) as f32) / half as f32)).sin_cos();
    let partner = |i: usize| if i < half { -key[i + half] } else { key[i - half] };
    (0..key.len()).map(|i| key[i] * angle(i).1 + partner(i) * angle(i).0).collect()
}

impl Attend for Simulation {
    fn positions(&self) -> Range<usize> {
        self.pass.clone()
    }

    fn attend(
        &mut self,
        layer: LayerId,
        query: Tensor<4>,
        key: impl FnOnce() -> Tensor<4>,
        value: impl FnOnce() -> Tensor<4>,
    ) -> Result<Tensor<4>, CacheError> {
        let (key_donor, value_donor) = (self.sharing.keys().donor(layer), self.sharing.values().donor(layer));
        if key_donor.is_none() {
            self.keys[layer.0].extend(by_token(key()));
        }
        if value_donor.is_none() {
            self.values[layer.0].extend(by_token(value()));
        }
        let (keys, values) = (&self.keys[key_donor.unwrap_or(layer).0], &self.values[value_donor.unwrap_or(layer).0]);
        let (shape, device) = (query.dims(), query.device());
        let [batch, heads, queries, dim] = shape;
        let kv_heads = keys[0].len() / batch / dim;
        let query: Vec<f32> = query.try_into_vec_as().unwrap();
        let mut output = Vec::with_capacity(query.len());
        for (line, query) in query.chunks(dim).enumerate() {
            let (row, head, at) = (line / queries / heads, line / queries % heads, line % queries);
            let place = row * kv_heads + head / (heads / kv_heads);
            let part = place * dim..(place + 1) * dim;
            // Cache slots: the old tokens stand one behind the other, right before the new ones.
            let old = &self.old[layer.0][place];
            let first = (self.pass.start - old.len()) as i64;
            let old = old.iter().enumerate().map(|(age, &token)| {
                let shift = if self.cache_positions { first + age as i64 - token } else { 0 };
                (token as usize, shift as f32)
            });
            // Padding sees itself alone.
            let pad = self.padding.get(row).copied().unwrap_or(0).min(self.pass.start + at);
            let new = self.pass.clone().take(at + 1).filter(|&token| token >= pad).map(|token| (token, 0.0));
            let seen: Vec<(usize, f32)> = old.chain(new).collect();
            let score = |&(token, shift): &(usize, f32)| {
                let key = turn(&keys[token][part.clone()], shift);
                let dot: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                (dot / (dim as f32).sqrt()).exp()
            };
            let scores: Vec<f32> = seen.iter().map(score).collect();
            let total: f32 = scores.iter().sum();
            let mut mixed = vec![0.0; dim];
            for (score, (token, _)) in scores.iter().zip(&seen) {
                let value = &values[*token][part.clone()];
                mixed.iter_mut().zip(value).for_each(|(sum, value)| *sum += score / total * value);
            }
            output.extend(mixed);
        }
        Ok(Tensor::from_data(TensorData::new(output, shape), &device))
    }
}

/// Runs `passes` in a cache and beside it in the simulation, which takes nothing from it but the list of kept tokens.
fn compare(case: &Case, mut cache: Cache<'_>, tokens: &[Vec<u32>], padding: &[usize], passes: &[usize]) {
    let (model, sharing, batch) = (model(), case.shared.sharing(), tokens.len());
    let mut simulation = Simulation {
        sharing: sharing.clone(),
        keys: vec![Vec::new(); LAYERS],
        values: vec![Vec::new(); LAYERS],
        pass: 0..0,
        old: Vec::new(),
        cache_positions: cache.plan().groups()[0].positions != Positions::Original,
        padding: padding.to_vec(),
    };
    for &pass in passes {
        cache.begin_padded(pass, if cache.seen() == 0 { padding } else { &[] }).unwrap();
        let pass = Attend::positions(&cache);
        let older = |mut head: Vec<i64>| {
            head.retain(|&position| position < pass.start as i64);
            head
        };
        let old = |layer| kept(&cache, layer, batch).into_iter().map(older).collect();
        simulation.old = (0..LAYERS).map(old).collect();
        simulation.pass = pass.clone();
        let expected = model.forward(tokens, pass.clone(), &mut simulation).unwrap();
        let found = model.forward(tokens, pass.clone(), &mut cache).unwrap_or_else(|e| panic!("{case}: {e}"));
        for row in 0..batch {
            let start = padding.get(row).map_or(0, |pad| pad.saturating_sub(pass.start));
            let part = |x: &Tensor<3>| x.clone().slice([row..row + 1, start..pass.len()]);
            let error = max_difference(part(&found), part(&expected));
            assert!(error <= tolerance(case), "{case}: {error} in row {row} at {pass:?}");
        }
        for (reader, donor) in sharing.keys().iter().chain(sharing.values().iter()) {
            assert_eq!(kept(&cache, reader.0, batch), kept(&cache, donor.0, batch), "{case}");
        }
    }
}

/// A neighbour in the place of one token makes a difference of 0.15 or more in each of these cases.
fn tolerance(case: &Case) -> f32 {
    match case.storage.unwrap_or(case.spec) {
        storage if storage.contains("bits=8") => 0.02,
        // Steps of a fifteenth of the range of values.
        storage if storage.contains("bits=4") => 0.2,
        _ if case.dtype == DType::F16 => 5e-3,
        _ => 1e-5,
    }
}

#[test]
fn every_layer_attends_to_exactly_the_tokens_that_are_kept() {
    let model = model();
    for case in cases(|row| row.small) {
        let cache = case.cache(&model, case.stack(), None);
        compare(&case, cache, &tokens(), &[], &[&[PROMPT][..], &[1; STEPS]].concat());
    }
}

#[test]
fn every_layer_attends_to_exactly_the_tokens_that_are_kept_in_passes_of_any_size() {
    // After the prompt too: some fit the cells that evictions freed, some do not.
    let passes = [9, 21, 4, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let model = model();
    for case in in_f32(pairs(|row| row.small)) {
        compare(&case, case.cache(&model, case.stack(), None), &tokens(), &[], &passes);
    }
}

#[test]
fn every_row_of_a_padded_batch_attends_to_exactly_the_tokens_that_are_kept() {
    let model = model();
    let prompts = [PROMPT, 3, 31];
    let padding = prompts.map(|prompt| PROMPT - prompt);
    for (index, case) in in_f32(pairs(|row| row.small)).into_iter().enumerate() {
        // Three of four, so that all sharings and storages still have their turn.
        if index % 4 != 0 {
            let options = model.cache_options(prompts.len(), TOKENS);
            let cache = Cache::new(model.shape(), case.stack(), options, &Device::flex()).unwrap();
            let tokens = toy_tokens(prompts.len(), TOKENS, 8);
            compare(&case, cache, &tokens, &padding, &[&[PROMPT][..], &[1; STEPS]].concat());
        }
    }
}

/// The second one meets what the first one left, within a pass and before the next: scores and cells must follow.
#[test]
fn evictors_in_order_leave_exactly_the_tokens_that_are_kept() {
    let model = model();
    for [first, second] in [
        ["h2o:heavy=11,recent=11", "random:budget=12"],
        ["random:budget=22", "tova:budget=17"],
        ["window:budget=22", "tova:budget=17"],
        ["window:budget=15", "h2o:heavy=11,recent=11"],
        ["h2o:variant=observed,budget=50%", "window:budget=15,protect=2"],
        ["snapkv:budget=22,window=6,decode=evict", "window:budget=15"],
        ["knorm:budget=22", "streaming-llm:sinks=2,window=12,positions=original"],
        ["streaming-llm:sinks=3,window=19", "streaming-llm:sinks=3,window=9"],
    ] {
        for [spec, other] in [[first, second], [second, first]] {
            // The prompt in one pass, or 34 tokens of it in three, which some evictors wait for if they know.
            let one = [&[PROMPT][..], &[1; STEPS]].concat();
            let three = [9, 21, 4, 1, 1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1];
            for (passes, padding, prompt) in
                [(&one[..], &[0, 6][..], None), (&three, &[], None), (&three, &[], Some(34))]
            {
                let case = Case { spec, shared: Shared::Values, storage: None, dtype: DType::F32 };
                let stack = case.stack().with(parse_policy(other).unwrap()).evict_in_order();
                compare(&case, case.cache(&model, stack, prompt), &tokens(), padding, passes);
            }
        }
    }
}
