//! Makes `docs/bounds.md` from what `Config::worst_case` says and the template `document.md`.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Config, WorstCase};
use crate::id::{Incarnation, PodId};
use crate::pages;
use crate::protocol::patience::{Patience, patience_for};
use crate::protocol::verdict::{LossObserver, PeerProbe, Verdict, VerdictTiming, WaitFor};

const TEMPLATE: &str = include_str!("document.md");

type Bound = fn(&WorstCase) -> Duration;

#[test]
fn the_page_on_bounds_says_what_the_code_does() {
    let leases = [2, 10, 30].map(Duration::from_secs);
    let all = leases.map(|lease| Config::new("host=h").lease(lease).worst_case().unwrap());
    let rows: [(&str, Bound); 12] = [
        ("a process was killed", |w| w.process_killed),
        ("a host vanished, or was cut off without closing its connections", |w| w.host_lost),
        ("a process was stopped (SIGSTOP)", |w| w.frozen),
        ("the application's runtime is blocked", |w| w.runtime_blocked),
        ("a pod runs and makes no progress: until it is suspected, from its last progress", |w| w.stalled),
        ("a connection broke, and its pod lives but does not come back", |w| w.connection_broken),
        ("many pods were lost at once", |w| w.many_lost),
        ("a pod died while the database restarted, from the server's return", |w| w.database_restarted),
        ("added by a burier that freezes between getting the lock and its commit", |w| w.burier_frozen_adds),
        ("not a burial: a run whose owner is gone, and of which no event tells, is claimed (up to 17 pods)", |w| {
            w.orphan_claimed
        }),
        ("not a burial: a silent pod has told its runs to stop, from its last answered ping (L7)", |w| {
            w.silent_pod_stops
        }),
        ("not a burial: the longest outage of the database that disturbs no run", |w| w.outage_tolerated),
    ];
    let (mut bounds, mut many, mut unequal) = (String::new(), String::new(), String::new());
    for (what, bound) in rows {
        let [short, usual, long] = all.map(|w| bound(&w).as_secs_f64());
        writeln!(bounds, "| {what} | {short:.1} s | {usual:.1} s | {long:.1} s |").unwrap();
    }
    for (killed, pods) in [(1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (3, 5), (3, 6), (3, 7)] {
        writeln!(many, "| {killed} | {pods} | {} | {} |", pods - 1, verdict_on(killed, pods)).unwrap();
    }
    let settings = leases.map(|lease| Config::new("host=h").lease(lease).validate().unwrap());
    for observer in &settings {
        let own = Patience { settle: observer.settle, reconnect_grace: observer.reconnect_grace };
        let waits = settings.each_ref().map(|peer| patience_for(own, Some(peer.stated())));
        assert!(waits.iter().all(|wait| wait.settle == wait.reconnect_grace), "one number for both: {waits:?}");
        let [short, usual, long] = waits.map(|wait| wait.settle.as_secs_f64());
        writeln!(unequal, "| {} s | {short:.1} s | {usual:.1} s | {long:.1} s |", observer.lease.as_secs()).unwrap();
    }
    let mut pushed = String::new();
    for (what, answer_ms) in
        [("a quiet server", 1), ("commits that wait 30 ms for others", 30), ("a standby that answers 150 ms late", 150)]
    {
        let bound = settings[1].pushed(Duration::from_millis(answer_ms));
        writeln!(pushed, "| {what} | {answer_ms} ms | {} ms |", bound.as_millis()).unwrap();
    }
    let mut orphans = String::new();
    for pods in [17, 50, 200, 500] {
        let [short, usual, long] = settings.each_ref().map(|s| s.orphan_claimed(pods).as_secs_f64());
        writeln!(orphans, "| {pods} | {short:.0} s | {usual:.0} s | {long:.0} s |").unwrap();
    }
    let parts =
        [("bounds", &bounds), ("pushed", &pushed), ("orphans", &orphans), ("many", &many), ("unequal", &unequal)];
    let text = pages::filled(TEMPLATE, &parts.map(|(name, text)| (name, text.as_str())));
    pages::renew_or_compare("docs/bounds.md", &text);
}

/// What the rule says of pods that one look finds dead, all of one verdict.
fn verdict_on(killed: usize, pods: usize) -> &'static str {
    let timing = VerdictTiming {
        window: Duration::from_secs(1),
        second_probe: Duration::from_millis(250),
        reconnect_grace: Duration::from_secs(10),
        settle: Duration::from_secs(10),
    };
    let peer = |n: usize| PeerProbe {
        pod_id: PodId::new(format!("p{n}")).unwrap(),
        incarnation: Incarnation::generate(),
        session: 1,
        draining: false,
        stopped: false,
        liveness_free: n < killed,
        witness_free: n < killed,
        stated: None,
    };
    let probe: Vec<_> = (0..pods - 1).map(peer).collect();
    let verdicts = LossObserver::default().decide(&timing, Duration::ZERO, &probe).verdicts;
    let of_the_dead = verdicts[0].1;
    assert!(verdicts[..killed].iter().all(|(_, verdict)| *verdict == of_the_dead), "{verdicts:?}");
    assert!(verdicts[killed..].iter().all(|(_, verdict)| *verdict == Verdict::Alive), "{verdicts:?}");
    match of_the_dead {
        Verdict::Dead(_) => "no: buried at once",
        Verdict::Wait(WaitFor::ManyLost, until) => {
            assert_eq!(until, timing.settle);
            "yes: buried after `settle`"
        }
        Verdict::Wait(WaitFor::SecondLoss, until) => {
            assert_eq!(until, timing.second_probe);
            "no: buried a lease / 40 after the last loss"
        }
        other => panic!("{killed} of {pods}: {other:?}"),
    }
}
