//! Quantised slots against an f64 reference on the host: half a step of error, exact bytes, and no drift however often
//! a buffer is written anew from what it decodes to.

use burn::tensor::{DType, Device, Tensor, TensorData};
use kvsharer_core::testing::{bound_used, rounding};
use kvsharer_core::{Kv, Quantisation, QuantisedBuffer, axis};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BATCH: usize = 2;
const HEADS: usize = 3;
const KINDS: [Kv; 2] = [Kv::Key, Kv::Value];
const DTYPES: [DType; 2] = [DType::F32, DType::F16];

fn codec(bits: usize, group: usize, residual: usize) -> Quantisation {
    Quantisation::new(bits, group, residual).unwrap()
}

/// `[BATCH, HEADS, cells, dim]` of the values that `value` gives for each place in turn.
fn tensor(cells: usize, dim: usize, dtype: DType, value: impl FnMut(usize) -> f32) -> Tensor<4> {
    let values: Vec<f32> = (0..BATCH * HEADS * cells * dim).map(value).collect();
    let data = TensorData::new(values, [BATCH, HEADS, cells, dim]);
    Tensor::<4>::from_data(data, (&Device::flex(), DType::F32)).cast(dtype)
}

/// Random tokens; like those of keys, some channels are far from 0 and some spread widely.
fn tokens(cells: usize, dim: usize, dtype: DType, seed: u64) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    tensor(cells, dim, dtype, |i| {
        let (centre, spread) = [(0.0, 1.0), (20.0, 0.5), (-3.0, 8.0), (0.1, 0.02)][i % dim % 4];
        centre + spread * (rng.random::<f32>() * 2.0 - 1.0)
    })
}

