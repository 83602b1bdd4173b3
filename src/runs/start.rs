//! Starts runs. This pod or nobody owns the new run, and the insert is made in our transaction or the caller's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::Engine;
use super::handlers::Handlers;
use super::writer::NewStart;
use super::{NewRun, Started, execute};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, RunId, traceparent};
use crate::meters;
use crate::output::{size, storable};
use crate::protocol::batch::by_bytes;
use crate::protocol::notices::Word;
use crate::protocol::offer::Untold;
use crate::store::runs::{self, Claimed, Holder, Insert, Inserted};

/// How many times an insert is tried in all, under the same run id, if its reply is lost. With fewer, more starts would
/// be in doubt. With more, the caller would wait longer during an outage.
const TRIES: usize = 3;
/// The most runs of one statement in a caller's transaction: 500. More would make a long statement; fewer cost round
/// trips.
const INSERTS_MOST: usize = 500;
/// The most bytes of their inputs: 1 MiB. A larger one has a statement of its own.
const INSERT_BYTES: i64 = 1 << 20;
/// The delay between two tries. A failover takes longer, but a dropped connection is over by then. Shorter: the tries
/// are used up at once. Longer: the caller waits.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Starts a run that this pod owns, and begins it.
pub(crate) async fn start(engine: &Arc<Engine>, handlers: &Handlers, new: NewRun) -> Result<Started> {
    let incarnation = engine.member.may_take_work()?;
    let bytes = check(engine, &new)?;
    let handler = handlers.of(&new.kind).ok_or_else(|| no_handler(engine, &new.kind))?;
    let run_id = RunId::generate();
    let place = engine.registry.reserve(run_id, &new.kind).ok_or_else(|| full(engine, &new.kind))?;
    let trace = trace_of(&new);
    let start =
        NewStart { run_id, owner: Some(incarnation), new: Arc::new(new), trace: trace.clone(), is_repeated: false };
    let inserted =
        repeat(run_id, |is_repeated| engine.write_start(NewStart { is_repeated, ..start.clone() }, bytes)).await?;
    let fence = outcome(engine, inserted, &start.new)?;
    let new = Arc::unwrap_or_clone(start.new);
    let claimed = Claimed {
        run_id,
        kind: new.kind,
        key: new.key,
        fence,
        attempt: 1,
        input: new.input,
        checkpoint: None,
        checkpoint_seq: 0,
        crashes: 0,
        movable: new.movable,
        traceparent: Some(trace),
        taken_over: None,
    };
    execute::begin(engine, handler, place, claimed, incarnation);
    Ok(Started { run_id, incarnation, fence })
}

/// Starts a run without an owner. Any pod with a handler and room claims it.
pub(crate) async fn submit(engine: &Engine, new: &Arc<NewRun>) -> Result<RunId> {
    let bytes = check(engine, new)?;
    let run_id = RunId::generate();
    let submit = NewStart { run_id, owner: None, new: Arc::clone(new), trace: trace_of(new), is_repeated: false };
    let inserted =
        repeat(run_id, |is_repeated| engine.write_start(NewStart { is_repeated, ..submit.clone() }, bytes)).await;
    // A submit whose reply was lost may have been committed.
    let may_be_there = inserted.as_ref().map_or_else(Error::may_have_been_done, |i| matches!(i, Inserted::Yes(_)));
    if may_be_there {
        let untold = engine.untold(&new.kind);
        if untold.own { engine.take_offer() } else { engine.offers.add(untold) }
    }
    outcome(engine, inserted?, new)?;
    Ok(run_id)
}

