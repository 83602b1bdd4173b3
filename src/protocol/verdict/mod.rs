//! Who is dead: the one rule by which a pod is buried.
//!
//! * **Authority.** A look shows which locks of which peers are free. Only a settled pod that proves in the same
//!   transaction that it lives itself may act on a [`Verdict::Dead`] (L2); this rule does not know who asks.
//! * **States.** A peer is alive, or in sight ([`Sighting`]) since its liveness lock was first seen free. A sighting
//!   ends when the peer's row shows that it returned, or when the row is gone; never because a look read its lock as
//!   held, which another prober's momentary lock does too.
//! * **Bound.** Dead at once where process and connections ended alone; after `second_look` where it is the second loss
//!   within the window; after `reconnect_grace` where only the connection broke; after `settle` where many were lost.
//!   Each counts from the first sighting, and none is prolonged by another. For a peer that may run on for longer than the
//!   observer's own settings say, the last two are as long as that ([`patience`](super::patience)).
//! * **Failures.** A look that failed is no look (L10): nothing changes. Peers whose locks a look could not probe are
//!   unknown: nobody is buried on that, and as long as they could make the losses many, those that were lost are held.
//! * **Losses.** A peer counts as lost lately from the look that first saw its lock free, also once it is buried. The
//!   late burial of an old loss is no new loss: it does not delay the burial of a pod that dies meanwhile.
//! * **Not promised.** A pod both of whose connections are cut by something that spares the others is buried while its
//!   process lives. L7 and the fences are for that pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::Moment;
use super::patience::{Patience, Stated, patience_for};
use crate::id::{Incarnation, PodId};

/// The times of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictTiming {
    /// Losses within this time of each other count together: lease / 10.
    pub window: Duration,
    /// A second loss within the window is looked at again after this time: lease / 40.
    pub second_look: Duration,
    /// How long to wait where only a connection broke.
    pub reconnect_grace: Duration,
    /// How long to wait where many were lost.
    pub settle: Duration,
}

impl VerdictTiming {
    /// How long this observer waits for a peer of its own settings.
    #[must_use]
    pub const fn patience(&self) -> Patience {
        Patience { settle: self.settle, reconnect_grace: self.reconnect_grace }
    }

    /// The timing of a decision on the last of two looks that took so long.
    ///
    /// One cause can end sessions while a long look is under way. That look shows the peers that it came to later as lost, and
    /// the next look shows the others. The two groups count together only if the window covers both looks.
    #[must_use]
    pub fn over(self, looks_took: &[Duration; 2]) -> Self {
        Self { window: looks_took.iter().fold(self.window, |sum, took| sum.saturating_add(*took)), ..self }
    }
}

/// What one look showed of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProbe {
    /// Its name.
    pub pod_id: PodId,
    /// Its registration.
    pub incarnation: Incarnation,
    /// The number of its liveness session; it raises it on return.
    pub session: i64,
    /// Whether it has begun its clean stop.
    pub draining: bool,
    /// Its liveness lock could be taken.
    pub liveness_free: bool,
    /// Its witness lock could be taken.
    pub witness_free: bool,
    /// What its row says of its settings; `None` if it says nothing.
    pub stated: Option<Stated>,
}

/// Why a peer is not buried yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Its liveness lock is free, its witness is held: a connection broke while the process lives.
    ConnectionBroken,
    /// Another was lost within the window: one more look decides.
    SecondLoss,
    /// Many were lost within the window: a database, a proxy or a network ended them, not they themselves.
    ManyLost,
    /// Its lock reads as held again, but it has not shown that it returned.
    Unconfirmed,
    /// So many of the others could not be probed that many may be lost.
    ManyUnknown,
}

impl WaitFor {
    /// Its stable name, in snake case.
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

/// What was known when a peer was found dead. Kept with its burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// Its witness lock was free as well.
    pub witness_free: bool,
    /// How long ago its liveness lock was first seen free, in milliseconds.
    pub in_sight_ms: u64,
    /// How many were lost within the window, this one included.
    pub losses: usize,
    /// Out of how many others.
    pub others: usize,
}

