//! Why a verb failed, and what the caller of the command sees.

use std::error::Error as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::output::{printable, printable_lines};

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or the environment asks for something impossible: exit code 2.
    Usage(String),
    /// The library or the database refused.
    Podlock(podlock::Error),
    /// Reading or writing failed. It is no failure if the reader of our output went away (`| head`).
    Io(io::Error),
    /// Anything else, in words.
    Failed(String),
    /// Like `Failed`, in several lines. All but the first are indented.
    Lines(String),
    /// The exit code of `podlock hold`: that of the held command, or its own. Everything was reported already.
    Command(u8),
}

impl Failure {
    /// Reports the failure on stderr and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match &self {
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Usage(text) => (format!("{}\n\nFor more information, try '--help'.", printable(text)), 2),
            Self::Podlock(error) => (with_sources(error), 1),
            Self::Io(error) => (printable(&error.to_string()), 1),
            Self::Failed(text) => (printable(text), 1),
            Self::Lines(text) => (printable_lines(text).replace('\n', "\n  "), 1),
            Self::Command(code) => return ExitCode::from(*code),
        };
        say(&text);
        ExitCode::from(code)
    }
}

impl From<podlock::Error> for Failure {
    fn from(error: podlock::Error) -> Self {
        Self::Podlock(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes one line to stderr, under our name. Line breaks in the text are escaped. Otherwise a text from the database
/// could begin a line that looks like one of ours.
pub(crate) fn note(text: &str) {
    say(&printable(text));
}

/// [`note`], with the causes of the error.
pub(crate) fn note_error(what: &str, error: &podlock::Error) {
    say(&format!("{}: {}", printable(what), with_sources(error)));
}

/// Writes an escaped text to stderr. Ignores write errors: perhaps nobody reads stderr.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "podlock: {text}");
}

/// The error and its causes, each cause once and on its own line. All texts are escaped. The error's own text already
/// contains the server's message.
fn with_sources(error: &podlock::Error) -> String {
    let mut text = printable(&error.to_string());
    if error.sqlstate().is_some() {
        return text;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let words = printable(&cause.to_string());
        if !text.contains(&words) {
            text.push_str("\n  caused by: ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
