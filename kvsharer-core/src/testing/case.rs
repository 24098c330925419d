//! What a conformance case is, and what comes of it.

use burn::tensor::{DType, Device};
use serde::Serialize;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// What is tested.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The device.
    pub device: Device,
    /// Dtype of keys, values and attention; of whole models, also of weights and activations.
    pub dtype: DType,
    /// Where decisions (which tokens stay, which layers share) are made a second time, in f32, to compare them.
    pub against: Device,
}

impl Subject {
    /// A device, against itself in f32.
    pub fn new(device: Device, dtype: DType) -> Self {
        Self { against: device.clone(), device, dtype }
    }

    /// The same against another device.
    pub fn against(self, against: Device) -> Self {
        Self { against, ..self }
    }

    /// The other device, in f32.
    pub fn other(&self) -> Self {
        Self::new(self.against.clone(), DType::F32)
    }
}

/// The largest error that passes, by dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In f32.
    pub f32: f64,
    /// In f16.
    pub f16: f64,
    /// In bf16.
    pub bf16: f64,
}

impl Tolerance {
    /// One bound a dtype.
    pub const fn new(f32: f64, f16: f64, bf16: f64) -> Self {
        Self { f32, f16, bf16 }
    }

    /// The same in every dtype.
    pub const fn always(bound: f64) -> Self {
        Self::new(bound, bound, bound)
    }

    /// The bound of a dtype; of one that is not listed, f32's.
    pub fn of(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F16 => self.f16,
            DType::BF16 => self.bf16,
            _ => self.f32,
        }
    }
}

/// A measured error.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The largest one met; what is no number fails.
    pub worst: f64,
    /// Where it was met, or what it is, in a few words.
    pub note: String,
}

impl Measured {
    /// An error without a remark.
    pub fn new(worst: f64) -> Self {
        Self { worst, note: String::new() }
    }

    /// The worst of several; no error at all if there are none.
    pub fn worst_of(all: impl IntoIterator<Item = Measured>) -> Self {
        let worse = |a: &Measured, b: &Measured| b.worst.is_nan() || b.worst > a.worst;
        all.into_iter().reduce(|a, b| if !a.worst.is_nan() && worse(&a, &b) { b } else { a }).unwrap_or(Self::new(0.0))
    }
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq)]
pub enum Unmeasured {
    /// The case does not apply, for this reason.
    Skipped(String),
    /// It went wrong.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Unmeasured {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The error is within the tolerance.
    Passed,
    /// The case does not apply.
    Skipped,
    /// The error is too large, or the case went wrong.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Passed => "passed",
            Verdict::Skipped => "skipped",
            Verdict::Failed => "FAILED",
        })
    }
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The case.
    pub case: String,
    /// The largest error; `None` if nothing was measured.
    pub worst_error: Option<f64>,
    /// The largest error that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub verdict: Verdict,
    /// Where the error was met, why the case was skipped, or what went wrong.
    pub note: String,
    /// How long it took, compilation of kernels included.
    pub seconds: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, verdict, note, tolerance, .. } = self;
        write!(f, "{case}: {verdict}")?;
        if let Some(worst) = self.worst_error {
            write!(f, ", worst error {worst:.2e} of {tolerance:.0e}")?;
        }
        if note.is_empty() { Ok(()) } else { write!(f, " ({note})") }
    }
}

type Run = dyn Fn(&Subject) -> Result<Measured, Unmeasured> + Send + Sync;

/// Something with a known result, to be run on any device.
pub struct Case {
    name: String,
    tolerance: Tolerance,
    run: Box<Run>,
}

impl Case {
    /// A case that measures by `run`.
    pub fn new(
        name: impl Into<String>,
        tolerance: Tolerance,
        run: impl Fn(&Subject) -> Result<Measured, Unmeasured> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), tolerance, run: Box::new(run) }
    }

    /// What it is called: its subject, a colon, and what must hold.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it. A panic, of this code or in the backend, is a failure with the panic's message.
    pub fn run(&self, subject: &Subject) -> Outcome {
        let start = Instant::now();
        let measured = catch_unwind(AssertUnwindSafe(|| match subject.device.supports_dtype(subject.dtype) {
            _ if !subject.dtype.is_float() => Err(Unmeasured::Skipped(format!("{:?} is no float", subject.dtype))),
            true => (self.run)(subject),
            false => Err(Unmeasured::Skipped(format!("the device does not compute in {:?}", subject.dtype))),
        }));
        let tolerance = self.tolerance.of(subject.dtype);
        let (worst_error, verdict, note) = match measured {
            Ok(Ok(Measured { worst, note })) if worst <= tolerance => (Some(worst), Verdict::Passed, note),
            Ok(Ok(Measured { worst, note })) => (Some(worst), Verdict::Failed, note),
            Ok(Err(Unmeasured::Skipped(why))) => (None, Verdict::Skipped, why),
            Ok(Err(Unmeasured::Failed(why))) => (None, Verdict::Failed, why),
            Err(panic) => (None, Verdict::Failed, format!("panicked: {}", message(&*panic))),
        };
        let seconds = start.elapsed().as_secs_f64();
        Outcome { case: self.name.clone(), worst_error, tolerance, verdict, note, seconds }
    }
}

/// What fails of `cases`, one line each: nothing, if the subject conforms.
pub fn failures(cases: &[Case], subject: &Subject) -> Vec<String> {
    let outcomes = cases.iter().map(|case| case.run(subject));
    outcomes.filter(|outcome| outcome.verdict == Verdict::Failed).map(|outcome| outcome.to_string()).collect()
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(result: impl Fn() -> Result<Measured, Unmeasured> + Send + Sync + 'static) -> Outcome {
        let subject = Subject::new(Device::flex(), DType::F32);
        Case::new("case", Tolerance::new(1.0, 2.0, 3.0), move |_| result()).run(&subject)
    }

    #[test]
    fn only_an_error_within_the_tolerance_passes() {
        assert_eq!(run(|| Ok(Measured::new(1.0))).verdict, Verdict::Passed);
        assert_eq!(run(|| Ok(Measured::new(1.1))).verdict, Verdict::Failed);
        assert_eq!(run(|| Ok(Measured::new(f64::NAN))).verdict, Verdict::Failed);
    }

    #[test]
    fn panics_and_errors_are_failures_with_their_message() {
        let outcome = run(|| panic!("no driver"));
        assert_eq!((outcome.verdict, outcome.note.as_str()), (Verdict::Failed, "panicked: no driver"));
        let outcome = run(|| Err(crate::CacheError::Full { capacity: 1, needed: 2 }.into()));
        assert_eq!(outcome.verdict, Verdict::Failed);
        assert!(outcome.note.contains('1') && outcome.worst_error.is_none());
    }

    #[test]
    fn the_worst_is_the_largest_or_no_number() {
        let worst = |all: &[f64]| Measured::worst_of(all.iter().map(|&worst| Measured::new(worst))).worst;
        assert_eq!(worst(&[1.0, 3.0, 2.0]), 3.0);
        assert!(worst(&[1.0, f64::NAN, 2.0]).is_nan());
        assert_eq!(worst(&[]), 0.0);
    }
}
