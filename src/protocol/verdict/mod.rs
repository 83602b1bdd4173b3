//! Who is dead: the one rule by which a pod is buried.
//!
//! * **Authority.** A roster probe shows which locks of which peers are free. A [`Verdict::Dead`] may be acted on only
//!   by a settled pod that proves, in the same transaction, that it is alive itself (L2). This rule does not know which
//!   pod asks.
//! * **States.** A peer is alive, or *in sight* ([`Sighting`]) since its liveness lock was first seen free. A sighting
//!   ends when the peer's row shows that the peer returned, or when the row is gone. It does not end because a probe
//!   found the lock held: another prober may hold it for a moment.
//! * **Bound.** A peer is dead at once if its process and connections ended alone. If there were several losses within
//!   the window, it is dead `second_probe` after the latest of them, and at the latest after `settle`. It is dead after
//!   `reconnect_grace` if only the connection broke, and after `settle` if many were lost. Except for further losses, no
//!   wait prolongs another, and each counts from the first sighting. If a peer may run on for longer than the observer's
//!   own settings say, the last two times are that long ([`patience`](super::patience)).
//! * **Failures.** A failed probe counts as no probe (L10): nothing changes. Peers whose locks could not be probed are
//!   unknown, and no peer is buried on that. As long as the unknown peers could make the losses many, the burials of
//!   the lost peers wait.
//! * **Losses.** A peer counts as a recent loss from the probe that first saw its lock free, even after its burial. The
//!   late burial of an old loss is no new loss, so it does not delay the burial of a pod that dies meanwhile.
//! * **Clean stops.** A pod whose stop is complete never comes back, so it is dead as soon as its locks are free,
//!   whatever else was lost. Any pod may bury it, settled or not: settling gives the others time to come back.
//! * **Not promised.** If something cuts both connections of one pod and spares the others, that pod is buried while
//!   its process lives. L7 and the fences protect its runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::Moment;
use super::patience::{Patience, Stated, patience_for};
use crate::id::{Incarnation, PodId};

/// The times of the verdict rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictTiming {
    /// Losses within this time of each other count together: lease / 10.
    pub window: Duration,
    /// After a second loss within the window, the next probe comes after this time: lease / 40.
    pub second_probe: Duration,
    /// How long to wait if only a connection broke.
    pub reconnect_grace: Duration,
    /// How long to wait if many pods were lost.
    pub settle: Duration,
}

impl VerdictTiming {
    /// How long this observer waits for a peer with the same settings.
    #[must_use]
    pub const fn patience(&self) -> Patience {
        Patience { settle: self.settle, reconnect_grace: self.reconnect_grace }
    }

    /// The timing for a decision on the last of two roster probes that took so long.
    ///
    /// One cause can end sessions while a long probe is in progress. That probe shows only the peers that it reached
    /// later as lost; the next probe shows the others. The two groups count together only if the window covers both
    /// probes.
    #[must_use]
    pub fn over(self, looks_took: &[Duration; 2]) -> Self {
        Self { window: looks_took.iter().fold(self.window, |sum, took| sum.saturating_add(*took)), ..self }
    }

    /// The timing for a decision so long after the one before it, while peers are in sight. In a large fleet, whole
    /// probes are rarer than the window, and a cause that ends sessions goes on between two of them.
    #[must_use]
    pub fn reaching_back(self, since_last: Duration) -> Self {
        Self { window: self.window.saturating_add(since_last), ..self }
    }
}

/// What one roster probe showed of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProbe {
    /// Its name.
    pub pod_id: PodId,
    /// Its registration.
    pub incarnation: Incarnation,
    /// The number of its liveness session. The peer raises it when it returns.
    pub session: i64,
    /// Whether it has begun its clean stop.
    pub draining: bool,
    /// Whether its clean stop is complete. It executes no run any more and never comes back.
    pub stopped: bool,
    /// Whether the probe got its liveness lock.
    pub liveness_free: bool,
    /// Whether the probe got its witness lock.
    pub witness_free: bool,
    /// The settings that its row states. `None`: it states none.
    pub stated: Option<Stated>,
}

