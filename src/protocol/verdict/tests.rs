//! The rule as tables of cases, and its properties.

use super::*;
use proptest::prelude::*;

const TIMING: VerdictTiming =
    VerdictTiming { window: ms(1000), second_probe: ms(250), reconnect_grace: ms(10_000), settle: ms(10_000) };

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A fleet of `n` peers, all alive.
fn fleet(n: usize) -> Vec<PeerProbe> {
    let peer = |i: usize| PeerProbe {
        pod_id: PodId::new(format!("pod-{i}")).expect("a name"),
        incarnation: Incarnation::generate(),
        session: 1,
        draining: false,
        stopped: false,
        liveness_free: false,
        witness_free: false,
        stated: None,
    };
    (0..n).map(peer).collect()
}

fn kill(peer: &mut PeerProbe) {
    peer.liveness_free = true;
    peer.witness_free = true;
}

fn verdict(decision: &Decision, peer: &PeerProbe) -> Verdict {
    decision.verdicts.iter().find(|(i, _)| *i == peer.incarnation).expect("a verdict").1
}

fn is_dead(decision: &Decision, peer: &PeerProbe) -> bool {
    matches!(verdict(decision, peer), Verdict::Dead(_))
}

#[test]
fn l2_l7_a_peer_of_a_longer_lease_is_held_for_as_long_as_its_runs_may_go_on() {
    // The observer has a lease of 10 s. One of its peers has 30 s, and runs on for 27 s.
    let longer = Stated { lease: ms(30_000), self_fence: ms(24_000) };
    let until = |lost: &[usize], broken: &[usize], unknown: &[usize]| {
        let mut peers = fleet(3);
        peers[0].stated = Some(longer);
        lost.iter().for_each(|i| kill(&mut peers[*i]));
        broken.iter().for_each(|i| peers[*i].liveness_free = true);
        let unknown = unknown.iter().map(|i| peers[*i].incarnation).collect();
        let decision = LossObserver::default().decide_in_part(&TIMING, ms(0), &peers, &unknown);
        [verdict(&decision, &peers[0]), verdict(&decision, &peers[1])]
    };
    let hold = |reason, ms_| Verdict::Wait(reason, ms(ms_));
    let many = WaitFor::ManyLost;
    assert_eq!(until(&[0, 1], &[], &[]), [hold(many, 27_000), hold(many, 10_000)], "each by its own row");
    let broken = WaitFor::ConnectionBroken;
    assert_eq!(until(&[], &[0], &[]), [hold(broken, 27_000), Verdict::Alive]);
    let unknown = WaitFor::ManyUnknown;
    assert_eq!(until(&[0], &[], &[2]), [hold(unknown, 27_000), Verdict::Alive]);
    assert!(matches!(until(&[0], &[], &[])[0], Verdict::Dead(_)), "its process is gone: nothing is waited for");
}

#[test]
fn all_held_is_alive() {
    let peers = fleet(3);
    let decision = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert!(peers.iter().all(|p| verdict(&decision, p) == Verdict::Alive));
    assert_eq!(decision.next_probe(), None);
}

#[test]
fn a_free_witness_alone_is_alive_it_is_mending_its_control_session() {
    let mut peers = fleet(2);
    peers[0].witness_free = true;
    let decision = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert_eq!(verdict(&decision, &peers[0]), Verdict::Alive);
    assert!(decision.observer.in_sight().is_empty());
}

#[test]
fn both_free_and_alone_is_dead_at_once() {
    // With 1 other, and with 9: one loss is never many.
    for n in [1, 2, 9] {
        let mut peers = fleet(n);
        kill(&mut peers[0]);
        let decision = LossObserver::default().decide(&TIMING, ms(0), &peers);
        let Verdict::Dead(evidence) = verdict(&decision, &peers[0]) else { panic!("{n}: {decision:?}") };
        assert_eq!((evidence.losses, evidence.others, evidence.witness_free), (1, n, true));
    }
}

#[test]
fn session_loss_is_not_death_a_held_witness_holds_for_the_grace_from_the_first_sighting() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let first = LossObserver::default().decide(&TIMING, ms(100), &peers);
    assert_eq!(verdict(&first, &peers[0]), Verdict::Wait(WaitFor::ConnectionBroken, ms(10_100)));
    let later = first.observer.decide(&TIMING, ms(10_099), &peers);
    assert_eq!(verdict(&later, &peers[0]), Verdict::Wait(WaitFor::ConnectionBroken, ms(10_100)));
    let last = later.observer.decide(&TIMING, ms(10_100), &peers);
    assert!(is_dead(&last, &peers[0]));
}

