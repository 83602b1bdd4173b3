//! `docs/bounds.md`, made from what `Config::worst_case` says.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Config, WorstCase};
use crate::id::{Incarnation, PodId};
use crate::pages;
use crate::protocol::patience::{Patience, patience_for};
use crate::protocol::verdict::{HoldReason, Observer, PeerLook, Timing, Verdict};

const INTRODUCTION: &str = "\
# Bounds

How long it takes at most until peers bury a pod, with every push and notification lost; with them it is milliseconds where
a process or its host's connections end, unless many end at once or no survivor has been up for `settle`. At three leases, all else at its default, each answer of the database within
`ping_timeout`. `Config::worst_case()` says it for your settings; this page is made from it.

A roster of up to 62 rows, dead ones included, is looked at in one statement. A longer one takes a statement for each 64 rows,
so that dead rows cannot fill the server's lock table: each adds an answer of the database, mostly a millisecond. Where the
table is full all the same, nobody is buried on what could not be looked at, and a pod that died waits for `settle` at most
once others could be looked at again. Losses of two looks count together however long the looks take: next to thousands of rows
that were lost just now, a death may wait for `settle` as well.

";

const MANY: &str = "
## When many are lost

Sessions that end together are rarely pods that died together: a proxy, a database or a network ended them. So a pod that finds
*many* of its peers lost gives each of them `settle` (the lease) to come back, from when it first saw that peer's lock free, and
buries whoever has not. Exactly:

- *Lost* is a peer whose liveness lock was first seen free less than a lease / 10 ago (1 s by default) and that has not returned,
  and one that was buried less than a lease / 10 ago and whose name nobody has taken since.
- *Many* are at least two, and more than half of the *others*: the peers in the roster, without the observer itself, and those that
  were buried within that time.
- Pods that drain count in neither number. One whose lock is free meanwhile waits with the others.

Two that are killed at once are seen by one look or by two. If by two, the first is buried at once and counts for the second.

| killed at once, seen by one look | of pods | others | many |
| --- | --- | --- | --- |
";

const AFTER_MANY: &str = "
While it waits, the pod's `condition` is `dead_waiting`, and an event `held` says why and for how long. The same wait comes from
survivors that are all fresh: a pod buries nobody before it has held its own lock for `settle` without a break.
";

const UNEQUAL: &str = "
## Pods of different settings

All pods of a fleet should have the same settings. While a setting is rolled out they differ. Each row of the roster says its
pod's lease, `self_fence` and `beat_interval`, and a pod that finds another value in a row warns once (`settings_differ`).

A pod that lost its sessions lets its runs go on until its own `self_fence` (L7), and what does not stop is aborted within
another tenth of its lease. So whoever observes it waits for that long, or for its own `settle` and `reconnect_grace` where
these are longer. That holds for the time that the observer must have been up (L2) as well. At defaults:

| the observer's lease | waits for a pod of 2 s | of 10 s | of 30 s |
| --- | --- | --- | --- |
";

const AFTER_UNEQUAL: &str = "
- **What it costs.** The bounds above hold for a dead pod by the longer of the two leases. A killed process is buried at once, unless
  its survivors are fresh.
- **Beats.** A pod that beats less often than an observer looks is suspected after `stall_cycles` of its own intervals, and at
  most `stall_cycles` + 3 of them after its last progress.
- **A row that says nothing**, of a pod of an older version, is waited for as long as the observer's own settings say. And a pod of an
  older version reads no row: it waits as long as its own settings say. So change the lease of a fleet once all of its pods
  write and read the rows ([compatibility.md](compatibility.md)).
- **A predecessor of the same name.** A pod waits `acquire_timeout` for the lock of its predecessor, by its own lease. A host that
  vanished keeps the lock for its own, longer one. The start is refused as `name_taken` until then, and may be tried again.
- **What each pod decides by its own setting alone**, as before: the time within which losses count together (a lease / 10),
  `claim_delay`, `max_crashes`, `on_stall`, `stall_cycles`, and how long it stays away after it was put out. Of `keep_*` the shortest
  wins.
- **The cause of an end.** A row does not say how often its pod pings, and an observer cannot tell without that whether a session
  ended before its lease was over. So it never records `closed` of a pod of another lease.
";

type Bound = fn(&WorstCase) -> Duration;

