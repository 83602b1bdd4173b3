//! Runs without an owner that this pod wants others to know of, until the herald has told them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::membership::clock;
use crate::protocol::offer::{Agenda, Untold};

/// See the module. Whoever leaves a run without an owner writes it; the herald reads it.
#[derive(Default)]
pub(crate) struct Offers {
    /// What is to be told, and when. Never held across an await.
    agenda: Mutex<Agenda>,
    /// There may be something to tell.
    arrived: Notify,
    /// This pod was chosen to take runs. The next recovery pass takes the mark, and tells others of what it leaves.
    chosen: AtomicBool,
}

impl Offers {
    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what the herald tells.
    pub(crate) fn add(&self, more: Untold) {
        self.agenda().add(more);
        self.arrived.notify_one();
    }

    /// Adds what is too early to tell: a run of a transaction that has not been committed yet, or a kind for which a pod
    /// was just chosen.
    pub(crate) fn add_for_later(&self, more: Untold) {
        self.agenda().add_for_later(more, clock::now());
        self.arrived.notify_one();
    }

    /// Whether a caller's transaction may notify now. If so, it counts as told.
    pub(crate) fn may_tell(&self) -> bool {
        self.agenda().may_tell(clock::now())
    }

    /// Resolves when something is due to be told. Cancel safe.
    pub(crate) async fn due(&self) {
        loop {
            let at = self.agenda().due();
            let wait = at.map(|at| at.saturating_sub(clock::now()));
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => return,
                () = self.arrived.notified() => {}
            }
        }
    }

    /// Takes what is to be told now.
    pub(crate) fn take(&self) -> Untold {
        self.agenda().take(clock::now())
    }

    /// Takes everything: nothing is told later.
    pub(crate) fn take_all(&self) -> Untold {
        self.agenda().take_all()
    }

    /// Marks that this pod was chosen to take runs.
    pub(crate) fn choose(&self) {
        self.chosen.store(true, Ordering::Release);
    }

    /// Takes the mark.
    pub(crate) fn was_chosen(&self) -> bool {
        self.chosen.swap(false, Ordering::AcqRel)
    }
}
