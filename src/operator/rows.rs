//! The rows that an [`Operator`](super::Operator) returns. The fields have the names of the columns of tables and
//! views, and serialise under the same names. Scripts depend on them, so fields are added and never renamed.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, RunId};
use crate::output;
use crate::protocol::cause::Cause;
use crate::protocol::condition::{Condition, Seen, in_words};
use crate::protocol::state::PodState;
use crate::timestamp::Timestamp;

/// A pod of the roster, with the state of its lock.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PodRow {
    /// The pod's name.
    pub pod_id: String,
    /// The pod's identity.
    pub incarnation: Incarnation,
    /// `active` or `draining`.
    pub state: String,
    /// True if the backend that the pod registered really holds its key, by `pg_locks` of this database.
    pub alive: bool,
    /// The server's process that holds the pod's key now.
    pub holder_pid: Option<i32>,
    /// The client address of that process. `None` over a unix socket, or without the right to see it.
    pub client_addr: Option<String>,
    /// How many running runs the pod owns.
    pub runs: i64,
    /// The global event index at the pod's last beat.
    pub event_index: i64,
    /// When the pod registered.
    pub started_at: Timestamp,
    /// The version that the service gave itself.
    pub version: String,
    /// Free key-value pairs of the service.
    pub labels: Value,
    /// The pod's condition, from its row, its locks, its beats and the log.
    pub condition: Condition,
    /// Why the pod is not buried yet although its lock is free: `connection_broken`, `many_lost`, `many_unknown` or
    /// `unsettled`. `None` if nothing waits.
    pub wait_reason: Option<String>,
    /// How long that wait still takes at most, in milliseconds. It is for people, by the server's clock.
    pub wait_left_ms: Option<i64>,
    /// The pod's lease, in milliseconds. `None` if the pod's version does not record it.
    pub lease_ms: Option<i32>,
    /// Who holds or wants one of the pod's locks but is not a pod: process, role, application and address. `None`:
    /// nobody, as far as the server shows it. See `studio_foreign_locks`.
    pub foreign_lock: Option<String>,
    /// Who cordoned the pod: it keeps its runs and gets no new ones. `None`: nobody did.
    pub cordoned_by: Option<String>,
}

impl PodRow {
    /// The condition in words: `dead, waiting: many lost, 7 s left`.
    #[must_use]
    pub fn condition_in_words(&self) -> String {
        in_words(self.condition, self.wait_reason.as_deref(), self.wait_left_ms, self.foreign_lock.as_deref())
    }
}

/// Everything about the pods of one name: the one in the roster, if any, and those before it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PodDetail {
    /// The pod's name.
    pub pod_id: String,
    /// The pod's identity. If the pod is gone, its last one.
    pub incarnation: Incarnation,
    /// `active`, `draining`, or `gone` if no pod of this name is in the roster.
    pub state: String,
    /// True if the backend that the pod registered really holds its key.
    pub alive: bool,
    /// The server's process that holds the pod's key now.
    pub holder_pid: Option<i32>,
    /// The client address of that process.
    pub client_addr: Option<String>,
    /// How many running runs the pod owns.
    pub runs: i64,
    /// The global event index at the pod's last beat. `None` once the pod is gone.
    pub event_index: Option<i64>,
    /// When the pod registered.
    pub started_at: Timestamp,
    /// The version that the service gave itself. `None` once the pod is gone.
    pub version: Option<String>,
    /// Free key-value pairs of the service. `None` once the pod is gone.
    pub labels: Option<Value>,
    /// As [`PodRow::condition`].
    pub condition: Condition,
    /// As [`PodRow::wait_reason`].
    pub wait_reason: Option<String>,
    /// As [`PodRow::wait_left_ms`].
    pub wait_left_ms: Option<i64>,
    /// As [`PodRow::lease_ms`].
    pub lease_ms: Option<i32>,
    /// As [`PodRow::foreign_lock`].
    pub foreign_lock: Option<String>,
    /// As [`PodRow::cordoned_by`].
    pub cordoned_by: Option<String>,
    /// True if the pod's control session holds the witness key. If `alive` is false and this is true, a connection
    /// broke and the pod is reconnecting.
    pub witness: bool,
    /// How many liveness sessions this incarnation has had. `None` once the pod is gone.
    pub session: Option<i64>,
    /// Milliseconds since the pod's event index last changed. `None` once the pod is gone.
    pub lag_ms: Option<i64>,
    /// Who asked the pod to drain, if anybody did.
    pub drain_requested: Option<String>,
    /// The running runs of this incarnation, newest first.
    pub owned: Vec<RunRow>,
    /// The incarnations that this name had, newest first.
    pub sessions: Vec<SessionRow>,
    /// The last events about this name, oldest first.
    pub events: Vec<EventRow>,
}

