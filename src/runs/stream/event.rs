//! What a reader of a stream gets.

use std::sync::Arc;

use serde::Serialize;

use crate::id::Fence;

/// An event for a reader of a run's stream. Chunks and resets come in order, and the end comes last.
///
/// As JSON an event is an object with the fields that are named here, and with `event`, its [name](StreamEvent::name).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StreamEvent {
    /// The next chunk. It is stored, and this reader gets it once.
    Chunk {
        /// The generation of the stream to which the chunk belongs. The first is 1.
        generation: i32,
        /// The chunk's number in its generation. The first is 0, and no number is left out.
        seq: u64,
        /// The fence of the attempt that wrote it.
        fence: Fence,
        /// The chunk's text.
        body: Arc<str>,
    },
    /// Chunks that this reader has were taken back: forget those from `from_seq` on. If `generation` is a new one,
    /// forget all.
    Reset {
        /// The generation in which the stream continues.
        generation: i32,
        /// The number of the next chunk.
        from_seq: u64,
    },
    /// The run has ended, and this reader has all of its chunks.
    #[non_exhaustive]
    End {
        /// `succeeded`, `failed`, `cancelled` or `quarantined`.
        state: Arc<str>,
        /// Why a failed run failed. For a quarantined run, which owners died while they ran it. The first 1,000
        /// characters. As JSON the field is left out if there is no error.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Arc<str>>,
    },
}

impl StreamEvent {
    /// The event's name: `chunk`, `reset` or `end`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Chunk { .. } => "chunk",
            Self::Reset { .. } => "reset",
            Self::End { .. } => "end",
        }
    }
}
