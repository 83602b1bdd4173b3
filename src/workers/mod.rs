//! The registry of workers.

mod check;
mod probing;

pub use check::HealthCheck;
pub use probing::ProbeRequest;
