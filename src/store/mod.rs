//! All of podlock's SQL: one function for each statement, `_in_txn` where it joins a transaction.
//!
//! Each built-in is called by its qualified name, and each table of podlock's by the schema's name. So no `search_path`
//! can change what a statement means. On sessions of our own the `search_path` is `pg_catalog`, and operators need no
//! schema there. A statement that runs on a user's connection names the schema of its operators as well (`pins` checks
//! that).

pub(crate) mod beats;
pub(crate) mod burials;
pub(crate) mod candidates;
mod claim;
pub(crate) mod connections;
mod crashes;
pub(crate) mod creators;
pub(crate) mod fences;
pub(crate) mod guards;
pub(crate) mod history;
pub(crate) mod holders;
pub(crate) mod listener;
pub(crate) mod locks;
pub(crate) mod migrate;
pub(crate) mod notices;
mod owner_writes;
pub(crate) mod payloads;
#[cfg(test)]
mod pins;
pub(crate) mod pods;
pub(crate) mod quarantine;
pub(crate) mod queries;
pub(crate) mod role;
pub(crate) mod runs;
mod start;
pub(crate) mod strangers;
pub(crate) mod streams;
