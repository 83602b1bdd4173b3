//! The record of the past: samples that pods take of themselves, sessions, what is made from them, and how long all of it
//! is kept.

pub(crate) mod keep;
pub(crate) mod retention;
pub(crate) mod samples;
mod walk;

pub use crate::protocol::health::Health;
pub use samples::{Counter, Gauge, SampleCounts};
