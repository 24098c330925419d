//! `kvsharer report`.

use super::Global;
use super::context::check_output;
use super::error::CliError;
use super::output::{complain, emit, emit_json};
use clap::Args;
use kvsharer_core::write_atomically;
use kvsharer_eval::report::{ReportError, Section, Table, cells, csv, html, markdown, read, sections};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Options of `report`.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// Results of `run`, and what `eval`, `bench`, `plan` and `conformance` print with --json, strategy files of `search`,
    /// and folders of them
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where to write a page with tables and plots, for a browser; it needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where to write the tables as Markdown, - for stdout
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Where to write all numbers as CSV, - for stdout
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl From<ReportError> for CliError {
    fn from(error: ReportError) -> Self {
        Self::failure(error)
    }
}

pub(super) fn run(args: &ReportArgs, global: &Global) -> Result<(), CliError> {
    let is_stdout = |path: &&PathBuf| path.as_os_str() == "-";
    let outputs = [&args.html, &args.markdown, &args.csv];
    let files: Vec<&PathBuf> = outputs.into_iter().flatten().filter(|path| !is_stdout(path)).collect();
    let printed = outputs.iter().copied().flatten().filter(is_stdout).count() + usize::from(global.json);
    if printed > 1 {
        return Err(CliError::usage("only one of --html -, --markdown -, --csv - and --json can go to stdout"));
    }
    for (index, path) in files.iter().enumerate() {
        check_output(path)?;
        if files[..index].contains(path) || args.results.contains(path) {
            return Err(CliError::usage(format!("{} is given twice: give each output its own file", path.display())));
        }
    }
    let results = read(&args.results)?;
    for problem in &results.problems {
        complain(&format!("warning: left out {}: {}", problem.place, problem.what));
    }
    let cells = cells(&results.rows);
    let sections = sections(&results, &cells)?;
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> Result<String, ReportError>| match path {
        None => Ok(()),
        Some(path) if path == Path::new("-") => emit(&text()?),
        Some(path) => write_atomically(path, text()?.as_bytes()).map_err(|error| CliError::file(path, error)),
    };
    write(&args.html, &|| html(&results, &sections))?;
    write(&args.markdown, &|| Ok(markdown(&sections, &results.problems)))?;
    write(&args.csv, &|| csv(&cells))?;
    if global.json {
        return emit_json(&json!({ "cells": cells, "conformance": results.conformance, "left_out": results.problems,
            "files": results.files, "written": files }));
    }
    match (outputs.iter().all(|output| output.is_none()), printed) {
        (true, _) => emit(&sections.iter().map(text).collect::<Vec<_>>().join("\n")),
        (false, 0) => emit(&files.iter().map(|path| format!("written to {}\n", path.display())).collect::<String>()),
        (false, _) => Ok(()),
    }
}

/// A section for a terminal.
fn text(section: &Section) -> String {
    let width = comfy_table::Table::new().width().map(usize::from);
    let table = if section.table.lines.is_empty() { String::new() } else { draw(&section.table, width) };
    format!("{}\n{}\n{table}", printable(&section.title), printable(&section.about.join("\n")))
}

/// A table at most as wide as the terminal, if there is one; where that is too narrow for columns, one line a field.
fn draw(table: &Table, width: Option<usize>) -> String {
    /// Columns that a terminal needs for each of a table's.
    const NARROWEST: usize = 9;
    if width.is_none_or(|width| width >= NARROWEST * table.columns.len()) {
        let header: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let rows: Vec<Vec<String>> =
            table.lines.iter().map(|line| line.fields.iter().map(|field| printable(&field.text)).collect()).collect();
        let numbers: Vec<bool> = table.columns.iter().map(|column| column.number).collect();
        return super::output::table_of(&header, &rows, &numbers);
    }
    let mut text = String::new();
    for line in &table.lines {
        for (index, (column, field)) in table.columns.iter().zip(&line.fields).enumerate() {
            if !field.text.is_empty() {
                let dash = if index == 0 { "-" } else { " " };
                text += &format!("{dash} {}: {}\n", column.name, printable(&field.text));
            }
        }
    }
    text
}

/// Text of files without what would steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvsharer_eval::report::{Column, Field, Line};

    #[test]
    fn narrow_terminals_get_a_line_a_field() {
        let names = ["strategy", "value", "notes"];
        let columns = names.map(|name| Column { name: name.into(), number: false }).into();
        let fields = ["a\u{1b}[31m", "1.5", ""].map(|text| Field { text: text.into(), ..Field::default() }).into();
        let table = Table { columns, lines: vec![Line { tags: None, fields }] };
        assert_eq!(draw(&table, Some(20)), "- strategy: a\u{fffd}[31m\n  value: 1.5\n");
        for wide in [Some(80), None] {
            assert_eq!(draw(&table, wide).lines().count(), 3);
        }
    }
}
