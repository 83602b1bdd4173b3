//! Translates errors of the driver and the server into [`Error`]s.

use super::conninfo::Target;
use super::limits::Limits;
use super::tls;
use crate::error::rules::{REFUSED_BY_DRIVER, classify};
use crate::error::{Error, ErrorKind, chain};

/// Translates an error of a handshake. The cause may be TLS.
pub(crate) fn translate_handshake(step: &str, error: tokio_postgres::Error) -> Error {
    if let Some(fault) = tls::fault(&error) {
        let text = format!("{step}: {}", chain(&error));
        return Error::new(ErrorKind::Tls, text).help(tls::advice(fault)).caused_by(error);
    }
    if tls::is_unusable_host(&error) {
        return Error::new(ErrorKind::Config, format!("{step}: no certificate can be made out to this host"))
            .state("no connection was made")
            .help("name the host by a DNS name or an address")
            .caused_by(error);
    }
    translate(step, error)
}

/// Whether a server's answer leaves the connection usable. A cached plan that no longer fits its tables (0A000) would
/// fail again and again.
pub(crate) fn leaves_sound(sqlstate: &str) -> bool {
    sqlstate != "0A000"
}

/// Whether the server answered with an error that leaves the session usable.
pub(crate) fn refused(error: &Error) -> bool {
    error.sqlstate().is_some_and(leaves_sound) && !error.is_session_lost()
}

/// Translates a driver's error that happened in `step`.
pub(crate) fn translate(step: &str, error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        if let Some(refused) = refused_by_driver(step, &error) {
            return refused.caused_by(error);
        }
        let lost = error.is_closed() || is_io(&error);
        let kind = if lost { ErrorKind::SessionLost } else { ErrorKind::Database };
        let translated = Error::new(kind, format!("{step}: {}", chain(&error))).caused_by(error);
        return if lost { translated.help("nothing by hand: the connection is made again") } else { translated };
    };
    let (kind, todo) = classify(db.code());
    let code = db.code().code().to_owned();
    let hint = db.hint().map_or_else(String::new, |h| format!(" ({h})"));
    let translated = Error::new(kind, format!("{step}: the server said {:?}{hint} [{code}]", db.message()));
    translated.help(todo).with_sqlstate(&code).caused_by(error)
}

/// The error of a step that did not end within `limit`.
pub(crate) fn timed_out(step: &str, limit: std::time::Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("{step}: no answer within {limit:?}"))
        .help("see whether the server is overloaded, stopped or unreachable")
}

/// Awaits an answer for at most `limit`.
pub(crate) async fn within<T>(
    step: &str,
    limit: std::time::Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(translate(step, e)),
        Err(_) => Err(timed_out(step, limit)),
    }
}

/// The error of a server that accepts no writes, and whose locks protect nothing.
pub(crate) fn standby(target: &Target) -> Error {
    Error::new(ErrorKind::Standby, format!("{target} is a standby: its locks mean nothing"))
        .state("the connection was closed")
        .help("point DATABASE_URL at the primary, or name all hosts in it")
}

fn refused_by_driver(step: &str, error: &tokio_postgres::Error) -> Option<Error> {
    let text = chain(error);
    // A connection that broke during the handshake says nothing about TLS.
    if is_io(error) {
        return None;
    }
    let (_, kind, todo) = REFUSED_BY_DRIVER.iter().find(|(begins, ..)| text.starts_with(begins))?;
    Some(Error::new(*kind, format!("{step}: {text}")).help(*todo))
}

pub(crate) fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>())
}

/// PgBouncer's answer in statement mode, and to a client that waited too long for a backend.
const PROTOCOL_VIOLATION: &str = "08P01";
/// How many connections hold transactions open while the check for a pooler tests another one. With more, a pooler more
/// surely gives the tested connection another backend. But each needs a free place in the pooler and on the server.
pub(super) const OTHERS: usize = 3;

pub(super) fn refuses_transactions(error: Error) -> Error {
    if error.sqlstate() == Some(PROTOCOL_VIOLATION) {
        pooled("it takes no transactions").caused_by(error)
    } else {
        error
    }
}

/// The error for a transaction pooler. A backend that changes during a pod's life gets the same error.
pub(crate) fn pooled(evidence: &str) -> Error {
    Error::new(ErrorKind::PooledLock, format!("session locks mean nothing on this connection: {evidence}")).help(
        "point DATABASE_URL at PostgreSQL itself, or at a pooler in session mode (PgBouncer: pool_mode = session); \
         transaction and statement pooling can carry neither a session lock nor a session's settings",
    )
}

/// Adds a full pooler as a possible cause if a session was not given in time. Such a pooler lets a client log in, and
/// then makes it wait for its first answer.
pub(crate) fn name_full_pool(error: Error, limits: &Limits) -> Error {
    let Limits { pool, dedicated, .. } = *limits;
    let advice = format!(
        "see whether the server is overloaded, stopped or unreachable; a pooler in between may be full: a pod needs up \
         to {} connections ({dedicated} sessions of its own and its pool of {pool}), and {OTHERS} more while it starts \
         (PgBouncer: pool_size, default_pool_size)",
        dedicated + pool
    );
    if error.sqlstate() == Some(PROTOCOL_VIOLATION) && error.to_string().contains("query_wait_timeout") {
        return Error::new(ErrorKind::Timeout, "the pooler in between had no connection to the server to give")
            .state("the connection was closed")
            .help(advice)
            .caused_by(error);
    }
    if error.kind() == ErrorKind::Timeout { error.help(advice) } else { error }
}
