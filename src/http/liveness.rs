//! The routes of the liveness history.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::error::Error;
use crate::http::admin::AdminKey;
use crate::http::openapi;
use crate::http::parameters::{Given, Kind, Parameter, bad};
use crate::http::problem::{self, Problem};
use crate::operator::{Liveness, NetworkAvailability, Operator, ReliabilityFilter, ReliabilityRow, Sample, SessionRow};
use crate::timestamp::Timestamp;

/// How many requests read the database at a time. The connections are those of the pool that runs use too (4 by
/// default), so these routes never take more than half of them.
const AT_ONCE: usize = 2;
/// How many requests may be there at a time. A further one is refused at once: it would only wait.
const REQUESTS: usize = 64;
/// How long a request may take. The server ends each statement sooner; this bounds the wait for a turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer about the whole fleet is used again. It reads a row of each pod, and roll-ups change it only every
/// few minutes.
const FRESH: Duration = Duration::from_secs(1);
/// The most characters of a name: more than a pod's name or the value of a label sensibly has.
pub(super) const NAME_MAX: usize = 256;
/// The longest range of time that one request may ask for: a month. A longer one is read in pieces.
const RANGE: Duration = Duration::from_secs(31 * 24 * 60 * 60);

const LIMIT: Parameter =
    Parameter { name: "limit", kind: Kind::Limit { usual: 100, most: 1000 }, text: "How many rows at most." };

pub(super) const NONE: &[Parameter] = &[];
pub(super) const OF_SESSIONS: &[Parameter] = &[
    LIMIT,
    Parameter {
        name: "before",
        kind: Kind::Time,
        text: "Only sessions that began before this time. `next` of an answer gives the next page.",
    },
];
pub(super) const OF_SAMPLES: &[Parameter] = &[
    Parameter {
        name: "since",
        kind: Kind::Time,
        text: "Only samples from this time on: at most 31 days before `until`.",
    },
    Parameter {
        name: "until",
        kind: Kind::Time,
        text: "Only samples before this time; now, if not given. `next` of an answer gives the next page.",
    },
    LIMIT,
];
pub(super) const OF_RELIABILITY: &[Parameter] = &[
    Parameter { name: "min_uptime", kind: Kind::Bound { most: 100.0 }, text: "The least uptime, in percent." },
    Parameter {
        name: "min_stays_4h",
        kind: Kind::Bound { most: 1.0 },
        text: "The least share of sessions that lasted four hours.",
    },
    Parameter { name: "min_score", kind: Kind::Bound { most: 1.0 }, text: "The least score." },
    Parameter { name: "max_score", kind: Kind::Bound { most: 1.0 }, text: "The highest score. 0 is no bound." },
    LIMIT,
];

pub(super) const LIVENESS: &str = "/v1/pods/{id}/liveness";
pub(super) const SESSIONS: &str = "/v1/pods/{id}/sessions";
pub(super) const SAMPLES: &str = "/v1/pods/{id}/heartbeats";
pub(super) const RELIABILITY: &str = "/v1/pods/reliability";
pub(super) const AVAILABILITY: &str = "/v1/network/availability";
pub(super) const DOCUMENT: &str = "/v1/openapi.json";

/// Returns the routes of the liveness history, which read through `operator`: so they work in a pod
/// (`pod.operator()`), and in a process that is none. All but the OpenAPI document are behind `key`. If there is none,
/// they are refused to everybody, and the log says so.
pub fn liveness_router(operator: Operator, key: AdminKey) -> Router {
    if key.is_none() {
        tracing::info!(
            target: "podlock", event = "no_admin_key",
            "no admin key is set: the routes of the liveness history are refused to everybody"
        );
    }
    let state = Arc::new(History {
        operator,
        places: Semaphore::new(REQUESTS),
        turns: Semaphore::new(AT_ONCE),
        availability: Mutex::new(None),
    });
    let routes = routes().into_iter().fold(Router::new(), |router, (path, answer)| router.route(path, answer));
    key.protect(routes.method_not_allowed_fallback(problem::method_not_allowed).with_state(state))
        .route(DOCUMENT, get(async || Json(openapi::document())).fallback(problem::method_not_allowed))
}

