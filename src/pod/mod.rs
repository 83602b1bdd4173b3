//! A pod's life: boot, hold the lock, watch, sweep, stop.

mod admission;
mod alerts;
mod boot;
mod burial;
mod canary;
mod delays;
mod hints;
mod keeper;
pub(crate) mod local;
pub(crate) mod shared;
mod shutdown;
mod strangers;
mod sweeper;
mod until_stopped;
mod watcher;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{broadcast, oneshot};

use crate::config::{Config, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::history::samples::Samples;
use crate::history::{self, Counter, Gauge, ProcessExit, SampleCounts};
use crate::id::{Incarnation, PodId, RunId};
use crate::membership::Membership;
use crate::meters;
use crate::pg::pool::Database;
use crate::pg::session::Opener;
use crate::protocol::state::Cancelled;
use crate::runs::engine::{Engine, OnAttempt};
use crate::runs::handlers::Handlers;
use crate::runs::{self, Attached, HandlerError, NewRun, Outcome, Run, Started, StopReason, StreamPosition};
use crate::store::connections;
use crate::store::migrate::Policy;
use crate::store::{runs as statements, sessions};
use crate::workers::{self, Workers};
use shared::Shared;
use until_stopped::Signals;

pub use crate::membership::{Phase, PodEvent, PodStatus, ProgressSource};
pub use shutdown::ShutdownReport;
pub use until_stopped::{StopCause, StopSignal, Stopped};

/// A handle on a living pod. Cloning it is cheap.
///
/// When the last handle is dropped without [`Pod::shutdown`], the pod ends as if its process had been killed: its runs
/// are aborted, its sessions end, and a survivor buries it.
#[derive(Clone)]
pub struct Pod {
    shared: Arc<Shared>,
    handlers: Arc<Handlers>,
    opener: Opener,
    /// The signals for [`Pod::until_stopped`], if the builder was told to listen.
    signals: Option<Arc<Signals>>,
    /// Only handles hold it, so dropping the last one ends the pod.
    _guard: Arc<EndOnDrop>,
}

/// Builds a pod from its settings and its handlers.
#[must_use]
pub struct PodBuilder {
    config: Config,
    handlers: Handlers,
    workers: workers::Functions,
    former_exit: Option<ProcessExit>,
    alert_hook: Option<Arc<history::alerts::Hook>>,
    stop_on_signals: bool,
    report_backlog: Option<Duration>,
    on_attempt: Option<OnAttempt>,
}

impl PodBuilder {
    /// Runs the runs of `kind` with `handler`. A pod claims only kinds that it has a handler for.
    ///
    /// The handler runs as a task of the runtime that [`PodBuilder::start`] is called on. Its result ends the run:
    ///
    /// * `Ok(Outcome::Done(result))`: the run succeeded.
    /// * `Ok(Outcome::Yield)`: another pod takes over the run.
    /// * `Err` or a panic: the run failed. podlock does not retry a failed run. But an `Err` after the run was told to
    ///   stop because the pod drains, or to move, counts as a yield.
    ///
    /// Code that blocks belongs on `tokio::task::spawn_blocking`: a handler that never awaits can be neither cancelled
    /// nor aborted. [All that a handler may rely on](crate::handlers).
    pub fn handler<F, Fut>(mut self, kind: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Run) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Outcome, HandlerError>> + Send + 'static,
    {
        self.handlers.insert(kind.into(), Arc::new(handler));
        self
    }

    /// Probes workers whose health check names the function `name` with `probe`. An error, or a panic, is a failed
    /// probe. A future that takes longer than the check's time-out is dropped.
    pub fn worker_probe<F, Fut>(mut self, name: impl Into<String>, probe: F) -> Self
    where
        F: Fn(workers::ProbeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.workers.add_probe(name.into(), probe);
        self
    }

    /// Calls `hook` for each change of a worker that this pod shows: it came or went, its health or its liveness
    /// changed. The calls follow one another. The hook must not block: hand the work to a task. One that is too slow
    /// misses changes, and a panic is logged. [`Workers::watch`] gives the same changes as a channel.
    pub fn on_worker_change<F>(mut self, hook: F) -> Self
    where
        F: Fn(&workers::WorkerEvent) + Send + Sync + 'static,
    {
        self.workers.set_hook(hook);
        self
    }

    /// Gives the secrets of workers of other pods, by the worker's URL and the secret's name. Secrets are not
    /// published. So without this, a pod does not probe a worker of another pod whose check needs one
    /// (`worker_probe_imports`).
    pub fn worker_secrets<F>(mut self, secret: F) -> Self
    where
        F: Fn(&str, &str) -> Option<workers::Secret> + Send + Sync + 'static,
    {
        self.workers.set_secrets(secret);
        self
    }

    /// Says how the process before this one ended that had the same name, if the service knows it: its supervisor may
    /// have said so, in a file or a variable. The history of that process gets the exit code or signal, and a cause if
    /// the pod had recorded none itself. A clean stop, and an exit that is recorded already, stay as they are. Without
    /// this, the pod compares its cgroup with that of the former process, and records `out_of_memory` if the kernel has
    /// killed one of its processes meanwhile.
    pub fn former_exit(mut self, exit: ProcessExit) -> Self {
        self.former_exit = Some(exit);
        self
    }

    /// Listens for SIGTERM and SIGINT, for [`Pod::until_stopped`], from before the pod starts. So no signal ends the
    /// process as a crash would. A signal during the start undoes the start. From then on, these two signals do not end
    /// the process by themselves, so the service must call [`Pod::until_stopped`].
    pub fn stop_on_signals(mut self) -> Self {
        self.stop_on_signals = true;
        self
    }

    /// Calls `hook` before each attempt, with the run's [`traceparent`](Run::traceparent) and the attempt's span,
    /// `podlock::run`, which has not been entered yet. There a service gives the span its parent, so that what it
    /// exports bears the run's trace id on whichever pod: `docs/tracing.md` has an example for OpenTelemetry. The hook
    /// must not block. A panic of it is logged, and the attempt goes on. Runs without a traceparent, which older
    /// versions made, are passed over.
    pub fn on_attempt<F>(mut self, hook: F) -> Self
    where
        F: Fn(&str, &tracing::Span) + Send + Sync + 'static,
    {
        self.on_attempt = Some(Arc::new(hook));
        self
    }

    /// Sets the metrics of the backlog (`podlock_backlog_…`) about every so long, for autoscalers. By default a pod
    /// does not, because it costs a statement that reads all running runs. In a fleet of more than 16 pods, each pod
    /// reads more rarely, so that the fleet makes no more reads than 16 pods do. Less than a second counts as a second.
    /// Let one or two pods of a large fleet report, or read the view `studio_backlog` elsewhere: `docs/metrics.md`.
    pub fn report_backlog(mut self, every: Duration) -> Self {
        self.report_backlog = Some(every);
        self
    }

    /// Boots the pod: connects, brings the schema up to date, takes the lock, proves that the lock is real, registers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`], [`ErrorKind::Unreachable`], [`ErrorKind::AuthFailed`], [`ErrorKind::Timeout`],
    /// [`ErrorKind::Standby`], [`ErrorKind::PooledLock`], [`ErrorKind::NameTaken`] (with the holder's pid, address and
    /// age), [`ErrorKind::KeyCollision`], [`ErrorKind::SchemaMissing`], [`ErrorKind::SchemaIncompatible`],
    /// [`ErrorKind::Forbidden`], [`ErrorKind::TooManyConnections`], [`ErrorKind::Unsupported`]; and
    /// [`ErrorKind::Stopped`] at a signal, after [`PodBuilder::stop_on_signals`]. After any of them, nothing is
    /// registered and every connection is closed.
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
        meters::describe();
        let kinds = self.handlers.kinds();
        if let Some(kind) = settings.capacity_of.keys().find(|kind| !kinds.contains(kind)) {
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
        let (engine, from_burials) = Engine::new(Arc::clone(&member), db, kinds, self.on_attempt);
        let handlers = Arc::new(self.handlers);
        let workers = workers::Registry::new(Arc::clone(&member), engine.db.clone(), self.workers);
        let samples = samples_of(&member, &engine);
        let shared = Shared::new(Arc::clone(&member), Arc::clone(&engine), Arc::clone(&workers), Arc::clone(&samples));
        let guard = Arc::new(EndOnDrop(Arc::clone(&shared)));
        let (booted_tx, booted) = oneshot::channel();
        let identity = boot::Identity::of(&self.config);
        keeper::spawn(&shared, opener.clone(), identity, Policy::of(&self.config), booted_tx)?;
        booted.await.map_err(|_| {
            Error::new(ErrorKind::Stopped, "the keeper's thread ended during the boot")
                .state("its connections are closed; what it had registered, a survivor buries")
                .help("look for its panic on stderr")
        })??;
        // No run waits for the history: its parts together hold at most half of the pool.
        let history_db = engine.db.in_share();
        shared.spawn(runs::pulse::Pulse { member: Arc::clone(&member) });
        shared.spawn(runs::recover::Recovery::new(Arc::clone(&engine), Arc::clone(&handlers), from_burials));
        shared.spawn(runs::herald::Herald::new(Arc::clone(&engine)));
        runs::writer::Sending::all(&engine).for_each(|worker| shared.spawn(worker));
        shared.spawn(runs::moving::Moving::new(Arc::clone(&engine)));
        shared.spawn(runs::backlog::Backlog::new(Arc::clone(&engine), history_db.clone(), self.report_backlog));
        shared.spawn(runs::stream::flush::Flushing::new(Arc::clone(&engine)));
        shared.spawn(runs::stream::looking::Looking::new(Arc::clone(&engine)));
        shared.spawn(runs::stream::listening::Listening::new(Arc::clone(&engine), opener.clone()));
        shared.spawn(runs::failures::Telling::new(Arc::clone(&engine)));
        shared.spawn(workers::Publishing::new(Arc::clone(&workers)));
        shared.spawn(workers::Copying::new(Arc::clone(&workers)));
        shared.spawn(workers::Monitoring::new(Arc::clone(&workers)));
        shared.spawn(workers::Hooked::new(Arc::clone(&workers)));
        shared.spawn(workers::Prober::new(workers, member.settings.worker_probes_at_once));
        shared.spawn(shutdown::Drain { shared: Arc::clone(&shared) });
        shared.spawn(history::sessions::Repairing::new(Arc::clone(&member), history_db.clone()));
        shared.spawn(history::alerts::Hooked::new(Arc::clone(&member), self.alert_hook));
        shared.spawn(history::sessions::Former::new(Arc::clone(&member), history_db.clone(), self.former_exit));
        shared.spawn(history::roll_up::RollingUp::new(Arc::clone(&member), history_db.clone()));
        shared.spawn(history::retention::Pruning::new(member, history_db));
        shared.spawn(history::samples::Sampling::new(&samples));
        shared.spawn(history::samples::Lag::new(&samples));
        shared.spawn(history::samples::Writing::new(&samples));
        shared.spawn(history::samples::Days::new(&samples));
        Ok(Pod { shared, handlers, opener, signals, _guard: guard })
    }
}

/// The samples of a pod that these runs are of.
fn samples_of(member: &Arc<Membership>, engine: &Arc<Engine>) -> Arc<Samples> {
    let (registry, counting) = (Arc::clone(&engine.registry), Arc::clone(engine));
    let runs = history::samples::Runs {
        running: Box::new(move || registry.len()),
        begun: Box::new(move |under| counting.begun(under)),
    };
    Samples::new(Arc::clone(member), engine.db.in_share(), runs)
}

impl fmt::Debug for PodBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodBuilder").field("config", &self.config).field("kinds", &self.handlers.kinds()).finish()
    }
}

