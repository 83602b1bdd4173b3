//! What a run puts out, as it is stored: a value or a text, never both.
//!
//! Pure: bytes go in, and what the table holds comes out. Nothing is cut and no digit is lost on the way: what cannot
//! be kept as a value is kept as the text that it was, with the reason beside it.

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

/// How deep arrays and objects may be nested. What is deeper could be stored, and not be read again.
const DEPTH: usize = 127;

/// How a program writes what it puts out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputFormat {
    /// Anything: it is kept as it stands.
    #[default]
    Text,
    /// One JSON value.
    Json,
    /// One YAML document, by the core schema of YAML 1.2.
    Yaml,
    /// One JSON value a line; blank lines are passed over. The result is an array of them.
    Jsonl,
}

impl OutputFormat {
    /// Its name: `text`, `json`, `yaml` or `jsonl`.
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

/// What a run puts out, for [`Run::finish`](crate::Run::finish) or [`Outcome::Output`](crate::Outcome::Output).
///
/// It has a result or a standard output, never both; beside it standard error and an exit code. Those are data: what
/// makes a run `failed` is [`Output::fail`] alone, or [`Output::fail_unless_exit_0`].
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
    /// A result and nothing else.
    pub fn value(result: impl Into<Value>) -> Self {
        Self { result: Some(result.into()), ..Self::default() }
    }

    /// A text, kept as it stands.
    pub fn text(stdout: impl Into<Vec<u8>>) -> Self {
        Self { stdout: stdout.into(), ..Self::default() }
    }

    /// What a program has written to its standard output, in `format`, with its exit code (`None`: ended by a signal)
    /// and what it has written to its standard error.
    ///
    /// What parses becomes the result, and the standard output is empty. Anything else stays text, and
    /// [`Output::parse_error`] says why. Refused, so that nothing is lost without a word: a key that stands twice in an
    /// object; an integer beyond 64 bits, and any number that a double rounds (a fraction of up to 17 digits counts as
    /// the double that it names); U+0000, which `jsonb` cannot hold, and half a surrogate pair; what is nested deeper
    /// than 127; output that is not UTF-8 or is empty (of `jsonl`, empty output is an empty array). Of YAML also: more
    /// than one document, a key that is a sequence or a mapping (other keys become strings as they are written), a tag
    /// beyond those of JSON's types, infinity and "not a number", aliases that repeat more than about a megabyte, and
    /// whatever a second reader, of libyaml's family, reads differently: a block scalar that ends the output without a
    /// line break, U+0085, U+2028 and U+2029, a byte order mark inside. YAML that is JSON is read as JSON.
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

    /// Sets what was written to standard error.
    pub fn with_stderr(mut self, stderr: impl Into<Vec<u8>>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// Sets the exit code.
    pub fn with_exit_code(mut self, exit_code: impl Into<Option<i32>>) -> Self {
        self.exit_code = exit_code.into();
        self
    }

    /// Ends the run as `failed`, for this reason. The output is kept beside it.
    pub fn fail(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }

    /// [`Output::fail`] if the exit code is another than 0, or there is none.
    pub fn fail_unless_exit_0(self) -> Self {
        match self.exit_code {
            Some(0) => self,
            Some(code) => self.fail(format!("exit code {code}")),
            None => self.fail("no exit code: ended by a signal"),
        }
    }

    /// What it parsed to. JSON's `null` is a result.
    #[must_use]
    pub fn result(&self) -> Option<&Value> {
        self.result.as_ref()
    }

    /// What was written to standard output; empty where there is a result.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// What was written to standard error.
    #[must_use]
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// With what the program ended.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_code
    }

    /// Why output that was to be parsed is kept as text.
    #[must_use]
    pub fn parse_error(&self) -> Option<&str> {
        self.parse_error.as_deref()
    }

    /// Why the run is to end as `failed`; `None`: it succeeds.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The columns that it fills, or why it cannot be stored.
    pub(crate) fn columns(&self, limits: Limits) -> Result<Columns<'_>> {
        let refuse = |kind, what: String| Error::new(kind, what).state("nothing was written; the run goes on");
        let streams = [text(&self.stdout), text(&self.stderr)];
        let (stdout, stderr, escaped) = match streams {
            [Some(stdout), Some(stderr)] => (Cow::Borrowed(stdout), Cow::Borrowed(stderr), false),
            _ => (Cow::Owned(escape(&self.stdout)), Cow::Owned(escape(&self.stderr)), true),
        };
        let mut sizes = vec![
            ("standard output", stdout.len(), "result_max_bytes", limits.result),
            ("standard error", stderr.len(), "stderr_max_bytes", limits.stderr),
        ];
        if let Some(value) = &self.result {
            storable(value).map_err(|why| {
                refuse(ErrorKind::InvalidInput, format!("the result cannot be stored: {why}"))
                    .help("correct the result")
            })?;
            sizes.push(("result", size(value)?, "result_max_bytes", limits.result));
        }
        for (what, size, setting, most) in sizes {
            if size > most {
                let what =
                    format!("the {what} has {size} bytes as it would be stored, and {most} ({setting}) is the most");
                let todo = "keep it elsewhere and put out where it is, or raise the limit";
                return Err(refuse(ErrorKind::TooLarge, what).help(todo));
            }
        }
        let Self { result, exit_code, parse_error, .. } = self;
        let (result, parse_error) = (result.as_ref(), parse_error.as_deref());
        Ok(Columns { result, stdout, stderr, exit_code: *exit_code, escaped, parse_error })
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
    /// Of the result or of standard output.
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
    /// Both streams are written as [`escape`] writes them.
    pub(crate) escaped: bool,
    pub(crate) parse_error: Option<&'a str>,
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("it is not UTF-8: {e}"))
}

/// What a column of type `text` can hold as it stands.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Writes any bytes so that [`unescape`] gives them back: a backslash as `\\`, and as `\x00` what no text can hold.
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

/// The bytes that [`escape`] was given; `None` for what it does not write.
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

/// Whether `jsonb` can hold it and we can read it again.
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

/// The most bytes of the text that says why a run failed.
pub const ERROR_LIMIT: usize = 64 * 1024;

/// The text that says why a run failed, cut where it is longer than [`ERROR_LIMIT`]: its end says how much is missing.
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

/// How long a value is as JSON.
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

/// A word of an output in a message.
fn shown(word: &str) -> String {
    const MOST: usize = 64;
    match word.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &word[..end]),
        None => format!("{word:?}"),
    }
}
