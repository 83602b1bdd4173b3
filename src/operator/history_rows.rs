//! The rows of the liveness history. As in [`rows`](super::rows), fields have the names of the columns, and are added and
//! never renamed.

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::rows::get;
#[cfg(doc)]
use super::{Operator, SessionRow};
use crate::error::Result;
use crate::id::Incarnation;
use crate::timestamp::Timestamp;

/// The percentiles of [`ByShare`].
pub(super) const SHARES: [f64; 3] = [0.1, 0.5, 0.9];
/// The days of a week, and the hours of a day.
const WEEK: (usize, usize) = (7, 24);

/// How reliable a pod was in the last days, as the newest roll-up found: a row of `studio_pod_reliability`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ReliabilityRow {
    /// The pod's name, or the value of the label that `score_by` names.
    pub pod_id: String,
    /// 0 (do not trust it with a long run) to 1.
    pub score: f64,
    /// Covered time by the time since the later of the begin of the window and the first session: 0 to 100. `None`:
    /// unknown.
    pub uptime_pct: Option<f64>,
    /// The mean time between failures, in seconds.
    pub mtbf_seconds: Option<f64>,
    /// The share of the sessions that lasted four hours. `None`: none can tell yet.
    pub p_stays_4h: Option<f64>,
    /// The share of the sessions that lasted eight hours. `None`: none can tell yet.
    pub p_stays_8h: Option<f64>,
    /// How many sessions reach into the window.
    pub sessions_count: i64,
    /// When a session last ended. `None`: none has.
    pub last_disconnect_at: Option<Timestamp>,
    /// How long the newest session has lasted, in seconds.
    pub last_session_seconds: Option<f64>,
    /// A tenth of the sessions were shorter, in seconds.
    pub p10_session_seconds: Option<f64>,
    /// Half of the sessions were shorter, in seconds.
    pub median_session_seconds: Option<f64>,
    /// Nine tenths of the sessions were shorter, in seconds.
    pub p90_session_seconds: Option<f64>,
    /// An array of 7 arrays, Monday first, of 24 shares: which part of this hour of the week (UTC) was covered. `null`
    /// in an hour without data.
    pub hourly_availability: Option<Value>,
    /// How many sessions ended for each reason, by name.
    pub disconnect_reasons: Value,
    /// How many days it looks back.
    pub window_days: i32,
    /// When the row was made.
    pub updated_at: Timestamp,
}

/// What [`ReliabilityRow`] says, of a pod that may have no such row yet. Then all is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Features {
    /// The name of the row that was found: the pod's, or the value of its label that `score_by` names.
    pub scored_as: Option<String>,
    /// As [`ReliabilityRow::score`].
    pub score: Option<f64>,
    /// As [`ReliabilityRow::uptime_pct`].
    pub uptime_pct: Option<f64>,
    /// As [`ReliabilityRow::mtbf_seconds`].
    pub mtbf_seconds: Option<f64>,
    /// As [`ReliabilityRow::p_stays_4h`].
    pub p_stays_4h: Option<f64>,
    /// As [`ReliabilityRow::p_stays_8h`].
    pub p_stays_8h: Option<f64>,
    /// As [`ReliabilityRow::sessions_count`].
    pub sessions_count: Option<i64>,
    /// As [`ReliabilityRow::last_disconnect_at`].
    pub last_disconnect_at: Option<Timestamp>,
    /// As [`ReliabilityRow::last_session_seconds`].
    pub last_session_seconds: Option<f64>,
    /// As [`ReliabilityRow::p10_session_seconds`].
    pub p10_session_seconds: Option<f64>,
    /// As [`ReliabilityRow::median_session_seconds`].
    pub median_session_seconds: Option<f64>,
    /// As [`ReliabilityRow::p90_session_seconds`].
    pub p90_session_seconds: Option<f64>,
    /// As [`ReliabilityRow::hourly_availability`].
    pub hourly_availability: Option<Value>,
    /// As [`ReliabilityRow::disconnect_reasons`].
    pub disconnect_reasons: Option<Value>,
    /// As [`ReliabilityRow::window_days`].
    pub window_days: Option<i32>,
    /// As [`ReliabilityRow::updated_at`].
    pub updated_at: Option<Timestamp>,
}

