use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60 * SECOND;
/// Monday, 2 March 2026, 00:00 UTC.
const MONDAY: i64 = 1_772_409_600 * SECOND;
const NOW: i64 = MONDAY + 5 * DAY;

fn ended(began: i64, end: i64, why: Reason) -> Session {
    Session { began, end: Some(End { at: end, why: Some(why) }) }
}

fn open(began: i64) -> Session {
    Session { began, end: None }
}

fn of(sessions: &[Session]) -> Features {
    of_frame(sessions, false).expect("a session reaches into the window")
}

fn of_frame(sessions: &[Session], seen_before: bool) -> Option<Features> {
    features(&mut sessions.to_vec(), &Frame { now: NOW, seen_before, cut_at: None })
}

fn near(seen: f64, expected: f64) -> bool {
    (seen - expected).abs() < 1e-9
}

#[test]
fn uptime_is_covered_time_by_the_time_since_the_later_of_window_start_and_first_seen() {
    // First seen 10 h ago, up for 6 h of them.
    let young = of(&[ended(NOW - 10 * HOUR, NOW - 6 * HOUR, Reason::Lost), open(NOW - 2 * HOUR)]);
    assert!(near(young.uptime.unwrap(), 0.6), "{young:?}");
    // Seen before the window, by a session that is not among these: the window's start counts.
    let old = of_frame(&[open(NOW - 7 * DAY)], true).unwrap();
    assert!(near(old.uptime.unwrap(), 0.5), "{old:?}");
    // The same by a session that is among them and ended before the window.
    let old = of(&[ended(NOW - 20 * DAY, NOW - 19 * DAY, Reason::Lost), open(NOW - 7 * DAY)]);
    assert!(near(old.uptime.unwrap(), 0.5), "{old:?}");
    assert_eq!((old.sessions, old.reasons.len()), (1, 0), "it does not reach into the window");
    // Open since before the window.
    let whole = of(&[open(NOW - 30 * DAY)]);
    assert!(near(whole.uptime.unwrap(), 1.0) && near(whole.mtbf, 14.0 * 86_400.0), "{whole:?}");
}

#[test]
fn covered_time_is_the_union_so_pods_of_one_node_count_once() {
    let node = of(&[
        ended(NOW - 10 * HOUR, NOW - 5 * HOUR, Reason::Shutdown),
        ended(NOW - 9 * HOUR, NOW - 8 * HOUR, Reason::Lost),
        ended(NOW - 6 * HOUR, NOW - 4 * HOUR, Reason::Lost),
        open(NOW - 2 * HOUR),
    ]);
    assert!(near(node.uptime.unwrap(), 0.8), "{node:?}");
    assert!(near(node.mtbf, 4.0 * 3600.0), "8 h by two unclean ends: {node:?}");
}

#[test]
fn mtbf_is_covered_time_by_unclean_ends_and_the_covered_time_without_any() {
    let clean = of(&[ended(NOW - 8 * HOUR, NOW - 4 * HOUR, Reason::Shutdown), open(NOW - 4 * HOUR)]);
    assert!(near(clean.mtbf, 8.0 * 3600.0), "{clean:?}");
    for why in Reason::ALL {
        let seen = of(&[
            ended(NOW - 9 * HOUR, NOW - 6 * HOUR, why),
            ended(NOW - 6 * HOUR, NOW - 3 * HOUR, why),
            open(NOW - 3 * HOUR),
        ]);
        let expected = if why == Reason::Shutdown { 9.0 } else { 4.5 };
        assert!(near(seen.mtbf, expected * 3600.0), "{why}: only shutdown is clean; {seen:?}");
        assert_eq!(seen.reasons, BTreeMap::from([(why.as_str(), 2)]));
    }
    let unknown = Session { began: NOW - HOUR, end: Some(End { at: NOW - MINUTE, why: None }) };
    assert_eq!(of(&[unknown]).reasons, BTreeMap::from([("unknown", 1)]));
}