/// The routes that need the key.
fn routes() -> [(&'static str, MethodRouter<Arc<History>>); 5] {
    [
        (LIVENESS, get(liveness)),
        (SESSIONS, get(sessions)),
        (SAMPLES, get(samples)),
        (RELIABILITY, get(reliability)),
        (AVAILABILITY, get(availability)),
    ]
}

/// The paths of the routes that need the key.
#[cfg(test)]
pub(super) fn paths() -> Vec<&'static str> {
    routes().iter().map(|(path, _)| *path).collect()
}

/// What the handlers share.
struct History {
    operator: Operator,
    /// A permit for each request that is being answered.
    places: Semaphore,
    /// A permit for each request that reads the database. Requests wait for one.
    turns: Semaphore,
    /// The last answer about the whole fleet, and when it was read. It is locked while it is read, so that requests that
    /// come together read once.
    availability: Mutex<Option<(Instant, NetworkAvailability)>>,
}

impl History {
    /// Answers a request when it is its turn, within the limits.
    async fn ask<T>(&self, read: impl Future<Output = Result<T, Error>>) -> Result<T, Problem> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(Problem::unavailable("busy", "too many requests read the history of this server now"));
        };
        let in_turn = async {
            // The semaphore is never closed.
            let _turn = self.turns.acquire().await;
            read.await
        };
        match tokio::time::timeout(PATIENCE, in_turn).await {
            Ok(read) => Ok(read?),
            Err(_) => Err(Problem::unavailable("too_slow", format!("the answer was not there after {PATIENCE:?}"))),
        }
    }

    /// Reads rows of a pod. If there are none, checks whether there is such a pod.
    async fn rows_of<T>(
        &self,
        pod: &str,
        read: impl Future<Output = Result<Vec<T>, Error>>,
    ) -> Result<Vec<T>, Problem> {
        let (rows, is_known) = self
            .ask(async {
                let rows = read.await?;
                let is_known = !rows.is_empty() || self.operator.knows_pod(pod).await?;
                Ok((rows, is_known))
            })
            .await?;
        if is_known { Ok(rows) } else { Err(no_such_pod(pod)) }
    }
}

/// A page of the sessions of a pod.
#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    /// The pod's name.
    pod_id: String,
    /// How many sessions were asked for.
    limit: i64,
    /// Only those that began before this time were asked for.
    before: Option<Timestamp>,
    /// Give this as `before` to get the next page. `null`: this is the last.
    next: Option<Timestamp>,
    /// The newest first.
    sessions: Vec<SessionRow>,
}

/// A page of the samples of a pod.
#[derive(Serialize, ToSchema)]
pub(super) struct Samples {
    /// The pod's name.
    pod_id: String,
    /// Only those from this time on were asked for.
    since: Option<Timestamp>,
    /// Only those before this time were asked for.
    until: Option<Timestamp>,
    /// How many samples were asked for.
    limit: i64,
    /// Give this as `until` to get the next page. `null`: this is the last.
    next: Option<Timestamp>,
    /// The newest first.
    heartbeats: Vec<Sample>,
}

/// The pods that match the filters.
#[derive(Serialize, ToSchema)]
pub(super) struct Reliability {
    /// The filters that were applied.
    filters: Filters,
    /// How many pods follow.
    count: usize,
    /// The highest score first, then the highest uptime, then the least name.
    pods: Vec<ReliabilityRow>,
}

/// The filters that were applied. 0 does not filter.
#[derive(Serialize, ToSchema)]
pub(super) struct Filters {
    /// The least uptime, in percent.
    min_uptime: f64,
    /// The least share of sessions that lasted four hours.
    min_stays_4h: f64,
    /// The least score.
    min_score: f64,
    /// The highest score.
    max_score: f64,
    /// How many pods at most.
    limit: i64,
}

type Id = Result<Path<String>, PathRejection>;

async fn liveness(
    State(history): State<Arc<History>>,
    id: Id,
    RawQuery(query): RawQuery,
) -> Result<Json<Liveness>, Problem> {
    let pod = name(id)?;
    Given::read(query.as_deref(), NONE)?;
    let known = history.ask(history.operator.liveness(&pod)).await?;
    known.map(Json).ok_or_else(|| no_such_pod(&pod))
}

