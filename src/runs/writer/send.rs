//! The workers of the writer: each sends one group at a time, and answers its callers. And the calls of the writer, one for
//! each kind of write.

use std::sync::Arc;

use super::lanes::{End, Group, Lanes};
use super::{NewStart, Release, Waiting};
use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Fence;
use crate::output::Columns;
use crate::protocol::batch::{Batches, Fault, Verdict, fault};
use crate::runs::engine::Engine;
use crate::store::grouped::{self, Checkpoint, Finish};
use crate::store::runs::{self, Ending, Inserted, Owner};

/// One worker of the writer.
pub(crate) struct Sending {
    engine: Arc<Engine>,
}

impl Sending {
    /// The workers of a pod's writer: one for each statement that may be under way.
    pub(crate) fn all(engine: &Arc<Engine>) -> impl Iterator<Item = Self> {
        (0..super::STATEMENTS_MOST).map(|_| Self { engine: Arc::clone(engine) })
    }

    async fn send(&self, group: Group) {
        match group {
            Group::Starts(starts) => self.answer(starts).await,
            Group::Checkpoints(checkpoints) => self.answer(checkpoints).await,
            Group::Ends(ends) => self.answer(ends).await,
            Group::Yields(yields) => self.answer(yields).await,
        }
    }

    /// Sends a group and answers its callers. If the server refuses the statement because of a row, or does not end it in
    /// time, smaller parts are tried.
    async fn answer<T: Grouped>(&self, group: Vec<Waiting<T, T::Answer>>) {
        let mut batches = Batches::new(group.len(), group.len());
        let mut group: Vec<Option<_>> = group.into_iter().map(Some).collect();
        while let Some(range) = batches.next_batch() {
            let part = &mut group[range.clone()];
            let writes: Vec<&T> = part.iter().flatten().map(|waiting| &waiting.what).collect();
            let error = match T::send(&self.engine, &writes).await {
                Ok(answers) => {
                    for (waiting, answer) in part.iter_mut().filter_map(Option::take).zip(answers) {
                        waiting.answer(Ok(answer));
                    }
                    continue;
                }
                Err(error) => error,
            };
            match after(&error, &mut batches, &range) {
                After::Smaller => {}
                After::Alone => part.iter_mut().filter_map(Option::take).for_each(|waiting| waiting.answer(Ok(None))),
                After::Error => {
                    for waiting in part.iter_mut().filter_map(Option::take) {
                        waiting.answer(Err(error.for_another()));
                    }
                }
                After::AllAlone => {
                    group.into_iter().flatten().for_each(|waiting| waiting.answer(Ok(None)));
                    return;
                }
            }
        }
    }
}

/// What to do with the writes of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Their parts are among the next batches.
    Smaller,
    /// Their callers make them alone, and find the reason.
    Alone,
    /// Their callers get the error.
    Error,
    /// The same for all writes of the group that have no answer yet.
    AllAlone,
}

fn after(error: &Error, batches: &mut Batches, part: &std::ops::Range<usize>) -> After {
    let fault = match error.sqlstate() {
        // No answer: the writes are in doubt, or were not sent. Their callers repeat them.
        None => return After::Error,
        // One row waited for another transaction, or was in its way. A search for it would wait at each step.
        Some("55P03" | "40P01" | "40001") => return After::Alone,
        code => fault(error.is_slow(), code),
    };
    match (fault, batches.failed(part, fault)) {
        (Fault::Other, _) => After::Error,
        (_, Verdict::Cut) => After::Smaller,
        (_, Verdict::Culprit(_)) => After::Alone,
        (_, Verdict::GiveUp) => After::AllAlone,
    }
}

/// A write that can be made together with others of its kind.
trait Grouped: Sync + Send + Sized {
    type Answer: Send;

    /// Makes the writes in one statement, if this pod may make them now. The answers are in their order; `None`: it was not
    /// made, and the write alone finds the reason.
    fn send(engine: &Engine, writes: &[&Self]) -> impl Future<Output = Result<Vec<Option<Self::Answer>>>> + Send;
}

impl Grouped for NewStart {
    type Answer = Fence;

    /// A lane has only starts of one owner, or only of none.
    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<Fence>>> {
        let floor = engine.registry.highest_fence();
        let inserts: Vec<_> = writes.iter().map(|start| start.insert(floor)).collect();
        match writes.first().and_then(|start| start.owner) {
            Some(own) => {
                engine.member.may_take_work()?;
                grouped::start(&engine.db, own, &inserts).await
            }
            None => grouped::submit(&engine.db, &inserts).await,
        }
    }
}

impl Grouped for Checkpoint {
    type Answer = ();

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<()>>> {
        before_the_deadline(engine)?;
        grouped::checkpoint(&engine.db, writes).await
    }
}

impl Grouped for End {
    type Answer = ();

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<()>>> {
        before_the_deadline(engine)?;
        let ends: Vec<Finish<'_>> = writes
            .iter()
            .map(|end| Finish {
                owner: end.owner,
                ending: &end.ending,
                output: end.ending.output().checked_columns(),
                seq: end.seq,
            })
            .collect();
        grouped::finish(&engine.db, &ends).await
    }
}

impl Grouped for Release {
    type Answer = ();

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<()>>> {
        before_the_deadline(engine)?;
        let yields: Vec<(Owner, &str)> = writes.iter().map(|release| (release.owner, release.reason)).collect();
        grouped::give_back(&engine.db, &yields).await
    }
}

