//! Streams: the output of a run while it runs. `Stream` buffers the chunks that a handler appended until they are
//! stored. `write` has the handler's calls. The chunks of all streams wait in `queue`, and `flush` stores them.
//! `readers` has the attached readers. `listening` hears the notifications of new chunks, `entering` says which runs are
//! read here, and `looking` queries for chunks. `attach` is the handle of one reader.

pub(crate) mod attach;
mod entering;
pub(crate) mod event;
pub(crate) mod flush;
pub(crate) mod large;
pub(crate) mod listening;
pub(crate) mod looking;
pub(crate) mod queue;
pub(crate) mod readers;
mod write;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::registry::StopSignal;
use crate::error::{Error, ErrorKind, Result};
use crate::store::runs::Owner;
use crate::store::streams::Appended;

/// The largest chunk, in bytes. A chunk is one row, and every reader has it in memory. Larger ones would hold up the
/// other runs of the same statement.
pub const CHUNK_LIMIT: usize = 1024 * 1024;
/// How many bytes of a run may wait to be stored before [`Run::append`](super::Run::append) waits. It bounds the
/// memory of a run while the database is slow. A lower limit would make a fast handler wait more often.
const HELD_BYTES: usize = 512 * 1024;
/// The same limit in chunks, an average of 64 bytes each. A chunk costs more than its bytes, so that a run of tiny
/// chunks would otherwise take many times [`HELD_BYTES`].
const HELD_CHUNKS: usize = 8192;

/// A run's stream, as its attempt writes it.
pub(crate) struct Stream {
    owner: Owner,
    stop: Arc<StopSignal>,
    /// The handler's calls and the flusher read and write the state. The lock is never held across an await.
    state: Mutex<StreamState>,
    /// Wakes the handler's calls, which wait here. The flusher notifies when it has stored chunks or given them up.
    moved: Notify,
}

struct StreamState {
    going: Going,
    held: VecDeque<String>,
    held_bytes: usize,
    /// How many chunks are on their way to the server.
    sent: usize,
    /// The stream is in the flusher's queue, or its chunks are on their way.
    queued: bool,
    /// The number of the attempt's last numbered write.
    number: i64,
    /// The server refused to store chunks: the stream has a gap from here on.
    refused: Option<Error>,
}

/// Where the stream continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Going {
    /// The handler has not said yet whether the chunks of former attempts are kept.
    Unsaid,
    /// A call was dropped, and its chunk may or may not have been stored.
    Unknown,
    At(WritePlace),
}

impl Going {
    pub(crate) fn place(self) -> Option<WritePlace> {
        match self {
            Self::At(place) => Some(place),
            Self::Unsaid | Self::Unknown => None,
        }
    }
}

/// Where the next chunk of a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WritePlace {
    pub(crate) generation: i32,
    /// The number of the next chunk.
    pub(crate) next: i64,
}

impl StreamState {
    fn has_room(&self, bytes: usize) -> bool {
        self.held.is_empty() || (self.held.len() < HELD_CHUNKS && self.held_bytes + bytes <= HELD_BYTES)
    }
}

