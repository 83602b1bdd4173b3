//! How reliable a pod was, from its sessions of the last 14 days.
//!
//! All times are the server's, in microseconds since 1970 (UTC). The rules:
//!
//! * **Covered time** is the union of the sessions within the window. Time that several sessions cover counts once: the
//!   pods of one node, where scores are made by node, or an incarnation that took its name's place.
//! * **Observed time** begins at the later of the begin of the window and the first session, and ends now.
//! * **An end is clean** if its reason is `shutdown`. Every other end is unclean: `lost`, `stalled`, `replaced`, and also
//!   `detached` and `evicted`. These two say nothing about the run (`ending::Reason::is_crash`), but they interrupt it.
//! * **A session's length** is the whole one, also the part before the window. An open session lasts until now.
//! * **A clock that jumped** leaves times in the future. They count as now. A session that ended before it began has the
//!   length 0.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ending::Reason;
use super::score::{self, Evidence};

/// How far the scores look back: 14 days, each hour of the week twice. With less, a pod that fails every Sunday is
/// judged by one Sunday or none. With more, a repaired pod is held to its past for longer.
pub const WINDOW: Duration = Duration::from_secs(14 * 24 * 3600);

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When.
    pub at: i64,
    /// Why. `None`: this version does not know the reason. The end is unclean.
    pub why: Option<Reason>,
}

impl End {
    fn is_clean(self) -> bool {
        self.why == Some(Reason::Shutdown)
    }
}

/// One incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// When it began.
    pub began: i64,
    /// `None`: it is in the roster.
    pub end: Option<End>,
}

/// What the shell knows besides the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The server's time.
    pub now: i64,
    /// Whether the pod was seen before the window, in a session that is not among the given ones.
    pub seen_before: bool,
    /// If there were too many sessions: when the first of the given ones began. The window begins there.
    pub cut_at: Option<i64>,
}

/// The share of each hour of the week (UTC, Monday first) that was covered. `None`: no time of it was observed.
pub type Availability = [[Option<f64>; 24]; 7];

/// How reliable a pod was. Times are in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Covered time by observed time: 0 to 1. `None`: no time was observed.
    pub uptime: Option<f64>,
    /// How many sessions reach into the window.
    pub sessions: usize,
    /// Covered time by the number of unclean ends, or the covered time if there was none.
    pub mtbf: f64,
    /// The tenth, fiftieth and ninetieth percentile of the sessions' lengths.
    pub lengths: [f64; 3],
    /// By hour of the week.
    pub availability: Availability,
    /// How many sessions ended for each reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// The share of the sessions that lasted four hours. `None`: no session says anything.
    pub stays_4h: Option<f64>,
    /// The same for eight hours.
    pub stays_8h: Option<f64>,
    /// When a session last ended.
    pub last_disconnect: Option<i64>,
    /// The length of the session that began last.
    pub last_length: f64,
    /// Whether no session is open.
    pub is_over: bool,
    /// The score that follows.
    pub score: f64,
}

/// The begin of the window.
#[must_use]
pub fn window_start(now: i64) -> i64 {
    now.saturating_sub(i64::try_from(WINDOW.as_micros()).unwrap_or(i64::MAX))
}