/// One incarnation: when it began, when and why it ended, who buried it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct SessionRow {
    /// The registration.
    pub incarnation: Incarnation,
    /// The pod's name.
    pub pod_id: String,
    /// When it registered.
    pub began_at: Timestamp,
    /// When its row left the roster. `None` while the row is there.
    pub ended_at: Option<Timestamp>,
    /// `shutdown`, `lost`, `stalled`, `evicted`, `replaced` or `detached`.
    pub reason: Option<String>,
    /// The pod that buried it. `None` if the next incarnation of the name replaced it.
    pub buried_by: Option<String>,
    /// The cause behind the reason; the column's comment lists the causes. `None`: not known, or the reason says
    /// everything.
    pub cause: Option<String>,
    /// The labels of the pod when it registered.
    pub labels: Value,
    /// When the pod last wrote samples. `None`: it wrote none.
    pub last_heartbeat_at: Option<Timestamp>,
    /// How many runs it has begun to execute, as it last said.
    pub runs_served: i64,
    /// Counters of the application's own, by name, as it last said.
    pub counters: Value,
    /// The exit code of its process. `None`: unknown, or a signal ended the process.
    pub exit_code: Option<i32>,
    /// The signal that ended its process. `None`: unknown, or none did.
    pub exit_signal: Option<i32>,
}

impl SessionRow {
    /// How it ended, in words: `lost: its process ended, or its connections were closed; buried by web-2`.
    #[must_use]
    pub fn end_in_words(&self) -> String {
        let Some(reason) = &self.reason else { return "has not ended".to_owned() };
        let says = |cause: &str| Cause::parse(cause).map_or(cause.to_owned(), |cause| cause.says().to_owned());
        let cause = self.cause.as_deref().map_or(String::new(), |cause| format!(": {}", says(cause)));
        let by = self
            .buried_by
            .as_ref()
            .map_or("replaced by the next of its name".to_owned(), |by| format!("buried by {by}"));
        format!("{reason}{cause}; {by}")
    }
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunRow {
    /// The run.
    pub run_id: RunId,
    /// The kind, which selects the handler.
    pub kind: String,
    /// The key. At most one run of the same kind and key is running at a time.
    pub key: Option<String>,
    /// `running`, `succeeded`, `failed`, `cancelled` or `quarantined`.
    pub state: String,
    /// The name of the last owner.
    pub owner_pod: Option<String>,
    /// The incarnation that owns the run. `None`: nobody does yet, or it was released.
    pub owner_incarnation: Option<Incarnation>,
    /// The fence of the run's latest claim; 0 if it was never owned.
    pub fence: Fence,
    /// How many attempts the run has had.
    pub attempt: i32,
    /// How many owners in a row crashed under the run without progress in between.
    pub crashes: i32,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it ended; `None` while running.
    pub finished_at: Option<Timestamp>,
    /// For a quarantined run, the owners that died under it, first to last.
    pub died_with: Vec<OwnerRow>,
    /// Why a failed run failed. For a quarantined run, which owners died under it. The first 1,000 characters:
    /// [`RunOutput::error`] has all of it.
    pub error: Option<String>,
    /// Whether it may move to a less busy pod ([`NewRun::movable`](crate::NewRun::movable)).
    pub movable: bool,
}

/// An owner that crashed while it ran a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OwnerRow {
    /// The owner's pod name.
    pub pod_id: String,
    /// The owner's identity.
    pub incarnation: Incarnation,
    /// `lost`, `stalled` or `replaced`.
    pub reason: String,
    /// When the owner was buried or replaced.
    pub ended_at: Timestamp,
}

