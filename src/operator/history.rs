//! What people and schedulers read of the liveness history: how reliable pods are, what is known of one, its sessions and
//! its samples.

use super::Operator;
use super::history_rows::{Liveness, NetworkAvailability, ReliabilityRow, SHARES, Sample};
use super::rows::SessionRow;
use crate::error::Result;
use crate::store::liveness::{self, ReliabilityWanted};
use crate::store::queries;
use crate::timestamp::Timestamp;

/// The most rows that one call returns. A higher limit counts as this one. More would keep a connection of the pool busy
/// for long, and take much memory.
pub const PAGE_MAX: i64 = 10_000;
/// The most pods that [`Operator::availability`] looks at. Each costs the server 168 numbers, so this many take about a
/// second.
const AVAILABILITY_MAX: i64 = 10_000;

/// Which rows [`Operator::reliability`] returns. A bound of 0 does not filter. A bound on something that is unknown of a
/// pod leaves the pod out.
#[derive(Clone, Debug)]
#[must_use]
pub struct ReliabilityFilter {
    wanted: ReliabilityWanted,
}

impl Default for ReliabilityFilter {
    fn default() -> Self {
        let (min_score, max_score) = (f64::NEG_INFINITY, f64::INFINITY);
        let wanted = ReliabilityWanted {
            min_uptime: None,
            min_stays_4h: None,
            min_score,
            max_score,
            after: None,
            limit: PAGE_MAX,
        };
        Self { wanted }
    }
}

impl ReliabilityFilter {
    /// All of them, up to [`PAGE_MAX`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Only pods with at least this uptime, in percent: 0 to 100.
    pub fn min_uptime(mut self, percent: f64) -> Self {
        self.wanted.min_uptime = bound(percent);
        self
    }

    /// Only pods of whose sessions at least this share lasted four hours: 0 to 1.
    pub fn min_stays_4h(mut self, share: f64) -> Self {
        self.wanted.min_stays_4h = bound(share);
        self
    }

    /// Only pods with at least this score: 0 to 1.
    pub fn min_score(mut self, score: f64) -> Self {
        self.wanted.min_score = bound(score).unwrap_or(f64::NEG_INFINITY);
        self
    }

    /// Only pods with at most this score: above 0 and up to 1. 0 is no bound.
    pub fn max_score(mut self, score: f64) -> Self {
        self.wanted.max_score = bound(score).unwrap_or(f64::INFINITY);
        self
    }

    /// Only those after `row` in the list: the next page.
    pub fn after(mut self, row: &ReliabilityRow) -> Self {
        self.wanted.after = Some((row.score, row.uptime_pct.unwrap_or(-1.0), row.pod_id.clone()));
        self
    }

    /// At most this many: the first ones. At most [`PAGE_MAX`].
    pub fn limit(mut self, limit: i64) -> Self {
        self.wanted.limit = page(limit);
        self
    }
}

fn bound(value: f64) -> Option<f64> {
    (value != 0.0).then_some(value)
}

fn page(limit: i64) -> i64 {
    limit.clamp(0, PAGE_MAX)
}

/// Times before 1970 are the same to the history as 1970. The server does not know all that a [`Timestamp`] can hold.
fn known_to_the_server(at: Timestamp) -> Timestamp {
    at.max(Timestamp::UNIX_EPOCH)
}

impl Operator {
    /// Lists how reliable the pods are: the highest score first, then the highest uptime, then the least name. It shows
    /// what the newest roll-up found.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn reliability(&self, filter: ReliabilityFilter) -> Result<Vec<ReliabilityRow>> {
        liveness::reliability(&self.database, &filter.wanted).await?.iter().map(ReliabilityRow::read).collect()
    }

    /// Returns how reliable one pod is. `None` if no roll-up has seen it. Where scores are made by a label
    /// (`score_by`), `pod` is a value of the label.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn reliability_of(&self, pod: &str) -> Result<Option<ReliabilityRow>> {
        liveness::reliability_of(&self.database, pod).await?.as_ref().map(ReliabilityRow::read).transpose()
    }

    /// Returns what is known of one pod now: whether it is in the roster, its newest sample, how it last ended, how
    /// reliable it was. `None` if nothing is known of the name. It reads no locks, so it costs little however large the
    /// fleet is.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn liveness(&self, pod: &str) -> Result<Option<Liveness>> {
        let row =
            liveness::liveness(&self.database, pod, self.score_by.as_deref().filter(|label| !label.is_empty())).await?;
        row.as_ref().map(|row| Liveness::read(row, pod)).transpose()
    }

    /// Returns whether anything is known of a pod: it is in the roster, or the history has something of it.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn knows_pod(&self, pod: &str) -> Result<bool> {
        liveness::is_known(&self.database, pod).await
    }

    /// Lists the incarnations that a pod's name has had, newest first: at most `limit`, and at most [`PAGE_MAX`]. With
    /// `before`, only those that registered before that time: give [`SessionRow::began_at`] of the last row for the next
    /// page.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn pod_sessions(&self, pod: &str, limit: i64, before: Option<Timestamp>) -> Result<Vec<SessionRow>> {
        let before = before.map(known_to_the_server);
        queries::sessions(&self.database, pod, page(limit), before).await?.iter().map(SessionRow::read).collect()
    }

    /// Lists the samples of a pod that were taken from `since` on and before `until`, newest first: at most `limit`, and
    /// at most [`PAGE_MAX`]. `None` does not filter. For the next page, give [`Sample::sampled_at`] of the last row as
    /// `until`.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn heartbeats(
        &self,
        pod: &str,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
        limit: i64,
    ) -> Result<Vec<Sample>> {
        let (since, until) = (since.map(known_to_the_server), until.map(known_to_the_server));
        let rows = liveness::samples(&self.database, pod, since, until, page(limit)).await?;
        rows.iter().map(Sample::read).collect()
    }

    /// Returns how available the whole fleet was: percentiles over the pods, and by hour of the week. It reads the row
    /// of each pod, so ask seldom.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn availability(&self) -> Result<NetworkAvailability> {
        let row = liveness::availability(&self.database, AVAILABILITY_MAX, &SHARES).await?;
        row.as_ref().map_or_else(|| Ok(NetworkAvailability::of_nobody()), NetworkAvailability::read)
    }
}
