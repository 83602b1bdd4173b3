//! What a pod knows of the runs that may move.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::StopReason;
use crate::membership::clock;
use crate::protocol::Moment;

/// What a pod knows of an attempt at a run that may move. The attempt's [`super::Run`] writes `saved`, and
/// `super::moving` writes `asked`; the latter reads both.
#[derive(Debug)]
pub(crate) struct Mobility {
    pub(super) kind: Arc<str>,
    pub(super) begun: Moment,
    /// The attempt has saved a checkpoint.
    pub(super) saved: AtomicBool,
    /// When the attempt was asked to move. It is asked once.
    pub(super) asked: OnceLock<Moment>,
}

impl Mobility {
    pub(super) fn of_attempt(kind: &str) -> Self {
        Self { kind: Arc::from(kind), begun: clock::now(), saved: AtomicBool::new(false), asked: OnceLock::new() }
    }

    pub(super) fn note_saved(&self) {
        self.saved.store(true, Ordering::Release);
    }
}

/// Why a run was given back, as its attempt's row says it.
pub(super) fn reason_of_yield(stop: Option<StopReason>) -> &'static str {
    if stop == Some(StopReason::Moving) { "moved" } else { "yielded" }
}
