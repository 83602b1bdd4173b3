//! Output to stdout: tables for people, JSON for programs.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use podlock::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;

/// How many rows a table shows by default: what a person may read. JSON shows all.
pub(crate) const TABLE_LIMIT: i64 = 100;
/// How many rows are fetched at a time. It bounds the memory of a long list. Smaller pages need more round trips.
pub(crate) const PAGE: i64 = 1000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns, for people
    #[default]
    Table,
    /// One JSON value
    Json,
    /// One JSON object a line
    Jsonl,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// How to print
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: Format,
}

impl OutputArgs {
    /// The format for a verb whose output has no end, and therefore cannot be one JSON array.
    pub(crate) fn endless(self, verb: &str) -> Result<Format, Failure> {
        match self.format {
            Format::Json => {
                Err(Failure::Usage(format!("`{verb}` has no end, so it cannot print one array: use -o jsonl")))
            }
            format => Ok(format),
        }
    }
}

/// Something that is a row of a table.
pub(crate) trait Tabular {
    /// The columns' names.
    const COLUMNS: &'static [&'static str];
    /// The columns that are numbers.
    const NUMBERS: &'static [&'static str];

    /// The cells, as many as there are columns.
    fn cells(&self) -> Vec<String>;
}

/// A list that is printed row by row. A table is printed at the end, because only then its widths are known.
pub(crate) struct List {
    out: BufWriter<Stdout>,
    format: Format,
    table: Table,
    rows: usize,
}

impl List {
    pub(crate) fn new(format: Format) -> Self {
        Self { out: BufWriter::new(io::stdout()), format, table: borderless(), rows: 0 }
    }

