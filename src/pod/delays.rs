//! What a pod tells its metrics of the peers that it sees lost: since when, until when. Nothing is decided on it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::local::Local;
use crate::id::Incarnation;
use crate::membership::clock;
use crate::meters;
use crate::protocol::Moment;
use crate::protocol::verdict::{Decision, Evidence, Verdict};
use crate::store::burials::RosterProbe;

/// A peer whose liveness lock was seen free.
#[derive(Clone, Copy)]
struct Lost {
    since: Moment,
    /// Whether the verdict that it is dead was counted.
    is_counted: bool,
}

/// The peers in sight.
#[derive(Default)]
pub(crate) struct Delays(RefCell<BTreeMap<Incarnation, Lost>>);

impl Delays {
    /// The watch session was granted the peer's lock.
    pub(crate) fn note_free(&self, peer: Incarnation) {
        let lost = Lost { since: clock::now(), is_counted: false };
        self.0.borrow_mut().entry(peer).or_insert(lost);
    }

    /// A look at the whole roster was decided on. Only peers that stay in sight are remembered. Returns the peers that are
    /// now found dead for the first time.
    pub(crate) fn note_look(&self, decision: &Decision) -> Vec<Incarnation> {
        let mut dead = Vec::new();
        let mut lost = self.0.borrow_mut();
        lost.retain(|peer, _| decision.observer.sighting(*peer).is_some());
        let now = clock::now();
        for (peer, verdict) in &decision.verdicts {
            if *verdict == Verdict::Alive {
                continue;
            }
            let of_peer = lost.entry(*peer).or_insert(Lost { since: now, is_counted: false });
            if matches!(verdict, Verdict::Dead(_)) && !std::mem::replace(&mut of_peer.is_counted, true) {
                meters::took(meters::DETECTION, now.saturating_sub(of_peer.since));
                dead.push(*peer);
            }
        }
        dead
    }

    /// When this pod saw the dead peer's lock free. Ask before the burial is sent: the other session may look while it is
    /// under way, and then forgets the peer.
    pub(crate) fn since(&self, peer: Incarnation, evidence: Evidence) -> Moment {
        let in_sight = Duration::from_millis(evidence.in_sight_ms);
        let lost = self.0.borrow().get(&peer).copied();
        lost.map_or_else(|| clock::now().saturating_sub(in_sight), |lost| lost.since)
    }

    /// This pod's burial of the peer was committed.
    pub(crate) fn note_buried(&self, peer: Incarnation, since: Moment, reason: &'static str) {
        meters::count(meters::BURIALS, "reason", reason);
        meters::took(meters::BURIAL, clock::now().saturating_sub(since));
        self.0.borrow_mut().remove(&peer);
    }
}

/// Sets the gauges that a look at the whole roster shows.
pub(crate) fn show_roster(local: &Local, probe: &RosterProbe) {
    let (mut alive, mut draining, mut free, mut unknown) = (0, 0, 0, 0);
    for peer in &probe.peers {
        let peer = &peer.probe;
        let state = match (probe.unknown.contains(&peer.incarnation), peer.liveness_free, peer.draining) {
            (true, ..) => &mut unknown,
            (_, true, _) => &mut free,
            (_, _, true) => &mut draining,
            _ => &mut alive,
        };
        *state += 1;
    }
    let member = &local.shared.member;
    let own = if member.is_draining() { &mut draining } else { &mut alive };
    *own += i64::from(probe.own.is_some());
    for (state, pods) in [("alive", alive), ("draining", draining), ("free", free), ("unknown", unknown)] {
        meters::gauge_of(meters::PODS, "state", state, pods);
    }
    meters::gauge(meters::ATTACHED, i64::from(member.is_attached()));
    meters::note_build();
}
