//! podlock: when a pod dies, its peers know within milliseconds and resume its runs, each under a fence.
#![doc = include_str!("../docs/promises.md")]

mod alert;
mod background;
mod backoff;
pub mod config;
mod connect;
mod error;
mod fetch;
pub mod history;
#[cfg(feature = "http")]
pub mod http;
mod id;
mod membership;
pub mod meters;
mod nag;
pub mod operator;
mod output;
#[cfg(test)]
mod pages;
mod pg;
mod pod;
#[doc(hidden)]
pub mod protocol;
mod runs;
mod store;
#[cfg(feature = "throwaway")]
pub mod throwaway;
mod timestamp;
pub mod workers;

/// The schema's versions: what a pod does at its start, for those who do it apart.
pub mod migrate {
    pub use crate::store::migrate::{Access, Version, grants, newest, sql, status, up, warnings};
}

#[cfg(doc)]
#[doc = include_str!("../docs/handlers.md")]
pub mod handlers {}

#[cfg(doc)]
#[doc = include_str!("../docs/streams.md")]
pub mod streams {}

#[cfg(doc)]
#[doc = include_str!("../docs/guards.md")]
pub mod guards {}

/// The pages whose code compiles as it stands there.
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../docs/http.md")]
struct HttpPage;

#[cfg(doctest)]
#[doc = include_str!("../docs/history.md")]
struct HistoryPage;

#[cfg(doctest)]
#[doc = include_str!("../docs/workers.md")]
struct WorkersPage;

#[cfg(doctest)]
#[doc = include_str!("../docs/alerts.md")]
struct AlertsPage;

/// The driver whose transactions [`Pod::start_in_txn`] and [`Run::guard`] join.
pub use tokio_postgres;

pub use alert::Alert;
pub use config::{Config, OnDetach, OnStall, PasswordRequest, Settings, WorstCase};
pub use connect::connect;
pub use error::{Error, ErrorKind, Result};
pub use id::{Fence, Incarnation, LockKey, POD_ID_MAX_CHARS, PodId, RunId, WorkerId};
pub use operator::Operator;
pub use output::{ERROR_LIMIT, Output, OutputFormat};
pub use pod::{
    Phase, Pod, PodBuilder, PodEvent, PodStatus, ProgressSource, ShutdownReport, StopCause, StopSignal, Stopped,
};
pub use protocol::alerts::AlertKind;
pub use protocol::state::Cancelled;
pub use runs::{
    Attached, CHUNK_LIMIT, HandlerError, NewRun, Outcome, Run, Started, StopReason, StreamEvent, StreamPosition,
};
pub use timestamp::Timestamp;

/// The whole program of the quick start compiles as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../docs/quickstart.md")]
struct Quickstart;

/// The README's code compiles as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
