//! The rotary encoding in one pass, from heads as a projection leaves them.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

/// Elements that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 15;

pub(super) fn turn(x: &Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<4>> {
    let [batch, heads, tokens, dim] = x.dims();
    let positions = cos.dims()[0];
    let is_f32 = x.dtype() == DType::F32 && cos.dtype() == DType::F32;
    if !is_f32 || !(positions == tokens || positions == 1) || tokens == 0 {
        return None;
    }
    let device = x.device();
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    let [cos, sin] = [cos, sin].map(|table| table.clone().try_into_primitive::<Flex>().ok());
    let (cos, sin) = (cos?.to_contiguous(), sin?.to_contiguous());
    let (cos, sin) = (cos.as_slice::<f32>()?, sin.as_slice::<f32>()?);
    let strides = x.layout().strides().iter().map(|&stride| usize::try_from(stride).ok());
    let &[of_sequence, of_head, of_token, of_channel] = &strides.collect::<Option<Vec<usize>>>()?[..] else {
        return None;
    };
    if of_channel != 1 {
        return None;
    }
    let (all, start) = (x.storage::<f32>(), x.layout().start_offset());
    let mut turned = vec![0.0; batch * heads * tokens * dim];
    let arch = pulp::Arch::new();
    let one = |(index, turned): (usize, &mut [f32])| {
        let start = start + index / heads * of_sequence + index % heads * of_head;
        arch.dispatch(|| {
            for (token, turned) in turned.chunks_exact_mut(dim).enumerate() {
                let row = if positions == 1 { 0 } else { token * dim };
                let from = start + token * of_token;
                pairs(&all[from..from + dim], &cos[row..row + dim], &sin[row..row + dim], turned);
            }
        });
    };
    let heads = turned.chunks_mut(tokens * dim).enumerate();
    if batch * tokens * dim < WORTH_A_THREAD {
        heads.for_each(one);
    } else {
        heads.collect::<Vec<_>>().into_par_iter().for_each(one);
    }
    Some(Tensor::from_data(TensorData::new(turned, x.layout().shape().clone()), &device))
}

/// Turns channel `i` with channel `i + head_dim / 2`.
#[inline(always)]
fn pairs(x: &[f32], cos: &[f32], sin: &[f32], turned: &mut [f32]) {
    let half = x.len() / 2;
    let ((a, b), (left, right)) = (x.split_at(half), turned.split_at_mut(half));
    for i in 0..half {
        left[i] = a[i] * cos[i] - b[i] * sin[i];
        right[i] = b[i] * cos[half + i] + a[i] * sin[half + i];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rope::rotate;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn heads_are_turned_as_the_formula_says_however_they_lie() {
        let device = Device::flex();
        for (batch, heads, tokens, dim, positions) in
            [(1, 1, 1, 2, 1), (2, 3, 5, 20, 5), (1, 9, 512, 64, 512), (3, 2, 7, 8, 1)]
        {
            let projected = Tensor::<4>::random([batch, tokens, heads, dim], Distribution::Default, &device);
            let [cos, sin] =
                [(); 2].map(|()| Tensor::<2>::random([positions, dim], Distribution::Uniform(-1.0, 1.0), &device));
            for x in [projected.clone().swap_dims(1, 2), projected.swap_dims(1, 2) * 1.0] {
                let wanted = rotate(x.clone(), cos.clone().unsqueeze(), sin.clone().unsqueeze());
                let got = turn(&x, &cos, &sin).expect("a kernel");
                assert_eq!(got.dims(), [batch, heads, tokens, dim]);
                let worst = (got - wanted).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-6, "{batch} {heads} {tokens} {dim}: {worst}");
            }
        }
    }
}
