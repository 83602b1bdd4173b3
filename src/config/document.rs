//! `docs/bounds.md`, made from what `Config::worst_case` says.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Config, WorstCase};
use crate::id::{Incarnation, PodId};
use crate::pages;
use crate::protocol::patience::{Patience, patience_for};
use crate::protocol::verdict::{LossObserver, PeerProbe, Verdict, VerdictTiming, WaitFor};

const INTRODUCTION: &str = "\
# Bounds

How long it takes at most until peers bury a dead pod: until they remove it from the roster, the table of pods. The bounds
hold if every push and notification is lost. If pushes arrive, and a process or its host's connections end, it takes
milliseconds. There are two exceptions: many pods are lost at once, or no survivor has been up for `settle`.

The table has three leases. Every other setting is at its default, and each answer of the database comes within
`ping_timeout`. `Config::worst_case()` gives the bounds for your settings. This page is made from it. L1 to L12 are the laws
of [ARCHITECTURE.md](../ARCHITECTURE.md#laws).

- **Long rosters.** A pod probes the locks of a roster of up to 62 rows in one statement. Dead rows count. A longer roster
  takes one statement for each 64 rows, so that dead rows cannot fill the server's lock table. Each statement adds one round trip
  to the database, mostly a millisecond.
- **A full lock table.** If the lock table is full all the same, some pods cannot be probed. No pod is buried on a lock that
  could not be probed. When the others can be probed again, a dead pod waits for `settle` at most.
- **Slow probes.** Losses that two probes in a row find count together, however long the probes take. So next to thousands of
  rows that were lost just now, a death may wait for `settle` as well.

";

const MANY: &str = "
## When many are lost

If many sessions end together, the pods rarely died together: a proxy, a database or a network ended the sessions. So a pod that
finds *many* of its peers lost gives each of them `settle` (the lease) to come back. This time counts from when the pod first
saw that peer's lock free. Then it buries those that have not come back. Exactly:

- A peer is *lost* if its liveness lock was first seen free less than a lease / 10 ago (1 s by default) and it has not returned.
  It is also lost if it was buried less than a lease / 10 ago and no pod has taken its name since.
- *Many* means at least two, and more than half of the *others*. The others are the peers in the roster, without the observer
  itself, and the peers that were buried within that time.
- Pods that drain count in neither number. If such a pod's lock is free, it waits with the others.

One probe or two may see two pods that are killed at once. If it takes two, the first pod is buried at once, and counts for the
second.

| killed at once, seen by one probe | of pods | others | many |
| --- | --- | --- | --- |
";

const AFTER_MANY: &str = "
While such a pod waits, its `condition` is `dead_waiting`, and an event `held` says why and for how long. The same wait happens if
all survivors are fresh: a pod buries no pod before it has held its own lock for `settle` without a break.
";

const UNEQUAL: &str = "
## Pods of different settings

All pods of a fleet should have the same settings. While you roll a setting out, they differ. Each row of the roster states its pod's
lease, `self_fence` and `beat_interval`. A pod that finds another value in a row warns once (`settings_differ`).

A pod that lost its sessions lets its runs go on until its own `self_fence` (L7). Runs that do not stop then are aborted within
another tenth of its lease. So an observer waits for that long, or for its own `settle` and `reconnect_grace` if these are longer.
The same holds for the time that the observer must have been up (L2). At defaults:

| the observer's lease | waits for a pod of 2 s | of 10 s | of 30 s |
| --- | --- | --- | --- |
";

const AFTER_UNEQUAL: &str = "
- **What it costs.** For a dead pod, the bounds above hold by the longer of the two leases. A killed process is buried at once,
  unless its survivors are fresh.
- **Beats (heartbeats).** A pod may beat less often than an observer checks. It is suspected after `stall_cycles` of its own
  intervals, and at most `stall_cycles` + 3 of them after its last progress.
- **Older versions.** The row of a pod of an older version states nothing. An observer waits for such a pod as long as the
  observer's own settings say. A pod of an older version reads no row: it waits as long as its own settings say. So change the
  lease of a fleet only when all of its pods write and read the rows ([compatibility.md](compatibility.md)).
- **A predecessor of the same name.** A pod waits `acquire_timeout` for the lock of its predecessor, by its own lease. A host that
  vanished keeps the lock for the predecessor's lease, which may be longer. Until then the start is refused as `name_taken`, and
  you may try it again.
- **What each pod decides by its own setting alone:** the time within which losses count together (a lease / 10), `claim_delay`,
  `max_crashes`, `on_stall`, `stall_cycles`, and how long it stays away after it was evicted. Of `keep_*`, the shortest wins.
- **The cause of an end.** A row does not state how often its pod pings. Without that, an observer cannot tell whether a session
  ended before its lease was over. So it never records `closed` for a pod of another lease.
";

type Bound = fn(&WorstCase) -> Duration;

#[test]
fn the_page_on_bounds_says_what_the_code_does() {
    let leases = [2, 10, 30].map(Duration::from_secs);
    let all = leases.map(|lease| Config::new("host=h").lease(lease).worst_case().unwrap());
    let rows: [(&str, Bound); 11] = [
        ("a process was killed", |w| w.process_killed),
        ("a host vanished, or was cut off without closing its connections", |w| w.host_lost),
        ("a process was stopped (SIGSTOP)", |w| w.frozen),
        ("the application's runtime is blocked", |w| w.runtime_blocked),
        ("a pod runs and makes no progress: until it is suspected, from its last progress", |w| w.stalled),
        ("a connection broke, and its pod lives but does not come back", |w| w.connection_broken),
        ("many pods were lost at once", |w| w.many_lost),
        ("a pod died while the database restarted, from the server's return", |w| w.database_restarted),
        ("added by a burier that freezes between getting the lock and its commit", |w| w.burier_frozen_adds),
        ("not a burial: a silent pod has told its runs to stop, from its last answered ping (L7)", |w| {
            w.silent_pod_stops
        }),
        ("not a burial: the longest outage of the database that disturbs no run", |w| w.outage_tolerated),
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
    let timing = VerdictTiming {
        window: Duration::from_secs(1),
        second_look: Duration::from_millis(250),
        reconnect_grace: Duration::from_secs(10),
        settle: Duration::from_secs(10),
    };
    let peer = |n: usize| PeerProbe {
        pod_id: PodId::new(format!("p{n}")).unwrap(),
        incarnation: Incarnation::generate(),
        session: 1,
        draining: false,
        liveness_free: n < killed,
        witness_free: n < killed,
        stated: None,
    };
    let look: Vec<_> = (0..pods - 1).map(peer).collect();
    let verdicts = LossObserver::default().decide(&timing, Duration::ZERO, &look).verdicts;
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
            assert_eq!(until, timing.second_look);
            "no: buried after a second probe, a lease / 40 later"
        }
        other => panic!("{killed} of {pods}: {other:?}"),
    }
}
