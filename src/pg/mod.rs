//! Connections to PostgreSQL. No code here depends on podlock's tables or settings: this folder could become a crate
//! of its own, once its messages no longer speak of podlock and `statement` is told the prefix `studio_`.
//!
//! `conninfo` reads libpq's connection strings, and `tls` their words about TLS. `dial` opens sockets with both.
//! `session` makes dedicated connections of these sockets, and `pool` makes the shared ones. `facts` reads what a server
//! says about itself. `pooler` proves that a session stays with one backend before anything is set on the session.
//! `knock` asks whether a server accepts connections. `txn` runs statements and transactions on a session, `statement`
//! reads statements from files, `schema` puts the schema's name into them, and `reply` reads the returned rows.
//!
//! Invariant: nothing here runs a statement on a table of podlock's. A caller passes its own facts as
//! [`limits::Limits`], [`session::Purpose`] and [`session::ApplicationName`].

pub(crate) mod conninfo;
pub(crate) mod credentials;
pub(crate) mod dial;
pub(crate) mod errors;
pub(crate) mod facts;
pub(crate) mod knock;
pub(crate) mod limits;
pub(crate) mod pool;
pub(crate) mod pooler;
pub(crate) mod reply;
pub(crate) mod schema;
pub(crate) mod session;
pub(crate) mod statement;
pub(crate) mod tls;
pub(crate) mod txn;
