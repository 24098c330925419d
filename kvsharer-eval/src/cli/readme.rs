//! Every command of the READMEs is one that the program understands. `tests/readme_commands.rs` runs those that are
//! cheap.

use super::Cli;
use crate::cli::readme_lines::{READMES, arguments, inline_commands, shell_lines};
use clap::{CommandFactory, Parser};

/// Mentions that leave out what stands in a sentence beside them.
const MENTIONS: [&str; 1] = ["kvsharer plan --kv-budget"];

#[test]
fn every_command_of_the_readmes_parses() {
    let mut parsed = 0;
    for (readme, text) in READMES {
        let shell = shell_lines(text).into_iter().filter_map(|line| arguments(&line));
        for words in shell.chain(inline_commands(text)) {
            let line = words.join(" ");
            // This build may have no GPU.
            let words = words.into_iter().map(|word| if word == "cuda" { "cpu".into() } else { word });
            if !MENTIONS.contains(&line.as_str()) {
                Cli::try_parse_from(words).map(drop).unwrap_or_else(|error| panic!("{readme}: `{line}`: {error}"));
                parsed += 1;
            }
        }
    }
    assert!(parsed > 20, "only {parsed} commands were found");
}

#[test]
fn the_list_of_commands_names_what_there_is() {
    let (_, text) = READMES[0];
    let list = text.split("```text\n").find(|block| block.starts_with("kvsharer demo")).expect("the list");
    let list = list.split("```").next().expect("its end");
    let mut cli = Cli::command();
    cli.build();
    let mut listed = Vec::new();
    for line in list.lines() {
        if let Some(rest) = line.strip_prefix("kvsharer ") {
            // `fetch MODEL | models | policies` names several.
            let first = rest.split('|').filter_map(|part| part.split_whitespace().next());
            let names = first.filter(|word| cli.find_subcommand(word).is_some());
            let names: Vec<String> = names.map(str::to_owned).collect();
            assert!(!names.is_empty(), "no command in `{line}`");
            listed.extend(names);
        }
        let command = cli.find_subcommand(listed.last().expect("a command before its options")).expect("a command");
        let flags =
            line.split(|c: char| c.is_whitespace() || "[]|".contains(c)).filter_map(|word| word.strip_prefix("--"));
        for flag in flags {
            let known = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
            assert!(known, "{} has no --{flag}", command.get_name());
        }
    }
    let missing: Vec<&str> =
        cli.get_subcommands().map(|command| command.get_name()).filter(|name| *name != "help").collect();
    let missing: Vec<&&str> = missing.iter().filter(|name| !listed.iter().any(|listed| listed == **name)).collect();
    assert!(missing.is_empty(), "the README does not list {missing:?}");
}
