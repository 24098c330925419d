//! What Python's `str` does and Rust's does not: both harnesses state their rules in it.

/// White space as Python sees it: Unicode's, and the four separators of ASCII.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `text.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.split()`.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// `len(re.split(r"\s+", text))`: white space at either end splits off an empty word that counts.
pub(super) fn count_split(text: &str) -> usize {
    let mut runs = 0;
    let mut in_run = false;
    for character in text.chars() {
        runs += usize::from(is_space(character) && !in_run);
        in_run = is_space(character);
    }
    runs + 1
}

/// `text[index:]`, counted in characters.
pub(super) fn from_char(text: &str, index: usize) -> &str {
    text.char_indices().nth(index).map_or("", |(at, _)| &text[at..])
}

/// `text.capitalize()`: the first character up, the rest down. Python gives the first one its title case, which is taken
/// for its upper case here; they differ for Georgian letters and a few digraphs.
pub(super) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    let mut upper = first.to_uppercase();
    let mut capital: String = upper.next().into_iter().collect();
    capital.extend(upper.flat_map(char::to_lowercase));
    // All is lowered at once: a final sigma depends on what stands before it.
    capital.extend(text.to_lowercase().chars().skip(first.to_lowercase().count()));
    capital
}

/// The first character through `change`, the rest as it is.
pub(super) fn first_char<I: Iterator<Item = char>>(text: &str, change: impl Fn(char) -> I) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(change);
    first.chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_what_python_takes_for_it() {
        assert_eq!(strip("\x1c\u{3000} a b\u{85}\n"), "a b");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
        assert_eq!(words(" a\tb\u{a0}c ").collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn empty_words_at_the_ends_count() {
        assert_eq!(count_split(""), 1);
        assert_eq!(count_split("a  b"), 2);
        assert_eq!(count_split(" a b \n"), 4);
    }

    #[test]
    fn capitalize_lowers_the_rest() {
        assert_eq!(capitalize("THE Boy"), "The boy");
        assert_eq!(capitalize("ΣΊΣΥΦΟΣ"), "Σίσυφος");
        assert_eq!(capitalize("ßA"), "Ssa");
        assert_eq!(capitalize("ﬁx"), "Fix");
        assert_eq!(capitalize(""), "");
    }

    #[test]
    fn slices_count_characters() {
        assert_eq!(from_char("Émile", 1), "mile");
        assert_eq!(from_char("Émile", 9), "");
        assert_eq!(first_char("Élan Vital", char::to_lowercase), "élan Vital");
        assert_eq!(first_char("", char::to_lowercase), "");
    }
}
