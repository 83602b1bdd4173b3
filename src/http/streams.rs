//! A run's stream as Server-Sent Events, on whatever pod is asked.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, future};

use crate::http::problem::Problem;
use crate::http::router::Api;
use crate::http::runs::run_id;
use crate::{Attached, Result, StreamEvent, StreamPosition};

/// A comment so often keeps proxies from taking a quiet stream for a dead one, and tells of readers that have gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What a client that was cut off names: the id of the last event that it saw.
const LAST_EVENT_ID: &str = "last-event-id";

/// The run's stream: from its first chunk on, or after the event that `Last-Event-ID` names.
pub(super) async fn stream(
    State(api): State<Api>,
    id: std::result::Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    let run_id = run_id(id)?;
    let position = match headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or("(no text)")) {
        None | Some("") => StreamPosition::START,
        Some(id) => id.parse()?,
    };
    let attached = api.pod.attach_after(run_id, position).await?;
    let alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events(attached)).keep_alive(alive).into_response())
}

/// Ends after `end`. Where it ends without, the client attaches anew, here or to another pod.
fn events(attached: Attached) -> impl Stream<Item = Result<Event, Infallible>> {
    attached.into_stream().filter_map(|next| {
        let event = next.and_then(|(event, position)| sse(&event, position));
        future::ready(match event {
            Ok(event) => Some(Ok(event)),
            Err(e) => {
                tracing::debug!(target: "podlock", event = "stream_cut", error = %e, "a reader is cut off");
                None
            }
        })
    })
}

fn sse(event: &StreamEvent, position: StreamPosition) -> Result<Event> {
    let name = match event {
        StreamEvent::Chunk { .. } => "chunk",
        StreamEvent::Reset { .. } => "reset",
        StreamEvent::End { .. } => "end",
    };
    Event::default().event(name).id(position.to_string()).json_data(event).map_err(|e| {
        crate::Error::new(crate::ErrorKind::InvalidInput, "an event is no JSON")
            .caused_by(e)
            .left("the reader is cut off")
            .todo("attach anew")
    })
}