/// Computes how reliable a pod was. Puts the sessions into the order of their begins. `None`: none of them reaches into the
/// window.
#[must_use]
pub fn features(sessions: &mut Vec<Session>, frame: &Frame) -> Option<Features> {
    let Frame { now, seen_before, cut_at } = *frame;
    let start = window_start(now).max(cut_at.unwrap_or(i64::MIN).min(now));
    let first_seen = sessions.iter().map(|s| s.began).min()?.min(now);
    // A clock that jumped: nothing is in the future, and nothing ends before it begins.
    for s in sessions.iter_mut() {
        s.began = s.began.min(now);
        if let Some(end) = &mut s.end {
            end.at = end.at.clamp(s.began, now);
        }
    }
    sessions.retain(|s| s.end.is_none_or(|end| end.at > start || s.began >= start));
    sessions.sort_unstable_by_key(|s| (s.began, s.end.map_or(i64::MAX, |end| end.at)));
    let newest = *sessions.last()?;
    let observed_from = if seen_before { start } else { first_seen.max(start) };
    let covered = union(sessions, observed_from, now);
    let covered_time = seconds(covered.iter().map(|(from, to)| to - from).sum());
    let observed = seconds(now - observed_from);
    let ends = || sessions.iter().filter_map(|s| s.end);
    let unclean = ends().filter(|end| !end.is_clean()).count();
    let last_unclean = ends().filter(|end| !end.is_clean()).map(|end| end.at).max();
    let mut reasons = BTreeMap::new();
    for end in ends() {
        *reasons.entry(end.why.map_or("unknown", Reason::as_str)).or_default() += 1;
    }
    let mut lengths: Vec<i64> = sessions.iter().map(|s| length(s, now)).collect();
    lengths.sort_unstable();
    let uptime = (observed > 0.0).then(|| (covered_time / observed).min(1.0));
    let mtbf = covered_time / as_f64(unclean.max(1));
    let [stays_4h, stays_8h] = [4, 8].map(|hours| stays(sessions, hours * HOUR, now));
    let evidence = Evidence {
        observed,
        uptime,
        stays_4h,
        stays_8h,
        mtbf: Some(mtbf),
        since_unclean: last_unclean.map(|at| seconds(now - at)),
    };
    Some(Features {
        uptime,
        sessions: sessions.len(),
        mtbf,
        lengths: [10, 50, 90].map(|percent| lengths.get(rank(percent, lengths.len())).map_or(0.0, |l| seconds(*l))),
        availability: availability(&covered, observed_from, now),
        reasons,
        stays_4h,
        stays_8h,
        last_disconnect: ends().map(|end| end.at).max(),
        last_length: seconds(length(&newest, now)),
        is_over: sessions.iter().all(|s| s.end.is_some()),
        score: score::score(&evidence),
    })
}

/// The rank of a percentile among `n` values in order: `round(p × (n − 1))`. A half is rounded up. Computed in whole
/// numbers, so that no rounding of binary fractions decides.
#[must_use]
pub fn rank(percent: usize, n: usize) -> usize {
    (percent * n.saturating_sub(1) + 50) / 100
}

fn length(session: &Session, now: i64) -> i64 {
    session.end.map_or(now, |end| end.at) - session.began
}

/// The share of the sessions that lasted `least`. An open session that is younger says nothing yet, and neither does a
/// clean stop before that.
fn stays(sessions: &[Session], least: i64, now: i64) -> Option<f64> {
    let lasted = sessions.iter().filter(|s| length(s, now) >= least).count();
    let ended_early = |s: &&Session| length(s, now) < least && s.end.is_some_and(|end| !end.is_clean());
    let all = lasted + sessions.iter().filter(ended_early).count();
    (all > 0).then(|| as_f64(lasted) / as_f64(all))
}

/// The time within `from..to` that sessions cover, without overlaps. The sessions are in the order of their begins.
fn union(sessions: &[Session], from: i64, to: i64) -> Vec<(i64, i64)> {
    let mut covered: Vec<(i64, i64)> = Vec::new();
    for s in sessions {
        let (begin, end) = (s.began.max(from), s.end.map_or(to, |end| end.at.min(to)));
        match covered.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ if begin < end => covered.push((begin, end)),
            _ => {}
        }
    }
    covered
}

fn availability(covered: &[(i64, i64)], from: i64, to: i64) -> Availability {
    let mut observed = [[0_i64; 24]; 7];
    let mut up = [[0_i64; 24]; 7];
    by_hour(from, to, &mut observed);
    for (from, to) in covered {
        by_hour(*from, *to, &mut up);
    }
    let mut shares = [[None; 24]; 7];
    for (day, (observed, up)) in observed.iter().zip(&up).enumerate() {
        for (hour, (observed, up)) in observed.iter().zip(up).enumerate() {
            if *observed > 0 {
                shares[day][hour] = Some(seconds(*up) / seconds(*observed));
            }
        }
    }
    shares
}

/// Adds the time between two moments to the hours of the week that it falls into.
fn by_hour(mut from: i64, to: i64, into: &mut [[i64; 24]; 7]) {
    while from < to {
        let next = (from.div_euclid(HOUR) + 1) * HOUR;
        // 1970 began on a Thursday: three days after a Monday.
        let day = usize::try_from((from.div_euclid(DAY) + 3).rem_euclid(7)).unwrap_or(0);
        let hour = usize::try_from(from.rem_euclid(DAY) / HOUR).unwrap_or(0);
        into[day][hour] += next.min(to) - from;
        from = next;
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of 14 days, and most lengths, are below 2^53")]
fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "no pod has 2^53 sessions")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests;
