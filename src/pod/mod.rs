//! A pod's life: boot, hold, watch, sweep, stop.

mod boot;
mod burial;
mod canary;
mod hints;
mod keeper;
pub(crate) mod local;
pub(crate) mod shared;
mod shutdown;
mod strangers;
mod sweeper;
mod until_stopped;
mod watcher;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};

use crate::config::{Config, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::history;
use crate::id::{Incarnation, PodId, RunId};
use crate::membership::Membership;
use crate::pg::pool::Database;
use crate::pg::session::Opener;
use crate::runs::engine::Engine;
use crate::runs::{self, Attached, Handler, HandlerError, NewRun, Outcome, Run, Started, StopReason, StreamPosition};
use crate::store::connections;
use crate::store::migrate::Policy;
use crate::store::runs::{self as statements, Cancelled};
use shared::Shared;
use until_stopped::Signals;

pub use crate::membership::{Phase, PodEvent, PodStatus, ProgressSource};
pub use shutdown::ShutdownReport;
pub use until_stopped::{StopCause, StopSignal, Stopped};

/// A living pod: a cheap handle on it.
///
/// When the last handle is dropped without [`Pod::shutdown`], the pod ends as if its process had been killed: its runs
/// are aborted, its sessions end, and a survivor buries it.
#[derive(Clone)]
pub struct Pod {
    shared: Arc<Shared>,
    opener: Opener,
    /// For [`Pod::until_stopped`], where the builder was told to listen.
    signals: Option<Arc<Signals>>,
    /// Held by handles alone, so that dropping the last one ends the pod.
    _guard: Arc<EndOnDrop>,
}

/// A pod to be: its settings and its handlers.
#[must_use]
pub struct PodBuilder {
    config: Config,
    handlers: HashMap<String, Arc<dyn Handler>>,
    stop_on_signals: bool,
}

impl PodBuilder {
    /// Runs the runs of `kind` with `handler`. A pod claims only kinds that it has a handler for.
    ///
    /// The handler runs as a task of the runtime that [`PodBuilder::start`] is called on. What it returns ends the run:
    /// `Ok(Outcome::Done(result))` as succeeded, `Ok(Outcome::Yield)` gives it to another pod, `Err` as failed, and so
    /// does a panic. An `Err` after the run was told to stop because the pod drains counts as a yield. A failed run is
    /// not tried again by podlock. Code that blocks belongs on `tokio::task::spawn_blocking`: a handler that never
    /// awaits can be neither cancelled nor aborted. [All that a handler may rely on](crate::handlers).
    pub fn handler<F, Fut>(mut self, kind: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Run) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, HandlerError>> + Send + 'static,
    {
        self.handlers.insert(kind.into(), Arc::new(handler));
        self
    }

    /// Listens for SIGTERM and SIGINT from before the pod begins to start, for [`Pod::until_stopped`]: no signal may end the
    /// process as a crash would. One that comes during the start undoes the start. From then on these two do not end the
    /// process by themselves, so a service that asks for this calls [`Pod::until_stopped`].
    pub fn stop_on_signals(mut self) -> Self {
        self.stop_on_signals = true;
        self
    }

    /// Boots the pod: connects, brings the schema up to date, takes the lock, proves that it is real, registers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], [`ErrorKind::Unreachable`], [`ErrorKind::AuthFailed`], [`ErrorKind::Timeout`],
    /// [`ErrorKind::Standby`], [`ErrorKind::PooledLock`], [`ErrorKind::NameTaken`] (with the holder's pid, address and
    /// age), [`ErrorKind::KeyCollision`], [`ErrorKind::SchemaMissing`], [`ErrorKind::SchemaIncompatible`],
    /// [`ErrorKind::Forbidden`], [`ErrorKind::TooManyConnections`], [`ErrorKind::Unsupported`]; and [`ErrorKind::Stopped`]
    /// at a signal, after [`PodBuilder::stop_on_signals`]. After any of them nothing is registered and every connection is
    /// closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the call undoes the boot.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(self) -> Result<Pod> {
        if !self.stop_on_signals {
            return self.boot(None).await;
        }
        let signals = Arc::new(Signals::listen()?);
        tokio::select! {
            biased;
            (signal, _) = signals.after(0) => Err(Error::new(
                ErrorKind::Stopped,
                format!("{signal} came while the pod was starting"),
            )
            .state("nothing is registered")
            .help("end the process, as the signal asks for")),
            pod = self.boot(Some(Arc::clone(&signals))) => pod,
        }
    }

    async fn boot(self, signals: Option<Arc<Signals>>) -> Result<Pod> {
        let settings = Arc::new(self.config.validate()?);
        if let Some(kind) = settings.capacity_of.keys().find(|kind| !self.handlers.contains_key(*kind)) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("capacity_of names kind {kind:?}, which has no handler"),
            )
            .state("the pod was not started")
            .help("correct the kind, or register a handler for it"));
        }
        let pod_id = self.config.resolve_name()?;
        let opener = connections::opener(&self.config, &settings, Some(&pod_id))?;
        let db = connections::pool_of_pod(&opener)?;
        let runtime = tokio::runtime::Handle::current();
        let member = Membership::new(pod_id, settings, runtime);
        let engine = Engine::new(Arc::clone(&member), db, self.handlers);
        let shared = Shared::new(Arc::clone(&member), Arc::clone(&engine));
        let guard = Arc::new(EndOnDrop(Arc::clone(&shared)));
        let (booted_tx, booted) = oneshot::channel();
        let identity = boot::Identity::of(&self.config);
        keeper::spawn(&shared, opener.clone(), identity, Policy::of(&self.config), booted_tx)?;
        booted.await.map_err(|_| {
            Error::new(ErrorKind::Stopped, "the keeper's thread ended during the boot")
                .state("its connections are closed; what it had registered, a survivor buries")
                .help("look for its panic on stderr")
        })??;
        shared.spawn("the pulse", runs::recover::pulse(Arc::clone(&engine)));
        shared.spawn("recovery", runs::recover::run(Arc::clone(&engine)));
        shared.spawn("the flusher of streams", runs::stream::flush::run(Arc::clone(&engine)));
        shared.spawn("the readers of streams", runs::stream::readers::run(Arc::clone(&engine), opener.clone()));
        shared.spawn("the failures", runs::failures::run(Arc::clone(&engine)));
        shared.spawn("the drain", shutdown::drain_on_request(Arc::clone(&shared)));
        shared.spawn("retention", history::retention::run(member, engine.db.clone()));
        Ok(Pod { shared, opener, signals, _guard: guard })
    }
}