    pub(crate) fn push<T: Serialize + Tabular>(&mut self, row: &T) -> io::Result<()> {
        match self.format {
            Format::Table => {
                if self.rows == 0 {
                    head::<T>(&mut self.table);
                }
                self.table.add_row(cells(row));
            }
            Format::Json => {
                self.out.write_all(if self.rows == 0 { b"[\n" } else { b",\n" })?;
                self.out.write_all(json_text(row)?.as_bytes())?;
            }
            Format::Jsonl => {
                self.out.write_all(json_text(row)?.as_bytes())?;
                self.out.write_all(b"\n")?;
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Ends the list. A table without rows writes `nothing` to stderr.
    pub(crate) fn finish(mut self, nothing: &str) -> io::Result<()> {
        match self.format {
            Format::Table if self.rows == 0 => crate::failure::note(nothing),
            Format::Table => write_table(&mut self.out, &self.table)?,
            Format::Json => self.out.write_all(if self.rows == 0 { b"[]\n" } else { b"\n]\n" })?,
            Format::Jsonl => {}
        }
        self.out.flush()
    }

    /// How many rows the list has so far.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }
}

/// Prints complete rows as a table.
pub(crate) fn table_of<T: Tabular>(out: &mut impl Write, rows: &[T]) -> io::Result<()> {
    let mut table = borderless();
    head::<T>(&mut table);
    for row in rows {
        table.add_row(cells(row));
    }
    write_table(out, &table)
}

/// Prints one object: `json` over several lines, `jsonl` on one line, a table by `table`.
pub(crate) fn object<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&mut BufWriter<Stdout>, &T) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout());
    match format {
        Format::Table => table(&mut out, value)?,
        Format::Json => {
            out.write_all(json_text_pretty(value)?.as_bytes())?;
            out.write_all(b"\n")?;
        }
        Format::Jsonl => {
            out.write_all(json_text(value)?.as_bytes())?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

/// Prints one line and flushes it, for output that is followed.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints one JSON object on one line and flushes it.
pub(crate) fn json_line<T: Serialize>(value: &T) -> io::Result<()> {
    line(&json_text(value)?)
}

/// Prints names and values, one pair per line.
pub(crate) fn facts(out: &mut impl Write, facts: &[(&str, String)]) -> io::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        writeln!(out, "{name:width$}  {}", printable(value))?;
    }
    Ok(())
}

/// Whether stdout is a terminal, so that colours and redrawing are welcome.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether colours are welcome on an output that is or is not a `terminal`, by <https://no-color.org>.
pub(crate) fn colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A time to the second, for lists.
pub(crate) fn seconds(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// A time to the millisecond, for comparisons.
pub(crate) fn millis(at: Timestamp) -> String {
    format!("{at:.3}")
}

pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// An object of plain values as `a=b c=d`, anything else as JSON.
pub(crate) fn brief(value: &Value) -> String {
    let Value::Object(fields) = value else { return value.to_string() };
    let words = fields.iter().map(|(name, value)| match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The first `most` characters of a text, on one line.
pub(crate) fn brief_text(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Prepares a foreign text, such as one from the database, for a terminal. Escapes characters that a terminal would
/// obey or not show. Otherwise a run's key could redraw an operator's screen, or look like another key.
pub(crate) fn printable(text: &str) -> String {
    printable_but(None, text)
}

/// [`printable`] for a text of several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    printable_but(Some('\n'), text)
}

/// [`printable`], but leaves the character `left` unchanged.
pub(crate) fn printable_but(left: Option<char>, text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if Some(c) != left && is_deceptive(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// One line of JSON without characters that [`printable`] would escape. Its value is the same.
pub(crate) fn json_text<T: Serialize>(value: &T) -> io::Result<String> {
    Ok(escape_json(&serde_json::to_string(value)?))
}

/// [`json_text`] over several lines.
pub(crate) fn json_text_pretty<T: Serialize>(value: &T) -> io::Result<String> {
    Ok(escape_json(&serde_json::to_string_pretty(value)?))
}

/// Escapes deceptive characters in JSON. Outside of strings, JSON has none of them except line breaks, which stay.
pub(crate) fn escape_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_deceptive(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a character is a control (C0, C1), ends a line, or is a Unicode format character (category Cf): marks that
/// change the direction of writing, and characters without width.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

fn borderless() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn head<T: Tabular>(table: &mut Table) {
    table.set_header(T::COLUMNS.iter().map(|name| Cell::new(name.to_uppercase())));
    for (i, name) in T::COLUMNS.iter().enumerate() {
        if let Some(column) = table.column_mut(i) {
            column.set_padding((0, 2));
            if T::NUMBERS.contains(name) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
}

fn cells<T: Tabular>(row: &T) -> Vec<String> {
    row.cells().iter().map(|cell| printable(cell)).collect()
}

/// Prints the table without the blanks that pad the last column.
fn write_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(printable("名前 'ok'"), "名前 'ok'");
    }

    /// The CLI escapes U+202E and its kin.
    #[test]
    fn what_turns_or_hides_a_text_does_not_reach_a_terminal() {
        let deceptive = [
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ];
        for c in deceptive {
            assert_eq!(printable(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
            for json in [json_text(&json!({ c.to_string(): [c] })), json_text_pretty(&json!({ c.to_string(): [c] }))] {
                let json = json.unwrap();
                assert!(!json.contains(c) && !json.contains("\\\\"), "{json}");
                assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), json!({ c.to_string(): [c] }));
            }
        }
        assert_eq!(printable_lines("a\u{202e}\nb\r"), "a\\u{202e}\nb\\r");
        let plain = "Ελλ עברית 名前 é 😀 \u{a0}";
        assert_eq!(
            (printable(plain), json_text(&plain).unwrap()),
            (plain.to_owned(), format!("{plain:?}").replace("\\u{a0}", "\u{a0}"))
        );
    }

    #[test]
    fn details_are_brief() {
        assert_eq!(brief(&json!({"n": 2, "reason": "lost", "why": "a b"})), r#"n=2 reason=lost why="a b""#);
        assert_eq!(brief(&json!([1])), "[1]");
    }
}
