//! The checker, checked: a history that is as it must be passes, and for each rule one that breaks it is found by it.

use std::time::Duration;

use libtest_mimic::Trial;

use super::{Excused, Rule, Violation};
use crate::history::{
    Change, ChunkProof, ChunkRow, PodLog, PodProof, PodRow, Record, RunProof, RunRow, Said, WorkerRow,
};
use crate::pod::{Input, Mark};

/// One trial for the good history, one for each rule.
pub(crate) fn trials() -> Vec<Trial> {
    let sound = Trial::test("checker::finds_nothing_in_a_history_that_is_as_it_must_be", || {
        let Story { history, logs, excused } = good();
        let found = check(&history, &logs, &excused);
        if found.is_empty() { Ok(()) } else { Err(format!("{found:#?}").into()) }
    });
    let bad = Rule::ALL.into_iter().map(|rule| {
        Trial::test(format!("checker::finds_what_breaks::{rule:?}"), move || {
            let mut story = good();
            spoil(rule, &mut story);
            let found = check(&story.history, &story.logs, &story.excused);
            if found.iter().any(|v| v.rule == rule) { Ok(()) } else { Err(format!("found only {found:#?}").into()) }
        })
    });
    let lost = Trial::test("checker::excuses_by_a_failover_the_steps_that_were_confirmed_and_no_others", || {
        let rules = |story: &Story| check(&story.history, &story.logs, &story.excused).into_iter().map(|v| v.rule);
        let mut story = skipped();
        assert!(rules(&story).any(|rule| rule == Rule::EachStepOnce), "nothing excuses it");
        story.excused = story.excused.lost_writes();
        assert_eq!(rules(&story).collect::<Vec<_>>(), [], "the database took that step back");
        story.logs[1].said.retain(|said| said.op.as_deref() != Some("b2"));
        assert_eq!(rules(&story).collect::<Vec<_>>(), [Rule::EachStepOnce], "it was never confirmed");
        Ok(())
    });
    let twice = Trial::test("checker::finds_a_process_that_is_given_a_fence_twice", || {
        let Story { history, mut logs, excused } = good();
        logs[1].said.push(Said { run: Some("of a timeline that is gone".into()), ..attempt(9, "begin", 1, 6) });
        let found = check(&history, &logs, &excused.lost_writes());
        assert_eq!(found.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::FencesRise]);
        Ok(())
    });
    let stale = Trial::test("checker::finds_a_chunk_of_a_stale_owner", || {
        let Story { mut history, logs, excused } = good();
        let Change::Chunk { proof, .. } = &mut history[8].change else { unreachable!() };
        proof.of_the_owner = false;
        let found = check(&history, &logs, &excused);
        assert_eq!(found.iter().map(|v| v.rule).collect::<Vec<_>>(), [Rule::OneOwner]);
        Ok(())
    });
    let readers = ["a_chunk_less", "a_chunk_twice"].map(|what| {
        Trial::test(format!("checker::finds_a_reader_that_was_told_{what}"), move || {
            let Story { history, mut logs, excused } = good();
            let told = logs[1].said.iter().position(|said| said.reader.is_some()).expect("a reader");
            let last = logs[1].said.remove(told + 4);
            if what == "a_chunk_twice" {
                logs[1].said.splice(told + 4..told + 4, [last.clone(), last]);
            }
            let found = check(&history, &logs, &excused);
            if found.iter().any(|v| v.rule == Rule::StreamsAreWhole) {
                Ok(())
            } else {
                Err(format!("{found:#?}").into())
            }
        })
    });
    let workers = workers();
    std::iter::once(sound).chain(bad).chain([lost, twice, stale]).chain(readers).chain(workers).collect()
}

