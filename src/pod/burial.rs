//! The burial pass: probe the roster → decide → bury → report (L2, L3).

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use super::boot::LOCK_NOT_AVAILABLE;
use super::delays;
use super::local::{LivenessLock, Local};
use crate::error::Result;
use crate::id::{Incarnation, LockKey};
use crate::membership::clock;
use crate::meters;
use crate::pg::errors::refused;
use crate::pg::knock;
use crate::pg::session::Session;
use crate::pg::txn::Txn;
use crate::protocol::cause::{self, Cause};
use crate::protocol::ending;
use crate::protocol::neighbours::Neighbours;
use crate::protocol::portions::{Portion, Portions};
use crate::protocol::ring::RingPlace;
use crate::protocol::verdict::{Decision, Evidence, PeerProbe, Verdict};
use crate::runs::recover::Load;
use crate::store::burials::{self, Burial, PeerRow, RosterProbe};
use crate::store::candidates::{self, CANDIDATES};
use crate::store::notices;

/// What started the pass. Stored with the burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// A watch session was granted the lock.
    Push,
    /// A sweep found the lock free.
    Sweep,
}

impl Trigger {
    fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Sweep => "sweep",
        }
    }
}

/// A peer that was found dead, with the evidence.
pub(crate) type Dead<'a> = (&'a PeerRow, Evidence);

/// How many transactions of one pass may fail before the rest is left to the next pass. 32 suffice to find a few rows
/// that cannot be buried among the 64 of a portion (seven failures each). The limit ends a pass in which no row can be
/// buried.
const FAILURES_MOST: u32 = 32;

/// Probes the whole roster and buries the dead pods. Returns what the probe showed. After an error the state of the
/// peers is unknown, and no pod was buried on it (L10).
///
/// `pushed`: the peer whose locks the watch session was granted.
///
/// A roster of one portion takes two round trips. The first begins the transaction and takes the locks; the second
/// proves, deletes, records and commits. A longer roster is probed portion by portion, beginning with the pushed
/// peer's. Then the dead are locked, probed again and buried, with a transaction for each portion.
pub(crate) async fn hold(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    pushed: Option<RingPlace>,
) -> Result<RosterProbe> {
    let first = pushed.map(|peer| peer.lock_key);
    let (vouched, probe) = match local.whole_roster() {
        Some(whole) => {
            // Before the probe, which keeps the locks that it gets.
            let vouched = vouch(local, session, pushed).await;
            if let Some(probe) = hold_in_one(local, session, lock, trigger, whole, vouched).await? {
                return Ok(probe);
            }
            (vouched, survey(local, session, lock, first).await?)
        }
        // These probes keep no lock, so the server answers meanwhile.
        None => {
            let (vouched, probe) = tokio::join!(vouch(local, session, pushed), survey(local, session, lock, first));
            (vouched, probe?)
        }
    };
    let decision = decide(local, &probe);
    let dead = to_bury(local, lock, &decision, &probe.peers);
    bury_if_the_door_is_open(local, session, lock, trigger, &dead, vouched).await?;
    Ok(probe)
}

/// Asks whether the server accepts connections. The watch saw this peer lost, so an answer from now on vouches for the
/// peer's burial. The caller holds no lock and no transaction.
async fn vouch(local: &Local, session: &Session, pushed: Option<RingPlace>) -> Option<Incarnation> {
    match pushed {
        Some(peer) if knock(local, session).await.is_ok() => Some(peer.incarnation),
        _ => None,
    }
}

/// Buries the pods that a roster probe found dead.
pub(crate) async fn hold_after(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    probe: &RosterProbe,
    decision: &Decision,
) -> Result<()> {
    if local.whole_roster().is_some() {
        return hold(local, session, lock, trigger, None).await.map(drop);
    }
    let dead = to_bury(local, lock, decision, &probe.peers);
    bury_if_the_door_is_open(local, session, lock, trigger, &dead, None).await
}

