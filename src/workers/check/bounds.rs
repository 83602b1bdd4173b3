//! The bounds of every field of a check.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{HeaderText, HealthCheck, Means};
use crate::error::{Error, ErrorKind, Result};

/// The least and most of a number, and its name in JSON.
pub(super) struct Bound {
    pub(super) field: &'static str,
    most: u64,
}

/// Up to a day. A longer interval hardly is a probe.
pub(super) const INTERVAL: Bound = Bound { field: "interval_ms", most: 86_400_000 };
/// Up to ten minutes. A longer one keeps a slot of the prober from other workers.
pub(super) const TIMEOUT: Bound = Bound { field: "timeout_ms", most: 600_000 };
/// Up to 1,000, so that a digit too many is noticed.
pub(super) const FAILURES: Bound = Bound { field: "fail_after", most: 1_000 };
pub(super) const SUCCESSES: Bound = Bound { field: "ready_after", most: 1_000 };
/// Up to a million: with the default interval that is four months, for owners that never want to give up.
pub(super) const GIVING_UP: Bound = Bound { field: "give_up_after", most: 1_000_000 };
/// How long a path, a name or a header value may be, in bytes: 2,048, which servers take. Each pod that imports the
/// worker holds a copy.
pub(super) const TEXT_MOST: usize = 2_048;
/// How many headers a check may have: 32. Every probe sends all of them.
pub(super) const HEADERS_MOST: usize = 32;
/// Headers that HTTP itself needs. A probe that changed them would break its own request.
pub(super) const RESERVED: [&str; 4] = ["connection", "content-length", "transfer-encoding", "upgrade"];
pub(super) const HEADER_VALUE: &str = "a string, or {\"secret\": \"the name of a secret of the worker\"}";

pub(super) const EXPECT_WORDS: &str = "a status from 200 to 599, or a list of them";

pub(super) const PATH_WORDS: &str =
    "a path that begins with one \"/\", of at most 2,048 bytes without spaces or control characters";
pub(super) const NAME_WORDS: &str = "a name of 1 to 2,048 bytes without control characters";

impl HealthCheck {
    /// Checks the bounds of every field.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`], which names the first field that is wrong, and says what it should be.
    pub fn validate(&self) -> Result<()> {
        let is_http = match &self.means {
            Means::Http(path) => {
                check_path(path)?;
                true
            }
            Means::Function(name) => {
                check_name("function", name)?;
                false
            }
            Means::Tcp => false,
        };
        INTERVAL.check(self.interval_ms)?;
        TIMEOUT.check(self.timeout_ms)?;
        FAILURES.check(self.fail_after.into())?;
        SUCCESSES.check(self.ready_after.into())?;
        if let Some(give_up_after) = self.give_up_after {
            GIVING_UP.check(give_up_after.into())?;
            if give_up_after < self.fail_after {
                let least = format!("at least fail_after, which is {}", self.fail_after);
                return Err(wrong(GIVING_UP.field, &least, &give_up_after.to_string()));
            }
        }
        if let Some(expected) = &self.expected {
            let got = shown(&json!(expected));
            if !is_http {
                return Err(wrong("expect", "no such field without path", &got));
            }
            if expected.is_empty() || !expected.iter().all(|s| (200..=599).contains(s)) {
                return Err(wrong("expect", EXPECT_WORDS, &got));
            }
        }
        if !is_http && let Some(name) = self.headers.keys().next() {
            return Err(wrong("headers", "no such field without path", &format!("{name:?}")));
        }
        check_headers(&self.headers)
    }
}

impl Bound {
    pub(super) fn words(&self) -> String {
        format!("a whole number from 1 to {}", self.most)
    }

    pub(super) fn check(&self, n: u64) -> Result<u64> {
        if (1..=self.most).contains(&n) { Ok(n) } else { Err(wrong(self.field, &self.words(), &n.to_string())) }
    }
}

fn check_path(path: &str) -> Result<()> {
    // `//host` and `/\host` would be another host for some readers of URLs.
    let is_other_host = path.starts_with("//") || path.starts_with("/\\");
    let is_odd = |c: char| c.is_control() || c.is_whitespace() || c == '#';
    if !path.starts_with('/') || is_other_host || path.len() > TEXT_MOST || path.contains(is_odd) {
        return Err(wrong("path", PATH_WORDS, &shown(&json!(path))));
    }
    Ok(())
}

fn check_name(field: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > TEXT_MOST || name.contains(char::is_control) {
        return Err(wrong(field, NAME_WORDS, &shown(&json!(name))));
    }
    Ok(())
}

fn check_headers(headers: &BTreeMap<String, HeaderText>) -> Result<()> {
    if headers.len() > HEADERS_MOST {
        return Err(wrong("headers", &format!("at most {HEADERS_MOST}"), &headers.len().to_string()));
    }
    let mut seen = BTreeSet::new();
    for (name, text) in headers {
        let is_token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        let lower = name.to_ascii_lowercase();
        if name.is_empty() || name.len() > TEXT_MOST || !name.bytes().all(is_token) {
            return Err(wrong("headers", "names of letters, digits and hyphens", &shown(&json!(name))));
        }
        if RESERVED.contains(&lower.as_str()) {
            return Err(wrong("headers", &format!("none of {}", RESERVED.join(", ")), &shown(&json!(name))));
        }
        if !seen.insert(lower) {
            return Err(wrong("headers", "each name once, in whatever case", &format!("{name:?} twice")));
        }
        let field = format!("headers.{name}");
        match text {
            HeaderText::Secret(secret) => check_name(&field, secret)?,
            HeaderText::Plain(value)
                if value.len() > TEXT_MOST || !value.bytes().all(|c| (b' '..=b'~').contains(&c)) =>
            {
                return Err(wrong(&field, "at most 2,048 printable ASCII characters", "others"));
            }
            HeaderText::Plain(_) => {}
        }
    }
    Ok(())
}

/// A value for an error message: its JSON, cut after 60 characters.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(super) fn wrong(field: &str, expected: &str, got: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("{field}: expected {expected}, got {got}"))
        .state("the health check was not accepted")
        .help("correct this field of the check")
        .during("health check")
}