/// What breaks the rule on the replicas of workers, and what does not.
fn workers() -> Vec<Trial> {
    type Spoils = fn(&mut Vec<Said>);
    let cases: [(&str, usize, Spoils); 4] = [
        ("finds_a_replica_that_hides_a_worker_of_a_living_pod", 1, |shows| {
            shows.last_mut().unwrap().shown.insert("ib".into(), 2);
        }),
        ("finds_a_replica_that_shows_none_of_a_pod_that_lives", 1, |shows| shows.last_mut().unwrap().shown.clear()),
        ("excuses_a_replica_that_was_not_attached", 0, |shows| {
            shows[9].attached = Some(false);
            shows.last_mut().unwrap().shown.clear();
        }),
        ("excuses_a_replica_whose_process_was_stopped", 0, |shows| {
            shows.drain(7..10);
            shows.last_mut().unwrap().shown.insert("ia".into(), 3);
        }),
    ];
    let trial = |(name, broken, spoils): (&str, usize, Spoils)| {
        Trial::test(format!("checker::{name}"), move || {
            let Story { history, mut logs, excused } = good();
            let at = logs[1].said.iter().position(|said| said.ev == "shows").expect("a word");
            let mut shows = logs[1].said.split_off(at);
            spoils(&mut shows);
            logs[1].said.append(&mut shows);
            let found = check(&history, &logs, &excused);
            let rules: Vec<_> = found.iter().map(|v| v.rule).collect();
            if rules == vec![Rule::WorkersOfTheLiving; broken] { Ok(()) } else { Err(format!("{found:#?}").into()) }
        })
    };
    cases.map(trial).into()
}

/// How soon a replica of the stories must show what is true.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

fn check(history: &[Record], logs: &[PodLog], excused: &Excused) -> Vec<Violation> {
    super::check(history, logs, excused, SHOWN_WITHIN)
}

struct Story {
    history: Vec<Record>,
    logs: Vec<PodLog>,
    excused: Excused,
}

const STEPS: u64 = 2;
const SECOND: u64 = 1_000_000_000;

/// Pods a and b register; a starts a run and counts to 1; it dies; b buries it, claims the run, counts to 2, ends it.
fn good() -> Story {
    let run = |owner: &str, fence, attempt, n: u64| RunRow {
        run_id: "r".into(),
        key: Some("k".into()),
        state: "running".into(),
        owner_pod: Some(owner.into()),
        owner_incarnation: Some(format!("i{owner}")),
        fence,
        attempt,
        crashes: 0,
        checkpoint: (n > 0).then(|| mark(if n == 1 { "a" } else { owner }, if n == 1 { 5 } else { fence }, n)),
        result: None,
        input: Input { steps: STEPS, pause_ms: 0 },
    };
    let ended = RunRow { state: "succeeded".into(), result: Some(mark("b", 6, 2)), ..run("b", 6, 2, 2) };
    let rows = [run("a", 5, 1, 0), run("a", 5, 1, 1), run("b", 6, 2, 1), run("b", 6, 2, 2), ended];
    let registered = PodProof { holds_its_lock: Some(true), ..PodProof::default() };
    let buried = PodProof {
        holds_the_dead_pods_lock: Some(true),
        holds_the_dead_pods_witness: Some(true),
        writer_in_roster: Some(true),
        writer_holds_its_lock: Some(true),
        writer_drains: Some(false),
        holds_its_lock: None,
    };
    let runs = |at: usize| Change::Run {
        old: at.checked_sub(1).map(|before| Box::new(rows[before].clone())),
        new: Box::new(rows[at].clone()),
        proof: RunProof::default(),
    };
    let changes = [
        ("podlock/a/liveness", Change::Pod { old: None, new: Some(pod("a")), proof: registered.clone() }),
        ("podlock/b/liveness", Change::Pod { old: None, new: Some(pod("b")), proof: registered }),
        ("podlock/a/pool", runs(0)),
        ("podlock/a/pool", runs(1)),
        ("podlock/b/watch", Change::Pod { old: Some(pod("a")), new: None, proof: buried }),
        ("podlock/b/pool", runs(2)),
        ("podlock/b/pool", runs(3)),
        ("podlock/b/pool", runs(4)),
        ("podlock/a/pool", chunk(1, 5)),
        ("podlock/b/pool", chunk(2, 6)),
    ];
    let record = |(seq, (writer, change)): (i64, (&str, Change))| Record {
        seq,
        at: seq.unsigned_abs() * SECOND,
        writer: writer.into(),
        change,
    };
    let history = (1..).zip(changes).map(record);
    let a = vec![
        Said { op: Some("k".into()), ..said(1, "ok") },
        attempt(2, "begin", 1, 5),
        Said { op: Some("a1".into()), ..said(3, "ok") },
        attempt(4, "work", 1, 5),
        Said { op: Some("a2".into()), ..said(4, "unknown") },
    ];
    let mut b = vec![
        attempt(5, "begin", 2, 6),
        Said { op: Some("b2".into()), ..said(6, "ok") },
        Said { op: Some("b3".into()), ..said(7, "failed") },
        attempt(8, "returned", 2, 6),
        read("attached", None, ""),
        read("chunk", Some(0), "1"),
        read("chunk", Some(1), "of a"),
        read("reset", Some(1), ""),
        read("chunk", Some(1), "2"),
        read("end", None, "succeeded"),
    ];
    // Pod a is buried at second 5.
    let mut a = a;
    a.extend(replica("a", 1..=4, |_| vec!["ia", "ib"]));
    b.extend(replica("b", 1..=12, |second| if second < 7 { vec!["ia", "ib"] } else { vec!["ib"] }));
    let logs = vec![PodLog { pod: "a".into(), said: a }, PodLog { pod: "b".into(), said: b }];
    Story { history: history.collect(), logs, excused: Excused::ended(&["a"]) }
}

