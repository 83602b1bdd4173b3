//! Reports runs that claims keep passing over because another transaction has locked their rows.
//!
//! A guard locks a run's row, so claims skip the run until the guard's transaction ends. The server ends a transaction
//! whose client is idle or frozen. It does not end a transaction that is prepared (`PREPARE TRANSACTION`) or kept busy.
//! The run waits as long as that transaction lasts, and this module warns about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use crate::id::RunId;
use crate::membership::clock;
use crate::protocol::Moment;
use crate::store::holders;

/// The most runs that are checked for a locked row in one pass. The check reads the server's lock table, and its time
/// grows with the number. Further runs are checked in later passes, so fewer only means that they are named later.
const LOOKED_AT: usize = 64;
/// The most runs that are remembered, to bound the memory to about 1 MB. Further runs are remembered when some of these
/// have been claimed.
const REMEMBERED: usize = 10_000;

/// Runs that each pass wanted and none could claim, and since when.
#[derive(Default)]
pub(super) struct PassedOver(BTreeMap<RunId, Seen>);

struct Seen {
    since: Moment,
    last: Moment,
    said: bool,
}

impl PassedOver {
    /// Records the runs that a pass wanted and did not claim. Returns the runs that have been passed over for longer
    /// than `lease`, until they have been reported.
    fn note(&mut self, now: Moment, lease: Duration, missed: &[RunId], taken: &[RunId]) -> Vec<RunId> {
        taken.iter().for_each(|run_id| _ = self.0.remove(run_id));
        // A pass without room wants no run, so a run that it does not name may still be passed over. A run that no pass
        // has wanted for a lease has been claimed or has ended.
        self.0.retain(|_, seen| now.saturating_sub(seen.last) < lease);
        let mut long = Vec::new();
        for run_id in missed {
            if self.0.len() >= REMEMBERED && !self.0.contains_key(run_id) {
                continue;
            }
            let seen = self.0.entry(*run_id).or_insert(Seen { since: now, last: now, said: false });
            seen.last = now;
            if !seen.said && now.saturating_sub(seen.since) >= lease && long.len() < LOOKED_AT {
                long.push(*run_id);
            }
        }
        long
    }

    /// Calls [`PassedOver::note`]. Warns once of each run that a lock hides from claims, and names who has the lock.
    pub(super) async fn say(&mut self, engine: &Arc<Engine>, missed: &[RunId], taken: &[RunId]) {
        let now = clock::now();
        let long = self.note(now, engine.member.settings.lease, missed, taken);
        if long.is_empty() {
            return;
        }
        let hidden = match holders::hidden(&engine.db, &long).await {
            Ok(hidden) => hidden,
            Err(e) => {
                tracing::debug!(
                    target: "podlock", event = "holders_unknown", pod = %engine.member.pod_id, runs = long.len(),
                    error = %e,
                    "runs are passed over by claims; who has their rows could not be read"
                );
                return;
            }
        };
        for run in hidden {
            let Some(seen) = self.0.get_mut(&run.run_id) else { continue };
            seen.said = true;
            let hidden_ms = u64::try_from(now.saturating_sub(seen.since).as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                target: "podlock", event = "run_hidden", pod = %engine.member.pod_id, run = %run.run_id, hidden_ms,
                holders = run.holders,
                "no pod can claim a run while another transaction has its row locked, as a guard has: end that \
                 transaction"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_reported_once_it_has_been_passed_over_for_a_lease_and_forgotten_once_nobody_wants_it() {
        let (run, lease, at) = (RunId::generate(), Duration::from_secs(4), Duration::from_secs);
        let mut passed_over = PassedOver::default();
        assert_eq!(passed_over.note(at(100), lease, &[run], &[]), []);
        assert_eq!(passed_over.note(at(103), lease, &[run], &[]), []);
        assert_eq!(passed_over.note(at(104), lease, &[run], &[]), [run]);
        assert_eq!(passed_over.note(at(105), lease, &[run], &[]), [run], "until it was said");
        passed_over.0.get_mut(&run).expect("it is there").said = true;
        assert_eq!(passed_over.note(at(106), lease, &[run], &[]), []);
        assert_eq!(passed_over.note(at(107), lease, &[], &[run]), []);
        assert_eq!(passed_over.note(at(108), lease, &[run], &[]), [], "it was taken: from the beginning");
        assert_eq!(
            passed_over.note(at(113), lease, &[run], &[]),
            [],
            "nobody wanted it for a lease: from the beginning"
        );
    }
}
