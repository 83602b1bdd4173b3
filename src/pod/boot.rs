//! From nothing to a registered pod: connect, refuse a server that cannot hold a lock, migrate, lock, prove, register.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::admission::Admission;
use super::canary;
use super::local::{LivenessLock, Local};
use super::shared::Shared;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::history::cgroup;
use crate::id::{Incarnation, LockKey, PodId};
use crate::membership::clock;
use crate::meters;
use crate::pg::pooler;
use crate::pg::session::{Opener, Session};
use crate::protocol::Moment;
use crate::protocol::cause::Cause;
use crate::store::creators;
use crate::store::fences;
use crate::store::listener::Listener;
use crate::store::locks::{self, Holder};
use crate::store::migrate::{self, Policy};
use crate::store::notices;
use crate::store::pods::{self, Registered, Registration};
use crate::store::role::Role;

/// SQLSTATE: a wait for a lock ran into its time-out.
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// SQLSTATE: a statement ran into its time-out, here in two waits for locks, each shorter than the time-out of one.
const QUERY_CANCELED: &str = "57014";
/// How often a registration or a return is repeated that could not lock the event log in time. Each try waits for
/// `statement_timeout`. Fewer: a start fails in a crowd of pods that start at once. More: a start that cannot succeed
/// takes longer to say so.
const LOG_TRIES: u32 = 10;
/// The bounds of [`lock_slice`]. Shorter slices are all round trips. Longer ones come near the server's default
/// `deadlock_timeout` of 1 s.
const SLICE_MIN: Duration = Duration::from_millis(5);
const SLICE_MAX: Duration = Duration::from_millis(500);

/// The result of a boot: the sessions that the three loops take over.
pub(crate) struct Booted {
    pub(crate) local: Local,
    pub(crate) liveness: Session,
    pub(crate) control: Listener,
    /// The session of the admission, for the watch. `None`: the watch opens its own.
    pub(crate) watch: Option<Session>,
}

/// What the service tells others about itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) version: String,
    pub(crate) labels: serde_json::Value,
}

impl Identity {
    pub(crate) fn of(config: &Config) -> Self {
        Self { version: config.version.clone(), labels: serde_json::json!(config.labels) }
    }
}

/// Boots a pod. After any error, the sessions that were opened are closed as their values are dropped.
pub(crate) async fn boot(shared: Arc<Shared>, opener: Opener, identity: &Identity, policy: Policy) -> Result<Booted> {
    let pod = shared.member.pod_id.clone();
    let in_boot = |e: Error| e.during(&format!("pod {pod} cannot start"));
    let mut admission = admit(&opener, &pod).await.map_err(in_boot)?;
    bring_schema(admission.session(), policy).await.map_err(in_boot)?;
    let mut liveness = opener.open(Role::Liveness).await.map_err(in_boot)?;
    let keys = locks::keys(&liveness, &pod).await.map_err(in_boot)?;
    let timeout = shared.member.settings.acquire_timeout;
    acquire(&liveness, keys.lock, &pod, timeout, Beside::Admission(&admission)).await.map_err(in_boot)?;
    let since = clock::now();
    let limit = shared.member.settings.statement_timeout;
    let control = beside(&liveness, limit, Listener::open(&opener, Role::Control)).await.map_err(in_boot)?;
    canary::refuse_fake_lock(&control, keys.lock, &pod).await.map_err(in_boot)?;
    acquire(&control, keys.witness, &pod, timeout, Beside::Session(&liveness)).await.map_err(in_boot)?;
    let log_read = notices::listen(&control, &shared.member.channel).await.map_err(in_boot)?;
    let local = Local::new(shared, opener, keys);
    local.log_read.set(log_read);
    local.control.set(Some(control.backend()));
    register(&local, &mut liveness, identity, None, None, since).await.map_err(in_boot)?;
    let watch = admission.end().await;
    Ok(Booted { local, liveness, control, watch })
}

