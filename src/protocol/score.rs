//! The score of a pod: 0 (do not trust it with a long run) to 1 (do).
//!
//! The weights are constants and not settings. A score is compared: between pods, between pods of different services in
//! one dashboard, and with a bound that a scheduler was given last year. That works only if the same history has the
//! same score everywhere. A service that wants other weights has all the numbers, and can compute a score of its own.
//!
//! A score counts evidence. What is unknown counts as nothing, so a pod earns its score.

use std::time::Duration;

/// The weight of the uptime.
const UPTIME: f64 = 0.35;
/// The weight of the share of sessions that last four hours: what most long runs need.
const STAYS_4H: f64 = 0.25;
/// The weight of the share of sessions that last eight hours.
const STAYS_8H: f64 = 0.15;
/// The weight of the mean time between failures. With the three above: 1.
const MTBF: f64 = 0.25;
/// What an unclean end at this moment costs.
const RECENCY: f64 = 0.10;
/// The mean time between failures that counts half: four hours, the length of the runs that the score is about.
const MTBF_MIDDLE: Duration = Duration::from_secs(4 * 3600);
/// How steep the step around it is: an hour more makes 0.73 of a half, two make 0.88.
const MTBF_WIDTH: Duration = Duration::from_secs(3600);
/// After this time an unclean end costs nothing more. A day: what happens every night still shows the next evening.
const RECENCY_FADES: Duration = Duration::from_secs(24 * 3600);
/// From this observed time on, the uptime counts whole. Before, it counts in proportion: an uptime of 100 % for a minute
/// is no evidence. Four hours is the shortest time that the score promises anything about. So a brand-new pod, observed
/// for three minutes or less, has less than 0.01. With less time, a pod that has just started would stand above one that
/// has run for days and crashed once. With more, a good pod would be passed over for longer than its first long run.
const EVIDENCE: Duration = Duration::from_secs(4 * 3600);

/// What a score is made from. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// How long the pod was observed: since the later of the begin of the window and its first session.
    pub observed: f64,
    /// The covered share of that time: 0 to 1. `None`: unknown.
    pub uptime: Option<f64>,
    /// The share of sessions that lasted four hours. `None`: unknown.
    pub stays_4h: Option<f64>,
    /// The share of sessions that lasted eight hours. `None`: unknown.
    pub stays_8h: Option<f64>,
    /// The mean time between failures. `None`: unknown.
    pub mtbf: Option<f64>,
    /// How long ago a session last ended uncleanly. `None`: never.
    pub since_unclean: Option<f64>,
}