/// A run with its input, its output and its attempts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunDetail {
    /// The run, as in the list.
    #[serde(flatten)]
    pub row: RunRow,
    /// The trace that the run belongs to, as the header `traceparent` of W3C Trace Context writes it.
    pub traceparent: Option<String>,
    /// The input with which the run was started.
    pub input: Value,
    /// The checkpoint that its last owner saved.
    pub checkpoint: Option<Value>,
    /// The run's output. Empty while it runs.
    pub output: RunOutput,
    /// Its attempts, first to last.
    pub attempts: Vec<AttemptRow>,
}

/// The output of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunOutput {
    /// The value that the handler returned, or that its standard output was parsed to. As JSON, a result that is `null`
    /// and no result look the same: see `has_result`.
    pub result: Option<Value>,
    /// Why a failed run failed. For a quarantined run, which owners died under it.
    pub error: Option<String>,
    /// Whether there is a result. It may be `null`.
    pub has_result: bool,
    /// The run's standard output. Empty if there is a result.
    pub stdout: String,
    /// The run's standard error.
    pub stderr: String,
    /// The exit code of the run's program. `None` if there was no program, or a signal ended it.
    pub exit_code: Option<i32>,
    /// True if `stdout` or `stderr` had bytes that text cannot hold. Then in both a backslash is written as `\\`, and
    /// such a byte as `\x00`. [`RunOutput::stdout_bytes`] and [`RunOutput::stderr_bytes`] undo it.
    pub output_escaped: bool,
    /// Why output that should have been parsed is kept as text.
    pub parse_error: Option<String>,
}

impl RunOutput {
    /// Returns standard output as it was written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::SchemaIncompatible`] if the row has text that podlock does not write.
    pub fn stdout_bytes(&self) -> Result<Vec<u8>> {
        self.bytes(&self.stdout)
    }

    /// Returns standard error as it was written.
    ///
    /// # Errors
    ///
    /// As [`RunOutput::stdout_bytes`].
    pub fn stderr_bytes(&self) -> Result<Vec<u8>> {
        self.bytes(&self.stderr)
    }

    fn bytes(&self, text: &str) -> Result<Vec<u8>> {
        let bytes = if self.output_escaped { output::unescape(text) } else { Some(text.as_bytes().to_vec()) };
        bytes.ok_or_else(|| {
            Error::new(ErrorKind::SchemaIncompatible, "an output that is marked as escaped is not")
                .state("what was read is not returned")
                .help("see who else writes the table")
        })
    }

    fn read(row: &Row) -> Result<Self> {
        let result: Option<Value> = get(row, "result")?;
        Ok(Self {
            has_result: result.is_some(),
            result,
            error: get(row, "error")?,
            stdout: get(row, "stdout")?,
            stderr: get(row, "stderr")?,
            exit_code: get(row, "exit_code")?,
            output_escaped: get(row, "output_escaped")?,
            parse_error: get(row, "parse_error")?,
        })
    }
}

/// One attempt of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AttemptRow {
    /// The attempt's number. The first is 1.
    pub attempt: i32,
    /// The name of the pod that made the attempt.
    pub pod_id: String,
    /// The incarnation of that pod.
    pub incarnation: Incarnation,
    /// The fence of this attempt.
    pub fence: Fence,
    /// When the attempt began with a claim.
    pub began_at: Timestamp,
    /// When the attempt ended. `None` while it goes on.
    pub ended_at: Option<Timestamp>,
    /// `succeeded`, `failed`, `cancelled`, `yielded`, `moved`, `adopted`, or why its owner ended.
    pub reason: Option<String>,
}

/// An event in the life of the pods.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EventRow {
    /// The position in the log. It rises in commit order: a reader that has seen a position has seen everything before
    /// it.
    pub idx: i64,
    /// The server's time.
    pub at: Timestamp,
    /// Its kind: the name of an [`EventKind`](super::EventKind), or one that a newer version added. A reader that finds
    /// a `snapshot` and was behind it misses the events that the snapshot replaces.
    pub kind: String,
    /// The pod in question.
    pub pod_id: String,
    /// The pod's incarnation.
    pub incarnation: Incarnation,
    /// The pod that wrote the event.
    pub by_pod: String,
    /// The evidence and the numbers of the event.
    pub detail: Value,
}

