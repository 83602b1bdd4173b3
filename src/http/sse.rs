//! A run's stream as Server-Sent Events, on any pod.
//!
//! The answers follow from how a browser's `EventSource` behaves (HTML standard, "Server-sent events"). When a
//! connection ends, the `EventSource` comes back with the last id that it saw. After any answer except 200 it gives up
//! for good. So 204 stops it after the end, and a temporary failure must not be answered with 503.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;

use crate::http::api::Api;
use crate::http::problem::Problem;
use crate::http::runs::run_id;
use crate::runs::stream::large::Large;
use crate::{Attached, Error, ErrorKind, Pod, Result, RunId, StreamEvent, StreamPosition};

/// How often a comment is sent. So proxies do not end a quiet stream (nginx does after 60 s), and the write shows when
/// a reader has gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a client that is sent elsewhere waits before it comes back, at least and at most. The clients of one pod
/// come back spread over this time. If no other pod can serve them, each asks again after such a time.
const COME_BACK_MS: std::ops::Range<u64> = 1000..3000;
/// The header with which a client that was cut off names the last event that it saw.
const LAST_EVENT_ID: &str = "last-event-id";
/// nginx, and proxies like it, buffer an answer until it is complete, unless it has this header.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Proxies that compress also buffer. `no-transform` forbids it.
const PASS_ON: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// The stream's route in the reference pod.
pub(super) async fn stream(
    State(api): State<Api>,
    id: std::result::Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    Ok(sse_run(&api.pod, run_id(id)?, &headers).await)
}

/// Answers a client of a run's stream: attaches after the event that its `Last-Event-ID` names, and sends later events,
/// as [`sse`] does. Refusals are answered as in the [module's table](crate::http).
///
/// An `EventSource` gives up for good at any answer except 200. This pod may be unable to serve the stream for now: it
/// is cut off, it has ended, or the database cannot be reached. A client that accepts `text/event-stream` then gets an
/// event `elsewhere`, and comes back. Other clients get 503.
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

/// Answers a client of a stream to which nothing could be attached: as in the [module's table](crate::http), or with an
/// event `elsewhere` if [`sse_run`] would send it.
pub fn sse_refused(error: Error, headers: &HeaderMap) -> Response {
    if accepts_events(headers) && goes_elsewhere(&error) {
        respond(stream::iter([elsewhere(&error)]))
    } else {
        Problem::from(error).into_response()
    }
}

/// Answers with this reader's events as Server-Sent Events: `chunk`, `reset` and `end`, with their positions as ids.
/// Then the answer closes. It is 204 if the reader attached after the end: then an `EventSource` stops coming back.
///
/// If the reader's pod is cut off for `self_fence`, or ends, the reader gets `elsewhere`, and the answer closes. The
/// client comes back with the id of the last event that it saw, through a load balancer to another pod, and misses
/// nothing. With [`Attached::wait_while_cut_off`] set to true, the reader waits instead.
///
/// The answer tells proxies to pass on each event at once.
pub fn sse(attached: Attached) -> Response {
    if attached.is_over() {
        return (StatusCode::NO_CONTENT, [(CACHE_CONTROL, HeaderValue::from_static("no-store"))]).into_response();
    }
    respond(events(attached.wait_while_cut_off_by_default(false)))
}

/// The position from which a client continues, by its header `Last-Event-ID`. The start if it has no such header.
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

fn respond(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let mut response = Body::from_stream(events.map(Ok::<_, Infallible>)).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, PASS_ON);
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The data for a client, piece by piece, whenever it can take more.
struct Sending {
    /// The reader. `None` once it was cut off: the response ends after `pieces`.
    attached: Option<Attached>,
    /// The pieces of the current event that were not sent yet.
    pieces: VecDeque<Bytes>,
}

/// The events' bytes. The stream ends after `end`, or if the run's stream cannot be read here any more.
fn events(attached: Attached) -> impl Stream<Item = Bytes> + Send {
    let sending = Sending { attached: Some(attached), pieces: VecDeque::new() };
    stream::unfold(sending, |mut sending| async {
        let piece = sending.next().await?;
        Some((piece, sending))
    })
}

impl Sending {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        let attached = self.attached.as_mut()?;
        let event = match tokio::time::timeout(KEEP_ALIVE, attached.next_shared()).await {
            Err(_) => return Some(Bytes::from_static(b":\n\n")),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some((event, large)))) => self.pieces_of(&event, large),
            Ok(Err(e)) => Err(e),
        };
        if let Err(e) = event {
            tracing::debug!(target: "podlock", event = "stream_cut", error = %e, "a reader is cut off");
            self.attached = None;
            return goes_elsewhere(&e).then(|| elsewhere(&e));
        }
        self.pieces.pop_front()
    }

    /// The pieces of an event: one, or several if it has a large chunk, whose JSON all of its readers share.
    fn pieces_of(&mut self, event: &StreamEvent, large: Option<Arc<Large>>) -> Result<()> {
        let Some(position) = self.attached.as_ref().map(Attached::position) else { return Ok(()) };
        let head = format!("event: {}\nid: {position}\ndata: ", event.name());
        let mut piece = head.into_bytes();
        match large {
            None => {
                serde_json::to_writer(&mut piece, event).map_err(|e| no_json(e.to_string()))?;
                piece.extend_from_slice(END);
                self.pieces.push_back(piece.into());
            }
            Some(large) => {
                large.make_json(event).map_err(no_json)?;
                self.pieces.extend([piece.into(), Bytes::from_owner(Json(large)), Bytes::from_static(END)]);
            }
        }
        Ok(())
    }
}

/// The end of an event. JSON itself has no line breaks.
const END: &[u8] = b"\n\n";

/// The JSON of a large chunk. It was made before.
struct Json(Arc<Large>);

impl AsRef<[u8]> for Json {
    fn as_ref(&self) -> &[u8] {
        self.0.json().as_bytes()
    }
}

fn no_json(why: String) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("an event is no JSON: {why}"))
        .state("the reader is cut off")
        .help("attach again")
}

/// An event without an id: the client continues from the last one that it saw.
fn elsewhere(error: &Error) -> Bytes {
    let data = json!({ "event": "elsewhere", "kind": error.kind().as_str(), "error": error.to_string() });
    let come_back = fastrand::u64(COME_BACK_MS);
    format!("event: elsewhere\nretry: {come_back}\ndata: {data}\n\n").into()
}

/// Whether another pod can serve what this pod cannot, or this pod can a little later.
fn goes_elsewhere(error: &Error) -> bool {
    error.retry_elsewhere() || error.is_transient() || error.kind() == ErrorKind::Standby
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}
