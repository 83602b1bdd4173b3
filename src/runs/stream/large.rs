//! Large chunks that the readers of this pod share: one copy of the text, and one of its JSON, for all readers.
//!
//! Readers at different places are queried for at different times, so the same chunk is read from the table several
//! times. If a reader still holds that chunk, it is found here by its key, and the new reader gets the same copy.

use std::collections::HashMap;
#[cfg(feature = "http")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[cfg(feature = "http")]
use super::event::StreamEvent;
use crate::id::{Fence, RunId};
use crate::store::streams::{Chunk, Page};

/// Chunks of this many bytes or more are shared. For a smaller chunk, the search costs more than another copy.
const LARGE: usize = 4096;

/// A chunk's key: its run, generation, number and fence. The chunk's JSON has the last three. The text is compared as
/// well, because a failover can undo a chunk, and another may be stored in its place.
type Key = (RunId, i32, i64, Fence);

/// A large chunk. It keeps its text and its JSON in memory as long as somebody holds it.
#[derive(Debug)]
pub(crate) struct Large {
    key: Key,
    body: Arc<str>,
    /// The JSON of the chunk's event, or the error if it could not be made.
    #[cfg(feature = "http")]
    json: OnceLock<Result<Box<str>, String>>,
    /// The map that has this chunk. Drop removes it from there.
    among: Arc<LargeChunks>,
}

/// A page, and the shared form of each of its large chunks.
#[derive(Clone, Debug)]
pub(super) struct SharedPage {
    pub(super) page: Page,
    pub(super) large: Vec<Option<Arc<Large>>>,
}

/// The large chunks that somebody holds. The loop that queries for readers inserts; whoever drops the last reference of
/// a chunk removes it.
#[derive(Debug, Default)]
pub(crate) struct LargeChunks(Mutex<HashMap<Key, Weak<Large>>>);

impl LargeChunks {
    /// Replaces large chunks of `page` by copies that other readers already have.
    pub(super) fn share(self: &Arc<Self>, run_id: RunId, mut page: Page) -> SharedPage {
        let generation = page.facts.generation;
        let share = |chunk: &mut Chunk| {
            let key = (run_id, generation, chunk.seq, chunk.fence);
            (chunk.body.len() >= LARGE).then(|| self.share_one(key, chunk))
        };
        let large = page.chunks.iter_mut().map(share).collect();
        SharedPage { page, large }
    }

    fn share_one(self: &Arc<Self>, key: Key, chunk: &mut Chunk) -> Arc<Large> {
        let mut held = self.held();
        let there = held.get(&key).and_then(Weak::upgrade);
        let large = match &there {
            Some(large) if large.body == chunk.body => {
                chunk.body = large.body.clone();
                large.clone()
            }
            _ => {
                let large = Arc::new(Large {
                    key,
                    body: chunk.body.clone(),
                    #[cfg(feature = "http")]
                    json: OnceLock::new(),
                    among: self.clone(),
                });
                held.insert(key, Arc::downgrade(&large));
                large
            }
        };
        // The lock is released first. Dropping `there` may drop the last reference of a chunk, which takes the same
        // lock.
        drop(held);
        drop(there);
        large
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Key, Weak<Large>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "http")]
impl Large {
    /// Makes the JSON of the chunk's event, unless it exists.
    pub(crate) fn make_json(&self, event: &StreamEvent) -> Result<(), String> {
        let made = self.json.get_or_init(|| {
            let mut json = Vec::with_capacity(self.body.len() + self.body.len() / 8 + 128);
            serde_json::to_writer(&mut json, event).map_err(|e| e.to_string())?;
            String::from_utf8(json).map(String::into_boxed_str).map_err(|e| e.to_string())
        });
        made.as_ref().map(drop).map_err(String::clone)
    }

    /// The JSON. Empty if it was not made before.
    pub(crate) fn json(&self) -> &str {
        self.json.get().and_then(|made| made.as_deref().ok()).unwrap_or_default()
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut held = self.among.held();
        // Another chunk may have taken its place meanwhile.
        if held.get(&self.key).is_some_and(|large| large.strong_count() == 0) {
            held.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(body: &str) -> Chunk {
        Chunk { seq: 3, fence: Fence::from(7), body: body.into() }
    }

    #[test]
    fn the_same_chunk_is_held_once_and_forgotten_with_its_last_reader() {
        let chunks = Arc::new(LargeChunks::default());
        let key = (RunId::generate(), 1, 3, Fence::from(7));
        let text = "x".repeat(LARGE);
        let (mut first, mut again, mut other) = (chunk(&text), chunk(&text), chunk(&"y".repeat(LARGE)));
        let shared = (chunks.share_one(key, &mut first), chunks.share_one(key, &mut again));
        assert!(Arc::ptr_eq(&first.body, &again.body));
        // The same key with another text.
        let taken = chunks.share_one(key, &mut other);
        assert_eq!(other.body.as_bytes()[0], b'y');
        drop(shared);
        assert_eq!(chunks.held().len(), 1, "the one that took its place");
        drop(taken);
        assert!(chunks.held().is_empty());
    }
}