/// Starts runs in the caller's transaction. With `owned`, this pod begins them once the transaction has committed. One
/// run that is refused does not stop the others. The results are in the order of `new`.
pub(crate) async fn insert_in_txn(
    engine: &Engine,
    txn: &tokio_postgres::Transaction<'_>,
    new: &[NewRun],
    owned: bool,
) -> Result<Vec<Result<RunId>>> {
    let mut room = Room { engine, taken: HashMap::new() };
    let mut results = Vec::with_capacity(new.len());
    let mut sound = Vec::with_capacity(new.len());
    for (nth, new) in new.iter().enumerate() {
        let bytes =
            check(engine, new).and_then(|bytes| if owned { room.take(&new.kind).map(|()| bytes) } else { Ok(bytes) });
        results.push(bytes.map(|bytes| {
            let run_id = RunId::generate();
            sound.push(Portioned {
                nth,
                run_id,
                bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
                trace: trace_of(new),
            });
            run_id
        }));
    }
    // All portions keep to one order of keys, so that two such transactions cannot deadlock.
    sound.sort_by(|a, b| key_of(&new[a.nth]).cmp(&key_of(&new[b.nth])));
    let sizes: Vec<i64> = sound.iter().map(|run| run.bytes).collect();
    for group in by_bytes(&sizes, INSERT_BYTES) {
        for portion in sound[group].chunks(INSERTS_MOST) {
            let inserts: Vec<Insert<'_>> =
                portion.iter().map(|run| insert_of(engine, run.run_id, &new[run.nth], &run.trace)).collect();
            let inserted = insert_portion_in_txn(engine, txn, &inserts, owned).await?;
            for (run, inserted) in portion.iter().zip(inserted) {
                if let Err(e) = inserted.and_then(|inserted| outcome(engine, inserted, &new[run.nth])) {
                    results[run.nth] = Err(e);
                }
            }
        }
    }
    Ok(results)
}

/// A run of a list that is to be inserted.
struct Portioned {
    /// Its place in the list.
    nth: usize,
    run_id: RunId,
    bytes: i64,
    trace: String,
}

fn key_of(new: &NewRun) -> (&str, Option<&str>) {
    (&new.kind, new.key.as_deref())
}

/// The room of this pod for runs that it is to own, while a list of them is checked.
struct Room<'a> {
    engine: &'a Engine,
    /// How many runs of each kind the list has so far.
    taken: HashMap<&'a str, usize>,
}

impl<'a> Room<'a> {
    fn take(&mut self, kind: &'a str) -> Result<()> {
        let engine = self.engine;
        if !engine.kinds.iter().any(|known| known == kind) {
            return Err(no_handler(engine, kind));
        }
        engine.member.may_take_work()?;
        let all = self.taken.values().sum();
        let of_kind = self.taken.entry(kind).or_default();
        if !engine.registry.has_room_beside(kind, all, *of_kind) {
            return Err(full(engine, kind));
        }
        *of_kind += 1;
        Ok(())
    }
}

/// The result of the only run.
pub(crate) fn only(results: Vec<Result<RunId>>) -> Result<RunId> {
    results.into_iter().next().unwrap_or_else(|| Err(Error::new(ErrorKind::InvalidInput, "no run was given")))
}