/// The score: `0.35·uptime + 0.25·stays_4h + 0.15·stays_8h + 0.25·sigmoid((mtbf − 4 h)/1 h) − 0.10·recency`, from 0 to 1.
///
/// `recency` is 1 at the last unclean end, and falls linearly to 0 within 24 hours.
#[must_use]
pub fn score(of: &Evidence) -> f64 {
    let evidence = share(of.observed / EVIDENCE.as_secs_f64());
    let mtbf = of.mtbf.filter(|mtbf| mtbf.is_finite()).unwrap_or(0.0).max(0.0);
    let failures = sigmoid((mtbf - MTBF_MIDDLE.as_secs_f64()) / MTBF_WIDTH.as_secs_f64());
    let recency = of.since_unclean.map_or(0.0, |since| share(1.0 - since.max(0.0) / RECENCY_FADES.as_secs_f64()));
    let known = |value: Option<f64>| share(value.unwrap_or(0.0));
    share(
        UPTIME * known(of.uptime) * evidence
            + STAYS_4H * known(of.stays_4h)
            + STAYS_8H * known(of.stays_8h)
            + MTBF * failures
            - RECENCY * recency,
    )
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Between 0 and 1. What is no number counts as nothing.
fn share(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: f64 = 3600.0;
    const DAY: f64 = 24.0 * HOUR;

    #[test]
    fn a_brand_new_pod_has_less_than_a_hundredth() {
        assert!(score(&Evidence::default()) < 0.01, "nothing is known");
        for minutes in [0.0, 1.0, 3.0] {
            let observed = minutes * 60.0;
            let new = Evidence { observed, uptime: Some(1.0), mtbf: Some(observed), ..Evidence::default() };
            assert!(score(&new) < 0.01, "{minutes} min: {}", score(&new));
        }
    }

    #[test]
    fn a_perfect_pod_with_an_mtbf_of_a_day_has_at_least_0_999() {
        let perfect = Evidence {
            observed: DAY,
            uptime: Some(1.0),
            stays_4h: Some(1.0),
            stays_8h: Some(1.0),
            mtbf: Some(DAY),
            since_unclean: None,
        };
        assert!(score(&perfect) >= 0.999, "{}", score(&perfect));
        assert!(score(&perfect) <= 1.0);
    }

    #[test]
    fn a_pod_that_is_up_for_99_percent_and_crashes_every_two_hours_has_0_28_and_more_a_day_later() {
        let crashed = Evidence {
            observed: 14.0 * DAY,
            uptime: Some(0.99),
            stays_4h: Some(0.0),
            stays_8h: Some(0.0),
            mtbf: Some(2.1 * HOUR),
            since_unclean: Some(0.0),
        };
        let fresh = score(&crashed);
        assert!((fresh - 0.28).abs() <= 0.01, "{fresh}");
        let later = score(&Evidence { since_unclean: Some(DAY), ..crashed });
        assert!((later - fresh - 0.10).abs() < 1e-9, "{fresh}, a day later {later}");
        let half = score(&Evidence { since_unclean: Some(DAY / 2.0), ..crashed });
        assert!((half - fresh - 0.05).abs() < 1e-9, "linear: {half}");
    }

    #[test]
    fn the_first_hours_earn_a_score_step_by_step() {
        let unbroken = |hours: f64, stays: Option<f64>| Evidence {
            observed: hours * HOUR,
            uptime: Some(1.0),
            mtbf: Some(hours * HOUR),
            stays_4h: stays,
            ..Evidence::default()
        };
        let scores = [(0.5, None, 0.051), (1.0, None, 0.099), (2.0, None, 0.205), (4.0, Some(1.0), 0.725)];
        for (hours, stays, expected) in scores {
            let seen = score(&unbroken(hours, stays));
            assert!((seen - expected).abs() < 0.001, "{hours} h: {seen}, not {expected}");
        }
    }

    fn evidence() -> impl Strategy<Value = Evidence> {
        let unit = || proptest::option::of(0.0..=1.0);
        let time = || proptest::option::of(0.0..=20.0 * DAY);
        (0.0..=20.0 * DAY, unit(), unit(), unit(), time(), time()).prop_map(
            |(observed, uptime, stays_4h, stays_8h, mtbf, since_unclean)| Evidence {
                observed,
                uptime,
                stays_4h,
                stays_8h,
                mtbf,
                since_unclean,
            },
        )
    }

    proptest! {
        #[test]
        fn a_score_is_between_0_and_1_and_more_of_anything_good_never_lowers_it(of in evidence(), more in 0.0..=1.0) {
            let before = score(&of);
            prop_assert!((0.0..=1.0).contains(&before), "{}", before);
            let up = |value: Option<f64>| value.map(|v| v + (1.0 - v) * more);
            let longer = |value: Option<f64>| value.map(|v| v + more * DAY);
            for better in [
                Evidence { uptime: up(of.uptime), ..of },
                Evidence { stays_4h: up(of.stays_4h), ..of },
                Evidence { stays_8h: up(of.stays_8h), ..of },
                Evidence { mtbf: longer(of.mtbf), ..of },
                Evidence { since_unclean: longer(of.since_unclean), ..of },
                Evidence { since_unclean: None, ..of },
                Evidence { observed: of.observed + more * DAY, ..of },
            ] {
                prop_assert!(score(&better) >= before - 1e-12, "{:?} has less than {:?}", better, of);
            }
        }

        #[test]
        fn no_number_is_so_odd_that_the_score_leaves_its_bounds(values in proptest::array::uniform6(any::<f64>())) {
            let [observed, uptime, stays_4h, stays_8h, mtbf, since] = values;
            let of = Evidence {
                observed,
                uptime: Some(uptime),
                stays_4h: Some(stays_4h),
                stays_8h: Some(stays_8h),
                mtbf: Some(mtbf),
                since_unclean: Some(since),
            };
            prop_assert!((0.0..=1.0).contains(&score(&of)), "{:?}: {}", of, score(&of));
        }
    }
}
