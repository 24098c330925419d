//! The words of the prompts.

use super::NeedleKind;
use super::draw::Fact;

/// Plain sentences without digits, repeated as often as it takes.
pub(super) const FILLER: [&str; 8] = [
    "The path follows the river as far as the mill.",
    "In the morning the fields are wet and quiet.",
    "A cart waits by the gate, and nobody is in a hurry.",
    "The baker opens his door when the bell has rung.",
    "Some of the apples are red, the others are still green.",
    "Children run down the hill and walk up again.",
    "Towards evening the wind turns and brings the smell of hay.",
    "Then the lamps are lit, and the day is over.",
];

/// Whose numbers are hidden.
pub(super) const CITIES: [&str; 32] = [
    "Accra", "Ankara", "Athens", "Bergen", "Bogota", "Bremen", "Cairo", "Dakar", "Delhi", "Denver", "Dublin", "Geneva",
    "Hanoi", "Havana", "Kyoto", "Lagos", "Lima", "Lisbon", "London", "Madrid", "Manila", "Milan", "Nairobi", "Oslo",
    "Paris", "Prague", "Quito", "Rome", "Seoul", "Sydney", "Toronto", "Vienna",
];

/// A prompt of which only the amount of filler is open.
pub(super) struct Haystack {
    intro: String,
    /// Depth and sentence, by depth.
    needles: Vec<(f64, String)>,
    question: String,
}

impl Haystack {
    /// Hides all the facts and asks for those of `asked`.
    pub(super) fn new(kind: NeedleKind, facts: &[Fact], asked: &[usize], depth: f64) -> Self {
        let mut needles: Vec<(f64, String)> =
            facts.iter().enumerate().map(|(k, fact)| (shifted(depth, k, facts.len()), sentence(kind, fact))).collect();
        needles.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (intro, question) = match kind {
            NeedleKind::Passkey => (
                "There is important information hidden in a lot of irrelevant text. Find it and remember it; you \
                 will be asked about it at the end."
                    .into(),
                "What is the pass key? The pass key is".into(),
            ),
            NeedleKind::Needle | NeedleKind::NeedleEach => (
                "Some special magic numbers are hidden in the following text. Remember them; you will be asked about \
                 them at the end."
                    .into(),
                magic_question(&asked.iter().map(|&needle| facts[needle].city).collect::<Vec<_>>()),
            ),
        };
        Self { intro, needles, question }
    }

    /// The prompt with so many sentences of filler.
    pub(super) fn text(&self, sentences: usize) -> String {
        let mut body: Vec<&str> = Vec::with_capacity(sentences + self.needles.len());
        let mut filler = FILLER.iter().copied().cycle();
        let mut used = 0;
        for (depth, needle) in &self.needles {
            let before = (depth * sentences as f64).round() as usize;
            body.extend(filler.by_ref().take(before - used));
            body.push(needle);
            used = before;
        }
        body.extend(filler.take(sentences - used));
        format!("{}\n\n{}\n\n{}", self.intro, body.join(" "), self.question)
    }
}

/// Depth of needle `k` of `n` when the first stands at `depth`.
fn shifted(depth: f64, k: usize, n: usize) -> f64 {
    let at = depth + k as f64 / n as f64;
    // The end of the text is not its beginning, and rounding may exceed it.
    if at > 1.0 + 1e-9 { at - 1.0 } else { at.min(1.0) }
}

fn sentence(kind: NeedleKind, Fact { city, number }: &Fact) -> String {
    match kind {
        NeedleKind::Passkey => format!("The pass key is {number}. Remember it. {number} is the pass key."),
        NeedleKind::Needle | NeedleKind::NeedleEach => format!("The special magic number for {city} is {number}."),
    }
}

fn magic_question(cities: &[&str]) -> String {
    match cities {
        [] => String::new(),
        [city] => format!(
            "What is the special magic number for {city} in the text above? The special magic number for {city} is"
        ),
        [most @ .., last] => {
            let cities = format!("{} and {last}", most.join(", "));
            format!(
                "What are the special magic numbers for {cities} in the text above? The special magic numbers for \
                 {cities} are"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_are_spread_around_the_text() {
        let depths = |depth| (0..4).map(|k| shifted(depth, k, 4)).collect::<Vec<_>>();
        assert_eq!(depths(0.0), [0.0, 0.25, 0.5, 0.75]);
        assert_eq!(depths(0.5), [0.5, 0.75, 1.0, 0.25]);
        assert_eq!(depths(1.0), [1.0, 0.25, 0.5, 0.75]);
        assert_eq!(shifted(1.0, 0, 1), 1.0);
    }

    #[test]
    fn filler_keeps_its_order_around_needles() {
        let fact = |city, number: &str| Fact { city, number: number.into() };
        let facts = [fact("Oslo", "1234567"), fact("Rome", "7654321")];
        let haystack = Haystack::new(NeedleKind::Needle, &facts, &[0, 1], 0.75);
        let text = haystack.text(12);
        let body = text.split("\n\n").nth(1).unwrap();
        let mut expected: Vec<&str> = FILLER.iter().copied().cycle().take(12).collect();
        expected.insert(9, "The special magic number for Oslo is 1234567.");
        expected.insert(3, "The special magic number for Rome is 7654321.");
        assert_eq!(body, expected.join(" "));
        assert!(text.ends_with("The special magic numbers for Oslo and Rome are"));
    }

    #[test]
    fn filler_says_no_number_and_no_city() {
        for sentence in FILLER {
            assert!(!sentence.contains(|c: char| c.is_ascii_digit()));
            assert!(CITIES.iter().all(|city| !sentence.contains(city)));
        }
    }
}
