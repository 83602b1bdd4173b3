//! Runs: started, ended, claimed, handed over; each interleaving that matters is forced, by locks that the test holds,
//! by a proxy that it commands, or by handlers that do what it says.

mod bad_rows;
mod capacity;
mod claims;
mod cordons;
mod drain;
mod endings;
mod failures;
mod fences;
mod grouped;
mod guards;
mod keys;
mod lost_replies;
mod moves;
mod orphans;
mod outputs;
mod plans;
mod poison;
mod restart;
mod sequence;
mod shares;
mod silence;
mod slow_links;
pub(crate) mod stage;
mod start;
mod too_large;
mod traces;
mod txn;
