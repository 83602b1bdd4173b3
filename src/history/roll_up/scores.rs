//! How reliable pods are: loads their sessions, computes (`protocol::reliability`), and writes.
//!
//! A fleet of random names may have a hundred thousand pods in the window, and scores may be made by a label that no
//! index knows. So the keys are divided into slices by their hash, each small enough for memory. Each slice reads the
//! sessions of the window in pages, and keeps those of its own keys. What is done is recorded slice by slice.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Maker, RolledUp, Tried};
use crate::error::Result;
use crate::protocol::ending::Reason;
use crate::protocol::reliability::{self, Availability, End, Features, Frame, Session};
use crate::store::roll_ups::{self as statements, Claimed, Scored, Slice, What, at};
use crate::timestamp::Timestamp;

/// How many sessions a slice has, about: 50,000, some megabytes. More take more memory, and fewer read the window more
/// often.
const SLICE: i64 = 50_000;
/// The most slices: with more than twelve million sessions, a slice has more of them.
const SLICES_MAX: i64 = 256;
/// How many sessions one statement reads.
const PAGE: i64 = 5000;
/// The most sessions of one pod or label. Of a pod that crashes every second, the older half is left out beyond that, and
/// its window begins later.
const SESSIONS_MAX: usize = 50_000;
/// How many rows one statement writes: 200, about half a megabyte.
const WRITTEN: usize = 200;
/// How many rows one statement deletes, and how many names one statement looks for.
const PORTION: usize = 1000;

pub(super) async fn make(maker: &Maker, claimed: &Claimed, total: &mut RolledUp) -> Result<Tried> {
    let times = Times::of(claimed);
    let (done, slices) = match claimed.slices {
        Some((done, slices)) if (1..=SLICES_MAX).contains(&i64::from(slices)) => (done, slices),
        _ => {
            let sessions = statements::count_sessions(&maker.db, at(times.since)?, SLICE * SLICES_MAX).await?;
            (0, i32::try_from((sessions / SLICE + 1).min(SLICES_MAX)).unwrap_or(1))
        }
    };
    for slice in done..slices {
        if !statements::step(&maker.db, What::Reliability, maker.token, Some((slice, slices))).await? {
            return Ok(Tried::NotMine);
        }
        let of = Slice { label: &claimed.score_by, slices, slice };
        let groups = load(maker, of, times).await?;
        if !write(maker, of, groups, times, total).await? {
            return Ok(Tried::NotMine);
        }
    }
    Ok(Tried::Made)
}

/// The times of a roll-up, by the server's clock, in microseconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    now: i64,
    /// The begin of the window.
    start: i64,
    /// From when on sessions are read.
    since: i64,
}

impl Times {
    fn of(claimed: &Claimed) -> Self {
        let now = claimed.now.as_microsecond();
        let start = reliability::window_start(now);
        // An index says whether a name was seen before the window. None says so of a label, so the sessions of another
        // window's length are read.
        let since = if claimed.score_by.is_empty() { start } else { reliability::window_start(start) };
        Self { now, start, since }
    }
}

/// The sessions that one score is made from.
#[derive(Default)]
struct Group {
    sessions: Vec<Session>,
    seen_before: bool,
    cut_at: Option<i64>,
}

impl Group {
    fn add(&mut self, scored: &Scored, start: i64) {
        let end = scored
            .ended_at
            .map(|at| End { at: at.as_microsecond(), why: scored.reason.as_deref().and_then(Reason::parse) });
        let session = Session { began: scored.began_at.as_microsecond(), end };
        if session.end.is_some_and(|end| end.at <= start) && session.began < start {
            self.seen_before = true;
            return;
        }
        self.sessions.push(session);
        if self.sessions.len() > SESSIONS_MAX {
            self.sessions.sort_unstable_by_key(|s| s.began);
            self.sessions.drain(..SESSIONS_MAX / 2);
            self.cut_at = self.sessions.first().map(|s| s.began);
        }
    }
}

type Groups = HashMap<String, Group>;

