//! One opaque error: what failed, on what, in what state it left things, what to do.

use std::error::Error as StdError;
use std::fmt;

use crate::id::RunId;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, for code that must tell cases apart. More kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is missing, malformed or contradicts another.
    Config,
    /// No server could be reached.
    Unreachable,
    /// The server refused the user or the password.
    AuthFailed,
    /// The TLS handshake failed, or a certificate was refused.
    Tls,
    /// A step did not end within its time limit; the message names the step.
    Timeout,
    /// The server is a standby: it takes no writes and its locks mean nothing.
    Standby,
    /// Something between the pod and the server hands out other backends, or its session locks do nothing.
    PooledLock,
    /// A live pod holds this name.
    NameTaken,
    /// Another name hashes to the same lock key.
    KeyCollision,
    /// podlock's tables are not there.
    SchemaMissing,
    /// podlock's tables are of a version that this binary cannot use.
    SchemaIncompatible,
    /// The role lacks a right.
    Forbidden,
    /// The server has no connection left for us.
    TooManyConnections,
    /// The server is too old or lacks something that podlock needs.
    Unsupported,
    /// A connection ended in the middle of a statement.
    SessionLost,
    /// The run is not this attempt's any more: another claimed it, or it was ended.
    Fenced,
    /// The pod does not hold its lock at the moment.
    Detached,
    /// The pod is stopping and takes no more work.
    Draining,
    /// The pod has ended.
    Stopped,
    /// A run of this kind and key is running already.
    KeyBusy,
    /// This pod has no handler for the kind.
    NoHandler,
    /// The pod runs as many runs as it may.
    AtCapacity,
    /// A value given by the caller cannot be used.
    InvalidInput,
    /// There is no such thing.
    NotFound,
    /// A task did not end although it was aborted.
    Stuck,
    /// Any other error of the server.
    Database,
}

impl ErrorKind {
    /// The kind's stable name, in snake case, for logs and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unreachable => "unreachable",
            Self::AuthFailed => "auth_failed",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Standby => "standby",
            Self::PooledLock => "pooled_lock",
            Self::NameTaken => "name_taken",
            Self::KeyCollision => "key_collision",
            Self::SchemaMissing => "schema_missing",
            Self::SchemaIncompatible => "schema_incompatible",
            Self::Forbidden => "forbidden",
            Self::TooManyConnections => "too_many_connections",
            Self::Unsupported => "unsupported",
            Self::SessionLost => "session_lost",
            Self::Fenced => "fenced",
            Self::Detached => "detached",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::KeyBusy => "key_busy",
            Self::NoHandler => "no_handler",
            Self::AtCapacity => "at_capacity",
            Self::InvalidInput => "invalid_input",
            Self::NotFound => "not_found",
            Self::Stuck => "stuck",
            Self::Database => "database",
        }
    }
}

type Source = Box<dyn StdError + Send + Sync>;

/// Any failure of podlock.
///
/// Tell cases apart by [`Error::kind`] or the predicates. The text is for people: what failed, on what, in what
/// state it left things, what to do. It never holds a password.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    what: String,
    left: Option<String>,
    todo: Option<String>,
    run: Option<RunId>,
    sqlstate: Option<String>,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let inner = Inner { kind, what: what.into(), left: None, todo: None, run: None, sqlstate: None, source: None };
        Self(Box::new(inner))
    }

    /// In what state the failure left things.
    pub(crate) fn left(mut self, left: impl Into<String>) -> Self {
        self.0.left = Some(left.into());
        self
    }

    /// What the reader should do.
    pub(crate) fn todo(mut self, todo: impl Into<String>) -> Self {
        self.0.todo = Some(todo.into());
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn about_run(mut self, run: RunId) -> Self {
        self.0.run = Some(run);
        self
    }

    pub(crate) fn with_sqlstate(mut self, code: &str) -> Self {
        self.0.sqlstate = Some(code.to_owned());
        self
    }

    /// Names the step in which a failure of the database happened.
    pub(crate) fn during(mut self, step: &str) -> Self {
        self.0.what = format!("{step}: {}", self.0.what);
        self
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if the run belongs to somebody else by now, or has ended: stop working on it.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.0.kind == ErrorKind::Fenced
    }

    /// True if a connection to the server was lost.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        self.0.kind == ErrorKind::SessionLost
    }

    /// True if the same call may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        // Serialisation failures and deadlocks, and a server short of resources.
        let passing = self.sqlstate().is_some_and(|code| code.starts_with("40") || code.starts_with("53"));
        passing
            || matches!(
                self.0.kind,
                ErrorKind::Unreachable
                    | ErrorKind::Timeout
                    | ErrorKind::TooManyConnections
                    | ErrorKind::SessionLost
                    | ErrorKind::Detached
                    | ErrorKind::AtCapacity
            )
    }

    /// True if a live pod holds the name.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        self.0.kind == ErrorKind::NameTaken
    }

    /// The run that this error is about: for [`ErrorKind::KeyBusy`] the one that holds the key.
    #[must_use]
    pub fn run_id(&self) -> Option<RunId> {
        self.0.run
    }

    /// The server's SQLSTATE, where the server said something.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(left) = &self.0.left {
            write!(f, "; {left}")?;
        }
        if let Some(todo) = &self.0.todo {
            write!(f, "; {todo}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What `fn main() -> Result<(), Box<dyn Error>>` prints: for people as well.
        write!(f, "{self} [{}]", self.0.kind.as_str())?;
        if let Some(source) = &self.0.source {
            write!(f, "\n  caused by: {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_failed_what_is_left_and_what_to_do() {
        let error = Error::new(ErrorKind::Timeout, "the lock was not granted within 2s")
            .left("nothing was registered")
            .todo("look at studio_pod_status")
            .during("boot of pod a");
        assert_eq!(
            error.to_string(),
            "boot of pod a: the lock was not granted within 2s; nothing was registered; look at studio_pod_status"
        );
        assert!(error.is_transient() && !error.is_fenced());
    }
}
