//! Runs: started, ended, claimed, handed over; each interleaving that matters is forced, by locks that the test holds,
//! by a proxy that it commands, or by handlers that do what it says.

mod capacity;
mod claims;
mod drain;
mod endings;
mod failures;
mod fences;
mod guards;
mod keys;
mod lost_replies;
mod orphans;
mod outputs;
mod poison;
mod restart;
mod shares;
mod silence;
pub(crate) mod stage;
mod start;
mod txn;
