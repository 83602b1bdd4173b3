//! Checks that a session lock is real. Refuses servers and poolers whose session locks do nothing.

use crate::error::Result;
use crate::id::{LockKey, PodId};
use crate::pg::errors;
use crate::pg::session::Session;
use crate::store::locks;

/// The state that an error during the start leaves.
pub(crate) const NOT_REGISTERED: &str = "the pod is not registered";

/// The canary: a second connection must not get the lock that the first holds.
pub(crate) async fn refuse_fake_lock(second: &Session, key: LockKey, pod: &PodId) -> Result<()> {
    if locks::lock_is_fake(second, key).await? {
        let evidence = format!("two connections took the lock of pod {pod} at once");
        return Err(errors::pooled(&evidence).state(NOT_REGISTERED));
    }
    Ok(())
}
