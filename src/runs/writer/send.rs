//! The workers of the writer: each sends one group at a time, and answers its callers. And the calls of the writer, one
//! for each kind of write.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::lanes::{End, Group};
use super::{NewStart, Turn, Waiting};
use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::output::Columns;
use crate::protocol::batch::{Batches, Fault, Verdict};
use crate::runs::engine::Engine;
use crate::store::grouped::{self, Checkpoint, Finish, Release};
use crate::store::runs::{self, Ending, Insert, Inserted, Owner};

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

    /// Sends a group and answers its callers. If the server refuses the statement because of a row, smaller parts are
    /// tried, down to that row.
    async fn answer<T: Grouped>(&self, group: Vec<Waiting<T, T::Answer>>) {
        let (began, mut batches) = (Instant::now(), Batches::new(group.len(), group.len()));
        let mut group: Vec<Option<_>> = group.into_iter().map(Some).collect();
        while let Some(range) = batches.next_batch() {
            let part = &mut group[range.clone()];
            // An earlier part may have taken its time.
            for waiting in part.iter_mut().filter(|waiting| waiting.as_ref().is_some_and(|w| w.reply.is_closed())) {
                *waiting = None;
            }
            let writes: Vec<&T> = part.iter().flatten().map(|waiting| &waiting.what).collect();
            if writes.is_empty() {
                continue;
            }
            let error = match T::send(&self.engine, &writes).await {
                Ok(answers) => {
                    self.engine.writer.note_pace(writes.len(), false);
                    for (waiting, answer) in part.iter_mut().filter_map(Option::take).zip(answers) {
                        waiting.answer(Ok(answer.map_or(Turn::HeldUp, Turn::Done)));
                    }
                    continue;
                }
                Err(error) => error,
            };
            let after = match after(&error, T::has_patience(&writes), &mut batches, &range) {
                After::Smaller if began.elapsed() > self.engine.writer.patience => After::AllAlone,
                after => after,
            };
            if matches!(after, After::Lost | After::Alone) {
                self.engine.writer.note_pace(writes.len(), true);
            }
            let answered = match after {
                After::Smaller => continue,
                After::AllAlone => &mut group[..],
                After::Own | After::Alone | After::Lost | After::HeldUp => part,
            };
            for waiting in answered.iter_mut().filter_map(Option::take) {
                waiting.answer(match after {
                    After::Own => Err(error.for_another()),
                    After::Lost => Err(lost(&error)),
                    After::HeldUp => Ok(Turn::HeldUp),
                    After::Smaller | After::Alone | After::AllAlone => Ok(Turn::Failed),
                });
            }
        }
    }
}

/// What to do with the writes of a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Their parts are among the next batches.
    Smaller,
    /// Their callers get the error: it would be the same for each of them alone.
    Own,
    /// Their callers learn that no reply came.
    Lost,
    /// Their callers make them alone: the error need not be theirs.
    Alone,
    /// The only one waited for another transaction.
    HeldUp,
    /// The same as `Alone`, for all writes of the group that have no answer yet.
    AllAlone,
}

/// `has_patience`: the statement waited for keys only for a short time of its own.
fn after(error: &Error, has_patience: bool, batches: &mut Batches, part: &Range<usize>) -> After {
    let is_alone = part.len() == 1;
    match error.sqlstate() {
        None if error.is_slow() && !is_alone => After::Lost,
        // The writes are in doubt, or were not sent.
        None => After::Own,
        Some(code) if is_about_the_server(code) => After::Own,
        Some("55P03") if has_patience && is_alone => After::HeldUp,
        _ if is_alone => After::Own,
        // The group was too large, or somebody alters the table.
        Some("57014") => After::Alone,
        Some("55P03") if !has_patience => After::Alone,
        Some(_) => match batches.failed(part, Fault::Row) {
            Verdict::Cut => After::Smaller,
            Verdict::Culprit(_) => After::Own,
            Verdict::GiveUp => After::AllAlone,
        },
    }
}

/// The reply of a group did not come in time, and its connection was closed. That says nothing of the size of one write
/// of it.
fn lost(error: &Error) -> Error {
    Error::new(ErrorKind::SessionLost, format!("a group of writes: {error}"))
}

