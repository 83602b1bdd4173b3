//! The contract of the public interface: what each function's documentation must say, and what may cross threads.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should panic")]

mod documented;
mod imports;
mod pages;
mod replies;
mod rust_version;
mod source;
mod statements;
mod summary;
mod threads;
