//! Reads the mark of an eviction in a row of the roster.

use crate::protocol::ending::Reason;

/// Why the pod was evicted, from the column `evicted`. A mark of a newer version is logged and ignored.
pub(crate) fn mark(of: Option<&str>) -> Option<Reason> {
    let mark = of?;
    let reason = Reason::of_eviction(mark);
    if reason.is_none() {
        tracing::warn!(
            target: "podlock", event = "unknown_eviction", mark,
            "a row bears a mark that this version does not know; it is ignored"
        );
    }
    reason
}
