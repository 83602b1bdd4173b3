//! Why a probe failed, in words for people.

use std::fmt;
use std::time::Duration;

use crate::fetch::Failure;

/// Why a probe failed. The words name what the probe met, and never contain a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProbeFailure {
    /// The time of the probe was over. `step` says what the probe was waiting for.
    TimedOut { after: Duration, step: &'static str },
    /// The name of the host has no address.
    Unresolved { host: String, why: String },
    /// No connection was made.
    Unconnected { why: String },
    /// The TLS handshake failed.
    #[cfg(feature = "http")]
    Tls { why: String },
    /// The worker answered with a status that does not say "ready".
    #[cfg(feature = "http")]
    Status { status: u16, expected: String },
    /// What the worker sent is not an HTTP answer, or it broke off.
    #[cfg(feature = "http")]
    Answer { why: String },
    /// The service's function says so.
    Function { why: String },
    /// The service's function panicked.
    Panicked { why: String },
    /// The probe cannot be made on this pod.
    Impossible { why: String },
}

impl ProbeFailure {
    /// Whether both say the same of the worker: a log line for one also covers the other. The words of the operating
    /// system and of functions may contain times and numbers, so they are not compared.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TimedOut { step, .. }, Self::TimedOut { step: of_other, .. }) => step == of_other,
            #[cfg(feature = "http")]
            (Self::Status { status, .. }, Self::Status { status: of_other, .. }) => status == of_other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl From<Failure> for ProbeFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut { after, step } => Self::TimedOut { after, step },
            Failure::Unresolved { host, why } => Self::Unresolved { host, why },
            Failure::Unconnected { why } => Self::Unconnected { why },
            #[cfg(feature = "http")]
            Failure::Tls { why } => Self::Tls { why },
            #[cfg(feature = "http")]
            Failure::Answer { why } => Self::Answer { why },
            Failure::Impossible { why } => Self::Impossible { why },
        }
    }
}

impl fmt::Display for ProbeFailure {
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
            Self::Status { status, expected } => write!(f, "status {status}, expected {expected}"),
            #[cfg(feature = "http")]
            Self::Answer { why } => write!(f, "no complete HTTP answer: {why}"),
            Self::Function { why } => write!(f, "the function says: {why}"),
            Self::Panicked { why } => write!(f, "the function panicked: {why}"),
            Self::Impossible { why } => write!(f, "this pod cannot probe it: {why}"),
        }
    }
}
