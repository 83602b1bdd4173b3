//! The probes. None of them uses the database: they report only what this process knows.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use crate::http::problem::Problem;
use crate::{Phase, Pod};

/// The process answers. A restart could fix nothing more.
pub(super) async fn livez() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Whether this pod accepts work.
pub(super) async fn readyz(State(pod): State<Pod>) -> Response {
    let phase = pod.status().phase;
    match phase {
        Phase::Active => Json(json!({ "status": "ready", "phase": phase })).into_response(),
        Phase::Detached => {
            Problem::unavailable("detached", "this pod has lost its lock and is trying to get it back").into_response()
        }
        // The streams of its runs are served all the same, to whoever is connected or asks this pod by its address.
        Phase::Cordoned => {
            Problem::unavailable("cordoned", "this pod is cordoned: it keeps its runs and takes no new ones")
                .into_response()
        }
        Phase::Draining => {
            Problem::unavailable("draining", "this pod is stopping and takes no more work").into_response()
        }
        _ => Problem::unavailable("stopped", "this pod has ended").into_response(),
    }
}

/// Which pod this is, and its phase.
pub(super) async fn healthz(State(pod): State<Pod>) -> Response {
    let status = pod.status();
    Json(json!({
        "pod_id": pod.pod_id(),
        "incarnation": status.incarnation,
        "phase": status.phase,
        "ready": matches!(status.phase, Phase::Active),
        "podlock": env!("CARGO_PKG_VERSION"),
    }))
    .into_response()
}