impl fmt::Debug for PodBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodBuilder").field("config", &self.config).field("kinds", &self.handlers.keys()).finish()
    }
}

impl Pod {
    /// Begins to build a pod.
    pub fn builder(config: Config) -> PodBuilder {
        PodBuilder { config, handlers: HashMap::new(), stop_on_signals: false }
    }

    /// The pod's name.
    #[must_use]
    pub fn pod_id(&self) -> &PodId {
        &self.shared.member.pod_id
    }

    /// Its present registration.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.member.incarnation()
    }

    /// The pod as it stands. Touches no database.
    #[must_use]
    pub fn status(&self) -> PodStatus {
        self.shared.status()
    }

    /// Resolves when the phase or the incarnation may have changed since the call. The number of runs is not watched.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A change between two calls is missed: read [`Pod::status`] after making the future.
    pub fn status_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.member.status_changes()
    }

    /// How long ago the last ping that the server answered was sent. Once that is a lease, the server may free the pod's
    /// lock: what this pod does in its own name beside its runs must have stopped by then. Touches no database.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.shared.member.silent_for()
    }

    /// Resolves when `incarnation` is over for this pod: it was silent for `self_fence` (L7), was put out or buried, is
    /// registered anew, or has ended. A connection that is lost and back in time is none of these.
    ///
    /// For what a pod does in its own name beside its runs, which are told by themselves.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn over(&self, incarnation: Incarnation) {
        self.shared.member.over(incarnation).await;
    }

    /// The settings that the pod runs with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.shared.member.settings
    }

    /// What happens in the fleet from now on, best effort.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.shared.member.events.subscribe()
    }

    /// Starts a run that this pod owns, and begins it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`] naming the run that has the key, [`ErrorKind::NoHandler`], [`ErrorKind::AtCapacity`],
    /// [`ErrorKind::InvalidInput`], [`ErrorKind::Detached`], [`ErrorKind::Draining`], [`ErrorKind::Stopped`], or the
    /// database's. Where the reply was lost, the error says that the run may have been started; where it was started
    /// and has ended or moved on meanwhile, it is [`ErrorKind::Fenced`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call goes on in the background: the run may or may not be started, and if it is, it runs.
    pub async fn start(&self, new: NewRun) -> Result<Started> {
        let engine = Arc::clone(&self.shared.engine);
        self.in_background(async move { runs::start(&engine, new).await }).await
    }

    /// Starts a run that nobody owns: any pod with a handler and room takes it up, also one that is not there yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`], [`ErrorKind::InvalidInput`], or the database's.
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start`].
    pub async fn submit(&self, new: NewRun) -> Result<RunId> {
        let engine = Arc::clone(&self.shared.engine);
        self.in_background(async move { runs::submit(&engine, &new).await }).await
    }

    /// Starts a run in the caller's transaction, on the caller's connection to the same database: it is there if and
    /// only if the transaction commits, and then this pod takes it up, or a survivor if this pod has died.
    ///
    /// # Errors
    ///
    /// As [`Pod::start`]. After an error of the database the transaction is aborted; after the others it is as it was.
    ///
    /// # Cancel safety
    ///
    /// After a dropped call, roll the transaction back.
    pub async fn start_in_txn(&self, txn: &tokio_postgres::Transaction<'_>, new: NewRun) -> Result<RunId> {
        runs::insert_in_txn(&self.shared.engine, txn, &new, true).await
    }

    /// [`Pod::submit`] in the caller's transaction.
    ///
    /// # Errors
    ///
    /// As [`Pod::start_in_txn`].
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start_in_txn`].
    pub async fn submit_in_txn(&self, txn: &tokio_postgres::Transaction<'_>, new: NewRun) -> Result<RunId> {
        runs::insert_in_txn(&self.shared.engine, txn, &new, false).await
    }

    /// Cancels a run, whichever pod owns it. From the return on, no write of its owner is accepted; its handler is told
    /// at once.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have cancelled the run; calling again is safe.
    pub async fn cancel(&self, run_id: RunId) -> Result<Cancelled> {
        let outcome = statements::cancel(&self.shared.engine.db, run_id)
            .await
            .map_err(|e| e.about_run(run_id).in_doubt("the run may be cancelled or not; cancelling again is safe"))?;
        // At once, also where this pod has no control session at the moment to hear of it.
        if outcome == Cancelled::Now {
            self.shared.engine.stop_run(run_id, None, StopReason::Cancelled);
        }
        Ok(outcome)
    }

    /// Attaches to a run's stream, whichever pod it is on: the chunks of its current generation from the first on, what is
    /// taken back when another pod takes it over, and its end. While anybody is attached, the pod has a fourth connection
    /// to the database.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`], or the database's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn attach(&self, run_id: RunId) -> Result<Attached> {
        self.attach_after(run_id, StreamPosition::START).await
    }

    /// [`Pod::attach`] by a reader that has seen the stream up to `position`, on this pod or another: it is handed what
    /// comes after, and told what was taken back of what it has.
    ///
    /// # Errors
    ///
    /// As [`Pod::attach`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn attach_after(&self, run_id: RunId, position: StreamPosition) -> Result<Attached> {
        Attached::new(Arc::clone(&self.shared.engine), run_id, position).await
    }

    /// [`Pod::attach`] to the run of this kind and key: to the one that is running, else to the newest that has ended. Which
    /// one it was, [`Attached::run_id`] says; a run that is started with the key later is another stream.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no run of this kind and key, or the database's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn attach_key(&self, kind: &str, key: &str) -> Result<Attached> {
        match statements::latest(&self.shared.engine.db, kind, key).await? {
            Some(run_id) => self.attach(run_id).await,
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no run of kind {kind:?} and key {key:?}"))
                .state("nothing was attached")
                .help("start one, or correct the kind or the key")),
        }
    }

    /// [`Pod::attach_after`] for a reader that can go to another pod: refused as soon as this one is cut off.
    #[cfg(feature = "http")]
    pub(crate) async fn attach_unless_cut_off(&self, run_id: RunId, position: StreamPosition) -> Result<Attached> {
        tokio::select! {
            biased;
            () = self.shared.member.cut_off() => Err(runs::cut_off(&self.shared.engine, run_id)),
            attached = self.attach_after(run_id, position) => attached,
        }
    }

    /// Registers a source of progress: a part of the application that gets somewhere while this pod does. Any one that moves is
    /// enough; a [`required`](ProgressSource::required) one must move itself.
    #[must_use]
    pub fn progress_source(&self) -> ProgressSource {
        self.shared.member.sources.register()
    }

    /// Resolves when somebody asked this pod to drain (`podlock drain`, `studio_drain`). It takes no more work from
    /// then on; answer with [`Pod::shutdown`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn drain_requested(&self) {
        self.shared.member.drain_requested.cancelled().await;
    }

    /// Resolves when the pod has ended: after [`Pod::shutdown`], or because of what [`Pod::failure`] says.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Why the pod ended by itself; `None` if it did not.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure()
    }

    /// Stops cleanly: marks the row `draining`, takes no more work, tells the runs to stop, waits until they have
    /// ended or `deadline` has passed, aborts and joins what is left, and only then ends the sessions. The row and the
    /// owner columns stay: a survivor buries the pod and takes over what did not finish (L4).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stuck`] if an aborted handler does not end because it never awaits: the lock is then kept, so that
    /// nobody resumes its run beside it. End the process.
    ///
    /// # Cancel safety
    ///
    /// A dropped call that held the last handle ends the pod at once, as dropping the handle does.
    pub async fn shutdown(self, deadline: Duration) -> Result<ShutdownReport> {
        shutdown::shutdown(&self.shared, deadline).await
    }

    /// The pool and the opener, for the operator that this pod hands out.
    pub(crate) fn connections(&self) -> (Database, Opener) {
        (self.shared.engine.db.clone(), self.opener.clone())
    }

    async fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.shared.member.tracker.spawn_on(work, &self.shared.member.runtime).await.unwrap_or_else(|e| {
            Err(Error::new(
                ErrorKind::Stopped,
                format!("pod {}: the call was ended with its runtime: {e}", self.shared.member.pod_id),
            )
            .done_before()
            .state("the run may have been started all the same; if so, a survivor takes it up")
            .help("call from a runtime that outlives the pod"))
        })
    }
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// Ends a pod whose last handle is gone.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if !self.0.member.root.is_cancelled() && !self.0.is_stuck() {
            self.0.engine.stop_all_runs(StopReason::SelfFenced);
            self.0.engine.registry.abort_all();
            self.0.member.root.cancel();
        }
    }
}
