//! The routes, and what their handlers share.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use serde_json::Value;

use crate::Pod;
use crate::http::api::Api;
use crate::http::{probes as answers, problem, runs, sse};

/// The largest body that is read, in bytes.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// The routes of the [module's table](crate::http) for this pod, with any input accepted.
///
/// It has no fallback, so that it can be merged into a router that has one; [`not_found`](super::not_found) is there
/// for a router that is served as it is.
pub fn router(pod: Pod) -> Router {
    router_with(pod, |_, _| Ok(()))
}

/// [`router`] with a check of each new run's kind and input. What it refuses becomes a 422 with its words, before
/// anything is written.
pub fn router_with<V>(pod: Pod, validate: V) -> Router
where
    V: Fn(&str, &Value) -> Result<(), String> + Clone + Send + Sync + 'static,
{
    Router::new()
        .route("/v1/runs", get(runs::latest).post(runs::start))
        .route("/v1/runs/{id}", get(runs::describe).delete(runs::cancel))
        .route("/v1/runs/{id}/stream", get(sse::stream))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Api { pod: pod.clone(), validate: Arc::new(validate) })
        .merge(probes(pod))
}

/// The three probes alone (`/livez`, `/readyz`, `/healthz`), for a service that has routes of its own and none of
/// podlock's: merge them, or nest them below a path. They need nothing of the database.
pub fn probes(pod: Pod) -> Router {
    Router::new()
        .route("/livez", get(answers::livez))
        .route("/readyz", get(answers::readyz))
        .route("/healthz", get(answers::healthz))
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(pod)
}
