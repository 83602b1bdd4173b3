//! The rules on one worker: who may write it, what a pod shows of it, and when it may be chosen.
//!
//! * **Authority.** The pod that registered the worker. Every other pod shows what that pod published.
//! * **States.** [`Origin`], [`Health`] and [`Liveness`].
//! * **Failures.** A name that this version does not know makes a worker one that cannot be chosen, never a healthy one.
//! * **Not promised.** That a chosen worker answers. Its health is that of its last probe.

use std::cmp::Ordering;

use super::names::named;

named! {
    /// Where a worker that a pod shows comes from.
    pub enum Origin {
        /// This pod registered it, probes it and publishes it.
        Local = "local",
        /// Another pod registered it.
        Mesh = "mesh",
    }
}

named! {
    /// The health of a worker, as its owner says it, by its probes or by `set_health`: `studio_workers.health`, in the
    /// order of its CHECK.
    #[non_exhaustive]
    pub enum Health {
        /// It was not probed yet.
        Pending = "pending",
        /// Its last probes failed.
        NotReady = "not_ready",
        /// It may be chosen.
        Ready = "ready",
        /// Its probes have failed for long. `remove_unhealthy` removes it.
        Failed = "failed",
        /// It finishes what it has and gets nothing new.
        Draining = "draining",
    }
}

named! {
    /// Whether the owner still reports the worker: `studio_workers.liveness`.
    pub enum Liveness {
        /// Its owner reports it.
        Active = "active",
        /// Its owner has never reported it, or not for a while.
        Inactive = "inactive",
    }
}

impl Health {
    /// Whether the health is decided by this pod's own probe, or by its operator, so that nothing that another pod
    /// published changes it.
    #[must_use]
    pub const fn is_own_verdict(self) -> bool {
        matches!(self, Self::Failed | Self::Draining)
    }
}

/// The health that a pod shows of an import. `own`: the verdict of this pod's own probe, if it probes imports. `hint`:
/// the health that the owner published; `None` if this version does not know its name.
///
/// A hint moves a worker between `Pending`, `NotReady` and `Ready`. It never revives one that this pod's own probe calls
/// `Failed` or `Draining`. An import that its owner calls unhealthy is not ready, whatever the own probe says.
#[must_use]
pub fn imported_health(own: Option<Health>, hint: Option<Health>) -> Health {
    let hint = hint.unwrap_or(Health::NotReady);
    match own {
        Some(own) if own.is_own_verdict() => own,
        // Both must call it ready.
        Some(own) if hint == Health::Ready => own,
        _ => hint,
    }
}

/// What a pod does with a row of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It shows the row as an import, or updates the import.
    Import,
    /// The row is what this pod itself published.
    Echo,
    /// Somebody else wrote a worker that this pod owns. It refuses, and publishes its own state again.
    Refuse,
}

/// What a pod does with a row. `origin`: where the worker with this id comes from, if the pod shows one; read under the
/// worker's own lock. `is_own`: the row names this pod's present incarnation. `is_known`: the row is as this pod wrote it.
#[must_use]
pub const fn admit(origin: Option<Origin>, is_own: bool, is_known: bool) -> Admission {
    match (origin, is_own) {
        (Some(Origin::Local), true) if is_known => Admission::Echo,
        (Some(Origin::Local), _) | (_, true) => Admission::Refuse,
        (Some(Origin::Mesh) | None, false) => Admission::Import,
    }
}

/// What a pod writes for a worker that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// The row.
    Put,
    /// The removal of the row.
    Remove,
    /// Nothing: the worker was never published, or is not this pod's.
    Nothing,
}

/// What a pod writes. The live origin decides. A removed worker has no origin any more, so there the set of published ids
/// decides.
#[must_use]
pub const fn publication(origin: Option<Origin>, was_published: bool) -> Publication {
    match (origin, was_published) {
        (Some(Origin::Local), _) => Publication::Put,
        (_, true) => Publication::Remove,
        (_, false) => Publication::Nothing,
    }
}

/// Which of two workers with the same URL is shown: the local one, or else the one with the lower id. Less is better.
pub fn precedence<I: Ord>(a: (Origin, I), b: (Origin, I)) -> Ordering {
    a.cmp(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_moves_pending_not_ready_and_ready_and_never_revives_failed_or_draining() {
        use Health::{Draining, Failed, NotReady, Pending, Ready};
        for (own, hint, shown) in [
            (None, Some(Pending), Pending),
            (None, Some(NotReady), NotReady),
            (None, Some(Ready), Ready),
            (None, Some(Failed), Failed),
            (None, Some(Draining), Draining),
            (Some(Failed), Some(Ready), Failed),
            (Some(Draining), Some(Ready), Draining),
            (Some(Draining), Some(Pending), Draining),
            (Some(Ready), Some(Ready), Ready),
            (Some(NotReady), Some(Ready), NotReady),
            (Some(Pending), Some(Ready), Pending),
            // An import that its owner calls unhealthy is not ready.
            (Some(Ready), Some(NotReady), NotReady),
            (Some(Ready), Some(Draining), Draining),
            // The name of a newer version.
            (None, None, NotReady),
            (Some(Ready), None, NotReady),
        ] {
            assert_eq!(imported_health(own, hint), shown, "{own:?} {hint:?}");
        }
    }

    #[test]
    fn a_pod_imports_what_others_own_and_refuses_what_they_say_of_its_own() {
        use Admission::{Echo, Import, Refuse};
        use Origin::{Local, Mesh};
        for (origin, is_own, is_known, admission) in [
            (None, false, false, Import),
            (Some(Mesh), false, false, Import),
            (Some(Local), false, false, Refuse),
            (Some(Local), true, false, Refuse),
            (Some(Local), true, true, Echo),
            // This pod removed the worker, and its row is there again.
            (None, true, true, Refuse),
            (Some(Mesh), true, true, Refuse),
        ] {
            assert_eq!(admit(origin, is_own, is_known), admission, "{origin:?} {is_own} {is_known}");
        }
    }

    #[test]
    fn only_what_is_local_is_published_and_only_what_was_published_is_removed() {
        use Publication::{Nothing, Put, Remove};
        for (origin, was_published, publication_is) in [
            (Some(Origin::Local), false, Put),
            (Some(Origin::Local), true, Put),
            (Some(Origin::Mesh), false, Nothing),
            (Some(Origin::Mesh), true, Remove),
            (None, true, Remove),
            (None, false, Nothing),
        ] {
            assert_eq!(publication(origin, was_published), publication_is, "{origin:?} {was_published}");
        }
    }

    #[test]
    fn of_one_url_the_local_worker_is_shown_and_else_the_lowest_id() {
        let mut workers = [(Origin::Mesh, 3), (Origin::Mesh, 2), (Origin::Local, 9)];
        workers.sort_by(|a, b| precedence(*a, *b));
        assert_eq!(workers, [(Origin::Local, 9), (Origin::Mesh, 2), (Origin::Mesh, 3)]);
    }
}
