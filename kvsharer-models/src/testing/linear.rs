//! Linear layers against plain f64 on the host, for few rows and for many: some devices have kernels of their own for
//! few.

use crate::linear::Linear;
use burn::tensor::{DType, Tensor, TensorData};
use kvsharer_core::testing::{Case, Measured, Subject, Tolerance, Unmeasured, host, largest, worst};

/// Relative to the largest output. Half precision rounds the outputs, and on some devices sums on the way to them.
const TOLERANCE: Tolerance = Tolerance::new(1e-5, 4e-3, 3e-2);

pub(super) fn cases() -> Vec<Case> {
    // Rows, inputs and outputs: beside the sizes of models, those that no vector and no block divides.
    [
        ("one row", vec![(1, 1, 1), (1, 31, 5), (1, 576, 1537), (1, 96, 4099)]),
        ("2 to 32 rows", vec![(2, 64, 3), (3, 576, 193), (4, 33, 65), (7, 100, 40), (16, 72, 49), (32, 130, 3)]),
        ("more rows", vec![(33, 64, 20), (70, 31, 33)]),
    ]
    .into_iter()
    .map(|(name, sizes)| {
        Case::new(format!("linear: {name}"), TOLERANCE, move |subject| {
            let all = sizes.iter().map(|&size| measure(subject, size)).collect::<Result<Vec<_>, _>>();
            Ok(Measured::worst_of(all?))
        })
    })
    .collect()
}

fn measure(subject: &Subject, (rows, input, output): (usize, usize, usize)) -> Result<Measured, Unmeasured> {
    let stored = |count: usize, seed: usize| {
        let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect();
        let tensor = Tensor::<1>::from_data(TensorData::new(values, [count]), (&subject.device, DType::F32));
        tensor.cast(subject.dtype)
    };
    let (x, weight) = (stored(rows * input, 1), stored(output * input, 2));
    let found = Linear::new(weight.clone().reshape([output, input])).forward(x.clone().reshape([1, rows, input]));
    let (x, weight) = (host(x)?, host(weight)?);
    let dot = |x: &[f64], weight: &[f64]| x.iter().zip(weight).map(|(x, weight)| x * weight).sum::<f64>();
    let expected = x.chunks(input).flat_map(|x| weight.chunks(input).map(move |weight| dot(x, weight)));
    let expected: Vec<f64> = expected.collect();
    let error = worst(&host(found)?, &expected) / largest(expected.iter().map(|y| y.abs())).max(1.0);
    Ok(Measured { worst: error, note: format!("worst at {rows} x {input} x {output}") })
}
