//! Undoing tokenised spacing, as lm-eval does.

use super::python::strip;

/// lm-eval's `general_detokenize`: contractions, brackets, quotes and `' . ,` close up.
pub(super) fn general(text: &str) -> String {
    const CLOSED: &[(&str, &str)] = &[(" n't", "n't"), (" )", ")"), ("( ", "("), ("\" ", "\""), (" \"", "\"")];
    let text = replaced(text.into(), CLOSED);
    // One pass for the three marks, as lm-eval has one expression: of two spaces one stays.
    let mut closed = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\'' | '.' | ',') && closed.ends_with(' ') {
            closed.pop();
        }
        closed.push(character);
    }
    closed
}

/// lm-eval's `wikitext_detokenizer`, with its quirks.
pub(super) fn wikitext(page: &str) -> String {
    const MARKS: &[(&str, &str)] = &[
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ];
    const REST: &[(&str, &str)] = &[
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" ° ", "°"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ];
    let page = slashed_digit(&page.replace("s '", "s'"));
    let page = replaced(page, MARKS);
    let pairs = [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')];
    let page = pairs.iter().fold(page, |page, &(open, close)| inside_stripped(&page, open, close));
    replaced(page, REST)
}

fn replaced(text: String, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

/// lm-eval means to close up `' 90s`, but its slashes are part of the expression and its class is written out.
fn slashed_digit(text: &str) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/' ") {
        let (before, from) = rest.split_at(at);
        done.push_str(before);
        match from.as_bytes() {
            [_, _, _, b'0'..=b'9', b'/', ..] => {
                done.push_str("/'[0-9]/");
                rest = &from[5..];
            }
            _ => {
                done.push('/');
                rest = &from[1..];
            }
        }
    }
    done + rest
}

/// Strips what stands between `open` and the next `close`, from left to right.
fn inside_stripped(text: &str, open: char, close: char) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once(open) {
        let Some((inside, after)) = from.split_once(close) else {
            break;
        };
        done.push_str(before);
        done.push(open);
        done.push_str(strip(inside));
        done.push(close);
        rest = after;
    }
    done + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_closes_up() {
        assert_eq!(general("she did n't ( at all ) , \" so \" ."), "she didn't (at all),\"so\".");
        assert_eq!(general("a  ."), "a .");
        assert_eq!(general("a ' ."), "a'.");
    }

    #[test]
    fn brackets_are_stripped_up_to_the_first_that_closes() {
        assert_eq!(inside_stripped("a ( b ( c ) d )", '(', ')'), "a (b ( c) d )");
        assert_eq!(inside_stripped("\" a \" b \" c", '"', '"'), "\"a\" b \" c");
        assert_eq!(inside_stripped("(  )( ", '(', ')'), "()( ");
    }

    #[test]
    fn the_literal_expression_is_kept() {
        assert_eq!(slashed_digit("a /' 9/ b /' x/' 1/"), "a /'[0-9]/ b /' x/'[0-9]/");
    }

    #[test]
    fn titles_numbers_and_marks_close_up() {
        assert_eq!(wikitext(" = = A @-@ b = = \n 1 @,@ 200 , the miller 's \n"), " == A-b ==\n1,200, the miller's\n");
    }
}
