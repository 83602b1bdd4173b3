//! All SQL and every socket.
//!
//! `conninfo` understands connection strings and `tls` their words about TLS; `dial` opens sockets with both, `session`
//! makes dedicated connections of them, `pool` the shared ones; the rest are statements, one function each, `_in_txn`
//! where it joins a transaction. Every built-in is called by its qualified name, every table of ours by the schema's,
//! so that nobody's `search_path` can change what a statement means. On sessions of ours the `search_path` is `pg_catalog`, so
//! operators need no schema there; what runs on a user's connection names theirs as well (`pins` checks that).

pub(crate) mod beats;
pub(crate) mod burials;
pub(crate) mod candidates;

pub(crate) mod conninfo;
mod crashes;
pub(crate) mod creators;
pub(crate) mod dial;
pub(crate) mod errors;
pub(crate) mod fences;
pub(crate) mod guards;
pub(crate) mod history;
pub(crate) mod holders;
pub(crate) mod locks;
pub(crate) mod migrate;
pub(crate) mod notices;
pub(crate) mod payloads;
#[cfg(test)]
mod pins;
pub(crate) mod plain;
pub(crate) mod pods;
pub(crate) mod pool;
pub(crate) mod pooler;
pub(crate) mod quarantine;
pub(crate) mod queries;
pub(crate) mod reply;
pub(crate) mod runs;
pub(crate) mod schema;
pub(crate) mod session;
pub(crate) mod strangers;
pub(crate) mod streams;
pub(crate) mod tls;
pub(crate) mod txn;
