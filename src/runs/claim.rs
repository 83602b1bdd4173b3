//! The claiming part of a recovery pass. It claims runs in batches, reads their large payloads, and begins each run.
//!
//! One bad run, or a slow connection, delays the other runs but stops none (L12). A batch that fails is cut
//! ([`crate::protocol::batch`]) until the run at fault is alone. That run is logged and passed over. It is quarantined
//! if other claims succeed. A claim returns only small payloads. Larger inputs and checkpoints are read afterwards,
//! under the fence, a limited number of bytes at a time. If another pod claims the run before that read, the read finds
//! nothing.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::handlers::Handlers;
use super::registry::Reservation;
use super::{execute, failures};
use crate::error::{Error, Result};
use crate::id::{Fence, Incarnation, RunId};
use crate::membership::clock;
use crate::meters;
use crate::nag::Nag;
use crate::output::{Limits, Output};
use crate::protocol::Moment;
use crate::protocol::batch::{self, Batches, Fault, Verdict};
use crate::protocol::fences::{Reach, reach};
use crate::protocol::poison::{self, Suspicion};
use crate::protocol::recover::Candidate;
use crate::store::fences;
use crate::store::payloads::{self, Read};
use crate::store::quarantine;
use crate::store::runs::{self, Claimed, Claimer, Claims, Ending, Owner, Unreadable};

/// The most orphans that one statement claims. A larger batch may not end within the statement time-out, and is then
/// cut. Smaller batches need more round trips.
const BATCH: usize = 500;
/// How many bytes of inputs and checkpoints one statement reads, in the size that the server stores. A larger payload
/// is read in pieces. More: a slow link may not carry it within the statement time-out. Less: more round trips.
const READ_BYTES: i64 = 1 << 20;
/// The most doublings of the wait before a run that could not be claimed is tried again. The first wait is one lease.
/// The wait doubles only if the fault is the run's own and the run cannot be quarantined either. Six doublings are 64
/// leases: eleven minutes by default. More: a run that was repaired by hand waits longer. Fewer: a statement that fails
/// is sent more often.
const DOUBLINGS: u32 = 6;
/// The most runs at fault that a pod remembers, in less than 1 MB. When this number is reached, the pod forgets all of
/// them and counts again. Fewer: where many runs are at fault, their waits never double. More: only memory.
const BLAMED_MOST: usize = 10_000;
/// How many sweeps pass between two reads of the sequence of fences while there is nothing to claim. Then a read only
/// finds a wrong CACHE, and each statement that takes a fence checks the CACHE as well.
const SWEEPS_WITHOUT_A_CLAIM: u32 = 10;
/// The least time between two warnings that claims fail in part. Passes follow one another while runs are waiting, and
/// each would warn.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What the claims of one pass teach the next pass.
pub(super) struct Pace {
    /// The most runs that one statement claims.
    size: usize,
    /// How many runs this process has claimed. A run is at fault only if claims of other runs succeed.
    passed: u64,
    blamed: BTreeMap<RunId, Blamed>,
    /// A lower bound for the sequence of fences: its last value when this pod last read or raised it.
    last: Fence,
    /// When this pod last read the sequence.
    looked: Option<Moment>,
    nag: Nag,
}

/// A run whose claim failed.
#[derive(Clone, Copy)]
struct Blamed {
    failures: u32,
    /// [`Pace::passed`] at the first failure.
    passed: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            size: BATCH,
            passed: 0,
            blamed: BTreeMap::new(),
            last: Fence::from(0),
            looked: None,
            nag: Nag::new(SAY_AGAIN),
        }
    }
}

/// The result of claims.
#[derive(Default)]
pub(super) struct Took {
    pub(super) begun: Vec<RunId>,
    /// Runs that were quarantined or are at fault. This pass does nothing more about them.
    pub(super) passed_over: usize,
}

impl Took {
    pub(super) fn add(&mut self, other: Self) {
        self.begun.extend(other.begun);
        self.passed_over += other.passed_over;
    }
}

/// A claimed run whose payload has not been read yet.
struct Unread<'a> {
    place: Reservation<'a>,
    claimed: Claimed,
    bytes: i64,
}

