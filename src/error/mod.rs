//! podlock's opaque error. It says what failed, on what, what state was left, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use uuid::Uuid;

#[cfg(test)]
mod document;
pub(crate) mod rules;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Defines [`ErrorKind`]. All facts about a kind are in one place: its stable name, whether it may pass by itself,
/// whether another pod may succeed at once, its HTTP status, its meaning, the state that it leaves, and what to do. The
/// documentation is made from the same words.
macro_rules! kinds {
    ($($kind:ident = $name:literal, $passes:ident, $elsewhere:ident, $status:literal {
        means: $means:literal,
        state: $state:literal,
        help: $help:literal $(,)?
    })+) => {
        /// The kind of a failure, for code that must tell cases apart. More kinds may be added.
        ///
        /// Each kind says what state is left and what to do. A message may be more exact.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $(
                #[doc = $means]
                ///
                #[doc = $state]
                #[doc = $help]
                $kind,
            )+
        }

        impl ErrorKind {
            /// Every kind that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The kind's stable name, in snake case, for logs and JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// True if the same call may succeed later without a change by anybody. [`Error::is_transient`] is more
            /// exact: it also uses the server's SQLSTATE.
            #[must_use]
            pub const fn is_transient(self) -> bool {
                match self {
                    $(Self::$kind => kinds!(@ $passes),)+
                }
            }

            /// True if the same call may succeed at once on another pod of the service. [`Error::retry_elsewhere`] is
            /// more exact: it also asks whether the call may have been done here all the same.
            #[must_use]
            pub const fn retry_elsewhere(self) -> bool {
                match self {
                    $(Self::$kind => kinds!(@ $elsewhere),)+
                }
            }

            /// The kind's HTTP status. [`Error::http_status`] is more exact: it also uses the server's SQLSTATE.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self {
                    $(Self::$kind => $status,)+
                }
            }

            /// The kind's meaning, the state that it leaves, and what to do.
            #[cfg(test)]
            const fn words(self) -> [&'static str; 3] {
                match self {
                    $(Self::$kind => [$means, $state, $help],)+
                }
            }
        }
    };
    (@ lasting) => { false };
    (@ transient) => { true };
    (@ here) => { false };
    (@ elsewhere) => { true };
}

