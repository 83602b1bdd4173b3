//! The driver's and the server's errors as [`Error`]s.

use super::conninfo::Target;
use super::tls;
use crate::error::rules::{REFUSED_BY_DRIVER, classify};
use crate::error::{Error, ErrorKind, chain};

/// Translates an error of a handshake, in which TLS may be what failed.
pub(crate) fn translate_handshake(step: &str, error: tokio_postgres::Error) -> Error {
    if let Some(fault) = tls::fault(&error) {
        let text = format!("{step}: {}", chain(&error));
        return Error::new(ErrorKind::Tls, text).todo(tls::advice(fault)).caused_by(error);
    }
    if tls::is_unusable_host(&error) {
        return Error::new(ErrorKind::Config, format!("{step}: no certificate can be made out to this host"))
            .left("no connection was made")
            .todo("name the host by a DNS name or an address")
            .caused_by(error);
    }
    translate(step, error)
}

/// Whether an answer of the server leaves the connection as good as before. A kept plan that no longer fits its tables
/// (0A000) would fail again and again.
pub(crate) fn leaves_sound(sqlstate: &str) -> bool {
    sqlstate != "0A000"
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
        return if lost { translated.todo("nothing by hand: the connection is made again") } else { translated };
    };
    let (kind, todo) = classify(db.code());
    let code = db.code().code().to_owned();
    let hint = db.hint().map_or_else(String::new, |h| format!(" ({h})"));
    let translated = Error::new(kind, format!("{step}: the server said {:?}{hint} [{code}]", db.message()));
    translated.todo(todo).with_sqlstate(&code).caused_by(error)
}

/// A step that did not end within `limit`.
pub(crate) fn timed_out(step: &str, limit: std::time::Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("{step}: no answer within {limit:?}"))
        .todo("see whether the server is overloaded, stopped or unreachable")
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

/// A server that takes no writes, and whose locks mean nothing.
pub(crate) fn standby(target: &Target) -> Error {
    Error::new(ErrorKind::Standby, format!("{target} is a standby: its locks mean nothing"))
        .left("the connection was closed")
        .todo("point DATABASE_URL at the primary, or name all hosts in it")
}

fn refused_by_driver(step: &str, error: &tokio_postgres::Error) -> Option<Error> {
    let text = chain(error);
    // A connection that broke in the handshake says nothing about TLS.
    if is_io(error) {
        return None;
    }
    let (_, kind, todo) = REFUSED_BY_DRIVER.iter().find(|(begins, ..)| text.starts_with(begins))?;
    Some(Error::new(*kind, format!("{step}: {text}")).todo(*todo))
}

pub(crate) fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>())
}