async fn insert_portion_in_txn(
    engine: &Engine,
    txn: &tokio_postgres::Transaction<'_>,
    inserts: &[Insert<'_>],
    owned: bool,
) -> Result<Vec<Result<Inserted>>> {
    // The commit is the caller's, so the statement itself has to notify. The server sends the notice at the commit.
    let tells = engine.offers.may_tell();
    let mut untold = Untold { own: owned, ..Untold::default() };
    if !owned {
        for insert in inserts {
            untold.add(engine.untold(insert.kind));
        }
    }
    let schema = engine.db.schema();
    let inserted = if owned {
        let told = tells.then_some(&*engine.member.channel);
        runs::start_in_txn(txn, schema, engine.member.incarnation(), inserts, told).await?
    } else {
        let fleet = schema.channel();
        let only_own = untold.own && !untold.is_for_others();
        let (channel, word) = if only_own { (&engine.member.channel, Word::Take) } else { (&fleet, Word::Recover) };
        runs::submit_in_txn(txn, schema, inserts, tells.then_some((channel, word))).await?
    };
    if tells {
        if inserted.iter().any(|inserted| matches!(inserted, Ok(Inserted::Yes(_)))) {
            meters::count(meters::NOTICES_SENT, "about", "run");
        }
    } else {
        // Another statement notified a moment ago. By the time that the herald acts, this transaction has most likely
        // ended. A pass of this pod finds an owned run.
        engine.offers.add_for_later(untold);
    }
    Ok(inserted)
}

fn trace_of(new: &NewRun) -> String {
    new.traceparent.clone().unwrap_or_else(traceparent::generate)
}

fn insert_of<'a>(engine: &Engine, run_id: RunId, new: &'a NewRun, traceparent: &'a str) -> Insert<'a> {
    let floor = engine.registry.highest_fence();
    let NewRun { kind, key, input, movable, traceparent: _ } = new;
    Insert { run_id, kind, key: key.as_deref(), input, movable: *movable, traceparent, floor }
}

/// Repeats an insert whose reply was lost, and tells it that it is a repetition. The repetition changes nothing if the
/// first insert was committed. If no repetition shows whether the first insert was committed, the error is the lost
/// reply, whatever else failed afterwards.
async fn repeat<F>(run_id: RunId, insert: impl Fn(bool) -> F) -> Result<Inserted>
where
    F: Future<Output = Result<Inserted>>,
{
    let (mut tried, mut lost) = (0, None);
    loop {
        tried += 1;
        let (error, again) = match (insert(tried > 1).await, lost.take()) {
            // The owner has left the roster since, or was cordoned. The first insert may have been committed before
            // that.
            (Ok(Inserted::NoOwner | Inserted::Cordoned), Some(first)) => (first, false),
            (Err(e), first) if !e.is_fenced() => {
                let again = e.is_session_lost() && tried < TRIES;
                (first.unwrap_or(e), again)
            }
            (settled, _) => return settled,
        };
        let unanswered = error.may_have_been_done();
        if again {
            lost = Some(error).filter(|_| unanswered);
            tokio::time::sleep(BETWEEN_TRIES).await;
            continue;
        }
        if !unanswered {
            return Err(error);
        }
        return Err(error
            .about_run(run_id)
            .state(format!("run {run_id} may have been started all the same; if so, it is taken up"))
            .help("look for it by its id before you start another; with a key, a second start is refused"));
    }
}

fn outcome(engine: &Engine, inserted: Inserted, new: &NewRun) -> Result<Fence> {
    match inserted {
        Inserted::Yes(fence) => Ok(fence),
        Inserted::KeyBusy(run_id, holder) => Err(key_busy(run_id, holder, new)),
        Inserted::Cordoned => Err(engine.member.cordoned()),
        // The pod began to drain, or lost its row, during the start.
        Inserted::NoOwner => {
            Err(engine.member.may_take_work().err().unwrap_or_else(|| runs::not_registered(&engine.member.pod_id)))
        }
    }
}

fn key_busy(run_id: RunId, holder: Holder, new: &NewRun) -> Error {
    let state = match holder {
        Holder::Pod => "is running",
        Holder::Gone => "is running, its owner is gone, and a pod with a handler and room resumes it",
        Holder::Nobody => "is running, nobody owns it yet, and a pod with a handler and room takes it up",
    };
    let key = new.key.as_deref().unwrap_or_default();
    Error::new(ErrorKind::KeyBusy, format!("run {run_id} of kind {:?} and key {key:?} {state}", new.kind))
        .about_run(run_id)
        .state("no run was started")
        .help("follow that run, or wait until it has ended")
}

/// Refuses a run that cannot be stored. Returns how many bytes its input has.
fn check(engine: &Engine, new: &NewRun) -> Result<usize> {
    let most = engine.member.settings.input_max_bytes;
    let bytes = size(&new.input)?;
    if bytes > most {
        let what =
            format!("the run cannot be started: its input has {bytes} bytes, and {most} (input_max_bytes) is the most");
        return Err(Error::new(ErrorKind::TooLarge, what)
            .state("no run was started")
            .help("keep it elsewhere and start the run with where it is, or raise the limit"));
    }
    let fault = if new.kind.is_empty() || new.kind.len() > 128 {
        Some(format!("its kind has {} bytes, and must have 1 to 128", new.kind.len()))
    } else if new.key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 1024) {
        Some("its key must have 1 to 1024 bytes".to_owned())
    } else if new.kind.contains('\0') || new.key.as_ref().is_some_and(|k| k.contains('\0')) {
        Some("PostgreSQL cannot store the character U+0000".to_owned())
    } else if let Some(Err(why)) = new.traceparent.as_deref().map(traceparent::check) {
        Some(format!("its traceparent {why}"))
    } else {
        storable(&new.input).err().map(|why| format!("its input cannot be stored: {why}"))
    };
    match fault {
        None => Ok(bytes),
        Some(fault) => Err(Error::new(ErrorKind::InvalidInput, format!("the run cannot be started: {fault}"))
            .state("no run was started")
            .help("correct it")),
    }
}

