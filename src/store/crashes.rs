//! What counts as a crash of a run, in the words of the statements that ask for it: `protocol::poison` says it.

use crate::protocol::poison::crashes;

/// How the ends are called that count: the argument `crashes` of the statements.
pub(crate) fn crash_reasons() -> Vec<&'static str> {
    crashes().map(|reason| reason.as_str()).collect()
}
