//! What the parts of podlock cost, in counts that do not depend on the speed of the machine: statements of a run, round
//! trips of a burial, rows that are written, and instructions of the protocol's pure functions.
//!
//! The counts are compared with those of `docs/costs.md`. `make costs` writes them there. So a change that costs more
//! shows it in its own diff.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod burials;
#[path = "../common/inherited.rs"]
mod inherited;
mod instructions;
mod page;
#[path = "../common/patience.rs"]
mod patience;
mod runs;
mod server;
