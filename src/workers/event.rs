//! What happens to the workers that a pod shows.

use super::entry::Worker;
use crate::protocol::worker::Health;

/// A change of a worker, as this pod shows it. Delivery is best effort: a receiver that lags misses some, and must then
/// read the list again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// The worker is shown from now on.
    Added(Worker),
    /// Its spec, its check or its owner's registration has changed.
    Replaced(Worker),
    /// It is not shown any more: it was removed, its owner was buried, or another worker with its URL takes its place.
    Removed(Worker),
    /// Its health has changed.
    #[non_exhaustive]
    Health {
        /// The worker, with its present health.
        worker: Worker,
        /// Its health before.
        before: Health,
    },
    /// Its owner has not reported it for a while. It is not chosen any more.
    Inactive(Worker),
    /// Its owner reports it again, or for the first time.
    Active(Worker),
}
