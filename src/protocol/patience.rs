//! How long an observer waits for a peer whose settings may differ from its own.
//!
//! * **The race.** A pod that lost its sessions lets its runs go on until its `self_fence` has passed (L7). A pod that
//!   buries it earlier starts those runs a second time. With equal settings, `settle` and `reconnect_grace` are longer
//!   than `self_fence`; `Config::validate` checks that. While the lease of a fleet is being changed, a pod with the
//!   longer lease runs on after the `settle` of a pod with the shorter one.
//! * **The rule.** The row of a pod states its lease and its `self_fence` ([`Stated`]). An observer waits as long as
//!   its own settings say, or as long as the peer may run on, whichever is longer. So L2 and L7 hold in a mixed fleet.
//! * **Bound.** A peer delays its burial by at most the time that its own lease would take in a fleet of equals.
//!   `Stated::of_row` rejects a row with values above what `Config::validate` accepts.
//! * **Not promised.** For a row that states nothing, the observer waits as long as its own settings say. A pod of a
//!   version that cannot read these columns does not wait longer. Change the lease of a fleet only once all its pods
//!   know this rule.

use std::time::Duration;

use super::Moment;

/// The longest lease that `Config::validate` accepts: 1 h. A row that states a longer one is not believed, so that a
/// wrong row holds burials up for an hour at most.
pub const LEASE_MAX: Duration = Duration::from_secs(3600);

/// The settings that the row of a pod states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stated {
    /// How long the server lets its silent liveness session live.
    pub lease: Duration,
    /// When the pod tells its runs to stop, counted from its last answered ping (L7).
    pub self_fence: Duration,
}

impl Stated {
    /// Reads the values of a row, in milliseconds. `None`: the row states nothing, or values that no pod can have, so
    /// that somebody wrote the row by hand.
    #[must_use]
    pub fn of_row(lease_ms: Option<i32>, self_fence_ms: Option<i32>) -> Option<Self> {
        let time = |ms: Option<i32>| ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let stated = Self { lease: time(lease_ms)?, self_fence: time(self_fence_ms)? };
        (stated.self_fence < stated.lease && stated.lease <= LEASE_MAX).then_some(stated)
    }

    /// How long the pod's runs may go on after the loss of its sessions: `self_fence`, plus a tenth of the lease. In
    /// that tenth, runs that did not stop when told are aborted.
    #[must_use]
    pub fn runs_on(&self) -> Duration {
        self.self_fence + self.lease / 10
    }
}

/// How long an observer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Before it may bury at all (L2), and when many pods were lost.
    pub settle: Duration,
    /// When only a connection broke.
    pub reconnect_grace: Duration,
}

/// How long an observer with the settings `own` waits for a peer.
#[must_use]
pub fn patience_for(own: Patience, peer: Option<Stated>) -> Patience {
    let runs_on = peer.map_or(Duration::ZERO, |peer| peer.runs_on());
    Patience { settle: own.settle.max(runs_on), reconnect_grace: own.reconnect_grace.max(runs_on) }
}

/// When an observer that has held its lock without a break since `held_since` may bury a peer (L2).
#[must_use]
pub fn may_bury_from(held_since: Moment, own: Patience, peer: Option<Stated>) -> Moment {
    held_since.saturating_add(patience_for(own, peer).settle)
}

/// A setting that differs: its name, our value, the peer's value.
pub type Difference = (&'static str, Duration, Duration);

/// The settings that a pod's row states, for comparison with the pod's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparable {
    /// The lease and `self_fence`, if the row states them.
    pub stated: Option<Stated>,
    /// The longest time between two beats, if the row states it.
    pub beat_interval: Option<Duration>,
}

