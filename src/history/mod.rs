//! What is known of the past, and for how long it is kept.

pub(crate) mod keep;
pub(crate) mod retention;
mod walk;
