//! How long connections may be silent, wait and work.

use std::time::Duration;

/// The server's TCP keepalive settings, in whole seconds, that sum to the lease: `idle + interval × count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalives {
    /// Seconds of silence before the first probe.
    pub idle: u64,
    /// Seconds between probes.
    pub interval: u64,
    /// How many probes without an answer end the connection.
    pub count: u64,
}

/// The time limits of all connections of one process, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long the server lets a dedicated session be silent.
    pub(crate) lease: Duration,
    /// How long one statement may take. The server enforces it.
    pub(crate) statement: Duration,
    /// How long a dedicated session may be idle inside a transaction.
    pub(crate) idle_in_transaction: Duration,
    pub(crate) keepalives: Keepalives,
    /// The most connections of the pool.
    pub(crate) pool: usize,
    /// The most dedicated sessions. It is for advice when connections run out.
    pub(crate) dedicated: usize,
}
