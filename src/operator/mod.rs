//! A handle for people and tools: look at pods, runs and events, cancel or release a run, ask a pod to drain.
//!
//! An [`Operator`] needs no lock, no name and no place in the roster, and it disturbs no pod: it reads, and where it
//! writes it asks. It is what the `podlock` command is made of.
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

mod filter;
mod follow;
mod rows;

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
pub use crate::protocol::condition::Condition;
/// Every kind of event of this version.
pub use crate::protocol::event::EventKind;
pub use filter::{EventFilter, PodFilter, RunFilter};
pub use follow::{Follow, Notices};
pub use rows::{AttemptRow, EventRow, OwnerRow, PodDetail, PodRow, RunDetail, RunOutput, RunRow, SessionRow};

/// How many of a pod's incarnations and events [`Operator::pod`] shows.
const POD_HISTORY: i64 = 20;
/// How often a restart goes for a key whose holder ends meanwhile.
const RESTART_TRIES: usize = 5;
/// The server's `no_data_found`, which `studio_drain` raises for a name that is not in the roster.
const NO_DATA_FOUND: &str = "P0002";
/// What `studio_release` raises for a run that is not quarantined.
const NOT_IN_THAT_STATE: &str = "55000";
/// What the index on keys raises.
const UNIQUE_VIOLATION: &str = "23505";

/// What became of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Released {
    /// The run is running again; any pod with a handler and room takes it up.
    Now,
    /// It is not quarantined, but in this state.
    NotQuarantined {
        /// `running`, `succeeded`, `failed` or `cancelled`.
        state: String,
    },
    /// There is no such run.
    NotFound,
}

/// A handle for people and tools. Cheap to clone; its connections are a pool's, opened as needed.
#[derive(Clone)]
pub struct Operator {
    database: Database,
    /// Opens the connection that [`Operator::notices`] listens on.
    opener: Opener,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("schema", &self.database.schema().name()).finish_non_exhaustive()
    }
}

impl Pod {
    /// Looks at runs, pods and events through this pod's pool.
    #[must_use]
    pub fn operator(&self) -> Operator {
        let (database, opener) = self.connections();
        Operator::new(database, opener)
    }
}

impl Operator {
    /// A handle on the database of `config`, whose schema must be there: an operator does not migrate. Reads the
    /// server's answer to one statement, so that a wrong address or password shows here and not later.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`]; [`ErrorKind::PooledLock`] through a pooler in transaction or statement mode, on whose
    /// connections an operator's settings would outlive it; or the reason why it could not connect, as for
    /// [`Pod`](crate::Pod)'s start.
    ///
    /// # Cancel safety
    ///
    /// Safe: a connection that was being made is closed.
    pub async fn connect(config: &Config) -> Result<Self> {
        let opener = connections::opener(config, &config.validate()?, None)?;
        let operator = Self::new(connections::pool_of_operator(&opener)?, opener);
        // First, and on connections that are left as they were: the pool sets its own up for as long as they live.
        pooler::check(&operator.opener, Role::Operator, "nothing was changed").await?;
        queries::last_event(&operator.database).await?;
        Ok(operator)
    }

    pub(crate) fn new(database: Database, opener: Opener) -> Self {
        Self { database, opener }
    }

