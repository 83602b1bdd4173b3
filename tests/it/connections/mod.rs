//! Connections: what TLS, passwords and libpq's words come to on a real server.

mod authority;
mod passwords;
mod tls;
