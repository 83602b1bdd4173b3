//! A dedicated connection: it is dialled, set up on the server, and watched until it ends.
//!
//! The server frees a lock, so the server must know when. Each session sets the lease and every other time-out for
//! itself, whatever values the role, the database or a proxy have.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{AsyncMessage, Client, Row, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::conninfo::Target;
use super::dial::{Connection, Dialer, Dialled};
use super::errors::{self, within};
use super::facts::{self, ServerFacts};
use super::knock::Door;
use super::limits::Limits;
use super::reply::Reply;
use super::schema::Schema;
use super::statement::sql;
use super::txn::{BACKEND_PID, BEGIN_IMPATIENTLY, Param, Prepared, Statements, Txn, commit_patience, one};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::timestamp::Timestamp;

/// The oldest server with `idle_session_timeout`.
const OLDEST_SERVER: i32 = 140_000;
/// The most time that we wait for an answer beyond the server's `statement_timeout`.
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// How long a clean close may take before the socket is dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
const WHO: &str = "asking the server who it is";
const IDENTIFY: &str = sql!("identify", "server_facts");
/// Every connection of podlock's runs it, so that a confirmed commit survives a crash.
pub(super) const CONFIRM_COMMITS: &str = sql!("confirm_commits");
/// The server truncates a longer `application_name`.
const APPLICATION_NAME_MAX: usize = 63;

/// The purpose of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// One word for messages and for `application_name`.
    pub(crate) label: &'static str,
    /// Its transactions work between their statements, and may be idle four times as long as a statement may take.
    pub(crate) has_long_transactions: bool,
}

/// The name of the process's connections on the server: `service/instance/label`.
#[derive(Clone, Debug)]
pub(crate) struct ApplicationName {
    pub(crate) service: &'static str,
    /// The name of this process among those of the service. `None` becomes `-`.
    pub(crate) instance: Option<Arc<str>>,
}

impl ApplicationName {
    pub(crate) fn of(&self, label: &str) -> String {
        self.with_suffix(label, "")
    }

    /// A session's name that includes when its backend began, in microseconds. Roles from whom the server hides that
    /// time read it here.
    fn stamped(&self, label: &str, started: Timestamp) -> String {
        self.with_suffix(label, &format!("@{}", started.as_microsecond()))
    }

    /// Shortens the instance if the whole name would be longer than the server keeps.
    fn with_suffix(&self, label: &str, suffix: &str) -> String {
        let (service, instance) = (self.service, self.instance.as_deref().unwrap_or("-"));
        let others = service.len() + "//".len() + label.len() + suffix.len();
        let mut end = instance.len().min(APPLICATION_NAME_MAX.saturating_sub(others));
        while !instance.is_char_boundary(end) {
            end -= 1;
        }
        format!("{service}/{}/{label}{suffix}", &instance[..end])
    }
}

/// Takes the payload of each notification that a session receives. It runs on the task that reads the socket, so it
/// must not block.
pub(crate) type OnNotice = Arc<dyn Fn(&str) + Send + Sync>;

/// The server's process behind a session. A pid can be reused; a pid together with its start cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) pid: i32,
    pub(crate) started: Timestamp,
}

/// A dedicated connection.
pub(crate) struct Session {
    client: Client,
    purpose: Purpose,
    schema: Schema,
    backend: Backend,
    facts: ServerFacts,
    door: Door,
    limit: Duration,
    /// Our role may not see when our backend began, so the session's name includes it.
    is_hidden: bool,
    /// The server's version, as `server_version_num`.
    version: i32,
    /// When the server started. No two servers, and no two starts of one, have the same.
    server_started: Timestamp,
    prepared: HashMap<&'static str, Statement>,
    /// The task that reads the socket sets the reason when the connection ends, and wakes all who wait.
    ended: watch::Receiver<Option<Arc<str>>>,
    driver: AbortOnDropHandle<()>,
}

/// Opens sessions. It has the servers, the limits and the name.
#[derive(Clone)]
pub(crate) struct Opener {
    pub(crate) dialer: Dialer,
    pub(crate) limits: Limits,
    pub(crate) schema: Schema,
    pub(crate) name: ApplicationName,
}

