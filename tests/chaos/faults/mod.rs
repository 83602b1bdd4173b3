//! The faults, one after the other. Each file is about one thing that breaks.

mod clocks;
mod clusters;
mod failover;
mod fleets;
mod limits;
mod names;
mod networks;
mod poolers;
mod processes;
mod server;
mod sessions;
mod streams;
mod workers;

use crate::scenario::Scenario;

pub(crate) fn scenarios() -> Vec<Scenario> {
    [
        processes::scenarios(),
        sessions::scenarios(),
        networks::scenarios(),
        server::scenarios(),
        failover::scenarios(),
        clusters::scenarios(),
        limits::scenarios(),
        clocks::scenarios(),
        names::scenarios(),
        fleets::scenarios(),
        poolers::scenarios(),
        streams::scenarios(),
        workers::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
