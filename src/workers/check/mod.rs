//! How the owner of a worker finds out whether the worker is ready.
//!
//! A check is stored with its worker and read by pods of other versions. So its JSON form is a contract: fields that
//! this version does not know are kept, and a field that is present and wrong is an error, never a default.

#[cfg(feature = "http")]
mod answer;
mod bounds;
mod json;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::protocol::probing::{FAIL_AFTER, GIVE_UP_AFTER, READY_AFTER, Thresholds};

/// The time between two probes, unless the check says otherwise: 10 s, as in Kubernetes. A shorter one costs each
/// worker more requests, and a longer one keeps a dead worker in service for longer.
const INTERVAL_MS: u64 = 10_000;
/// How long a probe may take, unless the check says otherwise: 1 s, as in Kubernetes. With a shorter one, a worker that
/// is only busy fails. With a longer one, a hung worker holds a slot of the prober for longer.
const TIMEOUT_MS: u64 = 1_000;
/// How the owner of a worker finds out whether it is ready: by an HTTP GET, a TCP connection, or a function of the
/// service.
///
/// The defaults are those of Kubernetes: a probe every 10 s that may take 1 s; ready after one success, not ready after
/// three failures in a row. After 30 failures in a row the worker has failed. Its owner goes on probing it.
///
/// * **HTTP.** The probe expects a status from 200 to 399, and reads at most 10 KiB of the body. It follows no
///   redirect, unlike Kubernetes: the redirect's own status counts. It uses no proxy, and opens a new connection each
///   time. Over `https` it verifies the certificate against the system's authorities, unlike Kubernetes, because a
///   header may be a secret.
/// * **TCP.** A connection to the host and the port of the worker's URL is enough. It is closed at once.
/// * **Function.** The service registers it by its name.
///
/// The header values of [`HealthCheck::header`] are stored, and every pod reads them. Use
/// [`HealthCheck::secret_header`] for others.
///
/// # JSON
///
/// `{"path": "/health", "interval_ms": 10000, "timeout_ms": 1000}`. Instead of `path` it may have `"tcp": true` or
/// `"function": "name"`. Optional: `expect` (a status, or a list of them), `headers` (an object of name and string, or
/// of name and `{"secret": "name"}`), `fail_after`, `ready_after`, `give_up_after`. Other fields are kept.
///
/// ```
/// use std::time::Duration;
///
/// use podlock::workers::HealthCheck;
///
/// let check = HealthCheck::http("/health").interval(Duration::from_secs(5)).secret_header("Authorization", "token");
/// check.validate()?;
/// # Ok::<(), podlock::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    means: Means,
    interval_ms: u64,
    timeout_ms: u64,
    expected: Option<BTreeSet<u16>>,
    headers: BTreeMap<String, HeaderText>,
    fail_after: u32,
    ready_after: u32,
    give_up_after: Option<u32>,
    /// Fields of a newer version.
    unknown: Map<String, Value>,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// A GET of this path.
    Http(String),
    /// A connection.
    Tcp,
    /// The service's function of this name.
    Function(String),
}

/// Where the value of a header comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderText {
    Plain(String),
    /// The worker's secret of this name. Its value is never part of a check.
    Secret(String),
}

impl HealthCheck {
    fn new(means: Means) -> Self {
        Self {
            means,
            interval_ms: INTERVAL_MS,
            timeout_ms: TIMEOUT_MS,
            expected: None,
            headers: BTreeMap::new(),
            fail_after: FAIL_AFTER,
            ready_after: READY_AFTER,
            give_up_after: None,
            unknown: Map::new(),
        }
    }

    /// A GET of `path`, which begins with `/` and may have a query. It is the whole path: that of the worker's URL is
    /// not put in front.
    #[must_use]
    pub fn http(path: impl Into<String>) -> Self {
        Self::new(Means::Http(path.into()))
    }

    /// A connection to the port of the worker's URL, or to the default port of its scheme.
    #[must_use]
    pub fn tcp() -> Self {
        Self::new(Means::Tcp)
    }

    /// A call of the function that the service has registered under `name`.
    #[must_use]
    pub fn function(name: impl Into<String>) -> Self {
        Self::new(Means::Function(name.into()))
    }

    /// The time between the beginnings of two probes, give or take a tenth: from 1 ms to a day. Whole milliseconds; a
    /// part of one counts as one. Default: 10 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval_ms = millis(interval);
        self
    }

    /// How long a probe may take, from its beginning to the end of the answer: from 1 ms to 10 min. Whole milliseconds;
    /// a part of one counts as one. Default: 1 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = millis(timeout);
        self
    }

    /// The statuses of an HTTP answer that say "ready", from 200 to 599. Default: 200 to 399.
    #[must_use]
    pub fn expect(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.expected = Some(statuses.into_iter().collect());
        self
    }

    /// A header of the HTTP request. Its value is stored with the worker.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), HeaderText::Plain(value.into()));
        self
    }

    /// A header whose value is the worker's secret of this name. Only the name is stored.
    #[must_use]
    pub fn secret_header(mut self, name: impl Into<String>, secret: impl Into<String>) -> Self {
        self.headers.insert(name.into(), HeaderText::Secret(secret.into()));
        self
    }

    /// After how many failures in a row the worker is not ready: from 1 to 1,000. Default: 3.
    #[must_use]
    pub fn fail_after(mut self, failures: u32) -> Self {
        self.fail_after = failures;
        self
    }

    /// After how many successes in a row the worker is ready: from 1 to 1,000. Default: 1.
    #[must_use]
    pub fn ready_after(mut self, successes: u32) -> Self {
        self.ready_after = successes;
        self
    }

    /// After how many failures in a row the worker has failed: from `fail_after` to 1,000,000. Default: 30, or
    /// `fail_after` if that is more.
    #[must_use]
    pub fn give_up_after(mut self, failures: u32) -> Self {
        self.give_up_after = Some(failures);
        self
    }

    pub(crate) fn means(&self) -> &Means {
        &self.means
    }

    pub(crate) fn interval_of_probes(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    pub(crate) fn time_limit(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(crate) fn thresholds(&self) -> Thresholds {
        let give_up_after = self.give_up_after.unwrap_or(GIVE_UP_AFTER.max(self.fail_after));
        Thresholds { ready_after: self.ready_after, fail_after: self.fail_after, give_up_after }
    }

    /// A field that this version does not know, if there is one.
    #[cfg(feature = "http")]
    pub(crate) fn unknown_field(&self) -> Option<&str> {
        self.unknown.keys().next().map(String::as_str)
    }

    /// The names of the secrets that a probe needs.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.headers.values().filter_map(|text| match text {
            HeaderText::Secret(name) => Some(name.as_str()),
            HeaderText::Plain(_) => None,
        })
    }
}

/// A time in milliseconds, rounded up, so that no time that is above 0 becomes 0.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
