//! Runs that claims keep passing over: another transaction has locked their rows.
//!
//! A guard hides its run from claims until its transaction ends. The server ends one that is idle or frozen. It does
//! not end one that is prepared (`PREPARE TRANSACTION`) or kept busy: the run then waits, and this is where that is
//! said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use crate::id::RunId;
use crate::membership::clock;
use crate::protocol::Moment;
use crate::store::holders;

/// The most runs of one pass that are looked at.
const LOOKED_AT: usize = 64;
/// The most runs that are remembered. Those beyond are looked at when others of them are claimed.
const REMEMBERED: usize = 10_000;

/// Runs that were wanted and not taken, in each pass that wanted them, and since when.
#[derive(Default)]
pub(super) struct PassedOver(BTreeMap<RunId, Seen>);

struct Seen {
    since: Moment,
    last: Moment,
    said: bool,
}

impl PassedOver {
    /// Notes what a pass wanted and did not take. Returns the runs that have been passed over for longer than `lease`,
    /// for as long as that was not said of them.
    fn note(&mut self, now: Moment, lease: Duration, missed: &[RunId], taken: &[RunId]) -> Vec<RunId> {
        taken.iter().for_each(|run_id| _ = self.0.remove(run_id));
        // A pass that wants nothing, for want of room, says nothing of the runs. One that nobody has wanted for a lease
        // is claimed or ended.
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

    /// [`PassedOver::note`], and warns of the runs that a lock hides, once of each, naming who has it.
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
                target: "podlock", event = "run_hidden", pod = %engine.member.pod_id, run = %run.run_id, hidden_ms, holders = run.holders,
                "no pod can claim a run while another transaction has its row locked, as a guard has: end that transaction"
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
