//! The command lines of the READMEs. Also part of the program's own unit tests, which parse them.
// The two that use it use a part each.
#![allow(dead_code)]

/// A README: where it lies, and its text.
pub(crate) const READMES: [(&str, &str); 5] = [
    ("README.md", include_str!("../../../README.md")),
    ("kvsharer-core/README.md", include_str!("../../../kvsharer-core/README.md")),
    ("kvsharer-compress/README.md", include_str!("../../../kvsharer-compress/README.md")),
    ("kvsharer-models/README.md", include_str!("../../../kvsharer-models/README.md")),
    ("kvsharer-eval/README.md", include_str!("../../README.md")),
];

/// Lines of ```sh blocks, continued ones joined, comments left out.
pub(crate) fn shell_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    for block in blocks {
        for line in block.replace("\\\n", " ").lines() {
            let line = line.split(" # ").next().unwrap_or(line).trim();
            if !line.is_empty() && !line.starts_with('#') {
                lines.push(line.to_owned());
            }
        }
    }
    lines
}

/// Code within sentences that starts with `kvsharer` and says more than a command's name; optional parts are taken.
pub(crate) fn inline_commands(text: &str) -> Vec<Vec<String>> {
    // Blocks have backticks of their own.
    let prose: String = text.split("```").step_by(2).collect();
    let code = prose.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " ").replace(['[', ']'], " "));
    code.map(|code| words(&code)).filter(|words| words.len() > 2 && words[0] == "kvsharer").collect()
}

/// The arguments for `kvsharer` in a line, if it runs the program, be it behind a pipe or through cargo.
pub(crate) fn arguments(line: &str) -> Option<Vec<String>> {
    let last = line.rsplit(" | ").next().unwrap_or(line);
    let words = words(last);
    match words.first().map(String::as_str) {
        Some("kvsharer") => Some(words),
        Some("cargo") if words.get(1).is_some_and(|word| word == "run") => {
            let own = words.iter().position(|word| word == "--")?;
            Some(std::iter::once("kvsharer".to_owned()).chain(words[own + 1..].iter().cloned()).collect())
        }
        _ => None,
    }
}

/// Words as a shell splits them, with quotes but without escapes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => (quote, word) = (Some(c), Some(word.unwrap_or_default())),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