/// What is known of one pod now.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Liveness {
    /// The pod's name.
    pub pod_id: String,
    /// Whether a pod of this name is in the roster. A pod that has died stays there until a peer buries it.
    /// [`Operator::pod`] looks at its locks as well.
    pub in_roster: bool,
    /// `active` or `draining`; `gone` if no pod of this name is in the roster.
    pub state: String,
    /// Who cordoned the pod. `None`: nobody did.
    pub cordoned_by: Option<String>,
    /// Who asked the pod to drain. `None`: nobody did.
    pub drain_requested: Option<String>,
    /// The pod's identity. If the pod is gone, its last one. `None`: its sessions were pruned.
    pub incarnation: Option<Incarnation>,
    /// When that incarnation registered.
    pub since: Option<Timestamp>,
    /// The version that the service gave itself. `None` once the pod is gone.
    pub version: Option<String>,
    /// Key-value pairs of the service. `None` once the pod is gone.
    pub labels: Option<Value>,
    /// When the pod's event index last moved. `None` once the pod is gone.
    pub last_beat_at: Option<Timestamp>,
    /// When the incarnation last wrote samples.
    pub last_heartbeat_at: Option<Timestamp>,
    /// How many runs the incarnation has begun to execute, as it last said.
    pub runs_served: Option<i64>,
    /// Counters of the application's own, as the incarnation last said.
    pub counters: Option<Value>,
    /// The newest sample. It may be of an earlier incarnation. `None`: there is none, or it was dropped.
    pub last_sample: Option<Sample>,
    /// How the newest incarnation that has ended ended. `None`: none has.
    pub last_end: Option<LastEnd>,
    /// How reliable it was.
    #[serde(flatten)]
    pub features: Features,
}

/// How an incarnation ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct LastEnd {
    /// When its row left the roster.
    pub ended_at: Timestamp,
    /// As [`SessionRow::reason`].
    pub reason: Option<String>,
    /// As [`SessionRow::cause`].
    pub cause: Option<String>,
    /// As [`SessionRow::buried_by`].
    pub buried_by: Option<String>,
    /// As [`SessionRow::exit_code`].
    pub exit_code: Option<i32>,
    /// As [`SessionRow::exit_signal`].
    pub exit_signal: Option<i32>,
}

/// A sample that a pod took of itself: a row of `studio_pod_heartbeats`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Sample {
    /// The registration of the pod.
    pub incarnation: Incarnation,
    /// The number of the sample, from 1, by this incarnation. A missing number is a sample that was dropped.
    pub number: i64,
    /// When it was taken.
    pub sampled_at: Timestamp,
    /// The phase of the pod: `active`, `cordoned`, `draining` or `detached`.
    pub status: String,
    /// `nominal`, `fair`, `serious` or `critical`.
    pub health: String,
    /// The share of the processors that it used: 0 to 1. `None`: unknown.
    pub cpu_usage: Option<f32>,
    /// The share of the memory that was in use: 0 to 1. `None`: unknown.
    pub memory_pressure: Option<f32>,
    /// The bytes of memory that were left. `None`: unknown.
    pub memory_available: Option<i64>,
    /// How many runs the pod was executing.
    pub running_runs: i32,
    /// How late the application's runtime woke a timer, in milliseconds. `None`: unknown.
    pub runtime_lag_ms: Option<f32>,
    /// Numbers of the application's own, by name. `None`: none.
    pub gauges: Option<Value>,
    /// JSON of the application's own. `None`: none.
    pub details: Option<Value>,
}

/// Percentiles over the pods. The rank of a percentile is `round(p * (n - 1))`. All are `None` if no pod has a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct ByShare {
    /// A tenth of the pods have less.
    pub p10: Option<f64>,
    /// Half of the pods have less.
    pub p50: Option<f64>,
    /// Nine tenths of the pods have less.
    pub p90: Option<f64>,
}

/// How available the whole fleet was, by the newest roll-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "http", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct NetworkAvailability {
    /// How many pods have a row in `studio_pod_reliability`. At most 10,000: the first by name, and all numbers here are
    /// of them.
    pub pods: i64,
    /// Of the uptime in percent.
    pub uptime_pct: ByShare,
    /// Of the score.
    pub score: ByShare,
    /// 7 arrays, Monday first, of 24 shares: the mean over the pods of how much of this hour of the week (UTC) was
    /// covered. `None` in an hour without data.
    pub by_hour: Vec<Vec<Option<f64>>>,
}

impl ReliabilityRow {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            pod_id: get(row, "pod_id")?,
            score: get(row, "score")?,
            uptime_pct: get(row, "uptime_pct")?,
            mtbf_seconds: get(row, "mtbf_seconds")?,
            p_stays_4h: get(row, "p_stays_4h")?,
            p_stays_8h: get(row, "p_stays_8h")?,
            sessions_count: get(row, "sessions_count")?,
            last_disconnect_at: get(row, "last_disconnect_at")?,
            last_session_seconds: get(row, "last_session_seconds")?,
            p10_session_seconds: get(row, "p10_session_seconds")?,
            median_session_seconds: get(row, "median_session_seconds")?,
            p90_session_seconds: get(row, "p90_session_seconds")?,
            hourly_availability: get(row, "hourly_availability")?,
            disconnect_reasons: get(row, "disconnect_reasons")?,
            window_days: get(row, "window_days")?,
            updated_at: get(row, "updated_at")?,
        })
    }
}

