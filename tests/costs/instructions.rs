//! Instructions of the protocol's pure functions, counted by callgrind.
//!
//! The test runs its own program again under callgrind, with one test that calls each measured function once. Callgrind
//! counts what each of them executes, together with all that it calls. The program is the unoptimised one that the
//! other tests build. So the counts say how an algorithm grows, and not how long it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use podlock::protocol::awake::Teller;
use podlock::protocol::batch;
use podlock::protocol::fold::{self, LogEntry};
use podlock::protocol::offer;
use podlock::protocol::recover::{self, Candidate, Memory, Plan, Rules, Seen};
use podlock::protocol::share::{FleetLoad, Taker};
use podlock::protocol::stall::{Beat, StallObserver, StallTiming};
use podlock::protocol::stream::{self, Facts, Position};
use podlock::protocol::verdict::{LossObserver, PeerProbe, VerdictTiming};
use podlock::{Incarnation, PodId, RunId};
use serde_json::json;
use uuid::Uuid;

use crate::inherited::clean;
use crate::page::{self, Counts, Table, compare_or_renew};

/// Counts of one compiler are compared: another one makes other code of the same source.
const TOLERANCE: f64 = 0.02;

const SECOND: Duration = Duration::from_secs(1);

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn candidate(n: u128, owner: Option<Uuid>) -> Candidate {
    Candidate {
        run_id: RunId::from(id(n)),
        kind: Arc::from("work"),
        owner: owner.map(Incarnation::from),
        fence: 7.into(),
        unbegun: false,
        crashes: 0,
        crashed: false,
    }
}

/// A fleet in which every second pod is busier than the others.
fn fleet(orphans: usize, pods: usize) -> FleetLoad {
    let taker = |n: usize| Taker { running: n % 2 * 50, capacity: Some(1000) };
    FleetLoad { orphans, takers: (0..pods).map(taker).collect(), me: 0 }
}

/// A pod of four with 1,000 runs, and 1,000 orphans.
fn seen() -> (Memory, Seen) {
    let own = id(1);
    let rows = (0..1000).map(|n| candidate(n, Some(own))).chain((1000..2000).map(|n| candidate(n, None)));
    let running = (0..1000).map(|n| (RunId::from(id(n)), 7.into())).collect();
    let seen = Seen { rows: rows.collect(), fleet: Some(fleet(1000, 4)), ..Seen::default() };
    (Memory { running, room: 10_000, ..Memory::default() }, seen)
}

#[inline(never)]
fn measured_plan(memory: &Memory, seen: &Seen) -> Plan {
    recover::plan(Incarnation::from(id(1)), &Rules { share_wait: SECOND, ..Rules::default() }, memory, seen, SECOND)
}

#[inline(never)]
fn measured_share(fleet: &FleetLoad) -> usize {
    fleet.share()
}

#[inline(never)]
fn measured_offer(plan: &Plan, seen: &Seen) -> offer::Tell {
    offer::after_a_pass(plan, seen, false)
}

#[inline(never)]
fn measured_verdict(timing: &VerdictTiming, probe: &[PeerProbe]) -> usize {
    LossObserver::default().decide(timing, SECOND, probe).dead().count()
}

#[inline(never)]
fn measured_stall(observer: &StallObserver, timing: &StallTiming, beats: &[Beat]) -> usize {
    observer.look(timing, 20 * SECOND, 2, beats).0.len()
}

#[inline(never)]
fn measured_fold(log: &[LogEntry]) -> usize {
    fold::fold(log).expect("the log folds").len()
}

#[inline(never)]
fn measured_catch_up(positions: &[Position], facts: &Facts) -> usize {
    positions.iter().filter(|position| stream::catch_up(**position, facts).1.is_some()).count()
}

#[inline(never)]
fn measured_slices(sizes: &[i64]) -> usize {
    batch::by_bytes(sizes, 1 << 20).len()
}

#[inline(never)]
fn measured_teller(runs: &[RunId]) -> usize {
    let mut teller = Teller::default();
    let asked: BTreeSet<RunId> = teller.ask(runs.iter().copied(), SECOND);
    teller.answered(&asked, true, SECOND);
    for run in runs {
        teller.note_changed(*run, SECOND, SECOND, true);
    }
    asked.len()
}

/// What each function is measured on, by its name.
const MEASURED: [(&str, &str); 9] = [
    ("measured_plan", "plan of a pass with 1,000 own runs and 1,000 orphans"),
    ("measured_share", "share of a pod in a fleet of 1,000"),
    ("measured_offer", "whom that pass tells of the rest"),
    ("measured_verdict", "verdict on 1,000 peers that live"),
    ("measured_stall", "check of the beats of 16 neighbours"),
    ("measured_fold", "fold of 1,000 events"),
    ("measured_catch_up", "where 1,000 readers of a stream go on"),
    ("measured_slices", "slices of 1,000 payloads"),
    ("measured_teller", "an append of 64 runs: whom to tell"),
];

