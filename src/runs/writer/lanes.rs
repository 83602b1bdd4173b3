//! The lanes: the writes that wait, by kind, and which of them a worker takes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Taken, Waiting, Writer};
use crate::id::{Fence, Incarnation, RunId};
use crate::membership::clock;
use crate::protocol::slots::Use;
use crate::runs::NewRun;
use crate::store::grouped::Checkpoint;
use crate::store::runs::{Ending, Insert, Owner};

/// The most writes of one statement: 500. A larger statement takes longer than others should wait. Smaller ones need more
/// commits.
const GROUP_MOST: usize = 500;
/// The most bytes of one statement: 1 MiB. A write that is larger is a group of its own.
const GROUP_BYTES: usize = 1 << 20;

/// A run to start. Its owner is `None` for a run that nobody owns.
#[derive(Clone, Debug)]
pub(crate) struct NewStart {
    pub(crate) run_id: RunId,
    pub(crate) owner: Option<Incarnation>,
    pub(crate) new: Arc<NewRun>,
    /// The trace that the run belongs to.
    pub(crate) trace: String,
}

impl NewStart {
    /// `floor` is the highest fence that this process was ever given.
    pub(crate) fn insert(&self, floor: Fence) -> Insert<'_> {
        let NewRun { kind, key, input, movable, traceparent: _ } = &*self.new;
        Insert {
            run_id: self.run_id,
            kind,
            key: key.as_deref(),
            input,
            movable: *movable,
            traceparent: &self.trace,
            floor,
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

pub(super) type Starts = Lane<NewStart, Fence>;
pub(super) type Lane<T, A> = VecDeque<Waiting<T, A>>;

/// The writes that wait. Runs with a key have lanes of their own, because an insert of a key may have to wait for another
/// transaction, and others must not wait with it.
#[derive(Default)]
pub(super) struct Lanes {
    last: u64,
    pub(super) starts: Starts,
    pub(super) keyed_starts: Starts,
    pub(super) submits: Starts,
    pub(super) keyed_submits: Starts,
    pub(super) checkpoints: Lane<Checkpoint, ()>,
    pub(super) ends: Lane<End, ()>,
    pub(super) yields: Lane<Release, ()>,
}

/// The writes of one statement. No two are of one attempt: an attempt makes its next write when the call of the one
/// before has ended, and a write whose call has ended is not taken.
pub(super) enum Group {
    /// All of one owner, or all of none.
    Starts(Vec<Waiting<NewStart, Fence>>),
    Checkpoints(Vec<Waiting<Checkpoint, ()>>),
    Ends(Vec<Waiting<End, ()>>),
    Yields(Vec<Waiting<Release, ()>>),
}

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Starts,
    KeyedStarts,
    Submits,
    KeyedSubmits,
    Checkpoints,
    Ends,
    Yields,
}

impl Kind {
    fn used_for(self) -> Use {
        if matches!(self, Self::KeyedStarts | Self::KeyedSubmits) { Use::KeyedGroup } else { Use::Group }
    }
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

fn release<T, A>(lane: Lane<T, A>) {
    lane.into_iter().for_each(|waiting| waiting.answer(Ok(None)));
}

impl Lanes {
    /// The place of the next write among all.
    pub(super) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn heads(&self) -> [(Kind, Option<u64>); 7] {
        [
            (Kind::Starts, head(&self.starts)),
            (Kind::KeyedStarts, head(&self.keyed_starts)),
            (Kind::Submits, head(&self.submits)),
            (Kind::KeyedSubmits, head(&self.keyed_submits)),
            (Kind::Checkpoints, head(&self.checkpoints)),
            (Kind::Ends, head(&self.ends)),
            (Kind::Yields, head(&self.yields)),
        ]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads().iter().all(|(_, head)| head.is_none())
    }

    /// The lane whose head has waited longest. `keys`: whether a lane of runs with keys will do.
    fn oldest(&self, keys: bool) -> Option<Kind> {
        let heads = self.heads().into_iter().filter(|(kind, _)| keys || kind.used_for() != Use::KeyedGroup);
        heads.filter_map(|(kind, head)| Some((head?, kind))).min_by_key(|(nth, _)| *nth).map(|(_, kind)| kind)
    }

    pub(super) fn of_start(&mut self, owned: bool, keyed: bool) -> &mut Starts {
        match (owned, keyed) {
            (true, false) => &mut self.starts,
            (true, true) => &mut self.keyed_starts,
            (false, false) => &mut self.submits,
            (false, true) => &mut self.keyed_submits,
        }
    }

    fn take(&mut self, kind: Kind) -> Group {
        let one_owner = |a: &NewStart, b: &NewStart| a.owner == b.owner;
        match kind {
            Kind::Starts => Group::Starts(take(&mut self.starts, one_owner)),
            Kind::KeyedStarts => Group::Starts(take(&mut self.keyed_starts, one_owner)),
            Kind::Submits => Group::Starts(take(&mut self.submits, one_owner)),
            Kind::KeyedSubmits => Group::Starts(take(&mut self.keyed_submits, one_owner)),
            Kind::Checkpoints => Group::Checkpoints(take(&mut self.checkpoints, |_, _| true)),
            Kind::Ends => Group::Ends(take(&mut self.ends, |_, _| true)),
            Kind::Yields => Group::Yields(take(&mut self.yields, |_, _| true)),
        }
    }

    /// Lets the caller of each write make it alone.
    pub(super) fn release(self) {
        [self.starts, self.keyed_starts, self.submits, self.keyed_submits].into_iter().for_each(release);
        release(self.checkpoints);
        release(self.ends);
        release(self.yields);
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
    /// Takes a group, and a slot for it. `None`: nothing waits, or no slot is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<(Group, Taken)> {
        let mut state = self.state();
        let now = clock::now();
        if !state.slots.is_free(now) {
            return None;
        }
        let (group, kind) = loop {
            let kind = state.lanes.oldest(state.slots.takes_keys())?;
            let group = state.lanes.take(kind);
            // All callers of the lane's head may be gone.
            if !group.is_empty() {
                break (group, kind);
            }
        };
        let id = state.slots.take(kind.used_for(), now)?;
        // Another worker sends what is left.
        let is_wanted = !state.lanes.is_empty() && state.slots.is_free(now);
        drop(state);
        if is_wanted {
            self.wake.notify_one();
        }
        Some((group, Taken { writer: Arc::clone(self), id }))
    }
}
