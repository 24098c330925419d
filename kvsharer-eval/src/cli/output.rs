//! What goes to stdout and stderr: results, tables, progress.

use super::error::CliError;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};
use indicatif::{ProgressBar, ProgressStyle};
use kvsharer_core::write_atomically;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Writes to stdout. A reader that went away (`| head`) is no error; a full disk is.
pub(super) fn emit(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| CliError::file(std::path::Path::new("stdout"), error)),
    }
}

/// Writes a line to stderr; if even that fails there is nobody to tell.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{}", plain(line));
}

/// A line with line breaks and commands to the terminal written out: what files say is part of some.
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    for c in line.chars() {
        // Marks of direction change how a line looks, too.
        match c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}

/// Prints `value` as JSON.
pub(super) fn emit_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::failure)?;
    emit(&format!("{text}\n"))
}

/// Writes `value` as a JSON file, complete or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(CliError::failure)?;
    text.push(b'\n');
    write_atomically(path, &text).map_err(|error| CliError::file(path, error))
}

/// Writes `values` as JSON, one a line, all of them or none.
pub(super) fn write_json_lines(path: &Path, values: &[impl Serialize]) -> Result<(), CliError> {
    let mut text = Vec::new();
    for value in values {
        serde_json::to_writer(&mut text, value).map_err(CliError::failure)?;
        text.push(b'\n');
    }
    write_atomically(path, &text).map_err(|error| CliError::file(path, error))
}

/// A table with a header; columns after the first are numbers unless `text` says so.
pub(super) fn table(header: &[&str], rows: &[Vec<String>], text: bool) -> String {
    let numbers: Vec<bool> = (0..header.len()).map(|column| column > 0 && !text).collect();
    table_of(header, rows, &numbers)
}

/// A table with a header; `numbers` are the columns that hold some.
pub(super) fn table_of(header: &[&str], rows: &[Vec<String>], numbers: &[bool]) -> String {
    let mut table = Table::new();
    let style = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(style).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    let columns = table.column_iter_mut().zip(numbers).filter(|(_, is_number)| **is_number);
    columns.for_each(|(column, _)| column.set_cell_alignment(CellAlignment::Right));
    format!("{table}\n")
}

/// Bytes as people read them, in binary units.
pub(super) fn human_bytes(bytes: usize) -> String {
    indicatif::BinaryBytes(bytes as u64).to_string()
}

/// A bar over `length` steps on stderr; invisible where stderr is no terminal.
pub(super) fn bar(length: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{prefix:>12} {wide_bar} {pos}/{len} {elapsed}<{eta} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(what.to_owned());
    bar
}

/// A sign of life for work of unknown length; a plain line where stderr is no terminal.
pub(super) fn spinner(what: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        complain(what);
    }
    let spinner = ProgressBar::new_spinner();
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_no_command() {
        assert_eq!(
            plain("no model `a\nerror: b\u{1b}[2J\u{202e}é😀`"),
            "no model `a\\nerror: b\\u{1b}[2J\\u{202e}é😀`"
        );
    }
}
