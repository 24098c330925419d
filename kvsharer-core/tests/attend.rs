//! Attention and its evidence against a plain f64 reference on the host.

use burn::tensor::{Device, Tensor, TensorData};
use kvsharer_core::{Evidence, EvidenceKind, Fresh, MaskCache, Pass, attend};

const DIM: usize = 4;

struct Case {
    batch: usize,
    kv_heads: usize,
    group: usize,
    cells: usize,
    fresh: Fresh,
}

/// Deterministic values between -1 and 1.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0) - 1.0).collect()
}

impl Case {
    fn tensors(&self) -> [(Vec<f32>, [usize; 4]); 3] {
        let heads = self.kv_heads * self.group;
        let shapes = [
            [self.batch, heads, self.fresh.len(), DIM],
            [self.batch, self.kv_heads, self.cells, DIM],
            [self.batch, self.kv_heads, self.cells, DIM],
        ];
        let mut seed = 0;
        shapes.map(|shape| {
            seed += 1;
            let scale = if seed == 1 { 3.0 } else { 1.0 };
            (values(shape.iter().product(), seed).into_iter().map(|x| x * scale).collect(), shape)
        })
    }

    /// Softmax rows `[batch, head, query][cell]` and outputs `[batch, head, query, dim]`.
    fn reference(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let [(q, _), (k, _), (v, _)] = self.tensors();
        let (mut weights, mut output) = (Vec::new(), Vec::new());
        let heads = self.kv_heads * self.group;
        for (row, query) in q.chunks(DIM).enumerate() {
            let (head, index) = (row / self.fresh.len(), row % self.fresh.len());
            let (batch, head) = (head / heads, head % heads);
            let base = (batch * self.kv_heads + head / self.group) * self.cells;
            let later = &self.fresh.cells()[index + 1..];
            let scores: Vec<f64> = (0..self.cells)
                .map(|cell| {
                    let key = &k[(base + cell) * DIM..][..DIM];
                    let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    if later.contains(&cell) { f64::NEG_INFINITY } else { dot / (DIM as f64).sqrt() }
                })
                .collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exp: Vec<f64> = scores.iter().map(|score| (score - best).exp()).collect();
            let total: f64 = exp.iter().sum();
            let row: Vec<f64> = exp.iter().map(|e| e / total).collect();
            for channel in 0..DIM {
                output.push(
                    row.iter().enumerate().map(|(cell, w)| w * f64::from(v[(base + cell) * DIM + channel])).sum(),
                );
            }
            weights.push(row);
        }
        (weights, output)
    }

    fn run(&self, evidence: EvidenceKind, weights: Option<&[f32]>) -> (Vec<f32>, Option<Evidence>) {
        let [q, k, v] =
            self.tensors().map(|(data, shape)| Tensor::<4>::from_data(TensorData::new(data, shape), &Device::flex()));
        let pass = Pass { evidence, weights, ..Pass::new(&self.fresh) };
        let (output, evidence) = attend(q, k, v, &pass, &mut MaskCache::default());
        (output.try_into_vec_as::<f32>().unwrap(), evidence)
    }
}

/// A prompt, a chunk behind old cells, one token, tokens in freed cells, and more queries than a block.
fn cases() -> Vec<Case> {
    let case = |batch, kv_heads, group, cells, fresh| Case { batch, kv_heads, group, cells, fresh };
    vec![
        case(1, 1, 1, 1, Fresh::appended(0, 1)),
        case(2, 3, 3, 9, Fresh::appended(0, 9)),
        case(2, 2, 1, 11, Fresh::appended(7, 4)),
        case(1, 2, 4, 12, Fresh::appended(11, 1)),
        case(2, 1, 2, 8, Fresh::new(vec![6, 7, 2, 3])),
        case(1, 1, 2, 600, Fresh::appended(10, 590)),
    ]
}

fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() < tolerance, "at {index}: {f} instead of {e}");
    }
}

#[test]
fn every_path_gives_the_reference_output() {
    for case in cases() {
        let (_, expected) = case.reference();
        for kind in [EvidenceKind::None, EvidenceKind::KeyMass, EvidenceKind::Keys] {
            close(&case.run(kind, None).0, &expected, 2e-5);
        }
    }
}

#[test]
fn key_mass_is_the_column_sum_of_all_softmax_rows() {
    for case in cases() {
        let (rows, _) = case.reference();
        let expected: Vec<f64> = rows
            .chunks(case.fresh.len())
            .flat_map(|head| (0..case.cells).map(|cell| head.iter().map(|row| row[cell]).sum()).collect::<Vec<f64>>())
            .collect();
        let Some(Evidence::KeyMass(mass)) = case.run(EvidenceKind::KeyMass, None).1 else { panic!("no key mass") };
        assert_eq!(mass.dims(), [case.batch, case.kv_heads, case.group, case.cells]);
        close(&mass.try_into_vec_as::<f32>().unwrap(), &expected, 1e-3);
    }
}

#[test]
fn weights_make_key_mass_a_weighted_sum_of_rows_and_queries_without_weight_are_not_observed() {
    for case in cases() {
        let (rows, output) = case.reference();
        let tokens = case.fresh.len();
        // Only the last three queries count, each differently.
        let weights: Vec<f32> = (0..tokens).map(|i| if i + 3 < tokens { 0.0 } else { 1.0 + i as f32 / 2.0 }).collect();
        let weighted = |head: &[Vec<f64>], cell: usize| -> f64 {
            head.iter().zip(&weights).map(|(row, weight)| row[cell] * f64::from(*weight)).sum()
        };
        let heads = rows.chunks(tokens);
        let expected: Vec<f64> = heads
            .flat_map(|head| (0..case.cells).map(move |cell| (head, cell)))
            .map(|(head, cell)| weighted(head, cell))
            .collect();
        let (found, evidence) = case.run(EvidenceKind::KeyMass, Some(&weights));
        close(&found, &output, 2e-5);
        let Some(Evidence::KeyMass(mass)) = evidence else { panic!("no key mass") };
        close(&mass.try_into_vec_as::<f32>().unwrap(), &expected, 1e-2);
        let (found, evidence) = case.run(EvidenceKind::KeyMass, Some(&vec![0.0; tokens]));
        close(&found, &output, 2e-5);
        assert!(evidence.is_none());
    }
}
