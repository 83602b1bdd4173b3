//! Alerts: lost pods, quarantined runs, inactive workers. They are events of the log.
//!
//! * `hook`: each pod calls the callback of its service for each alert that it hears.
//! * `deliver`: one pod of the fleet reads the log, and hands each alert to a [`Courier`], until it is delivered or given
//!   up. `courier`: what a courier promises.
//!
//! Invariant: nothing here runs on the keeper's thread, and nothing holds a transaction open while it waits for somebody
//! outside.

#[cfg(feature = "http")]
mod courier;
#[cfg(feature = "http")]
mod deliver;
mod hook;

#[cfg(feature = "http")]
pub(crate) use courier::{Courier, Undelivered};
#[cfg(feature = "http")]
pub(crate) use deliver::{Deliverer, Endpoint};
pub(crate) use hook::{Hook, Hooked};

// Only webhooks record these.
#[cfg(not(feature = "http"))]
const _: [&str; 2] = [crate::meters::WEBHOOK_DELIVERIES, crate::meters::WEBHOOK_CUTS];
