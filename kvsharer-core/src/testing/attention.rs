//! Attention, its evidence, and the rotary encoding against plain f64 on the host.

use super::reference::Reference;
use super::{Case, Measured, Subject, Tolerance, Unmeasured, host, largest, worst};
use crate::{EMPTY, Evidence, EvidenceKind, Fresh, Hidden, MaskCache, PADDING, Pass, Rope, Window, attend};
use burn::tensor::{DType, Int, Tensor, TensorData};

/// Rounding of weights and of sums over them, where values are at most 1. Half precision rounds the scores, which reach
/// about 6, before they are exponents. Mass is compared relative to the largest one of its call.
const TOLERANCE: Tolerance = Tolerance::new(2e-5, 1e-2, 8e-2);

/// How queries are kept from old cells.
#[derive(Clone, Copy)]
enum Sight {
    /// They see all of them.
    All,
    /// A sliding window, the old cells by age.
    Window(usize),
    /// Each row and head holds other tokens, some cells none; perhaps a sliding window.
    ByHead(Option<usize>),
}

#[derive(Clone)]
struct Call {
    batch: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    cells: usize,
    fresh: Fresh,
    sight: Sight,
}

pub(super) fn cases() -> Vec<Case> {
    let call = |batch, kv_heads, group, dim, cells, fresh| Call {
        batch,
        kv_heads,
        group,
        dim,
        cells,
        fresh,
        sight: Sight::All,
    };
    let appended = |batch, kv_heads, group, dim, old: usize, new: usize| {
        call(batch, kv_heads, group, dim, old + new, Fresh::appended(old, new))
    };
    let behind = |old, new, sight| Call { sight, ..appended(2, 2, 2, 8, old, new) };
    let calls = [
        ("a prompt, groups of 1, 3, 4, 8", [1, 3, 4, 8].map(|group| appended(2, 2, group, 64, 0, 9)).to_vec()),
        ("a prompt, heads of 2, 24, 80, 128", [2, 24, 80, 128].map(|dim| appended(1, 3, 2, dim, 0, 13)).to_vec()),
        ("one token", [(0, 1), (11, 4), (300, 3)].map(|(old, group)| appended(2, 3, group, 64, old, 1)).to_vec()),
        (
            "one token, heads of 20, 80, 128, blocks of cells",
            [(63, 1, 20), (64, 8, 80), (128, 2, 128)]
                .map(|(old, group, dim)| appended(1, 2, group, dim, old, 1))
                .to_vec(),
        ),
        ("blocks of queries", [255, 256, 257, 590].map(|new| appended(1, 1, 2, 16, 10, new)).to_vec()),
        ("a chunk behind a cache", vec![appended(2, 2, 1, 4, 7, 4), appended(1, 3, 3, 64, 100, 20)]),
        ("tokens in freed cells", vec![call(2, 1, 2, 4, 8, Fresh::new(vec![6, 7, 2, 3]))]),
        ("sliding windows", [1, 7, 255, 256, 257].map(|size| behind(40, 300, Sight::Window(size))).to_vec()),
        ("sliding windows in later blocks", [7, 257].map(|size| behind(300, 520, Sight::Window(size))).to_vec()),
        (
            "other tokens in every head",
            [8, 64, 80, 128]
                .into_iter()
                .flat_map(|dim| [None, Some(9)].map(|size| Call { dim, ..behind(30, 12, Sight::ByHead(size)) }))
                .chain([Call { dim: 64, ..behind(30, 70, Sight::ByHead(None)) }])
                .collect(),
        ),
    ];
    let cases = calls.into_iter().flat_map(|(name, calls)| {
        [("fused", Look::Away), ("with key mass", Look::On), ("with key mass of some queries", Look::OnSome)].map(
            |(how, look)| {
                let calls = calls.clone();
                Case::new(format!("attention, {how}: {name}"), TOLERANCE, move |subject| {
                    let all = calls.iter().map(|call| call.measure(subject, look)).collect::<Result<Vec<_>, _>>();
                    Ok(Measured::worst_of(all?))
                })
            },
        )
    });
    cases.chain([rope()]).collect()
}

/// What is looked at.
#[derive(Clone, Copy, PartialEq)]
enum Look {
    Away,
    On,
    /// The last three queries count, each differently.
    OnSome,
}

/// Deterministic values between -1 and 1.
pub(super) fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0) - 1.0).collect()
}

/// The values on the device in the subject's dtype, and as the host reads them there.
pub(super) fn stored(
    subject: &Subject,
    values: Vec<f32>,
    shape: [usize; 4],
) -> Result<(Tensor<4>, Vec<f64>), Unmeasured> {
    let tensor = Tensor::<4>::from_data(TensorData::new(values, shape), (&subject.device, DType::F32));
    let tensor = tensor.cast(subject.dtype);
    Ok((tensor.clone(), host(tensor)?))
}