kinds! {
    Config = "config", lasting, here, 500 {
        means: "A setting is missing, malformed or contradicts another.",
        state: "Nothing was started or sent.",
        help: "Correct the setting, or the word of `DATABASE_URL`, that the message names.",
    }
    Unreachable = "unreachable", transient, here, 503 {
        means: "No server could be reached.",
        state: "No statement was sent.",
        help: "See whether the server runs and whether `DATABASE_URL` names its address. A pod that is up tries again \
               by itself.",
    }
    Tls = "tls", lasting, here, 500 {
        means: "The TLS handshake failed, or a certificate was refused.",
        state: "No statement was sent, and no password.",
        help: "Correct `sslmode` or the certificates that `DATABASE_URL` names, or the server's own.",
    }
    AuthFailed = "auth_failed", lasting, here, 500 {
        means: "The server refused the user or the password.",
        state: "No statement was sent.",
        help: "Correct the user or the password in `DATABASE_URL`, or the server's `pg_hba.conf`.",
    }
    Timeout = "timeout", transient, here, 503 {
        means: "A step did not end within its time limit; the message names the step.",
        state: "A read changed nothing; a write may have been done or not.",
        help: "See whether the server is overloaded, stopped or cut off. Before repeating a write, see its `# Cancel \
               safety`: what holds for a dropped call holds here.",
    }
    Standby = "standby", lasting, here, 503 {
        means: "The server is a standby: it takes no writes and its locks mean nothing.",
        state: "Nothing was written.",
        help: "Point `DATABASE_URL` at the primary, or name all hosts in it. Writes of a run wait for a failover by \
               themselves.",
    }
    PooledLock = "pooled_lock", lasting, here, 500 {
        means: "Something between the pod and the server hands out other backends, or its session locks do nothing.",
        state: "A pod that was starting is not registered; one that was up has ended, and its runs were told to stop.",
        help: "Point `DATABASE_URL` at PostgreSQL itself, or at a pooler in session mode.",
    }
    NameTaken = "name_taken", lasting, here, 500 {
        means: "A live pod holds this name, or somebody who is no pod holds its lock. The message says who.",
        state: "Nothing was registered; the holder is undisturbed.",
        help: "Give each living pod its own name, or wait until the other has ended; or end who is no pod, with \
               `pg_terminate_backend`.",
    }
    KeyCollision = "key_collision", lasting, here, 500 {
        means: "Another name hashes to the same lock key.",
        state: "Nothing was registered; the other pod is undisturbed.",
        help: "Give one of the two another name.",
    }
    SchemaMissing = "schema_missing", lasting, here, 500 {
        means: "podlock's tables are not there.",
        state: "Nothing was changed.",
        help: "Run `podlock migrate up`, let a pod migrate itself, or correct `PODLOCK_SCHEMA`.",
    }
    SchemaIncompatible = "schema_incompatible", lasting, here, 500 {
        means: "podlock's tables are of a version that this binary cannot use.",
        state: "Nothing was changed.",
        help: "Compare `podlock migrate status` with the version of the binary; run a newer one.",
    }
    Forbidden = "forbidden", lasting, here, 500 {
        means: "The role lacks a right.",
        state: "The statement was undone.",
        help: "Grant the role its rights, or run `podlock migrate up` as the owner of the schema.",
    }
    TooManyConnections = "too_many_connections", transient, here, 503 {
        means: "The server has no connection left for us.",
        state: "No statement was sent.",
        help: "Raise `max_connections`, or lower `pool_size`: a pod needs three connections, one more while its \
               streams are read, and its pool.",
    }
    Unsupported = "unsupported", lasting, here, 500 {
        means: "The server is too old, or it or the system lacks something that podlock needs.",
        state: "Nothing was registered.",
        help: "Use PostgreSQL 14 or newer; where the message speaks of a thread, see the limits of the process.",
    }
    SessionLost = "session_lost", transient, here, 503 {
        means: "A connection ended in the middle of a statement.",
        state: "A read changed nothing; a write may have been done or not.",
        help: "Nothing by hand: the connection is made again. Before repeating a write, see its `# Cancel safety`: \
               what holds for a dropped call holds here.",
    }
    Fenced = "fenced", lasting, here, 409 {
        means: "The run is not this attempt's any more: another claimed it, or it was ended.",
        state: "Nothing was written, but perhaps by an earlier try of the same write whose reply was lost: \
               `Error::may_have_been_done`. From a start whose reply was lost: the run was started, and has moved on.",
        help: "In a handler, stop working on the run and return. After a start, follow the run by `Error::run_id`.",
    }
    Detached = "detached", transient, elsewhere, 503 {
        means: "The pod does not hold its lock at the moment.",
        state: "No run was started; those of the pod go on.",
        help: "Start it on another pod (`Error::retry_elsewhere`), or here when `Pod::status` says active again.",
    }
    Draining = "draining", lasting, elsewhere, 503 {
        means: "The pod is stopping and takes no more work.",
        state: "No run was started.",
        help: "Start it on another pod (`Error::retry_elsewhere`), or `Pod::submit` it for whoever has room.",
    }
    Cordoned = "cordoned", lasting, elsewhere, 503 {
        means: "An operator cordoned the pod: it keeps its runs and takes no new ones.",
        state: "No run was started; those of the pod go on.",
        help: "Start it on another pod (`Error::retry_elsewhere`), or `Pod::submit` it for whoever has room. \
               `podlock uncordon` lifts the cordon.",
    }
    Stopped = "stopped", lasting, elsewhere, 503 {
        means: "The pod has ended.",
        state: "No run was started, unless the message says otherwise.",
        help: "Start it on another pod (`Error::retry_elsewhere`); `Pod::failure` says why this one ended by itself, \
               if it did.",
    }
    KeyBusy = "key_busy", lasting, here, 409 {
        means: "A run of this kind and key is running already.",
        state: "No run was started.",
        help: "Follow the run that `Error::run_id` names, or wait until it has ended.",
    }
    NoHandler = "no_handler", lasting, here, 422 {
        means: "This pod has no handler for the kind.",
        state: "No run was started.",
        help: "Register a handler for it, or `Pod::submit` it for a pod that has one.",
    }
    AtCapacity = "at_capacity", transient, elsewhere, 503 {
        means: "The pod runs as many runs as it may.",
        state: "No run was started.",
        help: "Retry later or on another pod, raise `capacity`, or `Pod::submit` it.",
    }
    InvalidInput = "invalid_input", lasting, here, 422 {
        means: "A value given by the caller cannot be used.",
        state: "Nothing was written.",
        help: "Correct the value that the message names.",
    }
    TooLarge = "too_large", lasting, here, 413 {
        means: "A value is larger than its limit.",
        state: "Nothing was written. A run whose handler returned it is `failed`.",
        help: "Store it elsewhere and output its location, or raise the limit that the message names.",
    }
    TooSlow = "too_slow", lasting, here, 500 {
        means: "A write did not end in time, several times, while a small write of the same run did each time: it is \
                too large for the link or the server.",
        state: "The write may have been done where `Error::may_have_been_done` says so; else nothing was written. The \
                run goes on.",
        help: "Write less at once, or raise `statement_timeout`.",
    }
    NotFound = "not_found", lasting, here, 404 {
        means: "There is no such thing.",
        state: "Nothing was written.",
        help: "Correct the name or id; `podlock pods list` and `podlock runs list` show what is there.",
    }
    Stuck = "stuck", lasting, here, 500 {
        means: "A task did not end although it was aborted.",
        state: "The pod keeps its lock, so that nobody resumes the run beside it.",
        help: "End the process. Let handlers await, or do what blocks on `spawn_blocking`.",
    }
    Database = "database", lasting, here, 500 {
        means: "Any other error of the server.",
        state: "The statement was undone.",
        help: "Read the server's message and its log. What SQLSTATE it was is `Error::sqlstate`.",
    }
}