impl Features {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            scored_as: get(row, "scored_as")?,
            score: get(row, "score")?,
            uptime_pct: get(row, "uptime_pct")?,
            mtbf_seconds: get(row, "mtbf_seconds")?,
            p_stays_4h: get(row, "p_stays_4h")?,
            p_stays_8h: get(row, "p_stays_8h")?,
            sessions_count: get(row, "sessions_count")?,
            last_disconnect_at: get(row, "last_disconnect_at")?,
            last_session_seconds: get(row, "last_session_seconds")?,
            p10_session_seconds: get(row, "p10_session_seconds")?,
            median_session_seconds: get(row, "median_session_seconds")?,
            p90_session_seconds: get(row, "p90_session_seconds")?,
            hourly_availability: get(row, "hourly_availability")?,
            disconnect_reasons: get(row, "disconnect_reasons")?,
            window_days: get(row, "window_days")?,
            updated_at: get(row, "updated_at")?,
        })
    }
}

impl Sample {
    pub(super) fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            incarnation: get::<Uuid>(row, "incarnation")?.into(),
            number: get(row, "number")?,
            sampled_at: get(row, "sampled_at")?,
            status: get(row, "status")?,
            health: get(row, "health")?,
            cpu_usage: get(row, "cpu_usage")?,
            memory_pressure: get(row, "memory_pressure")?,
            memory_available: get(row, "memory_available")?,
            running_runs: get(row, "running_runs")?,
            runtime_lag_ms: get(row, "runtime_lag_ms")?,
            gauges: get(row, "gauges")?,
            details: get(row, "details")?,
        })
    }
}

impl LastEnd {
    pub(super) fn read(row: &Row, ended_at: Timestamp) -> Result<Self> {
        Ok(Self {
            ended_at,
            reason: get(row, "reason")?,
            cause: get(row, "cause")?,
            buried_by: get(row, "buried_by")?,
            exit_code: get(row, "exit_code")?,
            exit_signal: get(row, "exit_signal")?,
        })
    }
}

impl Liveness {
    pub(super) fn read(row: &Row, pod: &str) -> Result<Self> {
        let own: Option<Uuid> = get(row, "own_incarnation")?;
        let last: Option<Uuid> = get(row, "last_incarnation")?;
        let state: Option<String> = get(row, "state")?;
        let began_at: Option<Timestamp> = get(row, "began_at")?;
        // The session of another incarnation says nothing of the one in the roster.
        let of_session = own.is_none() || own == last;
        let sample: Option<Uuid> = get(row, "incarnation")?;
        Ok(Self {
            pod_id: pod.to_owned(),
            in_roster: own.is_some(),
            state: state.unwrap_or_else(|| "gone".to_owned()),
            cordoned_by: get(row, "cordoned_by")?,
            drain_requested: get(row, "drain_requested")?,
            incarnation: own.or(last).map(Incarnation::from),
            since: get::<Option<Timestamp>>(row, "started_at")?.or(began_at),
            version: get(row, "version")?,
            labels: get(row, "labels")?,
            last_beat_at: get(row, "beat_at")?,
            last_heartbeat_at: get::<Option<Timestamp>>(row, "last_heartbeat_at")?.filter(|_| of_session),
            runs_served: get::<Option<i64>>(row, "runs_served")?.filter(|_| of_session),
            counters: get::<Option<Value>>(row, "counters")?.filter(|_| of_session),
            last_sample: sample.map(|_| Sample::read(row)).transpose()?,
            last_end: get::<Option<Timestamp>>(row, "ended_at")?.map(|at| LastEnd::read(row, at)).transpose()?,
            features: Features::read(row)?,
        })
    }
}

impl ByShare {
    fn of(values: Option<Vec<Option<f64>>>) -> Self {
        let values = values.unwrap_or_default();
        let at = |place: usize| values.get(place).copied().flatten();
        Self { p10: at(0), p50: at(1), p90: at(2) }
    }
}

impl NetworkAvailability {
    pub(super) fn read(row: &Row) -> Result<Self> {
        let hours: Vec<Option<f64>> = get(row, "hours")?;
        Ok(Self {
            pods: get(row, "pods")?,
            uptime_pct: ByShare::of(get(row, "uptimes")?),
            score: ByShare::of(get(row, "scores")?),
            by_hour: hours.chunks(WEEK.1).map(<[_]>::to_vec).collect(),
        })
    }

    pub(super) fn of_nobody() -> Self {
        let (uptime_pct, score) = (ByShare::default(), ByShare::default());
        Self { pods: 0, uptime_pct, score, by_hour: vec![vec![None; WEEK.1]; WEEK.0] }
    }
}
