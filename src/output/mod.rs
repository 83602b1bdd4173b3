//! The output of a run, as it is stored: a value or a text, never both.
//!
//! This module is pure: bytes go in, and the columns of the table come out. Nothing is cut and no digit is lost. Output
//! that cannot be kept as a value is kept as the original text, together with the reason.

mod digits;
mod json;
#[cfg(test)]
mod tests;
mod yaml;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// How deep arrays and objects may be nested: what serde_json reads. A deeper value could be stored, but not read
/// again.
const DEPTH: usize = 127;

/// The format of a program's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputFormat {
    /// Any bytes. They are kept as they are.
    #[default]
    Text,
    /// One JSON value.
    Json,
    /// One YAML document, by the core schema of YAML 1.2.
    Yaml,
    /// One JSON value a line. Blank lines are ignored. The result is an array of the values.
    Jsonl,
}

impl OutputFormat {
    /// The format's name: `text`, `json`, `yaml` or `jsonl`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Jsonl => "jsonl",
        }
    }
}

impl fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OutputFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Text, Self::Json, Self::Yaml, Self::Jsonl];
        all.into_iter().find(|format| format.as_str() == name).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format!("there is no output format {name:?}"))
                .help("use text, json, yaml or jsonl")
        })
    }
}

/// The output of a run, for [`Run::finish`](crate::Run::finish) or [`Outcome::Output`](crate::Outcome::Output).
///
/// It has a result or a standard output, never both. It may also have standard error and an exit code. These are only
/// data: a run is `failed` only by [`Output::fail`] or [`Output::fail_unless_exit_0`].
///
/// ```
/// use podlock::{Output, OutputFormat};
/// use serde_json::json;
///
/// let output = Output::parse(OutputFormat::Json, 0, r#"{"pages": 3}"#, "warming up");
/// assert_eq!((output.result(), output.stdout()), (Some(&json!({"pages": 3})), &b""[..]));
/// let output = Output::parse(OutputFormat::Json, 0, "3 pages", "");
/// assert_eq!((output.result(), output.stdout()), (None, &b"3 pages"[..]));
/// assert!(output.parse_error().is_some());
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Output {
    result: Option<Value>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit_code: Option<i32>,
    parse_error: Option<String>,
    error: Option<String>,
}

impl Output {
    /// Makes an output that has only a result.
    pub fn value(result: impl Into<Value>) -> Self {
        Self { result: Some(result.into()), ..Self::default() }
    }

    /// Makes an output from a text, which is kept as it is.
    pub fn text(stdout: impl Into<Vec<u8>>) -> Self {
        Self { stdout: stdout.into(), ..Self::default() }
    }

    /// Makes an output from a program: its standard output, in `format`, its exit code (`None`: a signal ended it), and
    /// its standard error.
    ///
    /// If standard output can be parsed, it becomes the result, and `stdout` is empty. Otherwise it stays text, and
    /// [`Output::parse_error`] says why. These are refused, so that nothing is lost silently:
    ///
    /// - a key that occurs twice in an object;
    /// - an integer beyond 64 bits, and any number that a double rounds (a fraction of up to 17 digits counts as the
    ///   double that it identifies);
    /// - U+0000, which `jsonb` cannot store, and half a surrogate pair;
    /// - a value that is nested deeper than 127 levels;
    /// - output that is not UTF-8 or is empty (for `jsonl`, empty output is an empty array).
    ///
    /// For YAML these are also refused:
    ///
    /// - more than one document;
    /// - a key that is a sequence or a mapping (other keys become strings as they are written);
    /// - a tag beyond those of JSON's types;
    /// - infinity and "not a number";
    /// - aliases that repeat more than about a megabyte;
    /// - text that a second reader, of libyaml's family, reads differently: a block scalar that ends the output without
    ///   a line break, U+0085, U+2028 and U+2029, a byte order mark inside.
    ///
    /// YAML that is JSON is read as JSON.
    pub fn parse(
        format: OutputFormat,
        exit_code: impl Into<Option<i32>>,
        stdout: impl AsRef<[u8]>,
        stderr: impl AsRef<[u8]>,
    ) -> Self {
        let stdout = stdout.as_ref();
        let output = Self { stderr: stderr.as_ref().to_vec(), exit_code: exit_code.into(), ..Self::default() };
        let parsed = match format {
            OutputFormat::Text => return Self { stdout: stdout.to_vec(), ..output },
            OutputFormat::Json => utf8(stdout).and_then(json::parse),
            OutputFormat::Jsonl => utf8(stdout).and_then(json::parse_lines),
            OutputFormat::Yaml => utf8(stdout).and_then(yaml::parse),
        };
        match parsed.and_then(|value| storable(&value).map(|()| value)) {
            Ok(value) => Self { result: Some(value), ..output },
            Err(why) => {
                let why = format!("not kept as {format}: {why}").replace('\0', "\u{fffd}");
                Self { stdout: stdout.to_vec(), parse_error: Some(why), ..output }
            }
        }
    }