fn host(tensor: Tensor<4>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

fn span(tensor: &Tensor<4>, cells: std::ops::Range<usize>) -> Tensor<4> {
    tensor.clone().slice_dim(axis::CELL, cells)
}

fn buffer(kind: Kv, codec: Quantisation, capacity: usize, dim: usize, dtype: DType) -> QuantisedBuffer {
    QuantisedBuffer::allocate(kind, codec, [BATCH, HEADS, capacity, dim], dtype, &Device::flex())
}

fn filled(kind: Kv, codec: Quantisation, values: &Tensor<4>) -> QuantisedBuffer {
    let [_, _, cells, dim] = values.dims();
    let mut buffer = buffer(kind, codec, cells, dim, values.dtype());
    buffer.replace(values.clone(), false);
    buffer
}

#[test]
fn decoded_tokens_are_half_a_step_off_at_most_and_full_ones_not_at_all() {
    let shapes = [(64, 32), (64, 64), (32, 64), (96, 32), (80, 16), (8, 5)];
    for (dim, group) in shapes {
        for (residual, cells) in [(0, 1), (0, 130), (8, 37), (8, 200), (128, 159), (128, 257)] {
            for (kind, bits, dtype) in all() {
                let codec = codec(bits, group, residual);
                if !codec.fits(dim) {
                    continue;
                }
                let values = tokens(cells, dim, dtype, 1);
                let buffer = filled(kind, codec, &values);
                let case = format!("{kind} {codec:?} {dtype:?} {cells} x {dim}");
                let used = bound_used(kind, codec, &values, &buffer.view()).unwrap();
                assert!(used <= 1.0, "{case}: {used}");
                assert_eq!(buffer.view().dtype(), dtype);
                assert_eq!(buffer.quantised(), codec.quantised_cells(cells));
            }
        }
    }
}

fn all() -> impl Iterator<Item = (Kv, usize, DType)> {
    let widths = || [4, 8].into_iter().flat_map(|bits| DTYPES.map(|dtype| (bits, dtype)));
    KINDS.into_iter().flat_map(move |kind| widths().map(move |(bits, dtype)| (kind, bits, dtype)))
}

#[test]
fn only_known_widths_and_real_groups_are_accepted() {
    for bits in [0, 1, 2, 3, 5, 16] {
        assert_eq!(Quantisation::new(bits, 32, 0), None);
    }
    assert_eq!(Quantisation::new(4, 0, 0), None);
    let codec = codec(4, 32, 128);
    assert_eq!((codec.bits(), codec.group(), codec.residual()), (4, 32, 128));
}

#[test]
fn heads_fit_that_fill_whole_words_and_groups() {
    let fitting = |bits, group| (0..130).filter(move |&dim| codec(bits, group, 0).fits(dim)).collect::<Vec<_>>();
    assert_eq!(fitting(4, 32), [8, 16, 24, 32, 64, 96, 128]);
    assert_eq!(fitting(8, 32), [4, 8, 12, 16, 20, 24, 28, 32, 64, 96, 128]);
    assert_eq!(fitting(4, 64), [8, 16, 24, 32, 40, 48, 56, 64, 128]);
    assert_eq!(fitting(8, 3), [12, 24, 36, 48, 60, 72, 84, 96, 108, 120]);
}

#[test]
fn bytes_are_codes_and_ranges_of_whole_blocks_and_the_residual() {
    // 2048 cells, 60 blocks of 32 tokens outside a residual of 128 (in fact 160, with the block that fills up).
    let (codes, residual) = (1920 * 64 / 2, 160 * 64 * 4);
    let codec = codec(4, 32, 128);
    assert_eq!(codec.bytes(Kv::Key, 2048, 64, 4), codes + 2 * 60 * 64 * 4 + residual);
    assert_eq!(codec.bytes(Kv::Value, 2048, 64, 4), codes + 2 * 1920 * 2 * 4 + residual);
    assert_eq!(codec.bytes(Kv::Key, 100, 64, 2), 100 * 64 * 2, "nothing is quantised in a buffer that small");
    for (kind, bits, dtype) in all() {
        for capacity in [0, 1, 39, 40, 100] {
            let codec = self::codec(bits, 32, 8);
            let mut buffer = buffer(kind, codec, capacity, 64, dtype);
            let bytes = BATCH * HEADS * codec.bytes(kind, capacity, 64, dtype.size());
            assert_eq!(buffer.bytes(), bytes);
            buffer.append(tokens(capacity, 64, dtype, 2));
            assert_eq!(buffer.bytes(), bytes);
            assert_eq!(buffer.view().dims(), [BATCH, HEADS, capacity, 64]);
        }
    }
}

#[test]
fn constant_and_extreme_groups_give_no_nan() {
    for (kind, bits, dtype) in all() {
        let codec = codec(bits, 8, 0);
        for constant in [0.0, -0.0, 3.5, -1e4, 1e-7] {
            let values = tensor(16, 8, dtype, |_| constant);
            assert_eq!(host(filled(kind, codec, &values).view()), host(values), "{kind} {bits} {dtype:?}");
        }
        let values = tensor(16, 8, dtype, |i| [1e4, -1e4, 0.0, 1e-7, -5.0][(i * 7 + i / 8) % 5]);
        let used = bound_used(kind, codec, &values, &filled(kind, codec, &values).view()).unwrap();
        assert!(used <= 1.0, "{kind} {bits} {dtype:?}: {used}");
    }
}

#[test]
fn a_group_of_one_is_exact() {
    for (kind, bits, dtype) in all() {
        let values = tokens(9, 8, dtype, 3);
        assert_eq!(host(filled(kind, codec(bits, 1, 0), &values).view()), host(values));
    }
}

/// Tokens that are hard on rounding: far from 0 for their spread, down to steps finer than the dtype itself.
fn narrow(cells: usize, dim: usize, dtype: DType, seed: u64) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let spread = rounding(dtype) as f32 * 1e4;
    tensor(cells, dim, dtype, |i| 100.0 + spread * 4_f32.powi((i % dim % 8) as i32 - 4) * rng.random::<f32>())
}

#[test]
fn keys_written_anew_from_what_they_decode_to_do_not_change() {
    for (_, bits, dtype) in all() {
        for values in [tokens(100, 64, dtype, 4), narrow(100, 64, dtype, 5)] {
            let mut buffer = filled(Kv::Key, codec(bits, 32, 8), &values);
            let before = host(buffer.view());
            for _round in 0..5 {
                buffer.replace(buffer.view(), true);
                assert_eq!(host(buffer.view()), before, "{bits} {dtype:?}");
            }
        }
    }
}

