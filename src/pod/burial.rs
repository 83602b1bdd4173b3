//! The burial pass: look → decide → bury → report (L2, L3).

use std::collections::BTreeMap;
use std::time::Duration;

use super::boot::LOCK_NOT_AVAILABLE;
use super::local::{LivenessLock, Local};
use crate::error::Result;
use crate::id::{Incarnation, LockKey};
use crate::membership::clock;
use crate::pg::errors::refused;
use crate::pg::session::Session;
use crate::pg::txn::Txn;
use crate::protocol::cause::{self, Cause};
use crate::protocol::ending;
use crate::protocol::portions::{Portion, Portions};
use crate::protocol::verdict::{Decision, Evidence, PeerProbe, Verdict};
use crate::runs::recover::Load;
use crate::store::burials::{self, Burial, PeerRow, RosterProbe};
use crate::store::candidates::{self, CANDIDATES};
use crate::store::notices;

/// What brought the pass about; kept with the burial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// A watch session was granted the lock.
    Push,
    /// A sweep found it free.
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

/// How many transactions of one pass may fail before it leaves the rest to the next pass: enough to find a few rows that
/// cannot be buried among the 64 of a portion (seven each), and an end where nothing can be.
const FAILURES_MOST: u32 = 32;

/// Looks at the whole roster and buries who is dead; returns what it saw. An error means unknown: nothing was buried on
/// it (L10).
///
/// A roster of one portion takes two round trips: one that begins the transaction and takes the locks, one that proves,
/// deletes, records and commits. A longer one is looked at portion by portion, with the one that has the key `first` in front;
/// then the dead are locked, looked at again and buried, a portion in each transaction.
pub(crate) async fn hold(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    first: Option<LockKey>,
) -> Result<RosterProbe> {
    if let Some(whole) = local.whole_roster()
        && let Some(look) = hold_in_one(local, session, lock, trigger, whole).await?
    {
        return Ok(look);
    }
    let look = survey(local, session, lock, first).await?;
    let decision = decide(local, &look);
    bury_all(local, session, lock, trigger, &to_bury(local, lock, &decision, &look.peers)).await?;
    Ok(look)
}

/// Buries those that a look found dead.
pub(crate) async fn hold_after(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    look: &RosterProbe,
    decision: &Decision,
) -> Result<()> {
    if local.whole_roster().is_some() {
        return hold(local, session, lock, trigger, None).await.map(drop);
    }
    bury_all(local, session, lock, trigger, &to_bury(local, lock, decision, &look.peers)).await
}

/// Looks at the whole roster, portion by portion.
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
    let mut look = RosterProbe::default();
    while let Some(portion) = portions.next() {
        match burials::look(session, lock.incarnation, portion).await {
            Ok(part) => {
                portions.returned(&part.keys());
                look.extend(part);
            }
            Err(e) if portion.probe && burials::met_a_full_table(&e) => {
                tracing::debug!(target: "podlock", event = "portion_failed", pod = %local.shared.member.pod_id, rows = portion.most, error = %e, "the server's lock table is full; looking at fewer peers at a time");
                portions.met_a_full_table();
            }
            Err(e) => return Err(e),
        }
    }
    local.pace.set(portions.pace());
    local.note_look(clock::now().saturating_sub(began));
    if !look.unknown.is_empty() {
        tracing::warn!(
            target: "podlock", event = "partly_blind", pod = %local.shared.member.pod_id, unknown = look.unknown.len(),
            "the server's lock table is full: some peers could not be looked at, and nothing was concluded of them; raise max_locks_per_transaction"
        );
    }
    Ok(look)
}

/// Looks and buries in one transaction. `None`: the roster is longer than this portion, the server's lock table was full, or
/// one of several dead could not be buried. Nothing was done then.
async fn hold_in_one(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    whole: Portion,
) -> Result<Option<RosterProbe>> {
    let began = clock::now();
    let (txn, look) = match burials::begin_look(session, lock.incarnation, whole).await {
        Err(e) if burials::met_a_full_table(&e) => return Ok(None),
        begun => begun?,
    };
    if look.keys().len() >= whole.most {
        txn.rollback("looking at the peers").await?;
        return Ok(None);
    }
    local.note_look(clock::now().saturating_sub(began));
    let decision = decide(local, &look);
    let dead = to_bury(local, lock, &decision, &look.peers);
    if dead.is_empty() {
        txn.rollback("burying").await?;
        return Ok(Some(look));
    }
    match bury(local, txn, lock, trigger, &dead).await {
        // It does not say which: each is tried by itself.
        Err(e) if refused(&e) && dead.len() > 1 => Ok(None),
        buried => buried.map(|_| Some(look)),
    }
}

