//! Which waits the event log reports. A pod whose lock is free is not always buried at once, and the log says why and
//! for how long.
//!
//! * **Bound.** Each wait is reported once for each incarnation, session and reason. One roster probe reports at most
//!   [`MOST`] waits, and at most [`MOST_IN_SIGHT`] are reported while they last. Each report notifies every pod, and a
//!   whole roster may be lost at once. A wait that ends within four probes (lease / 10) is not reported, because most
//!   broken connections come back by then.
//! * **Not promised.** A wait may not end as reported: the pod may return, or die in another way.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::Moment;
use super::verdict::{Decision, Verdict, WaitFor};
use crate::id::Incarnation;

/// How many waits one roster probe reports at most. Each is an event. If a whole fleet is lost, some examples say as
/// much as all of them, and the log is locked for less time.
pub const MOST: usize = 16;

/// How many waits one observer reports while none of them is over. The first ones then speak for the others.
pub const MOST_IN_SIGHT: usize = 64;

/// Why a pod whose lock is free is not buried yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// As [`WaitFor::ConnectionBroken`].
    ConnectionBroken,
    /// As [`WaitFor::ManyLost`].
    ManyLost,
    /// As [`WaitFor::ManyUnknown`].
    ManyUnknown,
    /// It is dead, but the observer has not held its own lock for long enough to bury it (L2).
    Unsettled,
}

impl WaitReason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ConnectionBroken, Self::ManyLost, Self::ManyUnknown, Self::Unsettled];

    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionBroken => "connection_broken",
            Self::ManyLost => "many_lost",
            Self::ManyUnknown => "many_unknown",
            Self::Unsettled => "unsettled",
        }
    }

    /// The reason with this name. `None`: this version does not know the name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// In words, for people.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::ConnectionBroken => "its connection broke",
            Self::ManyLost => "many lost",
            Self::ManyUnknown => "many could not be looked at",
            Self::Unsettled => "no pod has been up for settle",
        }
    }

    /// `None` for the two short waits. They end within one probe: a lock that reads as held may be another prober's for
    /// a moment.
    const fn of(hold: WaitFor) -> Option<Self> {
        match hold {
            WaitFor::ConnectionBroken => Some(Self::ConnectionBroken),
            WaitFor::ManyLost => Some(Self::ManyLost),
            WaitFor::ManyUnknown => Some(Self::ManyUnknown),
            WaitFor::Unconfirmed | WaitFor::SecondLoss => None,
        }
    }
}

/// A wait to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// The pod whose lock is free.
    pub incarnation: Incarnation,
    /// The number of the session that the pod lost.
    pub session: i64,
    /// Why the pod is not buried yet.
    pub reason: WaitReason,
    /// How long the wait lasts from now at most, in milliseconds.
    pub wait_ms: u64,
    /// How many pods are in sight, this one included: their locks came free and they have not returned.
    pub in_sight: usize,
    /// How many other pods the roster has.
    pub others: usize,
}

/// The waits to report after a decision: those that have lasted for four probes and will last for at least one more.
/// `may_bury_at`: from when the observer may bury that peer (L2).
#[must_use]
pub fn waits(
    decision: &Decision,
    now: Moment,
    may_bury_at: impl Fn(Incarnation) -> Moment,
    probe: Duration,
) -> Vec<Wait> {
    let in_sight = decision.verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Alive).count();
    let wait = |(incarnation, verdict): &(Incarnation, Verdict)| {
        let (reason, until) = match verdict {
            Verdict::Alive => return None,
            Verdict::Wait(reason, until) => (WaitReason::of(*reason)?, *until),
            Verdict::Dead(_) => (WaitReason::Unsettled, may_bury_at(*incarnation)),
        };
        let sighting = decision.observer.sighting(*incarnation)?;
        let left = until.saturating_sub(now);
        let is_worth_it = now.saturating_sub(sighting.first_seen) >= probe * 4 && left >= probe;
        is_worth_it.then(|| Wait {
            incarnation: *incarnation,
            session: sighting.session,
            reason,
            wait_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            in_sight,
            others: decision.verdicts.len(),
        })
    };
    decision.verdicts.iter().filter_map(wait).collect()
}

/// A reported wait: the pod, its session, and the reason.
pub type Told = (Incarnation, i64, WaitReason);

