//! The handlers of a pod, by the kind of run that they execute.
//!
//! Architecture invariant: the engine does not have them. A handler gets a `Run`, and a `Run` writes through the
//! engine. So only what begins attempts has the handlers: a start and a claim.

use std::collections::HashMap;
use std::sync::Arc;

use super::Handler;

#[derive(Clone, Default)]
pub(crate) struct Handlers(HashMap<String, Arc<dyn Handler>>);

impl Handlers {
    pub(crate) fn insert(&mut self, kind: String, handler: Arc<dyn Handler>) {
        self.0.insert(kind, handler);
    }

    pub(crate) fn of(&self, kind: &str) -> Option<Arc<dyn Handler>> {
        self.0.get(kind).cloned()
    }

    /// The kinds, sorted.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.0.keys().cloned().collect();
        kinds.sort_unstable();
        kinds
    }
}
