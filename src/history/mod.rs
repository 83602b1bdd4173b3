//! The record of the past, and how long it is kept.

pub(crate) mod keep;
pub(crate) mod retention;
mod walk;