/// Runs each measured function once. By itself this shows nothing: callgrind counts.
#[test]
#[ignore = "runs under callgrind, by the test below"]
fn each_once() {
    let (memory, seen) = seen();
    let plan = measured_plan(&memory, &seen);
    assert_eq!(plan.claim.len(), 275, "its share");
    black_box(measured_offer(&plan, &seen));
    black_box(measured_share(&fleet(10_000, 1000)));
    let peer = |n: u128| PeerProbe {
        pod_id: PodId::new(format!("pod-{n}")).expect("a name"),
        incarnation: Incarnation::from(id(n)),
        session: 1,
        draining: false,
        stopped: false,
        liveness_free: false,
        witness_free: false,
        stated: None,
    };
    let timing =
        VerdictTiming { window: SECOND, second_probe: SECOND / 4, reconnect_grace: 10 * SECOND, settle: 10 * SECOND };
    let probe: Vec<_> = (0..1000).map(peer).collect();
    assert_eq!(measured_verdict(&timing, &probe), 0);
    let beat = |n: u128| Beat { incarnation: Incarnation::from(id(n)), index: 5, attached: true, every: None };
    let beats: Vec<_> = (0..16).map(beat).collect();
    let timing = StallTiming { interval: SECOND, cycles: 3 };
    let (_, observer) = StallObserver::default().look(&timing, SECOND, 1, &beats);
    assert_eq!(measured_stall(&observer, &timing, &beats), 0);
    let entry = |n: u128| LogEntry {
        idx: i64::try_from(n).expect("a small number"),
        kind: "joined".to_owned(),
        pod_id: PodId::new(format!("pod-{n}")).expect("a name"),
        incarnation: Incarnation::from(id(n)),
        detail: json!({"session": 1}),
    };
    let log: Vec<_> = (0..1000).map(entry).collect();
    assert_eq!(measured_fold(&log), 1000);
    let positions: Vec<_> = (0..1000).map(|next| Position { generation: 1, resets: 0, next, fence: 3 }).collect();
    let facts = Facts { generation: 1, resets: 1, cut_from: Some(500), differs_from: None, next: 2000 };
    assert_eq!(measured_catch_up(&positions, &facts), 499);
    let sizes: Vec<_> = (0..1000).map(|n| n * 100).collect();
    black_box(measured_slices(&sizes));
    let runs: Vec<_> = (0..64).map(|n| RunId::from(id(n))).collect();
    assert_eq!(measured_teller(&runs), 64);
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments);
    clean(&mut command);
    let output = command.output().map_err(|e| format!("{program} cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{program} ended with {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// The counts of an annotated profile. A function's line begins with its count, and one that was compiled several times
/// has several lines.
fn counts(annotated: &str) -> Counts {
    let mut counts = BTreeMap::new();
    for line in annotated.lines() {
        let Some((name, what)) = MEASURED.iter().find(|(name, _)| line.contains(name)) else { continue };
        let count = line.trim_start().split([' ', '(']).next().unwrap_or_default().replace(',', "");
        if let Ok(count) = count.parse::<u64>() {
            let most: &mut u64 = counts.entry((*what).to_owned()).or_insert_with(|| {
                assert!(line.contains("costs"), "{name} is a function of this test: {line}");
                0
            });
            *most = count.max(*most);
        }
    }
    counts
}

/// The compiler whose counts the page has; its line is `Compiler: …`.
fn compiler_of_the_page(page: &str) -> Option<&str> {
    page.lines().find_map(|line| line.strip_prefix("Compiler: ")?.strip_suffix('.'))
}

#[test]
fn instructions_of_the_pure_functions_are_those_of_the_page() {
    if let Err(why) = output("valgrind", &["--version"]) {
        println!("SKIPPED: {why}");
        return;
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = output(&rustc, &["--version"]).expect("the compiler says its version").trim().to_owned();
    let page = page::read();
    let written = compiler_of_the_page(&page).expect("the page names the compiler").to_owned();
    let renews = std::env::var_os("PODLOCK_RENEW_DOCS").is_some();
    if written != compiler && !renews {
        println!("SKIPPED: the counts are those of {written}, and this is {compiler}; `make costs` renews them");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let profile = directory.path().join("profile").display().to_string();
    let program = std::env::current_exe().expect("this program").display().to_string();
    let out = format!("--callgrind-out-file={profile}");
    let arguments = ["--tool=callgrind", &out, &program, "--exact", "instructions::each_once", "--ignored"];
    output("valgrind", &arguments).expect("the functions run under callgrind");
    let arguments = ["--inclusive=yes", "--threshold=100", "--auto=no", &profile];
    let counts = counts(&output("callgrind_annotate", &arguments).expect("the profile can be read"));
    assert_eq!(counts.len(), MEASURED.len(), "each function is in the profile: {counts:?}");
    compare_or_renew(&Table { name: "instructions", heads: ["what", "instructions"], tolerance: TOLERANCE }, &counts);
    if renews {
        page::replace(&format!("Compiler: {written}."), &format!("Compiler: {compiler}."));
    }
}