/// Whether a transaction that locks the event log should be made again on the same session: many pods register or
/// return at once, or one froze half-way. The log is locked by one at a time, and the pod's lock is held meanwhile.
pub(super) fn is_worth_another_try(error: &Error, tries: &mut u32) -> bool {
    *tries += 1;
    matches!(error.sqlstate(), Some(LOCK_NOT_AVAILABLE | QUERY_CANCELED)) && *tries <= LOG_TRIES
}

/// Registers a new incarnation on a session that has held the lock since `since`, and makes it the current one. Returns
/// when the registration that succeeded was sent.
pub(crate) async fn register(
    local: &Local,
    liveness: &mut Session,
    identity: &Identity,
    given_up: Option<Incarnation>,
    former: Option<(Incarnation, Cause)>,
    since: Moment,
) -> Result<Moment> {
    let shared = &local.shared;
    let incarnation = Incarnation::generate();
    let registration = Registration {
        pod_id: shared.member.pod_id.clone(),
        incarnation,
        keys: local.keys,
        version: identity.version.clone(),
        labels: identity.labels.clone(),
        kinds: shared.engine.kinds.clone(),
        capacity: i32::try_from(shared.member.settings.capacity).unwrap_or(i32::MAX),
        capacity_of: limits_by_kind(&shared.member.settings.capacity_of),
        liveness: liveness.backend(),
        control: local.control.get(),
        given_up,
        former,
        beat_interval: shared.member.settings.beat_interval,
        mine: shared.member.incarnation(),
        cordoned_by: shared.member.cordoned_by().map(|by| by.to_string()),
        stated: shared.member.settings.stated(),
        channel: shared.member.channel.clone(),
        cgroup: cgroup::read().map(|cgroup| json!(cgroup)),
    };
    let mut tries = 0;
    let (sent, Registered { replaced, cordoned_by }) = loop {
        let sent = clock::now();
        match pods::register(liveness, &registration).await {
            Err(e) if is_worth_another_try(&e, &mut tries) => {}
            done => break (sent, done?),
        }
    };
    if shared.member.is_draining() {
        pods::mark_draining_here(liveness, incarnation).await?;
    }
    shared.member.note_answered(sent);
    shared.engine.registry.take_lost();
    shared.member.set_cordoned(cordoned_by);
    shared.member.set_attached(incarnation);
    meters::gauge(meters::ATTACHED, 1);
    local.lock.send_replace(Some(LivenessLock { incarnation, backend: liveness.backend(), since }));
    tracing::info!(
        target: "podlock", event = "started", pod = %shared.member.pod_id, incarnation = %incarnation,
        replaced = replaced.map(tracing::field::display), backend = liveness.backend().pid, "registered"
    );
    shared.engine.recover_now.notify_one();
    shared.workers.attached();
    Ok(sent)
}

/// Awaits `work` while it keeps `session` from idling for longer than its lease.
async fn beside<T>(session: &Session, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(limit / 2, &mut work).await {
            Ok(done) => return done,
            Err(_) => _ = session.ping(limit).await?,
        }
    }
}

/// What goes on beside a wait for a lock.
pub(crate) enum Beside<'a> {
    /// Nothing.
    Nothing,
    /// This session must not idle.
    Session(&'a Session),
    /// Other pods start meanwhile.
    Admission(&'a Admission),
}

/// Waits for a session lock behind a predecessor that is still dying.
pub(crate) async fn acquire(
    session: &Session,
    key: LockKey,
    pod: &PodId,
    timeout: Duration,
    beside: Beside<'_>,
) -> Result<()> {
    let give_up = Instant::now() + timeout;
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let slice = lock_slice(session).min(left);
        if locks::lock(session, key, slice).await? {
            return locks::lock_again(session, key).await;
        }
        if Instant::now() >= give_up {
            return Err(taken(session, key, pod, timeout).await);
        }
        match beside {
            Beside::Nothing => {}
            Beside::Session(session) => _ = session.ping(timeout).await?,
            Beside::Admission(admission) => _ = admission.free().await,
        }
    }
}

