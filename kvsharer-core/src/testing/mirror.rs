//! The toy model once more, on the host in f64, looking at exactly the tokens it is told to.

use super::toy::{HostWeights, Matrix, THETA};
use super::{ToyModel, Unmeasured, kept_tokens};
use crate::{Attend, Cache, LayerId, Positions, SearchModel, Sharing};
use std::ops::Range;

/// A text run through a [`ToyModel`] without any cache: keys and values of all tokens are held, and nothing is taken from
/// a cache but the list of tokens it keeps.
pub struct Mirror<'a> {
    weights: &'a HostWeights,
    sharing: &'a Sharing,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    windows: Vec<Option<usize>>,
    /// Padding before the first token of each row.
    padding: Vec<usize>,
    /// Keys (turned for their positions in the text) by layer, row and key-value head, token.
    keys: Vec<Vec<Vec<Vec<f64>>>>,
    values: Vec<Vec<Vec<Vec<f64>>>>,
}

/// What queries of a pass may look at of the tokens before it.
struct Old {
    /// By layer, then row and key-value head, oldest first; all of them if `None`.
    kept: Option<Vec<Vec<Vec<i64>>>>,
    /// Whether a key stands at its place among those tokens, right before the new ones, instead of in the text.
    cache_positions: bool,
}

/// A query head of a token.
#[derive(Clone, Copy)]
struct At {
    layer: usize,
    row: usize,
    /// Row and key-value head.
    place: usize,
    /// Position in the text.
    token: usize,
}

impl<'a> Mirror<'a> {
    /// Of a model under a sharing map, for rows with so much padding in front.
    pub fn new(model: &'a ToyModel, sharing: &'a Sharing, padding: &[usize]) -> Self {
        let shape = model.shape();
        let empty = vec![vec![Vec::new(); padding.len() * shape.layers()[0].kv_heads]; shape.len()];
        Self {
            weights: model.host(),
            sharing,
            heads: model.heads(),
            kv_heads: shape.layers()[0].kv_heads,
            dim: shape.layers()[0].head_dim,
            windows: shape.layers().iter().map(|layer| layer.window).collect(),
            padding: padding.to_vec(),
            keys: empty.clone(),
            values: empty,
        }
    }

    /// Runs the tokens `pass` of every row over all that came before; final states `[batch, token, hidden]`.
    pub fn all(&mut self, tokens: &[Vec<u32>], pass: Range<usize>) -> Vec<f64> {
        self.run(tokens, pass, &Old { kept: None, cache_positions: false })
    }

    /// Runs the tokens that `cache` has announced over those that it keeps of the ones before.
    ///
    /// # Errors
    /// If the device fails.
    pub fn kept(&mut self, tokens: &[Vec<u32>], cache: &Cache<'_>) -> Result<Vec<f64>, Unmeasured> {
        let pass = Attend::positions(cache);
        let before = |mut head: Vec<i64>| {
            head.retain(|&position| position < pass.start as i64);
            head
        };
        let of_layer = |layer| Ok(kept_tokens(cache, LayerId(layer))?.into_iter().map(before).collect());
        let kept = (0..self.windows.len()).map(of_layer).collect::<Result<Vec<_>, Unmeasured>>()?;
        let cache_positions = cache.plan().groups()[0].positions != Positions::Original;
        Ok(self.run(tokens, pass.clone(), &Old { kept: Some(kept), cache_positions }))
    }

    /// Keys of a layer so far, turned, or its values: `[row and key-value head][token][channel]`.
    pub(super) fn held(&self, layer: usize, keys: bool) -> &[Vec<Vec<f64>>] {
        if keys { &self.keys[layer] } else { &self.values[layer] }
    }

    fn run(&mut self, tokens: &[Vec<u32>], pass: Range<usize>, old: &Old) -> Vec<f64> {
        let width = self.heads * self.dim;
        let mut hidden: Vec<Vec<Vec<f64>>> = tokens.iter().map(|row| self.embed(&row[pass.clone()], width)).collect();
        for layer in 0..self.windows.len() {
            for (row, states) in hidden.iter_mut().enumerate() {
                self.layer(layer, row, states, &pass, old);
            }
        }
        hidden.iter().flatten().flat_map(|state| normed(state)).collect()
    }

    fn embed(&self, ids: &[u32], width: usize) -> Vec<Vec<f64>> {
        let row = |&id: &u32| &self.weights.embedding.values[id as usize * width..][..width];
        ids.iter().map(|id| row(id).iter().map(|&x| x.into()).collect()).collect()
    }

