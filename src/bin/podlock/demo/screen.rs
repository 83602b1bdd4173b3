//! What the audience sees: sentences that stay, and below them, on a terminal, a table that is redrawn in place.

use std::io::{self, IsTerminal as _, Write as _};

use crate::output::{self, Format};

/// Sentences and a table.
pub(super) struct Screen {
    to_stderr: bool,
    live: bool,
    colour: bool,
    /// How many lines of the table are below the last sentence.
    drawn: usize,
}

/// The meaning of a word, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Strong,
    Faint,
}

impl Screen {
    /// With `-o json`, the story goes to stderr, so that stdout contains only the result.
    pub(super) fn new(format: Format) -> Self {
        let to_stderr = format != Format::Table;
        let terminal = if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let live = terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { to_stderr, live, colour: output::colour(live), drawn: 0 }
    }

    /// Whether a table is redrawn in place.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// Prints a line that stays.
    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        let erase = self.erase();
        self.write(&format!("{erase}{line}\n"))
    }

    /// Redraws the table in place. Does nothing if there is no terminal.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        if !self.live {
            return Ok(());
        }
        let mut text = self.erase();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = lines.len();
        self.write(&text)
    }

    /// Leaves the table on the screen as it is.
    pub(super) fn keep(&mut self) {
        self.drawn = 0;
    }

    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Strong => "1",
            Tone::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        if self.to_stderr {
            io::stderr().write_all(text.as_bytes())
        } else {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        }
    }
}