impl PodRow {
    pub(super) fn read(row: &Row) -> Result<Self> {
        let state: String = get(row, "state")?;
        let alive = get(row, "alive")?;
        let wait_reason: Option<String> = get(row, "wait_reason")?;
        let cordoned_by: Option<String> = get(row, "cordoned_by")?;
        let condition = Condition::of(&Seen {
            alive,
            witness: get(row, "witness")?,
            draining: PodState::Draining.is(&state),
            drain_requested: get::<Option<String>>(row, "drain_requested")?.is_some(),
            cordoned: cordoned_by.is_some(),
            evicted: get::<Option<String>>(row, "evicted")?.is_some(),
            lags: get(row, "lags")?,
            waits: wait_reason.is_some(),
        });
        Ok(Self {
            pod_id: get(row, "pod_id")?,
            incarnation: get::<Uuid>(row, "incarnation")?.into(),
            state,
            alive,
            condition,
            wait_reason,
            wait_left_ms: get(row, "wait_left_ms")?,
            lease_ms: get(row, "lease_ms")?,
            foreign_lock: get(row, "foreign_lock")?,
            cordoned_by,
            holder_pid: get(row, "holder_pid")?,
            client_addr: get(row, "client_addr")?,
            runs: get(row, "runs")?,
            event_index: get(row, "event_index")?,
            started_at: get(row, "started_at")?,
            version: get(row, "version")?,
            labels: get(row, "labels")?,
        })
    }
}

impl PodDetail {
    /// Reads a pod that is in the roster.
    pub(super) fn read(row: &Row) -> Result<Self> {
        let pod = PodRow::read(row)?;
        Ok(Self {
            pod_id: pod.pod_id,
            incarnation: pod.incarnation,
            state: pod.state,
            alive: pod.alive,
            holder_pid: pod.holder_pid,
            client_addr: pod.client_addr,
            runs: pod.runs,
            event_index: Some(pod.event_index),
            started_at: pod.started_at,
            version: Some(pod.version),
            labels: Some(pod.labels),
            condition: pod.condition,
            wait_reason: pod.wait_reason,
            wait_left_ms: pod.wait_left_ms,
            lease_ms: pod.lease_ms,
            foreign_lock: pod.foreign_lock,
            cordoned_by: pod.cordoned_by,
            witness: get(row, "witness")?,
            session: get(row, "session")?,
            lag_ms: get(row, "lag_ms")?,
            drain_requested: get(row, "drain_requested")?,
            owned: Vec::new(),
            sessions: Vec::new(),
            events: Vec::new(),
        })
    }

    /// The condition in words. For a pod that is gone, how it ended.
    #[must_use]
    pub fn condition_in_words(&self) -> String {
        match self.sessions.first().filter(|_| self.condition == Condition::Gone) {
            Some(last) => format!("gone: {}", last.end_in_words()),
            None => {
                in_words(self.condition, self.wait_reason.as_deref(), self.wait_left_ms, self.foreign_lock.as_deref())
            }
        }
    }

    /// Describes a pod of which only the history is left.
    pub(super) fn gone(last: &SessionRow) -> Self {
        Self {
            pod_id: last.pod_id.clone(),
            incarnation: last.incarnation,
            state: "gone".to_owned(),
            alive: false,
            holder_pid: None,
            client_addr: None,
            runs: 0,
            event_index: None,
            started_at: last.began_at,
            version: None,
            labels: None,
            condition: Condition::Gone,
            wait_reason: None,
            wait_left_ms: None,
            lease_ms: None,
            foreign_lock: None,
            cordoned_by: None,
            witness: false,
            session: None,
            lag_ms: None,
            drain_requested: None,
            owned: Vec::new(),
            sessions: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl SessionRow {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            incarnation: get::<Uuid>(row, "incarnation")?.into(),
            pod_id: get(row, "pod_id")?,
            began_at: get(row, "began_at")?,
            ended_at: get(row, "ended_at")?,
            reason: get(row, "reason")?,
            buried_by: get(row, "buried_by")?,
            cause: get(row, "cause")?,
            labels: get(row, "labels")?,
            last_heartbeat_at: get(row, "last_heartbeat_at")?,
            runs_served: get(row, "runs_served")?,
            counters: get(row, "counters")?,
            exit_code: get(row, "exit_code")?,
            exit_signal: get(row, "exit_signal")?,
        })
    }
}

