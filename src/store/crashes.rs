//! What counts as a crash of a run, in the words of the statements that ask for it: `protocol::poison` says it.

use crate::protocol::poison::CRASHES;

/// How the ends are called that count: the argument `crashes` of the statements.
pub(crate) fn crash_reasons() -> Vec<&'static str> {
    CRASHES.iter().map(|reason| reason.as_str()).collect()
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

pub(crate) use died_with;