    /// The pods of the roster, by name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::SchemaMissing`] where podlock's tables are not there, else what the database said.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn pods(&self, filter: PodFilter) -> Result<Vec<PodRow>> {
        let rows = queries::pods(&self.database, None, filter.state.as_deref(), filter.alive, filter.limit).await?;
        rows.iter().map(PodRow::read).collect()
    }

    /// All about the pods that bear or bore this name; `None` if there never was one.
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
        let sessions = queries::sessions(&self.database, name, POD_HISTORY).await?;
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

    /// One incarnation: when it began, when and why it ended, and who buried it. `None` if it is not in the history: it
    /// never was, or was pruned.
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

    /// Runs, newest first.
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

    /// One run with its input, checkpoint, output and attempts, all of one moment; `None` if there is none.
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

    /// The run of this kind and key: the one that is running, else the newest that has ended; `None` if there is none.
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

    /// Cancels a run, whoever owns it. Its handler is told to stop; no write of it is accepted from here on.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`]. That there is no such run, or that it had ended, is not an error but an answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the run is cancelled or it is not. Calling it again does no harm.
    pub async fn cancel(&self, run_id: RunId) -> Result<Cancelled> {
        let cancelled = runs::cancel(&self.database, run_id).await;
        cancelled.map_err(|e| e.about_run(run_id).in_doubt("the run may be cancelled or not; cancelling again is safe"))
    }

    /// Starts a run with the kind, key and input of one that has ended, in whatever state, and returns the new one: it
    /// is owned by nobody, and any pod with a handler and room takes it up. The old one stays as it is, and its
    /// checkpoint is not taken along: the new run begins at its beginning.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidInput`] if the run has not ended; [`ErrorKind::KeyBusy`] naming the
    /// run that has its key now; else as [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, a run was started or it was not. Calling it again starts another, unless it has a key.
    pub async fn restart(&self, run_id: RunId) -> Result<RunId> {
        let (db, new) = (&self.database, RunId::generate());
        let in_doubt = format!("run {new} may have been started");
        let refuse = |kind, what: String, about| {
            let error = Error::new(kind, what).about_run(about).state("no run was started");
            error.help("see `podlock runs describe`, and start it again when it has ended")
        };
        // Who has the key may end between the two looks.
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

    /// Deletes what `keep` does not keep, in small transactions, as the pods do by themselves where their settings say
    /// so. What a foreign key or a trigger of the service's own keeps is passed over, and named in [`Pruned::kept`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a time below an hour; [`ErrorKind::Forbidden`] if the role may not prune; else
    /// as [`Operator::pods`]. What was deleted before stays deleted; the message says how much.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, some is deleted and some is not. Calling it again goes on.
    pub async fn prune(&self, keep: &Retention) -> Result<Pruned> {
        retention::all(&self.database, By { pod: None }, keep).await
    }

    /// How much is old enough for [`Operator::prune`] now, what a foreign key or a trigger keeps included.
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

    /// Gives a quarantined run another chance: it is running again, nobody owns it, and its crashes are forgotten.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyBusy`] naming the run that has its key meanwhile; else as [`Operator::pods`]. That there is no
    /// such run, or that it is not quarantined, is not an error but an answer.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the run is released or it is not. Calling it again does no harm.
    pub async fn release(&self, run_id: RunId) -> Result<Released> {
        let Err(error) = queries::release(&self.database, run_id.as_uuid()).await else { return Ok(Released::Now) };
        match error.sqlstate() {
            Some(NO_DATA_FOUND) => Ok(Released::NotFound),
            Some(NOT_IN_THAT_STATE) => {
                let standing = runs::status(&self.database, run_id).await?;
                Ok(standing.map_or(Released::NotFound, |now| Released::NotQuarantined { state: now.state }))
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

    /// Events, oldest first: those after [`EventFilter::after`], else the newest.
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

    /// Events as they come, from [`EventFilter::after`] on, or from now on if that is not set. [`EventFilter::limit`]
    /// bounds how many one [`Follow::next`] returns. Takes a connection of its own.
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

    /// Says when the pods have told each other of something, the moment that the server passes it on. It hastens a
    /// look, and a lost connection loses some; whoever needs every event takes [`Operator::follow`]. Takes a connection
    /// of its own.
    ///
    /// # Errors
    ///
    /// Whatever kept it from connecting, as of [`Pod`](crate::Pod)'s start.
    ///
    /// # Cancel safety
    ///
    /// Safe: a connection that was being made is closed.
    pub async fn notices(&self) -> Result<Notices> {
        Notices::open(&self.opener).await
    }

    /// Asks the pod of this name to stop cleanly, and returns the incarnation that was asked. It takes no more work,
    /// lets its runs finish or hands them over, and ends; this does not wait for that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if no pod of this name is in the roster; else as [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the pod was asked or it was not. Asking again does no harm.
    pub async fn drain(&self, name: &str) -> Result<Incarnation> {
        let row = queries::drain(&self.database, name).await.map_err(|e| {
            if e.sqlstate() != Some(NO_DATA_FOUND) {
                return e.in_doubt("the pod may have been asked or not; asking again is safe");
            }
            Error::new(ErrorKind::NotFound, format!("no pod named {name:?} is in the roster"))
                .state("nobody was asked to drain")
                .help("`podlock pods list` shows who is there")
        })?;
        rows::incarnation(row.as_ref())
    }

    /// Puts a pod out that runs and gets nowhere: ends its two sessions on the server, whereupon a peer buries it and
    /// its runs go on elsewhere. Returns the incarnation that was put out. Its process stays, and comes back as another
    /// incarnation once its application makes progress.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if no pod of that name is in the roster; [`ErrorKind::Forbidden`] if the role may not
    /// end the pod's sessions (it must be the pod's own, or one with `pg_signal_backend`), else what the database said.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the pod was put out or it was not. A second call puts out whoever bears the name then.
    pub async fn evict(&self, name: &str) -> Result<Incarnation> {
        let row = queries::evict(&self.database, name).await.map_err(|e| {
            if e.sqlstate() != Some(NO_DATA_FOUND) {
                return e.in_doubt("the pod may have been put out or not; `podlock events` shows which");
            }
            Error::new(ErrorKind::NotFound, format!("no pod named {name:?} is in the roster"))
                .state("nobody was put out")
                .help("`podlock pods list` shows who is there")
        })?;
        rows::incarnation(row.as_ref())
    }

    /// Drops this operator's schema with all that is in it: podlock's tables, and yours if you keep any there.
    /// `schema` must name it, so that nobody drops another by mistake.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if `schema` is another or is `public`, else what the database said.
    ///
    /// # Cancel safety
    ///
    /// Dropped halfway, the schema is gone or it is whole.
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