impl Part for Sending {
    const NAME: &'static str = "a worker of the writer";

    async fn woken(&mut self) {
        self.engine.writer.is_wanted().await;
    }

    async fn work(&mut self) -> Next {
        while let Some((group, _taken)) = self.engine.writer.take() {
            self.send(group).await;
        }
        Next::Wait
    }

    fn stopped(&mut self) {
        self.engine.writer.close();
    }
}

/// L7: an owner past its deadline writes nothing. Nothing was sent. `Run::write` looks at the deadline again, and says so.
fn before_the_deadline(engine: &Engine) -> Result<()> {
    if engine.member.is_past_deadline() {
        return Err(Error::new(ErrorKind::Timeout, "the pod is past its deadline").unconnected());
    }
    Ok(())
}

impl Engine {
    /// Starts a run that this pod owns, or that nobody owns. Repeating it with the same id changes nothing.
    pub(crate) async fn write_start(&self, start: &NewStart, bytes: usize) -> Result<Inserted> {
        let alone = async {
            let insert = start.insert(self.registry.highest_fence());
            match start.owner {
                Some(own) => {
                    self.member.may_take_work()?;
                    runs::start(&self.db, own, &insert).await
                }
                None => runs::submit(&self.db, &insert).await,
            }
        };
        let (owned, keyed) = (start.owner.is_some(), start.new.key.is_some());
        let enqueue = |lanes: &mut Lanes, waiting| lanes.of_start(owned, keyed).push_back(waiting);
        self.writer.write(bytes, || start.clone(), enqueue, alone, Inserted::Yes).await
    }

    /// Saves a checkpoint, as [`runs::checkpoint`].
    pub(crate) async fn write_checkpoint(&self, checkpoint: &Checkpoint, bytes: usize) -> Result<bool> {
        let Checkpoint { owner, number, value, seq } = checkpoint;
        let alone = async {
            before_the_deadline(self)?;
            runs::checkpoint(&self.db, *owner, *number, value, *seq).await
        };
        let enqueue = |lanes: &mut Lanes, waiting| lanes.checkpoints.push_back(waiting);
        self.writer.write(bytes, || checkpoint.clone(), enqueue, alone, |()| true).await
    }

    /// Ends a run, as [`runs::finish`]. The output was checked.
    pub(crate) async fn write_end(
        &self,
        owner: Owner,
        ending: &Arc<Ending>,
        columns: &Columns<'_>,
        seq: Option<i64>,
    ) -> Result<bool> {
        let alone = async {
            before_the_deadline(self)?;
            runs::finish(&self.db, owner, ending, columns, seq).await
        };
        let end = || End { owner, ending: Arc::clone(ending), seq };
        let enqueue = |lanes: &mut Lanes, waiting| lanes.ends.push_back(waiting);
        self.writer.write(columns.bytes, end, enqueue, alone, |()| true).await
    }

    /// Releases a run, as [`runs::give_back`].
    pub(crate) async fn write_release(&self, release: Release) -> Result<bool> {
        let alone = async {
            before_the_deadline(self)?;
            runs::give_back(&self.db, release.owner, release.reason).await
        };
        let enqueue = |lanes: &mut Lanes, waiting| lanes.yields.push_back(waiting);
        self.writer.write(0, || release, enqueue, alone, |()| true).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_says(code: &str) -> Error {
        let slow = code == "57014";
        Error::new(if slow { ErrorKind::Timeout } else { ErrorKind::Database }, "said").with_sqlstate(code)
    }

    fn after_of(error: &Error, rows: usize) -> After {
        let mut batches = Batches::new(rows, rows);
        let part = batches.next_batch().unwrap();
        after(error, &mut batches, &part)
    }

    /// Issue: "Each caller gets its own answer; one that fails does not fail its neighbours".
    #[test]
    fn a_row_that_the_server_refuses_is_searched_for_and_made_alone() {
        assert_eq!(after_of(&server_says("22P05"), 100), After::Smaller);
        assert_eq!(after_of(&server_says("22P05"), 1), After::Alone);
        assert_eq!(after_of(&server_says("57014"), 100), After::Smaller, "too slow");
        assert_eq!(after_of(&server_says("57014"), 1), After::Alone);
    }

    #[test]
    fn a_key_that_is_being_inserted_is_not_searched_for() {
        for code in ["55P03", "40P01", "40001"] {
            assert_eq!(after_of(&server_says(code), 100), After::Alone, "{code}");
        }
    }

    /// Issue: "what was sent and got no reply is repeated".
    #[test]
    fn writes_without_a_reply_are_in_doubt_and_not_made_alone() {
        let lost = Error::new(ErrorKind::SessionLost, "lost");
        let timed_out = Error::new(ErrorKind::Timeout, "no reply");
        for error in [lost, timed_out] {
            assert!(error.may_have_been_done());
            assert_eq!(after_of(&error, 100), After::Error);
        }
        assert_eq!(after_of(&server_says("53100"), 100), After::Error, "the disk is full for every row");
    }

    #[test]
    fn the_search_ends_when_too_much_was_tried() {
        let mut batches = Batches::new(500, 500);
        let mut verdicts = Vec::new();
        while let Some(part) = batches.next_batch() {
            verdicts.push(after(&server_says("57014"), &mut batches, &part));
            if verdicts.last() == Some(&After::AllAlone) {
                break;
            }
        }
        assert_eq!(verdicts, [After::Smaller, After::Smaller, After::Smaller, After::AllAlone]);
    }
}