async fn load(maker: &Maker, of: Slice<'_>, times: Times) -> Result<Groups> {
    let mut groups = Groups::new();
    // Open sessions first. One that ends meanwhile is then read twice, and counts as it was first.
    let mut open = HashSet::new();
    let mut after = None;
    loop {
        let page = statements::open_sessions(&maker.db, of, after, PAGE).await?;
        open.extend(page.iter().map(|scored| scored.place.1));
        add(&mut groups, page.iter(), times);
        after = next(&page);
        if after.is_none() {
            break;
        }
    }
    let mut after = Some((at(times.since)?, Uuid::nil()));
    while let Some(place) = after {
        let page = statements::ended_sessions(&maker.db, of, place, PAGE).await?;
        add(&mut groups, page.iter().filter(|scored| !open.contains(&scored.place.1)), times);
        after = next(&page);
    }
    groups.retain(|_, group| !group.sessions.is_empty());
    if of.label.is_empty() {
        find_seen(maker, &mut groups, times.start).await?;
    }
    Ok(groups)
}

fn add<'a>(groups: &mut Groups, page: impl Iterator<Item = &'a Scored>, times: Times) {
    for scored in page {
        match groups.get_mut(&scored.key) {
            Some(group) => group.add(scored, times.start),
            None => groups.entry(scored.key.clone()).or_default().add(scored, times.start),
        }
    }
}

/// Where the next page begins, if there may be one.
fn next(page: &[Scored]) -> Option<(Timestamp, Uuid)> {
    let is_full = i64::try_from(page.len()).unwrap_or(i64::MAX) >= PAGE;
    page.last().filter(|_| is_full).map(|scored| scored.place)
}

/// Asks for each pod whose sessions all began in the window whether it was seen before.
async fn find_seen(maker: &Maker, groups: &mut Groups, start: i64) -> Result<()> {
    let is_young = |group: &Group| group.sessions.iter().all(|s| s.began > start);
    let young: Vec<String> = groups.iter().filter(|(_, group)| is_young(group)).map(|(key, _)| key.clone()).collect();
    for portion in young.chunks(PORTION) {
        let names: Vec<&str> = portion.iter().map(String::as_str).collect();
        for seen in statements::pods_seen(&maker.db, &names, at(start)?).await? {
            if let Some(group) = groups.get_mut(&seen) {
                group.seen_before = true;
            }
        }
    }
    Ok(())
}

/// Writes the scores of a slice, and deletes those of pods that have no session any more. False: the roll-up is another's.
async fn write(maker: &Maker, of: Slice<'_>, groups: Groups, times: Times, total: &mut RolledUp) -> Result<bool> {
    let keys: Vec<String> = groups.keys().cloned().collect();
    let mut rows = Vec::with_capacity(WRITTEN);
    let mut left = groups.len();
    for (key, Group { mut sessions, seen_before, cut_at }) in groups {
        left -= 1;
        if let Some(features) = reliability::features(&mut sessions, &Frame { now: times.now, seen_before, cut_at }) {
            rows.push(row(&key, &features));
        }
        if rows.len() == WRITTEN || left == 0 {
            let Some(written) =
                statements::write_reliability(&maker.db, maker.token, &rows.split_off(0).into()).await?
            else {
                return Ok(false);
            };
            total.scores += written;
        }
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let most = i64::try_from(PORTION).unwrap_or(i64::MAX);
    loop {
        match statements::delete_unscored(&maker.db, maker.token, &keys, of, most).await? {
            None => return Ok(false),
            Some(gone) => {
                total.old_scores += gone;
                if gone < most {
                    return Ok(true);
                }
            }
        }
    }
}

/// The row of a pod, with the names of the columns.
fn row(key: &str, of: &Features) -> Value {
    let [p10, median, p90] = of.lengths;
    let reasons: Map<String, Value> = of.reasons.iter().map(|(why, n)| ((*why).to_owned(), json!(n))).collect();
    json!({
        "pod_id": key,
        "is_over": of.is_over,
        "window_days": reliability::WINDOW.as_secs() / 86_400,
        "uptime_pct": of.uptime.map(|uptime| uptime * 100.0),
        "sessions_count": of.sessions,
        "mtbf_seconds": of.mtbf,
        "p10_session_seconds": p10,
        "median_session_seconds": median,
        "p90_session_seconds": p90,
        "hourly_availability": hours(&of.availability),
        "disconnect_reasons": reasons,
        "p_stays_4h": of.stays_4h,
        "p_stays_8h": of.stays_8h,
        "last_disconnect_us": of.last_disconnect,
        "last_session_seconds": of.last_length,
        "score": of.score,
    })
}

/// With four digits: more make the rows larger, and nobody reads them.
fn hours(of: &Availability) -> Value {
    let short = |share: &Option<f64>| share.map(|share| (share * 1e4).round() / 1e4);
    of.iter()
        .map(|day| day.iter().map(short).collect::<Vec<_>>())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|day| json!(day))
        .collect()
}