/// Probes the whole roster, portion by portion.
pub(crate) async fn survey(
    local: &Local,
    session: &Session,
    lock: &LivenessLock,
    first: Option<LockKey>,
) -> Result<RosterProbe> {
    let pace = local.pace.get();
    let pace = match local.whole_roster() {
        Some(_) => pace.from(i64::MIN),
        None => first.map_or(pace, |key| pace.from(key.get())),
    };
    let began = clock::now();
    let mut portions = Portions::begin(pace);
    portions.cut(&local.known_keys());
    let mut probe = RosterProbe::default();
    loop {
        let together = portions.next();
        if together.is_empty() {
            break;
        }
        // The session sends the statements of all of them before it waits for the first answer.
        let probes = together.iter().map(|portion| burials::probe(session, lock.incarnation, *portion));
        for (portion, answer) in together.iter().zip(join_all(probes).await) {
            match answer {
                Ok(part) => {
                    portions.returned(portion, &part.keys());
                    probe.extend(part);
                }
                Err(e) if portion.probe && burials::met_a_full_table(&e) => {
                    tracing::debug!(
                        target: "podlock", event = "portion_failed", pod = %local.shared.member.pod_id,
                        rows = portion.most, error = %e,
                        "the server's lock table is full; looking at fewer peers at a time"
                    );
                    portions.met_a_full_table(portion);
                }
                Err(e) => return Err(e),
            }
        }
    }
    local.pace.set(portions.pace());
    local.note_probe(clock::now().saturating_sub(began));
    if !probe.unknown.is_empty() {
        tracing::warn!(
            target: "podlock", event = "partly_blind", pod = %local.shared.member.pod_id, unknown = probe.unknown.len(),
            "the server's lock table is full: some peers could not be looked at, and nothing was concluded of them; \
             raise max_locks_per_transaction"
        );
    }
    Ok(probe)
}

