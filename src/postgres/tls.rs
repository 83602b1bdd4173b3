//! The one source of TLS settings for all four kinds of connection.

use tokio_postgres::NoTls;

/// What every connection of podlock negotiates TLS with.
pub(crate) type Tls = NoTls;

/// The connector that the dialled sessions and the pool share.
pub(crate) fn connector() -> Tls {
    NoTls
}
