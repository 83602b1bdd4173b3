//! The liveness history: samples, sessions, roll-ups, and what is read from them.

mod alerts;
mod endpoints;
mod mended;
mod metrics;
pub(crate) mod plans;
mod roll_ups;
mod samples;
mod sessions;
mod webhooks;