#[test]
fn ranges_found_again_are_the_same_in_f32_and_settle_at_once_in_f16() {
    for (kind, bits, dtype) in all() {
        for values in [tokens(1000, 64, dtype, 6), narrow(1000, 64, dtype, 7)] {
            let mut buffer = filled(kind, codec(bits, 32, 8), &values);
            let first = host(buffer.view());
            buffer.replace(buffer.view(), false);
            let second = host(buffer.view());
            if dtype == DType::F32 {
                assert_eq!(second, first, "{kind} {bits}");
            }
            for (head_a, head_b) in first.chunks(32).zip(second.chunks(32)) {
                let end = head_a.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                let place = 2.0 * rounding(dtype) as f32 * end;
                assert!(head_a.iter().zip(head_b).all(|(a, b)| (a - b).abs() <= place), "{kind} {bits} {dtype:?}");
            }
            for _round in 0..10 {
                buffer.replace(buffer.view(), false);
                assert_eq!(host(buffer.view()), second, "{kind} {bits} {dtype:?}");
            }
        }
    }
}

#[test]
fn keys_keep_their_codes_when_others_of_their_block_are_replaced_within_the_range() {
    for (_, bits, dtype) in all() {
        let (group, dim, replaced) = (32, 64, 5..9);
        let codec = codec(bits, group, 0);
        let mut buffer = filled(Kv::Key, codec, &tokens(2 * group, dim, dtype, 8));
        let before = buffer.view();
        // The mean of two tokens of the block is in the range of every channel.
        let means = (span(&before, 10..14) + span(&before, 20..24)) * 0.5;
        let after = Tensor::cat(vec![span(&before, 0..5), means.clone(), span(&before, 9..2 * group)], axis::CELL);
        buffer.replace(after.clone(), true);
        let (now, after, before) = (host(buffer.view()), host(after), host(before));
        for (i, &x) in now.iter().enumerate() {
            let cell = i / dim % (2 * group);
            if !replaced.contains(&cell) {
                assert_eq!(x, before[i], "{bits} {dtype:?} cell {cell}");
            } else {
                // 16 is the widest range of a channel.
                let step = 16.0 / f64::from((1 << bits) - 1);
                assert!(f64::from(x - after[i]).abs() <= step / 2.0 + rounding(dtype) * 40.0);
            }
        }
    }
}

#[test]
fn a_range_widens_to_the_new_keys_and_does_not_shrink_with_those_that_leave() {
    for (_, bits, dtype) in all() {
        let codec = codec(bits, 8, 0);
        let block = |x: f32| tensor(8, 8, dtype, |i| x * (i / 8 % 8) as f32 / 7.0);
        let mut buffer = filled(Kv::Key, codec, &block(2.0));
        buffer.replace(block(-4.0), true);
        // -4 to 2 now: half a step of it off, not half a step of -4 to 0.
        let half_step = 3.0 / f64::from((1 << bits) - 1);
        let worst = |buffer: &QuantisedBuffer, values| {
            let errors = host(buffer.view()).into_iter().zip(host(values)).map(|(a, b)| f64::from((a - b).abs()));
            errors.fold(0.0, f64::max)
        };
        assert!(worst(&buffer, block(-4.0)) <= half_step + 8.0 * rounding(dtype));
        buffer.replace(block(0.01), true);
        assert!(worst(&buffer, block(0.01)) > half_step / 100.0, "still the wide range");
        buffer.replace(block(0.01), false);
        assert!(worst(&buffer, block(0.01)) <= half_step / 100.0, "a range of its own");
    }
}

#[test]
#[should_panic(expected = "11 tokens do not fit 10 cells")]
fn more_tokens_than_cells_are_refused() {
    let mut buffer = buffer(Kv::Key, codec(8, 4, 0), 10, 8, DType::F32);
    buffer.append(tokens(7, 8, DType::F32, 9));
    buffer.append(tokens(4, 8, DType::F32, 9));
}

