//! A run's stream as Server-Sent Events, on any pod.
//!
//! What is sent follows from how a browser's `EventSource` behaves (HTML standard, "Server-sent events"). When a
//! connection ends, the `EventSource` comes back with the last id that it saw. After any answer but 200 it gives up
//! for good. So 204 stops it after the end, and a failure that passes by itself must not be answered with 503.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, future, stream};
use serde_json::json;

use crate::http::problem::Problem;
use crate::http::router::Api;
use crate::http::runs::run_id;
use crate::{Attached, Error, ErrorKind, Pod, Result, RunId, StreamEvent, StreamPosition};

/// How often a comment is sent. Proxies then do not take a quiet stream for a dead one (nginx ends such a stream after
/// 60 s), and the write shows when a reader has gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a client that is sent elsewhere waits before it comes back, at least and at most. Clients of one pod come back
/// spread over this time. Where no other pod can serve them, each of them asks about so often.
const COME_BACK_MS: std::ops::Range<u64> = 1000..3000;
/// What a client that was cut off names: the id of the last event that it saw.
const LAST_EVENT_ID: &str = "last-event-id";
/// nginx, and others after it, hold an answer back until it is whole, unless it says this.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Proxies that compress hold back as well; `no-transform` keeps them from it.
const PASS_ON: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// The route of the reference pod.
pub(super) async fn stream(
    State(api): State<Api>,
    id: std::result::Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    Ok(sse_run(&api.pod, run_id(id)?, &headers).await)
}

/// The answer to a client of a run's stream: attaches after the event that its `Last-Event-ID` names and sends what comes,
/// as [`sse`] does. What is refused is answered as the [module's table](crate::http) says.
///
/// An `EventSource` gives up for good at any answer but 200. This pod may be unable to serve the stream for now: it
/// is cut off, it has ended, or the database is out of reach. A client that accepts `text/event-stream` is then sent
/// an event `elsewhere`, and comes back. Other clients get 503.
///
/// # Cancel safety
///
/// Safe: the reader is detached.
pub async fn sse_run(pod: &Pod, run_id: RunId, headers: &HeaderMap) -> Response {
    let attached = async { pod.attach_unless_cut_off(run_id, last_event_id(headers)?).await };
    match attached.await {
        Ok(attached) => sse(attached),
        Err(e) => sse_refused(e, headers),
    }
}

/// The answer to a client of a stream to which nothing could be attached: as the [module's table](crate::http) says, or an
/// event `elsewhere` where [`sse_run`] would send it.
pub fn sse_refused(error: Error, headers: &HeaderMap) -> Response {
    if accepts_events(headers) && goes_elsewhere(&error) {
        respond(stream::iter([Ok(elsewhere(&error))]))
    } else {
        Problem::from(error).into_response()
    }
}

/// An answer that sends what this reader is handed, as Server-Sent Events: `chunk`, `reset`, `end` with their positions as
/// ids, then it closes. 204 if the reader has attached behind the end: at that an `EventSource` stops to come back.
///
/// A reader whose pod is cut off for `self_fence`, or ends, is sent `elsewhere`, and the answer closes. The client comes back
/// with the id of the last event that it saw, through a load balancer to another pod, and misses nothing.
/// [`Attached::wait_while_cut_off`] with true has it wait instead.
///
/// The answer tells proxies to pass on each event as it comes.
pub fn sse(attached: Attached) -> Response {
    if attached.is_over() {
        return (StatusCode::NO_CONTENT, [(CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response();
    }
    respond(events(attached.wait_while_cut_off_by_default(false)))
}

/// From where a client goes on, by its header `Last-Event-ID`; the start where it has none.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for an id that none of podlock's events has.
pub fn last_event_id(headers: &HeaderMap) -> Result<StreamPosition> {
    match headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or("(no text)")) {
        None | Some("") => Ok(StreamPosition::START),
        Some(id) => id.parse(),
    }
}

fn respond(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert(CACHE_CONTROL, PASS_ON);
    response.headers_mut().insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

/// Ends after `end`, or where the stream cannot be read any more here.
fn events(attached: Attached) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    attached.into_stream().filter_map(|next| {
        let event = next.and_then(|(event, position)| event_of(&event, position));
        future::ready(match event {
            Ok(event) => Some(Ok(event)),
            Err(e) => {
                tracing::debug!(target: "podlock", event = "stream_cut", error = %e, "a reader is cut off");
                goes_elsewhere(&e).then(|| Ok(elsewhere(&e)))
            }
        })
    })
}

fn event_of(event: &StreamEvent, position: StreamPosition) -> Result<Event> {
    Event::default().event(event.name()).id(position.to_string()).json_data(event).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, "an event is no JSON")
            .caused_by(e)
            .left("the reader is cut off")
            .todo("attach again")
    })
}

/// Without an id: the client goes on from the last one that it saw.
fn elsewhere(error: &Error) -> Event {
    let data = json!({ "event": "elsewhere", "kind": error.kind().as_str(), "error": error.to_string() });
    let come_back = Duration::from_millis(fastrand::u64(COME_BACK_MS));
    Event::default().event("elsewhere").retry(come_back).data(data.to_string())
}

/// Whether another pod, or this one a little later, can serve what this one cannot.
fn goes_elsewhere(error: &Error) -> bool {
    error.retry_elsewhere() || error.is_transient() || error.kind() == ErrorKind::Standby
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}