impl Pod {
    /// Begins to build a pod.
    pub fn builder(config: Config) -> PodBuilder {
        PodBuilder {
            config,
            handlers: Handlers::default(),
            workers: workers::Functions::default(),
            former_exit: None,
            alert_hook: None,
            stop_on_signals: false,
            report_backlog: None,
            on_attempt: None,
        }
    }

    /// The pod's name.
    #[must_use]
    pub fn pod_id(&self) -> &PodId {
        &self.shared.member.pod_id
    }

    /// The current incarnation of the pod.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.member.incarnation()
    }

    /// The current status of the pod. Touches no database.
    #[must_use]
    pub fn status(&self) -> PodStatus {
        self.shared.status()
    }

    /// Resolves when the phase or the incarnation may have changed since the call. Changes of the number of runs do not
    /// count.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. A change between two calls is missed: read [`Pod::status`] after making the future.
    pub fn status_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.member.status_changes()
    }

    /// The time since the last answered ping was sent. Once it reaches a lease, the server may free the pod's lock.
    /// Work that this pod does in its own name, beside its runs, must have stopped by then. Touches no database.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.shared.member.silent_for()
    }

    /// Resolves when `incarnation` is over for this pod: it was silent for `self_fence` (L7), was evicted or buried,
    /// has a new incarnation in its place, or has ended. A connection that is lost and back in time is none of these.
    ///
    /// Use it for work that a pod does in its own name, beside its runs. Runs are told to stop by podlock.
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

    /// What happens in the fleet from now on. Best effort: an event may be missing.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.shared.member.events.subscribe()
    }

    /// The registry of workers: what one pod registers, every pod sees. From the first call on, the pod keeps a copy of
    /// all workers in memory.
    #[must_use]
    pub fn workers(&self) -> Workers {
        Workers::of(&self.shared.workers)
    }

    /// Inserts a run that this pod owns, and begins it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`] naming the run that has the key, [`ErrorKind::NoHandler`], [`ErrorKind::AtCapacity`],
    /// [`ErrorKind::InvalidInput`], [`ErrorKind::Detached`], [`ErrorKind::Draining`], [`ErrorKind::Cordoned`],
    /// [`ErrorKind::Stopped`], or the database's. If the reply was lost, the error says that the run may have been
    /// started. If the run was started and has ended or moved to another pod meanwhile, the error is
    /// [`ErrorKind::Fenced`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background: the run may or may not be started. If it is started, it runs.
    pub async fn start(&self, new: NewRun) -> Result<Started> {
        let engine = Arc::clone(&self.shared.engine);
        let handlers = Arc::clone(&self.handlers);
        self.in_background(async move { runs::start(&engine, &handlers, new).await }).await
    }

    /// [`Pod::start`] for many runs, in statements of at most 500 runs or 1 MiB of input. Each run has a result of its
    /// own, in the order of `new`: one that is refused does not stop the others. Of two with the same key, one gets it.
    /// The runs begin in any order.
    ///
    /// # Errors
    ///
    /// The call itself does not fail. Each result has the errors of [`Pod::start`].
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start`], for each run.
    pub async fn start_many(&self, new: impl IntoIterator<Item = NewRun>) -> Vec<Result<Started>> {
        let starts = new.into_iter().map(|new| self.start(new)).collect::<Vec<_>>();
        join_all(starts).await
    }

    /// [`Pod::submit`] for many runs, in statements of at most 500 runs or 1 MiB of input. Each run has a result of its
    /// own, in the order of `new`: one that is refused does not stop the others. Of two with the same key, one gets it.
    ///
    /// # Errors
    ///
    /// The call itself does not fail. Each result has the errors of [`Pod::submit`].
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::submit`], for each run.
    pub async fn submit_many(&self, new: impl IntoIterator<Item = NewRun>) -> Vec<Result<RunId>> {
        let submits = new.into_iter().map(|new| self.submit(new)).collect::<Vec<_>>();
        join_all(submits).await
    }

    /// Inserts a run without an owner. Any pod with a handler and room claims it, even a pod that starts later.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`], [`ErrorKind::InvalidInput`], [`ErrorKind::Stopped`], or the database's. If the reply was
    /// lost, the error says that the run may have been started.
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start`].
    pub async fn submit(&self, new: NewRun) -> Result<RunId> {
        let engine = Arc::clone(&self.shared.engine);
        self.in_background(async move { runs::submit(&engine, &Arc::new(new)).await }).await
    }

    /// Inserts a run in the caller's transaction, on the caller's connection to the same database. The run exists if
    /// and only if the transaction commits. Then this pod begins it, or a survivor does if this pod has died.
    ///
    /// # Errors
    ///
    /// As [`Pod::start`]. After an error of the database the transaction is aborted. After the others it is unchanged.
    ///
    /// # Cancel safety
    ///
    /// After a dropped call, roll the transaction back.
    pub async fn start_in_txn(&self, txn: &tokio_postgres::Transaction<'_>, new: NewRun) -> Result<RunId> {
        runs::only(runs::insert_in_txn(&self.shared.engine, txn, &[new], true).await?)
    }

    /// [`Pod::start_in_txn`] for many runs, in few statements. Each has a result of its own, in the order of `new`.
    ///
    /// # Errors
    ///
    /// The database's: the transaction is aborted then. All other errors are in the results: such a run was not
    /// inserted, and the transaction can go on. Under REPEATABLE READ, a key of a run that the transaction cannot see
    /// is an error of the database.
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start_in_txn`].
    pub async fn start_many_in_txn(
        &self,
        txn: &tokio_postgres::Transaction<'_>,
        new: &[NewRun],
    ) -> Result<Vec<Result<RunId>>> {
        runs::insert_in_txn(&self.shared.engine, txn, new, true).await
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
        runs::only(runs::insert_in_txn(&self.shared.engine, txn, &[new], false).await?)
    }

    /// [`Pod::submit_in_txn`] for many runs, in few statements. Each has a result of its own, in the order of `new`.
    ///
    /// # Errors
    ///
    /// As [`Pod::start_many_in_txn`].
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::start_in_txn`].
    pub async fn submit_many_in_txn(
        &self,
        txn: &tokio_postgres::Transaction<'_>,
        new: &[NewRun],
    ) -> Result<Vec<Result<RunId>>> {
        runs::insert_in_txn(&self.shared.engine, txn, new, false).await
    }

    /// Cancels a run, whichever pod owns it. From the return on, no write of its owner is accepted. Its handler is told
    /// at once.
    ///
    /// # Errors
    ///
    /// The database's.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have cancelled the run. It is safe to call again.
    pub async fn cancel(&self, run_id: RunId) -> Result<Cancelled> {
        let outcome = statements::cancel(&self.shared.engine.db, run_id)
            .await
            .map_err(|e| e.about_run(run_id).in_doubt("the run may be cancelled or not; cancelling again is safe"))?;
        // At once, even if this pod has no control session at the moment and could not hear the notice.
        if outcome == Cancelled::Now {
            self.shared.engine.stop_run(run_id, None, StopReason::Cancelled);
        }
        Ok(outcome)
    }

    /// Attaches to a run's stream, whichever pod runs it: the chunks of its current generation from the first on, the
    /// chunks that are taken back when another pod takes over the run, and its end. While a reader is attached, the pod
    /// has a fourth connection to the database.
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

    /// [`Pod::attach`] for a reader that has seen the stream up to `position`, on this pod or another. The reader gets
    /// the chunks after that, and is told which of its chunks were taken back.
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

    /// [`Pod::attach`] to the run of this kind and key: to the running one, else to the newest one that has ended.
    /// [`Attached::run_id`] says which run it is. A run that is started with the key later has another stream.
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

    /// [`Pod::attach_after`] for a reader that can go to another pod. Returns an error as soon as this pod is cut off.
    #[cfg(feature = "http")]
    pub(crate) async fn attach_unless_cut_off(&self, run_id: RunId, position: StreamPosition) -> Result<Attached> {
        tokio::select! {
            biased;
            () = self.shared.member.cut_off() => Err(runs::cut_off(&self.shared.engine, run_id)),
            attached = self.attach_after(run_id, position) => attached,
        }
    }

    /// Registers a source of progress: a part of the application that moves on while this pod works. It is enough if
    /// one source moves, but a [`required`](ProgressSource::required) source must move itself.
    #[must_use]
    pub fn progress_source(&self) -> ProgressSource {
        self.shared.member.sources.register()
    }

    /// A number of the application's own that each sample of this pod has, such as the memory of a GPU. Calls with the
    /// same name set the same gauge.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the name is empty, longer than 64 bytes or contains a NUL, or if the pod has 64
    /// other gauges.
    pub fn gauge(&self, name: impl Into<String>) -> Result<Gauge> {
        self.shared.samples.gauge(name.into())
    }

    /// A count of the application's own that the session of this pod has in the history, such as requests served. Calls
    /// with the same name add to the same counter.
    ///
    /// # Errors
    ///
    /// As [`Pod::gauge`], for 64 counters.
    pub fn counter(&self, name: impl Into<String>) -> Result<Counter> {
        self.shared.samples.counter(name.into())
    }

    /// Sets the JSON that each sample of this pod has from now on (`details`). `None`: none. It is stored with every
    /// sample, so keep it small.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] if it has more than 8 KB as text. [`ErrorKind::InvalidInput`] if it contains a NUL, or
    /// is nested deeper than 32. What was set before stays.
    pub fn set_details(&self, details: impl Into<Option<serde_json::Value>>) -> Result<()> {
        self.shared.samples.set_details(details.into())
    }

    /// How many samples this pod has taken of itself, and what became of them. Touches no database.
    #[must_use]
    pub fn samples(&self) -> SampleCounts {
        self.shared.samples.counts()
    }

    /// Resolves when this pod was asked to drain (`podlock drain`, `studio_drain`). From then on it takes no more work.
    /// Answer with [`Pod::shutdown`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn drain_requested(&self) {
        self.shared.member.drain_requested.cancelled().await;
    }

    /// Resolves when the pod has ended: after [`Pod::shutdown`], or for the reason that [`Pod::failure`] returns.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn closed(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Records in the history how the process ended for which this pod stands, if that is another process: a supervisor
    /// such as `podlock hold` calls it before it stops the pod. The cause is `out_of_memory`, `killed` or `exited` if
    /// the exit is a failure. A process that SIGKILL ended counts as killed for lack of memory if the kernel has killed
    /// one in this pod's cgroup since the pod registered.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`] if another transaction has locked the row of the history; or the database's error.
    /// Nothing was recorded then. Of a lost reply, the error says so; calling again is safe.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has recorded the exit or not. Calling again is safe.
    pub async fn note_exit(&self, exit: ProcessExit) -> Result<()> {
        let pod = self.pod_id();
        let cgroup = history::cgroup::read().map(|cgroup| serde_json::json!(cgroup));
        if sessions::note_exit(&self.shared.engine.db, self.incarnation(), exit.exit, cgroup).await? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, format!("pod {pod}: the row of its session is locked, or was deleted"))
            .state("the exit was not recorded")
            .help("try again"))
    }

    /// Why the pod ended by itself. `None`: it did not.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure()
    }

    /// Stops the pod cleanly. It marks the row `draining`, takes no more work and tells the runs to stop. It waits
    /// until they have ended or `deadline` has passed, aborts and joins the rest, and only then ends the sessions. The
    /// row and the owner columns stay: a survivor buries the pod and takes over the unfinished runs (L4).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stuck`] if an aborted handler does not end because it never awaits. The pod then keeps its lock, so
    /// that no other pod resumes the run at the same time. End the process.
    ///
    /// # Cancel safety
    ///
    /// A dropped call that held the last handle ends the pod at once, as dropping the handle does.
    pub async fn shutdown(self, deadline: Duration) -> Result<ShutdownReport> {
        shutdown::shutdown(&self.shared, deadline).await
    }

    /// The pool and the opener, for the operator of this pod.
    pub(crate) fn connections(&self) -> (Database, Opener) {
        (self.shared.engine.db.clone(), self.opener.clone())
    }

    async fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        // Boxed, because a spawn copies its future from function to function.
        let work = Box::pin(work);
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

/// Ends the pod when its last handle is dropped.
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