/// Which of `waits` to report next. `told`: the waits that were reported and are not over.
#[must_use]
pub fn next_to_tell(waits: Vec<Wait>, told: &BTreeSet<Told>) -> Vec<Wait> {
    let room = MOST_IN_SIGHT.saturating_sub(told.len()).min(MOST);
    let is_new = |wait: &Wait| !told.contains(&(wait.incarnation, wait.session, wait.reason));
    waits.into_iter().filter(is_new).take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{LossObserver, PeerProbe, VerdictTiming};
    use super::*;
    use crate::id::PodId;

    const PROBE: Duration = Duration::from_millis(250);
    const TIMING: VerdictTiming = VerdictTiming {
        window: Duration::from_secs(1),
        second_probe: PROBE,
        reconnect_grace: Duration::from_secs(10),
        settle: Duration::from_secs(10),
    };

    fn probe(lost: &[(bool, bool)]) -> Vec<PeerProbe> {
        let peer = |(n, (liveness_free, witness_free)): (usize, &(bool, bool))| PeerProbe {
            pod_id: PodId::new(format!("p{n}")).expect("a name"),
            incarnation: Incarnation::from(uuid::Uuid::from_u128(n as u128 + 1)),
            session: 1,
            draining: false,
            stopped: false,
            liveness_free: *liveness_free,
            witness_free: *witness_free,
            stated: None,
        };
        lost.iter().enumerate().map(peer).collect()
    }

    /// The reasons and milliseconds of the waits after the last of several equal roster probes, at these moments.
    fn told(lost: &[(bool, bool)], at_ms: &[u64], may_bury_at: Duration) -> Vec<(&'static str, u64)> {
        let mut observer = LossObserver::default();
        let mut told = Vec::new();
        for ms in at_ms {
            let now = Duration::from_millis(*ms);
            let decision = observer.decide(&TIMING, now, &probe(lost));
            told = waits(&decision, now, |_| may_bury_at, PROBE);
            observer = decision.observer;
        }
        told.iter().map(|wait| (wait.reason.as_str(), wait.wait_ms)).collect()
    }

    #[test]
    fn a_wait_is_told_once_it_has_lasted_and_while_it_lasts() {
        let (settled, held, dead) = (Duration::ZERO, (false, false), (true, true));
        let broken = (true, false);
        assert_eq!(told(&[dead, dead], &[0], settled), [], "a look later many may be back");
        assert_eq!(told(&[dead, dead], &[0, 1000], settled), [("many_lost", 9000), ("many_lost", 9000)]);
        assert_eq!(told(&[broken, held, held], &[0, 250], settled), [], "most are back by then");
        assert_eq!(told(&[broken, held, held], &[0, 250, 1000], settled), [("connection_broken", 9000)]);
        assert_eq!(told(&[broken, held, held], &[0, 9800], settled), [], "it is over at once");
        assert_eq!(told(&[held, held], &[0, 1000], settled), []);
        // The pod is dead, and no pod may bury it.
        assert_eq!(told(&[dead, held, held], &[0, 1000], Duration::from_secs(7)), [("unsettled", 6000)]);
        assert_eq!(told(&[dead, held, held], &[0, 1000], settled), [], "it is being buried");
    }

    #[test]
    fn l12_of_a_whole_roster_that_is_lost_a_bounded_number_is_told_a_few_at_a_look() {
        let lost = probe(&vec![(true, true); 1000]);
        let first = LossObserver::default().decide(&TIMING, Duration::ZERO, &lost);
        let now = PROBE * 4;
        let decision = first.observer.decide(&TIMING, now, &lost);
        let (mut told, mut at_each_look) = (BTreeSet::new(), Vec::new());
        for _ in 0..6 {
            let next = next_to_tell(waits(&decision, now, |_| Duration::ZERO, PROBE), &told);
            at_each_look.push(next.len());
            told.extend(next.iter().map(|wait| (wait.incarnation, wait.session, wait.reason)));
        }
        assert_eq!(at_each_look, [16, 16, 16, 16, 0, 0]);
        assert_eq!(told.len(), MOST_IN_SIGHT, "each once");
    }

    #[test]
    fn each_reason_has_a_name_of_its_own_and_what_is_unknown_is_none_of_them() {
        for reason in WaitReason::ALL {
            assert_eq!(WaitReason::parse(reason.as_str()), Some(reason));
        }
        assert_eq!(WaitReason::parse("boredom"), None);
    }
}
