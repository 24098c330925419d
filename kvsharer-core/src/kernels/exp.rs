//! The exponential function, as vector units take it.

/// `e^x` within two units in the last place; 0 below -87.3, infinity above 88.3. Compiled into a loop that runs under
/// `pulp::Arch::dispatch` it works on whole vectors, where the one of the C library takes one number at a time.
///
/// `e^x = 2^n e^r` with `r` within half of `ln 2`; the polynomial for `e^r` is that of Cephes' `expf` (Moshier).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Added and taken away again, it rounds to a whole number, which then stands in its low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x.clamp(-87.3, 88.7) * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let poly =
        ((((1.987_569_2e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    let result = power * (poly * r * r + r + 1.0);
    if x < -87.3 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_exact_to_two_units_in_the_last_place() {
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let far = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(far <= 2.0 * f64::from(f32::EPSILON), "{x}: {far}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