/// The claims of one pass.
struct Claiming<'a> {
    engine: &'a Arc<Engine>,
    handlers: &'a Handlers,
    own: Incarnation,
    max_crashes: u32,
    took: Took,
    unread: Vec<Unread<'a>>,
    unreadable: Vec<Unreadable>,
}

/// Who claims, and what executes the runs.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) handlers: &'a Handlers,
    pub(super) own: Incarnation,
}

/// Claims these runs and begins those that it got. Logs the runs that the claim quarantined because `max_crashes`
/// owners crashed while they ran them.
pub(super) async fn claim(
    By { engine, handlers, own }: By<'_>,
    max_crashes: u32,
    wanted: &[&Candidate],
    pace: &mut Pace,
) -> Result<Took> {
    let (unread, unreadable) = (Vec::new(), Vec::new());
    let mut claiming = Claiming { engine, handlers, own, max_crashes, took: Took::default(), unread, unreadable };
    let wanted = claiming.within_reach(wanted, pace).await?;
    let mut batches = Batches::new(wanted.len(), pace.size);
    let mut claimer = Claimer::default();
    let (mut culprits, mut given_up) = (Vec::new(), None);
    while let Some(batch) = batches.next_batch() {
        let Err(error) = claiming.batch(&wanted[batch.clone()], &mut claimer).await else { continue };
        let fault = fault_of(&error);
        match batches.failed(&batch, fault) {
            Verdict::Cut => claiming.say(pace, &error, batch.len(), &batches),
            Verdict::Culprit(at) => culprits.push((wanted[at], fault, error)),
            Verdict::GiveUp => {
                given_up = Some((error, batch.len()));
                break;
            }
        }
    }
    drop(claimer);
    pace.size = batches.size_of_next_pass(BATCH);
    claiming.read_all().await;
    pace.passed += u64::try_from(claiming.took.begun.len()).unwrap_or(0);
    for run in std::mem::take(&mut claiming.unreadable) {
        end_unreadable(engine, &run).await;
    }
    for (run, fault, error) in culprits {
        // If no claim ends in time, the server is slow. No run is passed over for that.
        if fault == Fault::TooSlow && claiming.took.begun.is_empty() {
            given_up = given_up.or(Some((error, 1)));
        } else {
            claiming.blame(run, fault, &error, pace).await;
        }
    }
    match given_up {
        Some((error, tried)) if claiming.took.begun.is_empty() => Err(error.during(&format!(
            "claiming {tried} of {} runs in one statement; the next pass takes at most {} at a time",
            wanted.len(),
            pace.size
        ))),
        Some((error, tried)) => {
            claiming.say(pace, &error, tried, &batches);
            Ok(claiming.took)
        }
        None => Ok(claiming.took),
    }
}

/// The fence that a claim must exceed: the highest of these runs' fences and `floor`.
fn highest(wanted: &[&Candidate], floor: Fence) -> Fence {
    wanted.iter().map(|run| run.fence).chain([floor]).max().unwrap_or(floor)
}

/// Whether a failed statement over several runs blames a run, its size, or something else.
fn fault_of(error: &Error) -> Fault {
    batch::fault(error.is_slow(), error.sqlstate())
}