/// Buries a portion of the dead in each transaction. One that cannot be buried is named, and holds up none of the others.
async fn bury_all(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    dead: &[Dead<'_>],
) -> Result<()> {
    // Begins with those that the last pass did not come to.
    let from = local.bury_from.replace(i64::MIN);
    let mut dead = dead.to_vec();
    dead.sort_unstable_by_key(|(peer, _)| (peer.keys.lock.get() < from, peer.keys.lock));
    // The last is taken first.
    let mut left: Vec<&[Dead<'_>]> = dead.chunks(local.pace.get().size()).rev().collect();
    let mut failures = 0;
    while let Some(portion) = left.pop() {
        match bury_portion(local, session, lock, trigger, portion).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Somebody holds the log, which all burials need: no row is to blame.
            Err(e) if !refused(&e) || e.sqlstate() == Some(LOCK_NOT_AVAILABLE) => return Err(e),
            Err(e) => {
                failures += 1;
                if portion.len() > 1 {
                    let (one, other) = portion.split_at(portion.len() / 2);
                    left.extend([other, one]);
                } else if let Some((peer, _)) = portion.first() {
                    tracing::warn!(
                        target: "podlock", event = "burial_failed", pod = %peer.look.pod_id, incarnation = %peer.look.incarnation,
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

/// False: this pod could not prove that it lives itself.
async fn bury_portion(
    local: &Local,
    session: &mut Session,
    lock: &LivenessLock,
    trigger: Trigger,
    portion: &[Dead<'_>],
) -> Result<bool> {
    let keys: Vec<_> = portion.iter().map(|(peer, _)| peer.keys.lock.get()).collect();
    let (txn, again) = burials::begin_looking_again(session, lock.incarnation, &keys).await?;
    let seen: BTreeMap<_, _> = again.peers.iter().map(|peer| (peer.look.incarnation, peer)).collect();
    // What changed since it was decided on, or is held by somebody, is for the next look.
    let same = |(peer, _): &&Dead<'_>| {
        seen.get(&peer.look.incarnation).is_some_and(|now| now.look == peer.look && now.put_out == peer.put_out)
    };
    let (dead, others): (Vec<_>, Vec<_>) = portion.iter().copied().partition(|dead| same(&dead));
    say_held_up(local, &others);
    if dead.is_empty() {
        return txn.rollback("burying").await.map(|()| true);
    }
    bury(local, txn, lock, trigger, &dead).await
}

/// Buries the dead whose locks this transaction holds. False: this pod could not prove that it lives itself.
async fn bury(local: &Local, txn: Txn<'_>, lock: &LivenessLock, trigger: Trigger, dead: &[Dead<'_>]) -> Result<bool> {
    let me = &local.shared.member.pod_id;
    let burials: Vec<Burial<'_>> =
        dead.iter().map(|(peer, evidence)| burial(local, peer, *evidence, trigger)).collect();
    // The orphans that this leaves are read in the same round trip, for the recovery pass that comes next.
    let load = Load::new(&local.shared.engine, lock.incarnation);
    let params = load.wanted.params();
    let then = (CANDIDATES.template, params.as_slice());
    let (buried, orphans) = burials::commit_burials(txn, &local.proof(lock), &burials, me, then).await?;
    if !buried.proved {
        tracing::warn!(target: "podlock", event = "unproven", pod = %me, "nobody was buried: this pod could not prove that it lives itself");
    }
    if buried.proved {
        let left: Vec<_> =
            dead.iter().filter(|(peer, _)| !buried.gone.contains_key(&peer.look.incarnation)).copied().collect();
        say_held_up(local, &left);
    }
    if buried.gone.is_empty() {
        return Ok(buried.proved);
    }
    // The burial is committed; a recovery pass that has to load the orphans itself says what is wrong with them.
    let seen = orphans.and_then(|rows| candidates::read(&rows).ok());
    local.shared.engine.recover_with(seen.map(|seen| load.with(seen)));
    let gone: Vec<_> = buried.gone.keys().copied().collect();
    local.note_burials(&gone);
    for ((peer, evidence), burial) in dead.iter().zip(&burials) {
        let Some(cause) = buried.gone.get(&burial.incarnation) else { continue };
        tracing::info!(
            target: "podlock", event = "buried", pod = %peer.look.pod_id, incarnation = %burial.incarnation, by = %me,
            reason = burial.reason, cause, trigger = trigger.as_str(), in_sight_ms = evidence.in_sight_ms,
            losses = evidence.losses, others = evidence.others, "buried a dead pod"
        );
    }
    local.roster_changed.notify_one();
    Ok(buried.proved)
}

/// Says of a dead pod that burials keep passing over that somebody holds its rows.
fn say_held_up(local: &Local, passed_over: &[Dead<'_>]) {
    let incarnations: Vec<_> = passed_over.iter().map(|(peer, _)| peer.look.incarnation).collect();
    for (incarnation, held_for) in local.note_held_up(&incarnations) {
        let Some((peer, _)) = passed_over.iter().find(|(peer, _)| peer.look.incarnation == incarnation) else {
            continue;
        };
        tracing::warn!(
            target: "podlock", event = "burial_held_up", pod = %peer.look.pod_id, %incarnation, by = %local.shared.member.pod_id,
            held_ms = u64::try_from(held_for.as_millis()).unwrap_or(u64::MAX),
            "a dead pod is not buried while another transaction holds its row in studio_pods or studio_pod_sessions: end that transaction, see pg_stat_activity and pg_prepared_xacts"
        );
    }
}

fn burial<'a>(local: &Local, peer: &'a PeerRow, evidence: Evidence, trigger: Trigger) -> Burial<'a> {
    let PeerProbe { pod_id, incarnation, session, draining, .. } = &peer.look;
    let evicted = peer.put_out.map(ending::Reason::as_str);
    let reason = ending::buried(*draining, peer.put_out);
    // As it was when its lock was first seen free: the wait since then says nothing of its end.
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

/// Prepares a session for burials. Where the server refuses, they take a little longer, and the refusal shows there.
pub(crate) async fn warm_up(local: &Local, session: &mut Session) -> Result<()> {
    match burials::warm_up(session).await {
        Err(e) if refused(&e) => {
            tracing::debug!(target: "podlock", event = "not_warmed_up", pod = %local.shared.member.pod_id, error = %e, "the first burial will be slower");
            Ok(())
        }
        warmed_up => warmed_up,
    }
}

/// For a pod that may not bury yet: tells the settled ones at once of the successor that its watch found dead, then
/// takes a look into its memory, and tells of whomever else that showed.
pub(crate) async fn tell(
    local: &Local,
    session: &Session,
    lock: &LivenessLock,
    successor: Option<Incarnation>,
) -> Result<()> {
    tell_news(local, session, successor.into_iter().collect()).await?;
    let look = survey(local, session, lock, None).await?;
    let decision = decide(local, &look);
    tell_of(local, session, &decision).await
}

/// Tells the settled pods of deaths that this one may not act on, once for each.
pub(crate) async fn tell_of(local: &Local, session: &Session, decision: &Decision) -> Result<()> {
    tell_news(local, session, decision.dead().map(|(incarnation, _)| incarnation).collect()).await
}

async fn tell_news(local: &Local, session: &Session, mut lost: Vec<Incarnation>) -> Result<()> {
    lost.retain(|incarnation| !local.is_told(*incarnation));
    if !lost.is_empty() {
        notices::ask_for_a_look(session).await?;
        tracing::info!(target: "podlock", event = "told", pod = %local.shared.member.pod_id, lost = lost.len(), "not settled yet: told the others of a loss");
        local.note_told(lost);
    }
    Ok(())
}

/// Decides on a look, remembers it, and reports the holds that begin with it.
pub(crate) fn decide(local: &Local, look: &RosterProbe) -> Decision {
    let new = local.note_misnamed(&look.misnamed);
    for (incarnation, why) in look.misnamed.iter().filter(|(incarnation, _)| new.contains(incarnation)) {
        tracing::warn!(
            target: "podlock", event = "misnamed", incarnation = %incarnation, by = %local.shared.member.pod_id, why,
            "a row of the roster has a name that no pod can have; the row is passed over and never buried: delete it from studio_pods"
        );
    }
    for (pod, (setting, ours, theirs)) in local.note_differences(look) {
        tracing::warn!(
            target: "podlock", event = "settings_differ", pod = %pod, by = %local.shared.member.pod_id, setting, ours = ?ours,
            theirs = ?theirs, "a pod of this fleet has another value of a setting: each waits for the longer of the two; give all pods the same"
        );
    }
    let before = local.in_sight();
    let decision = local.decide(look);
    let peers: BTreeMap<_, _> = look.peers.iter().map(|p| (p.look.incarnation, p)).collect();
    for (incarnation, verdict) in &decision.verdicts {
        let Verdict::Wait(reason, _) = verdict else { continue };
        if before.contains(incarnation) {
            continue;
        }
        if let Some(peer) = peers.get(incarnation) {
            tracing::info!(
                target: "podlock", event = "held", pod = %peer.look.pod_id, incarnation = %incarnation,
                by = %local.shared.member.pod_id, reason = reason.as_str(), "a peer's lock is free; waiting before it counts as dead"
            );
        }
    }
    decision
}

/// Those of the dead that this pod has been up for long enough to bury (L2).
pub(crate) fn to_bury<'a>(
    local: &Local,
    lock: &LivenessLock,
    decision: &Decision,
    peers: &'a [PeerRow],
) -> Vec<Dead<'a>> {
    let dead: BTreeMap<_, _> = decision.dead().collect();
    let dead = peers.iter().filter_map(|peer| Some((peer, *dead.get(&peer.look.incarnation)?)));
    dead.filter(|(peer, _)| local.is_settled_for(lock, &peer.look)).collect()
}
