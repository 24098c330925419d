//! Rotary encoding.

use super::{CubeTensor, address, grid, known, width};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 128;

pub(in super::super) fn turn(x: &Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Option<Tensor<4>> {
    let [_, _, tokens, dim] = x.dims();
    let fits = |table: &Tensor<2>| {
        table.dtype() == DType::F32 && table.dims()[1] == dim && [1, tokens].contains(&table.dims()[0])
    };
    if !known(x.dtype()) || !fits(cos) || !fits(sin) || x.dims().contains(&0) {
        return None;
    }
    let [cos, sin] = [cos, sin].map(|table| table.clone().into_dispatch());
    Some(Tensor::from_dispatch(Dispatch::turn(x.clone().into_dispatch(), cos, sin)))
}

#[backend_extension(Cube, Fusion)]
trait Turn: Backend {
    /// Turns each pair of channels `i` and `i + dim / 2` of `x` `[batch, head, token, dim]` by the angle whose cosine
    /// and sine are in the row of its token, `[token, dim]`, or in the only row.
    #[fusion(dtype = x, shape = x)]
    fn turn(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Turn for CubeBackend {
    fn turn(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        let (cos, sin) = (into_contiguous(cos), into_contiguous(sin));
        // Heads of one token lie side by side in what projections give: it is read as it lies.
        let x = if x.meta.strides()[3] == 1 { x } else { into_contiguous(x) };
        let (client, shape) = (x.client.clone(), x.meta.shape().clone());
        let [batch, heads, tokens, dim] = shape.dims();
        let y = empty_device_contiguous_dtype(client.clone(), x.device.clone(), shape, x.dtype);
        let strides: [usize; 3] = std::array::from_fn(|axis| x.meta.strides()[axis]);
        let width = width(&client, DType::F32.size(), &[&strides[..], &[dim / 2]].concat());
        let (pairs, address) = (dim / 2 / width, address(&[&x, &y, &cos, &sin]));
        let mut places = SequenceArg::new();
        strides.iter().for_each(|stride| places.push(stride / width));
        let cubes = (batch * heads * tokens * pairs).div_ceil(UNITS);
        let row = if cos.meta.shape()[0] == 1 { 0 } else { 2 * pairs };
        let dtype = dtype_to_storage_type(x.dtype);
        // Safety: units behind the last pair do nothing; the others read and write below the shape.
        #[allow(unsafe_code)]
        unsafe {
            turn_kernel::launch_unchecked(
                &client,
                grid(cubes, 1),
                CubeDim::new_1d(UNITS as u32),
                address,
                width,
                x.into_buffer_arg(),
                cos.into_buffer_arg(),
                sin.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                places,
                batch * heads * tokens,
                heads,
                tokens,
                pairs,
                row,
                dtype,
            );
        }
        y
    }
}

/// `pairs` are the vectors of half a head, `row` those from one token to the next in the table.
#[cube(launch_unchecked, address_type = "dynamic")]
fn turn_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    places: Sequence<usize>,
    lines: usize,
    heads: usize,
    tokens: usize,
    pairs: usize,
    row: usize,
    #[define(F)] _dtype: ElemType,
) {
    let cube = CUBE_POS_Y as usize * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let unit = cube * UNITS + UNIT_POS_X as usize;
    let (line, left) = (unit / pairs, unit % pairs);
    if line < lines {
        let (head, token) = (line / tokens, line % tokens);
        let from = head / heads * places[0] + head % heads * places[1] + token * places[2] + left;
        let (to, angle) = (line * 2 * pairs + left, token * row + left);
        let (a, b) = (Vector::<f32, N>::cast_from(x[from]), Vector::<f32, N>::cast_from(x[from + pairs]));
        y[to] = Vector::cast_from(a * cos[angle] - b * sin[angle]);
        y[to + pairs] = Vector::cast_from(b * cos[angle + pairs] + a * sin[angle + pairs]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rope;
    use crate::testing::gpu;
    use burn::tensor::{Device, Distribution};

    #[test]
    fn a_gpu_turns_as_the_cpu_does() {
        let (Some(device), cpu) = (gpu(), Device::flex()) else { return };
        for (batch, heads, tokens, dim) in [(1, 1, 1, 2), (2, 3, 1, 20), (1, 9, 5, 64), (2, 1, 33, 24)] {
            // As split heads lie.
            let x = Tensor::<4>::random([batch, tokens, heads, dim], Distribution::Default, &cpu);
            let there = Tensor::<4>::from_data(x.to_data(), &device).swap_dims(1, 2);
            for positions in [7..7 + tokens, 3..4] {
                let table = |device| Rope::new(dim, 1e4).table(positions.clone(), device);
                let any = Tensor::<2>::zeros([1, dim], &device);
                assert!(turn(&there, &any, &any).is_some(), "a kernel");
                let got = table(&device).apply(there.clone());
                let got = Tensor::<4>::from_data(got.into_data(), (&cpu, DType::F32));
                let worst = (got - table(&cpu).apply(x.clone().swap_dims(1, 2))).abs().max().into_scalar::<f32>();
                assert!(worst < 1e-5, "{batch} x {heads} x {tokens} x {dim}: {worst}");
            }
        }
    }
}