/// Classes of SQLSTATE that may pass by themselves: 40, serialisation failures and deadlocks; 53, a server that lacks
/// resources.
pub(crate) const PASSING_CLASSES: [&str; 2] = ["40", "53"];

/// How long a client should wait before it retries, if the pod cannot serve it now. A shorter wait would not give a
/// load balancer the time to see that the pod is not ready. A longer one would keep a person waiting.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

type Source = Box<dyn StdError + Send + Sync>;

/// Any failure of podlock.
///
/// Tell cases apart by [`Error::kind`] or the predicates. The text is for people: what failed, on what, what state was
/// left, what to do. It never contains a password. [`ErrorKind`] has the same facts for each kind. `docs/errors.md`
/// lists them, and the kind of each SQLSTATE of the server.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    what: String,
    state: Option<String>,
    help: Option<String>,
    run: Option<Uuid>,
    sqlstate: Option<String>,
    unconnected: bool,
    in_doubt: bool,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let inner = Inner {
            kind,
            what: what.into(),
            state: None,
            help: None,
            run: None,
            sqlstate: None,
            unconnected: false,
            in_doubt: false,
            source: None,
        };
        Self(Box::new(inner))
    }

    /// Sets what state the failure left.
    pub(crate) fn state(mut self, left: impl Into<String>) -> Self {
        self.0.state = Some(left.into());
        self
    }

    /// Sets what the reader should do.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The id of the run that the error is about. [`crate::id`] has the typed form.
    pub(crate) fn set_run(&mut self, run: Uuid) {
        self.0.run = Some(run);
    }

    pub(crate) fn run(&self) -> Option<Uuid> {
        self.0.run
    }

    pub(crate) fn with_sqlstate(mut self, code: &str) -> Self {
        self.0.sqlstate = Some(code.to_owned());
        self
    }

    /// Says what state may be left, for a write whose reply did not come.
    pub(crate) fn in_doubt(self, left: &str) -> Self {
        match self.0.kind {
            ErrorKind::SessionLost | ErrorKind::Timeout => self.state(left),
            _ => self,
        }
    }

    /// Marks a call that was refused because it had been done before.
    pub(crate) fn done_before(mut self) -> Self {
        self.0.in_doubt = true;
        self
    }

    /// Marks a write that was refused in the end, after an earlier try of it got no reply.
    pub(crate) fn after_a_lost_reply(mut self) -> Self {
        self.0.in_doubt = true;
        self.state("this write was not accepted; an earlier try of it, whose reply was lost, may have been")
    }

    /// Says whether a try may have been accepted, for a write that was given up because it took too long.
    pub(crate) fn given_up(mut self, in_doubt: bool) -> Self {
        self.0.in_doubt = in_doubt;
        self.state(if in_doubt {
            "a try whose reply did not come may have been accepted; the run goes on"
        } else {
            "nothing was written; the run goes on"
        })
    }

    /// A copy, for another caller that waited for the same thing.
    pub(crate) fn for_another(&self) -> Self {
        let Inner { kind, what, state, help, run, sqlstate, unconnected, in_doubt, source } = &*self.0;
        let inner = Inner {
            kind: *kind,
            what: what.clone(),
            state: state.clone(),
            help: help.clone(),
            run: *run,
            sqlstate: sqlstate.clone(),
            unconnected: *unconnected,
            in_doubt: *in_doubt,
            source: source.as_ref().map(|source| chain(&**source).into()),
        };
        Self(Box::new(inner))
    }

    /// Marks that no connection could be had, so nothing was sent.
    pub(crate) fn unconnected(mut self) -> Self {
        self.0.unconnected = true;
        self
    }

    /// True if no connection could be had, for any reason. Nothing was sent then.
    pub(crate) fn is_unconnected(&self) -> bool {
        self.0.unconnected
    }

    /// True for a statement that was sent and did not end in time. A smaller one may.
    pub(crate) fn is_slow(&self) -> bool {
        self.0.kind == ErrorKind::Timeout && !self.0.unconnected
    }

    /// Adds the step in which the failure happened.
    pub(crate) fn during(mut self, step: &str) -> Self {
        self.0.what = format!("{step}: {}", self.0.what);
        self
    }

    /// The kind of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// True if the run belongs to another attempt by now, or has ended: stop working on it.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.0.kind == ErrorKind::Fenced
    }

    /// True if a connection to the server was lost.
    #[must_use]
    pub fn is_session_lost(&self) -> bool {
        self.0.kind == ErrorKind::SessionLost
    }

    /// True if the call may have taken effect all the same, because a reply was lost. For a call that only reads it
    /// means nothing.
    #[must_use]
    pub fn may_have_been_done(&self) -> bool {
        // A server that ends a session may do so after its commit. A server that cancels a statement has rolled it
        // back.
        let no_reply = match self.0.kind {
            ErrorKind::SessionLost => true,
            ErrorKind::Timeout => self.0.sqlstate.is_none(),
            _ => false,
        };
        self.0.in_doubt || (no_reply && !self.0.unconnected)
    }

    /// True if the same call may succeed later without a change by anybody.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let class = self.sqlstate().and_then(|code| code.get(..2));
        self.0.kind.is_transient() || class.is_some_and(|class| PASSING_CLASSES.contains(&class))
    }

    /// True if the same call may succeed at once on another pod of the service, and certainly took no effect here: this
    /// pod drains, has ended, has lost its lock, or has no room.
    ///
    /// A refusal by the database is the same on every pod, so it is never retried elsewhere.
    #[must_use]
    pub fn retry_elsewhere(&self) -> bool {
        self.0.kind.retry_elsewhere() && !self.0.in_doubt
    }

    /// The HTTP status for this error. The crate's own router answers with it.
    ///
    /// 503: the call may succeed later ([`Error::is_transient`]) or on another pod ([`Error::retry_elsewhere`]). 409:
    /// the key is busy, or another attempt has the run. 404, 413 or 422: the request is at fault. 500: only a person
    /// can correct the cause.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        let status = self.0.kind.http_status();
        if self.0.kind != ErrorKind::Database {
            return status;
        }
        match self.sqlstate() {
            // Class 22 is a value that the server cannot store, such as `\u0000` in a text. 54000 is a value that is
            // too long for an index, such as a key of 10 kB.
            Some(code) if code.starts_with("22") || code == "54000" => 422,
            _ if self.is_transient() => 503,
            _ => status,
        }
    }

    /// How long a client should wait before it sends the same request again, to this pod or another. `None` if that
    /// could do it a second time ([`Error::may_have_been_done`]), or would not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        (self.http_status() == 503 && !self.may_have_been_done()).then_some(RETRY_AFTER)
    }

    /// True if a live pod holds the name.
    #[must_use]
    pub fn is_name_taken(&self) -> bool {
        self.0.kind == ErrorKind::NameTaken
    }

    /// The server's SQLSTATE, if the server answered.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        if let Some(state) = &self.0.state {
            write!(f, "; {state}")?;
        }
        if let Some(help) = &self.0.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `fn main() -> Result<(), Box<dyn Error>>` prints this, so it is for people as well.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_failed_what_is_left_and_what_to_do() {
        let error = Error::new(ErrorKind::Timeout, "the lock was not granted within 2s")
            .state("nothing was registered")
            .help("look at studio_pod_status")
            .during("boot of pod a");
        assert_eq!(
            error.to_string(),
            "boot of pod a: the lock was not granted within 2s; nothing was registered; look at studio_pod_status"
        );
        assert!(error.is_transient() && !error.is_fenced());
    }

    #[test]
    fn an_error_may_pass_by_its_kind_or_by_what_the_server_said() {
        let error = |kind, code| Error::new(kind, "x").with_sqlstate(code);
        for code in ["40001", "40P01", "53100", "53300"] {
            assert!(error(ErrorKind::Database, code).is_transient(), "{code}");
        }
        for code in ["42501", "22P05", "4", ""] {
            assert!(!error(ErrorKind::Database, code).is_transient(), "{code}");
        }
        assert!(error(ErrorKind::Timeout, "57014").is_transient());
        assert!(!Error::new(ErrorKind::Tls, "x").is_transient());
    }

    /// Checks the answer of every kind, so that no kind is left to a default. A client is told to send again only calls
    /// that may succeed.
    #[test]
    fn each_kind_says_where_it_may_be_retried_and_which_http_status_it_is() {
        use ErrorKind as K;
        for kind in K::ALL.iter().copied() {
            let (elsewhere, status) = match kind {
                K::Detached | K::Draining | K::Cordoned | K::Stopped | K::AtCapacity => (true, 503),
                // A pod that is up meets a standby during a failover.
                K::Unreachable | K::Timeout | K::TooManyConnections | K::SessionLost | K::Standby => (false, 503),
                // These come from a start. The run was started, and the client must not start another.
                K::KeyBusy | K::Fenced => (false, 409),
                K::NoHandler | K::InvalidInput => (false, 422),
                K::TooLarge => (false, 413),
                K::NotFound => (false, 404),
                K::Config
                | K::Tls
                | K::AuthFailed
                | K::PooledLock
                | K::NameTaken
                | K::KeyCollision
                | K::SchemaMissing
                | K::SchemaIncompatible
                | K::Forbidden
                | K::Unsupported
                | K::Stuck
                | K::TooSlow
                | K::Database => (false, 500),
            };
            let error = Error::new(kind, "x");
            assert_eq!((error.retry_elsewhere(), error.http_status()), (elsewhere, status), "{kind:?}");
            let may_succeed = error.is_transient() || error.retry_elsewhere() || kind == K::Standby;
            assert_eq!(error.http_status() == 503, may_succeed, "{kind:?}");
            let says_another_pod = kind.words()[2].contains("on another pod");
            assert_eq!(error.retry_elsewhere(), says_another_pod, "{kind:?}: its words say otherwise");
            assert_eq!(error.retry_after().is_some(), status == 503 && !error.may_have_been_done(), "{kind:?}");
        }
    }

    #[test]
    fn what_the_server_said_decides_the_status_of_an_error_of_the_database() {
        for (code, status) in [("22P05", 422), ("54000", 422), ("42501", 500), ("53100", 503), ("40001", 503)] {
            let error = Error::new(ErrorKind::Database, "x").with_sqlstate(code);
            assert_eq!((error.http_status(), error.retry_after().is_some()), (status, status == 503), "{code}");
        }
    }

    #[test]
    fn what_may_have_been_done_is_not_to_be_sent_again() {
        let stopped = Error::new(ErrorKind::Stopped, "x").done_before();
        assert!(!stopped.retry_elsewhere() && stopped.retry_after().is_none());
        let lost = Error::new(ErrorKind::SessionLost, "x");
        assert_eq!((lost.http_status(), lost.retry_after()), (503, None));
        assert_eq!(lost.unconnected().retry_after(), Some(RETRY_AFTER));
    }

    #[test]
    fn only_a_write_whose_reply_did_not_come_is_in_doubt() {
        let left = |kind| Error::new(kind, "x").in_doubt("perhaps").to_string();
        assert_eq!(
            (left(ErrorKind::Timeout), left(ErrorKind::SessionLost)),
            ("x; perhaps".into(), "x; perhaps".into())
        );
        assert_eq!(left(ErrorKind::Forbidden), "x");
        let may = |error: Error| error.may_have_been_done();
        assert!(may(Error::new(ErrorKind::Timeout, "x")) && may(Error::new(ErrorKind::SessionLost, "x")));
        assert!(
            !may(Error::new(ErrorKind::SessionLost, "x").unconnected()) && !may(Error::new(ErrorKind::Fenced, "x"))
        );
        assert!(!may(Error::new(ErrorKind::Timeout, "the server cancelled it").with_sqlstate("57014")));
        assert!(may(Error::new(ErrorKind::Fenced, "x").after_a_lost_reply()));
    }
}