/// The answer for one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it alone.
    Alive,
    /// Leave it alone until the given moment, then look again.
    Wait(WaitFor, Moment),
    /// Bury it.
    Dead(Evidence),
}

/// Since when a peer's liveness lock has been seen free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sighting {
    /// The first look that saw it free.
    pub first_seen: Moment,
    /// The session number that the peer's row bore then.
    pub session: i64,
    /// It was once held because many were lost: that hold stays.
    pub many: bool,
}

/// What an observer remembers between looks. Local to the process; empty at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LossObserver {
    sightings: BTreeMap<Incarnation, Sighting>,
    roster: BTreeMap<Incarnation, (PodId, bool)>,
    buried: Vec<(Moment, Incarnation)>,
}

/// What a look led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// One verdict for each peer of the look, in its order.
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

    /// The earliest moment at which a held peer should be looked at again.
    #[must_use]
    pub fn next_look(&self) -> Option<Moment> {
        let until = |verdict: &Verdict| match verdict {
            Verdict::Wait(_, until) => Some(*until),
            Verdict::Alive | Verdict::Dead(_) => None,
        };
        self.verdicts.iter().filter_map(|(_, verdict)| until(verdict)).min()
    }
}

/// How long to wait before a held peer, due for a look at `due`, is looked at again: until then, but no longer than
/// `probe`. One that is overdue, since its lock reads as held, is probed at the same pace and no faster.
#[must_use]
pub fn probe_delay(now: Moment, due: Moment, probe: Duration) -> Duration {
    match due.checked_sub(now) {
        Some(left) if !left.is_zero() => left.min(probe),
        _ => probe,
    }
}

impl LossObserver {
    /// The peers whose lock is known to be free: the watch passes them over.
    #[must_use]
    pub fn in_sight(&self) -> BTreeSet<Incarnation> {
        self.sightings.keys().copied().collect()
    }

    /// Since when a peer has been in sight.
    #[must_use]
    pub fn sighting(&self, incarnation: Incarnation) -> Option<&Sighting> {
        self.sightings.get(&incarnation)
    }

    /// Decides on one complete look, taken at `now`. Changes nothing: what to remember is in the decision.
    #[must_use]
    pub fn decide(&self, timing: &VerdictTiming, now: Moment, look: &[PeerProbe]) -> Decision {
        self.decide_in_part(timing, now, look, &BTreeSet::new())
    }

