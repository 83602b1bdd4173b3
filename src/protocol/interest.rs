//! For which runs a pod says in the table `studio_stream_readers` that it has readers.
//!
//! * **Authority.** The readers that are attached on this pod. The rows follow them, on the session that also hears the
//!   notices. With a new session the rows are written again: a crash or a failover empties the table.
//! * **States.** [`Interest`]: the runs for which a row was written, and when the last reader of each had gone.
//! * **Bound.** A row stays at most [`LINGER`] and a round of the session longer than the last reader.
//! * **Failures.** If the pod dies, its rows stay. They do not count, because its incarnation is not in the roster, and
//!   other pods delete them.
//! * **Not promised.** Rows are no condition for reading. A pod without rows still reads: once a second,
//!   or ten times a second while its session is down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Moment;
use crate::id::RunId;

/// How long the rows of a run stay after its last reader has gone: 5 s. A browser that reconnects comes back in about
/// three seconds. A longer time keeps notices coming that nobody needs.
pub const LINGER: Duration = Duration::from_secs(5);
/// How many rows one statement writes or deletes. More would make the statement long, fewer would make more round
/// trips.
pub const PORTION: usize = 512;

/// The runs for which this pod's rows were written.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// For a run without readers: when the pod noticed that the last one had gone.
    runs: BTreeMap<RunId, Option<Moment>>,
}

/// The rows to write and to delete next, at most [`PORTION`] of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Runs whose rows must be written.
    pub enter: Vec<RunId>,
    /// Runs whose rows must be deleted.
    pub leave: Vec<RunId>,
}

impl Interest {
    /// What must change. `read` are the runs that have readers on this pod. The pod tells the readers of runs that it
    /// executes itself (`is_own`), so these need no row. A row that is there already stays until the readers go.
    pub fn changes(&mut self, read: &BTreeSet<RunId>, is_own: impl Fn(RunId) -> bool, now: Moment) -> Changes {
        for (run, gone) in &mut self.runs {
            *gone = if read.contains(run) { None } else { Some(gone.unwrap_or(now)) };
        }
        let is_over = |gone: &Option<Moment>| gone.is_some_and(|gone| gone + LINGER <= now);
        let leave = self.runs.iter().filter(|(_, gone)| is_over(gone)).map(|(run, _)| *run);
        let enter = read.iter().copied().filter(|run| !self.has(*run) && !is_own(*run));
        Changes { enter: enter.take(PORTION).collect(), leave: leave.take(PORTION).collect() }
    }

    /// Rows of these runs were written.
    pub fn note_entered(&mut self, runs: &[RunId]) {
        self.runs.extend(runs.iter().map(|run| (*run, None)));
    }

    /// The rows of these runs were deleted.
    pub fn note_left(&mut self, runs: &[RunId]) {
        runs.iter().for_each(|run| _ = self.runs.remove(run));
    }

    /// When the next row must be deleted, if no reader comes back.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.runs.values().flatten().min().map(|gone| *gone + LINGER)
    }

    /// Whether a row of this run was written.
    #[must_use]
    pub fn has(&self, run: RunId) -> bool {
        self.runs.contains_key(&run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Moment = Duration::from_secs(1);

    fn run(n: u128) -> RunId {
        uuid::Uuid::from_u128(n).into()
    }

    #[test]
    fn a_run_is_entered_once_and_left_when_no_reader_has_come_back() {
        let mut interest = Interest::default();
        let (none, one): (BTreeSet<RunId>, _) = (BTreeSet::new(), BTreeSet::from([run(1)]));
        let not_own = |_| false;
        let enters = Changes { enter: vec![run(1)], leave: vec![] };
        assert_eq!(interest.changes(&one, not_own, SECOND), enters);
        // The statement failed: the row is still to be written.
        assert_eq!(interest.changes(&one, not_own, SECOND), enters);
        interest.note_entered(&[run(1)]);
        assert_eq!(interest.changes(&one, not_own, SECOND), Changes::default());
        assert_eq!((interest.due(), interest.has(run(1))), (None, true));
        // The reader goes, comes back, and goes again.
        assert_eq!(interest.changes(&none, not_own, SECOND * 2), Changes::default());
        assert_eq!(interest.due(), Some(SECOND * 2 + LINGER));
        assert_eq!(interest.changes(&one, not_own, SECOND * 4), Changes::default());
        assert_eq!(interest.due(), None);
        assert_eq!(interest.changes(&none, not_own, SECOND * 5), Changes::default());
        assert_eq!(interest.changes(&none, not_own, SECOND * 9), Changes::default());
        let leaves = Changes { enter: vec![], leave: vec![run(1)] };
        assert_eq!(interest.changes(&none, not_own, SECOND * 5 + LINGER), leaves);
        interest.note_left(&[run(1)]);
        assert_eq!(interest.changes(&one, not_own, SECOND * 20), enters);
    }

    #[test]
    fn the_pods_own_runs_are_entered_when_another_pod_has_them() {
        let mut interest = Interest::default();
        let read = BTreeSet::from([run(1), run(2)]);
        let is_own = |own| move |r| r == run(own);
        assert_eq!(interest.changes(&read, is_own(1), SECOND).enter, [run(2)]);
        interest.note_entered(&[run(2)]);
        assert_eq!(interest.changes(&read, |_| false, SECOND).enter, [run(1)]);
        // The pod has claimed the run. The row stays, because it costs nothing.
        assert_eq!(interest.changes(&read, is_own(2), SECOND).leave, []);
    }

    #[test]
    fn many_are_entered_and_left_in_portions() {
        let mut interest = Interest::default();
        let read: BTreeSet<RunId> = (0..1000).map(run).collect();
        let mut portions = Vec::new();
        loop {
            let Changes { enter, .. } = interest.changes(&read, |_| false, SECOND);
            if enter.is_empty() {
                break;
            }
            interest.note_entered(&enter);
            portions.push(enter.len());
        }
        assert_eq!(portions, [PORTION, 1000 - PORTION]);
        interest.changes(&BTreeSet::new(), |_| false, SECOND);
        assert_eq!(interest.changes(&BTreeSet::new(), |_| false, SECOND + LINGER).leave.len(), PORTION);
    }
}
