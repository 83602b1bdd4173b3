//! Why a verb failed, and what the caller of the command sees of it.

use std::error::Error as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Why a verb failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or the environment asks for something that cannot be: exit code 2.
    Usage(String),
    /// The library or the database refused.
    Podlock(podlock::Error),
    /// Reading or writing failed. A reader of ours that went away (`| head`) is no failure.
    Io(io::Error),
    /// Anything else, in words.
    Failed(String),
    /// What `podlock hold` ends with: a held command's exit code, or what it says about itself. All was said.
    Command(u8),
}

impl Failure {
    /// Says it on stderr and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match &self {
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Usage(text) => (format!("{text}\n\nFor more information, try '--help'."), 2),
            Self::Podlock(error) => (with_sources(error), 1),
            Self::Io(error) => (error.to_string(), 1),
            Self::Failed(text) => (text.clone(), 1),
            Self::Command(code) => return ExitCode::from(*code),
        };
        note(&text);
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

/// One line on stderr, under our name. Nobody may be reading, which is no reason to fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "podlock: {}", crate::output::printable_lines(text));
}

/// The error and what caused it, each cause once. What the server said is in the error's own words already.
pub(crate) fn with_sources(error: &podlock::Error) -> String {
    let mut text = error.to_string();
    if error.sqlstate().is_some() {
        return text;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str("\n  caused by: ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
