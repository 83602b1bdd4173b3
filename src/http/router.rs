//! The routes, and the state that their handlers share.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use serde_json::Value;

use crate::http::api::Api;
use crate::http::{probes as answers, problem, runs, sse, workers};
use crate::{Operator, Pod};

/// The largest body that is read, in bytes. A larger one is refused: every open request may hold that much memory.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// Returns the routes of the [module's table](crate::http) for this pod. Any input is accepted.
///
/// The router has no fallback, so that it can be merged into a router that has one. A router that is served directly
/// can use [`not_found`](super::not_found).
pub fn router(pod: Pod) -> Router {
    router_with(pod, |_, _| Ok(()))
}

/// The same as [`router`], with a check of each new run's kind and input. If the check refuses, the answer is 422 with
/// its text, and nothing is written.
pub fn router_with<V>(pod: Pod, validate: V) -> Router
where
    V: Fn(&str, &Value) -> Result<(), String> + Clone + Send + Sync + 'static,
{
    runs_router(pod.clone(), validate).merge(probes(pod))
}

/// Returns only the routes of runs (`/v1/runs`), with a check as in [`router_with`]. They are for a service that puts
/// them behind a key, and leaves the probes open: `key.protect(runs_router(pod.clone(), check)).merge(probes(pod))`.
pub fn runs_router<V>(pod: Pod, validate: V) -> Router
where
    V: Fn(&str, &Value) -> Result<(), String> + Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/v1/runs", get(runs::latest).post(runs::start))
        .route("/v1/runs/{id}", get(runs::describe).delete(runs::cancel))
        .route("/v1/runs/{id}/stream", get(sse::stream))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Api { pod, validate: Arc::new(validate) })
}

/// Returns the routes of the worker registry (`/v1/workers`). They are no part of [`router`], because whoever may register
/// workers decides where a service sends its requests. A service that wants them merges the two:
/// `router(pod.clone()).merge(workers_router(pod))`. From this call on, the pod keeps a copy of all workers in memory.
pub fn workers_router(pod: Pod) -> Router {
    // The first call of it begins the reading.
    drop(pod.workers());
    Router::new()
        .route("/v1/workers", get(workers::list).put(workers::put))
        .route("/v1/workers/{id}", get(workers::describe).delete(workers::remove))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(pod)
}

/// Returns only the three probes (`/livez`, `/readyz`, `/healthz`). They are for a service that has routes of its own
/// and none of podlock's: merge them, or nest them below a path. They do not use the database.
pub fn probes(pod: Pod) -> Router {
    Router::new()
        .route("/livez", get(answers::livez))
        .route("/readyz", get(answers::readyz))
        .route("/healthz", get(answers::healthz))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(pod)
}

/// Returns the probes (`/livez`, `/readyz`, `/healthz`) of a process that is no pod and serves what an operator reads.
/// `/readyz` asks the database, at most once a second.
pub fn operator_probes(operator: Operator) -> Router {
    Router::new()
        .route("/livez", get(answers::livez))
        .route("/readyz", get(answers::database_answers))
        .route("/healthz", get(answers::health_of_operator))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(Arc::new(answers::Asked::new(operator)))
}