    /// Sets the standard error.
    pub fn with_stderr(mut self, stderr: impl Into<Vec<u8>>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Sets the exit code.
    pub fn with_exit_code(mut self, exit_code: impl Into<Option<i32>>) -> Self {
        self.exit_code = exit_code.into();
        self
    }

    /// Ends the run as `failed`, for this reason. The output is kept as well.
    pub fn fail(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }

    /// The same as [`Output::fail`] if the exit code is not 0, or there is none.
    pub fn fail_unless_exit_0(self) -> Self {
        match self.exit_code {
            Some(0) => self,
            Some(code) => self.fail(format!("exit code {code}")),
            None => self.fail("no exit code: ended by a signal"),
        }
    }

    /// The parsed result. JSON's `null` is a result.
    #[must_use]
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }

    /// The standard output. Empty if there is a result.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// The standard error.
    #[must_use]
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// The program's exit code.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Why output that should have been parsed is kept as text.
    #[must_use]
    pub fn parse_error(&self) -> Option<&str> {
        self.parse_error.as_deref()
    }

    /// Why the run must end as `failed`. `None`: it succeeds.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The columns for this output, or why it cannot be stored.
    pub(crate) fn columns(&self, limits: Limits) -> Result<Columns<'_>> {
        let refuse = |kind, what: String| Error::new(kind, what).state("nothing was written; the run goes on");
        let columns = self.checked_columns();
        let mut sizes = vec![
            ("standard output", columns.stdout.len(), "result_max_bytes", limits.result),
            ("standard error", columns.stderr.len(), "stderr_max_bytes", limits.stderr),
        ];
        if let Some(value) = &self.result {
            storable(value).map_err(|why| {
                refuse(ErrorKind::InvalidInput, format!("the result cannot be stored: {why}"))
                    .help("correct the result")
            })?;
            sizes.push(("result", size(value)?, "result_max_bytes", limits.result));
        }
        let bytes = sizes.iter().map(|(_, size, ..)| size).sum();
        for (what, size, setting, most) in sizes {
            if size > most {
                let what =
                    format!("the {what} has {size} bytes as it would be stored, and {most} ({setting}) is the most");
                let todo = "store it elsewhere and output its location, or raise the limit";
                return Err(refuse(ErrorKind::TooLarge, what).help(todo));
            }
        }
        Ok(Columns { bytes, ..columns })
    }

    /// The columns of an output that was checked before.
    pub(crate) fn checked_columns(&self) -> Columns<'_> {
        let streams = [text(&self.stdout), text(&self.stderr)];
        let (stdout, stderr, escaped) = match streams {
            [Some(stdout), Some(stderr)] => (Cow::Borrowed(stdout), Cow::Borrowed(stderr), false),
            _ => (Cow::Owned(escape(&self.stdout)), Cow::Owned(escape(&self.stderr)), true),
        };
        let Self { result, exit_code, parse_error, .. } = self;
        let (result, parse_error) = (result.as_ref(), parse_error.as_deref());
        Columns { result, stdout, stderr, exit_code: *exit_code, escaped, parse_error, bytes: 0 }
    }
}

