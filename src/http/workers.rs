//! The worker API: register, remove and list workers. Reading it uses no database.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind};
use crate::http::problem::Problem;
use crate::id::WorkerId;
use crate::workers::{HealthCheck, NewWorker, WorkerSpec};
use crate::{Phase, Pod};

/// How long a change waits until it is in the store, and a list until the workers have been read once: 1 s. A shorter
/// time answers before a script's next command can see the change. A longer one holds the client up while the database
/// is away.
const MOST: Duration = Duration::from_secs(1);

/// The body of `PUT /v1/workers`.
struct PutBody {
    url: String,
    spec: WorkerSpec,
    check: Option<HealthCheck>,
}

impl PutBody {
    /// Reads the fields. A misspelt field is refused, not ignored. No refusal repeats a value of the spec, because it
    /// may be a secret.
    fn read(fields: Map<String, Value>) -> Result<Self, String> {
        let (mut url, mut spec, mut check) = (None, WorkerSpec::new(), None);
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("url", Value::String(text)) => url = Some(text),
                ("url", _) => return Err("url: expected a string".to_owned()),
                ("spec" | "health_check", Value::Null) => {}
                ("spec", value) => spec = read_spec(value)?,
                ("health_check", value) => check = Some(read_check(&value)?),
                _ => return Err(format!("there is no field {name:?}; there are url, spec and health_check")),
            }
        }
        let url = url.ok_or("url is missing: it says where the worker is")?;
        Ok(Self { url, spec, check })
    }
}

/// Unknown fields of a spec are the service's own.
fn read_spec(value: Value) -> Result<WorkerSpec, String> {
    WorkerSpec::decode(value).map_err(|fault| match fault.field.as_str() {
        "spec" => fault.to_string(),
        _ => format!("spec.{fault}"),
    })
}

/// A check in the store may have fields of a newer version. Here, such a field is a misspelt one.
fn read_check(value: &Value) -> Result<HealthCheck, String> {
    let check = HealthCheck::from_json(value).map_err(|e| format!("health_check: {e}"))?;
    match check.unknown_field() {
        Some(name) => Err(format!("health_check: there is no field {name:?}")),
        None => Ok(check),
    }
}

/// The answer to a change. `published`: it is in the store. If not yet, it is written as soon as the pod can.
#[derive(Serialize)]
struct ChangedBody {
    worker_id: WorkerId,
    published: bool,
}

/// Registers a worker of this pod, or replaces it.
pub(super) async fn put(
    State(pod): State<Pod>,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(fields) = body?;
    let body = PutBody::read(fields).map_err(invalid)?;
    // A stopping pod takes its workers along: they belong on another one.
    if pod.status().phase == Phase::Draining {
        return Err(Error::new(ErrorKind::Draining, format!("pod {} is stopping", pod.pod_id()))
            .state("no worker was registered")
            .help("register it on another pod")
            .into());
    }
    let mut new = NewWorker::new(body.url).spec(body.spec);
    if let Some(check) = body.check {
        new = new.health_check(check);
    }
    let worker_id = pod.workers().register_or_replace(new)?;
    Ok(changed(&pod, worker_id).await)
}

/// Removes a worker of this pod.
pub(super) async fn remove(
    State(pod): State<Pod>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let id = worker_id(id)?;
    if pod.status().phase == Phase::Stopped {
        return Err(Error::new(ErrorKind::Stopped, format!("pod {} has ended", pod.pod_id()))
            .state("its workers go with it")
            .into());
    }
    let workers = pod.workers();
    match workers.remove(id) {
        Ok(true) => Ok(changed(&pod, id).await),
        Ok(false) => Err(no_such_worker(id)),
        // The one input that it refuses is a worker of another pod.
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            let problem = Problem::new(StatusCode::CONFLICT, "foreign_worker", e.to_string());
            Err(match workers.get(id) {
                Some(worker) => problem.with("owner_pod", worker.owner_pod().to_string()),
                None => problem,
            })
        }
        Err(e) => Err(e.into()),
    }
}

