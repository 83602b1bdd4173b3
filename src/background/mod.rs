//! How the work in the background is run: one loop for all parts of a pod, and one for all dedicated sessions that come
//! and go.
//!
//! A part declares what wakes it, its period and its work ([`part::Part`]). A session declares when it is wanted, how
//! it is opened and how it is served ([`session::Kept`]). The loops are here, once: waiting, back-off, the stop, and a
//! panic.
//!
//! Invariant: nothing here knows what a part or a session is for.

pub(crate) mod part;
pub(crate) mod session;
