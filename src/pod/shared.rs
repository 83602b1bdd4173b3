//! What the parts of a pod's life share: the handle on the application's side, and the thread of the pod's sessions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::background::part::{self, Part};
use crate::error::{Error, ErrorKind};
use crate::history::samples::Samples;
use crate::id::Incarnation;
use crate::membership::{Membership, PodStatus};
use crate::runs::StopReason;
use crate::runs::engine::Engine;
use crate::store::notices::Requests;
use crate::workers::Registry;

pub(crate) struct Shared {
    pub(crate) member: Arc<Membership>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) workers: Arc<Registry>,
    pub(crate) samples: Arc<Samples>,
    /// Fires when the thread of the pod's sessions has ended.
    pub(crate) ended: CancellationToken,
    /// Makes the next probe of the roster come now.
    pub(crate) probe_now: Notify,
    /// Our own row is gone although we hold our lock.
    pub(crate) row_gone: Notify,
    /// A stop that could not join its runs: the lock stays until the process ends.
    stuck: AtomicBool,
    failure: OnceLock<String>,
    /// The names of this pod's webhooks.
    #[cfg(feature = "http")]
    webhooks: Mutex<std::collections::BTreeSet<String>>,
    keeper: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Shared {
    pub(crate) fn new(
        member: Arc<Membership>,
        engine: Arc<Engine>,
        workers: Arc<Registry>,
        samples: Arc<Samples>,
    ) -> Arc<Self> {
        Arc::new(Self {
            member,
            engine,
            workers,
            samples,
            ended: CancellationToken::new(),
            probe_now: Notify::new(),
            row_gone: Notify::new(),
            stuck: AtomicBool::new(false),
            failure: OnceLock::new(),
            #[cfg(feature = "http")]
            webhooks: Mutex::default(),
            keeper: Mutex::new(None),
        })
    }

    pub(crate) fn status(&self) -> PodStatus {
        self.member.status(self.engine.registry.len())
    }

    /// Returns false if the pod has a webhook of this name.
    #[cfg(feature = "http")]
    pub(crate) fn add_webhook(&self, name: &str) -> bool {
        self.webhooks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned())
    }

    pub(crate) fn set_stuck(&self) {
        self.stuck.store(true, Ordering::Release);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// Runs a part of the pod in the background. If the part panics, the pod ends, because it cannot do its work
    /// without the part.
    pub(crate) fn spawn<P: Part>(self: &Arc<Self>, part: P) {
        let shared = Arc::clone(self);
        let panicked = move |part| {
            let what = format!("pod {}: {part} panicked", shared.member.pod_id);
            shared.fail(
                &Error::new(ErrorKind::Stopped, what)
                    .state("its runs were told to stop; survivors take them over")
                    .help("look for the panic on stderr, and report it"),
            );
        };
        part::spawn(part, &self.member.tracker, &self.member.runtime, self.member.root.clone(), panicked);
    }

    /// Does what operators ask of this pod, as its row says it. Returns true if that is new. A row of a former
    /// incarnation of this process asks for nothing.
    pub(crate) fn follow(&self, of: Incarnation, requests: Requests) -> bool {
        let member = &self.member;
        if of != member.incarnation() {
            return false;
        }
        let drains = requests.drain && !member.drain_requested.is_cancelled();
        if drains {
            member.drain_requested.cancel();
        }
        let changed = member.set_cordoned(requests.cordoned_by);
        match member.cordoned_by() {
            Some(by) if changed => {
                tracing::info!(
                    target: "podlock", event = "cordoned", pod = %member.pod_id, incarnation = %of, by = &*by,
                    "keeps its runs and takes no new ones"
                );
            }
            None if changed => {
                // Nobody notifies this pod of the orphans that wait.
                self.engine.recover_now.notify_one();
                tracing::info!(
                    target: "podlock", event = "uncordoned", pod = %member.pod_id, incarnation = %of,
                    "takes runs again"
                );
            }
            _ => {}
        }
        drains || changed
    }

    /// Ends the pod for a reason that it cannot repair.
    pub(crate) fn fail(&self, error: &Error) {
        tracing::error!(
            target: "podlock", event = "failed", pod = %self.member.pod_id, incarnation = %self.member.incarnation(),
            error = %error,
            "the pod ends"
        );
        // The first failure is the one that counts.
        let _ = self.failure.set(error.to_string());
        self.engine.stop_all_runs(StopReason::SelfFenced);
        self.member.root.cancel();
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    pub(crate) fn keeper(&self) -> MutexGuard<'_, Option<std::thread::JoinHandle<()>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