/// Probes the neighbours of this pod. `None`: the server's lock table is full, so that only a whole probe, which cuts
/// its portions, can tell.
pub(crate) async fn survey_neighbours(
    local: &Local,
    session: &Session,
    lock: &LivenessLock,
) -> Result<Option<(RosterProbe, Neighbours)>> {
    let mut neighbours = Neighbours::begin(local.keys.lock.get());
    let mut probe = RosterProbe::default();
    while let Some(portion) = neighbours.next() {
        match burials::probe(session, lock.incarnation, portion).await {
            Ok(part) => {
                neighbours.returned(&part.keys());
                probe.extend(part);
            }
            Err(e) if burials::met_a_full_table(&e) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(Some((probe, neighbours)))
}

/// Probes and buries in one transaction. `None`: the roster is longer than this portion, the server's lock table was
/// full, or one of several dead pods could not be buried. Then nothing was done.
async fn hold_in_one(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    whole: Portion,
    vouched: Option<Incarnation>,
) -> Result<Option<RosterProbe>> {
    let began = clock::now();
    let (txn, probe) = match burials::begin_probe(session, lock.incarnation, whole).await {
        Err(e) if burials::met_a_full_table(&e) => return Ok(None),
        begun => begun?,
    };
    if probe.keys().len() >= whole.most {
        txn.rollback("looking at the peers").await?;
        return Ok(None);
    }
    local.note_probe(clock::now().saturating_sub(began));
    let decision = decide(local, &probe);
    let dead = to_bury(local, lock, &decision, &probe.peers);
    if dead.is_empty() {
        txn.rollback("burying").await?;
        return Ok(Some(probe));
    }
    if !dead.iter().all(|dead| is_beyond_doubt(local, dead, vouched)) {
        // No lock is held while the server is asked: it would hide the loss from the other observers, and keep the peer
        // from coming back.
        txn.rollback("burying").await?;
        bury_if_the_door_is_open(local, session, lock, trigger, &dead, vouched).await?;
        return Ok(Some(probe));
    }
    match bury(local, txn, lock, trigger, &dead).await {
        // The error does not say which pod is at fault, so each is tried alone.
        Err(e) if refused(&e) && dead.len() > 1 => Ok(None),
        buried => buried.map(|_| Some(probe)),
    }
}

/// Buries the dead, a portion in each transaction, those that were lost lately first: thousands of old rows must not
/// delay a death that happens now. A pod that cannot be buried is reported, and does not delay the others.
async fn bury_all(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    dead: &[Dead<'_>],
) -> Result<()> {
    if dead.is_empty() {
        return Ok(());
    }
    // Of the old ones, begins with the pods that the last pass did not reach.
    let from = local.bury_from.replace(i64::MIN);
    let mut dead = dead.to_vec();
    dead.sort_unstable_by_key(|(peer, seen)| (is_old(local, seen), peer.keys.lock.get() < from, peer.keys.lock));
    // `pop` takes the last portion first.
    let mut left: Vec<&[Dead<'_>]> = dead.chunks(local.pace.get().size()).rev().collect();
    let mut failures = 0;
    while let Some(portion) = left.pop() {
        match bury_portion(local, session, lock, trigger, portion).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Another session holds the log, which all burials need. No row is at fault.
            Err(e) if !refused(&e) || e.sqlstate() == Some(LOCK_NOT_AVAILABLE) => return Err(e),
            Err(e) => {
                failures += 1;
                if portion.len() > 1 {
                    let (one, other) = portion.split_at(portion.len() / 2);
                    left.extend([other, one]);
                } else if let Some((peer, _)) = portion.first() {
                    tracing::warn!(
                        target: "podlock", event = "burial_failed", pod = %peer.probe.pod_id,
                        incarnation = %peer.probe.incarnation,
                        by = %local.shared.member.pod_id, error = %e, "a dead pod could not be buried; the others are"
                    );
                }
                if failures >= FAILURES_MOST {
                    let next = left.last().and_then(|portion| portion.first());
                    local.bury_from.set(next.map_or(i64::MIN, |(peer, _)| peer.keys.lock.get()));
                    return Err(e);
                }
            }
        }
    }
    Ok(())
}

/// Buries one portion. Returns `false` if this pod could not prove that it is alive itself.
async fn bury_portion(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    portion: &[Dead<'_>],
) -> Result<bool> {
    let keys: Vec<_> = portion.iter().map(|(peer, _)| peer.keys.lock.get()).collect();
    let (txn, again) = burials::begin_probing_again(session, lock.incarnation, &keys).await?;
    let seen: BTreeMap<_, _> = again.peers.iter().map(|peer| (peer.probe.incarnation, peer)).collect();
    // A peer that changed since the decision, or whose row or lock another session holds, is left to the next probe.
    let same = |(peer, _): &&Dead<'_>| {
        seen.get(&peer.probe.incarnation).is_some_and(|now| now.probe == peer.probe && now.evicted == peer.evicted)
    };
    let (dead, others): (Vec<_>, Vec<_>) = portion.iter().copied().partition(|dead| same(&dead));
    say_held_up(local, &others);
    if dead.is_empty() {
        return txn.rollback("burying").await.map(|()| true);
    }
    bury(local, txn, lock, trigger, &dead).await
}

/// Buries the dead whose locks this transaction holds. Returns `false` if this pod could not prove that it is alive
/// itself.
async fn bury(local: &Local, txn: Txn<'_>, lock: &LivenessLock, trigger: Trigger, dead: &[Dead<'_>]) -> Result<bool> {
    let me = &local.shared.member.pod_id;
    let burials: Vec<Burial<'_>> =
        dead.iter().map(|(peer, evidence)| burial(local, peer, *evidence, trigger)).collect();
    let since: Vec<_> = dead.iter().map(|(peer, seen)| local.delays.since(peer.probe.incarnation, *seen)).collect();
    // The same round trip reads the resulting orphans for the next recovery pass.
    let load = Load::new(&local.shared.engine, lock.incarnation, true, false);
    let params = load.wanted.params();
    let then = (CANDIDATES.template, params.as_slice());
    let (buried, orphans) = burials::commit_burials(txn, &local.proof(lock), &burials, me, then).await?;
    if !buried.proved {
        tracing::warn!(
            target: "podlock", event = "unproven", pod = %me,
            "nobody was buried: this pod could not prove that it lives itself"
        );
    }
    if buried.proved {
        let left: Vec<_> =
            dead.iter().filter(|(peer, _)| !buried.gone.contains_key(&peer.probe.incarnation)).copied().collect();
        say_held_up(local, &left);
    }
    if buried.gone.is_empty() {
        return Ok(buried.proved);
    }
    // The burial is committed even if its orphans cannot be read. The recovery pass then loads them itself and reports
    // the error.
    let seen = orphans.and_then(|rows| candidates::read(&rows).ok());
    local.shared.engine.recover_with(seen.map(|seen| load.with(seen)));
    meters::count(meters::NOTICES_SENT, "about", "burial");
    let gone: Vec<_> = buried.gone.keys().copied().collect();
    local.note_burials(&gone);
    for (((peer, evidence), burial), since) in dead.iter().zip(&burials).zip(since) {
        let Some(cause) = buried.gone.get(&burial.incarnation) else { continue };
        local.delays.note_buried(burial.incarnation, since, burial.reason);
        tracing::info!(
            target: "podlock", event = "buried", pod = %peer.probe.pod_id, incarnation = %burial.incarnation, by = %me,
            reason = burial.reason, cause, trigger = trigger.as_str(), in_sight_ms = evidence.in_sight_ms,
            losses = evidence.losses, others = evidence.others, "buried a dead pod"
        );
    }
    local.roster_changed.notify_one();
    Ok(buried.proved)
}

/// Reports dead pods that burials keep passing over because another transaction holds their rows.
fn say_held_up(local: &Local, passed_over: &[Dead<'_>]) {
    let incarnations: Vec<_> = passed_over.iter().map(|(peer, _)| peer.probe.incarnation).collect();
    for (incarnation, held_for) in local.note_held_up(&incarnations) {
        let Some((peer, _)) = passed_over.iter().find(|(peer, _)| peer.probe.incarnation == incarnation) else {
            continue;
        };
        meters::count(meters::WAITS, "reason", "held_up");
        tracing::warn!(
            target: "podlock", event = "burial_held_up", pod = %peer.probe.pod_id, %incarnation,
            by = %local.shared.member.pod_id,
            held_ms = u64::try_from(held_for.as_millis()).unwrap_or(u64::MAX),
            "a dead pod is not buried while another transaction holds its row in studio_pods or studio_pod_sessions: \
             end that transaction, see pg_stat_activity and pg_prepared_xacts"
        );
    }
}

fn burial<'a>(local: &Local, peer: &'a PeerRow, evidence: Evidence, trigger: Trigger) -> Burial<'a> {
    let PeerProbe { pod_id, incarnation, session, draining, .. } = &peer.probe;
    let evicted = peer.evicted.map(ending::Reason::as_str);
    let reason = ending::buried(*draining, peer.evicted);
    // The age when the lock was first seen free. The wait since then says nothing about the end.
    let beat_age = peer.beat_age.map(|age| age.saturating_sub(Duration::from_millis(evidence.in_sight_ms)));
    let cause = cause::seen(reason, beat_age, &local.cause_timing(peer)).map(Cause::as_str);
    let reason = reason.as_str();
    let mut seen = serde_json::json!(evidence);
    seen["liveness_free"] = true.into();
    seen["beat_age_ms"] = beat_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)).into();
    seen["many_lost"] = local.was_held_for_many(*incarnation).into();
    let detail = serde_json::json!({ "reason": reason, "trigger": trigger.as_str(), "evidence": seen });
    Burial { pod_id, incarnation: *incarnation, session: *session, draining: *draining, evicted, reason, cause, detail }
}