impl Stream {
    /// The stream of a first attempt is empty. In a later attempt the handler decides where its stream continues.
    pub(crate) fn new(owner: Owner, stop: Arc<StopSignal>, attempt: i32) -> Self {
        let going = if attempt <= 1 { Going::At(WritePlace { generation: 1, next: 0 }) } else { Going::Unsaid };
        let state = StreamState {
            going,
            held: VecDeque::new(),
            held_bytes: 0,
            sent: 0,
            queued: false,
            number: 0,
            refused: None,
        };
        Self { owner, stop, state: Mutex::new(state), moved: Notify::new() }
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn stop(&self) -> &StopSignal {
        &self.stop
    }

    pub(crate) fn going(&self) -> Going {
        self.state().going
    }

    /// Sets where the stream continues, as far as this attempt knows.
    pub(crate) fn set_going(&self, going: Going) {
        self.state().going = going;
    }

    /// The server has said where the stream continues. An earlier gap no longer matters.
    pub(crate) fn goes_on_at(&self, place: WritePlace) {
        let mut state = self.state();
        state.going = Going::At(place);
        state.refused = None;
    }

    /// The error that says why chunks are missing, if some are.
    pub(crate) fn refusal(&self) -> Result<()> {
        match &self.state().refused {
            Some(refused) => Err(refused.for_another()),
            None => Ok(()),
        }
    }

    /// Takes a chunk if there is room, and returns the chunk's number. Returns `None` if there is no room now. The
    /// second value is true if the stream must be put into the flusher's queue.
    pub(crate) fn push(&self, chunk: &mut Option<String>, number: i64) -> Option<(i64, bool)> {
        let mut state = self.state();
        let place = state.going.place()?;
        let bytes = chunk.as_ref().map_or(0, String::len);
        if state.refused.is_some() || !state.has_room(bytes) {
            return None;
        }
        state.held.push_back(chunk.take()?);
        state.held_bytes += bytes;
        state.number = number;
        state.going = Going::At(WritePlace { next: place.next + 1, ..place });
        let enqueue = !std::mem::replace(&mut state.queued, true);
        Some((place.next, enqueue))
    }

    /// Takes buffered chunks: at most this many chunks and bytes, but at least one chunk. The error is how many chunks
    /// were dropped. That happens for a run that is over and whose handler dropped its stream.
    pub(crate) fn take(&self, chunks: usize, bytes: usize) -> Result<Option<Appended>, usize> {
        let mut state = self.state();
        if state.sent > 0 {
            return Ok(None);
        }
        let held = i64::try_from(state.held.len()).unwrap_or(i64::MAX);
        let Some(place) = state.going.place().filter(|_| held > 0) else {
            state.queued = false;
            state.held_bytes = 0;
            return match std::mem::take(&mut state.held).len() {
                0 => Ok(None),
                dropped => Err(dropped),
            };
        };
        let mut taken = 0;
        let fits = |chunk: &&String| {
            taken += chunk.len();
            taken <= bytes
        };
        let count = state.held.iter().take(chunks).take_while(fits).count().max(1);
        let bodies: Vec<String> = state.held.drain(..count).collect();
        state.sent = count;
        state.held_bytes -= bodies.iter().map(String::len).sum::<usize>();
        let first_seq = place.next - held;
        let (owner, generation, number) = (self.owner, place.generation, state.number);
        Ok(Some(Appended { owner, generation, number, first_seq, bodies }))
    }

    /// The chunks that were taken are stored. Returns how many chunks are still buffered. If there are none, the
    /// stream leaves the queue.
    pub(crate) fn stored(&self) -> usize {
        let mut state = self.state();
        state.sent = 0;
        let left = state.held.len();
        state.queued = left > 0;
        drop(state);
        self.moved.notify_waiters();
        left
    }

    /// The chunks that were taken could not be stored now. Buffers them again.
    pub(crate) fn put_back(&self, chunks: Appended) {
        let mut state = self.state();
        state.sent = 0;
        for chunk in chunks.bodies.into_iter().rev() {
            state.held_bytes += chunk.len();
            state.held.push_front(chunk);
        }
    }

    /// Buffers the last of the taken chunks again. The others are still on their way.
    pub(crate) fn take_back(&self, bodies: Vec<String>) {
        let mut state = self.state();
        state.sent = state.sent.saturating_sub(bodies.len());
        for chunk in bodies.into_iter().rev() {
            state.held_bytes += chunk.len();
            state.held.push_front(chunk);
        }
    }

    /// The run is no longer this attempt's: sends no more chunks. Returns how many were buffered.
    pub(crate) fn give_up(&self) -> usize {
        self.empty(None)
    }

    /// The server refused a chunk. Returns how many chunks were buffered after it.
    pub(crate) fn refuse(&self, error: Error) -> usize {
        let run_id = self.owner.run_id;
        let error = error
            .during(&format!("run {run_id}: its stream has a gap"))
            .about_run(run_id)
            .state("the chunks before it are stored, nothing after it is; the run goes on")
            .help("restart the stream, or go on from a chunk that is stored");
        self.empty(Some(error))
    }

    fn empty(&self, refused: Option<Error>) -> usize {
        let mut state = self.state();
        let held = std::mem::take(&mut state.held).len();
        (state.held_bytes, state.sent, state.queued) = (0, 0, false);
        state.refused = refused;
        drop(state);
        self.moved.notify_waiters();
        held
    }

    /// Resolves when `is_done` is true, or the run is over. It checks again whenever chunks were stored or given up.
    async fn until(&self, is_done: impl Fn(&StreamState) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // The wait is enabled before the check, so that no change after the check is missed.
            moved.as_mut().enable();
            if is_done(&self.state()) {
                return;
            }
            tokio::select! {
                biased;
                () = self.stop.over().cancelled() => return,
                () = moved => {}
            }
        }
    }

    /// Resolves when no chunk is buffered or on its way, or the run is over.
    pub(crate) async fn settled(&self) {
        self.until(|state| state.held.is_empty() && state.sent == 0).await;
    }

    /// Resolves when there is room for a chunk of `bytes` bytes, or the run is over, or its stream has a gap.
    pub(crate) async fn has_room(&self, bytes: usize) {
        self.until(|state| state.refused.is_some() || state.has_room(bytes)).await;
    }

    fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses text that cannot be a chunk.
pub(crate) fn check_chunk(chunk: &str) -> Result<()> {
    let why = if chunk.len() > CHUNK_LIMIT {
        format!("it has {} bytes, and {CHUNK_LIMIT} is the most", chunk.len())
    } else if chunk.contains('\0') {
        "it has a NUL character, which PostgreSQL does not store in text".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("a chunk cannot be appended: {why}"))
        .state("nothing was appended; the stream goes on after the chunks before it")
        .help("split it, or encode it"))
}
