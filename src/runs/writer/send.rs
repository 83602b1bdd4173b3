//! The workers of the writer: each sends one group at a time, and answers its callers. And the calls of the writer, one for
//! each kind of write.

use std::sync::Arc;

use super::lanes::{End, Group, alone};
use super::{NewStart, Release, Slot, Turn, Waiting};
use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::output::Columns;
use crate::pg::pool::Database;
use crate::protocol::batch::{Fault, fault};
use crate::runs::engine::Engine;
use crate::store::grouped::{self, Checkpoint, Finish, StartAnswer, WriteAnswer};
use crate::store::runs::{self, Ending, Inserted, Owner};

/// One worker of the writer.
pub(crate) struct Writing {
    engine: Arc<Engine>,
}

impl Writing {
    /// The workers of a pod's writer: one for each slot.
    pub(crate) fn all(engine: &Arc<Engine>) -> impl Iterator<Item = Self> {
        (0..super::SLOTS).map(|_| Self { engine: Arc::clone(engine) })
    }

    async fn send(&self, group: Group, slot: Slot) {
        match group {
            Group::Starts(starts) => self.answer(starts, slot).await,
            // L7: nothing of an owner is sent past the deadline.
            Group::Checkpoints(checkpoints) if self.engine.member.is_past_deadline() => refuse(checkpoints),
            Group::Checkpoints(checkpoints) => self.answer(checkpoints, slot).await,
            Group::Ends(ends) if self.engine.member.is_past_deadline() => refuse(ends),
            Group::Ends(ends) => self.answer(ends, slot).await,
            Group::Yields(yields) if self.engine.member.is_past_deadline() => refuse(yields),
            Group::Yields(yields) => self.answer(yields, slot).await,
        }
    }

    /// Sends a group and answers its callers. If the server refuses the statement because of a row, the halves are tried,
    /// so that one bad row does not cost the others their group. A write that is at fault is made by its caller alone.
    async fn answer<T: Grouped>(&self, group: Vec<Waiting<T, T::Answer>>, slot: Slot) {
        let Some((group, _slot)) = alone(group, slot) else { return };
        let mut parts = vec![group];
        while let Some(mut part) = parts.pop() {
            let sent = {
                let writes: Vec<&T> = part.iter().map(|waiting| &waiting.what).collect();
                T::send(&self.engine.db, &writes).await
            };
            match sent {
                Ok(answers) => {
                    for (waiting, answer) in part.into_iter().zip(answers) {
                        // A caller that is gone needs no answer.
                        let _ = waiting.reply.send(Ok(Turn::Answered(answer)));
                    }
                }
                Err(e) => match why(&e) {
                    Fault::Row if part.len() > 2 => {
                        let rest = part.split_off(part.len() / 2);
                        parts.extend([rest, part]);
                    }
                    // A smaller statement may end in time, or without the row at fault.
                    Fault::Row | Fault::TooSlow => {
                        for waiting in part {
                            let _ = waiting.reply.send(Ok(Turn::Alone(None)));
                        }
                    }
                    Fault::Other => {
                        for waiting in part {
                            let _ = waiting.reply.send(Err(e.for_another()));
                        }
                    }
                },
            }
        }
    }
}

/// A write that can be made together with others of its kind.
trait Grouped: Sync + Send + Sized {
    type Answer: Send;

    /// Makes the writes in one statement. The answers are in their order.
    fn send(db: &Database, writes: &[&Self]) -> impl Future<Output = Result<Vec<Self::Answer>>> + Send;
}

impl Grouped for NewStart {
    type Answer = StartAnswer;

    /// A lane has only starts of one owner, or only of none.
    async fn send(db: &Database, writes: &[&Self]) -> Result<Vec<StartAnswer>> {
        let inserts: Vec<_> = writes.iter().map(|start| start.insert()).collect();
        match writes.first().and_then(|start| start.owner) {
            Some(own) => grouped::start(db, own, &inserts).await,
            None => grouped::submit(db, &inserts).await,
        }
    }
}

impl Grouped for Checkpoint {
    type Answer = WriteAnswer;

    async fn send(db: &Database, writes: &[&Self]) -> Result<Vec<WriteAnswer>> {
        grouped::checkpoint(db, writes).await
    }
}

impl Grouped for End {
    type Answer = WriteAnswer;

    async fn send(db: &Database, writes: &[&Self]) -> Result<Vec<WriteAnswer>> {
        let ends: Vec<Finish<'_>> = writes
            .iter()
            .map(|end| Finish {
                owner: end.owner,
                ending: &end.ending,
                output: end.ending.output().checked_columns(),
                seq: end.seq,
            })
            .collect();
        grouped::finish(db, &ends).await
    }
}

impl Grouped for Release {
    type Answer = WriteAnswer;

    async fn send(db: &Database, writes: &[&Self]) -> Result<Vec<WriteAnswer>> {
        let yields: Vec<(Owner, &str)> = writes.iter().map(|release| (release.owner, release.reason)).collect();
        grouped::give_back(db, &yields).await
    }
}

