//! The run API: start, describe, cancel.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::problem::Problem;
use crate::http::router::Api;
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::{Cancelled, NewRun};

/// The longest kind and key, in bytes. Both are words that a service makes; an index holds them.
const WORD_LIMIT: usize = 512;

/// The body of `POST /v1/runs`.
struct StartBody {
    kind: String,
    key: Option<String>,
    input: Value,
}

impl StartBody {
    /// A misspelt field is refused, not passed over.
    fn read(fields: Map<String, Value>) -> Result<Self, String> {
        let (mut kind, mut key, mut input) = (None, None, Value::Null);
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("kind", Value::String(word)) => kind = Some(word),
                ("key", Value::String(word)) => key = Some(word),
                ("key", Value::Null) => {}
                ("input", value) => input = value,
                ("kind" | "key", value) => return Err(format!("{name} is {value}, but must be a string")),
                _ => return Err(format!("there is no field {name:?}; there are kind, key and input")),
            }
        }
        let kind = kind.ok_or("kind is missing: it names the handler that runs it")?;
        check_word("kind", &kind)?;
        if let Some(key) = &key {
            check_word("key", key)?;
        }
        Ok(Self { kind, key, input })
    }
}

#[derive(Serialize)]
struct StartedBody<'a> {
    run_id: RunId,
    pod_id: &'a PodId,
    incarnation: Incarnation,
    fence: Fence,
}

/// Starts a run on this pod.
pub(super) async fn start(
    State(api): State<Api>,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(fields) = body?;
    let body = StartBody::read(fields).map_err(invalid)?;
    (api.validate)(&body.kind, &body.input)
        .map_err(|fault| invalid(format!("input of kind {:?}: {fault}", body.kind)))?;
    let mut new = NewRun::new(body.kind).input(body.input);
    if let Some(key) = body.key {
        new = new.key(key);
    }
    let started = api.pod.start(new).await?;
    let body = StartedBody {
        run_id: started.run_id,
        pod_id: api.pod.pod_id(),
        incarnation: started.incarnation,
        fence: started.fence,
    };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// All about a run, whichever pod owns it.
pub(super) async fn describe(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let run_id = run_id(id)?;
    match api.pod.operator().run(run_id).await? {
        Some(run) => Ok(Json(run).into_response()),
        None => Err(Problem::no_such_run(run_id)),
    }
}

/// Cancels a run, whichever pod owns it.
pub(super) async fn cancel(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let run_id = run_id(id)?;
    match api.pod.cancel(run_id).await? {
        Cancelled::NotFound => Err(Problem::no_such_run(run_id)),
        Cancelled::AlreadyEnded { state } => {
            let error = format!("run {run_id} has ended already: it is {state}");
            Err(Problem::new(StatusCode::CONFLICT, "already_ended", error)
                .with("run_id", run_id.to_string())
                .with("state", state.to_string()))
        }
        _ => match api.pod.operator().run(run_id).await? {
            Some(run) => Ok(Json(run).into_response()),
            None => Err(Problem::no_such_run(run_id)),
        },
    }
}

pub(super) fn run_id(id: Result<Path<String>, PathRejection>) -> Result<RunId, Problem> {
    let bad = |error: String| Problem::new(StatusCode::BAD_REQUEST, "bad_request", error);
    let Path(id) = id.map_err(|rejection| bad(rejection.body_text()))?;
    id.parse().map_err(|e: crate::Error| bad(e.to_string()))
}

fn check_word(name: &str, word: &str) -> Result<(), String> {
    if word.is_empty() {
        return Err(format!("{name} is empty"));
    }
    if word.len() > WORD_LIMIT {
        return Err(format!("{name} has {} bytes, and {WORD_LIMIT} is the most", word.len()));
    }
    if let Some(c) = word.chars().find(|c| c.is_control()) {
        return Err(format!("{name} has the control character {}", c.escape_default()));
    }
    Ok(())
}

fn invalid(error: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_input", error)
}