fn no_handler(engine: &Engine, kind: &str) -> Error {
    let (pod, known) = (&engine.member.pod_id, &engine.kinds);
    Error::new(ErrorKind::NoHandler, format!("pod {pod} has no handler for kind {kind:?}; it has {known:?}"))
        .state("no run was started")
        .help("register a handler for it, or submit it unowned for a pod that has one")
}

fn full(engine: &Engine, kind: &str) -> Error {
    let (pod, settings) = (&engine.member.pod_id, &engine.member.settings);
    let (what, setting) = match settings.capacity_of.get(kind) {
        Some(most) if engine.registry.len() < settings.capacity => {
            (format!("pod {pod} runs {most} runs of kind {kind:?}, as many as it may"), "capacity_of")
        }
        _ => (format!("pod {pod} runs {} runs, as many as it may", settings.capacity), "capacity"),
    };
    Error::new(ErrorKind::AtCapacity, what)
        .state("no run was started")
        .help(format!("retry later or on another pod, raise {setting}, or submit it unowned"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Calls `repeat` with an insert that gives these answers, one after another. Asserts that `repeat` used all of
    /// them.
    async fn repeated(answers: Vec<Result<Inserted>>) -> Result<Inserted> {
        let answers = RefCell::new(answers.into_iter());
        let outcome = repeat(RunId::generate(), |_| async { answers.borrow_mut().next().expect("not so often") }).await;
        assert_eq!(answers.borrow().len(), 0, "it gave up too early");
        outcome
    }

    fn error(kind: ErrorKind) -> Result<Inserted> {
        Err(Error::new(kind, "x").state("no run was started"))
    }

    #[tokio::test]
    async fn a_start_whose_reply_was_lost_is_in_doubt_until_a_repetition_says_what_became_of_it() {
        let lost = || error(ErrorKind::SessionLost);
        let yes = || Ok(Inserted::Yes(7.into()));
        let busy = || Ok(Inserted::KeyBusy(RunId::generate(), Holder::Pod));
        assert!(matches!(repeated(vec![lost(), lost(), yes()]).await, Ok(Inserted::Yes(_))));
        assert!(matches!(repeated(vec![lost(), busy()]).await, Ok(Inserted::KeyBusy(..))));
        assert!(repeated(vec![lost(), error(ErrorKind::Fenced)]).await.is_err_and(|e| e.is_fenced()));
        let unsettled = [
            vec![lost(), lost(), lost()],
            vec![lost(), error(ErrorKind::Unreachable)],
            vec![lost(), error(ErrorKind::Standby)],
            vec![lost(), Ok(Inserted::NoOwner)],
            vec![lost(), Ok(Inserted::Cordoned)],
            vec![error(ErrorKind::Timeout)],
        ];
        for answers in unsettled {
            let e = repeated(answers).await.expect_err("it cannot know");
            assert!(matches!(e.kind(), ErrorKind::SessionLost | ErrorKind::Timeout), "{e}");
            assert!(e.to_string().contains("may have been started") && e.run_id().is_some(), "{e}");
        }
        for answers in
            [vec![error(ErrorKind::Unreachable)], vec![Err(Error::new(ErrorKind::Timeout, "x").unconnected())]]
        {
            let e = repeated(answers).await.expect_err("refused");
            assert!(!e.to_string().contains("may have been started"), "{e}");
        }
    }
}
