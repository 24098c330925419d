//! How many cells a group needs, for any prompt and length.

use std::fmt;
use std::sync::Arc;

/// Lengths a cache is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of the prompt; `None` if it is not known yet: then the first forward pass is the prompt, and bytes are
    /// the most that any prompt could need.
    pub prompt: Option<usize>,
    /// Longest sequence, prompt and generated tokens together.
    pub tokens: usize,
}

impl From<usize> for Lengths {
    fn from(tokens: usize) -> Self {
        Self { prompt: None, tokens }
    }
}

impl Lengths {
    /// A prompt and how many tokens there will be in all.
    pub fn new(prompt: usize, tokens: usize) -> Self {
        Self { prompt: Some(prompt), tokens }
    }
}

/// Length of a prompt beyond which `kept` is taken to be monotonic.
const LONG: usize = 1 << 14;

/// The cells that an evicting policy needs of a group.
#[derive(Clone)]
pub struct Budget {
    kept: Arc<dyn Fn(usize) -> usize + Send + Sync>,
    slack: usize,
    growing: bool,
    waiting: bool,
}

impl Budget {
    /// A fixed number of cells, the newest token's included.
    pub fn tokens(cells: usize) -> Self {
        Self::of_prompt(move |_| cells)
    }

    /// As many cells as `kept` says for the length of the prompt. For prompts of more than 16,384 tokens it must not
    /// fall and rise again: the most that any prompt could need is sought below that, and at the end.
    pub fn of_prompt(kept: impl Fn(usize) -> usize + Send + Sync + 'static) -> Self {
        Self { kept: Arc::new(kept), slack: 0, growing: false, waiting: false }
    }

    /// Cells on top: for tokens that arrive before the policy evicts again.
    pub fn with_slack(self, slack: usize) -> Self {
        Self { slack, ..self }
    }

    /// Only the prompt is reduced: every token after it stays.
    pub fn growing(self) -> Self {
        Self { growing: true, ..self }
    }

    /// Nothing is evicted before the prompt is complete, so that the chunks it came in make no difference; they are
    /// held in full until then.
    pub fn after_prompt(self) -> Self {
        Self { waiting: true, ..self }
    }

    /// Tokens kept of a prompt, before slack and growth.
    pub fn kept(&self, prompt: usize) -> usize {
        (self.kept)(prompt)
    }

    /// Whether tokens after the prompt are never evicted.
    pub fn grows(&self) -> bool {
        self.growing
    }

    /// Whether nothing is evicted before the prompt is complete.
    pub fn waits(&self) -> bool {
        self.waiting
    }

    /// Cells needed for sequences of these lengths, never more than one a token.
    pub fn cells(&self, lengths: Lengths) -> usize {
        self.wanted(lengths).min(lengths.tokens)
    }

    /// Whether no more cells are needed however long the text gets.
    pub fn is_bounded(&self, lengths: Lengths) -> bool {
        !self.growing && self.wanted(lengths) <= lengths.tokens
    }

    fn wanted(&self, Lengths { prompt, tokens }: Lengths) -> usize {
        let of = |prompt: usize| match self.growing {
            true => self.kept(prompt).min(prompt) + tokens.saturating_sub(prompt),
            false => self.kept(prompt).saturating_add(self.slack),
        };
        match prompt {
            Some(prompt) => of(prompt.min(tokens)),
            None if self.growing => tokens,
            None => (1..=tokens.min(LONG)).chain([tokens]).map(of).max().unwrap_or(0),
        }
    }
}

impl From<usize> for Budget {
    fn from(cells: usize) -> Self {
        Self::tokens(cells)
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, slack, growing, waiting } = self;
        write!(f, "Budget {{ kept(1024): {}, slack: {slack}, growing: {growing}, waiting: {waiting} }}", kept(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_prompt_slack_and_growth_and_never_exceed_the_tokens() {
        let half = Budget::of_prompt(|prompt| prompt / 2);
        assert_eq!(half.cells(Lengths::new(100, 150)), 50);
        assert_eq!(half.clone().with_slack(8).cells(Lengths::new(100, 150)), 58);
        assert_eq!(half.clone().growing().cells(Lengths::new(100, 150)), 100);
        // An unknown prompt: the worst of all.
        assert_eq!(half.cells(150.into()), 75);
        assert_eq!(half.growing().cells(150.into()), 150);
        // A budget above the prompt leaves room for generated tokens; one above the tokens does not.
        assert_eq!(Budget::tokens(120).cells(Lengths::new(100, 150)), 120);
        assert_eq!(Budget::tokens(500).cells(Lengths::new(100, 150)), 150);
        assert_eq!(Budget::tokens(500).growing().cells(Lengths::new(100, 150)), 150);
    }

    #[test]
    fn an_unknown_prompt_takes_the_worst_case_even_if_longer_prompts_keep_less() {
        let falling = Budget::of_prompt(|prompt| 40 - prompt.min(30));
        assert_eq!(falling.cells(60.into()), 39);
    }
}
