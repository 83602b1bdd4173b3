//! Strangers that hold locks of pods: any role of the database can take any advisory lock. No decision depends on it
//! (L10): a pod whose lock a stranger holds is not buried. The stranger is reported, so that people can end it.

use super::local::{LivenessLock, Local};
use crate::error::Result;
use crate::pg::errors::refused;
use crate::pg::session::Session;
use crate::store::beats::Beats;
use crate::store::locks;
use crate::store::strangers::{self, ForeignLock};

/// How many strangers are reported at a time. Each is an event and a line in the log, and any role can take any number
/// of locks. The next check reports the others.
const AT_ONCE: usize = 16;

/// Checks the locks of the whole roster, and records the strangers that no pod has recorded yet.
///
/// The check reads all locks of the server, and every pod beats. So pods take turns, and all pods together make about
/// one check in each beat interval, however many they are (`protocol::turns`).
pub(super) async fn look(local: &Local, session: &Session, lock: &LivenessLock, beats: &Beats) -> Result<()> {
    let Some(index) = beats.own else { return Ok(()) };
    if !local.is_turn(lock.incarnation, index, &beats.peers) {
        return Ok(());
    }
    match tell(local, session).await {
        // The next check tries again. A missing right does not pass by itself.
        Err(e) if refused(&e) && e.is_transient() => {
            tracing::debug!(
                target: "podlock", event = "strangers_unseen", pod = %local.shared.member.pod_id, error = %e,
                "strangers at the pods' locks could not be looked for"
            );
        }
        Err(e) if refused(&e) => {
            tracing::warn!(
                target: "podlock", event = "strangers_unseen", pod = %local.shared.member.pod_id, error = %e,
                "strangers at the pods' locks cannot be looked for"
            );
        }
        told => told?,
    }
    Ok(())
}

async fn tell(local: &Local, session: &Session) -> Result<()> {
    let seen = strangers::foreign_locks(session).await?;
    let mut new = local.untold_strangers(&seen);
    new.truncate(AT_ONCE);
    if new.is_empty() {
        return Ok(());
    }
    let Some(noted) = strangers::note(session, &new, &local.shared.member.pod_id).await? else {
        // Another session holds the log at the moment.
        return Ok(());
    };
    local.note_strangers_told(&new);
    for lock in noted.into_iter().filter_map(|nth| new.get(nth)) {
        say(local, lock);
    }
    Ok(())
}

/// Reports a stranger that holds this pod's witness lock. Without that lock the pod has no control session, and
/// [`look`] does not run.
pub(super) async fn say_who_keeps_out(local: &Local, session: &Session) -> Result<()> {
    let Some(holder) = locks::holder(session, local.keys.witness).await?.filter(|holder| !holder.is_podlocks()) else {
        return Ok(());
    };
    let (pod, address) = (&local.shared.member.pod_id, holder.address.map(tracing::field::display));
    tracing::warn!(
        target: "podlock", event = "foreign_lock", pod = %pod, incarnation = %local.shared.member.incarnation(),
        by = %pod,
        key = "witness", granted = true, pid = holder.pid, role = holder.role, application = holder.application,
        address,
        prepared = holder.prepared,
        "somebody who is no pod holds the witness lock of this pod, which opens no control session until that ends; \
         end it with pg_terminate_backend"
    );
    Ok(())
}

fn say(local: &Local, lock: &ForeignLock) {
    let ForeignLock { pod_id, incarnation, key, granted, pid, role, application, address, prepared, who } = lock;
    let (does, remedy) = match (granted, pid) {
        (true, Some(_)) => ("holds", "end it with pg_terminate_backend"),
        (true, None) => ("holds", "end it with ROLLBACK PREPARED"),
        (false, _) => ("waits for", "end it with pg_terminate_backend"),
    };
    tracing::warn!(
        target: "podlock", event = "foreign_lock", pod = %pod_id, %incarnation, by = %local.shared.member.pod_id, key,
        granted, pid,
        role, application, address, prepared,
        "{who} is no pod's and {does} the {key} lock of pod {pod_id}: while it holds the liveness lock, that pod \
         cannot be buried and no other can start under its name; {remedy}"
    );
}