impl Part for Writing {
    const NAME: &'static str = "a worker of the writer";

    async fn woken(&mut self) {
        self.engine.writer.wake.notified().await;
    }

    async fn work(&mut self) -> Next {
        while let Some((group, slot)) = self.engine.writer.take() {
            self.send(group, slot).await;
        }
        Next::Wait
    }
}

/// Whether parts of a group may pass where the whole group failed. A wait for a key, a deadlock and a conflict end with a
/// row as well.
fn why(error: &Error) -> Fault {
    match error.sqlstate() {
        Some("55P03" | "40P01" | "40001") => Fault::Row,
        code => fault(error.is_slow(), code),
    }
}

/// L7: answers writes of a pod that is past its deadline. Nothing was sent. The caller looks again, and stops.
fn refuse<T, A>(group: Vec<Waiting<T, A>>) {
    for waiting in group {
        let _ = waiting.reply.send(Err(past_deadline()));
    }
}

/// Nothing was sent. `Run::write` looks at the deadline again, and says so.
fn past_deadline() -> Error {
    Error::new(ErrorKind::Timeout, "the pod is past its deadline").unconnected()
}

/// What an answer of a group says of a write. `None`: its caller makes it alone.
fn settled(answer: WriteAnswer) -> Option<bool> {
    match answer {
        WriteAnswer::Yes => Some(true),
        WriteAnswer::No => Some(false),
        WriteAnswer::Locked => None,
    }
}

impl Engine {
    /// Starts a run that this pod owns, or that nobody owns. Repeating it with the same id changes nothing.
    pub(crate) async fn write_start(&self, start: &NewStart, bytes: usize) -> Result<Inserted> {
        let (db, insert) = (&self.db, start.insert());
        let keyed = insert.key.is_some();
        let alone = async || match start.owner {
            Some(own) => runs::start(db, own, &insert).await,
            None => runs::submit(db, &insert).await,
        };
        let enqueue = |lanes: &mut super::lanes::Lanes, waiting| {
            let lane = match (start.owner.is_some(), keyed) {
                (true, false) => &mut lanes.starts,
                (true, true) => &mut lanes.keyed_starts,
                (false, false) => &mut lanes.submits,
                (false, true) => &mut lanes.keyed_submits,
            };
            lane.push_back(waiting);
        };
        let answer = |answer| match answer {
            StartAnswer::Yes(fence) => Some(Inserted::Yes(fence)),
            StartAnswer::NoOwner => Some(Inserted::NoOwner),
            StartAnswer::Ask => None,
        };
        let first = async { alone().await.map(Some) };
        match self.writer.write(bytes, || start.clone(), enqueue, first, answer).await? {
            Some(inserted) => Ok(inserted),
            None => alone().await,
        }
    }

    /// Saves a checkpoint, as [`runs::checkpoint`].
    pub(crate) async fn write_checkpoint(&self, checkpoint: &Checkpoint, bytes: usize) -> Result<bool> {
        let Checkpoint { owner, number, value, seq } = checkpoint;
        let alone = async || runs::checkpoint(&self.db, *owner, *number, value, *seq).await;
        let first = async { alone().await.map(Some) };
        let written = self.writer.write(
            bytes,
            || checkpoint.clone(),
            |lanes, waiting| lanes.checkpoints.push_back(waiting),
            first,
            settled,
        );
        match written.await? {
            Some(written) => Ok(written),
            None if self.member.is_past_deadline() => Err(past_deadline()),
            None => alone().await,
        }
    }

    /// Ends a run, as [`runs::finish`]. The output was checked.
    pub(crate) async fn write_end(
        &self,
        owner: Owner,
        ending: &Arc<Ending>,
        columns: &Columns<'_>,
        seq: Option<i64>,
    ) -> Result<bool> {
        let alone = async || runs::finish(&self.db, owner, ending, columns, seq).await;
        let first = async { alone().await.map(Some) };
        let written = self.writer.write(
            columns.bytes,
            || End { owner, ending: Arc::clone(ending), seq },
            |lanes, waiting| lanes.ends.push_back(waiting),
            first,
            settled,
        );
        match written.await? {
            Some(written) => Ok(written),
            None if self.member.is_past_deadline() => Err(past_deadline()),
            None => alone().await,
        }
    }

    /// Releases a run, as [`runs::give_back`].
    pub(crate) async fn write_release(&self, release: Release) -> Result<bool> {
        let Release { owner, reason } = release;
        let alone = async || runs::give_back(&self.db, owner, reason).await;
        let first = async { alone().await.map(Some) };
        let written =
            self.writer.write(0, || release, |lanes, waiting| lanes.yields.push_back(waiting), first, settled);
        match written.await? {
            Some(written) => Ok(written),
            None if self.member.is_past_deadline() => Err(past_deadline()),
            None => alone().await,
        }
    }
}
