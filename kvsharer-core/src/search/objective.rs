//! What a search keeps small: how far the shared model's output is from the untouched one's.

use super::replay::{Batch, Run, SearchModel, host};
use crate::{CacheError, Gate};
use burn::tensor::{DType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// Rows of logits in memory at once, for each batch in work.
const ROWS: usize = 1024;

/// How a candidate is judged; the smaller, the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Minus the cosine similarity of the states after the final norm, as the paper has it; see [`Gate`].
    #[default]
    HiddenCosine,
    /// Mean over the tokens of `KL(untouched || shared)` of the next token's distribution, in nats.
    LogitKl,
    /// Mean negative log-likelihood of the text's next tokens under the shared model, in nats.
    Nll,
}

impl Objective {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Objective::HiddenCosine => "hidden-cosine",
            Objective::LogitKl => "logit-kl",
            Objective::Nll => "nll",
        }
    }

    /// Whether it is a mean of terms of single tokens, none below zero, so that part of the tokens bounds it from below.
    pub(crate) fn adds_up(self) -> bool {
        self != Objective::HiddenCosine
    }
}

/// What an objective over logits needs to know of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    /// Tokens that count, as rows of `[batch * token]`.
    rows: Tensor<1, Int>,
    count: usize,
    against: Against,
}

#[derive(Clone, Debug)]
enum Against {
    /// Probabilities of the untouched model `[row, vocab]` and the sum of `p ln p` over the vocabulary, `[row]`, for
    /// each chunk of rows.
    Distribution(Vec<(Tensor<2>, Tensor<1>)>),
    /// The next token of each row.
    Tokens(Tensor<1, Int>),
}

impl Reference {
    /// `None` for an objective without logits, or a model without a head.
    pub(crate) fn new<M: SearchModel>(model: &M, batch: &Batch, objective: Objective) -> Option<Self> {
        let (rows, against) = match objective {
            Objective::HiddenCosine => return None,
            Objective::LogitKl => {
                let rows = batch.rows();
                let states = pick(batch.untouched(), rows.clone());
                let chunks = chunks(rows.len()).map(|(start, end)| {
                    let logits = model.logits(states.clone().slice_dim(0, start..end))?;
                    // Not the backend's softmax: it may add a vocabulary up in f32, which shifts the mean by 1e-3.
                    let logits = logits.cast(DType::F32);
                    let log = logits.clone() - log_sum_exp(logits).unsqueeze_dim::<2>(1);
                    let p = log.clone().exp();
                    Some((p.clone(), row_sums(p * log)))
                });
                let chunks = chunks.collect::<Option<Vec<_>>>()?;
                (rows, Against::Distribution(chunks))
            }
            Objective::Nll => {
                let width = batch.width();
                let places = batch.samples().iter().enumerate().flat_map(|(sample, ids)| {
                    ids.windows(2).enumerate().map(move |(t, pair)| ((sample * width + t) as i64, i64::from(pair[1])))
                });
                let (rows, next): (Vec<i64>, Vec<i64>) = places.unzip();
                // A model without a head is found out here, not in the middle of the search.
                model.logits(pick(batch.untouched(), rows.first().copied().into_iter().collect()))?;
                let next = Tensor::from_data(TensorData::new(next, [rows.len()]), &batch.untouched().device());
                (rows, Against::Tokens(next))
            }
        };
        let count = rows.len();
        let rows = Tensor::from_data(TensorData::new(rows, [count]), &batch.untouched().device());
        Some(Self { rows, count, against })
    }

    /// Tokens that count.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The sum of the objective's terms over the tokens of a run.
    pub(crate) fn sum<M: SearchModel>(&self, model: &M, run: &Run) -> Result<f64, CacheError> {
        let output = run.output()?;
        let [batch, tokens, hidden] = output.dims();
        let states = output.clone().reshape([batch * tokens, hidden]).select(0, self.rows.clone());
        let missing = || CacheError::Unsupported("an objective over logits on a model without a head");
        let mut terms = Vec::new();
        for (index, (start, end)) in chunks(self.count).enumerate() {
            let logits = model.logits(states.clone().slice_dim(0, start..end)).ok_or_else(missing)?;
            let logits = logits.cast(DType::F32);
            let total = log_sum_exp(logits.clone());
            terms.push(match &self.against {
                Against::Distribution(chunks) => {
                    let (p, entropy) = &chunks[index];
                    // The probabilities add up to 1.
                    entropy.clone() + total - row_sums(p.clone() * logits)
                }
                Against::Tokens(next) => {
                    let next = next.clone().slice_dim(0, start..end).reshape([end - start, 1]);
                    total - logits.gather(1, next).squeeze_dim::<1>(1)
                }
            });
        }
        if terms.is_empty() {
            return Ok(0.0);
        }
        Ok(host(Tensor::cat(terms, 0))?.into_iter().map(f64::from).sum())
    }
}

/// Minus the similarity of the final states of `runs` and those of the untouched model.
pub(crate) fn cosine_loss(gate: Gate, batches: &[&Batch], runs: &[Run]) -> Result<f64, CacheError> {
    let read = |(batch, run): (&&Batch, &Run)| Ok((host(batch.untouched().clone())?, host(run.output()?.clone())?));
    let states = batches.iter().zip(runs).map(read).collect::<Result<Vec<_>, CacheError>>()?;
    let samples = batches
        .iter()
        .zip(&states)
        .flat_map(|(batch, (untouched, shared))| batch.by_sample(untouched).zip(batch.by_sample(shared)));
    Ok(-gate.similarity(samples))
}

/// Rows of `[batch, token, hidden]` states.
fn pick(states: &Tensor<3>, rows: Vec<i64>) -> Tensor<2> {
    let [batch, tokens, hidden] = states.dims();
    let rows = TensorData::new(rows.clone(), [rows.len()]);
    let rows = Tensor::<1, Int>::from_data(rows, &states.device());
    states.clone().reshape([batch * tokens, hidden]).select(0, rows)
}

/// `ln sum exp` over the vocabulary, `[row, vocab]` to `[row]`.
fn log_sum_exp(logits: Tensor<2>) -> Tensor<1> {
    let top = by_block(logits.clone()).max_dim(2).squeeze_dim::<2>(2).max_dim(1);
    row_sums((logits - top.clone()).exp()).log() + top.squeeze_dim::<1>(1)
}

/// Sums over the vocabulary, `[row, vocab]` to `[row]`.
fn row_sums(x: Tensor<2>) -> Tensor<1> {
    by_block(x).sum_dim(2).squeeze_dim::<2>(2).sum_dim(1).squeeze_dim::<1>(1)
}

/// `[row, vocab]` as `[row, block, token]`, so that a reduction has two short steps: one over a whole vocabulary leaves
/// a GPU idle but for one thread a row, and loses digits. A vocabulary without a divisor in reach stays whole.
fn by_block(x: Tensor<2>) -> Tensor<3> {
    let [rows, vocab] = x.dims();
    let block = (64..=1024).rev().find(|block| vocab.is_multiple_of(*block)).unwrap_or(vocab);
    x.reshape([rows, vocab / block, block])
}

fn chunks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(ROWS).map(move |start| (start, (start + ROWS).min(rows)))
}