impl RunRow {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            run_id: get::<Uuid>(row, "run_id")?.into(),
            kind: get(row, "kind")?,
            key: get(row, "key")?,
            state: get(row, "state")?,
            owner_pod: get(row, "owner_pod")?,
            owner_incarnation: get::<Option<Uuid>>(row, "owner_incarnation")?.map(Incarnation::from),
            fence: get::<i64>(row, "fence")?.into(),
            attempt: get(row, "attempt")?,
            crashes: get(row, "crashes")?,
            created_at: get(row, "created_at")?,
            finished_at: get(row, "finished_at")?,
            died_with: OwnerRow::read_all(row)?,
            error: get(row, "error_beginning")?,
            movable: get(row, "movable")?,
        })
    }
}

impl OwnerRow {
    /// Reads the owners, which come as parallel arrays in the run's own row.
    fn read_all(row: &Row) -> Result<Vec<Self>> {
        let pods: Vec<String> = get(row, "owner_pods")?;
        let incarnations: Vec<Uuid> = get(row, "owner_incarnations")?;
        let reasons: Vec<String> = get(row, "owner_reasons")?;
        let ends: Vec<Timestamp> = get(row, "owner_ends")?;
        let owners = pods.into_iter().zip(incarnations).zip(reasons).zip(ends);
        Ok(owners
            .map(|(((pod_id, incarnation), reason), ended_at)| Self {
                pod_id,
                incarnation: incarnation.into(),
                reason,
                ended_at,
            })
            .collect())
    }
}

impl RunDetail {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            row: RunRow::read(row)?,
            traceparent: get(row, "traceparent")?,
            input: get(row, "input")?,
            checkpoint: get(row, "checkpoint")?,
            output: RunOutput::read(row)?,
            attempts: AttemptRow::read_all(row)?,
        })
    }
}

impl AttemptRow {
    /// Reads the attempts. They come as parallel arrays in the run's own row, so that both are from one snapshot.
    fn read_all(row: &Row) -> Result<Vec<Self>> {
        let numbers: Vec<i32> = get(row, "attempts")?;
        let pods: Vec<String> = get(row, "attempt_pods")?;
        let incarnations: Vec<Uuid> = get(row, "attempt_incarnations")?;
        let fences: Vec<i64> = get(row, "attempt_fences")?;
        let began: Vec<Timestamp> = get(row, "attempt_began")?;
        let ended: Vec<Option<Timestamp>> = get(row, "attempt_ended")?;
        let reasons: Vec<Option<String>> = get(row, "attempt_reasons")?;
        let attempts = numbers.into_iter().zip(pods).zip(incarnations).zip(fences).zip(began).zip(ended).zip(reasons);
        Ok(attempts
            .map(|((((((attempt, pod_id), incarnation), fence), began_at), ended_at), reason)| Self {
                attempt,
                pod_id,
                incarnation: incarnation.into(),
                fence: fence.into(),
                began_at,
                ended_at,
                reason,
            })
            .collect())
    }
}

impl EventRow {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            idx: get(row, "idx")?,
            at: get(row, "at")?,
            kind: get(row, "kind")?,
            pod_id: get(row, "pod_id")?,
            incarnation: get::<Uuid>(row, "incarnation")?.into(),
            by_pod: get(row, "by_pod")?,
            detail: get(row, "detail")?,
        })
    }
}

/// Reads the one incarnation that the functions for operators return.
pub(super) fn incarnation(row: Option<&Row>) -> Result<Incarnation> {
    let row = row.ok_or_else(|| {
        Error::new(ErrorKind::Database, "the function of the schema answered without a row")
            .state("the pod may have been asked or not")
            .help("ask again, which does no harm; compare `podlock migrate status` with the version of this binary")
    })?;
    get::<Uuid>(row, "incarnation").map(Incarnation::from)
}

/// Reads a column. If it is missing or has another type, the tables are of another version. That must be an error and
/// not a panic.
pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &'static str) -> Result<T> {
    row.try_get(column).map_err(|e| {
        Error::new(ErrorKind::SchemaIncompatible, format!("column {column} cannot be read as this version expects it"))
            .state("what was read is not returned")
            .help("compare `podlock migrate status` with the version of this binary")
            .caused_by(e)
    })
}