#[test]
fn a_witness_that_goes_during_the_grace_ends_the_wait() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    peers[0].witness_free = true;
    assert!(is_dead(&first.observer.decide(&TIMING, ms(500), &peers), &peers[0]));
}

#[test]
fn a_held_look_ends_a_hold_only_if_the_row_shows_the_return() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    // Another prober holds the lock for a moment.
    peers[0].liveness_free = false;
    let probed = first.observer.decide(&TIMING, ms(250), &peers);
    assert!(matches!(verdict(&probed, &peers[0]), Verdict::Wait(WaitFor::Unconfirmed, _)));
    peers[0].liveness_free = true;
    let free = probed.observer.decide(&TIMING, ms(500), &peers);
    assert_eq!(verdict(&free, &peers[0]), Verdict::Wait(WaitFor::ConnectionBroken, ms(10_000)), "not prolonged");
    peers[0].liveness_free = false;
    peers[0].session = 2;
    let back = free.observer.decide(&TIMING, ms(750), &peers);
    assert_eq!(verdict(&back, &peers[0]), Verdict::Alive);
    assert!(back.observer.in_sight().is_empty());
    // A later loss of the new session is a new sighting.
    peers[0].liveness_free = true;
    let again = back.observer.decide(&TIMING, ms(9_000), &peers);
    assert_eq!(verdict(&again, &peers[0]), Verdict::Wait(WaitFor::ConnectionBroken, ms(19_000)));
}

#[test]
fn a_held_lock_is_never_dead_however_long_it_was_in_sight() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    peers[0].liveness_free = false;
    let decision = first.observer.decide(&TIMING, ms(1_000_000), &peers);
    assert!(!is_dead(&decision, &peers[0]));
}

#[test]
fn two_of_two_others_lost_at_once_are_many_and_held_for_settle_each() {
    let mut peers = fleet(2);
    peers.iter_mut().for_each(kill);
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert!(peers.iter().all(|p| verdict(&first, p) == Verdict::Wait(WaitFor::ManyLost, ms(10_000))));
    let just_before = first.observer.decide(&TIMING, ms(9_999), &peers);
    assert!(peers.iter().all(|p| !is_dead(&just_before, p)));
    let after = just_before.observer.decide(&TIMING, ms(10_000), &peers);
    assert!(peers.iter().all(|p| is_dead(&after, p)));
}

#[test]
fn a_mass_loss_hold_stays_although_the_others_came_back() {
    let mut peers = fleet(4);
    peers[..3].iter_mut().for_each(kill);
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    for peer in &mut peers[..2] {
        (peer.liveness_free, peer.witness_free, peer.session) = (false, false, 2);
    }
    let later = first.observer.decide(&TIMING, ms(5_000), &peers);
    assert_eq!(verdict(&later, &peers[2]), Verdict::Wait(WaitFor::ManyLost, ms(10_000)));
}

#[test]
fn half_of_the_others_is_not_many_but_gets_a_second_probe() {
    let mut peers = fleet(4);
    peers[..2].iter_mut().for_each(kill);
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert_eq!(verdict(&first, &peers[0]), Verdict::Wait(WaitFor::SecondLoss, ms(250)));
    assert_eq!(first.next_probe(), Some(ms(250)));
    let second = first.observer.decide(&TIMING, ms(250), &peers);
    assert!(is_dead(&second, &peers[0]) && is_dead(&second, &peers[1]));
}

#[test]
fn when_a_proxy_restarts_and_sessions_end_one_after_another_at_most_one_is_buried() {
    let mut peers = fleet(10);
    let mut observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    let mut buried = 0;
    for i in 0..10 {
        kill(&mut peers[i]);
        let now = ms(10 * (i as u64 + 1));
        let decision = observer.decide(&TIMING, now, &peers);
        observer = decision.observer.clone();
        for (incarnation, _) in decision.dead() {
            observer.note_burial(&TIMING, now, incarnation);
            peers.retain(|p| p.incarnation != incarnation);
            peers.push(fleet(1).remove(0)); // keeps the indices; a peer that lives
            buried += 1;
        }
    }
    assert_eq!(buried, 1);
}

