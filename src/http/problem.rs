//! Refusals: each has a status, a stable word for it, and a text that says what was wrong.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::error::{Error, RETRY_AFTER};
use crate::id::RunId;

/// A refusal that is ready to be sent.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &str, error: impl Into<String>) -> Self {
        let mut body = Map::new();
        body.insert("error".to_owned(), Value::String(error.into()));
        body.insert("kind".to_owned(), Value::String(kind.to_owned()));
        Self { status, retry_after: None, body }
    }

    /// This pod cannot do it. Another pod could, and so could this one later.
    pub(super) fn unavailable(kind: &str, error: impl Into<String>) -> Self {
        Self { retry_after: Some(RETRY_AFTER), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, error) }
    }

    pub(super) fn no_such_run(run_id: RunId) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no run {run_id}"))
    }

    /// Adds a field to the body.
    pub(super) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.body.insert(field.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(Value::Object(self.body))).into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        response
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let status = rejection.status();
        let kind = match status {
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::UNPROCESSABLE_ENTITY => "invalid_input",
            _ => "bad_json",
        };
        Self::new(status, kind, rejection.body_text())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = error.retry_after();
        let problem = Self { retry_after, ..Self::new(status, error.kind().as_str(), error.to_string()) };
        match error.run_id() {
            Some(run_id) => problem.with("run_id", run_id.to_string()),
            None => problem,
        }
    }
}

/// Answers an error of the library as the routes of this module do. The status is [`Error::http_status`]. The JSON body
/// is `{"error", "kind"}`, with `run_id` if the error names a run. `Retry-After` is sent if [`Error::retry_after`]
/// gives one.
///
/// So a handler of your own may return `Result<_, podlock::Error>`.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// The 404 for a router that is served without a fallback of its own: `router(pod).fallback(not_found)`.
///
/// # Cancel safety
///
/// Safe: it changes nothing.
pub async fn not_found(method: Method, uri: Uri) -> Response {
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {method} {}", uri.path()))
        .into_response()
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let error = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", error).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_answer_has_the_status_and_the_retry_after_of_the_error() {
        for kind in ErrorKind::ALL.iter().copied() {
            let error = Error::new(kind, "x");
            let (status, after) = (error.http_status(), error.retry_after());
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status, "{kind:?}");
            let header = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(header, after.map(|after| after.as_secs().to_string()), "{kind:?}");
        }
        let ready_again = Problem::unavailable("draining", "x").into_response();
        assert_eq!(ready_again.status().as_u16(), 503);
        assert_eq!(ready_again.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_busy_key_names_its_run() {
        let run = RunId::generate();
        let problem = Problem::from(Error::new(ErrorKind::KeyBusy, "the key is taken").about_run(run));
        assert_eq!(problem.body["run_id"], run.to_string());
        assert_eq!(problem.body["kind"], "key_busy");
        assert_eq!(problem.body["error"], "the key is taken");
    }
}
