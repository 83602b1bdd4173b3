//! The pod's logs, on stderr.

use std::io::{self, Write};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::output;

/// The variables that choose what is logged. The first one that is set counts.
const FILTERS: [&str; 2] = ["PODLOCK_LOG", "RUST_LOG"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text for each event
    #[default]
    Text,
    /// A JSON object a line, with the event's fields at its top
    Json,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// The format of the log, which goes to stderr. PODLOCK_LOG, else RUST_LOG, chooses what is logged
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl LogArgs {
    /// Starts logging for the whole process: `level` and above, unless the environment chooses something else.
    pub(crate) fn start(self, level: &str) -> Result<(), Failure> {
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter(level)?)
            .with_writer(move || Lines(self.log_format))
            .log_internal_errors(false);
        let started = match self.log_format {
            LogFormat::Text => logs.try_init(),
            LogFormat::Json => logs.json().flatten_event(true).with_span_list(false).try_init(),
        };
        started.map_err(|e| Failure::Failed(format!("cannot start logging: {e}")))
    }
}

/// Stderr. The subscriber writes each event in one piece. Each becomes one line, even if its texts have line breaks.
struct Lines(LogFormat);

impl Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.0 {
            // The only ESC characters are the subscriber's colours. It has escaped those in texts.
            LogFormat::Text => output::printable_but(Some('\x1b'), line),
            LogFormat::Json => output::escape_json(line),
        };
        line.push('\n');
        io::stderr().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn filter(level: &str) -> Result<EnvFilter, Failure> {
    for name in FILTERS {
        if let Some(words) = std::env::var(name).ok().filter(|words| !words.is_empty()) {
            return EnvFilter::try_new(&words).map_err(|e| Failure::Usage(format!("{name}={words:?}: {e}")));
        }
    }
    Ok(EnvFilter::new(level))
}
