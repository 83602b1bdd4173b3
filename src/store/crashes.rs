//! What counts as a crash of a run, in the words of the statements that ask for it: `protocol::poison` says it.

use crate::protocol::poison::crashes;

/// How the ends are called that count: the parameter `$reasons` of the statements.
pub(crate) fn crash_reasons() -> Vec<&'static str> {
    crashes().map(|reason| reason.as_str()).collect()
}

/// Whether the owner whose session is `$session` crashed under the run `r`. One that never began it is no matter.
macro_rules! crashed {
    ($session:literal, $reasons:literal) => {
        concat!("(", $session, ".reason = ANY(", $reasons, "::pg_catalog.text[]) AND r.attempt > 0)")
    };
}

/// The last owners that crashed under the run `r`, at most `$most`, and never more than 1000. A count that was made negative
/// by hand fails nothing.
macro_rules! died_with {
    ($reasons:literal, $most:literal) => {
        concat!(
            "SELECT d.attempt, d.pod_id, d.incarnation, t.reason, t.ended_at \
               FROM @.studio_run_attempts d JOIN @.studio_pod_sessions t ON t.incarnation = d.incarnation \
              WHERE d.run_id = r.run_id AND t.reason = ANY(",
            $reasons,
            "::pg_catalog.text[]) AND (d.reason IS NULL OR d.reason = t.reason) \
              ORDER BY d.attempt DESC LIMIT LEAST(GREATEST(",
            $most,
            ", 0), 1000)"
        )
    };
}

pub(crate) use {crashed, died_with};
