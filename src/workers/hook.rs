//! Calls the service's hook for each change of a worker.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::event::WorkerEvent;
use super::targets::Hook;
use super::{Registry, Workers};
use crate::background::part::{Next, Part};

/// Calls the hook, one change after another, on the application's runtime.
pub(crate) struct Hooked {
    registry: Arc<Registry>,
    changes: Option<(Arc<Hook>, Receiver<WorkerEvent>)>,
    /// The change that comes next.
    next: Option<WorkerEvent>,
}

impl Hooked {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        let hook = registry.functions.hook.clone();
        // A service that has a hook uses the registry.
        let changes = hook.map(|hook| (hook, Workers::of(&registry).watch()));
        Self { registry, changes, next: None }
    }
}

impl Part for Hooked {
    const NAME: &'static str = "the hook of workers";

    fn first(&self) -> Next {
        if self.changes.is_some() { Next::Wait } else { Next::Never }
    }

    async fn woken(&mut self) {
        let Some((_, changes)) = &mut self.changes else { return std::future::pending().await };
        match changes.recv().await {
            Ok(event) => self.next = Some(event),
            Err(RecvError::Lagged(missed)) => tracing::warn!(
                target: "podlock", event = "hook_lagged", pod = %self.registry.member.pod_id, missed,
                "the hook of workers is too slow, and missed changes"
            ),
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    async fn work(&mut self) -> Next {
        if let (Some((hook, _)), Some(event)) = (&self.changes, self.next.take())
            && std::panic::catch_unwind(AssertUnwindSafe(|| hook(&event))).is_err()
        {
            tracing::error!(
                target: "podlock", event = "hook_panicked", pod = %self.registry.member.pod_id,
                "the hook of workers panicked; the next change calls it again"
            );
        }
        Next::Wait
    }
}
