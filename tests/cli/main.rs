//! The contract of the command: verbs, JSON, exit codes, HTTP, the reference pod, the demo. Real processes on a real
//! PostgreSQL.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should panic")]

mod chat;
mod demo;
#[path = "../common/examples.rs"]
mod examples;
mod extremes;
mod gateway;
mod harness;
mod history;
mod hold;
mod http;
mod http_limits;
#[path = "../common/inherited.rs"]
mod inherited;
mod inherited_by_tests;
mod metrics;
mod own_table;
#[path = "../common/patience.rs"]
mod patience;
mod pod;
#[path = "../common/receiver.rs"]
mod receiver;
mod retention;
mod serve;
#[path = "../common/sse.rs"]
mod sse;
mod streams;
mod traces;
mod verbs;
mod webhook;
mod worker;
mod workers;
