//! A handle for people and tools: list pods, runs, workers and events, cancel or release a run, cordon a pod or ask it
//! to drain.
//!
//! An [`Operator`] needs no lock, no name and no place in the roster, and it disturbs no pod. It reads, and a change is
//! a request to the pods. The `podlock` command uses it.
//!
//! ```no_run
//! # async fn example() -> podlock::Result<()> {
//! use podlock::operator::{Operator, PodFilter, RunFilter};
//!
//! let operator = Operator::connect(&podlock::Config::from_env()?).await?;
//! for pod in operator.pods(PodFilter::new().alive(false)).await? {
//!     println!("{} is in the roster, and holds no lock", pod.pod_id);
//! }
//! let orphans = operator.runs(RunFilter::new().orphans()).await?;
//! println!("{} runs wait for a pod", orphans.len());
//! # Ok(())
//! # }
//! ```

mod backlog;
mod filter;
mod follow;
mod history;
mod history_rows;
mod roll_up;
mod rows;
mod workers;

use crate::Cancelled;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::history::keep::By;
use crate::history::retention;
use crate::id::{Incarnation, RunId};
use crate::pg::pool::Database;
use crate::pg::pooler;
use crate::pg::session::Opener;
use crate::pod::Pod;
use crate::protocol::state::RunState;
use crate::store::role::Role;
use crate::store::{connections, queries, runs};

pub use crate::history::keep::Retention;
pub use crate::history::retention::{Kept, Pruned};
pub use crate::history::roll_up::RolledUp;
pub use crate::protocol::condition::Condition;
/// Every kind of event of this version.
pub use crate::protocol::event::EventKind;
pub use backlog::BacklogRow;
pub use filter::{EventFilter, PodFilter, RunFilter};
pub use follow::{Follow, Notices};
pub use history::{PAGE_MAX, ReliabilityFilter};
pub use history_rows::{ByShare, Features, LastEnd, Liveness, NetworkAvailability, ReliabilityRow, Sample};
pub use rows::{AttemptRow, EventRow, OwnerRow, PodDetail, PodRow, RunDetail, RunOutput, RunRow, SessionRow};
pub use workers::{WorkerFilter, WorkerRow};

/// How many of a pod's incarnations and events [`Operator::pod`] returns: what fits on a screen.
/// [`Operator::events`] returns all.
const POD_HISTORY: i64 = 20;
/// How often a restart tries to take a key. A try is repeated if the run that had the key ends meanwhile. That rarely
/// happens even once. The limit ends the loop where short runs of that key follow one another.
const RESTART_TRIES: usize = 5;
/// The server's `no_data_found`, which the functions for operators raise for a name that is not in the roster.
const NO_DATA_FOUND: &str = "P0002";
/// The SQLSTATE that `studio_release` raises for a run that is not quarantined.
const NOT_IN_THAT_STATE: &str = "55000";
/// The SQLSTATE that the index on keys raises.
const UNIQUE_VIOLATION: &str = "23505";

/// The result of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The run is running again. Any pod with a handler and room claims it.
    Now,
    /// The run is not quarantined. It is in this state.
    NotQuarantined {
        /// `running`, `succeeded`, `failed` or `cancelled`.
        state: String,
    },
    /// There is no such run.
    NotFound,
}

/// A handle for people and tools. It is cheap to clone. Its connections come from a pool, and are opened as needed.
#[derive(Clone)]
pub struct Operator {
    database: Database,
    /// Opens the connection on which [`Operator::notices`] listens.
    opener: Opener,
    /// The label that scores are made by, or an empty text. `None`: as the pods do.
    score_by: Option<String>,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("schema", &self.database.schema().name()).finish_non_exhaustive()
    }
}

impl Pod {
    /// Returns an operator that uses this pod's pool.
    #[must_use]
    pub fn operator(&self) -> Operator {
        let (database, opener) = self.connections();
        Operator::new(database, opener, Some(self.settings().score_by.clone()))
    }
}

impl Operator {
    /// Opens a handle on the database of `config`. Its schema must exist: an operator does not migrate. One statement
    /// is sent and answered, so a wrong address or password shows here and not later.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`]. [`ErrorKind::PooledLock`] through a pooler in transaction or statement mode: there an
    /// operator's settings would stay on connections of others. Or the reason why it could not connect, as for
    /// [`Pod`]'s start.
    ///
    /// # Cancel safety
    ///
    /// Safe: a connection that was being made is closed.
    pub async fn connect(config: &Config) -> Result<Self> {
        let settings = config.validate()?;
        let opener = connections::opener(config, &settings, None)?;
        let score_by = Some(settings.score_by).filter(|label| !label.is_empty());
        let operator = Self::new(connections::pool_of_operator(&opener)?, opener, score_by);
        // The check comes first, on connections without any setting. The pool sets up its own connections for as long
        // as they live.
        pooler::check(&operator.opener, Role::Operator, "nothing was changed").await?;
        queries::last_event(&operator.database).await?;
        Ok(operator)
    }