#[test]
fn the_page_on_bounds_says_what_the_code_does() {
    let leases = [2, 10, 30].map(Duration::from_secs);
    let all = leases.map(|lease| Config::new("host=h").lease(lease).worst_case().unwrap());
    let rows: [(&str, Bound); 11] = [
        ("a process was killed", |w| w.process_killed),
        ("a host vanished, or was cut off without a word", |w| w.host_lost),
        ("a process was stopped (SIGSTOP)", |w| w.frozen),
        ("the application's runtime is blocked", |w| w.runtime_blocked),
        ("it runs and gets nowhere: until it is suspected, from its last progress", |w| w.stalled),
        ("its connection broke, and it lives but does not come back", |w| w.connection_broken),
        ("many were lost at once", |w| w.many_lost),
        ("it died while the database restarted, from the server's return", |w| w.database_restarted),
        ("a burier that freezes between its grant and its commit adds", |w| w.burier_frozen_adds),
        ("not a burial: a silent pod has told its runs to stop, from its last answered ping (L7)", |w| {
            w.silent_pod_stops
        }),
        ("not a burial: an outage of the database that disturbs no run", |w| w.outage_tolerated),
    ];
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| what | lease 2 s | 10 s (default) | 30 s |\n| --- | --- | --- | --- |\n");
    for (what, bound) in rows {
        let [short, usual, long] = all.map(|w| bound(&w).as_secs_f64());
        writeln!(text, "| {what} | {short:.1} s | {usual:.1} s | {long:.1} s |").unwrap();
    }
    text.push_str(MANY);
    for (killed, pods) in [(1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (3, 5), (3, 6), (3, 7)] {
        let many = verdict_on(killed, pods);
        writeln!(text, "| {killed} | {pods} | {} | {many} |", pods - 1).unwrap();
    }
    text.push_str(AFTER_MANY);
    text.push_str(UNEQUAL);
    let settings = leases.map(|lease| Config::new("host=h").lease(lease).validate().unwrap());
    for observer in &settings {
        let own = Patience { settle: observer.settle, reconnect_grace: observer.reconnect_grace };
        let waits = settings.each_ref().map(|peer| patience_for(own, Some(peer.stated())));
        assert!(waits.iter().all(|wait| wait.settle == wait.reconnect_grace), "one number for both: {waits:?}");
        let [short, usual, long] = waits.map(|wait| wait.settle.as_secs_f64());
        writeln!(text, "| {} s | {short:.1} s | {usual:.1} s | {long:.1} s |", observer.lease.as_secs()).unwrap();
    }
    text.push_str(AFTER_UNEQUAL);
    pages::renew_or_compare("docs/bounds.md", &text);
}

/// What the rule says of pods that one look finds dead, all of one verdict.
fn verdict_on(killed: usize, pods: usize) -> &'static str {
    let timing = Timing {
        window: Duration::from_secs(1),
        second_look: Duration::from_millis(250),
        reconnect_grace: Duration::from_secs(10),
        settle: Duration::from_secs(10),
    };
    let peer = |n: usize| PeerLook {
        pod_id: PodId::new(format!("p{n}")).unwrap(),
        incarnation: Incarnation::generate(),
        session: 1,
        draining: false,
        liveness_free: n < killed,
        witness_free: n < killed,
        stated: None,
    };
    let look: Vec<_> = (0..pods - 1).map(peer).collect();
    let verdicts = Observer::default().decide(&timing, Duration::ZERO, &look).verdicts;
    let of_the_dead = verdicts[0].1;
    assert!(verdicts[..killed].iter().all(|(_, verdict)| *verdict == of_the_dead), "{verdicts:?}");
    assert!(verdicts[killed..].iter().all(|(_, verdict)| *verdict == Verdict::Alive), "{verdicts:?}");
    match of_the_dead {
        Verdict::Dead(_) => "no: buried at once",
        Verdict::Hold(HoldReason::ManyLost, until) => {
            assert_eq!(until, timing.settle);
            "yes: buried after `settle`"
        }
        Verdict::Hold(HoldReason::SecondLoss, until) => {
            assert_eq!(until, timing.second_look);
            "no: buried after a second look, a lease / 40 later"
        }
        other => panic!("{killed} of {pods}: {other:?}"),
    }
}
