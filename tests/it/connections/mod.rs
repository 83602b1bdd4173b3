//! Connections: what TLS, passwords and libpq's words come to on a real server.

pub(crate) mod authority;
mod passwords;
mod tls;
