//! One request to another host, on a connection of its own: the name lookup, TCP, TLS and HTTP.
//!
//! No proxy, no pool of connections, no redirect and no second try comes between the caller and the host.

mod dial;
#[cfg(feature = "http")]
mod exchange;
mod failure;

pub(crate) use dial::Dialer;
#[cfg(feature = "http")]
pub(crate) use exchange::{Tls, host_of, send};
pub(crate) use failure::{Failure, Limit};
