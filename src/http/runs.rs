//! The run API: start, describe, cancel.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::api::Api;
use crate::http::problem::Problem;
use crate::id::{Fence, Incarnation, PodId, RunId, traceparent};
use crate::{Cancelled, NewRun};

/// The longest kind and key, in bytes. Services choose both, and one entry of an index holds both: PostgreSQL refuses
/// entries of more than about 2,700 bytes.
const WORD_LIMIT: usize = 512;

/// The body of `POST /v1/runs`.
struct StartBody {
    kind: String,
    key: Option<String>,
    input: Value,
    movable: bool,
}

impl StartBody {
    /// Reads the fields. A misspelt field is refused, not ignored.
    fn read(fields: Map<String, Value>) -> Result<Self, String> {
        let (mut kind, mut key, mut input, mut movable) = (None, None, Value::Null, false);
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("kind", Value::String(word)) => kind = Some(word),
                ("key", Value::String(word)) => key = Some(word),
                ("key", Value::Null) => {}
                ("input", value) => input = value,
                ("movable", Value::Bool(may)) => movable = may,
                ("movable", value) => return Err(format!("movable is {value}, but must be true or false")),
                ("kind" | "key", value) => return Err(format!("{name} is {value}, but must be a string")),
                _ => return Err(format!("there is no field {name:?}; there are kind, key, input and movable")),
            }
        }
        let kind = kind.ok_or("kind is missing: it names the handler that runs it")?;
        check_word("kind", &kind)?;
        if let Some(key) = &key {
            check_word("key", key)?;
        }
        Ok(Self { kind, key, input, movable })
    }
}

#[derive(Serialize)]
struct StartedBody<'a> {
    run_id: RunId,
    pod_id: &'a PodId,
    incarnation: Incarnation,
    fence: Fence,
}

/// The trace of the caller. A header that is wrong, or of another version, is passed over, as W3C Trace Context wants it: the
/// run then begins a trace of its own.
fn trace_of(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all("traceparent").iter();
    let text = given.next()?.to_str().ok()?.trim();
    (given.next().is_none() && traceparent::check(text).is_ok()).then_some(text)
}

/// Starts a run on this pod.
pub(super) async fn start(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(fields) = body?;
    let body = StartBody::read(fields).map_err(invalid)?;
    (api.validate)(&body.kind, &body.input)
        .map_err(|fault| invalid(format!("input of kind {:?}: {fault}", body.kind)))?;
    let mut new = NewRun::new(body.kind).input(body.input).movable(body.movable);
    if let Some(key) = body.key {
        new = new.key(key);
    }
    if let Some(trace) = trace_of(&headers) {
        new = new.traceparent(trace);
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

/// Returns all about the run of a kind and key: the running one, or else the newest that has ended.
pub(super) async fn latest(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let (kind, key) = kind_and_key(query.as_deref().unwrap_or_default()).map_err(bad_request)?;
    match api.pod.operator().latest(&kind, &key).await? {
        Some(run) => Ok(Json(run).into_response()),
        None => {
            let error = format!("there is no run of kind {kind:?} and key {key:?}");
            Err(Problem::new(StatusCode::NOT_FOUND, "not_found", error))
        }
    }
}

/// Reads the query. A misspelt parameter is refused: ignoring it would answer another question.
fn kind_and_key(query: &str) -> Result<(String, String), String> {
    let decode = |text: &str| {
        let bytes = percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
        String::from_utf8(bytes).map_err(|_| "the query is not UTF-8".to_owned())
    };
    let (mut kind, mut key) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        let place = match name.as_str() {
            "kind" => &mut kind,
            "key" => &mut key,
            _ => return Err(format!("there is no parameter {name:?}; there are kind and key")),
        };
        check_word(&name, &value)?;
        if place.replace(value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    match (kind, key) {
        (Some(kind), Some(key)) => Ok((kind, key)),
        _ => Err("give both kind and key; a run without a key is found by its id".to_owned()),
    }
}

/// Returns all about a run, whichever pod owns it.
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
    let Path(id) = id.map_err(|rejection| bad_request(rejection.body_text()))?;
    id.parse().map_err(|e: crate::Error| bad_request(e.to_string()))
}

fn bad_request(error: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", error)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_belongs_to_the_trace_of_the_caller_if_the_header_is_valid() {
        const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = |texts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append("traceparent", axum::http::HeaderValue::from_static(text));
            }
            trace_of(&headers).map(ToOwned::to_owned)
        };
        assert_eq!(trace(&[GIVEN]).as_deref(), Some(GIVEN));
        for none in [&[][..], &[""], &["nonsense"], &["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]] {
            assert_eq!(trace(none), None, "{none:?}");
        }
        assert_eq!(trace(&[GIVEN, GIVEN]), None, "two say nothing");
    }

    #[test]
    fn a_query_names_a_kind_and_a_key_and_nothing_else() {
        let read = |query| kind_and_key(query);
        assert_eq!(read("kind=answer&key=chat-7"), Ok(("answer".into(), "chat-7".into())));
        assert_eq!(read("key=a%26b+c%2B&&kind=%C3%A4"), Ok(("\u{e4}".into(), "a&b c+".into())));
        for query in [
            "",
            "kind=a",
            "key=a",
            "kind=a&key=",
            "kind=a&key=b&kind=c",
            "kind=a&key=b&state=x",
            "kind=a&key=%ff",
            "kind=a&key=%00",
        ] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}
