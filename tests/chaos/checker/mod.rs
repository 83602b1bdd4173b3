//! The history checker: what must be true of every history, whatever the faults were. Pure: it reads what the database
//! recorded and what the pods said, and lists what contradicts the laws.

mod self_test;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use crate::history::{Change, ChunkProof, ChunkRow, PodLog, PodProof, PodRow, Record, RunProof, RunRow};

pub(crate) use self_test::trials;

/// What a fault excuses. Without it, nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Excused {
    /// Pods that may lose their registration: those that were harmed for long enough.
    pub(crate) ended: BTreeSet<String>,
    /// Pods whose handlers may still compute when their successors begin: their sessions were ended under them, or they
    /// could not run, so that L7 does not reach them. Their writes are not excused.
    pub(crate) overlap: BTreeSet<String>,
    /// Writes that were confirmed may be missing: a failover took the database back.
    pub(crate) lost_writes: bool,
}

impl Excused {
    pub(crate) fn ended(pods: &[&str]) -> Self {
        Self { ended: pods.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    pub(crate) fn overlap(mut self, pods: &[&str]) -> Self {
        self.overlap = pods.iter().map(ToString::to_string).collect();
        self
    }

    pub(crate) fn lost_writes(mut self) -> Self {
        self.lost_writes = true;
        self
    }
}

/// Which law a history breaks, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// L1: who registers or returns holds its lock.
    LockBeforeRow,
    /// L2, L3: who buries is in the roster, holds its own lock, and holds the dead pod's.
    BurialIsProven,
    /// L4: nobody deletes its own row.
    NeverOnesOwnRow,
    /// L5: what a handler writes is accepted only while its incarnation and fence are the run's.
    OneOwner,
    /// L5: a run is taken only from an owner that is not in the roster, or from oneself.
    ClaimedFromTheDead,
    /// L9: a run's fence rises with each claim, and no two claims have the same.
    FencesRise,
    /// Attempts are numbered without gaps.
    AttemptsAreCounted,
    /// A run ends once, and nothing of it changes afterwards.
    EndsOnce,
    /// Each step of a run is accepted once, in order, none is lost.
    EachStepOnce,
    /// What a pod was told of a write is true of it.
    AnswersAreTrue,
    /// L10 and "a broken connection is not a death": a pod that nothing happened to keeps its registration.
    TheHealthyAreSpared,
    /// L7: an attempt that was told to stop computes no longer when the next one begins.
    StopsBeforeReplaced,
    /// L6: in the end no run is left.
    NoneForgotten,
    /// The stream of a run that succeeded has the chunk of each step once, in order; so has every reader that saw its
    /// end.
    StreamsAreWhole,
    /// No replica that lives shows a worker for long whose owner is gone, and none hides one for long whose owner lives.
    WorkersOfTheLiving,
    /// L5: a worker is written only while its owner is in the roster.
    OneWriterOfWorkers,
}

impl Rule {
    pub(crate) const ALL: [Self; 16] = [
        Self::LockBeforeRow,
        Self::BurialIsProven,
        Self::NeverOnesOwnRow,
        Self::OneOwner,
        Self::ClaimedFromTheDead,
        Self::FencesRise,
        Self::AttemptsAreCounted,
        Self::EndsOnce,
        Self::EachStepOnce,
        Self::AnswersAreTrue,
        Self::TheHealthyAreSpared,
        Self::StopsBeforeReplaced,
        Self::NoneForgotten,
        Self::StreamsAreWhole,
        Self::WorkersOfTheLiving,
        Self::OneWriterOfWorkers,
    ];
}

/// Everything that contradicts a law; empty for a history that is as it must be. `workers`: how soon each replica must
/// show what has become of workers.
pub(crate) fn check(history: &[Record], logs: &[PodLog], excused: &Excused, workers: Duration) -> Vec<Violation> {
    let missing = if excused.lost_writes { missing(history, logs) } else { Vec::new() };
    let lost = missing.into_iter().filter(|m| *m != Missing::Start).collect();
    let mut checker = Checker {
        excused,
        lost,
        found: Vec::new(),
        runs: BTreeMap::new(),
        fences: HashMap::new(),
        chunks: BTreeMap::new(),
    };
    for record in history {
        match &record.change {
            Change::Run { old, new, proof } => checker.run(record, old.as_deref(), new, *proof),
            Change::Pod { old, new, proof } => checker.pod(record, old.as_ref(), new.as_ref(), proof),
            Change::Chunk { old, new, proof } => checker.chunk(record.seq, old.as_ref(), new.as_ref(), *proof),
            Change::Worker { new } => {
                let text = format!("{}: {} wrote {new:?}, and its owner is gone", record.seq, record.writer);
                checker.breaks(Rule::OneWriterOfWorkers, text);
            }
        }
    }
    checker.none_is_left();
    checker.streams();
    checker.readers(logs);
    checker.answers(history, logs);
    checker.given_twice(logs);
    checker.overlaps(logs);
    checker.found.extend(workers::check(history, logs, workers));
    checker.found
}

/// A write that was confirmed and is not in the history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Missing {
    /// A step of a run, by its number.
    Step(String, u64),
    Start,
}

