//! How many requests are answered at a time. A request keeps its place until its answer is sent: answers to clients that
//! read slowly take memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::problem::Problem;

/// Answers a request if there is a place for it, which it keeps until its answer is sent.
pub(super) async fn in_a_place(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(place) = places.try_acquire_owned() else {
        let why = "too many requests read the history of this server now";
        return Problem::unavailable("busy", why).into_response();
    };
    next.run(request).await.map(|body| Body::new(InAPlace { body, _place: place }))
}

/// The body of an answer. The server drops it when it is sent, or when its client is gone.
struct InAPlace {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for InAPlace {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[tokio::test]
    async fn a_request_keeps_its_place_until_its_answer_is_sent() {
        let places = Arc::new(Semaphore::new(1));
        let routes = Router::new()
            .route("/", get(async || "an answer"))
            .route_layer(from_fn_with_state(Arc::clone(&places), in_a_place));
        let server = TowerToHyperService::new(routes);
        let ask = || async { server.call(Request::new(Body::empty())).await.unwrap_or_else(|never| match never {}) };
        let first = ask().await;
        assert_eq!((first.status(), places.available_permits()), (StatusCode::OK, 0), "nobody has read it");
        assert_eq!(ask().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let sent = axum::body::to_bytes(first.into_body(), 100).await.unwrap();
        assert_eq!((&sent[..], places.available_permits()), (&b"an answer"[..], 1));
        assert_eq!(ask().await.status(), StatusCode::OK);
        assert_eq!(places.available_permits(), 1, "the client is gone");
    }
}
