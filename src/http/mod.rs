#![doc = include_str!("module.md")]

mod admin;
mod api;
mod bodies;
mod liveness;
mod names;
mod openapi;
mod parameters;
mod probes;
mod problem;
mod router;
mod runs;
mod seats;
mod serve;
mod sse;
mod webhook;
mod workers;

pub use admin::AdminKey;
pub use liveness::liveness_router;
pub use problem::not_found;
pub use router::{BODY_LIMIT, operator_probes, probes, router, router_with, runs_router, workers_router};
pub use serve::{Limits, Serve, serve};
pub use sse::{last_event_id, sse, sse_refused, sse_run};
pub use webhook::{Webhook, webhook};
