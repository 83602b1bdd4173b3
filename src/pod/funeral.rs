//! The burial pass: look → decide → bury → report, in one transaction (L2, L3).

use super::local::{Held, Local};
use super::sweeper::refused;
use crate::error::Result;
use crate::id::Incarnation;
use crate::postgres::burials::{self, Burial, Look, PeerRow};
use crate::postgres::candidates::{self, CANDIDATES};
use crate::postgres::pods;
use crate::postgres::session::Session;
use crate::protocol::ending;
use crate::protocol::verdict::{Decision, Evidence, PeerLook, Verdict};
use crate::runs::recover::{self, Load};

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

/// Looks at the whole roster and buries who is dead; returns what it saw. An error means unknown: nothing was buried on
/// it (L10).
///
/// Two round trips: one that begins the transaction and takes the locks, one that proves, deletes, records and commits.
pub(crate) async fn hold(local: &Local, session: &mut Session, held: &Held, trigger: Trigger) -> Result<Look> {
    let me = &local.shared.pod_id;
    let (txn, look) = burials::begin_look(session, held.incarnation).await?;
    let decision = decide(local, &look);
    let dead = rows_of(&decision, &look.peers);
    if dead.is_empty() {
        txn.rollback("burying").await?;
        return Ok(look);
    }
    let burials: Vec<Burial<'_>> = dead.iter().map(|(peer, evidence)| burial(peer, *evidence, trigger)).collect();
    // The orphans that this leaves are read in the same round trip, for the recovery pass that comes next.
    let load = Load::new(&local.shared, held.incarnation);
    let params = load.wanted.params();
    let then = (CANDIDATES.template, params.as_slice());
    let (buried, orphans) = burials::commit_burials(txn, &local.proof(held), &burials, me, then).await?;
    if !buried.gone.is_empty() {
        let seen = orphans.map(|rows| candidates::read(&rows));
        recover::recover_with(&local.shared, seen.map(|seen| load.with(seen)));
    }
    if !buried.proved {
        tracing::warn!(target: "podlock", event = "unproven", pod = %me, "nobody was buried: this pod could not prove that it lives itself");
    }
    for ((peer, evidence), burial) in dead.iter().zip(&burials) {
        if !buried.gone.contains(&burial.incarnation) {
            continue;
        }
        local.note_burial(burial.incarnation);
        tracing::info!(
            target: "podlock", event = "buried", pod = %peer.look.pod_id, incarnation = %burial.incarnation, by = %me,
            reason = burial.reason, trigger = trigger.as_str(), in_sight_ms = evidence.in_sight_ms,
            losses = evidence.losses, others = evidence.others, "buried a dead pod"
        );
    }
    if !buried.gone.is_empty() {
        local.roster_changed.notify_one();
    }
    Ok(look)
}

fn burial(peer: &PeerRow, evidence: Evidence, trigger: Trigger) -> Burial<'_> {
    let PeerLook { pod_id, incarnation, session, draining, .. } = &peer.look;
    let evicted = peer.put_out.map(ending::Reason::as_str);
    let reason = ending::buried(*draining, peer.put_out).as_str();
    let detail = serde_json::json!({ "reason": reason, "trigger": trigger.as_str(), "evidence": evidence });
    Burial { pod_id, incarnation: *incarnation, session: *session, draining: *draining, evicted, reason, detail }
}

/// Prepares a session for burials. Where the server refuses, they take a little longer, and the refusal shows there.
pub(crate) async fn rehearse(local: &Local, session: &mut Session) -> Result<()> {
    match burials::rehearse(session).await {
        Err(e) if refused(&e) => {
            tracing::debug!(target: "podlock", event = "unrehearsed", pod = %local.shared.pod_id, error = %e, "the first burial will be slower");
            Ok(())
        }
        rehearsed => rehearsed,
    }
}

/// For a pod that may not bury yet: tells the settled ones at once of the successor that its watch found dead, then
/// takes a look into its memory, and tells of whomever else that showed.
pub(crate) async fn tell(local: &Local, session: &Session, held: &Held, successor: Option<Incarnation>) -> Result<()> {
    tell_news(local, session, successor.into_iter().collect()).await?;
    let look = burials::look(session, held.incarnation).await?;
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
        pods::ask_for_a_look(session).await?;
        tracing::info!(target: "podlock", event = "told", pod = %local.shared.pod_id, lost = lost.len(), "not settled yet: told the others of a loss");
        local.note_told(lost);
    }
    Ok(())
}

/// Decides on a look, remembers it, and reports the holds that begin with it.
pub(crate) fn decide(local: &Local, look: &Look) -> Decision {
    let before = local.in_sight();
    let decision = local.decide(look);
    for (incarnation, verdict) in &decision.verdicts {
        let Verdict::Hold(reason, _) = verdict else { continue };
        if before.contains(incarnation) {
            continue;
        }
        if let Some(peer) = look.peers.iter().find(|p| p.look.incarnation == *incarnation) {
            tracing::info!(
                target: "podlock", event = "held", pod = %peer.look.pod_id, incarnation = %incarnation,
                by = %local.shared.pod_id, reason = reason.as_str(), "a peer's lock is free; waiting before it counts as dead"
            );
        }
    }
    decision
}

fn rows_of<'a>(decision: &Decision, peers: &'a [PeerRow]) -> Vec<(&'a PeerRow, Evidence)> {
    let row = |incarnation| peers.iter().find(|p| p.look.incarnation == incarnation);
    decision.dead().filter_map(|(incarnation, evidence)| Some((row(incarnation)?, evidence))).collect()
}
