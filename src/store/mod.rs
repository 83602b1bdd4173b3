//! All of podlock's SQL. Each statement has one function; its name ends in `_in_txn` if it joins a transaction. A
//! statement of more than three lines is a file in `sql/`, which psql can run as well (`sql/README.md`).
//!
//! Each table of podlock's is named with its schema. podlock's own sessions run under `search_path = pg_catalog,
//! pg_temp`, so built-ins need no schema there. A statement that runs on a user's connection names the schema of every
//! function, type and operator. So the user's `search_path` cannot change what the statement means (`pins` checks
//! that).

pub(crate) mod admission;
mod alerts;
pub(crate) mod backlog;
pub(crate) mod beats;
pub(crate) mod burials;
pub(crate) mod candidates;
mod claim;
pub(crate) mod connections;
mod crashes;
pub(crate) mod creators;
mod evictions;
pub(crate) mod fences;
pub(crate) mod grouped;
pub(crate) mod guards;
pub(crate) mod history;
pub(crate) mod holders;
pub(crate) mod listener;
pub(crate) mod liveness;
pub(crate) mod loads;
pub(crate) mod locks;
pub(crate) mod migrate;
pub(crate) mod notices;
pub(crate) mod orphans;
mod owner_writes;
pub(crate) mod payloads;
#[cfg(test)]
mod pins;
pub(crate) mod pods;
pub(crate) mod quarantine;
pub(crate) mod queries;
pub(crate) mod role;
pub(crate) mod roll_ups;
mod rows;
pub(crate) mod runs;
pub(crate) mod samples;
pub(crate) mod sessions;
mod start;
pub(crate) mod strangers;
pub(crate) mod streams;
#[cfg(feature = "http")]
pub(crate) mod webhooks;
pub(crate) mod workers;