impl Opener {
    /// Tries each host in turn until one is a primary, and sets the session up there. Call this only after
    /// [`super::pooler`] has shown that a session stays with one backend. Through a transaction pooler the settings
    /// would stay on a backend that serves others.
    ///
    /// Cancel safe: a dropped call closes what it opened.
    pub(crate) async fn open(&self, purpose: impl Into<Purpose>) -> Result<Session> {
        self.open_and_set_up(purpose.into(), None).await
    }

    /// The same as [`Opener::open`], for a session that LISTENs.
    pub(crate) async fn open_listening(&self, purpose: impl Into<Purpose>, on_notice: OnNotice) -> Result<Session> {
        self.open_and_set_up(purpose.into(), Some(on_notice)).await
    }

    async fn open_and_set_up(&self, purpose: Purpose, on_notice: Option<OnNotice>) -> Result<Session> {
        let mut attempts = self.dialer.attempts();
        while let Some(target) = attempts.next() {
            let opened = async {
                let session = self.open_at(target, purpose, on_notice.clone()).await?;
                session.set_up(self).await.map(|()| session)
            };
            if let Some(opened) = attempts.ended(opened.await) {
                return Ok(opened);
            }
        }
        Err(attempts.give_up())
    }

    /// The same as [`Opener::open`], without any setting: the session leaves nothing behind for the next client of its
    /// backend.
    pub(crate) async fn open_bare(&self, purpose: impl Into<Purpose>) -> Result<Session> {
        let purpose = purpose.into();
        let mut attempts = self.dialer.attempts();
        while let Some(target) = attempts.next() {
            if let Some(opened) = attempts.ended(self.open_at(target, purpose, None).await) {
                return Ok(opened);
            }
        }
        Err(attempts.give_up())
    }

    async fn open_at(&self, target: &Target, purpose: Purpose, on_notice: Option<OnNotice>) -> Result<Session> {
        let dialled = self.dialer.dial(target, &self.name.of(purpose.label)).await;
        let session = async { Session::identified(dialled?, self, target, purpose, on_notice).await };
        session.await.map_err(|e| errors::name_full_pool(e, &self.limits))
    }
}

