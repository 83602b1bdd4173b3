//! The input of a recovery pass.

use crate::id::Incarnation;
use crate::protocol::recover::{Memory, Seen};

/// The input of a pass: what this process knew before the load, and the rows that the load returned.
pub(crate) struct Loaded {
    pub(super) own: Incarnation,
    pub(super) memory: Memory,
    /// There may be more orphans than the load returned.
    pub(super) more: bool,
    /// The load did not ask for all orphans. There is no room for some kinds, or a suspect runs here.
    pub(super) held_back: bool,
    pub(super) seen: Seen,
}
