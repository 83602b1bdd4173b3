//! Which ends count as a crash of a run. `protocol::poison` decides it; this is the list for the SQL statements.

use crate::protocol::poison::crashes;

/// The names of the ends that count. This is the argument `crashes` of the statements.
pub(crate) fn crash_reasons() -> Vec<&'static str> {
    crashes().map(|reason| reason.as_str()).collect()
}