impl Session {
    async fn identified(
        dialled: Dialled,
        opener: &Opener,
        target: &Target,
        purpose: Purpose,
        on_notice: Option<OnNotice>,
    ) -> Result<Self> {
        let Dialled { client, connection, local_port, door } = dialled;
        let (ended_tx, ended) = watch::channel(None);
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let cause = drive(connection, on_notice.as_deref()).await;
            ended_tx.send_replace(Some(cause.into()));
        }));
        let facts = ServerFacts::DEFAULT;
        // The server's own limit is shorter, and leaves the session usable. Ours is for a server that does not answer.
        let limit = opener.limits.statement + (opener.limits.statement / 4).min(PATIENCE_MAX);
        let schema = opener.schema.clone();
        let prepared = HashMap::new();
        let backend = Backend { pid: 0, started: Timestamp::UNIX_EPOCH };
        let (is_hidden, version, server_started) = (false, 0, Timestamp::UNIX_EPOCH);
        let mut session = Self {
            client,
            purpose,
            schema,
            backend,
            facts,
            door,
            limit,
            is_hidden,
            version,
            server_started,
            prepared,
            ended,
            driver,
        };
        session.identify(target, local_port).await?;
        Ok(session)
    }

    /// Makes the settings on the server that a session of ours needs, for as long as the session lives.
    pub(crate) async fn set_up(&self, opener: &Opener) -> Result<()> {
        let step = self.step_name("setting the session's time-outs");
        let mut sets = set_statements(&opener.limits, self.purpose, self.version);
        sets.push_str(&format!("{};", opener.schema.sql(CONFIRM_COMMITS)));
        if self.is_hidden {
            let name = opener.name.stamped(self.purpose.label, self.backend.started);
            sets.push_str(&format!("SET application_name = '{}';", name.replace('\'', "''")));
        }
        self.within(&step, self.client.batch_execute(&sets)).await
    }

    /// Gives the session another purpose: its name and its settings on the server become those of a session that is
    /// opened for it. To open another one costs the server ten times as much.
    pub(crate) async fn turn_into(&mut self, opener: &Opener, purpose: impl Into<Purpose>) -> Result<()> {
        self.purpose = purpose.into();
        let name = opener.name.of(self.purpose.label).replace('\'', "''");
        self.execute_batch("naming the session", &format!("SET application_name = '{name}'")).await?;
        self.set_up(opener).await
    }

    /// Reads again the facts that an administrator may change by a reload while the session lives.
    pub(crate) async fn read_facts_again(&mut self) -> Result<ServerFacts> {
        let row = self.query_one("reading the server's settings", facts::READ, &[]).await?;
        self.facts = ServerFacts::read(&row, self.facts.direct)?;
        Ok(self.facts)
    }

    async fn identify(&mut self, target: &Target, local_port: Option<u16>) -> Result<()> {
        // The role's own time-outs may be shorter than this statement takes. And nothing may be left on a backend that
        // may be a pooler's. So our time-outs hold for this transaction only.
        let ms = self.limit.as_millis();
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {ms}; \
             SET LOCAL idle_in_transaction_session_timeout = {ms}"
        );
        self.execute_batch(WHO, &begin).await.map_err(errors::refuses_transactions)?;
        let row = self.query_one(WHO, IDENTIFY, &[]).await?;
        self.execute_batch(WHO, "ROLLBACK").await?;
        if row.at::<bool>("is_standby")? {
            return Err(errors::standby(target));
        }
        let version: i32 = row.at("version")?;
        if version < OLDEST_SERVER {
            return Err(Error::new(ErrorKind::Unsupported, format!("{target} runs PostgreSQL {}", version / 10_000))
                .state("the connection was closed")
                .help("use PostgreSQL 14 or newer: its idle_session_timeout is what makes a lock a lease"));
        }
        self.backend = match row.at("backend_start")? {
            Some(started) => Backend { pid: row.at("pid")?, started },
            None => self.identify_hidden().await?,
        };
        let seen_port = row.at::<Option<i32>>("client_port")?;
        let direct = local_port.is_some_and(|port| seen_port == Some(i32::from(port)))
            && target.tcp_port() == row.at("server_port")?;
        self.facts = ServerFacts::read(&row, direct)?;
        self.version = version;
        self.server_started = row.at("server_started")?;
        Ok(())
    }

    /// The server hides from the current role when the login role's backends began (`ALTER ROLE … SET role`). The login
    /// role itself may know. The session's name then tells it to roles that cannot see it.
    async fn identify_hidden(&mut self) -> Result<Backend> {
        let txn = self.begin_as_login_role(WHO).await?;
        let row = txn.query_one(WHO, IDENTIFY, &[]).await?;
        txn.rollback(WHO).await?;
        let (pid, started): (_, Option<Timestamp>) = (row.at("pid")?, row.at("backend_start")?);
        let started = started.ok_or_else(|| {
            Error::new(ErrorKind::Forbidden, format!("{WHO}: it hides when its own backend began (pg_stat_activity)"))
                .state("the connection was closed")
                .help("GRANT pg_read_all_stats to the role that DATABASE_URL logs in with")
        })?;
        self.is_hidden = true;
        Ok(Backend { pid, started })
    }

    /// Begins a transaction under the login role, even if the session has another role. The login role may see and end
    /// its own backends.
    pub(crate) async fn begin_as_login_role(&mut self, step: &str) -> Result<Txn<'_>> {
        let txn = self.begin(step).await?;
        txn.execute(step, "SET LOCAL ROLE NONE").await?;
        Ok(txn)
    }

    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// Where the server was reached.
    pub(crate) fn door(&self) -> &Door {
        &self.door
    }

    /// Whether both sessions are on one server, and it has not been restarted between them: each sees the other's locks.
    pub(crate) fn shares_server_with(&self, other: &Self) -> bool {
        self.server_started == other.server_started
    }

    pub(crate) fn facts(&self) -> ServerFacts {
        self.facts
    }

    /// The pid that answers on this session now. It never changes, unless a pooler stands in between.
    pub(crate) async fn ping(&self, limit: Duration) -> Result<i32> {
        let rows = self.query_limited("ping", BACKEND_PID, &[], limit).await?;
        rows.first().ok_or_else(|| Error::new(ErrorKind::Database, "ping: the server sent no row"))?.at(0)
    }

    /// How long a statement may take.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Resolves when the connection has ended, with the reason.
    ///
    /// Cancel safe.
    pub(crate) fn ended(&self) -> impl Future<Output = Arc<str>> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await {
                Ok(cause) => cause.clone().unwrap_or_else(|| "it ended".into()),
                Err(_) => "its task was ended".into(),
            }
        }
    }

    /// Whether the connection has ended, as far as we know.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Makes the server parse statements now and keep their plans, so that they are fast when they are needed. From
    /// then on, this session runs each of them prepared. This call does not wait for a table that is being altered: the
    /// server returns an error then, and the statements before it are prepared.
    pub(crate) async fn prepare(&mut self, step: &str, statements: &[Prepared]) -> Result<()> {
        let step = self.step_name(step);
        // There are few of them, and their plans do not depend on the parameters. So each is planned once, and not at
        // each of its first five runs.
        self.within(&step, self.client.batch_execute("SET plan_cache_mode = force_generic_plan")).await?;
        self.within(&step, self.client.batch_execute(BEGIN_IMPATIENTLY)).await?;
        let mut prepared = Ok(());
        for Prepared { template, types } in statements {
            let sql = self.schema.sql(template);
            match self.within(&step, self.client.prepare_typed(&sql, types)).await {
                Ok(statement) => _ = self.prepared.insert(template, statement),
                Err(e) => {
                    prepared = Err(e);
                    break;
                }
            }
        }
        self.within(&step, self.client.batch_execute("ROLLBACK")).await?;
        prepared
    }

    /// Runs one statement. `@.` in it stands for the schema.
    ///
    /// Cancel safe for reads. A dropped write may or may not have happened.
    pub(crate) async fn query(&self, step: &str, template: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        self.query_limited(step, template, params, self.limit).await
    }

    pub(crate) async fn query_limited(
        &self,
        step: &str,
        template: &str,
        params: &[Param<'_>],
        limit: Duration,
    ) -> Result<Vec<Row>> {
        let step = self.step_name(step);
        within(&step, limit, self.statements().run((template, params))).await
    }

    /// The same as [`Session::query`], for a statement that sends a notification. Its commit may wait behind the
    /// commits of others.
    pub(crate) async fn query_and_tell(&self, step: &str, template: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        self.query_limited(step, template, params, commit_patience(self.limit)).await
    }

    /// The same as [`Session::query`], for a statement that returns one row.
    pub(crate) async fn query_one(&self, step: &str, template: &str, params: &[Param<'_>]) -> Result<Row> {
        one(step, self.query(step, template, params).await?)
    }

    /// Runs statements without parameters that return nothing. `@.` is not replaced in them.
    pub(crate) async fn execute_batch(&self, step: &str, sql: &str) -> Result<()> {
        let step = self.step_name(step);
        self.within(&step, self.client.batch_execute(sql)).await
    }

    /// Begins a transaction. It is rolled back when the value is dropped.
    pub(crate) async fn begin(&mut self, step: &str) -> Result<Txn<'_>> {
        let step = self.step_name(step);
        // The value is made first, so that a begin whose reply was lost is rolled back as well.
        let txn = Txn { on: self.statements(), label: self.purpose.label, limit: self.limit, open: true };
        within(&step, self.limit, self.client.batch_execute("BEGIN")).await?;
        Ok(txn)
    }

    /// The same as [`Session::begin`] with the first statement, in one round trip.
    pub(crate) async fn begin_with(
        &mut self,
        step: &str,
        template: &str,
        params: &[Param<'_>],
    ) -> Result<(Txn<'_>, Vec<Row>)> {
        let step = self.step_name(step);
        let txn = Txn { on: self.statements(), label: self.purpose.label, limit: self.limit, open: true };
        // Polled in this order, so sent in this order.
        let both =
            async { tokio::try_join!(biased; self.client.batch_execute("BEGIN"), txn.on.run((template, params))) };
        let ((), rows) = within(&step, self.limit, both).await?;
        Ok((txn, rows))
    }

    fn statements(&self) -> Statements<'_> {
        Statements { client: &self.client, schema: &self.schema, prepared: &self.prepared }
    }

    /// The client itself, for refinery.
    pub(crate) fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Closes the connection cleanly, so that the server ends the backend at once, and waits for that for up to a
    /// second.
    pub(crate) async fn close(self) {
        let Self { client, ended, driver, .. } = self;
        drop(client);
        let mut ended = ended;
        // After the wait the socket is dropped with the driver, which also ends the session.
        let _ = tokio::time::timeout(CLOSE_WAIT, ended.wait_for(Option::is_some)).await;
        drop(driver);
    }

    async fn within<T>(&self, step: &str, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
        within(step, self.limit, work).await
    }

    fn step_name(&self, step: &str) -> String {
        format!("{step} ({} session)", self.purpose.label)
    }
}

