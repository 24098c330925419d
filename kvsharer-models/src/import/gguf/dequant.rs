//! Quantised blocks to 32-bit floats, exactly as ggml defines them: every product and sum is
//! rounded to f32 by itself, in the order of the reference in the Python package `gguf`, so that
//! the results agree bit for bit.
//!
//! A block holds some scales in half precision and one small integer `q` an element.

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::SourceDtype;
use super::super::source::numbers;

/// Blocks that one task of the thread pool unpacks.
const BLOCKS_A_TASK: usize = 512;

/// The values of a tensor's stored bytes, in the order they are stored; `None` for
/// [`SourceDtype::Other`].
///
/// Bytes behind the last whole block are left out; a [`TensorSource`](super::super::TensorSource)
/// checks that there are none.
///
/// # Shapes
///
/// `bytes`: whole blocks of [`SourceDtype::block`]; the result has one value an element.
pub fn dequantize(dtype: &SourceDtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        SourceDtype::F32 => numbers(bytes, f32::from_le_bytes),
        SourceDtype::F16 => numbers(bytes, |number| f16::from_le_bytes(number).to_f32()),
        SourceDtype::BF16 => numbers(bytes, |number| bf16::from_le_bytes(number).to_f32()),
        SourceDtype::Q8_0 => unpack(bytes, q8_0),
        SourceDtype::Q4_0 => unpack(bytes, q4_0),
        SourceDtype::Q4_1 => unpack(bytes, q4_1),
        SourceDtype::Q4_K => unpack(bytes, q4_k),
        SourceDtype::Q6_K => unpack(bytes, q6_k),
        SourceDtype::Other(_) => return None,
    })
}

/// Unpacks blocks of `BYTES` bytes into `VALUES` values each, on all threads.
fn unpack<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    block: fn(&[u8; BYTES], &mut [f32; VALUES]),
) -> Vec<f32> {
    let blocks = bytes.as_chunks::<BYTES>().0;
    let mut values = vec![0.0; blocks.len() * VALUES];
    let outputs = values.as_chunks_mut::<VALUES>().0;
    outputs.par_iter_mut().zip(blocks).with_min_len(BLOCKS_A_TASK).for_each(|(output, input)| block(input, output));
    values
}

/// The half-precision number at a place in a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// scale, 32 signed bytes: `q * scale`.
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(q.cast_signed()) * scale;
    }
}

/// scale, 16 bytes: `scale * (q - 8)`; the low halves are the first 16 elements.
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], values, |q| scale * (q - 8.0));
}

/// scale, minimum, 16 bytes: `scale * q + minimum`.
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], values, |q| scale * q + minimum);
}

/// Writes a value for the low half of every byte, then one for every high half.
fn nibbles(bytes: &[u8], values: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = values.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = value(f32::from(byte & 0xf));
        *high = value(f32::from(byte >> 4));
    }
}

/// scale, scale of minimums, 12 bytes of 6-bit scales, 128 bytes: 8 groups of 32 elements with
/// `(scale * s) * q - (scale of minimums * m)`. A run of 32 bytes holds two groups, in its low
/// and in its high halves.
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, quants) = block[4..].split_at(12);
    for (pair, (bytes, values)) in quants.chunks(32).zip(values.chunks_mut(64)).enumerate() {
        let (low, high) = values.split_at_mut(32);
        for (half, values) in [low, high].into_iter().enumerate() {
            let (s, m) = q4_k_scales(packed, 2 * pair + half);
            let (scale, minimum) = (scale * s, minimum * m);
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = scale * f32::from((byte >> (4 * half)) & 0xf) - minimum;
            }
        }
    }
}

/// The 6-bit scale and minimum of a group: those of groups 0 to 3 are the low 6 bits of bytes 0
/// to 7; those of groups 4 to 7 have 4 bits in bytes 8 to 11 and 2 bits atop bytes 0 to 7.
fn q4_k_scales(packed: &[u8], group: usize) -> (f32, f32) {
    let (s, m) = if group < 4 {
        (packed[group] & 0x3f, packed[group + 4] & 0x3f)
    } else {
        let (scale_top, minimum_top, low) = (packed[group - 4], packed[group], packed[group + 4]);
        ((low & 0xf) | (scale_top >> 2 & 0x30), (low >> 4) | (minimum_top >> 2 & 0x30))
    };
    (f32::from(s), f32::from(m))
}

/// 128 bytes of low halves, 64 bytes of upper 2 bits, 16 signed scales, scale: 16 groups of 16
/// elements with `(scale * s) * (q - 32)`. A half of the block (128 elements) takes 64 bytes of
/// low halves and 32 bytes of upper bits, the latter for 4 runs of 32 elements.
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let (low, rest) = block.split_at(128);
    let (top, rest) = rest.split_at(64);
    let scale = half_at(rest, 16);
    for (at, value) in values.iter_mut().enumerate() {
        let (half, run, column) = (at / 128, at / 32 % 4, at % 32);
        let low = low[64 * half + 32 * (run % 2) + column] >> (4 * (run / 2)) & 0xf;
        let top = top[32 * half + column] >> (2 * run) & 0x3;
        let group = scale * f32::from(rest[at / 16].cast_signed());
        *value = group * (f32::from(low | top << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One, in half precision.
    const ONE: [u8; 2] = [0x00, 0x3c];

    #[test]
    fn blocks_are_as_long_as_their_type_says() {
        for dtype in [SourceDtype::Q8_0, SourceDtype::Q4_0, SourceDtype::Q4_1, SourceDtype::Q4_K, SourceDtype::Q6_K] {
            let (elements, bytes) = dtype.block().unwrap();
            assert_eq!(dequantize(&dtype, &vec![0; 3 * bytes]).unwrap().len(), 3 * elements, "{dtype:?}");
            assert_eq!(dequantize(&dtype, &vec![0; bytes - 1]).unwrap().len(), 0, "{dtype:?}");
        }
    }

    #[test]
    fn low_halves_come_before_high_halves() {
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&ONE);
        block[2] = 0xf0;
        let values = dequantize(&SourceDtype::Q4_0, &block).unwrap();
        assert_eq!((values[0], values[1], values[16], values[17]), (-8.0, 0.0, 7.0, 0.0));
    }

    #[test]
    fn unsupported_types_have_no_values() {
        assert!(dequantize(&SourceDtype::Other("Q5_1".to_owned()), &[]).is_none());
    }
}