#[test]
fn a_burial_by_another_counts_in_the_window_and_a_replacement_does_not() {
    let mut peers = fleet(3);
    let observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    // Another pod buried the first. The next loss is the second within the window, of three pods.
    let mut rest = peers[1..].to_vec();
    kill(&mut rest[0]);
    let decision = observer.decide(&TIMING, ms(100), &rest);
    assert!(matches!(verdict(&decision, &rest[0]), Verdict::Wait(WaitFor::ManyLost, _)));
    // After the window it no longer counts.
    let alone = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    let quiet = alone.decide(&TIMING, ms(100), &peers[1..]).observer;
    assert!(is_dead(&quiet.decide(&TIMING, ms(1_200), &rest), &rest[0]));
    // A new incarnation under the same name is no loss.
    peers[0].incarnation = Incarnation::generate();
    kill(&mut peers[1]);
    assert!(is_dead(&observer.decide(&TIMING, ms(100), &peers), &peers[1]));
}

#[test]
fn a_peer_that_has_been_held_for_long_is_no_loss_of_this_window() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    kill(&mut peers[1]);
    let decision = first.observer.decide(&TIMING, ms(5_000), &peers);
    assert!(is_dead(&decision, &peers[1]), "{decision:?}");
    assert!(!is_dead(&decision, &peers[0]));
}

#[test]
fn a_held_peer_is_probed_when_it_is_due_and_an_overdue_one_no_faster() {
    let probe = ms(250);
    assert_eq!(probe_delay(ms(1_000), ms(1_100), probe), ms(100), "due soon");
    assert_eq!(probe_delay(ms(1_000), ms(9_000), probe), probe, "due late");
    assert_eq!(probe_delay(ms(1_000), ms(1_000), probe), probe, "due now, and just looked at");
    assert_eq!(probe_delay(ms(9_000), ms(1_000), probe), probe, "overdue: its lock reads as held");
}

#[test]
fn draining_pods_are_left_out_of_the_count() {
    // A scale-down: three of four other pods stop cleanly at once. No burial waits.
    let mut peers = fleet(4);
    for peer in &mut peers[..3] {
        peer.draining = true;
        kill(peer);
    }
    let decision = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert!(peers[..3].iter().all(|p| is_dead(&decision, p)));
    // If many pods that do not drain are lost, the burial of a draining pod waits as well: the draining is not the
    // cause.
    let mut peers = fleet(4);
    peers[0].draining = true;
    peers.iter_mut().for_each(kill);
    let decision = LossObserver::default().decide(&TIMING, ms(0), &peers);
    assert!(peers.iter().all(|p| !is_dead(&decision, p)));
}

proptest! {
    /// For any order of observations: a peer whose lock was held in the probe is never dead. A first probe never buries
    /// more than half. No burial waits past the longest wait once the lock reads free.
    #[test]
    fn no_series_of_looks_buries_a_holder_or_holds_for_ever(
        looks in proptest::collection::vec(
            proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 6),
            1..30,
        ),
        step in 1_u64..2_000,
    ) {
        let mut peers = fleet(6);
        let mut observer = LossObserver::default();
        let mut now = ms(0);
        for (n, look) in looks.iter().enumerate() {
            now += ms(step);
            for (peer, (free, witness, returned)) in peers.iter_mut().zip(look) {
                peer.liveness_free = *free;
                peer.witness_free = *witness;
                if *returned && !free { peer.session += 1; }
            }
            let decision = observer.decide(&TIMING, now, &peers);
            prop_assert_eq!(decision.verdicts.len(), peers.len());
            for (peer, (incarnation, verdict)) in peers.iter().zip(&decision.verdicts) {
                prop_assert_eq!(peer.incarnation, *incarnation);
                match verdict {
                    Verdict::Dead(_) => prop_assert!(peer.liveness_free),
                    Verdict::Alive => prop_assert!(!peer.liveness_free),
                    Verdict::Wait(..) if peer.liveness_free => {
                        let seen = decision.observer.sighting(*incarnation).expect("in sight").first_seen;
                        prop_assert!(now < seen + TIMING.settle.max(TIMING.reconnect_grace));
                    }
                    Verdict::Wait(..) => {}
                }
            }
            if n == 0 {
                prop_assert!(decision.dead().count() * 2 <= peers.len().max(2));
            }
            observer = decision.observer;
        }
    }
}