    /// [`LossObserver::decide`] on a look that read all peers and could not probe the locks of those in `unknown`, whose locks it
    /// gives as held.
    #[must_use]
    pub fn decide_in_part(
        &self,
        timing: &VerdictTiming,
        now: Moment,
        look: &[PeerProbe],
        unknown: &BTreeSet<Incarnation>,
    ) -> Decision {
        let mut next = self.remember(timing, now, look);
        let losses_now = look.iter().filter(|p| !p.draining && next.lost_lately(timing, now, p)).count();
        let losses = losses_now + next.buried.len();
        let others = look.iter().filter(|p| !p.draining).count() + next.buried.len();
        let is_many = |losses: usize| losses >= 2 && losses * 2 > others;
        // Of a peer that was in sight before, it is known since when it is lost; the others may have been lost right now.
        let may_be_lost = |p: &&PeerProbe| {
            !p.draining && unknown.contains(&p.incarnation) && !next.sightings.contains_key(&p.incarnation)
        };
        let losses_at_most = losses + look.iter().filter(may_be_lost).count();
        let (many, may_be_many) = (is_many(losses), is_many(losses_at_most));
        let mut verdicts = Vec::with_capacity(look.len());
        for peer in look {
            let Some(sighting) = next.sightings.get_mut(&peer.incarnation) else {
                verdicts.push((peer.incarnation, Verdict::Alive));
                continue;
            };
            sighting.many |= many;
            let hold = hold_of(timing, sighting, peer, losses_at_most, may_be_many);
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

    /// This observer itself buried `incarnation` at `now`.
    pub fn note_burial(&mut self, timing: &VerdictTiming, now: Moment, incarnation: Incarnation) {
        let was_lost_long_ago = self.was_lost_long_ago(timing, now, incarnation);
        self.sightings.remove(&incarnation);
        if let Some((_, draining)) = self.roster.remove(&incarnation)
            && !draining
            && !was_lost_long_ago
        {
            self.buried.push((now, incarnation));
        }
    }

    fn was_lost_long_ago(&self, timing: &VerdictTiming, now: Moment, incarnation: Incarnation) -> bool {
        self.sightings.get(&incarnation).is_some_and(|s| now.saturating_sub(s.first_seen) >= timing.window)
    }

    /// Brings the memory up to this look: prunes what left the window or the roster, notes burials by others, ends the
    /// sightings of those that returned, and begins new ones.
    fn remember(&self, timing: &VerdictTiming, now: Moment, look: &[PeerProbe]) -> Self {
        let present: BTreeSet<_> = look.iter().map(|p| p.incarnation).collect();
        let names: BTreeSet<_> = look.iter().map(|p| &p.pod_id).collect();
        let mut buried: Vec<_> = self.buried.clone();
        // Gone, and no other incarnation took its name: somebody buried it.
        let gone = self
            .roster
            .iter()
            .filter(|(i, (name, draining))| !draining && !present.contains(*i) && !names.contains(name));
        let gone = gone.filter(|(incarnation, _)| !self.was_lost_long_ago(timing, now, **incarnation));
        buried.extend(gone.map(|(incarnation, _)| (now, *incarnation)));
        buried.retain(|(at, _)| now.saturating_sub(*at) < timing.window);
        let mut sightings = BTreeMap::new();
        for peer in look {
            let fresh = Sighting { first_seen: now, session: peer.session, many: false };
            let sighting = match self.sightings.get(&peer.incarnation) {
                // It returned and was lost again: a new sighting.
                Some(old) if peer.session > old.session => peer.liveness_free.then_some(fresh),
                Some(old) => Some(*old),
                None => peer.liveness_free.then_some(fresh),
            };
            if let Some(sighting) = sighting {
                sightings.insert(peer.incarnation, sighting);
            }
        }
        let roster = look.iter().map(|p| (p.incarnation, (p.pod_id.clone(), p.draining))).collect();
        Self { sightings, roster, buried }
    }

    fn lost_lately(&self, timing: &VerdictTiming, now: Moment, peer: &PeerProbe) -> bool {
        self.sightings.get(&peer.incarnation).is_some_and(|s| now.saturating_sub(s.first_seen) < timing.window)
    }
}

/// The hold that applies to a peer in sight, and until when; `None` if nothing speaks for waiting.
fn hold_of(
    timing: &VerdictTiming,
    sighting: &Sighting,
    peer: &PeerProbe,
    losses_at_most: usize,
    may_be_many: bool,
) -> Option<(WaitFor, Moment)> {
    let after = |wait: Duration| sighting.first_seen.saturating_add(wait);
    let patience = patience_for(timing.patience(), peer.stated);
    if !peer.liveness_free {
        Some((WaitFor::Unconfirmed, after(patience.settle)))
    } else if sighting.many {
        Some((WaitFor::ManyLost, after(patience.settle)))
    } else if may_be_many {
        Some((WaitFor::ManyUnknown, after(patience.settle)))
    } else if !peer.witness_free {
        Some((WaitFor::ConnectionBroken, after(patience.reconnect_grace)))
    } else if losses_at_most >= 2 && !peer.draining {
        Some((WaitFor::SecondLoss, after(timing.second_look)))
    } else {
        None
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