    pub(crate) fn new(database: Database, opener: Opener, score_by: Option<String>) -> Self {
        Self { database, opener, score_by }
    }

    /// Lists the pods of the roster, by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::SchemaMissing`] if podlock's tables do not exist. Or the database's error.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn pods(&self, filter: PodFilter) -> Result<Vec<PodRow>> {
        let rows = queries::pods(&self.database, None, filter.state.as_deref(), filter.alive, filter.limit).await?;
        rows.iter().map(PodRow::read).collect()
    }

    /// Returns all about the pods that have or had this name. `None` if there never was one.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn pod(&self, name: &str) -> Result<Option<PodDetail>> {
        let rows = queries::pods(&self.database, Some(name), None, None, None).await?;
        let present = rows.first().map(PodDetail::read).transpose()?;
        let sessions = queries::sessions(&self.database, name, POD_HISTORY, None).await?;
        let sessions = sessions.iter().map(SessionRow::read).collect::<Result<Vec<_>>>()?;
        let Some(mut detail) = present.or_else(|| sessions.first().map(PodDetail::gone)) else {
            return Ok(None);
        };
        if detail.state != "gone" {
            detail.owned =
                self.runs(RunFilter::new().state(RunState::Running.as_str()).incarnation(detail.incarnation)).await?;
        }
        detail.sessions = sessions;
        detail.events = self.events(EventFilter::new().pod(name).limit(POD_HISTORY)).await?;
        Ok(Some(detail))
    }

    /// Returns one incarnation: when it began, when and why it ended, and who buried it. `None` if it is not in the
    /// history: it never existed, or was pruned.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn incarnation(&self, incarnation: Incarnation) -> Result<Option<SessionRow>> {
        queries::session(&self.database, incarnation.as_uuid()).await?.as_ref().map(SessionRow::read).transpose()
    }

    /// Lists runs, newest first.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn runs(&self, filter: RunFilter) -> Result<Vec<RunRow>> {
        queries::runs(&self.database, &filter.wanted).await?.iter().map(RunRow::read).collect()
    }

    /// Returns one run with its input, checkpoint, output and attempts, all from one snapshot. `None` if there is no
    /// such run.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn run(&self, run_id: RunId) -> Result<Option<RunDetail>> {
        queries::run(&self.database, run_id.as_uuid()).await?.as_ref().map(RunDetail::read).transpose()
    }

    /// Returns the run of this kind and key: the running one, or else the newest that has ended. `None` if there is
    /// none.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn latest(&self, kind: &str, key: &str) -> Result<Option<RunDetail>> {
        match runs::latest(&self.database, kind, key).await? {
            Some(run_id) => self.run(run_id).await,
            None => Ok(None),
        }
    }

    /// Cancels a run, whoever owns it. Its handler is told to stop. From now on no write of the run is accepted.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`]. If there is no such run, or it had ended, that is an answer and not an error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has cancelled the run or not. Calling it again does no harm.
    pub async fn cancel(&self, run_id: RunId) -> Result<Cancelled> {
        let cancelled = runs::cancel(&self.database, run_id).await;
        cancelled.map_err(|e| e.about_run(run_id).in_doubt("the run may be cancelled or not; cancelling again is safe"))
    }

    /// Starts a run with the kind, key and input of one that has ended, in any state, and returns the new run. Nobody
    /// owns it, and any pod with a handler and room claims it. The old run does not change. Its checkpoint is not
    /// copied: the new run starts from the beginning.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]. [`ErrorKind::InvalidInput`] if the run has not ended. [`ErrorKind::KeyBusy`], which
    /// names the run that has its key now. Others as [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call has started a run or not. Calling it again starts another, unless it has a key.
    pub async fn restart(&self, run_id: RunId) -> Result<RunId> {
        let (db, new) = (&self.database, RunId::generate());
        let in_doubt = format!("run {new} may have been started");
        let refuse = |kind, what: String, about| {
            let error = Error::new(kind, what).about_run(about).state("no run was started");
            error.help("see `podlock runs describe`, and start it again when it has ended")
        };
        // The run that has the key may end between the two queries.
        for _ in 0..RESTART_TRIES {
            if runs::restart(db, run_id, new).await.map_err(|e| e.about_run(new).in_doubt(&in_doubt))? {
                return Ok(new);
            }
            match runs::status(db, run_id).await? {
                None => return Err(refuse(ErrorKind::NotFound, format!("there is no run {run_id}"), run_id)),
                Some(s) if RunState::Running.is(&s.state) => {
                    return Err(refuse(ErrorKind::InvalidInput, format!("run {run_id} has not ended"), run_id));
                }
                Some(_) => {}
            }
            if let Some(holder) = runs::holder_of_key(db, run_id).await? {
                let what = format!("run {holder} has the key of run {run_id}");
                return Err(refuse(ErrorKind::KeyBusy, what, holder));
            }
        }
        Err(Error::new(ErrorKind::KeyBusy, format!("runs with the key of run {run_id} come and go"))
            .state("no run was started")
            .help("start it again"))
    }

    /// Deletes the rows that `keep` does not keep, in small transactions. Pods do the same by themselves if their
    /// settings say so. A row that a foreign key or a trigger of the service's own keeps is passed over, and named in
    /// [`Pruned::kept`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a time below an hour. [`ErrorKind::Forbidden`] if the role may not prune. Others
    /// as [`Operator::pods`]. Rows that were deleted before stay deleted; the message says how many.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has deleted some rows and not others. Calling it again continues.
    pub async fn prune(&self, keep: &Retention) -> Result<Pruned> {
        retention::all(&self.database, By { pod: None }, keep).await
    }

    /// Counts the rows that are old enough for [`Operator::prune`] now, also those that a foreign key or a trigger
    /// keeps.
    ///
    /// # Errors
    ///
    /// As [`Operator::prune`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn prunable(&self, keep: &Retention) -> Result<Pruned> {
        retention::count(&self.database, keep).await
    }

    /// Releases a quarantined run: it is running again, nobody owns it, and its crashes are forgotten.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`], which names the run that has its key now. Others as [`Operator::pods`]. If there is no
    /// such run, or it is not quarantined, that is an answer and not an error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has released the run or not. Calling it again does no harm.
    pub async fn release(&self, run_id: RunId) -> Result<Released> {
        let Err(error) = queries::release(&self.database, run_id.as_uuid()).await else { return Ok(Released::Now) };
        match error.sqlstate() {
            Some(NO_DATA_FOUND) => Ok(Released::NotFound),
            Some(NOT_IN_THAT_STATE) => {
                let status = runs::status(&self.database, run_id).await?;
                Ok(status.map_or(Released::NotFound, |now| Released::NotQuarantined { state: now.state }))
            }
            Some(UNIQUE_VIOLATION) => Err(self.key_of_released_busy(run_id, error).await),
            _ => Err(error.about_run(run_id).in_doubt("the run may be released or not; releasing again is safe")),
        }
    }

    async fn key_of_released_busy(&self, run_id: RunId, refusal: Error) -> Error {
        let holder = match runs::holder_of_key(&self.database, run_id).await {
            Ok(holder) => holder,
            Err(e) => return e.about_run(run_id).state("the run is quarantined as before"),
        };
        let error = match holder {
            Some(holder) => {
                Error::new(ErrorKind::KeyBusy, format!("run {run_id} has the key of run {holder}, which is running"))
                    .about_run(holder)
                    .help("wait until that run has ended, then release this one")
            }
            None => Error::new(ErrorKind::KeyBusy, format!("run {run_id} had the key of a run that has ended by now"))
                .about_run(run_id)
                .help("release it again"),
        };
        error.state("the run is quarantined as before").with_sqlstate(UNIQUE_VIOLATION).caused_by(refusal)
    }

    /// Lists events, oldest first: those after [`EventFilter::after`], or else the newest.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn events(&self, filter: EventFilter) -> Result<Vec<EventRow>> {
        let EventFilter { after, pod, kind, limit } = filter;
        let (db, pod, kind) = (&self.database, pod.as_deref(), kind.as_deref());
        let rows = match (after, limit) {
            (Some(after), limit) => queries::events_after(db, after, pod, kind, limit).await?,
            (None, None) => queries::events_after(db, 0, pod, kind, None).await?,
            (None, Some(limit)) => queries::events_newest(db, pod, kind, limit).await?,
        };
        rows.iter().map(EventRow::read).collect()
    }

    /// Follows events as they are committed, from [`EventFilter::after`] on, or from now on if that is not set.
    /// [`EventFilter::limit`] bounds how many one [`Follow::next`] returns. It uses a connection of its own.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn follow(&self, filter: EventFilter) -> Result<Follow> {
        let seen = match filter.after {
            Some(after) => after,
            None => queries::last_event(&self.database).await?,
        };
        Ok(Follow::new(self.clone(), filter, seen))
    }

    /// Returns a handle that says when pods notify each other, as soon as the server delivers it. Use it to query
    /// sooner. A lost connection loses notifications; if you need every event, use [`Operator::follow`]. It uses a
    /// connection of its own.
    ///
    /// # Errors
    ///
    /// The reason why it could not connect, as for [`Pod`]'s start.
    ///
    /// # Cancel safety
    ///
    /// Safe: a connection that was being made is closed.
    pub async fn notices(&self) -> Result<Notices> {
        Notices::open(&self.opener).await
    }

    /// Asks the pod of this name to stop cleanly, and returns the incarnation that was asked. The pod takes no more
    /// work, lets its runs finish or hands them over, and ends. This call does not wait for that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if no pod of this name is in the roster. Others as [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call has asked the pod or not. Asking again does no harm.
    pub async fn drain(&self, name: &str) -> Result<Incarnation> {
        let row = queries::drain(&self.database, name).await;
        let in_doubt = "the pod may have been asked or not; asking again is safe";
        rows::incarnation(row.map_err(|e| about(name, e, "nobody was asked to drain", in_doubt))?.as_ref())
    }

    /// Cordons the pod of this name, and returns its incarnation. The pod keeps its runs, and starts and claims no
    /// others: from the return on the server refuses them. `Pod::start` on it fails with [`ErrorKind::Cordoned`]. A pod
    /// that is cordoned already stays so.
    ///
    /// The cordon lasts until [`Operator::uncordon`], or until the pod's process ends. It outlasts lost connections,
    /// and the next incarnation of the same process has it as well.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if no pod of this name is in the roster. Others as [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call has cordoned the pod or not. Calling again is safe.
    pub async fn cordon(&self, name: &str) -> Result<Incarnation> {
        let row = queries::cordon(&self.database, name).await;
        let in_doubt = "the pod may be cordoned or not; cordoning it again is safe";
        rows::incarnation(row.map_err(|e| about(name, e, "nobody was cordoned", in_doubt))?.as_ref())
    }

    /// Lifts the cordon of the pod of this name, and returns its incarnation. The pod starts and claims runs again. A
    /// pod that is not cordoned stays so.
    ///
    /// # Errors
    ///
    /// As [`Operator::cordon`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call has lifted the cordon or not. Calling again is safe.
    pub async fn uncordon(&self, name: &str) -> Result<Incarnation> {
        let row = queries::uncordon(&self.database, name).await;
        let in_doubt = "the cordon may be lifted or not; lifting it again is safe";
        rows::incarnation(row.map_err(|e| about(name, e, "no cordon was lifted", in_doubt))?.as_ref())
    }

    /// Evicts a pod that runs but makes no progress: ends its two sessions on the server. A peer then buries the pod,
    /// and its runs go on elsewhere. Returns the evicted incarnation. The pod's process stays, and comes back as
    /// another incarnation once its application makes progress.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if no pod of that name is in the roster. [`ErrorKind::Forbidden`] if the role may not
    /// end the pod's sessions: it must be the pod's own role, or one with `pg_signal_backend`. Or the database's error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has evicted the pod or not. A second call evicts the pod that has the name then.
    pub async fn evict(&self, name: &str) -> Result<Incarnation> {
        let row = queries::evict(&self.database, name).await;
        let in_doubt = "the pod may have been evicted or not; `podlock events` shows which";
        rows::incarnation(row.map_err(|e| about(name, e, "nobody was evicted", in_doubt))?.as_ref())
    }

    /// Drops this operator's schema with everything in it: podlock's tables, and yours if you keep any there. `schema`
    /// must name it, so that nobody drops another schema by mistake.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if `schema` is another schema or is `public`. Or the database's error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has dropped the whole schema or nothing.
    #[cfg(feature = "throwaway")]
    pub async fn drop_schema(&self, schema: &str) -> Result<()> {
        let mine = self.database.schema().name();
        if schema != mine || schema == "public" {
            return Err(Error::new(ErrorKind::InvalidInput, format!("schema {schema:?} is not to be dropped"))
                .state("nothing was dropped")
                .help(format!("this handle is of schema {mine:?}, and `public` is never dropped")));
        }
        queries::drop_schema(&self.database).await
    }
}

/// The error of a request to the pod `name`: there is no such pod, or it is in doubt whether the request was made.
fn about(name: &str, error: Error, state: &'static str, in_doubt: &'static str) -> Error {
    if error.sqlstate() != Some(NO_DATA_FOUND) {
        return error.in_doubt(in_doubt);
    }
    Error::new(ErrorKind::NotFound, format!("no pod named {name:?} is in the roster"))
        .state(state)
        .help("`podlock pods list` shows who is there")
}