impl<'a> Claiming<'a> {
    /// Returns the runs whose fence a claim can exceed (L9). It first raises the sequence where needed, and quarantines
    /// a run whose fence no pod was ever given. It reads the sequence once per sweep, or once in ten sweeps
    /// without runs to claim, and also whenever a fence is far ahead of the sequence.
    async fn within_reach<'c>(&mut self, wanted: &[&'c Candidate], pace: &mut Pace) -> Result<Vec<&'c Candidate>> {
        let now = clock::now();
        let floor = self.engine.registry.highest_fence();
        // Without a claim this only checks the CACHE, and each statement that takes a fence checks it as well.
        let sweeps = if wanted.is_empty() { SWEEPS_WITHOUT_A_CLAIM } else { 1 };
        let every = self.engine.member.settings.sweep_interval * sweeps;
        let is_due = pace.looked.is_none_or(|at| now.saturating_sub(at) >= every);
        if !is_due && reach(highest(wanted, floor), pace.last) == Reach::Near {
            return Ok(wanted.to_vec());
        }
        let sequence = fences::sequence(&self.engine.db).await?;
        (pace.last, pace.looked) = (sequence.last, Some(now));
        let (mut near, beyond): (Vec<_>, Vec<_>) =
            wanted.iter().copied().partition(|run| reach(run.fence, sequence.last) != Reach::Beyond);
        let highest = highest(&near, floor);
        if sequence.cache != 1 || reach(highest, sequence.last) != Reach::Near {
            match fences::raise(&self.engine.db, highest).await {
                Ok(last) => pace.last = last,
                // The runs with a near fence do not wait until the sequence can be raised.
                Err(error) => {
                    near.retain(|run| reach(run.fence, sequence.last) == Reach::Near);
                    if let Some(times) = pace.nag.failed(now, Duration::ZERO) {
                        tracing::warn!(
                            target: "podlock", event = "fences_not_raised", pod = %self.engine.member.pod_id,
                            floor = highest.get(), last = sequence.last.get(), cache = sequence.cache, times,
                            error = %error,
                            "the sequence of fences must be raised, or its CACHE set back to 1, and could not be"
                        );
                    }
                }
            }
        }
        for run in beyond {
            let why = format!("its fence is {}, and the newest that a pod was given is {}", run.fence, sequence.last);
            self.set_aside(run, &why, true, pace).await;
        }
        Ok(near)
    }

    /// Claims one batch. Begins the runs whose payload came with the claim.
    async fn batch(&mut self, wanted: &[&Candidate], claimer: &mut Claimer) -> Result<()> {
        let registry = &self.engine.registry;
        let mut places: BTreeMap<RunId, Reservation<'a>> = BTreeMap::new();
        for candidate in wanted {
            if let Some(place) = registry.reserve(candidate.run_id, &candidate.kind) {
                places.insert(candidate.run_id, place);
            }
        }
        let wanted: Vec<&Candidate> = wanted.iter().filter(|c| places.contains_key(&c.run_id)).copied().collect();
        let floor = registry.highest_fence();
        let Claims { claimed, unread, unreadable, quarantined } =
            runs::claim(&self.engine.db, claimer, self.own, &wanted, self.max_crashes, floor).await?;
        for run in &quarantined {
            tracing::error!(
                target: "podlock", event = "quarantined", run = %run.run_id, kind = run.kind,
                by = %self.engine.member.pod_id,
                error = run.error, "a run that takes its owners down with it was quarantined"
            );
        }
        metrics::counter!(meters::QUARANTINED).increment(quarantined.len() as u64);
        self.took.passed_over += quarantined.len();
        self.unreadable.extend(unreadable);
        for run in claimed {
            if let Some(place) = places.remove(&run.run_id) {
                self.begin(place, run);
            }
        }
        for (claimed, bytes) in unread {
            if let Some(place) = places.remove(&claimed.run_id) {
                self.unread.push(Unread { place, claimed, bytes });
            }
        }
        Ok(())
    }

    fn begin(&mut self, place: Reservation<'_>, run: Claimed) {
        let Some(handler) = self.handlers.of(&run.kind) else { return };
        self.took.begun.push(run.run_id);
        if let Some(reason) = run.taken_over {
            meters::count(meters::RECOVERED, "reason", reason);
        }
        let suspect = poison::judge(run.crashes, false, self.max_crashes) == Suspicion::Suspect;
        let place = if suspect { place.suspect() } else { place };
        execute::begin(self.engine, handler, place, run, self.own);
    }

    /// Reads the payloads that did not come with the claim, small ones first. Begins each run when its payload arrives.
    /// If the connection fails, this pod still owns the remaining runs, without a task. A later pass begins them.
    async fn read_all(&mut self) {
        let mut unread = std::mem::take(&mut self.unread);
        unread.sort_by_key(|run| run.bytes);
        let sizes: Vec<i64> = unread.iter().map(|run| run.bytes).collect();
        let mut left: Vec<Option<Unread<'a>>> = unread.into_iter().map(Some).collect();
        let mut groups: VecDeque<Range<usize>> = batch::by_bytes(&sizes, READ_BYTES).into();
        while let Some(group) = groups.pop_front() {
            if group.len() == 1 && sizes.get(group.start).is_some_and(|bytes| *bytes > READ_BYTES) {
                self.read_alone(left.get_mut(group.start)).await;
                continue;
            }
            let owners: Vec<Owner> =
                left[group.clone()].iter().flatten().map(|run| self.owner_of(&run.claimed)).collect();
            match payloads::read(&self.engine.db, &owners).await {
                Ok(read) => {
                    for (run_id, read) in read {
                        let mut of_group = left[group.clone()].iter_mut();
                        let run = of_group.find(|run| run.as_ref().is_some_and(|run| run.claimed.run_id == run_id));
                        if let Some(run) = run.and_then(Option::take) {
                            self.begin_with(run, read);
                        }
                    }
                }
                Err(e) if fault_of(&e) == Fault::Other => {
                    tracing::warn!(
                        target: "podlock", event = "payloads_unread", pod = %self.engine.member.pod_id,
                        runs = left.iter().flatten().count(), error = %e,
                        "inputs and checkpoints of claimed runs could not be read; a later pass takes the runs up"
                    );
                    return;
                }
                Err(_) if group.len() == 1 => self.read_alone(left.get_mut(group.start)).await,
                Err(_) => {
                    let middle = group.start + group.len() / 2;
                    groups.push_front(middle..group.end);
                    groups.push_front(group.start..middle);
                }
            }
        }
    }

    /// Reads one run's payload in pieces. If even that does not end in time, the run is released: another pod may have
    /// a faster connection.
    async fn read_alone(&mut self, run: Option<&mut Option<Unread<'a>>>) {
        let Some(run) = run.and_then(Option::take) else { return };
        let owner = self.owner_of(&run.claimed);
        let error = match payloads::read_in_pieces(&self.engine.db, owner).await {
            Ok(Some(read)) => return self.begin_with(run, read),
            // The run was cancelled, or another pod claimed it.
            Ok(None) => return,
            Err(e) => e,
        };
        match fault_of(&error) {
            Fault::Row => self.note_unreadable(&run.claimed, error.to_string()),
            Fault::Other | Fault::TooSlow => {
                tracing::warn!(
                    target: "podlock", event = "payload_unread", pod = %self.engine.member.pod_id, run = %owner.run_id,
                    fence = owner.fence.get(), bytes = run.bytes, error = %error,
                    "the input and checkpoint of a claimed run could not be read; the run is given back"
                );
                self.engine.registry.set_aside(owner.run_id, clock::now() + self.engine.member.settings.lease);
                let given = runs::give_back(&self.engine.db, owner, runs::ONLY, "yielded").await;
                self.engine.offers.add(self.engine.untold_to_others(&run.claimed.kind));
                if let Err(e) = given {
                    tracing::warn!(
                        target: "podlock", event = "payload_unread", pod = %self.engine.member.pod_id,
                        run = %owner.run_id, error = %e,
                        "the run could not be given back either; a later pass takes it up"
                    );
                }
            }
        }
    }

    fn begin_with(&mut self, run: Unread<'a>, read: Read) {
        let Unread { place, mut claimed, .. } = run;
        match read {
            Read::Payload(payload) => {
                (claimed.input, claimed.checkpoint) = (payload.input, payload.checkpoint);
                self.begin(place, claimed);
            }
            Read::Unreadable(why) => self.note_unreadable(&claimed, why),
        }
    }

    fn note_unreadable(&mut self, claimed: &Claimed, why: String) {
        let (owner, kind, attempt) = (self.owner_of(claimed), claimed.kind.clone(), claimed.attempt);
        self.unreadable.push(Unreadable { owner, kind, attempt, why });
    }

    fn owner_of(&self, claimed: &Claimed) -> Owner {
        Owner { run_id: claimed.run_id, incarnation: self.own, fence: claimed.fence }
    }

    /// Handles a run whose claim failed although it was claimed alone. The run is quarantined if the fault is its own:
    /// the server refused it, and has accepted other claims since the first refusal. If no claim succeeds, the fault
    /// may be elsewhere.
    async fn blame(&mut self, run: &Candidate, fault: Fault, error: &Error, pace: &mut Pace) {
        let passed = pace.passed;
        // The claims of this pass count as claims after the first refusal.
        let before = passed - u64::try_from(self.took.begun.len()).unwrap_or(0).min(passed);
        if pace.blamed.len() >= BLAMED_MOST {
            pace.blamed.clear();
        }
        let blamed = pace.blamed.entry(run.run_id).or_insert(Blamed { failures: 0, passed: before });
        // A refusal may be temporary, so the first failure never ends a run. It only sets the run aside.
        let is_its_own = fault == Fault::Row && blamed.failures > 0 && passed > blamed.passed;
        self.set_aside(run, &error.to_string(), is_its_own, pace).await;
    }

    /// Quarantines the run if `is_its_own`. Otherwise, or if that fails, passes the run over for a while. Logs the run
    /// in both cases.
    async fn set_aside(&mut self, run: &Candidate, why: &str, is_its_own: bool, pace: &mut Pace) {
        self.took.passed_over += 1;
        let blamed = pace.blamed.entry(run.run_id).or_insert(Blamed { failures: 0, passed: pace.passed });
        blamed.failures += 1;
        // The wait grows only if the run itself is at fault. Any other fault may be fixed at any time.
        let doublings = if is_its_own { (blamed.failures - 1).min(DOUBLINGS) } else { 0 };
        let wait = self.engine.member.settings.lease * 2_u32.pow(doublings);
        let pod = &self.engine.member.pod_id;
        if is_its_own {
            match quarantine::quarantine(&self.engine.db, self.own, run, why).await {
                Ok(true) => {
                    pace.blamed.remove(&run.run_id);
                    metrics::counter!(meters::QUARANTINED).increment(1);
                    tracing::error!(
                        target: "podlock", event = "quarantined", run = %run.run_id, kind = %run.kind, by = %pod,
                        error = why,
                        "a run that no pod can claim was quarantined"
                    );
                    return;
                }
                // Another pod owns the run now, or another transaction has locked its row.
                Ok(false) => {}
                Err(e) => {
                    tracing::warn!(
                        target: "podlock", event = "unquarantined", run = %run.run_id, kind = %run.kind, by = %pod,
                        error = %e,
                        "a run that no pod can claim could not be quarantined"
                    );
                }
            }
        }
        self.engine.registry.set_aside(run.run_id, clock::now() + wait);
        tracing::warn!(
            target: "podlock", event = "passed_over", run = %run.run_id, kind = %run.kind, pod = %pod,
            fence = run.fence.get(), wait_ms = wait.as_millis(), error = why,
            "a run that could not be claimed is passed over for a while"
        );
    }

    /// Logs that claims fail in part, at most once per [`SAY_AGAIN`].
    fn say(&self, pace: &mut Pace, error: &Error, tried: usize, batches: &Batches) {
        if let Some(times) = pace.nag.failed(clock::now(), Duration::ZERO) {
            tracing::warn!(
                target: "podlock", event = "claim_failed", pod = %self.engine.member.pod_id, tried,
                size = batches.size(), times, error = %error,
                "a claim of several runs failed; smaller ones are tried"
            );
        }
    }
}

/// Ends a run as failed because no pod can read its input or checkpoint. Otherwise pods would claim it again without
/// end.
async fn end_unreadable(engine: &Engine, run: &Unreadable) {
    let Unreadable { owner, kind, attempt, why } = run;
    tracing::error!(
        target: "podlock", event = "unreadable", run = %owner.run_id, error = why.as_str(),
        "a run that cannot be begun is ended as failed"
    );
    let ending = Ending::of(Output::text("").fail(format!("its input or checkpoint cannot be read: {why}")));
    let settings = &engine.member.settings;
    let limits = Limits { result: settings.result_max_bytes, stderr: settings.stderr_max_bytes };
    let ended =
        async { runs::finish(&engine.db, *owner, runs::ONLY, &ending, &ending.output().columns(limits)?, None).await };
    match ended.await {
        Ok(true) => failures::note(engine, *owner, kind, *attempt, ending.error().unwrap_or_default()),
        // Another pod owns the run now.
        Ok(false) => {}
        Err(e) => {
            tracing::warn!(
                target: "podlock", event = "end_unwritten", run = %owner.run_id, fence = owner.fence.get(), error = %e,
                "the run's end could not be written; a later pass tries again"
            )
        }
    }
}