/// Prepares the statements of a burial on a session. If the server refuses, the first burial is slower, and reports
/// the refusal.
pub(crate) async fn warm_up(local: &Local, session: &mut Session) -> Result<()> {
    match burials::warm_up(session).await {
        Err(e) if refused(&e) => {
            tracing::debug!(
                target: "podlock", event = "not_warmed_up", pod = %local.shared.member.pod_id, error = %e,
                "the first burial will be slower"
            );
            Ok(())
        }
        warmed_up => warmed_up,
    }
}

/// For a pod that has not settled. Tells the settled pods at once of the successor that its watch session found dead.
/// Then probes the roster into its own memory, and acts on it.
pub(crate) async fn tell(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    successor: Option<Incarnation>,
) -> Result<()> {
    tell_news(local, session, successor.into_iter().collect()).await?;
    let probe = survey(local, session, lock, None).await?;
    let decision = decide(local, &probe);
    tell_of(local, session, lock, trigger, &probe, &decision).await
}

/// Tells the settled pods of deaths that this pod may not act on, once for each, and buries the pods that have stopped.
pub(crate) async fn tell_of(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    probe: &RosterProbe,
    decision: &Decision,
) -> Result<()> {
    let own = to_bury(local, lock, decision, &probe.peers);
    let is_own = |dead: &Incarnation| own.iter().any(|(peer, _)| peer.probe.incarnation == *dead);
    let others = decision.dead().map(|(incarnation, _)| incarnation).filter(|dead| !is_own(dead)).collect();
    tell_news(local, session, others).await?;
    bury_all(local, session, lock, trigger, &own).await
}