async fn sessions(
    State(history): State<Arc<History>>,
    id: Id,
    RawQuery(query): RawQuery,
) -> Result<Json<Sessions>, Problem> {
    let pod_id = name(id)?;
    let given = Given::read(query.as_deref(), OF_SESSIONS)?;
    let (limit, before) = (given.limit("limit"), given.time("before"));
    let sessions = history.rows_of(&pod_id, history.operator.pod_sessions(&pod_id, limit, before)).await?;
    let next = next(&sessions, limit, |row| row.began_at);
    Ok(Json(Sessions { pod_id, limit, before, next, sessions }))
}

async fn samples(
    State(history): State<Arc<History>>,
    id: Id,
    RawQuery(query): RawQuery,
) -> Result<Json<Samples>, Problem> {
    let pod_id = name(id)?;
    let given = Given::read(query.as_deref(), OF_SAMPLES)?;
    let (since, until, limit) = (given.time("since"), given.time("until"), given.limit("limit"));
    if let Some(since) = since {
        check_range(since, until.unwrap_or_else(Timestamp::now))?;
    }
    let read = history.operator.heartbeats(&pod_id, since, until, limit);
    let heartbeats = history.rows_of(&pod_id, read).await?;
    let next = next(&heartbeats, limit, |row| row.sampled_at);
    Ok(Json(Samples { pod_id, since, until, limit, next, heartbeats }))
}

async fn reliability(
    State(history): State<Arc<History>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Reliability>, Problem> {
    let given = Given::read(query.as_deref(), OF_RELIABILITY)?;
    let filters = Filters {
        min_uptime: given.bound("min_uptime"),
        min_stays_4h: given.bound("min_stays_4h"),
        min_score: given.bound("min_score"),
        max_score: given.bound("max_score"),
        limit: given.limit("limit"),
    };
    if filters.max_score > 0.0 && filters.min_score > filters.max_score {
        let error = format!("min_score is {}, above max_score, which is {}", filters.min_score, filters.max_score);
        return Err(bad("min_score", error));
    }
    let wanted = ReliabilityFilter::new()
        .min_uptime(filters.min_uptime)
        .min_stays_4h(filters.min_stays_4h)
        .min_score(filters.min_score)
        .max_score(filters.max_score)
        .limit(filters.limit);
    let pods = history.ask(history.operator.reliability(wanted)).await?;
    Ok(Json(Reliability { filters, count: pods.len(), pods }))
}

async fn availability(
    State(history): State<Arc<History>>,
    RawQuery(query): RawQuery,
) -> Result<Json<NetworkAvailability>, Problem> {
    Given::read(query.as_deref(), NONE)?;
    let read = async {
        let mut last = history.availability.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(answer.clone());
        }
        let answer = history.operator.availability().await?;
        *last = Some((Instant::now(), answer.clone()));
        Ok(answer)
    };
    history.ask(read).await.map(Json)
}

/// The name of a pod, as the path has it. No more is asked of it: the names of rows need not be valid today.
fn name(id: Id) -> Result<String, Problem> {
    let Path(id) = id.map_err(|rejection| bad("id", rejection.body_text()))?;
    if id.chars().count() > NAME_MAX {
        return Err(bad("id", format!("the name of the pod has more than {NAME_MAX} characters")));
    }
    // No text of the database can have it.
    if id.contains('\0') {
        return Err(bad("id", "the name of the pod has a NUL character".to_owned()));
    }
    Ok(id)
}

fn no_such_pod(pod: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("nothing is known of a pod {pod:?}"))
}

fn check_range(since: Timestamp, until: Timestamp) -> Result<(), Problem> {
    if since > until {
        return Err(bad("since", format!("since is {since}, after until, which is {until}")));
    }
    let range = until.as_microsecond().abs_diff(since.as_microsecond());
    if u128::from(range) > RANGE.as_micros() {
        return Err(bad("since", format!("since is {since}, more than 31 days before until, which is {until}")));
    }
    Ok(())
}

/// Where the next page begins: after the last row, if the page is full.
fn next<T>(rows: &[T], limit: i64, at: impl Fn(&T) -> Timestamp) -> Option<Timestamp> {
    rows.last().filter(|_| i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit)).map(at)
}