/// Moves the connection's bytes until it ends; returns why it did.
async fn drive(mut connection: Connection, on_notice: Option<&(dyn Fn(&str) + Send + Sync)>) -> String {
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(n))) => {
                if let Some(on_notice) = on_notice {
                    on_notice(n.payload());
                }
            }
            Some(Ok(AsyncMessage::Notice(n))) => tracing::debug!(target: "podlock", notice = %n, "the server says"),
            Some(Ok(_)) => {}
            Some(Err(e)) => return chain(&e),
            None => return "the connection was closed".to_owned(),
        }
    }
}

/// The settings that each session makes for itself on the server.
fn set_statements(limits: &Limits, purpose: Purpose, version: i32) -> String {
    let keepalives = limits.keepalives;
    // The server accepts milliseconds up to 31 bits. A multiple of the longest setting may be more.
    let ms = |d: Duration| i32::try_from(d.as_millis()).unwrap_or(i32::MAX);
    let idle_in_transaction =
        if purpose.has_long_transactions { limits.statement * 4 } else { limits.idle_in_transaction };
    let mut sets = vec![
        ("search_path", "pg_catalog, pg_temp".to_owned()),
        ("default_transaction_isolation", "'read committed'".to_owned()),
        ("default_transaction_read_only", "off".to_owned()),
        ("client_min_messages", "warning".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
        // Compiling one of our statements takes longer than running it, and cannot be interrupted.
        ("jit", "off".to_owned()),
        ("idle_session_timeout", ms(limits.lease).to_string()),
        ("tcp_user_timeout", ms(limits.lease).to_string()),
        ("tcp_keepalives_idle", keepalives.idle.to_string()),
        ("tcp_keepalives_interval", keepalives.interval.to_string()),
        ("tcp_keepalives_count", keepalives.count.to_string()),
        ("idle_in_transaction_session_timeout", ms(idle_in_transaction).to_string()),
        // Only this and `statement_timeout` may be in force at a COMMIT. `txn::commit_patience` says why, and what
        // happens then.
        ("lock_timeout", ms(limits.statement).to_string()),
    ];
    let statement_timeout = ("statement_timeout", ms(limits.statement).to_string());
    // This setting comes first, so that the role's own time-out does not end the others. The server counts it for each
    // statement of a message.
    sets.insert(0, statement_timeout);
    if version >= 170_000 {
        sets.insert(1, ("transaction_timeout", "0".to_owned()));
    }
    sets.iter().map(|(name, value)| format!("SET {name} = {value};")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_names_fit_and_are_cut_at_a_character() {
        let long = ApplicationName { service: "podlock", instance: Some("é".repeat(100).into()) };
        let name = long.of("liveness");
        assert!(name.len() <= APPLICATION_NAME_MAX && name.ends_with("é/liveness"), "{name}");
        assert_eq!(ApplicationName { service: "podlock", instance: None }.of("watch"), "podlock/-/watch");
        let stamped = long.stamped("liveness", "2025-11-28T16:01:18Z".parse().expect("a time"));
        assert!(stamped.len() <= APPLICATION_NAME_MAX && stamped.ends_with("é/liveness@1764345678000000"), "{stamped}");
    }
}