/// Why a peer is not buried yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Its liveness lock is free and its witness lock is held: a connection broke while the process lives.
    ConnectionBroken,
    /// Another peer was lost within the window: one more probe decides.
    SecondLoss,
    /// Many peers were lost within the window: a database, a proxy or a network ended their sessions, and the pods may
    /// live.
    ManyLost,
    /// Its lock is held again, but its row does not show that it returned.
    Unconfirmed,
    /// So many of the other peers could not be probed that many may be lost.
    ManyUnknown,
}

impl WaitFor {
    /// The stable name, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionBroken => "connection_broken",
            Self::SecondLoss => "second_loss",
            Self::ManyLost => "many_lost",
            Self::Unconfirmed => "unconfirmed",
            Self::ManyUnknown => "many_unknown",
        }
    }
}

/// What was known when a peer was found dead. Stored with its burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Whether its witness lock was free as well.
    pub witness_free: bool,
    /// How long ago its liveness lock was first seen free, in milliseconds.
    pub in_sight_ms: u64,
    /// How many peers were lost within the window, this one included.
    pub losses: usize,
    /// How many other pods there were.
    pub others: usize,
}

impl Evidence {
    /// Whether the peer is buried even while the server accepts no connection. A peer that lives could not come back
    /// meanwhile, so this takes as long as after the loss of many. The wait ends all the same: a server that never
    /// accepts a connection again must not keep dead pods in the roster without end (L12).
    #[must_use]
    pub fn outlasts_a_closed_door(&self, timing: &VerdictTiming, stated: Option<Stated>) -> bool {
        u128::from(self.in_sight_ms) >= patience_for(timing.patience(), stated).settle.as_millis()
    }
}

/// The verdict on one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do nothing.
    Alive,
    /// Wait until the given moment, then probe again.
    Wait(WaitFor, Moment),
    /// Bury it.
    Dead(Evidence),
}

/// A peer whose liveness lock was seen free, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    /// When a probe first found the lock free.
    pub first_seen: Moment,
    /// The session number in the peer's row at that probe.
    pub session: i64,
    /// The burial of this peer once waited because many were lost, or because the server accepted no connection. That
    /// reason to wait stays.
    pub many: bool,
}

/// What an observer remembers between probes. It is local to the process and empty at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LossObserver {
    sightings: BTreeMap<Incarnation, Sighting>,
    roster: BTreeMap<Incarnation, (PodId, bool)>,
    buried: Vec<Buried>,
}

/// A peer that was buried lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Buried {
    incarnation: Incarnation,
    /// When its lock was first seen free, or its row was first missed.
    lost: Moment,
    /// When this observer learned of the burial.
    noted: Moment,
}

/// The result of a roster probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// One verdict for each peer of the probe, in the same order.
    pub verdicts: Vec<(Incarnation, Verdict)>,
    /// What to remember if nothing else happens.
    pub observer: LossObserver,
}

impl Decision {
    /// The peers to bury, with the evidence.
    pub fn dead(&self) -> impl Iterator<Item = (Incarnation, Evidence)> + '_ {
        self.verdicts.iter().filter_map(|(incarnation, verdict)| match verdict {
            Verdict::Dead(evidence) => Some((*incarnation, *evidence)),
            Verdict::Alive | Verdict::Wait(..) => None,
        })
    }

    /// The earliest moment at which a peer that waits for its burial should be probed again.
    #[must_use]
    pub fn next_probe(&self) -> Option<Moment> {
        let until = |verdict: &Verdict| match verdict {
            Verdict::Wait(_, until) => Some(*until),
            Verdict::Alive | Verdict::Dead(_) => None,
        };
        self.verdicts.iter().filter_map(|(_, verdict)| until(verdict)).min()
    }
}

/// How long to wait before the next probe of a peer whose wait ends at `due`: until then, but no longer than `probe`. A
/// peer that is past `due` because its lock is held is still probed once per `probe`, never faster.
#[must_use]
pub fn probe_delay(now: Moment, due: Moment, probe: Duration) -> Duration {
    match due.checked_sub(now) {
        Some(left) if !left.is_zero() => left.min(probe),
        _ => probe,
    }
}

impl LossObserver {
    /// The peers whose lock is known to be free. The watch session skips them.
    #[must_use]
    pub fn in_sight(&self) -> BTreeSet<Incarnation> {
        self.sightings.keys().copied().collect()
    }