/// L10 and L12: peers that could not be probed are unknown. The burial of a lost peer waits while the unknown peers
/// could make it one of many, but no longer than `settle`. The unknown peers are neither lost nor back.
#[test]
fn what_could_not_be_probed_could_be_lost_and_is_not_buried() {
    let mut peers = fleet(10);
    let observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    kill(&mut peers[0]);
    let unknown = |n: usize| peers[10 - n..].iter().map(|p| p.incarnation).collect::<BTreeSet<_>>();
    let at = |now, n| observer.decide_in_part(&TIMING, ms(now), &peers, &unknown(n));
    assert!(is_dead(&at(100, 0), &peers[0]), "all were probed");
    assert_eq!(verdict(&at(100, 4), &peers[0]), Verdict::Wait(WaitFor::SecondLoss, ms(350)), "five of ten at most");
    let held = at(100, 5);
    assert_eq!(verdict(&held, &peers[0]), Verdict::Wait(WaitFor::ManyUnknown, ms(10_100)), "six of ten at most");
    assert_eq!(held.observer.in_sight(), BTreeSet::from([peers[0].incarnation]), "the unknown are not in sight");
    assert!(peers[1..].iter().all(|p| verdict(&held, p) == Verdict::Alive));
    // Many losses stay a reason to wait. Unknown peers are no reason any more once they are known.
    assert!(is_dead(&held.observer.decide(&TIMING, ms(200), &peers), &peers[0]));
    // The burial waits no longer than `settle`.
    let still = |now| held.observer.decide_in_part(&TIMING, ms(now), &peers, &unknown(9));
    assert!(!is_dead(&still(10_099), &peers[0]) && is_dead(&still(10_100), &peers[0]));
}

#[test]
fn a_sighting_outlives_looks_that_could_not_probe_it() {
    let mut peers = fleet(3);
    kill(&mut peers[0]);
    kill(&mut peers[1]);
    let observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    // An unknown lock reads as held.
    let mut blind = peers.clone();
    (blind[0].liveness_free, blind[0].witness_free) = (false, false);
    let unknown = BTreeSet::from([peers[0].incarnation]);
    let decision = observer.decide_in_part(&TIMING, ms(9000), &blind, &unknown);
    assert_eq!(decision.observer.sighting(peers[0].incarnation).map(|s| s.first_seen), Some(ms(0)));
    let decision = decision.observer.decide_in_part(&TIMING, ms(20_000), &blind, &unknown);
    assert!(!is_dead(&decision, &peers[0]), "nothing is buried on what is unknown");
    assert!(is_dead(&decision, &peers[1]));
    assert!(is_dead(&decision.observer.decide(&TIMING, ms(20_001), &peers), &peers[0]));
}

/// Hundreds of pods that were lost long ago are buried at last. A pod that dies in this moment still counts as a single
/// loss.
#[test]
fn the_burial_of_old_losses_makes_no_new_loss_one_of_many() {
    for by_another in [false, true] {
        let mut peers = fleet(12);
        peers[..10].iter_mut().for_each(kill);
        let observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
        let due = observer.decide(&TIMING, ms(10_000), &peers);
        assert_eq!(due.dead().count(), 10);
        let mut observer = due.observer.clone();
        if !by_another {
            due.dead().for_each(|(dead, _)| observer.note_burial(&TIMING, ms(10_000), dead));
        }
        let mut rest = peers[10..].to_vec();
        kill(&mut rest[0]);
        let decision = observer.decide(&TIMING, ms(10_001), &rest);
        assert!(is_dead(&decision, &rest[0]), "by another: {by_another}, {:?}", verdict(&decision, &rest[0]));
    }
}

/// A proxy restarts during a probe of three seconds. That probe shows the second half of the pods as lost, and the next
/// one shows all.
#[test]
fn the_losses_of_two_long_looks_count_together() {
    let mut peers = fleet(6);
    let long = TIMING.over(&[ms(3000), ms(3000)]);
    peers[3..].iter_mut().for_each(kill);
    // Three of six are not more than half.
    let first = LossObserver::default().decide(&long, ms(3000), &peers);
    assert!(peers[3..].iter().all(|p| matches!(verdict(&first, p), Verdict::Wait(WaitFor::SecondLoss, _))));
    peers[..3].iter_mut().for_each(kill);
    let second = first.observer.decide(&long, ms(9000), &peers);
    assert!(peers.iter().all(|p| matches!(verdict(&second, p), Verdict::Wait(WaitFor::ManyLost, _))));
    // The window of short probes does not reach back to the first probe, so the losses do not count as many there.
    let short = first.observer.decide(&TIMING, ms(9000), &peers);
    assert!(peers[3..].iter().all(|p| matches!(verdict(&short, p), Verdict::Wait(WaitFor::SecondLoss, _))));
}