#[test]
fn the_rank_of_a_percentile_is_round_of_p_times_n_less_1_and_a_half_goes_up() {
    let cases = [
        (1, [0, 0, 0]),
        (2, [0, 1, 1]),
        (3, [0, 1, 2]),
        (6, [1, 3, 5]),
        (10, [1, 5, 8]),
        (11, [1, 5, 10 - 1]),
        (100, [10, 50, 89]),
    ];
    for (n, ranks) in cases {
        assert_eq!([10, 50, 90].map(|percent| rank(percent, n)), ranks, "of {n}");
    }
    assert_eq!(rank(50, 0), 0);
    // Sessions of 1 h to 10 h, the last one open: ranks 1, 5 and 8.
    let mut sessions: Vec<Session> =
        (1..10).map(|h| ended(NOW - (100 + 20 * h) * HOUR, NOW - (100 + 19 * h) * HOUR, Reason::Lost)).collect();
    for (h, s) in (1..10).zip(&mut sessions) {
        s.end = Some(End { at: s.began + h * HOUR, why: Some(Reason::Lost) });
    }
    sessions.push(open(NOW - 10 * HOUR));
    assert_eq!(of(&sessions).lengths, [2, 6, 9].map(|h| f64::from(h) * 3600.0));
    assert!(near(of(&sessions).last_length, 10.0 * 3600.0));
}

#[test]
fn a_session_that_can_not_tell_yet_is_left_out_of_the_share_that_stays() {
    let long = ended(NOW - 40 * HOUR, NOW - 30 * HOUR, Reason::Lost);
    let five_hours = ended(NOW - 29 * HOUR, NOW - 24 * HOUR, Reason::Lost);
    let short = ended(NOW - 22 * HOUR, NOW - 21 * HOUR, Reason::Lost);
    let stopped = ended(NOW - 20 * HOUR, NOW - 19 * HOUR, Reason::Shutdown);
    let young = open(NOW - 3 * HOUR);
    let stays = |sessions: &[Session]| (of(sessions).stays_4h, of(sessions).stays_8h);
    assert_eq!(stays(&[young]), (None, None), "open, and younger than four hours");
    assert_eq!(stays(&[stopped]), (None, None), "a clean shutdown before");
    assert_eq!(stays(&[short]), (Some(0.0), Some(0.0)));
    assert_eq!(stays(&[long, five_hours, short, stopped, young]), (Some(2.0 / 3.0), Some(1.0 / 3.0)));
    assert_eq!(stays(&[open(NOW - 5 * HOUR)]), (Some(1.0), None), "open for five hours: it stayed for four");
    assert_eq!(stays(&[open(NOW - 4 * HOUR)]), (Some(1.0), None));
    let stopped_late = ended(NOW - 20 * HOUR, NOW - 14 * HOUR, Reason::Shutdown);
    assert_eq!(stays(&[stopped_late]), (Some(1.0), None), "a clean shutdown after four hours and before eight");
    let from_before = ended(NOW - 14 * DAY - 8 * HOUR, NOW - 14 * DAY + HOUR, Reason::Lost);
    assert_eq!(stays(&[from_before]), (Some(1.0), Some(1.0)), "a session counts whole");
}

#[test]
fn availability_is_by_hour_of_the_week_in_utc_with_monday_first() {
    // Up from Tuesday 06:30 to 08:00 and from Thursday 00:00 on; now it is Saturday 00:00.
    let tuesday = MONDAY + DAY;
    let seen = of(&[ended(tuesday + 390 * MINUTE, tuesday + 8 * HOUR, Reason::Lost), open(MONDAY + 3 * DAY)]);
    let week = seen.availability;
    assert_eq!((week[1][5], week[1][6], week[1][7], week[1][8]), (None, Some(1.0), Some(1.0), Some(0.0)));
    assert_eq!((week[2][23], week[3][0], week[4][23], week[5][0]), (Some(0.0), Some(1.0), Some(1.0), None));
    assert_eq!(week[0], [None; 24], "Monday was not observed");
    // Two Mondays in the window, one of them up.
    let seen = of_frame(&[open(MONDAY)], true).unwrap();
    assert_eq!((seen.availability[0][12], seen.availability[6][12]), (Some(0.5), Some(0.0)));
}