impl From<Value> for Output {
    fn from(result: Value) -> Self {
        Self::value(result)
    }
}

/// The most bytes that are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The limit of the result, or of standard output.
    pub(crate) result: usize,
    pub(crate) stderr: usize,
}

/// An output as the columns of `studio_runs`.
#[derive(Debug, PartialEq)]
pub(crate) struct Columns<'a> {
    pub(crate) result: Option<&'a Value>,
    pub(crate) stdout: Cow<'a, str>,
    pub(crate) stderr: Cow<'a, str>,
    pub(crate) exit_code: Option<i32>,
    /// Whether `stdout` and `stderr` were encoded by [`escape`].
    pub(crate) escaped: bool,
    pub(crate) parse_error: Option<&'a str>,
    /// About how many bytes all of it has; 0 in [`Output::checked_columns`].
    pub(crate) bytes: usize,
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("it is not UTF-8: {e}"))
}

/// The bytes as text, if a column of type `text` can store them unchanged.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Writes any bytes as text from which [`unescape`] restores them. A backslash becomes `\\`, and a byte that text
/// cannot hold becomes `\x00`.
fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => escaped.push_str("\\\\"),
                '\0' => escaped.push_str("\\x00"),
                c => escaped.push(c),
            }
        }
        for byte in chunk.invalid() {
            escaped.push_str(&format!("\\x{byte:02x}"));
        }
    }
    escaped
}

/// The bytes that [`escape`] was given. `None` for text that it does not write.
pub(crate) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        rest = if let Some(rest) = after.strip_prefix('\\') {
            bytes.push(b'\\');
            rest
        } else {
            let hex = after.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(hex.get(..2)?, 16).ok()?);
            hex.get(2..)?
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

/// Whether `jsonb` can store the value and we can read it again.
pub(crate) fn storable(value: &Value) -> Result<(), String> {
    fn look(value: &Value, depth: usize) -> Result<(), String> {
        let nul = |text: &str| if text.contains('\0') { Err("it has the character U+0000".to_owned()) } else { Ok(()) };
        if depth == 0 && (value.is_array() || value.is_object()) {
            return Err(format!("it is nested deeper than {DEPTH}"));
        }
        match value {
            Value::String(text) => nul(text),
            Value::Array(items) => items.iter().try_for_each(|item| look(item, depth - 1)),
            Value::Object(fields) => {
                fields.iter().try_for_each(|(name, field)| nul(name).and_then(|()| look(field, depth - 1)))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
    look(value, DEPTH)
}

/// The most bytes of the text that says why a run failed. It has room for a long backtrace. More would make the rows of
/// failed runs slow to list.
pub const ERROR_LIMIT: usize = 64 * 1024;

/// The reason why a run failed, cut if it is longer than [`ERROR_LIMIT`]. Its end then says how much is missing.
pub(crate) fn cut_error(text: &str) -> Cow<'_, str> {
    const ROOM_FOR_THE_NOTE: usize = 64;
    if text.len() <= ERROR_LIMIT {
        return Cow::Borrowed(text);
    }
    let mut end = ERROR_LIMIT - ROOM_FOR_THE_NOTE;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{} … ({} bytes more were cut)", &text[..end], text.len() - end))
}

/// The length of a value as JSON, in bytes.
pub(crate) fn size(value: &Value) -> Result<usize> {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, format!("a value cannot be written as JSON: {e}"))
            .state("nothing was written; the run goes on")
            .help("correct the result")
            .caused_by(e)
    })?;
    Ok(count.0)
}

/// A word of an output, shortened for a message.
fn shown(word: &str) -> String {
    const MOST: usize = 64;
    match word.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &word[..end]),
        None => format!("{word:?}"),
    }
}
