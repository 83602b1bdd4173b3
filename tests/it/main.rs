//! podlock on a real PostgreSQL: one server for this binary, a database per test, in parallel.
//!
//! A test that shows a law bears its number in its name. Tests wait for conditions, with a deadline and a message that
//! says what was seen.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/examples.rs"]
mod examples;
#[path = "../common/inherited.rs"]
mod inherited;
#[path = "../common/patience.rs"]
mod patience;
mod support;

mod burials;
mod closed_doors;
mod commits;
mod conditions;
mod connections;
mod ends;
mod faults;
mod hidden;
mod history;
mod http_limits;
mod large_fleets;
mod laws;
mod log_order;
mod notices;
mod offers;
mod open_transactions;
mod pinned;
mod probes;
#[path = "../common/receiver.rs"]
mod receiver;
mod retention;
mod rosters;
mod runs;
mod schema;
mod smoke;
#[path = "../common/sse.rs"]
mod sse;
mod stalled;
mod statements;
mod stops;
mod strangers;
mod streams;
mod tracing_events;
mod unequal;
mod until_stopped;
mod worker_routes;
mod workers;
