//! The workers of the writer: each sends one group at a time, and answers its callers. And the calls of the writer, one for
//! each kind of write.

use std::sync::Arc;

use super::lanes::{End, Group, alone};
use super::{NewStart, Release, Slot, Turn, Waiting, Writer};
use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
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
        let (engine, db) = (&self.engine, &self.engine.db);
        let is_over = engine.member.is_past_deadline();
        match group {
            Group::Starts(starts) => {
                let Some((starts, _slot)) = alone(starts, slot) else { return };
                in_parts(starts, async |starts: &[&NewStart]| {
                    let inserts: Vec<_> = starts.iter().map(|start| start.insert()).collect();
                    match starts.first().and_then(|start| start.owner) {
                        Some(own) => grouped::start(db, own, &inserts).await,
                        None => Ok(vec![StartAnswer::NoOwner; starts.len()]),
                    }
                })
                .await;
            }
            Group::Submits(submits) => {
                let Some((submits, _slot)) = alone(submits, slot) else { return };
                in_parts(submits, async |submits: &[&NewStart]| {
                    let inserts: Vec<_> = submits.iter().map(|submit| submit.insert()).collect();
                    grouped::submit(db, &inserts).await
                })
                .await;
            }
            Group::Checkpoints(checkpoints) if is_over => refuse(checkpoints),
            Group::Checkpoints(checkpoints) => {
                let Some((checkpoints, _slot)) = alone(checkpoints, slot) else { return };
                in_parts(checkpoints, async |checkpoints: &[&Arc<Checkpoint>]| {
                    let checkpoints: Vec<&Checkpoint> = checkpoints.iter().map(|checkpoint| &***checkpoint).collect();
                    grouped::checkpoint(db, &checkpoints).await
                })
                .await;
            }
            Group::Ends(ends) if is_over => refuse(ends),
            Group::Ends(ends) => {
                let Some((ends, _slot)) = alone(ends, slot) else { return };
                in_parts(ends, async |ends: &[&End]| {
                    let ends: Vec<Finish<'_>> = ends
                        .iter()
                        .map(|End { owner, ending, seq }| Finish {
                            owner: *owner,
                            ending,
                            output: ending.output().checked_columns(),
                            seq: *seq,
                        })
                        .collect();
                    grouped::finish(db, &ends).await
                })
                .await;
            }
            Group::Yields(yields) if is_over => refuse(yields),
            Group::Yields(yields) => {
                let Some((yields, _slot)) = alone(yields, slot) else { return };
                in_parts(yields, async |yields: &[&Release]| {
                    let yields: Vec<(Owner, &str)> = yields.iter().map(|y| (y.owner, y.reason)).collect();
                    grouped::give_back(db, &yields).await
                })
                .await;
            }
        }
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

/// Sends a group and answers its callers. If the server refuses the statement because of a row, the halves are tried, so
/// that one bad row does not cost the others their group. A write that is at fault is made by its caller alone.
async fn in_parts<T, A>(group: Vec<Waiting<T, A>>, send: impl AsyncFn(&[&T]) -> Result<Vec<A>>) {
    let mut parts = vec![group];
    while let Some(mut part) = parts.pop() {
        let sent = send(&part.iter().map(|waiting| &waiting.what).collect::<Vec<_>>()).await;
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
        let what = "the pod is past its deadline";
        let _ = waiting.reply.send(Err(Error::new(ErrorKind::Timeout, what).unconnected()));
    }
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
    pub(crate) async fn write_checkpoint(&self, checkpoint: &Arc<Checkpoint>, bytes: usize) -> Result<bool> {
        let Checkpoint { owner, number, value, seq } = &**checkpoint;
        let alone = async || runs::checkpoint(&self.db, *owner, *number, value, *seq).await;
        let first = async { alone().await.map(Some) };
        let written = self.writer.write(
            bytes,
            || Arc::clone(checkpoint),
            |lanes, waiting| lanes.checkpoints.push_back(waiting),
            first,
            settled,
        );
        match written.await? {
            Some(written) => Ok(written),
            None => alone().await,
        }
    }

    /// Ends a run, as [`runs::finish`]. The output was checked.
    pub(crate) async fn write_end(&self, owner: Owner, ending: &Arc<Ending>, seq: Option<i64>) -> Result<bool> {
        let columns = ending.output().checked_columns();
        let bytes = columns.stdout.len() + columns.stderr.len() + columns.result.map_or(0, crate::output::about);
        let alone = async || runs::finish(&self.db, owner, ending, &columns, seq).await;
        let first = async { alone().await.map(Some) };
        let written = self.writer.write(
            bytes,
            || End { owner, ending: Arc::clone(ending), seq },
            |lanes, waiting| lanes.ends.push_back(waiting),
            first,
            settled,
        );
        match written.await? {
            Some(written) => Ok(written),
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
            None => alone().await,
        }
    }
}
