//! Faults: what a pod is told that cannot start, and what one goes through that runs.

mod boot;
mod database;
mod fleet;
mod names;
mod pooler;
mod rights;
mod sessions;
mod standby;
