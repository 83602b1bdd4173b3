//! The backlog, by kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::Operator;
use crate::error::Result;
use crate::meters::{self, KINDS_MOST, OTHERS};
use crate::store::backlog::{self, OfKind};

/// How many runs of a kind wait, and the room for them: a row of the view `studio_backlog`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BacklogRow {
    /// The kind.
    pub kind: String,
    /// Its running runs that no pod of the roster owns.
    pub waiting: i64,
    /// Its running runs that a pod of the roster owns.
    pub running: i64,
    /// How many more runs of it the pods have room for. A place that may go to several kinds counts for each of them.
    pub free_capacity: i64,
    /// How many pods take it.
    pub pods: i64,
    /// Whether there are more running runs than the view counts, about 20,000 with an owner and as many without: then
    /// `waiting` and `running` are lower bounds, and `free_capacity` is an upper bound.
    pub is_cut: bool,
}

impl Operator {
    /// Returns the backlog of each kind that a running run has or that a pod takes, those with the most waiting runs first.
    /// At most 10,000 kinds.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn backlog(&self) -> Result<Vec<BacklogRow>> {
        let row = |OfKind { kind, waiting, running, free_capacity, pods, is_cut }| BacklogRow {
            kind,
            waiting,
            running,
            free_capacity,
            pods,
            is_cut,
        };
        Ok(backlog::backlog(&self.database).await?.into_iter().map(row).collect())
    }

    /// Reads the backlog and sets its metrics (`podlock_backlog_…`), for a process that is no pod. A pod does so by itself
    /// ([`PodBuilder::report_backlog`](crate::PodBuilder::report_backlog)).
    ///
    /// `shown` has the kinds with series of their own. Begin with an empty set, and give the same set each time. Kinds are
    /// added, those with the most waiting runs first, up to [`KINDS_MOST`]. A kind stays: once it is in no row, its
    /// metrics are 0. Runs of further kinds count under [`OTHERS`], where capacity and pods stay 0.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`]. The metrics and `shown` stay as they are then.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn record_backlog(&self, shown: &mut BTreeSet<String>) -> Result<()> {
        for (kind, values) in series(self.backlog().await?, shown) {
            let kind: Arc<str> = kind.into();
            let gauges = [meters::BACKLOG_WAITING, meters::BACKLOG_RUNNING, meters::BACKLOG_FREE, meters::BACKLOG_PODS];
            for (gauge, value) in gauges.into_iter().zip(values) {
                meters::gauge_of(gauge, "kind", Arc::clone(&kind), value);
            }
        }
        Ok(())
    }
}

/// The values of each series: waiting, running, free capacity, pods. A kind that is shown and in no row has zeros. Places
/// and pods of further kinds are not summed up, because a pod that takes several kinds counts for each.
fn series(rows: Vec<BacklogRow>, shown: &mut BTreeSet<String>) -> BTreeMap<String, [i64; 4]> {
    let mut series: BTreeMap<String, [i64; 4]> =
        shown.iter().map(String::as_str).chain([OTHERS]).map(|kind| (kind.to_owned(), [0; 4])).collect();
    for row in rows {
        if shown.len() < KINDS_MOST && !shown.contains(&row.kind) {
            shown.insert(row.kind.clone());
        }
        if shown.contains(&row.kind) {
            series.insert(row.kind, [row.waiting, row.running, row.free_capacity, row.pods]);
        } else if let Some([waiting, running, ..]) = series.get_mut(OTHERS) {
            *waiting += row.waiting;
            *running += row.running;
        }
    }
    series
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: &str) -> BacklogRow {
        BacklogRow { kind: kind.to_owned(), waiting: 1, running: 2, free_capacity: 3, pods: 4, is_cut: false }
    }

    #[test]
    fn a_kind_that_is_in_no_row_any_more_has_zeros() {
        let mut shown = BTreeSet::new();
        series(vec![row("a"), row("b")], &mut shown);
        let later = series(vec![row("b"), row("c")], &mut shown);
        let expected = [(OTHERS, [0; 4]), ("a", [0; 4]), ("b", [1, 2, 3, 4]), ("c", [1, 2, 3, 4])];
        assert_eq!(later, expected.map(|(kind, values)| (kind.to_owned(), values)).into());
    }

    #[test]
    fn whatever_kinds_come_and_go_the_series_are_bounded() {
        let mut shown = BTreeSet::new();
        for round in 0..3 {
            let rows = (0..KINDS_MOST).map(|n| row(&format!("k{round}-{n}"))).collect();
            let of = series(rows, &mut shown);
            assert_eq!((of.len(), shown.len()), (KINDS_MOST + 1, KINDS_MOST));
            let beyond = if round == 0 { 0 } else { i64::try_from(KINDS_MOST).unwrap() };
            assert_eq!(of[OTHERS], [beyond, 2 * beyond, 0, 0]);
        }
    }
}
