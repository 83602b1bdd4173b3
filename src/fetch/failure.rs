//! Why a request failed, in words for people, and by when it must have ended.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// Why a request failed. The words name what it met. They contain no header and no body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The time of the request was over. `step` says what it was waiting for.
    TimedOut { after: Duration, step: &'static str },
    /// The name of the host has no address.
    Unresolved { host: String, why: String },
    /// No connection was made.
    Unconnected { why: String },
    /// The TLS handshake failed.
    #[cfg(feature = "http")]
    Tls { why: String },
    /// What the host sent is not an HTTP answer, or it broke off.
    #[cfg(feature = "http")]
    Answer { why: String },
    /// The request cannot be made from here.
    Impossible { why: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, step } => {
                write!(f, "time-out after {} while {step}", humantime::format_duration(*after))
            }
            Self::Unresolved { host, why } => write!(f, "no address for {host:?}: {why}"),
            Self::Unconnected { why } => write!(f, "cannot connect: {why}"),
            #[cfg(feature = "http")]
            Self::Tls { why } => write!(f, "the TLS handshake failed: {why}"),
            #[cfg(feature = "http")]
            Self::Answer { why } => write!(f, "no complete HTTP answer: {why}"),
            Self::Impossible { why } => write!(f, "the request cannot be made: {why}"),
        }
    }
}

/// By when a request must have ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    after: Duration,
    deadline: Instant,
}

impl Limit {
    pub(crate) fn begin(after: Duration) -> Self {
        Self { after, deadline: Instant::now() + after }
    }

    /// Waits for `work`, until the time of the whole request is over. `step` completes the sentence "time-out while …".
    /// If both are ready, as after a pause of the process, the work counts.
    pub(crate) async fn wait<T>(self, step: &'static str, work: impl Future<Output = T>) -> Result<T, Failure> {
        timeout_at(self.deadline, work).await.map_err(|_| Failure::TimedOut { after: self.after, step })
    }
}