/// Whether an error comes from the state of the server and not from a row: its session ended, it takes no writes, it
/// lacks something, or somebody stops it.
fn is_about_the_server(code: &str) -> bool {
    let class = code.get(..2).unwrap_or_default();
    ["08", "53", "58"].contains(&class) || code == "25006" || (class == "57" && code != "57014")
}

/// A write that can be made together with others of its kind.
trait Grouped: Sync + Send + Sized {
    type Answer: Send;

    /// Makes the writes in one statement, if this pod may make them now. The answers are in their order; `None`:
    /// it was not made, and the statement cannot tell why.
    fn send(engine: &Engine, writes: &[&Self]) -> impl Future<Output = Result<Vec<Option<Self::Answer>>>> + Send;

    /// Whether the statement waits for other transactions only for a short time of its own.
    fn has_patience(_: &[&Self]) -> bool {
        false
    }
}

impl Grouped for NewStart {
    type Answer = Inserted;

    /// A lane has only starts of one owner, or only of none.
    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<Inserted>>> {
        let floor = engine.registry.highest_fence();
        let inserts: Vec<Insert<'_>> = writes.iter().map(|start| start.insert(floor)).collect();
        let starts = match writes.first().and_then(|start| start.owner) {
            Some(own) => {
                engine.member.may_take_work()?;
                grouped::start(&engine.db, own, &inserts).await?
            }
            None => grouped::submit(&engine.db, &inserts).await?,
        };
        // What an earlier insert of the same run has done, the start alone finds.
        let refused = writes.iter().zip(&inserts).filter(|(start, insert)| {
            starts.has_owner && !start.is_repeated && !starts.inserted.contains_key(&insert.run_id)
        });
        let refused: Vec<&Insert<'_>> = refused.map(|(_, insert)| insert).collect();
        // Without an answer, each start alone finds who has its key.
        let holders = runs::find_holders(&engine.db, &refused).await.unwrap_or_default();
        let answer = |(start, insert): (&&Self, &Insert<'_>)| match starts.inserted.get(&insert.run_id) {
            Some(fence) => Some(Inserted::Yes(*fence)),
            None if !starts.has_owner => Some(Inserted::NoOwner),
            None if start.is_repeated => None,
            None => holders.has_key_of(insert),
        };
        Ok(writes.iter().zip(&inserts).map(answer).collect())
    }

    fn has_patience(starts: &[&Self]) -> bool {
        starts.iter().any(|start| start.new.key.is_some())
    }
}

impl Grouped for Checkpoint {
    type Answer = bool;

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<bool>>> {
        grouped::checkpoint(&engine.owners_db, writes).await
    }
}

impl Grouped for End {
    type Answer = bool;

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<bool>>> {
        let ends: Vec<Finish<'_>> = writes
            .iter()
            .map(|end| Finish {
                owner: end.owner,
                number: end.number,
                ending: &end.ending,
                output: end.ending.output().checked_columns(),
                seq: end.seq,
            })
            .collect();
        grouped::finish(&engine.owners_db, &ends).await
    }
}

impl Grouped for Release {
    type Answer = bool;

    async fn send(engine: &Engine, writes: &[&Self]) -> Result<Vec<Option<bool>>> {
        grouped::give_back(&engine.owners_db, writes).await
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
}

/// However the worker ends, also with its runtime: nobody waits for it.
impl Drop for Sending {
    fn drop(&mut self) {
        self.engine.writer.close();
    }
}

impl Engine {
    /// Starts a run that this pod owns, or that nobody owns. Repeating it with the same id changes nothing. `bytes` is
    /// about how many bytes it has.
    pub(crate) async fn write_start(&self, start: NewStart, bytes: usize) -> Result<Inserted> {
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
        let room = &self.writer.room_of_starts;
        self.writer.write(room, bytes, || start.clone(), |lanes| lanes.of_start(owned, keyed), alone).await
    }

    /// Saves a checkpoint, as [`runs::checkpoint`].
    pub(crate) async fn write_checkpoint(&self, checkpoint: &Checkpoint, bytes: usize) -> Result<bool> {
        let Checkpoint { owner, number, value, seq } = checkpoint;
        let alone = runs::checkpoint(&self.owners_db, *owner, *number, value, *seq);
        let room = &self.writer.room_of_writes;
        self.writer.write(room, bytes, || checkpoint.clone(), |lanes| &mut lanes.checkpoints, alone).await
    }

