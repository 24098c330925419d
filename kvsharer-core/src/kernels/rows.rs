//! The cells of a cache's heads as they lie in memory.

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Tensor};

/// Queries in line, keys and values as they lie; `None` for what the kernels of attention do not take.
pub(super) fn primitives(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<[FloatTensor<Flex>; 3]> {
    let is_f32 = [query, keys, values].iter().all(|tensor| tensor.dtype() == DType::F32);
    if !is_f32 || values.dims()[3] != query.dims()[3] || keys.dims()[2] == 0 {
        return None;
    }
    let primitive = |tensor: &Tensor<4>| tensor.clone().try_into_primitive::<Flex>().ok();
    Some([primitive(query)?.to_contiguous(), primitive(keys)?, primitive(values)?])
}

/// Rows of a `[batch, head, cell, head_dim]` view whose last two axes lie row behind row.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    all: &'a [f32],
    start: usize,
    batch: usize,
    head: usize,
}

impl<'a> Rows<'a> {
    /// `None` if rows do not lie in line.
    pub(super) fn of(tensor: &'a FloatTensor<Flex>, dim: usize) -> Option<Self> {
        let layout = tensor.layout();
        let strides = layout.strides().iter().map(|&stride| usize::try_from(stride).ok());
        let strides = strides.collect::<Option<Vec<usize>>>()?;
        let &[batch, head, cell, channel] = &strides[..] else { return None };
        (cell == dim && channel == 1).then(|| Self { all: tensor.storage(), start: layout.start_offset(), batch, head })
    }

    /// The elements of one head: of a sequence, a head, and so many elements.
    pub(super) fn head(self, (sequence, head, elements): (usize, usize, usize)) -> &'a [f32] {
        let start = self.start + sequence * self.batch + head * self.head;
        &self.all[start..start + elements]
    }
}
