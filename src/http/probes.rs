//! The probes. Those of a pod do not use the database: they report only what this process knows. A process that is no
//! pod knows nothing, and is ready while the database answers it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::problem::Problem;
use crate::operator::EventFilter;
use crate::{Operator, Phase, Pod};

/// How long an answer of the database is used again. So probes cost the database little, however many there are.
const FRESH: Duration = Duration::from_secs(1);
/// How long the database may take to answer a probe. Those who probe give up after a few seconds.
const ANSWER: Duration = Duration::from_secs(2);

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

/// An operator, and when the database last answered it.
pub(super) struct Asked {
    operator: Operator,
    /// When it was last asked, and whether it answered. Locked while it is asked, so that probes that come together ask
    /// once.
    last: Mutex<Option<(Instant, bool)>>,
}

impl Asked {
    pub(super) fn new(operator: Operator) -> Self {
        Self { operator, last: Mutex::new(None) }
    }

    async fn answers(&self) -> bool {
        let mut last = self.last.lock().await;
        if let Some((at, answered)) = *last
            && at.elapsed() < FRESH
        {
            return answered;
        }
        let asked = self.operator.events(EventFilter::new().limit(1));
        let answered = matches!(tokio::time::timeout(ANSWER, asked).await, Ok(Ok(_)));
        *last = Some((Instant::now(), answered));
        answered
    }
}

/// Whether the database answers this process.
pub(super) async fn database_answers(State(asked): State<Arc<Asked>>) -> Response {
    if asked.answers().await {
        return Json(json!({ "status": "ready" })).into_response();
    }
    Problem::unavailable("database", "the database does not answer this process").into_response()
}

/// What this process is.
pub(super) async fn health_of_operator(State(asked): State<Arc<Asked>>) -> Response {
    let ready = asked.answers().await;
    Json(json!({ "ready": ready, "podlock": env!("CARGO_PKG_VERSION") })).into_response()
}