async fn changed(pod: &Pod, worker_id: WorkerId) -> Response {
    let published = pod.workers().published(MOST).await;
    Json(ChangedBody { worker_id, published }).into_response()
}

/// Lists the workers of the fleet, as this pod shows them.
pub(super) async fn list(State(pod): State<Pod>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    // A filter that is ignored would answer another question.
    if query.is_some_and(|query| !query.is_empty()) {
        let error = "there are no parameters: the list has all workers".to_owned();
        return Err(Problem::new(StatusCode::BAD_REQUEST, "bad_request", error));
    }
    has_read(&pod).await?;
    Ok(Json(pod.workers().list()).into_response())
}

/// Returns one worker, whichever pod owns it.
pub(super) async fn describe(
    State(pod): State<Pod>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let id = worker_id(id)?;
    has_read(&pod).await?;
    match pod.workers().get(id) {
        Some(worker) => Ok(Json(worker).into_response()),
        None => Err(no_such_worker(id)),
    }
}

/// Waits until this pod has read all workers once. Before that, it would answer that there are none.
async fn has_read(pod: &Pod) -> Result<(), Problem> {
    let workers = pod.workers();
    let read = tokio::time::timeout(MOST, workers.ready()).await;
    read.map_err(|_| Problem::unavailable("workers_unread", "this pod has not read the workers of the fleet yet"))
}

fn worker_id(id: Result<Path<String>, PathRejection>) -> Result<WorkerId, Problem> {
    let bad_request = |error: String| Problem::new(StatusCode::BAD_REQUEST, "bad_request", error);
    let Path(id) = id.map_err(|rejection| bad_request(rejection.body_text()))?;
    id.parse().map_err(|e: Error| bad_request(e.to_string()))
}

fn no_such_worker(id: WorkerId) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no worker {id}"))
}

fn invalid(error: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_input", error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<PutBody, String> {
        PutBody::read(body.as_object().unwrap().clone())
    }

    #[test]
    fn a_body_needs_a_url_and_nothing_else() {
        for body in [json!({"url": "http://a"}), json!({"url": "http://a", "spec": null, "health_check": null})] {
            let body = read(body).unwrap();
            assert_eq!((body.url.as_str(), body.spec, body.check), ("http://a", WorkerSpec::new(), None));
        }
        let body = read(json!({
            "url": "http://a", "spec": {"model": "m", "of_ours": 1},
            "health_check": {"path": "/h", "interval_ms": 5, "timeout_ms": 7},
        }));
        let body = body.unwrap();
        assert_eq!(body.spec.other["of_ours"], 1);
        assert_eq!(body.check.unwrap().to_json(), json!({"path": "/h", "interval_ms": 5, "timeout_ms": 7}));
    }

    #[test]
    fn a_refusal_names_the_field_and_repeats_no_secret() {
        for (body, words) in [
            (json!({}), "url is missing"),
            (json!({"url": {"hunter2": 1}}), "url: expected a string"),
            (json!({"url": "http://a", "api_key": "hunter2"}), "no field \"api_key\""),
            (json!({"url": "http://a", "spec": "hunter2"}), "spec: expected an object"),
            (json!({"url": "http://a", "spec": {"weight": "x"}}), "spec.weight: expected"),
            (json!({"url": "http://a", "spec": {"secrets": {"k": 2}}}), "spec.secrets.k: expected a string"),
            (json!({"url": "http://a", "health_check": {"path": "/h", "interval": 1}}), "no field \"interval\""),
            (json!({"url": "http://a", "health_check": {"path": "/h", "interval_ms": 0}}), "interval_ms: expected"),
            (json!({"url": "http://a", "health_check": []}), "health_check"),
        ] {
            let error = read(body.clone()).err().unwrap();
            assert!(error.contains(words) && !error.contains("hunter2"), "{body}: {error}");
        }
    }
}