async fn tell_news(local: &Local, session: &Session, mut lost: Vec<Incarnation>) -> Result<()> {
    lost.retain(|incarnation| !local.is_told(*incarnation));
    if !lost.is_empty() {
        notices::ask_for_a_look(session).await?;
        meters::count(meters::NOTICES_SENT, "about", "look");
        tracing::info!(
            target: "podlock", event = "told", pod = %local.shared.member.pod_id, lost = lost.len(),
            "not settled yet: told the others of a loss"
        );
        local.note_told(lost);
    }
    Ok(())
}

/// Decides on a roster probe, remembers it, and reports the waits that begin with it.
pub(crate) fn decide(local: &Local, probe: &RosterProbe) -> Decision {
    let new = local.note_misnamed(&probe.misnamed);
    for (incarnation, why) in probe.misnamed.iter().filter(|(incarnation, _)| new.contains(incarnation)) {
        tracing::warn!(
            target: "podlock", event = "misnamed", incarnation = %incarnation, by = %local.shared.member.pod_id, why,
            "a row of the roster has a name that no pod can have; the row is passed over and never buried: delete it \
             from studio_pods"
        );
    }
    for (pod, (setting, ours, theirs)) in local.note_differences(probe) {
        tracing::warn!(
            target: "podlock", event = "settings_differ", pod = %pod, by = %local.shared.member.pod_id, setting,
            ours = ?ours, theirs = ?theirs,
            "a pod of this fleet has another value of a setting: each waits for the longer of the \
                               two; give all pods the same"
        );
    }
    let before = local.in_sight();
    let decision = local.decide(probe);
    let newly_dead = local.delays.note_look(&decision);
    delays::show_roster(local, probe);
    let peers: BTreeMap<_, _> = probe.peers.iter().map(|p| (p.probe.incarnation, p)).collect();
    if let Some(lock) = local.lock() {
        let dead = newly_dead.iter().filter_map(|dead| peers.get(dead));
        for _ in dead.filter(|peer| !local.is_settled_for(&lock, &peer.probe)) {
            meters::count(meters::WAITS, "reason", "unsettled");
        }
    }
    for (incarnation, verdict) in &decision.verdicts {
        let Verdict::Wait(reason, _) = verdict else { continue };
        if before.contains(incarnation) {
            continue;
        }
        if let Some(peer) = peers.get(incarnation) {
            meters::count(meters::WAITS, "reason", reason.as_str());
            tracing::info!(
                target: "podlock", event = "held", pod = %peer.probe.pod_id, incarnation = %incarnation,
                by = %local.shared.member.pod_id, reason = reason.as_str(),
                "a peer's lock is free; waiting before it counts as dead"
            );
        }
    }
    decision
}