/// L2: a server that shuts down ends the sessions of 180 pods one after another, for most of a second. The counts were
/// measured: 16 pods, then 55, when an observer that had its own sessions still buried the first 16.
#[test]
fn as_long_as_losses_go_on_nobody_is_dead() {
    let mut peers = fleet(179);
    let mut observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    for (at, lost) in [(100, 16), (510, 55), (700, 89), (950, 120), (1100, 179)] {
        peers[..lost].iter_mut().for_each(kill);
        let decision = observer.decide(&TIMING, ms(at), &peers);
        assert_eq!(decision.dead().count(), 0, "at {at} ms");
        observer = decision.observer;
    }
    assert!(matches!(
        verdict(&observer.decide(&TIMING, ms(1350), &peers), &peers[0]),
        Verdict::Wait(WaitFor::ManyLost, _)
    ));
}

/// L2: of a large fleet, a proxy ends the sessions of 80 peers, and of 30 more before the next whole probe, 3.3 s later.
#[test]
fn losses_before_and_after_the_gap_between_two_whole_probes_count_together() {
    let mut peers = fleet(199);
    peers[..80].iter_mut().for_each(kill);
    let first = LossObserver::default().decide(&TIMING, ms(100), &peers);
    peers[..110].iter_mut().for_each(kill);
    let is_many = |timing: &VerdictTiming| {
        let second = first.observer.decide(timing, ms(3_400), &peers);
        matches!(verdict(&second, &peers[0]), Verdict::Wait(WaitFor::ManyLost, _))
    };
    assert!(is_many(&TIMING.reaching_back(ms(3_300))));
    assert!(!is_many(&TIMING), "the window alone does not reach back");
}

/// Two pods die, and then another each 200 ms, on and on: the wait for the losses to end is bounded all the same.
#[test]
fn losses_that_never_end_delay_a_burial_by_at_most_settle() {
    let mut peers = fleet(200);
    let mut observer = LossObserver::default();
    for tick in 0..60 {
        peers[tick..tick + 2].iter_mut().for_each(kill);
        let decision = observer.decide(&TIMING, ms(200 * tick as u64), &peers);
        assert_eq!(is_dead(&decision, &peers[0]), 200 * tick >= 10_000, "at {} ms", 200 * tick);
        observer = decision.observer;
    }
}

/// The burials of several dead pods by another pod are no new losses, so they delay none of those that are left.
#[test]
fn burials_of_the_dead_that_were_in_sight_delay_no_other_burial() {
    let mut peers = fleet(20);
    peers[..4].iter_mut().for_each(kill);
    let first = LossObserver::default().decide(&TIMING, ms(0), &peers);
    let second = first.observer.decide(&TIMING, ms(250), &peers[2..]);
    assert!(is_dead(&second, &peers[2]) && is_dead(&second, &peers[3]));
}

proptest! {
    /// L2: what a probe of the neighbours ends, the next complete probe would have ended too.
    #[test]
    fn noting_returns_ends_no_sighting_that_a_complete_probe_would_keep(
        first in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..6),
        then in proptest::collection::vec((0_i64..3, any::<bool>(), any::<bool>()), 6),
        read in proptest::collection::vec(any::<bool>(), 6),
    ) {
        let mut peers = fleet(first.len());
        for (peer, (liveness, witness)) in peers.iter_mut().zip(&first) {
            (peer.liveness_free, peer.witness_free) = (*liveness, *liveness && *witness);
        }
        let before = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
        for (peer, (returns, liveness, witness)) in peers.iter_mut().zip(&then) {
            peer.session += returns;
            (peer.liveness_free, peer.witness_free) = (*liveness, *liveness && *witness);
        }
        let mut noted = before.clone();
        let rows: Vec<_> = peers.iter().zip(&read).filter(|(_, read)| **read).map(|(peer, _)| peer.clone()).collect();
        noted.note_returns(&rows);
        prop_assert_eq!(noted.decide(&TIMING, ms(3000), &peers), before.decide(&TIMING, ms(3000), &peers));
        prop_assert!(noted.in_sight().is_subset(&before.in_sight()));
    }
}

#[test]
fn a_peer_that_has_returned_is_watched_again_before_the_next_complete_probe() {
    let mut peers = fleet(2);
    peers[0].liveness_free = true;
    let mut observer = LossObserver::default().decide(&TIMING, ms(0), &peers).observer;
    // Another prober may hold the lock for a moment: only the row shows a return.
    peers[0].liveness_free = false;
    observer.note_returns(&peers[..1]);
    assert_eq!(observer.in_sight().len(), 1);
    peers[0].session += 1;
    observer.note_returns(&peers[..1]);
    assert!(observer.in_sight().is_empty());
}
