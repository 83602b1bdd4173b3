//! What the server says about itself, as far as the protocol depends on it.

use std::time::Duration;

use tokio_postgres::Row;

use super::reply::Reply;
use super::statement::sql;
use crate::error::Result;

/// Its columns are those that [`ServerFacts::read`] reads.
pub(super) const READ: &str = sql!("read_server_facts", "server_facts");
/// The settings from whose value on the server or auto_explain logs a statement.
const LOG_SETTINGS: [&str; 3] =
    ["log_min_duration_statement", "log_min_duration_sample", "auto_explain_log_min_duration"];

#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) deadlock_timeout: Duration,
    /// `None` if slow statements are not logged.
    pub(crate) log_min_duration: Option<Duration>,
    /// The server sees the same port that we use, so nothing that could pool stands in between.
    pub(crate) direct: bool,
}

impl ServerFacts {
    /// The server's defaults, until it has answered.
    pub(super) const DEFAULT: Self =
        Self { deadlock_timeout: Duration::from_secs(1), log_min_duration: None, direct: false };

    /// Reads the columns of `part/server_facts.sql`.
    pub(super) fn read(row: &Row, direct: bool) -> Result<Self> {
        let deadlock_timeout = duration(row.at("deadlock_timeout")?).unwrap_or(Self::DEFAULT.deadlock_timeout);
        let mut log_min_duration = None;
        for setting in LOG_SETTINGS {
            let logged = row.at::<Option<&str>>(setting)?.and_then(duration);
            log_min_duration = log_min_duration.into_iter().chain(logged).min();
        }
        Ok(Self { deadlock_timeout, log_min_duration, direct })
    }
}

/// The value of a setting whose unit is the millisecond. The server shows it in the largest unit that leaves a whole
/// number; 0 and what pg_settings shows have no unit. `None` if it is -1, which switches the setting off.
fn duration(shown: &str) -> Option<Duration> {
    let (number, unit) = shown.split_at(shown.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(shown.len()));
    let ms_of_unit: u64 = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(ms_of_unit).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_read_in_the_unit_in_which_the_server_shows_it() {
        for (shown, ms) in [
            ("1s", Some(1_000)),
            ("200ms", Some(200)),
            ("1500ms", Some(1_500)),
            ("1min", Some(60_000)),
            ("2h", Some(7_200_000)),
            ("24d", Some(2_073_600_000)),
            // Without a unit, as pg_settings shows all of them.
            ("0", Some(0)),
            ("250", Some(250)),
            ("-1", None),
            // No server shows these.
            ("", None),
            ("s", None),
            ("5us", None),
            ("1.5s", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(duration(shown), ms.map(Duration::from_millis), "{shown:?}");
        }
    }
}