    /// When the latest of the peers in sight was first seen lost.
    #[must_use]
    pub fn newest_sighting(&self) -> Option<Moment> {
        self.sightings.values().map(|sighting| sighting.first_seen).max()
    }

    /// The sighting of a peer, if it is in sight.
    #[must_use]
    pub fn sighting(&self, incarnation: Incarnation) -> Option<&Sighting> {
        self.sightings.get(&incarnation)
    }

    /// Decides on one complete roster probe, made at `now`. Does not change `self`: the decision contains what to
    /// remember.
    #[must_use]
    pub fn decide(&self, timing: &VerdictTiming, now: Moment, probe: &[PeerProbe]) -> Decision {
        self.decide_in_part(timing, now, probe, &BTreeSet::new())
    }

    /// Like [`LossObserver::decide`], for a roster probe that read all peers but could not probe the locks of the peers
    /// in `unknown`. `look` gives those locks as held.
    #[must_use]
    pub fn decide_in_part(
        &self,
        timing: &VerdictTiming,
        now: Moment,
        probe: &[PeerProbe],
        unknown: &BTreeSet<Incarnation>,
    ) -> Decision {
        let mut next = self.remember(timing, now, probe);
        let losses_now = probe.iter().filter(|p| !p.draining && next.lost_lately(timing, now, p)).count();
        let losses = losses_now + next.buried.len();
        let others = probe.iter().filter(|p| !p.draining).count() + next.buried.len();
        let newest = next.newest_loss(timing, now, probe);
        let is_many = |losses: usize| losses >= 2 && losses * 2 > others;
        // For a peer that was in sight before, it is known when it was lost. The others may have been lost just now.
        let may_be_lost = |p: &&PeerProbe| {
            !p.draining && unknown.contains(&p.incarnation) && !next.sightings.contains_key(&p.incarnation)
        };
        let losses_at_most = losses + probe.iter().filter(may_be_lost).count();
        let (many, may_be_many) = (is_many(losses), is_many(losses_at_most));
        let mut verdicts = Vec::with_capacity(probe.len());
        for peer in probe {
            let Some(sighting) = next.sightings.get_mut(&peer.incarnation) else {
                verdicts.push((peer.incarnation, Verdict::Alive));
                continue;
            };
            sighting.many |= many;
            let hold = hold_of(timing, sighting, peer, losses_at_most, may_be_many, newest);
            let verdict = match hold {
                Some((reason, until)) if now < until || !peer.liveness_free => Verdict::Wait(reason, until),
                _ => Verdict::Dead(Evidence {
                    witness_free: peer.witness_free,
                    in_sight_ms: millis(now.saturating_sub(sighting.first_seen)),
                    losses,
                    others,
                }),
            };
            verdicts.push((peer.incarnation, verdict));
        }
        Decision { verdicts, observer: next }
    }

    /// Notes that this observer itself buried `incarnation` at `now`.
    pub fn note_burial(&mut self, timing: &VerdictTiming, now: Moment, incarnation: Incarnation) {
        let was_lost_long_ago = self.was_lost_long_ago(timing, now, incarnation);
        let sighting = self.sightings.remove(&incarnation);
        if let Some((_, draining)) = self.roster.remove(&incarnation)
            && !draining
            && !was_lost_long_ago
        {
            let lost = sighting.map_or(now, |sighting| sighting.first_seen);
            self.buried.push(Buried { incarnation, lost, noted: now });
        }
    }

    /// Notes that the server accepted no connection when this peer was about to be buried: it may have ended the peer's
    /// sessions, and will end others. So the burial waits as after the loss of many. Returns until when.
    pub fn note_closed_door(&mut self, timing: &VerdictTiming, incarnation: Incarnation) -> Option<Moment> {
        let sighting = self.sightings.get_mut(&incarnation)?;
        sighting.many = true;
        Some(sighting.first_seen.saturating_add(timing.settle))
    }

    /// Notes rows that were read since the last complete probe: the sightings of peers that returned end, as a complete
    /// probe would end them. Decides nothing else.
    pub fn note_returns(&mut self, rows: &[PeerProbe]) {
        for peer in rows.iter().filter(|peer| !peer.liveness_free) {
            if self.sightings.get(&peer.incarnation).is_some_and(|old| peer.session > old.session) {
                self.sightings.remove(&peer.incarnation);
            }
        }
    }

