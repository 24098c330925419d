//! The score.

/// Share of the answers that occur in the generated text as whole numbers: not as a part of longer digits.
///
/// Only digits are looked at, so `1,234` and `1 234` are no 1234. Without answers the share is 0.
pub fn found(answers: &[String], generated: &str) -> f64 {
    if answers.is_empty() {
        return 0.0;
    }
    let said = |answer: &&String| {
        generated.split(|c: char| !c.is_ascii_digit()).any(|number| !number.is_empty() && number == answer.as_str())
    };
    answers.iter().filter(said).count() as f64 / answers.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_whole_numbers() {
        let answers = ["12345".to_owned(), "67890".to_owned()];
        assert_eq!(found(&answers, " 12345 and 67890."), 1.0);
        assert_eq!(found(&answers, "67890"), 0.5);
        assert_eq!(found(&answers, "key12345, 678901, 167890"), 0.5);
        assert_eq!(found(&answers, "1234567890"), 0.0);
        assert_eq!(found(&answers, "12,345 67 890"), 0.0);
        assert_eq!(found(&answers, ""), 0.0);
        assert_eq!(found(&answers, "数12345数"), 0.5);
    }

    #[test]
    fn no_answers_are_not_found() {
        assert_eq!(found(&[], "12345"), 0.0);
        assert_eq!(found(&[String::new()], "none"), 0.0);
    }
}
