//! Causal attention of a whole prompt on tensor cores, without a queries x keys matrix: burn's flash attention, which it
//! only chooses by trying all of its kernels for each shape.

use super::CubeTensor;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Device, Tensor, ops::AttentionModuleOptions};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::attention::{AttentionStrategy, attention};
use burn_cubecl::kernel::into_contiguous;
use cubek::attention::forward::routines::blackbox_accelerated::BlackboxAcceleratedStrategy;

/// Tokens that lengths must be multiples of: more than any of its kernels takes at once.
const MULTIPLE: usize = 128;

/// Planes of a cube.
const PLANES: u8 = 4;

pub(in super::super) fn flash(query: &Tensor<4>, keys: &Tensor<4>, values: &Tensor<4>) -> Option<Tensor<4>> {
    let ([batch, heads, tokens, dim], dtype) = (query.dims(), query.dtype());
    let same = [keys, values].iter().all(|tensor| tensor.dtype() == dtype && tensor.dims()[3] == dim);
    let half = matches!(dtype, DType::F16 | DType::BF16);
    if !same || !half || tokens < MULTIPLE || !dim.is_multiple_of(16) || !multiplies_half(&query.device()) {
        return None;
    }
    // What is padded stands behind, where no token looks.
    let padded = |tensor: &Tensor<4>| {
        let [_, own, count, _] = tensor.dims();
        let tensor = match heads / own {
            1 => tensor.clone(),
            group => {
                let each = tensor.clone().unsqueeze_dim::<5>(2).expand([batch, own, group, count, dim]);
                each.reshape([batch, heads, count, dim])
            }
        };
        match count.next_multiple_of(MULTIPLE) - count {
            0 => tensor,
            more => Tensor::cat(vec![tensor, Tensor::zeros([batch, heads, more, dim], (&query.device(), dtype))], 2),
        }
    };
    let [query, keys, values] = [query, keys, values].map(|tensor| padded(tensor).into_dispatch());
    let output = Tensor::<4>::from_dispatch(Dispatch::flash(query, keys, values));
    Some(if output.dims()[2] == tokens { output } else { output.slice_dim(2, 0..tokens) })
}

/// Whether there are tensor cores for its inner products, which are of f16.
fn multiplies_half(device: &Device) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else { return false };
    let half = dtype_to_storage_type(DType::F16);
    let client = device.client();
    let mut known = client.properties().features.matmul.cmma.iter();
    known.any(|config| config.a_type == half && config.b_type == half)
}

#[backend_extension(Cube, Fusion)]
trait Flash: Backend {
    /// All `[batch, head, token, dim]` of one shape; a token sees itself and what stands before it.
    #[fusion(dtype = query, shape = query)]
    fn flash(query: FloatTensor<Self>, keys: FloatTensor<Self>, values: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Flash for CubeBackend {
    fn flash(query: CubeTensor, keys: CubeTensor, values: CubeTensor) -> CubeTensor {
        let [query, keys, values] = [query, keys, values].map(into_contiguous);
        let options = AttentionModuleOptions { is_causal: true, ..AttentionModuleOptions::default() };
        let strategy = BlackboxAcceleratedStrategy { num_planes: PLANES, seq_q: 1, seq_kv: 1 };
        let strategy = AttentionStrategy::FlashBlackboxAccelerated(strategy);
        attention(query, keys, values, None, None, options, strategy).expect("burn falls back to what always runs")
    }
}
