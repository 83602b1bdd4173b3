#![doc = include_str!("module.md")]

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
mod webhook;
mod workers;

pub use problem::not_found;
pub use router::{BODY_LIMIT, probes, router, router_with, workers_router};
pub use serve::{Limits, Serve, serve};
pub use sse::{last_event_id, sse, sse_refused, sse_run};
pub use webhook::{Webhook, webhook};