    /// Ends a run, as [`runs::finish`]. The output was checked.
    pub(crate) async fn write_end(
        &self,
        owner: Owner,
        number: i64,
        ending: &Arc<Ending>,
        columns: &Columns<'_>,
        seq: Option<i64>,
    ) -> Result<bool> {
        let alone = runs::finish(&self.owners_db, owner, number, ending, columns, seq);
        let end = || End { owner, number, ending: Arc::clone(ending), seq };
        self.writer.write(&self.writer.room_of_writes, columns.bytes, end, |lanes| &mut lanes.ends, alone).await
    }

    /// Releases a run, as [`runs::give_back`].
    pub(crate) async fn write_release(&self, release: Release) -> Result<bool> {
        let Release { owner, number, reason } = release;
        let alone = runs::give_back(&self.owners_db, owner, number, reason);
        self.writer.write(&self.writer.room_of_writes, 0, || release, |lanes| &mut lanes.yields, alone).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_says(code: &str) -> Error {
        let slow = ["57014", "55P03"].contains(&code);
        Error::new(if slow { ErrorKind::Timeout } else { ErrorKind::Database }, "said").with_sqlstate(code)
    }

    fn after_of(error: &Error, has_patience: bool, rows: usize) -> After {
        let mut batches = Batches::new(rows, rows);
        let part = batches.next_batch().unwrap();
        after(error, has_patience, &mut batches, &part)
    }

    /// Issue: "Each caller gets its own answer; one that fails does not fail its neighbours". Whatever code a trigger,
    /// a constraint or a policy of the service's raises.
    #[test]
    fn a_row_that_the_server_refuses_is_searched_for_and_has_its_own_error() {
        for code in ["22P05", "MY001", "42501", "42P01", "P0001", "40001", "40P01", "23514"] {
            assert_eq!(after_of(&server_says(code), false, 100), After::Smaller, "{code}");
            assert_eq!(after_of(&server_says(code), false, 1), After::Own, "{code}");
        }
    }

    #[test]
    fn a_key_that_is_being_inserted_is_searched_for_and_waited_for() {
        assert_eq!(after_of(&server_says("55P03"), true, 100), After::Smaller);
        assert_eq!(after_of(&server_says("55P03"), true, 1), After::HeldUp);
    }

    /// For example, somebody alters the table.
    #[test]
    fn writes_of_a_group_that_takes_too_long_are_made_alone() {
        for (code, has_patience) in [("57014", false), ("57014", true), ("55P03", false)] {
            assert_eq!(after_of(&server_says(code), has_patience, 100), After::Alone, "{code}");
        }
        assert_eq!(after_of(&server_says("57014"), false, 1), After::Own);
    }

    /// Issue: "what was sent and got no reply is repeated".
    #[test]
    fn writes_without_a_reply_are_in_doubt_and_a_server_in_trouble_is_not_asked_again() {
        let lost = Error::new(ErrorKind::SessionLost, "lost");
        let timed_out = Error::new(ErrorKind::Timeout, "no reply");
        assert!(lost.may_have_been_done() && timed_out.may_have_been_done());
        assert_eq!(after_of(&lost, true, 100), After::Own);
        assert_eq!(after_of(&timed_out, true, 1), After::Own);
        assert_eq!(after_of(&timed_out, true, 100), After::Lost, "no write of it is known to be too slow");
        let told = super::lost(&timed_out);
        assert!(told.may_have_been_done() && !told.is_slow() && told.is_transient(), "{told:?}");
        for code in ["53100", "57P01", "25006", "08006", "58030"] {
            assert_eq!(after_of(&server_says(code), true, 100), After::Own, "{code}");
        }
    }

    #[test]
    fn the_search_ends_when_too_much_was_tried() {
        let mut batches = Batches::new(500, 500);
        let mut tried = 0;
        while let Some(part) = batches.next_batch() {
            tried += 1;
            if after(&server_says("P0001"), false, &mut batches, &part) == After::AllAlone {
                break;
            }
        }
        assert_eq!(tried, 64);
    }
}