/// Pod b makes step 2, which is confirmed, and then step 3; of the two the history has only the latter.
fn skipped() -> Story {
    let mut story = good();
    for record in &mut story.history {
        let Change::Run { old, new, .. } = &mut record.change else { continue };
        for row in old.iter_mut().chain([new]) {
            row.input.steps = STEPS + 1;
            for mark in row.checkpoint.iter_mut().chain(&mut row.result).filter(|mark| mark.n == STEPS) {
                *mark = Mark { n: STEPS + 1, op: "b3".into(), ..mark.clone() };
            }
        }
    }
    story.history.push(Record {
        seq: 99,
        at: 99 * SECOND,
        writer: "podlock/b/pool".into(),
        change: chunk(STEPS + 1, 6),
    });
    let b = &mut story.logs[1].said;
    b.retain(|said| said.reader.is_none());
    b.retain(|said| said.op.as_deref() != Some("b3"));
    b.push(Said { op: Some("b2".into()), run: Some("r".into()), n: Some(STEPS), ..said(6, "try") });
    story
}

/// Changes the story so that it breaks the rule.
fn spoil(rule: Rule, story: &mut Story) {
    match rule {
        Rule::LockBeforeRow => proof_of_pod(story, 0).holds_its_lock = Some(false),
        Rule::BurialIsProven => proof_of_pod(story, 4).writer_holds_its_lock = Some(false),
        Rule::NeverOnesOwnRow => story.history[4].writer = "podlock/a/control".into(),
        Rule::OneOwner => new_row(story, 6).checkpoint = Some(mark("a", 5, 2)),
        Rule::ClaimedFromTheDead => {
            let Change::Run { proof, .. } = &mut story.history[5].change else { unreachable!() };
            proof.old_owner_in_roster = true;
        }
        Rule::FencesRise => {
            for at in 5..8 {
                new_row(story, at).fence = 5;
            }
            new_row(story, 2).fence = 4;
            new_row(story, 5).fence = 3;
        }
        Rule::AttemptsAreCounted => new_row(story, 5).attempt = 3,
        Rule::EndsOnce => {
            let mut late = story.history[7].clone();
            let Change::Run { old, new, .. } = &mut late.change else { unreachable!() };
            *old = Some(new.clone());
            new.owner_pod = Some("c".into());
            story.history.push(late);
        }
        Rule::EachStepOnce => {
            let Change::Run { old, new, .. } = &mut story.history[7].change else { unreachable!() };
            old.as_mut().unwrap().checkpoint.as_mut().unwrap().n = 1;
            new.checkpoint.as_mut().unwrap().n = 3;
        }
        Rule::AnswersAreTrue => story.logs[1].said[2].op = Some("b2".into()),
        Rule::TheHealthyAreSpared => story.excused.ended.clear(),
        Rule::StopsBeforeReplaced => story.logs[0].said[3].t = 6,
        Rule::NoneForgotten => drop(story.history.remove(7)),
        Rule::StreamsAreWhole => {
            let Change::Chunk { new: Some(new), .. } = &mut story.history[9].change else { unreachable!() };
            new.seq = 2;
        }
        // Pod b shows the dead pod's workers for longer than it may.
        Rule::WorkersOfTheLiving => {
            let late = story.logs[1].said.iter_mut().rfind(|said| said.ev == "shows").expect("a word");
            late.shown.insert("ia".into(), 3);
        }
        Rule::OneWriterOfWorkers => story.history.push(Record {
            seq: 11,
            at: 11 * SECOND,
            writer: "podlock/a/pool".into(),
            change: Change::Worker {
                new: WorkerRow { url: "http://a".into(), owner_pod: "a".into(), owner_incarnation: "ia".into() },
            },
        }),
    }
}