/// The dead pods that this pod may bury: it has been up for long enough (L2), or the peer has stopped.
pub(crate) fn to_bury<'a>(
    local: &Local,
    lock: &LivenessLock,
    decision: &Decision,
    peers: &'a [PeerRow],
) -> Vec<Dead<'a>> {
    let dead: BTreeMap<_, _> = decision.dead().collect();
    let dead = peers.iter().filter_map(|peer| Some((peer, *dead.get(&peer.probe.incarnation)?)));
    dead.filter(|(peer, _)| local.is_settled_for(lock, &peer.probe)).collect()
}

/// Whether a peer may be buried without asking whether the server accepts connections. A peer that has stopped opens
/// none.
fn is_beyond_doubt(local: &Local, (peer, evidence): &Dead<'_>, vouched: Option<Incarnation>) -> bool {
    peer.probe.stopped
        || vouched == Some(peer.probe.incarnation)
        || evidence.outlasts_a_closed_door(&local.timing, peer.probe.stated)
}

/// Asks whether the server accepts connections. The caller holds no lock and no transaction.
async fn knock(local: &Local, session: &Session) -> Result<(), String> {
    knock::knock(session.door(), local.timing.window / 2).await
}

/// Buries the dead. Those that were lost lately are buried only if the server accepts connections. While it accepts
/// none, it may be ending all sessions, and a pod whose session ended cannot come back. So these peers wait as after
/// the loss of many (L2).
async fn bury_if_the_door_is_open(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    dead: &[Dead<'_>],
    vouched: Option<Incarnation>,
) -> Result<()> {
    let (sure, just_lost): (Vec<_>, Vec<_>) =
        dead.iter().copied().partition(|dead| is_beyond_doubt(local, dead, vouched));
    let (old, recent): (Vec<_>, Vec<_>) = sure.into_iter().partition(|(_, seen)| is_old(local, seen));
    // What fails keeps nothing back that comes after it (L12).
    let recent = bury_all(local, session, lock, trigger, &recent).await;
    let just_lost = bury_just_lost(local, session, lock, trigger, &just_lost).await;
    let old = bury_all(local, session, lock, trigger, &old).await;
    recent.and(just_lost).and(old)
}

/// Whether a peer was lost before the window of losses. There may be thousands of such rows.
fn is_old(local: &Local, seen: &Evidence) -> bool {
    u128::from(seen.in_sight_ms) >= local.timing.window.as_millis()
}

/// Buries peers that were lost lately, if the server accepts connections.
async fn bury_just_lost(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    just_lost: &[Dead<'_>],
) -> Result<()> {
    if just_lost.is_empty() {
        return Ok(());
    }
    let decided = clock::now();
    match knock(local, session).await {
        // The pod's other session may have seen another loss meanwhile. Then that session has decided again.
        Ok(()) if local.has_lost_one_since(decided) => Ok(()),
        Ok(()) => bury_all(local, session, lock, trigger, just_lost).await,
        Err(why) => {
            metrics::counter!(meters::WAITS, "reason" => "door_closed").increment(just_lost.len() as u64);
            local.note_closed_door(just_lost.iter().map(|(peer, _)| peer.probe.incarnation));
            tracing::warn!(
                target: "podlock", event = "door_closed", by = %local.shared.member.pod_id, lost = just_lost.len(), why,
                "peers lost their sessions, and the server accepts no new connection: it may be shutting down, so these \
                 peers are not buried yet"
            );
            Ok(())
        }
    }
}
