//! Every refusal: a status, a stable word for it, and what was wrong.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind};
use crate::id::RunId;

/// After how many seconds a client of a pod that cannot now should try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// A refusal that is ready to be sent.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    body: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &str, error: impl Into<String>) -> Self {
        let mut body = Map::new();
        body.insert("error".to_owned(), Value::String(error.into()));
        body.insert("kind".to_owned(), Value::String(kind.to_owned()));
        Self { status, body }
    }

    /// This pod cannot, another could, and this one later.
    pub(super) fn unavailable(kind: &str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, error)
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
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
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
        let status = status_of(&error);
        let problem = Self::new(status, error.kind().as_str(), error.to_string());
        match error.run_id() {
            Some(run_id) => problem.with("run_id", run_id.to_string()),
            None => problem,
        }
    }
}

/// What an error of the library means to a client over HTTP.
fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::KeyBusy => StatusCode::CONFLICT,
        ErrorKind::NoHandler | ErrorKind::InvalidInput => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::AtCapacity
        | ErrorKind::Draining
        | ErrorKind::Detached
        | ErrorKind::Stopped
        | ErrorKind::Fenced
        | ErrorKind::Unreachable
        | ErrorKind::Timeout
        | ErrorKind::SessionLost
        | ErrorKind::Standby
        | ErrorKind::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Database if error.sqlstate().is_some_and(is_about_the_value) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Class 22 is a value that the server cannot hold, such as `\u0000` in a text; 54000 one that is too long for an
/// index, such as a key of 10 kB.
fn is_about_the_value(sqlstate: &str) -> bool {
    sqlstate.starts_with("22") || sqlstate == "54000"
}

/// The 404 of a router that is served as it is: `router(pod).fallback(not_found)`.
///
/// # Cancel safety
///
/// Safe: it touches nothing.
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

    #[test]
    fn each_kind_of_error_has_the_status_that_the_table_gives() {
        let cases = [
            (ErrorKind::KeyBusy, 409),
            (ErrorKind::NoHandler, 422),
            (ErrorKind::InvalidInput, 422),
            (ErrorKind::NotFound, 404),
            (ErrorKind::TooLarge, 413),
            (ErrorKind::AtCapacity, 503),
            (ErrorKind::Draining, 503),
            (ErrorKind::Detached, 503),
            (ErrorKind::Stopped, 503),
            (ErrorKind::Unreachable, 503),
            (ErrorKind::Timeout, 503),
            (ErrorKind::SessionLost, 503),
            (ErrorKind::Forbidden, 500),
            (ErrorKind::SchemaMissing, 500),
            (ErrorKind::Database, 500),
        ];
        for (kind, status) in cases {
            let response = Problem::from(Error::new(kind, "x")).into_response();
            assert_eq!(response.status().as_u16(), status, "{kind:?}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503, "{kind:?}");
        }
    }

    #[test]
    fn a_value_that_the_server_cannot_hold_is_the_clients_fault() {
        for (sqlstate, status) in [("22P05", 422), ("54000", 422), ("42501", 500), ("53300", 500)] {
            let error = Error::new(ErrorKind::Database, "x").with_sqlstate(sqlstate);
            assert_eq!(status_of(&error).as_u16(), status, "{sqlstate}");
        }
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
