//! The lanes: the writes that wait, by kind, and what a worker takes of them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Slot, State, Turn, Waiting, Writer};
use crate::id::{Fence, Incarnation, RunId};
use crate::runs::NewRun;
use crate::store::grouped::{Checkpoint, StartAnswer, WriteAnswer};
use crate::store::runs::{Ending, Insert, Owner};

/// The most writes of one statement: 500. A larger statement takes longer than others should wait. Smaller ones need more
/// commits.
const GROUP_MOST: usize = 500;
/// The most bytes of one statement: 1 MiB. A write that is larger goes alone.
const GROUP_BYTES: usize = 1 << 20;

/// A run to start. Its owner is `None` for a run that nobody owns.
#[derive(Clone, Debug)]
pub(crate) struct NewStart {
    pub(crate) run_id: RunId,
    pub(crate) owner: Option<Incarnation>,
    pub(crate) new: Arc<NewRun>,
    /// The trace that the run belongs to.
    pub(crate) trace: String,
    /// The highest fence that this process was ever given.
    pub(crate) floor: Fence,
}

impl NewStart {
    pub(crate) fn insert(&self) -> Insert<'_> {
        let NewRun { kind, key, input, movable, traceparent: _ } = &*self.new;
        Insert {
            run_id: self.run_id,
            kind,
            key: key.as_deref(),
            input,
            movable: *movable,
            traceparent: &self.trace,
            floor: self.floor,
        }
    }
}

/// An end to write.
#[derive(Debug)]
pub(super) struct End {
    pub(super) owner: Owner,
    pub(super) ending: Arc<Ending>,
    pub(super) seq: Option<i64>,
}

/// A run to release, and how its attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) owner: Owner,
    pub(crate) reason: &'static str,
}

pub(super) type Lane<T, A> = VecDeque<Waiting<T, A>>;

/// The writes that wait. Runs with a key have lanes of their own, because an insert of a key may have to wait for another
/// transaction, and others must not wait with it.
#[derive(Default)]
pub(super) struct Lanes {
    last: u64,
    pub(super) starts: Lane<NewStart, StartAnswer>,
    pub(super) keyed_starts: Lane<NewStart, StartAnswer>,
    pub(super) submits: Lane<NewStart, StartAnswer>,
    pub(super) keyed_submits: Lane<NewStart, StartAnswer>,
    pub(super) checkpoints: Lane<Checkpoint, WriteAnswer>,
    pub(super) ends: Lane<End, WriteAnswer>,
    pub(super) yields: Lane<Release, WriteAnswer>,
}

/// The writes of one statement.
pub(super) enum Group {
    /// All of one owner, or all of none.
    Starts(Vec<Waiting<NewStart, StartAnswer>>),
    Checkpoints(Vec<Waiting<Checkpoint, WriteAnswer>>),
    Ends(Vec<Waiting<End, WriteAnswer>>),
    Yields(Vec<Waiting<Release, WriteAnswer>>),
}

fn head<T, A>(lane: &Lane<T, A>) -> Option<u64> {
    lane.front().map(|waiting| waiting.nth)
}

/// Takes the writes at the head of a lane. Those whose callers are gone are dropped.
fn take<T, A>(lane: &mut Lane<T, A>, goes_along: impl Fn(&T, &T) -> bool) -> Vec<Waiting<T, A>> {
    let (mut taken, mut bytes): (Vec<Waiting<T, A>>, usize) = (Vec::new(), 0);
    while let Some(next) = lane.front() {
        if next.reply.is_closed() {
            lane.pop_front();
            continue;
        }
        let fits = taken.first().is_none_or(|first| {
            taken.len() < GROUP_MOST && bytes + next.bytes <= GROUP_BYTES && goes_along(&first.what, &next.what)
        });
        if !fits {
            break;
        }
        bytes += next.bytes;
        taken.extend(lane.pop_front());
    }
    taken
}

impl Lanes {
    /// The place of the next write among all.
    pub(super) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn heads(&self) -> [Option<u64>; 7] {
        [
            head(&self.starts),
            head(&self.keyed_starts),
            head(&self.submits),
            head(&self.keyed_submits),
            head(&self.checkpoints),
            head(&self.ends),
            head(&self.yields),
        ]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads().iter().all(Option::is_none)
    }

    /// Takes a group from the lane that has waited longest.
    fn take(&mut self) -> Option<Group> {
        let heads = self.heads();
        let oldest = heads.iter().flatten().min()?;
        let one_owner = |a: &NewStart, b: &NewStart| a.owner == b.owner;
        Some(match heads.iter().position(|head| head.as_ref() == Some(oldest))? {
            0 => Group::Starts(take(&mut self.starts, one_owner)),
            1 => Group::Starts(take(&mut self.keyed_starts, one_owner)),
            2 => Group::Starts(take(&mut self.submits, one_owner)),
            3 => Group::Starts(take(&mut self.keyed_submits, one_owner)),
            4 => Group::Checkpoints(take(&mut self.checkpoints, |_, _| true)),
            5 => Group::Ends(take(&mut self.ends, |_, _| true)),
            _ => Group::Yields(take(&mut self.yields, |_, _| true)),
        })
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        match self {
            Self::Starts(starts) => starts.is_empty(),
            Self::Checkpoints(checkpoints) => checkpoints.is_empty(),
            Self::Ends(ends) => ends.is_empty(),
            Self::Yields(yields) => yields.is_empty(),
        }
    }
}

impl Writer {
    /// Takes a group and a slot for it. `None`: nothing waits, or no slot is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<(Group, Slot)> {
        let mut state = self.state();
        let State { lanes, under_way } = &mut *state;
        if *under_way >= super::SLOTS {
            return None;
        }
        let group = loop {
            let group = lanes.take()?;
            // All callers of the lane's head may be gone.
            if !group.is_empty() {
                break group;
            }
        };
        *under_way += 1;
        Some((group, Slot(Arc::clone(self))))
    }
}

/// Gives a write that is the only one of its group back to its caller, with the slot.
pub(super) fn alone<T, A>(mut group: Vec<Waiting<T, A>>, slot: Slot) -> Option<(Vec<Waiting<T, A>>, Slot)> {
    if group.len() > 1 {
        return Some((group, slot));
    }
    if let Some(only) = group.pop() {
        // If the caller is gone, the slot is dropped with the reply.
        let _ = only.reply.send(Ok(Turn::Alone(Some(slot))));
    }
    None
}
