//! The rules of the protocol, as pure functions.
//!
//! Nothing here does I/O, reads a clock, draws a random number or writes a log line. Observations come in as values,
//! and decisions go out as values. `ARCHITECTURE.md` states the laws L1 to L12 that these rules keep.
//!
//! Public only for models and tests of the protocol. It changes with the protocol and does not follow semantic
//! versioning.
//!
//! Deliberately absent: wall-clock time. A [`Moment`] is compared only with another [`Moment`] of the same process. The
//! exception is [`reliability`], which computes with the server's time. People read it, and no pod decides by it.

pub mod alerts;
pub mod awake;
pub mod batch;
pub mod batching;
pub mod cause;
pub mod condition;
pub mod deadline;
pub mod ending;
pub mod event;
pub mod failures;
pub mod fences;
pub mod fold;
pub mod health;
pub mod interest;
pub mod moves;
mod names;
pub mod neighbours;
pub mod notices;
pub mod offer;
pub mod patience;
pub mod poison;
pub mod portions;
pub mod probing;
pub mod recover;
pub mod reliability;
pub mod replica;
pub mod reports;
pub mod ring;
pub mod score;
pub mod share;
pub mod slots;
pub mod stall;
pub mod state;
pub mod stream;
pub mod turns;
pub mod verdict;
pub mod wait;
pub mod worker;

use std::time::Duration;

pub(crate) use names::named;

/// A point on a process's own monotonic clock: the time since an origin that the process chose.
pub type Moment = Duration;