fn any_codec() -> impl Strategy<Value = Quantisation> {
    (prop_oneof![Just(4_usize), Just(8)], prop_oneof![Just(1_usize), Just(2), Just(4), Just(16), Just(40)], 0..20_usize)
        .prop_map(|(bits, group, residual)| codec(bits, group, residual))
}

fn any_case() -> impl Strategy<Value = (Kv, Quantisation, DType)> {
    let kind = prop_oneof![Just(Kv::Key), Just(Kv::Value)];
    (kind, any_codec(), prop_oneof![Just(DType::F32), Just(DType::F16)])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn whole_blocks_stand_quantised_and_the_residual_in_full(codec in any_codec(), cells in 0..300_usize) {
        let (quantised, in_full) = (codec.quantised_cells(cells), cells - codec.quantised_cells(cells));
        prop_assert_eq!(quantised % codec.group(), 0);
        prop_assert!(quantised == 0 || in_full >= codec.residual());
        prop_assert!(in_full < codec.residual() + codec.group());
        let spelled_out = match cells < codec.residual() + codec.group() {
            true => 0,
            false => (cells - codec.residual()) / codec.group() * codec.group(),
        };
        prop_assert_eq!(quantised, spelled_out);
    }

    #[test]
    fn tokens_appended_in_any_chunks_equal_all_written_at_once(
        (kind, codec, dtype) in any_case(), chunks in proptest::collection::vec(0..50_usize, 1..12), spare in 0..50_usize,
    ) {
        let total: usize = chunks.iter().sum();
        let values = tokens(total, 16, dtype, total as u64);
        let mut chunked = buffer(kind, codec, total + spare, 16, dtype);
        let mut single = buffer(kind, codec, total + spare, 16, dtype);
        let bytes = BATCH * HEADS * codec.bytes(kind, total + spare, 16, dtype.size());
        let mut at = 0;
        for chunk in chunks {
            chunked.append(span(&values, at..at + chunk));
            (at..at + chunk).for_each(|token| single.append(span(&values, token..token + 1)));
            at += chunk;
            let mut whole = buffer(kind, codec, total + spare, 16, dtype);
            whole.replace(span(&values, 0..at), true);
            for other in [&chunked, &single] {
                prop_assert_eq!(other.len(), at);
                prop_assert_eq!(other.is_empty(), at == 0);
                prop_assert_eq!(other.quantised(), codec.quantised_cells(at));
                prop_assert_eq!(other.bytes(), bytes);
                prop_assert_eq!(host(other.view()), host(whole.view()));
            }
        }
        let used = bound_used(kind, codec, &values, &chunked.view()).unwrap();
        prop_assert!(used <= 1.0, "{used}");
    }

    #[test]
    fn tokens_in_full_are_untouched_through_evictions_and_appends(
        (kind, codec, dtype) in any_case(), steps in proptest::collection::vec((0..30_usize, 0..30_usize), 1..8),
    ) {
        let capacity = 30 * steps.len();
        let mut buffer = buffer(kind, codec, capacity, 16, dtype);
        for (i, (new, dropped)) in steps.into_iter().enumerate() {
            let new = tokens(new, 16, dtype, i as u64);
            let expected = Tensor::cat(vec![buffer.view(), new.clone()], axis::CELL);
            buffer.append(new);
            let (len, dropped) = (buffer.len(), dropped.min(buffer.len()));
            let full = buffer.quantised()..len;
            prop_assert_eq!(host(span(&buffer.view(), full.clone())), host(span(&expected, full)));
            let left = span(&buffer.view(), dropped..len);
            buffer.replace(left.clone(), true);
            let full = buffer.quantised()..buffer.len();
            prop_assert_eq!(buffer.quantised(), codec.quantised_cells(len - dropped));
            prop_assert_eq!(host(span(&buffer.view(), full.clone())), host(span(&left, full)));
            prop_assert!(host(buffer.view()).into_iter().all(f32::is_finite));
        }
        prop_assert_eq!(buffer.bytes(), BATCH * HEADS * codec.bytes(kind, capacity, 16, dtype.size()));
    }
}
