//! The rules, as pure functions.
//!
//! Nothing here does IO, reads a clock, draws a random number or logs: what was seen comes in as values, what should be
//! done goes out as values. The laws L1 to L12 that the rules keep are stated in `ARCHITECTURE.md`.
//!
//! Public for models and tests of the protocol alone: it follows the protocol, not semantic versioning.
//!
//! Deliberately absent: wall-clock time. A [`Moment`] is only ever compared with another of the same process.

pub mod batch;
pub mod cause;
pub mod condition;
pub mod deadline;
pub mod ending;
pub mod event;
pub mod failures;
pub mod fences;
pub mod fold;
mod names;
pub mod notices;
pub mod patience;
pub mod poison;
pub mod portions;
pub mod recover;
pub mod ring;
pub mod share;
pub mod stall;
pub mod state;
pub mod stream;
pub mod turns;
pub mod verdict;
pub mod wait;

use std::time::Duration;

pub(crate) use names::named;

/// A point on one process's own monotonic clock, as the time since an origin of its choice.
pub type Moment = Duration;