/// What the database took back.
pub(crate) fn missing(history: &[Record], logs: &[PodLog]) -> Vec<Missing> {
    let written = written(history);
    let said = || logs.iter().flat_map(|log| &log.said);
    let tried =
        said().filter(|s| s.ev == "try").filter_map(|s| Some((s.op.as_deref()?, Missing::Step(s.run.clone()?, s.n?))));
    let steps: HashMap<&str, Missing> = tried.collect();
    said()
        .filter(|s| s.ev == "ok")
        .filter_map(|s| s.op.as_deref())
        .filter(|op| !written.contains(op))
        .map(|op| steps.get(op).cloned().unwrap_or(Missing::Start))
        .collect()
}

/// Every checkpoint and start that the history has.
fn written(history: &[Record]) -> HashSet<&str> {
    let mut written = HashSet::new();
    for record in history {
        let Change::Run { old, new, .. } = &record.change else { continue };
        written.extend(new.checkpoint.as_ref().map(|mark| mark.op.as_str()));
        if old.is_none() {
            written.extend(new.key.as_deref());
        }
    }
    written
}

struct Checker<'a> {
    excused: &'a Excused,
    /// Steps that the database took back.
    lost: HashSet<Missing>,
    found: Vec<Violation>,
    /// The latest row of each run.
    runs: BTreeMap<String, RunRow>,
    /// Which run and attempt each fence was given to.
    fences: HashMap<i64, String>,
    /// The chunks of each run, by generation and number.
    chunks: BTreeMap<String, BTreeMap<(i32, u64), String>>,
}

