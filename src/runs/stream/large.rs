//! Large chunks, which the readers of this pod share: one copy in memory, and one as JSON, however many read it.
//!
//! Readers at different places are looked for at different times, so a chunk is read from the table again and again.
//! What is still held by a reader is found here by its key and handed out again instead.

use std::collections::HashMap;
#[cfg(feature = "http")]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[cfg(feature = "http")]
use super::attach::StreamEvent;
use crate::id::{Fence, RunId};
use crate::store::streams::{Chunk, Page};

/// From how many bytes on a chunk is shared. Below that, finding it again costs more than another copy of it.
const LARGE: usize = 4096;

/// A chunk of a run: its generation, its number and its fence, all of which are in its JSON. The text is compared as
/// well: a failover can undo a chunk and have another stored in its place.
type Key = (RunId, i32, i64, Fence);

/// A large chunk. Whoever holds this holds its text and its JSON.
#[derive(Debug)]
pub(crate) struct Large {
    key: Key,
    body: Arc<str>,
    /// Its event, or why there is none.
    #[cfg(feature = "http")]
    json: OnceLock<Result<Box<str>, String>>,
    /// Where it is found.
    among: Arc<LargeChunks>,
}

/// A page, and for each of its chunks the shared form, if it is large.
#[derive(Clone, Debug)]
pub(super) struct SharedPage {
    pub(super) page: Page,
    pub(super) large: Vec<Option<Arc<Large>>>,
}

/// Those that somebody holds. Written by the loop that looks for the readers, and by whoever drops the last hold of
/// one.
#[derive(Debug, Default)]
pub(crate) struct LargeChunks(Mutex<HashMap<Key, Weak<Large>>>);

impl LargeChunks {
    /// Has the readers of `page` share its large chunks with the readers that have them already.
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
        // A last hold that is dropped takes the same lock: this may be the last of the one that was there.
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
    /// Makes its event's JSON, unless that was done.
    pub(crate) fn make_json(&self, event: &StreamEvent) -> Result<(), String> {
        let made = self.json.get_or_init(|| {
            let mut json = Vec::with_capacity(self.body.len() + self.body.len() / 8 + 128);
            serde_json::to_writer(&mut json, event).map_err(|e| e.to_string())?;
            String::from_utf8(json).map(String::into_boxed_str).map_err(|e| e.to_string())
        });
        made.as_ref().map(drop).map_err(String::clone)
    }

    /// The JSON; nothing before it was made.
    pub(crate) fn json(&self) -> &str {
        self.json.get().and_then(|made| made.as_deref().ok()).unwrap_or_default()
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut held = self.among.held();
        // Another may have taken its place meanwhile.
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
        // The same place, and another text.
        let taken = chunks.share_one(key, &mut other);
        assert_eq!(other.body.as_bytes()[0], b'y');
        drop(shared);
        assert_eq!(chunks.held().len(), 1, "the one that took its place");
        drop(taken);
        assert!(chunks.held().is_empty());
    }
}
