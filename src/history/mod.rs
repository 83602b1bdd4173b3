//! The record of the past: samples that pods take of themselves, sessions, what is made from them, and how long all of it
//! is kept.

pub(crate) mod alerts;
pub(crate) mod cgroup;
mod exit;
pub(crate) mod keep;
pub(crate) mod retention;
pub(crate) mod roll_up;
pub(crate) mod samples;
pub(crate) mod sessions;
mod walk;

pub use crate::protocol::health::Health;
pub use exit::ProcessExit;
pub use samples::{Counter, Gauge, SampleCounts};
