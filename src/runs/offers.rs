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
    /// Every pod, if a run of one of these kinds has no owner yet: a pod was chosen before, and may not have heard.
    pub(crate) still: BTreeSet<String>,
    /// This pod itself.
    pub(crate) own: bool,
}

impl Untold {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether other pods are to be told.
    pub(crate) fn is_for_others(&self) -> bool {
        self.everybody || !self.kinds.is_empty() || !self.pods.is_empty() || !self.still.is_empty()
    }

    fn add(&mut self, more: Self) {
        self.kinds.extend(more.kinds);
        self.pods.extend(more.pods);
        self.still.extend(more.still);
        self.own |= more.own;
        self.everybody |= more.everybody || self.kinds.len() > KINDS_MOST;
    }
}

#[derive(Default)]
struct State {
    untold: Untold,
    /// What is told a [`GAP`] after it came, and again a [`GAP`] after the last of it came.
    later: Untold,
    /// Since when `later` waits, and when the last of it came.
    waits: Option<(Moment, Moment)>,
    /// When the herald told other pods for the last time, and when a caller's transaction did.
    told: Option<Moment>,
    told_in_txn: Option<Moment>,
}

impl State {
    fn due(&self) -> Option<Moment> {
        let now = (!self.untold.is_empty()).then(|| next_at(self.told, Moment::ZERO));
        let later = self.waits.map(|(since, _)| next_at(self.told, since + GAP));
        now.into_iter().chain(later).min()
    }
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

    /// Adds what is too early to tell: a run of a transaction that has not been committed yet, or a kind for which a pod
    /// was just chosen.
    pub(crate) fn add_for_later(&self, more: Untold) {
        let now = clock::now();
        {
            let mut state = self.state();
            state.later.add(more);
            state.waits = Some((state.waits.map_or(now, |(since, _)| since), now));
        }
        self.arrived.notify_one();
    }

    /// Whether a caller's transaction may notify now. If so, it counts as told.
    pub(crate) fn may_tell(&self) -> bool {
        let now = clock::now();
        let mut state = self.state();
        let may = next_at(state.told_in_txn, Moment::ZERO) <= now;
        if may {
            state.told_in_txn = Some(now);
        }
        may
    }

    /// Resolves when something is due to be told. Cancel safe.
    pub(crate) async fn due(&self) {
        loop {
            let at = self.state().due();
            let wait = at.map(|at| at.saturating_sub(clock::now()));
            tokio::select! {
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => return,
                () = self.arrived.notified() => {}
            }
        }
    }

    /// Takes what is to be told now.
    pub(crate) fn take(&self) -> Untold {
        let now = clock::now();
        let mut state = self.state();
        let mut untold = std::mem::take(&mut state.untold);
        if let Some((_, last)) = state.waits.filter(|(since, _)| *since + GAP <= now) {
            if last + GAP <= now {
                untold.add(std::mem::take(&mut state.later));
                state.waits = None;
            } else {
                untold.add(state.later.clone());
                state.waits = Some((last, last));
            }
        }
        if untold.is_for_others() {
            state.told = Some(now);
        }
        untold
    }

    /// Takes everything: nothing is told later.
    pub(crate) fn take_all(&self) -> Untold {
        let mut state = self.state();
        let mut untold = std::mem::take(&mut state.untold);
        untold.add(std::mem::take(&mut state.later));
        state.waits = None;
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