#[test]
fn the_last_end_and_the_newest_session_are_named() {
    let seen = of(&[
        ended(NOW - 9 * HOUR, NOW - 6 * HOUR, Reason::Lost),
        ended(NOW - 5 * HOUR, NOW - 3 * HOUR, Reason::Shutdown),
    ]);
    assert_eq!(seen.last_disconnect, Some(NOW - 3 * HOUR));
    assert!(near(seen.last_length, 2.0 * 3600.0));
    assert!(seen.is_over);
    let alive = of(&[open(NOW - HOUR)]);
    assert_eq!((alive.last_disconnect, alive.is_over), (None, false));
}

#[test]
fn a_pod_whose_sessions_all_left_the_window_has_no_features() {
    assert_eq!(of_frame(&[ended(NOW - 20 * DAY, NOW - 15 * DAY, Reason::Lost)], false), None);
    assert_eq!(of_frame(&[], true), None);
}

#[test]
fn a_clock_that_jumped_leaves_no_number_out_of_its_bounds() {
    let jumped = of(&[
        open(NOW + 3 * HOUR),
        ended(NOW + HOUR, NOW + 2 * HOUR, Reason::Lost),
        ended(NOW - 2 * HOUR, NOW - 4 * HOUR, Reason::Lost),
        ended(NOW - 6 * HOUR, NOW + 5 * HOUR, Reason::Lost),
    ]);
    assert_eq!(jumped.sessions, 4);
    assert!(near(jumped.uptime.unwrap(), 1.0), "{jumped:?}");
    assert_eq!(jumped.last_disconnect, Some(NOW));
    assert!((0.0..=1.0).contains(&jumped.score));
    let only = of(&[open(NOW + 3 * HOUR)]);
    assert_eq!((only.uptime, only.stays_4h), (None, None), "no time has passed");
    assert!(only.score < 0.01);
}

#[test]
fn of_too_many_sessions_the_window_begins_with_the_first_that_counts() {
    let mut sessions = vec![open(NOW - 2 * HOUR)];
    let cut = Frame { now: NOW, seen_before: true, cut_at: Some(NOW - 4 * HOUR) };
    assert!(near(features(&mut sessions, &cut).unwrap().uptime.unwrap(), 0.5));
}

#[test]
fn what_the_issue_says_of_scores_holds_of_whole_histories() {
    assert!(of(&[open(NOW - 2 * MINUTE)]).score < 0.01, "brand new");
    let perfect = of(&[open(NOW - 24 * HOUR)]);
    assert!(perfect.score >= 0.999, "{perfect:?}");
    // Crashes every 2.1 h, and is back after 1 % of that. The last crash is now.
    let each = |back: i64| {
        let period = 126 * MINUTE * 100 / 99;
        let sessions: Vec<Session> =
            (0..170).map(|i| NOW - back - i * period).map(|end| ended(end - 126 * MINUTE, end, Reason::Lost)).collect();
        sessions
    };
    let crashing = of(&each(0));
    assert!((crashing.mtbf / 3600.0 - 2.1).abs() < 0.05 && crashing.stays_4h == Some(0.0), "{crashing:?}");
    assert!((crashing.score - 0.28).abs() <= 0.01, "{}", crashing.score);
    let mut a_day_later = each(24 * HOUR);
    a_day_later.push(open(NOW - 24 * HOUR + 2 * MINUTE));
    assert!(of(&a_day_later).score > crashing.score, "{} a day later", of(&a_day_later).score);
}

