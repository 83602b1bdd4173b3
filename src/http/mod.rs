//! An axum router for a pod: health probes and the run API.
//!
//! [`router`] returns a plain [`Router`](axum::Router): serve it, nest it in your own, or drive it in a test.
//! [`serve`](serve()) serves it, or any other router. It has limits against clients that are slow, idle or many, and
//! checks `Host` and `Origin`.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /v1/runs` `{"kind": …, "key": …, "input": …}` | 201 `{"run_id", "pod_id", "incarnation", "fence"}`: the run is this pod's and is executing |
//! | `GET /v1/runs?kind={kind}&key={key}` | 200 and all about the run of this kind and key: the one that is running, else the newest that has ended |
//! | `GET /v1/runs/{id}` | 200 and all about the run, as [`RunDetail`](crate::operator::RunDetail) |
//! | `GET /v1/runs/{id}/stream` | 200 and the run's stream as Server-Sent Events, whichever pod the run is on; 204 for a client that has seen its end |
//! | `DELETE /v1/runs/{id}` | 200 and the run, cancelled, whichever pod owns it |
//! | `GET /livez` | 200 while the process serves at all |
//! | `GET /readyz` | 200 while the pod may take work, else 503 with why |
//! | `GET /healthz` | 200 and who this is and in which phase |
//!
//! A stream's events are `chunk` `{"generation", "seq", "fence", "body"}`, `reset` `{"generation", "from_seq"}` (forget
//! the chunks from that one on) and `end` `{"state"}`, with `"error"` if there is one. The stream closes after `end`.
//! Each event has an `id`. A client that comes back with that id as `Last-Event-ID`, to this pod or another, gets the
//! events after it. After the end the answer is 204, at which an `EventSource` stops. `elsewhere` `{"kind", "error"}`
//! has no `id`: this pod cannot serve the stream any more and closes it, and the client comes back to another pod.
//! Every 10 s a comment keeps the connection alive. [`sse`] makes such a stream for a handler of your own: [with an
//! example](crate::streams).
//!
//! [`probes`](probes()) has only the three probes, for a service with routes of its own. They never use the database:
//! an outage of the database must not restart every pod.
//!
//! Every refusal is a JSON body `{"error": what was wrong, "kind": a stable word}`. Some have more fields:
//!
//! | status | kind | when |
//! | --- | --- | --- |
//! | 400 | `bad_json`, `bad_request` | the body is not JSON; the id is not a UUID; the query lacks `kind` or `key` |
//! | 403 | `foreign_origin` | a page of another site asks to change something, or for a stream ([`serve`](serve())) |
//! | 404 | `not_found` | there is no such run, or none of this kind and key |
//! | 405 | `method_not_allowed` | |
//! | 408 | `body_too_slow` | the body did not come within [`Limits::body`] ([`serve`](serve())) |
//! | 409 | `key_busy`, `fenced`, `already_ended` | the key is taken, with `run_id` of the run that has it; the run was started and has moved on, with its `run_id`; the run to cancel has ended, with its `state` |
//! | 413 | `too_large` | the body is over 1 MiB, or the input over `input_max_bytes` |
//! | 415 | `unsupported_media_type` | the body is not declared as JSON |
//! | 421 | `foreign_host` | the request is for a host that this server does not answer for ([`serve`](serve())) |
//! | 422 | `invalid_input`, `no_handler` | the body is JSON of another shape; your check refused it; nobody here runs this kind |
//! | 500 | as [`ErrorKind`](crate::ErrorKind) | the database refused something that it should not have |
//! | 503 | `at_capacity`, `draining`, `detached`, `stopped`, … | this pod cannot do it now; `Retry-After` says when to try again, here or on another pod. Without `Retry-After` it may have been done: see first |
//!
//! A service's own routes can use the same table: [`Error::http_status`](crate::Error::http_status) returns the status,
//! and [`Error`](crate::Error) is a response.
//!
//! There is no authentication: listen on loopback, or nest the router behind your own.

mod api;
mod bodies;
mod names;
mod probes;
mod problem;
mod router;
mod runs;
mod seats;
mod serve;
mod sse;

pub use problem::not_found;
pub use router::{BODY_LIMIT, probes, router, router_with};
pub use serve::{Limits, Serve, serve};
pub use sse::{last_event_id, sse, sse_refused, sse_run};