    /// Replaces the states of one row's new tokens by those behind a layer.
    fn layer(&mut self, layer: usize, row: usize, states: &mut [Vec<f64>], pass: &Range<usize>, old: &Old) {
        let weights = &self.weights.layers[layer];
        let heads = row * self.kv_heads..(row + 1) * self.kv_heads;
        let inputs: Vec<Vec<f64>> = states.iter().map(|state| normed(state)).collect();
        for (input, position) in inputs.iter().zip(pass.clone()) {
            let (key, value) = (product(input, &weights.key), product(input, &weights.value));
            for (at, place) in heads.clone().enumerate() {
                let part = at * self.dim..(at + 1) * self.dim;
                self.keys[layer][place].push(turn(&key[part.clone()], position as f64));
                self.values[layer][place].push(value[part].to_vec());
            }
        }
        for (index, (input, state)) in inputs.iter().zip(states).enumerate() {
            let query = product(input, &weights.query);
            let mixed: Vec<f64> = query
                .chunks(self.dim)
                .enumerate()
                .flat_map(|(head, query)| {
                    let place = heads.start + head / (self.heads / self.kv_heads);
                    let at = At { layer, row, place, token: pass.start + index };
                    self.attend(at, turn(query, at.token as f64), pass, old)
                })
                .map(|x| x / (1.0 + (-x).exp()))
                .collect();
            state.iter_mut().zip(product(&mixed, &weights.output)).for_each(|(state, more)| *state += more);
        }
    }

    /// What one query head finds.
    fn attend(&self, at: At, query: Vec<f64>, pass: &Range<usize>, old: &Old) -> Vec<f64> {
        let At { layer, row, place, token: here } = at;
        let donor = |donor: Option<LayerId>| donor.map_or(layer, |donor| donor.0);
        let keys = &self.keys[donor(self.sharing.keys().donor(LayerId(layer)))][place];
        let values = &self.values[donor(self.sharing.values().donor(LayerId(layer)))][place];
        // Padding sees itself alone.
        let pad = self.padding[row].min(here);
        let older: Vec<(usize, f64)> = match &old.kept {
            None => (pad..pass.start).map(|token| (token, 0.0)).collect(),
            Some(kept) => {
                let kept = &kept[layer][place];
                let first = pass.start - kept.len();
                let shift = |age: usize, token: usize| {
                    if old.cache_positions { (first + age) as f64 - token as f64 } else { 0.0 }
                };
                kept.iter().enumerate().map(|(age, &token)| (token as usize, shift(age, token as usize))).collect()
            }
        };
        let new = (pass.start.max(pad)..=here).map(|token| (token, 0.0));
        let visible = |&(token, _): &(usize, f64)| self.windows[layer].is_none_or(|window| here - token < window);
        let seen: Vec<(usize, f64)> = older.into_iter().chain(new).filter(visible).collect();
        let score = |&(token, shift): &(usize, f64)| {
            let key = if shift == 0.0 { keys[token].clone() } else { turn(&keys[token], shift) };
            let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
            (dot / (self.dim as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let total: f64 = scores.iter().sum();
        let mut mixed = vec![0.0; self.dim];
        for (score, (token, _)) in scores.iter().zip(&seen) {
            mixed.iter_mut().zip(&values[*token]).for_each(|(sum, value)| *sum += score / total * value);
        }
        mixed
    }
}

fn normed(state: &[f64]) -> Vec<f64> {
    let mean = state.iter().map(|x| x * x).sum::<f64>() / state.len() as f64;
    state.iter().map(|x| x / (mean + 1e-6).sqrt()).collect()
}

fn product(row: &[f64], matrix: &Matrix) -> Vec<f64> {
    let mut sums = vec![0.0; matrix.columns];
    for (x, weights) in row.iter().zip(matrix.values.chunks(matrix.columns)) {
        sums.iter_mut().zip(weights).for_each(|(sum, &weight)| *sum += x * f64::from(weight));
    }
    sums
}

/// Turns one head's query or key by so many positions.
fn turn(x: &[f64], positions: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let angle = |i: usize| positions * THETA.powf(-((i % half) as f64) / half as f64);
    let partner = |i: usize| if i < half { -x[i + half] } else { x[i - half] };
    (0..x.len()).map(|i| x[i] * angle(i).cos() + partner(i) * angle(i).sin()).collect()
}