impl Checker<'_> {
    fn breaks(&mut self, rule: Rule, text: String) {
        self.found.push(Violation { rule, text });
    }

    fn run(&mut self, record: &Record, old: Option<&RunRow>, new: &RunRow, proof: RunProof) {
        let at = format!("{}: run {} attempt {}", record.seq, new.run_id, new.attempt);
        if let Some(old) = old {
            self.left_by_its_owner(&at, &record.writer, old, new);
            self.ends_once(&at, old, new);
            self.written_by_its_owner(&at, old, new);
            self.steps(&at, old, new);
        }
        self.claimed(&at, old, new, proof);
        self.runs.insert(new.run_id.clone(), new.clone());
    }

    fn ends_once(&mut self, at: &str, old: &RunRow, new: &RunRow) {
        if old.state != "running" && old != new {
            self.breaks(Rule::EndsOnce, format!("{at} was {} and changed: {new:?}", old.state));
        }
    }

    /// An owner changes by a claim alone, which is a new fence; a run is given back and ended by its owner's pod alone.
    fn left_by_its_owner(&mut self, at: &str, writer: &str, old: &RunRow, new: &RunRow) {
        let (before, after) = (&old.owner_incarnation, &new.owner_incarnation);
        if after.is_some() && before != after && new.fence == old.fence {
            self.breaks(Rule::OneOwner, format!("{at} went from {before:?} to {after:?} under fence {}", new.fence));
        }
        let left = (before.is_some() && after.is_none()) || old.state != new.state;
        if left && writer.split('/').nth(1) != old.owner_pod.as_deref() {
            self.breaks(Rule::OneOwner, format!("{at} was left by {writer}, and its owner is {:?}", old.owner_pod));
        }
    }

    fn written_by_its_owner(&mut self, at: &str, old: &RunRow, new: &RunRow) {
        let written = [(&old.checkpoint, &new.checkpoint), (&old.result, &new.result)];
        for mark in
            written.into_iter().filter(|(before, after)| before != after).filter_map(|(_, after)| after.as_ref())
        {
            let owner = old.owner_incarnation.as_deref();
            if owner != Some(mark.incarnation.as_str()) || old.fence != mark.fence {
                let text = format!("{at}: {mark:?} was accepted, but the owner is {owner:?} under {}", old.fence);
                self.breaks(Rule::OneOwner, text);
            }
        }
    }

    fn steps(&mut self, at: &str, old: &RunRow, new: &RunRow) {
        let n = |row: &RunRow| row.checkpoint.as_ref().map_or(0, |c| c.n);
        let again = old.checkpoint == new.checkpoint;
        // An owner goes on from where it is, whatever the database took back meanwhile.
        let mut skipped = n(old) + 1..n(new);
        let lost = !skipped.is_empty() && skipped.all(|n| self.lost.contains(&Missing::Step(new.run_id.clone(), n)));
        if !again && n(new) != n(old) + 1 && !lost {
            self.breaks(Rule::EachStepOnce, format!("{at}: after step {} came step {}", n(old), n(new)));
        }
        if let Some(result) = new.result.as_ref().filter(|_| old.state == "running")
            && (result.n != n(new) || result.n != new.input.steps)
        {
            self.breaks(
                Rule::EachStepOnce,
                format!("{at} ended as {result:?} after {} of {} steps", n(new), new.input.steps),
            );
        }
    }

    fn claimed(&mut self, at: &str, old: Option<&RunRow>, new: &RunRow, proof: RunProof) {
        let before = old.map_or(0, |o| o.fence);
        if new.fence == before {
            return;
        }
        if new.fence < before {
            self.breaks(Rule::FencesRise, format!("{at}: {} after {before}", new.fence));
        }
        let claim = format!("{} attempt {}", new.run_id, new.attempt);
        if let Some(other) = self.fences.insert(new.fence, claim) {
            self.breaks(Rule::FencesRise, format!("{at}: {} was given to {other} before", new.fence));
        }
        if new.attempt != old.map_or(0, |o| o.attempt) + 1 {
            self.breaks(Rule::AttemptsAreCounted, format!("{at} came after {:?}", old.map(|o| o.attempt)));
        }
        let taken_from = old.and_then(|o| o.owner_incarnation.as_ref());
        if proof.old_owner_in_roster && taken_from != new.owner_incarnation.as_ref() {
            self.breaks(
                Rule::ClaimedFromTheDead,
                format!("{at} was taken from {taken_from:?}, which is in the roster"),
            );
        }
    }

    fn pod(&mut self, record: &Record, old: Option<&PodRow>, new: Option<&PodRow>, proof: &PodProof) {
        let seq = record.seq;
        match (old, new) {
            (Some(dead), None) => {
                // One that stops may end its session between its own proof, which is in the same statement, and ours.
                let lives = proof.writer_holds_its_lock == Some(true) || proof.writer_drains == Some(true);
                let proven =
                    proof.holds_the_dead_pods_lock == Some(true) && proof.writer_in_roster == Some(true) && lives;
                if !proven {
                    let text = format!("{seq}: {} buried {dead:?} on {proof:?}", record.writer);
                    self.breaks(Rule::BurialIsProven, text);
                }
                if record.writer.split('/').nth(1) == Some(dead.pod_id.as_str()) {
                    self.breaks(Rule::NeverOnesOwnRow, format!("{seq}: {} deleted {dead:?}", record.writer));
                }
                self.ended(seq, dead);
            }
            (before, Some(now)) => {
                let held = proof.holds_its_lock;
                let appeared = before.is_none_or(|b| b.incarnation != now.incarnation || b.session != now.session);
                if appeared && held != Some(true) {
                    self.breaks(
                        Rule::LockBeforeRow,
                        format!("{seq}: {} wrote {now:?} without the lock", record.writer),
                    );
                }
                if let Some(replaced) = before.filter(|b| b.incarnation != now.incarnation) {
                    self.ended(seq, replaced);
                }
            }
            (None, None) => {}
        }
    }

    fn ended(&mut self, seq: i64, pod: &PodRow) {
        if !self.excused.ended.contains(&pod.pod_id) {
            self.breaks(Rule::TheHealthyAreSpared, format!("{seq}: {pod:?} lost its registration"));
        }
    }

    fn chunk(&mut self, seq: i64, old: Option<&ChunkRow>, new: Option<&ChunkRow>, proof: ChunkProof) {
        if let Some(old) = old {
            self.chunks.entry(old.run_id.clone()).or_default().remove(&(old.generation, old.seq));
        }
        let Some(new) = new else { return };
        if !proof.of_the_owner {
            self.breaks(
                Rule::OneOwner,
                format!("{seq}: {new:?} was accepted, and fence {} is not the run's", new.fence),
            );
        }
        let chunks = self.chunks.entry(new.run_id.clone()).or_default();
        if chunks.insert((new.generation, new.seq), new.body.clone()).is_some() {
            self.breaks(Rule::StreamsAreWhole, format!("{seq}: {new:?} took the place of another"));
        }
    }

    /// Checks that the stream of each run that succeeded is whole.
    fn streams(&mut self) {
        let ended: Vec<_> = self.runs.values().filter(|run| run.state == "succeeded").cloned().collect();
        for run in ended {
            let chunks = self.chunks.remove(&run.run_id).unwrap_or_default();
            let generations: BTreeSet<i32> = chunks.keys().map(|(generation, _)| *generation).collect();
            let told: Vec<(u64, &str)> = chunks.iter().map(|((_, seq), body)| (*seq, body.as_str())).collect();
            if generations.len() > 1 || !is_whole(&told, run.input.steps) {
                self.breaks(
                    Rule::StreamsAreWhole,
                    format!("run {} of {} steps has {chunks:?}", run.run_id, run.input.steps),
                );
            }
        }
    }

    /// Checks what each reader has, if it forgets what resets tell it to forget.
    fn readers(&mut self, logs: &[PodLog]) {
        let mut has: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
        for (pod, said) in logs.iter().flat_map(|log| log.said.iter().map(move |said| (&log.pod, said))) {
            let (Some(reader), Some(run), Some(what)) = (&said.reader, &said.run, &said.what) else { continue };
            let chunks = has.entry(reader).or_default();
            let text = said.text.as_deref().unwrap_or_default();
            let sound = match (what.as_str(), said.n) {
                ("chunk", Some(n)) => {
                    let is_next = usize::try_from(n).ok() == Some(chunks.len());
                    chunks.push((n, text));
                    is_next
                }
                ("reset", Some(n)) => {
                    let had = chunks.len();
                    chunks.truncate(usize::try_from(n).unwrap_or(usize::MAX));
                    chunks.len() < had
                }
                ("end", _) if text == "succeeded" => {
                    self.runs.get(run).is_some_and(|row| is_whole(chunks, row.input.steps))
                }
                (other, _) => other == "attached" || other == "end",
            };
            if !sound {
                let text = format!("reader {reader} on {pod} was told {said:?} and has {chunks:?}");
                self.breaks(Rule::StreamsAreWhole, text);
            }
        }
    }

    fn none_is_left(&mut self) {
        let left: Vec<_> = self.runs.values().filter(|r| r.state != "succeeded").cloned().collect();
        for run in left {
            self.breaks(Rule::NoneForgotten, format!("in the end run {} is {run:?}", run.run_id));
        }
    }

    fn answers(&mut self, history: &[Record], logs: &[PodLog]) {
        let mut keys: HashSet<&str> = HashSet::new();
        for record in history {
            if let Change::Run { old: None, new, .. } = &record.change
                && let Some(key) = &new.key
                && !keys.insert(key)
            {
                self.breaks(Rule::AnswersAreTrue, format!("{}: two runs were started under key {key}", record.seq));
            }
        }
        let written = written(history);
        for (pod, said) in logs.iter().flat_map(|log| log.said.iter().map(move |said| (&log.pod, said))) {
            let Some(op) = said.op.as_deref() else { continue };
            let there = written.contains(op);
            let lie = match said.ev.as_str() {
                "ok" => !there && !self.excused.lost_writes,
                "failed" => there,
                _ => false,
            };
            if lie {
                let text =
                    format!("{pod} said {said:?}, and the database has {}", if there { "it" } else { "no such write" });
                self.breaks(Rule::AnswersAreTrue, text);
            }
        }
    }

    /// No process is given a fence twice, not even where a failover took the sequence back.
    fn given_twice(&mut self, logs: &[PodLog]) {
        for log in logs {
            let mut given: HashMap<i64, &str> = HashMap::new();
            for said in log.said.iter().filter(|s| s.ev == "begin") {
                let (Some(run), Some(fence)) = (&said.run, said.fence) else { continue };
                if let Some(other) = given.insert(fence, run) {
                    let text = format!("{} was given fence {fence} for run {other}, and again for {run}", log.pod);
                    self.breaks(Rule::FencesRise, text);
                }
            }
        }
    }

    /// By what the handlers said, with the machine's one clock.
    fn overlaps(&mut self, logs: &[PodLog]) {
        struct Span<'a> {
            pod: &'a str,
            from: u64,
            to: u64,
        }
        let mut spans: BTreeMap<(&str, i32, i64), Span<'_>> = BTreeMap::new();
        for log in logs {
            for said in &log.said {
                let (Some(run), Some(attempt), Some(fence)) = (&said.run, said.attempt, said.fence) else { continue };
                let span = Span { pod: &log.pod, from: said.t, to: said.t };
                spans.entry((run, attempt, fence)).or_insert(span).to = said.t;
            }
        }
        let mut earlier: Option<(&str, i32, &Span<'_>)> = None;
        let mut found = Vec::new();
        for ((run, attempt, _), span) in &spans {
            if let Some((_, before, last)) = earlier.filter(|(r, ..)| r == run)
                && last.to > span.from
            {
                let by = (last.to - span.from) / 1_000_000;
                found.push(format!(
                    "run {run}: attempt {before} on {} computed on for {by} ms when attempt {attempt} had begun on {}",
                    last.pod, span.pod
                ));
            }
            // The one that lasted longest counts, of those that nothing excuses.
            let counts = !self.excused.overlap.contains(span.pod);
            if counts && earlier.is_none_or(|(r, _, last)| r != *run || span.to >= last.to) {
                earlier = Some((run, *attempt, span));
            }
        }
        for text in found {
            self.breaks(Rule::StopsBeforeReplaced, text);
        }
    }
}

/// Whether these are the chunks of so many steps: number 0 says 1, and so on.
fn is_whole(chunks: &[(u64, &str)], steps: u64) -> bool {
    let due = (0..steps).map(|seq| (seq, (seq + 1).to_string()));
    chunks.len() as u64 == steps
        && chunks.iter().zip(due).all(|((seq, body), due)| (*seq, *body) == (due.0, due.1.as_str()))
}