/// The settings in which a peer differs. Rows hold whole milliseconds, so smaller differences are ignored. A setting
/// that a row does not state does not differ.
#[must_use]
pub fn differences(own: Comparable, peer: Comparable) -> Vec<Difference> {
    let lease = |of: Comparable| of.stated.map(|stated| stated.lease);
    let self_fence = |of: Comparable| of.stated.map(|stated| stated.self_fence);
    let settings = [
        ("lease", lease(own), lease(peer)),
        ("self_fence", self_fence(own), self_fence(peer)),
        ("beat_interval", own.beat_interval, peer.beat_interval),
    ];
    let differs = |(name, ours, theirs): (&'static str, Option<Duration>, Option<Duration>)| {
        let (ours, theirs) = (ours?, theirs?);
        (ours.as_millis() != theirs.as_millis()).then_some((name, ours, theirs))
    };
    settings.into_iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn stated(lease: u64) -> Stated {
        Stated { lease: secs(lease), self_fence: secs(lease) * 8 / 10 }
    }

    fn own(lease: u64) -> Patience {
        Patience { settle: secs(lease), reconnect_grace: secs(lease) }
    }

    #[test]
    fn l2_l7_an_observer_waits_for_the_larger_of_its_own_time_and_the_peers() {
        // A pod with a lease of 30 s runs on for 24 s. Runs that do not stop are aborted within 3 s more.
        assert_eq!(patience_for(own(2), Some(stated(30))), own(27));
        assert_eq!(patience_for(own(30), Some(stated(2))), own(30), "its own, where that is the longer");
        assert_eq!(patience_for(own(10), Some(stated(10))), own(10), "among equals nothing changes");
        assert_eq!(patience_for(own(2), None), own(2), "a row that says nothing");
        let uneven = Patience { settle: secs(60), reconnect_grace: secs(2) };
        let waits = patience_for(uneven, Some(stated(30)));
        assert_eq!(waits, Patience { settle: secs(60), reconnect_grace: secs(27) }, "each time by itself");
    }

    #[test]
    fn l2_an_observer_is_settled_for_one_peer_sooner_than_for_another() {
        let held_since = secs(100);
        assert_eq!(may_bury_from(held_since, own(2), Some(stated(2))), secs(102));
        assert_eq!(may_bury_from(held_since, own(2), Some(stated(30))), secs(127));
    }

    #[test]
    fn l12_no_row_makes_an_observer_wait_for_longer_than_a_valid_lease_could() {
        let longest = Stated::of_row(Some(3_600_000), Some(3_599_999)).expect("a valid row");
        assert!(patience_for(own(2), Some(longest)).settle < LEASE_MAX * 11 / 10);
        let made_by_hand = [
            (None, None),
            (Some(10_000), None),
            (None, Some(8000)),
            (Some(-10_000), Some(-20_000)),
            (Some(10_000), Some(-1)),
            (Some(10_000), Some(10_000)),
            (Some(3_600_001), Some(8000)),
            (Some(i32::MAX), Some(i32::MAX - 1)),
        ];
        for (lease, self_fence) in made_by_hand {
            assert_eq!(Stated::of_row(lease, self_fence), None, "{lease:?} {self_fence:?}");
        }
    }

    #[test]
    fn who_differs_is_named_with_each_setting_and_both_values() {
        let comparable = |lease, beat| Comparable { stated: Some(stated(lease)), beat_interval: Some(secs(beat)) };
        assert_eq!(differences(comparable(10, 10), comparable(10, 10)), []);
        assert_eq!(
            differences(comparable(2, 2), comparable(30, 2)),
            [("lease", secs(2), secs(30)), ("self_fence", Duration::from_millis(1600), secs(24))]
        );
        assert_eq!(differences(comparable(10, 10), comparable(10, 1)), [("beat_interval", secs(10), secs(1))]);
        let silent = Comparable { stated: None, beat_interval: None };
        assert_eq!(differences(comparable(10, 10), silent), [], "a row that says nothing");
        let finer = Stated { lease: secs(10), self_fence: Duration::from_micros(8_000_300) };
        let finer = Comparable { stated: Some(finer), beat_interval: Some(secs(10)) };
        assert_eq!(differences(finer, comparable(10, 10)), [], "rows bear whole milliseconds");
    }
}
