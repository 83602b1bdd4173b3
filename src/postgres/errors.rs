//! The server's errors as ours: one table of SQLSTATEs.

use tokio_postgres::error::SqlState;

use super::conninfo::Target;
use super::tls;
use crate::error::{Error, ErrorKind};

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
    let translated = if todo.is_empty() { translated } else { translated.todo(todo) };
    translated.with_sqlstate(&code).caused_by(error)
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

fn classify(code: &SqlState) -> (ErrorKind, &'static str) {
    let table: &[(&SqlState, ErrorKind, &str)] = &[
        (&SqlState::INVALID_PASSWORD, ErrorKind::AuthFailed, "correct the user or the password in DATABASE_URL"),
        (
            &SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            ErrorKind::AuthFailed,
            "correct the user in DATABASE_URL, or the server's pg_hba.conf",
        ),
        (&SqlState::INVALID_CATALOG_NAME, ErrorKind::Config, "correct the database in DATABASE_URL, or create it"),
        (
            &SqlState::TOO_MANY_CONNECTIONS,
            ErrorKind::TooManyConnections,
            "raise max_connections, or lower pool_size: a pod needs three connections and its pool",
        ),
        (
            &SqlState::INSUFFICIENT_PRIVILEGE,
            ErrorKind::Forbidden,
            "grant the role its rights, or run `podlock migrate up` as the owner of the schema",
        ),
        (&SqlState::UNDEFINED_TABLE, ErrorKind::SchemaMissing, "run `podlock migrate up`, or correct PODLOCK_SCHEMA"),
        (
            &SqlState::UNDEFINED_FUNCTION,
            ErrorKind::SchemaMissing,
            "run `podlock migrate up`, or correct PODLOCK_SCHEMA",
        ),
        (&SqlState::UNDEFINED_COLUMN, ErrorKind::SchemaMissing, "run `podlock migrate up`, or correct PODLOCK_SCHEMA"),
        (
            &SqlState::INVALID_SCHEMA_NAME,
            ErrorKind::SchemaMissing,
            "run `podlock migrate up`, or correct PODLOCK_SCHEMA",
        ),
        (&SqlState::READ_ONLY_SQL_TRANSACTION, ErrorKind::Standby, "point DATABASE_URL at the primary"),
        (&SqlState::QUERY_CANCELED, ErrorKind::Timeout, "see whether the server is overloaded"),
        (&SqlState::LOCK_NOT_AVAILABLE, ErrorKind::Timeout, "see pg_locks for who holds the lock"),
        (&SqlState::NO_DATA_FOUND, ErrorKind::NotFound, ""),
        (&SqlState::CANNOT_CONNECT_NOW, ErrorKind::Unreachable, "wait until the server is up"),
        (&SqlState::ADMIN_SHUTDOWN, ErrorKind::SessionLost, "nothing by hand: the connection is made again"),
        (&SqlState::CRASH_SHUTDOWN, ErrorKind::SessionLost, "nothing by hand: the connection is made again"),
        (
            &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            ErrorKind::SessionLost,
            "nothing by hand: the connection is made again",
        ),
        (&SqlState::IDLE_SESSION_TIMEOUT, ErrorKind::SessionLost, "nothing by hand: the connection is made again"),
    ];
    if let Some((_, kind, todo)) = table.iter().find(|(known, ..)| *known == code) {
        return (*kind, todo);
    }
    match code.code().get(..2) {
        Some("08") => (ErrorKind::SessionLost, "nothing by hand: the connection is made again"),
        Some("22") => (ErrorKind::InvalidInput, "correct the value"),
        _ => (ErrorKind::Database, ""),
    }
}

/// What the driver itself refuses before the server has said anything: it gives these no code, only a text.
fn refused_by_driver(step: &str, error: &tokio_postgres::Error) -> Option<Error> {
    let text = chain(error);
    let (kind, todo) = if text.contains("password missing") || text.starts_with("authentication error") {
        (ErrorKind::AuthFailed, "put the password into DATABASE_URL, or let the server's pg_hba.conf do without one")
    } else if text.starts_with("invalid configuration") {
        (ErrorKind::Config, "correct DATABASE_URL")
    } else if text.starts_with("error performing TLS handshake") || text.contains("received fatal alert") {
        (ErrorKind::Tls, tls::advice(&text))
    } else {
        return None;
    };
    Some(Error::new(kind, format!("{step}: {text}")).todo(todo))
}

pub(crate) fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|s| s.is::<std::io::Error>())
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
