//! What methods share that keep a given number of tokens, whatever scores them: TOVA, key norms, chance.

use crate::amounts::Amounts;
use crate::options::{self, check_room};
use crate::scored::{Decode, Options};
use crate::spec::{Spec, SpecError};

/// A budget and the common options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Budgeted {
    pub(crate) budget: Amounts,
    pub(crate) options: Options,
}

impl Budgeted {
    pub(crate) fn new(budget: impl Into<Amounts>) -> Self {
        Self { budget: budget.into(), options: Options::default() }
    }

    /// Takes `budget` and the common options out of a SPEC.
    pub(crate) fn take(spec: &mut Spec<'_>) -> Result<Self, SpecError> {
        let budget = spec.amounts("budget", "512")?;
        let options = options::take(spec, &[("each", Decode::Each), ("grow", Decode::Grow)])?;
        Ok(Self { budget, options })
    }

    /// What differs from the defaults, as it stands at the end of a SPEC.
    pub(crate) fn print_options(&self) -> String {
        let decode = if self.options.decode == Decode::Grow { ",decode=grow" } else { "" };
        format!("{decode}{}", options::print(self.options))
    }

    pub(crate) fn kept(&self, layer: usize, layers: usize, prompt: usize) -> usize {
        self.budget.of(layer, layers, prompt)
    }

    /// Refuses budgets without room beside the protected and `recent` tokens.
    pub(crate) fn check(&self, layers: usize, recent: usize) -> Result<(), String> {
        self.budget.check("budget", layers)?;
        check_room(self.budget.least(), self.options.protect, recent)
    }
}