/// One slice of a wait: shorter than `deadlock_timeout`, so that neither its check nor `log_lock_waits` sees it.
pub(crate) fn lock_slice(session: &Session) -> Duration {
    let below_the_deadlock_check = session.facts().deadlock_timeout.mul_f64(0.9);
    below_the_deadlock_check.min(session.limit().mul_f64(0.5)).clamp(SLICE_MIN, SLICE_MAX)
}

async fn taken(session: &Session, key: LockKey, pod: &PodId, waited: Duration) -> Error {
    let holder = match locks::holder(session, key).await {
        Ok(holder) => holder,
        Err(e) => return e,
    };
    let Some(holder) = holder else {
        return Error::new(
            ErrorKind::Timeout,
            format!("the lock of pod {pod} was not granted within {waited:?}, and nobody holds it now"),
        )
        .state("nothing was registered")
        .help("start the pod again");
    };
    if !holder.is_podlocks() {
        return held_by_stranger(&holder, pod, waited);
    }
    if let Some(other) = holder.registered.as_deref().filter(|name| *name != pod.as_str()) {
        return Error::new(
            ErrorKind::KeyCollision,
            format!("pod {pod} has the same lock key as pod {other}, which lives"),
        )
        .state("nothing was registered")
        .help("give one of them another name");
    }
    let (who, age) = (process(&holder), age(&holder));
    Error::new(
        ErrorKind::NameTaken,
        format!("pod {pod} lives already: {who}, {age}, still holds its lock after {waited:?}"),
    )
    .state("nothing was registered")
    .help("give each living pod its own name, or wait until the other has ended")
}

/// The error if a backend that belongs to no pod holds the lock of a pod. Any role of the database can take it.
fn held_by_stranger(holder: &Holder, pod: &PodId, waited: Duration) -> Error {
    let role = holder.role.as_deref().unwrap_or("?");
    let (who, end) = match (&holder.prepared, holder.pid) {
        (Some(name), _) => {
            let quoted = name.replace('\'', "''");
            (format!("prepared transaction '{quoted}' (role {role})"), format!("ROLLBACK PREPARED '{quoted}'"))
        }
        (None, pid) => {
            let application = holder.application.as_deref().unwrap_or("?");
            let end = pid.map_or_else(String::new, |pid| format!("SELECT pg_terminate_backend({pid})"));
            (format!("{} (role {role}, application {application}, {})", process(holder), age(holder)), end)
        }
    };
    Error::new(
        ErrorKind::NameTaken,
        format!("the lock of pod {pod} is held by somebody who is no pod: {who} still holds it after {waited:?}"),
    )
    .state("nothing was registered")
    .help(format!(
        "end it as its own role or a superuser ({end}), and the pod can start; keep roles that might take the locks of \
         pods out of this database (REVOKE CONNECT), as SECURITY.md says"
    ))
}

fn process(holder: &Holder) -> String {
    let address = match holder.address {
        Some(address) => address.to_string(),
        None if holder.is_hidden => "an address that is hidden from this role".to_owned(),
        None => "a local socket".to_owned(),
    };
    let pid = holder.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
    format!("server process {pid} from {address}")
}

fn age(holder: &Holder) -> String {
    holder.age.map_or_else(|| "of unknown age".to_owned(), |a| format!("{}s old", a.as_secs()))
}

/// Opens the first session of a boot, and waits on it for the pod's turn. The session first proves, before any lock is
/// taken, that it is a real session and not a pooler's.
async fn admit(opener: &Opener, pod: &PodId) -> Result<Admission> {
    let session = pooler::open_proven(opener, Role::Migrate, canary::NOT_REGISTERED).await?;
    Admission::wait(session, pod).await
}

/// The limits by kind, as the row states them. `None`: there are none.
fn limits_by_kind(limits: &BTreeMap<String, usize>) -> Option<serde_json::Value> {
    (!limits.is_empty()).then(|| serde_json::json!(limits))
}

/// Migrates the schema on the first session of a boot, if that is due.
async fn bring_schema(session: &mut Session, policy: Policy) -> Result<()> {
    migrate::prepare(session, policy).await?;
    creators::warn(session).await;
    fences::step_past_what_is_there(session).await
}