impl Call {
    fn measure(&self, subject: &Subject, look: Look) -> Result<Measured, Unmeasured> {
        let &Self { batch, kv_heads, group, dim, cells, .. } = self;
        let queries = self.fresh.len();
        let make = |heads: usize, tokens: usize, seed: usize, scale: f32| {
            let values = values(batch * heads * tokens * dim, seed).into_iter().map(|x| x * scale).collect();
            stored(subject, values, [batch, heads, tokens, dim])
        };
        let (query, q) = make(kv_heads * group, queries, 1, 3.0)?;
        let (keys, k) = make(kv_heads, cells, 2, 1.0)?;
        let (values, v) = make(kv_heads, cells, 3, 1.0)?;
        let counts: Vec<f32> = match look {
            Look::OnSome => (0..queries).map(|i| if i + 3 < queries { 0.0 } else { 1.0 + i as f32 / 8.0 }).collect(),
            _ => vec![1.0; queries],
        };
        let reference = Reference { query: &q, keys: &k, values: &v, group, queries, cells, dim };
        let positions = self.positions();
        let (output, mass) = reference.run(&counts, |place, row, cell| self.sees(&positions, place, row, cell));

        let old = cells - queries;
        let window = match self.sight {
            Sight::Window(size) => Some(Window::new(size, (1..=old).rev().collect())),
            _ => None,
        };
        let hidden = match self.sight {
            Sight::ByHead(window) => {
                let data = TensorData::new(positions, [batch, kv_heads, cells]);
                let positions = Tensor::<3, Int>::from_data(data, &subject.device);
                Some(Hidden { positions, start: START, window, everywhere: false })
            }
            _ => None,
        };
        let pass = Pass {
            window: window.as_ref(),
            hidden: hidden.as_ref(),
            evidence: if look == Look::Away { EvidenceKind::None } else { EvidenceKind::KeyMass },
            weights: (look == Look::OnSome).then_some(&counts[..]),
            ..Pass::new(&self.fresh)
        };
        let (found, evidence) = attend(query, keys, values, &pass, &mut MaskCache::default());
        let mut error = worst(&host(found)?, &output);
        let note = format!("worst at {batch} x {kv_heads} x {group} heads of {dim}, {queries} queries, {cells} cells");
        match (look, evidence) {
            (Look::Away, None) => {}
            (Look::On | Look::OnSome, Some(Evidence::KeyMass(found))) => {
                let scale = largest(mass.iter().copied()).max(1.0);
                let off = worst(&host(found)?, &mass) / scale;
                error = if off > error || off.is_nan() { off } else { error };
            }
            (_, other) => return Err(Unmeasured::Failed(format!("unexpected evidence {other:?}"))),
        }
        Ok(Measured { worst: error, note })
    }

    /// Positions `[batch, kv_head, cell]` of the tokens, where each head holds other ones.
    fn positions(&self) -> Vec<i64> {
        let place = |place: usize| {
            (0..self.cells).map(move |cell| match self.fresh.cells().iter().position(|&fresh| fresh == cell) {
                Some(index) => (START + index) as i64,
                None if (cell + place).is_multiple_of(5) => EMPTY,
                None if cell < 2 => PADDING,
                None => ((cell * 7 + place * 3) % START) as i64,
            })
        };
        (0..self.batch * self.kv_heads).flat_map(place).collect()
    }

    fn sees(&self, positions: &[i64], place: usize, row: usize, cell: usize) -> bool {
        let index = self.fresh.cells().iter().position(|&fresh| fresh == cell);
        let within = |behind: usize, window: Option<usize>| window.is_none_or(|window| behind < window);
        match (index, self.sight) {
            (Some(index), _) if index > row => false,
            (Some(index), Sight::Window(size) | Sight::ByHead(Some(size))) => within(row - index, Some(size)),
            (Some(_), _) | (None, Sight::All) => true,
            (None, Sight::Window(size)) => within(row + self.cells - self.fresh.len() - cell, Some(size)),
            (None, Sight::ByHead(window)) => {
                let position = positions[place * self.cells + cell];
                position >= 0 && within(START + row - position as usize, window)
            }
        }
    }
}

/// Position of the first new token, where heads hold other tokens.
const START: usize = 50;

fn rope() -> Case {
    // Late positions are as exact as early ones; half precision rounds cosines and sines too.
    Case::new("rotary encoding: early and late positions", Tolerance::new(2e-6, 4e-3, 3e-2), |subject| {
        let (tokens, dim) = (5, 16);
        let mut all = Vec::new();
        for start in [0, 1000, 200_000] {
            let (x, before) = stored(subject, values(2 * tokens * dim, 4), [1, 2, tokens, dim])?;
            let found = host(Rope::new(dim, 1e4).table(start..start + tokens, &subject.device).apply(x))?;
            let half = dim / 2;
            let turned = (0..before.len()).map(|i| {
                let (channel, position) = (i % dim, start + i / dim % tokens);
                let angle = position as f64 * 1e4_f64.powf(-2.0 * (channel % half) as f64 / dim as f64);
                let partner = if channel < half { -before[i + half] } else { before[i - half] };
                before[i] * angle.cos() + partner * angle.sin()
            });
            let note = format!("worst from position {start}");
            all.push(Measured { worst: worst(&found, &turned.collect::<Vec<_>>()), note });
        }
        Ok(Measured::worst_of(all))
    })
}
