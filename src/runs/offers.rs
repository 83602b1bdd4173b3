//! Runs without an owner that this pod wants others to know of, until the herald has told them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::offer::{GAP, KINDS_MOST, next_at};

/// Whom to tell of runs without an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Untold {
    /// For each of these kinds, one pod that has a handler and room.
    pub(crate) kinds: BTreeSet<String>,
    /// These pods.
    pub(crate) pods: BTreeSet<String>,
    /// Every pod.
    pub(crate) everybody: bool,
    /// This pod itself.
    pub(crate) own: bool,
}

impl Untold {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether other pods are to be told.
    pub(crate) fn is_for_others(&self) -> bool {
        self.everybody || !self.kinds.is_empty() || !self.pods.is_empty()
    }

    fn add(&mut self, more: Self) {
        self.kinds.extend(more.kinds);
        self.pods.extend(more.pods);
        self.own |= more.own;
        self.everybody |= more.everybody || self.kinds.len() > KINDS_MOST;
    }
}

#[derive(Default)]
struct State {
    untold: Untold,
    /// `untold` is not told before.
    not_before: Moment,
    /// When other pods were told for the last time, by the herald or in a caller's transaction.
    told: Option<Moment>,
}

/// See the module. Whoever leaves a run without an owner writes it; the herald reads it.
#[derive(Default)]
pub(crate) struct Offers {
    /// Never held across an await.
    state: Mutex<State>,
    /// There may be something to tell.
    arrived: Notify,
    /// This pod was chosen to take runs. The next recovery pass takes the mark, and tells others of what it leaves.
    chosen: AtomicBool,
}

impl Offers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what the herald tells.
    pub(crate) fn add(&self, more: Untold) {
        self.state().untold.add(more);
        self.arrived.notify_one();
    }

    /// Adds a run of a transaction that has not been committed yet: the herald tells of it after [`GAP`].
    pub(crate) fn add_for_later(&self, more: Untold) {
        {
            let mut state = self.state();
            if state.untold.is_empty() {
                state.not_before = clock::now() + GAP;
            }
            state.untold.add(more);
        }
        self.arrived.notify_one();
    }

    /// Whether a caller's transaction may notify now. If so, it counts as told.
    pub(crate) fn may_tell(&self) -> bool {
        let now = clock::now();
        let mut state = self.state();
        let may = next_at(state.told, Moment::ZERO) <= now;
        if may {
            state.told = Some(now);
        }
        may
    }

    /// Resolves when something is due to be told. Cancel safe.
    pub(crate) async fn due(&self) {
        loop {
            let at = {
                let state = self.state();
                (!state.untold.is_empty()).then(|| next_at(state.told, state.not_before))
            };
            let wait = at.map(|at| at.saturating_sub(clock::now()));
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => return,
                () = self.arrived.notified() => {}
            }
        }
    }

    /// Takes what is to be told.
    pub(crate) fn take(&self) -> Untold {
        let mut state = self.state();
        state.not_before = Moment::ZERO;
        let untold = std::mem::take(&mut state.untold);
        if untold.is_for_others() {
            state.told = Some(clock::now());
        }
        untold
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