/// What a replica says each second: it has three workers of its own, and shows three of each of these owners.
fn replica(pod: &str, seconds: impl Iterator<Item = u64>, owners: impl Fn(u64) -> Vec<&'static str>) -> Vec<Said> {
    let says = |second: u64| Said {
        by: Some(format!("i{pod}")),
        attached: Some(true),
        registered: Some(3),
        shown: owners(second).into_iter().map(|owner| (owner.to_owned(), 3)).collect(),
        ..said(second * SECOND, "shows")
    };
    seconds.map(says).collect()
}

fn chunk(n: u64, fence: i64) -> Change {
    let row = ChunkRow { run_id: "r".into(), generation: 1, seq: n - 1, fence, body: n.to_string() };
    Change::Chunk { old: None, new: Some(row), proof: ChunkProof { of_the_owner: true } }
}

/// What a reader was told.
fn read(what: &str, n: Option<u64>, text: &str) -> Said {
    let (reader, run) = (Some("reader".into()), Some("r".into()));
    Said { reader, run, what: Some(what.into()), n, text: Some(text.into()), ..said(9, "read") }
}

fn proof_of_pod(story: &mut Story, at: usize) -> &mut PodProof {
    let Change::Pod { proof, .. } = &mut story.history[at].change else { unreachable!() };
    proof
}

fn new_row(story: &mut Story, at: usize) -> &mut RunRow {
    let Change::Run { new, .. } = &mut story.history[at].change else { unreachable!() };
    new
}

fn mark(pod: &str, fence: i64, n: u64) -> Mark {
    Mark { n, op: format!("{pod}{n}"), incarnation: format!("i{pod}"), fence, attempt: 1 }
}

fn pod(name: &str) -> PodRow {
    PodRow { pod_id: name.into(), incarnation: format!("i{name}"), state: "active".into(), session: 1 }
}

fn said(t: u64, ev: &str) -> Said {
    Said {
        t,
        ev: ev.into(),
        op: None,
        what: None,
        run: None,
        attempt: None,
        fence: None,
        n: None,
        by: None,
        pod: None,
        incarnation: None,
        kind: None,
        text: None,
        reader: None,
        attached: None,
        registered: None,
        shown: std::collections::BTreeMap::new(),
    }
}

fn attempt(t: u64, ev: &str, attempt: i32, fence: i64) -> Said {
    Said { run: Some("r".into()), attempt: Some(attempt), fence: Some(fence), ..said(t, ev) }
}
