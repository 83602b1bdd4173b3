//! The burial pass: look → decide → bury → report, in one transaction (L2, L3).

use super::local::{Held, Local};
use crate::error::Result;
use crate::id::Incarnation;
use crate::postgres::pods::{self, Event, Look, PeerRow};
use crate::postgres::session::Session;
use crate::protocol::verdict::{Decision, Evidence, Verdict};

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

/// Looks at the whole roster and buries who is dead. An error means unknown: nothing was buried on it (L10).
pub(crate) async fn hold(local: &Local, session: &mut Session, held: &Held, trigger: Trigger) -> Result<()> {
    let me = &local.shared.pod_id;
    let txn = session.begin("burying").await?;
    let look = pods::look_in_txn(&txn, held.incarnation).await?;
    let decision = decide(local, &look);
    let dead = rows_of(&decision, &look.peers);
    if dead.is_empty() {
        return txn.rollback("burying").await;
    }
    if !pods::prove_in_txn(&txn, &local.proof(held)).await? {
        tracing::warn!(target: "podlock", event = "unproven", pod = %me, "nobody was buried: this pod could not prove that it lives itself");
        return txn.rollback("burying").await;
    }
    let mut buried = Vec::with_capacity(dead.len());
    for (peer, evidence) in dead {
        if let Some(reason) = pods::bury_in_txn(&txn, &peer.look, me).await? {
            buried.push((peer, evidence, reason));
        }
    }
    let mut events = Vec::with_capacity(buried.len());
    for (peer, evidence, reason) in &buried {
        let detail = serde_json::json!({ "reason": reason, "trigger": trigger.as_str(), "evidence": evidence });
        let (pod, incarnation) = (&peer.look.pod_id, peer.look.incarnation);
        events.push(Event { kind: "buried", pod, incarnation, by: me, detail });
    }
    pods::commit_with_events(txn, "burying", &events).await?;
    for (peer, evidence, reason) in &buried {
        local.note_burial(peer.look.incarnation);
        tracing::info!(
            target: "podlock", event = "buried", pod = %peer.look.pod_id, incarnation = %peer.look.incarnation, by = %me,
            reason, trigger = trigger.as_str(), in_sight_ms = evidence.in_sight_ms, losses = evidence.losses,
            others = evidence.others, "buried a dead pod"
        );
    }
    if !buried.is_empty() {
        local.shared.recover_now.notify_one();
        local.roster_changed.notify_one();
    }
    Ok(())
}

/// For a pod that may not bury yet: takes the look into its memory, and tells the settled ones what it saw.
pub(crate) async fn tell(local: &Local, session: &Session, held: &Held) -> Result<()> {
    let look = pods::look(session, held.incarnation).await?;
    let decision = decide(local, &look);
    tell_of(local, session, &decision).await
}

/// Tells the settled pods of deaths that this one may not act on, once for each.
pub(crate) async fn tell_of(local: &Local, session: &Session, decision: &Decision) -> Result<()> {
    let news: Vec<Incarnation> = decision.dead().map(|(i, _)| i).filter(|i| !local.is_told(*i)).collect();
    if !news.is_empty() {
        pods::ask_for_a_look(session).await?;
        tracing::info!(target: "podlock", event = "told", pod = %local.shared.pod_id, lost = news.len(), "not settled yet: told the others of a loss");
        local.note_told(news);
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