    fn was_lost_long_ago(&self, timing: &VerdictTiming, now: Moment, incarnation: Incarnation) -> bool {
        self.sightings.get(&incarnation).is_some_and(|s| now.saturating_sub(s.first_seen) >= timing.window)
    }

    /// Updates the memory with this probe. Removes what left the window or the roster, notes burials by other pods,
    /// ends the sightings of returned peers, and begins new sightings.
    fn remember(&self, timing: &VerdictTiming, now: Moment, probe: &[PeerProbe]) -> Self {
        let present: BTreeSet<_> = probe.iter().map(|p| p.incarnation).collect();
        let names: BTreeSet<_> = probe.iter().map(|p| &p.pod_id).collect();
        let mut buried: Vec<_> = self.buried.clone();
        // The row is gone and no other incarnation took the name: another pod buried it.
        let gone = self
            .roster
            .iter()
            .filter(|(i, (name, draining))| !draining && !present.contains(*i) && !names.contains(name));
        let gone = gone.filter(|(incarnation, _)| !self.was_lost_long_ago(timing, now, **incarnation));
        buried.extend(gone.map(|(incarnation, _)| {
            let lost = self.sightings.get(incarnation).map_or(now, |sighting| sighting.first_seen);
            Buried { incarnation: *incarnation, lost, noted: now }
        }));
        buried.retain(|buried| now.saturating_sub(buried.noted) < timing.window);
        let mut sightings = BTreeMap::new();
        for peer in probe {
            let fresh = Sighting { first_seen: now, session: peer.session, many: false };
            let sighting = match self.sightings.get(&peer.incarnation) {
                // The peer returned and was lost again: a new sighting.
                Some(old) if peer.session > old.session => peer.liveness_free.then_some(fresh),
                Some(old) => Some(*old),
                None => peer.liveness_free.then_some(fresh),
            };
            if let Some(sighting) = sighting {
                sightings.insert(peer.incarnation, sighting);
            }
        }
        let roster = probe.iter().map(|p| (p.incarnation, (p.pod_id.clone(), p.draining))).collect();
        Self { sightings, roster, buried }
    }

    /// When the latest loss within the window was noticed.
    fn newest_loss(&self, timing: &VerdictTiming, now: Moment, probe: &[PeerProbe]) -> Moment {
        let lost = probe.iter().filter(|p| !p.draining && self.lost_lately(timing, now, p));
        let seen = lost.filter_map(|p| self.sightings.get(&p.incarnation)).map(|s| s.first_seen);
        seen.chain(self.buried.iter().map(|buried| buried.lost)).max().unwrap_or_default()
    }

    fn lost_lately(&self, timing: &VerdictTiming, now: Moment, peer: &PeerProbe) -> bool {
        self.sightings.get(&peer.incarnation).is_some_and(|s| now.saturating_sub(s.first_seen) < timing.window)
    }
}

/// The reason to wait with the burial of a peer in sight, and until when. `None`: there is no reason to wait.
fn hold_of(
    timing: &VerdictTiming,
    sighting: &Sighting,
    peer: &PeerProbe,
    losses_at_most: usize,
    may_be_many: bool,
    newest_loss: Moment,
) -> Option<(WaitFor, Moment)> {
    let after = |wait: Duration| sighting.first_seen.saturating_add(wait);
    let patience = patience_for(timing.patience(), peer.stated);
    if peer.stopped && peer.liveness_free && peer.witness_free {
        None
    } else if !peer.liveness_free {
        Some((WaitFor::Unconfirmed, after(patience.settle)))
    } else if sighting.many {
        Some((WaitFor::ManyLost, after(patience.settle)))
    } else if may_be_many {
        Some((WaitFor::ManyUnknown, after(patience.settle)))
    } else if !peer.witness_free {
        Some((WaitFor::ConnectionBroken, after(patience.reconnect_grace)))
    } else if losses_at_most >= 2 && !peer.draining {
        // As long as peers are lost one after another, one cause may be ending them all.
        let quiet = newest_loss.saturating_add(timing.second_probe);
        Some((WaitFor::SecondLoss, quiet.min(after(patience.settle))))
    } else {
        None
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