/// Sessions of whole minutes, with a begin, a length and a reason; no reason: open.
fn sessions() -> impl Strategy<Value = Vec<Session>> {
    let one = (-40_000_i64..100, 0_i64..3000, proptest::option::of(0..Reason::ALL.len())).prop_map(
        |(began, minutes, why)| {
            let began = NOW + began * MINUTE;
            let end = why.map(|why| End { at: began + minutes * MINUTE, why: Some(Reason::ALL[why]) });
            Session { began, end }
        },
    );
    proptest::collection::vec(one, 0..12)
}

proptest! {
    /// Beside a second computation that looks at each minute of the window.
    #[test]
    fn covered_time_is_that_of_a_count_minute_by_minute(sessions in sessions()) {
        let start = NOW - 14 * DAY;
        let Some(seen) = of_frame(&sessions, false) else {
            prop_assert!(sessions.iter().all(|s| s.end.is_some_and(|end| end.at <= start)), "{sessions:?}");
            return Ok(());
        };
        let from = sessions.iter().map(|s| s.began).min().unwrap().clamp(start, NOW);
        let is_up = |at: i64| sessions.iter().any(|s| s.began <= at && s.end.is_none_or(|end| at < end.at));
        let minutes: Vec<i64> = (0..(NOW - from) / MINUTE).map(|i| from + i * MINUTE).collect();
        let mut week = [[(0_u32, 0_u32); 24]; 7];
        for at in &minutes {
            let hours = (at - MONDAY).div_euclid(HOUR);
            let slot = &mut week[usize::try_from(hours.div_euclid(24).rem_euclid(7)).unwrap()][usize::try_from(hours.rem_euclid(24)).unwrap()];
            slot.0 += 1;
            slot.1 += u32::from(is_up(*at));
        }
        let up = minutes.iter().filter(|at| is_up(**at)).count();
        match seen.uptime {
            None => prop_assert!(minutes.is_empty()),
            Some(uptime) => prop_assert!(near(uptime, as_f64(up) / as_f64(minutes.len())), "{uptime} {up}"),
        }
        for (day, hours) in week.iter().enumerate() {
            for (hour, (all, up)) in hours.iter().enumerate() {
                let expected = (*all > 0).then(|| f64::from(*up) / f64::from(*all));
                let share = seen.availability[day][hour];
                prop_assert_eq!(share.is_some(), expected.is_some());
                prop_assert!(near(share.unwrap_or(0.0), expected.unwrap_or(0.0)), "{} {}: {:?}", day, hour, share);
            }
        }
        let unclean = sessions.iter().filter_map(|s| s.end).map(|end| (end.at.min(NOW), end.why))
            .filter(|(at, why)| *at > start && *why != Some(Reason::Shutdown)).count();
        prop_assert!(near(seen.mtbf, as_f64(up) * 60.0 / as_f64(unclean.max(1))), "{} {}", seen.mtbf, unclean);
    }

    #[test]
    fn every_number_is_in_its_bounds_and_the_order_of_the_sessions_does_not_matter(sessions in sessions()) {
        let Some(seen) = of_frame(&sessions, true) else { return Ok(()) };
        let shares = [seen.uptime, seen.stays_4h, seen.stays_8h, Some(seen.score)];
        prop_assert!(shares.into_iter().flatten().all(|share| (0.0..=1.0).contains(&share)), "{:?}", seen);
        prop_assert!(seen.lengths[0] <= seen.lengths[1] && seen.lengths[1] <= seen.lengths[2], "{:?}", seen);
        prop_assert!(seen.mtbf >= 0.0 && seen.last_length >= 0.0);
        prop_assert!(seen.reasons.values().sum::<u64>() <= u64::try_from(seen.sessions).unwrap());
        let mut reversed = sessions;
        reversed.reverse();
        prop_assert_eq!(of_frame(&reversed, true), Some(seen));
    }
}
