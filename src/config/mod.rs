//! Every setting: its unit, its default, what it trades.
//!
//! A [`Config`] comes from code, from the environment ([`Config::from_env`]) or from any serde source. What is not set
//! follows from the one number that matters, [`Config::lease`]. [`Config::validate`] resolves it into [`Settings`] and
//! refuses a combination that would break an order that the protocol needs.

#[cfg(test)]
mod document;
mod settings;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::id::PodId;

pub use crate::pg::credentials::PasswordRequest;
pub(crate) use crate::pg::credentials::{Environment, PasswordSource};
pub use crate::pg::limits::Keepalives;
pub(crate) use settings::{KEEP_MAX, KEEP_MIN};
pub use settings::{Settings, WorstCase};
use text::Setting;

/// The server frees a burier's or watcher's transaction that fell silent after this time.
pub(crate) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(1);
/// The dedicated sessions of a pod: liveness, control, watch, and one that listens for the readers of streams.
pub(crate) const DEDICATED_SESSIONS: usize = 4;
/// How long a granted watcher waits for the witness lock in the same statement.
pub(crate) const WITNESS_WAIT: Duration = Duration::from_millis(25);
/// Below this a watch slice costs more than the push is worth, and push turns itself off.
pub(crate) const SHORTEST_WATCH_SLICE: Duration = Duration::from_millis(100);
/// The first delay of the reconnect back-off.
pub(crate) const RECONNECT_BACKOFF_MIN: Duration = Duration::from_millis(20);

/// What a pod does with its runs when it has been silent for `self_fence` (L7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnDetach {
    /// Cancel every run before the server can free the lock. The default, and right for runs with effects outside
    /// of the database.
    #[default]
    Cancel,
    /// Let runs go on computing; no write of theirs is accepted unless the lock and the row are still there on
    /// return. For services whose every effect is guarded by the fence: a database failover disturbs no run.
    Continue,
}

/// What a pod does about a peer that runs and gets nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnStall {
    /// Say so: an event `suspected`, a [`crate::PodEvent`], a line in the log. The default.
    #[default]
    Report,
    /// Say so and put it out: its sessions are ended, it is buried, and its runs go on elsewhere. For services whose
    /// runs are safe under the fence, and whose progress sources are true.
    Evict,
}

/// The settings of a pod. All durations that are `None` follow from [`Config::lease`]. The lease is at most 1 h, what is kept
/// at most a thousand years, and any other duration at most 24 days, which is what the server's time-outs can hold.
///
/// ```
/// use std::time::Duration;
/// let config = podlock::Config::new("postgres://app@db/app").name("web-0").lease(Duration::from_secs(10));
/// assert_eq!(config.validate()?.self_fence, Duration::from_secs(8));
/// # Ok::<(), podlock::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where PostgreSQL is: a URL or a key-value string in libpq's words. What it leaves out comes from libpq's
    /// variables, service file and defaults; a word that cannot be honoured is an error that names it. Environment:
    /// `DATABASE_URL`. It may hold a password, so it never appears in `Debug`, logs or errors.
    pub database_url: SecretString,
    /// The pod's name. Environment: `POD_NAME`. Required where [`Config::env`] is `production`; elsewhere a random
    /// one is made and logged. It must be unique among living pods, and stable across restarts if a restarted pod is
    /// to take up its own runs at once.
    pub pod_name: Option<String>,
    /// The environment's name. Environment: `PODLOCK_ENV`. Only `production` means something.
    pub env: Option<String>,
    /// The schema of podlock's tables, at most 48 bytes. Default `public`. Pods of different schemas know nothing of
    /// each other.
    pub schema: String,
    /// The version of your service, shown to operators. Default: empty.
    pub version: String,
    /// Free labels, shown to operators. Environment: `PODLOCK_LABELS=a=b,c=d`.
    #[serde(deserialize_with = "text::pairs")]
    pub labels: BTreeMap<String, String>,
    /// The lease: how long the server lets a silent liveness session live. Default 10 s, at least 2 s, at most 1 h.
    /// Shorter finds frozen and cut-off pods sooner and tolerates shorter outages; a killed process is found within
    /// milliseconds whatever the lease is. Give all pods of a service the same. While it is changed, they wait for each other
    /// for as long as the longer one says: `docs/bounds.md`.
    #[serde(deserialize_with = "text::duration")]
    pub lease: Duration,
    /// How often the liveness session is pinged. Default lease / 5.
    #[serde(deserialize_with = "text::optional_duration")]
    pub ping_interval: Option<Duration>,
    /// How long a ping may go unanswered. Default lease / 5.
    #[serde(deserialize_with = "text::optional_duration")]
    pub ping_timeout: Option<Duration>,
    /// L7: a pod that was silent this long cancels its runs. Default 0.8 × lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub self_fence: Option<Duration>,
    /// L2: how long a pod must have held its lock without a break before it may bury, and how long it waits where
    /// many pods were lost at once. Default: lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub settle: Option<Duration>,
    /// How long a pod whose liveness session broke while its process lives may take to come back. Default: lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub reconnect_grace: Option<Duration>,
    /// The longest delay between two tries to reconnect, jittered. Default lease / 20.
    #[serde(deserialize_with = "text::optional_duration")]
    pub reconnect_backoff_max: Option<Duration>,
    /// How often held peers are probed. Default lease / 40.
    #[serde(deserialize_with = "text::optional_duration")]
    pub hold_probe_interval: Option<Duration>,
    /// How often a pod looks at all its peers and at all orphans, jittered by a tenth. Default min(5 s, lease / 3).
    #[serde(deserialize_with = "text::optional_duration")]
    pub sweep_interval: Option<Duration>,
    /// How long one slice of the watch waits. Default min(lease / 10, 0.9 × the server's `deadlock_timeout`,
    /// 0.9 × its `log_min_duration_statement`).
    #[serde(deserialize_with = "text::optional_duration")]
    pub watch_slice: Option<Duration>,
    /// How often the pod writes the next event index, if it made progress, and looks at the indices of its peers. A pod that
    /// beats less often than its peers look is given as many of its own intervals. Default: lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub beat_interval: Option<Duration>,
    /// After how many looks, a `beat_interval` apart, a peer is suspected whose beats have stopped. Default 3, at least 1.
    pub stall_cycles: u32,
    /// What is done about a suspected peer. Default: report.
    pub on_stall: OnStall,
    /// How long the application's runtime may go without running a task before the pod ends its sessions.
    /// Default: lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub stall_after: Option<Duration>,
    /// How long a starting pod waits behind a predecessor of its name that is still dying. Default 2 × lease.
    #[serde(deserialize_with = "text::optional_duration")]
    pub acquire_timeout: Option<Duration>,
    /// How long connecting to one host may take, handshake included. Default: the connection string's
    /// `connect_timeout`, else min(5 s, lease / 2).
    #[serde(deserialize_with = "text::optional_duration")]
    pub connect_timeout: Option<Duration>,
    /// How long a statement of ours may take, on the server and on our side. Default max(1.5 s, lease / 2).
    #[serde(deserialize_with = "text::optional_duration")]
    pub statement_timeout: Option<Duration>,
    /// How long orphans of a dead pod are left alone before this pod claims them. Default 0. For services that want
    /// a gap between the old and the new owner where a pod's sessions were ended under it (L7).
    #[serde(deserialize_with = "text::duration")]
    pub claim_delay: Duration,
    /// Whether deaths are pushed by a watch session. Default true; `false` saves one connection and finds deaths by
    /// the sweep alone.
    pub push: bool,
    /// Whether a starting pod brings the schema up to date. Default true.
    pub migrate: bool,
    /// What happens to runs at `self_fence`. Default: cancel.
    pub on_detach: OnDetach,
    /// The most runs that this pod runs at a time. Default 100.
    pub capacity: usize,
    /// The most runs of a kind, where that is fewer. Environment: `PODLOCK_CAPACITY_OF=a=2,b=10`. What a pod has no room
    /// for waits for another pod, or for room. Default: [`Config::capacity`] for each.
    #[serde(deserialize_with = "text::pairs")]
    pub capacity_of: BTreeMap<String, usize>,
    /// After how many owners in a row that crashed under a run, without a checkpoint in between, the run is quarantined
    /// instead of claimed. Lower keeps a run that brings its pods down from more of them; higher spares runs that make no
    /// progress for long on pods that are killed often. Keep it below the number of pods: the last pod that can take such a
    /// run gives it up after two. Default 3; 0: a run is never set aside, also not by the last pod. Give all pods of a service the same.
    pub max_crashes: u32,
    /// The most connections of the pool, opened as needed, beside the dedicated ones: three, and one more while readers are
    /// attached to streams. Default 4.
    pub pool_size: usize,
    /// For how long runs are kept that have succeeded or were cancelled, with their attempts. 0, the default: for ever.
    /// Else at least 1 h, by the server's clock, after which a pod deletes them in small batches. What a run put out is the
    /// service's own; say for how long it is needed.
    #[serde(deserialize_with = "text::duration")]
    pub keep_runs: Duration,
    /// The same of runs that have failed or were quarantined: operators want to see those for longer. Default 0: for ever.
    #[serde(deserialize_with = "text::duration")]
    pub keep_failed_runs: Duration,
    /// The same of the log of the pods' lives and of incarnations that have ended. Default 30 days. The log then begins with
    /// a snapshot of the roster; an incarnation that a running run names is kept.
    #[serde(deserialize_with = "text::duration")]
    pub keep_events: Duration,
    /// How often a pod looks for what need not be kept any more, jittered by a half. Default 10 min.
    #[serde(deserialize_with = "text::duration")]
    pub prune_interval: Duration,
    /// The most bytes of a run's result, or of its standard output, as they are stored. Default 16 MiB, at most 128 MiB.
    /// What is larger is refused as [`ErrorKind::TooLarge`], never cut.
    pub result_max_bytes: usize,
    /// The same of a run's standard error. Default 1 MiB.
    pub stderr_max_bytes: usize,
    /// The most bytes of a checkpoint, as JSON text. Default 16 MiB, at most 128 MiB. What is larger is refused as
    /// [`ErrorKind::TooLarge`]. Each checkpoint replaces the one before it, whole, and the next attempt reads it before it
    /// begins: larger ones cost the database and every takeover. Keep what is large elsewhere, and its place here.
    pub checkpoint_max_bytes: usize,
    /// The same of what a run is started with.
    pub input_max_bytes: usize,
    /// The newest version of the schema that the pod is to know: how tests make a binary of an older release.
    #[doc(hidden)]
    #[serde(skip)]
    pub schema_knows: Option<i32>,
    /// libpq's variables that came with the rest; `None`: those of the process.
    #[serde(skip)]
    pub(crate) environment: Option<Environment>,
    /// Where passwords are asked for.
    #[serde(skip)]
    pub(crate) password_source: Option<PasswordSource>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: SecretString::default(),
            pod_name: None,
            env: None,
            schema: "public".to_owned(),
            version: String::new(),
            labels: BTreeMap::new(),
            lease: Duration::from_secs(10),
            ping_interval: None,
            ping_timeout: None,
            self_fence: None,
            settle: None,
            reconnect_grace: None,
            reconnect_backoff_max: None,
            hold_probe_interval: None,
            sweep_interval: None,
            watch_slice: None,
            beat_interval: None,
            stall_cycles: 3,
            on_stall: OnStall::Report,
            stall_after: None,
            acquire_timeout: None,
            connect_timeout: None,
            statement_timeout: None,
            claim_delay: Duration::ZERO,
            push: true,
            migrate: true,
            on_detach: OnDetach::Cancel,
            capacity: 100,
            capacity_of: BTreeMap::new(),
            max_crashes: 3,
            pool_size: 4,
            keep_runs: Duration::ZERO,
            keep_failed_runs: Duration::ZERO,
            keep_events: Duration::from_secs(30 * 24 * 60 * 60),
            prune_interval: Duration::from_secs(10 * 60),
            result_max_bytes: 16 << 20,
            stderr_max_bytes: 1 << 20,
            checkpoint_max_bytes: 16 << 20,
            input_max_bytes: 16 << 20,
            schema_knows: None,
            environment: None,
            password_source: None,
        }
    }
}

impl Config {
    /// The defaults, on the database at `database_url`.
    #[must_use]
    pub fn new(database_url: impl Into<String>) -> Self {
        Self { database_url: SecretString::from(database_url.into()), ..Self::default() }
    }

    /// Reads `DATABASE_URL`, `POD_NAME` and `PODLOCK_<FIELD>` for every field of this type, and libpq's `PG*`.
    ///
    /// A `PODLOCK_` variable that is no setting is logged and passed over: Kubernetes makes such variables by itself
    /// for a service of that name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the variable whose value cannot be used.
    pub fn from_env() -> Result<Self> {
        let mut vars = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => vars.push((name, value)),
                Err(_) if is_ours(&name) => {
                    return Err(Error::new(ErrorKind::Config, format!("environment variable {name} is not UTF-8"))
                        .state("nothing was started")
                        .help("set it to text"));
                }
                Err(_) => {}
            }
        }
        Self::from_vars(vars)
    }

    /// [`Config::from_env`] on the given variables.
    ///
    /// # Errors
    ///
    /// As [`Config::from_env`].
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let vars: Vec<_> = vars.into_iter().collect();
        let environment = vars.iter().cloned().collect();
        let mut fields = BTreeMap::new();
        for (name, value) in vars {
            let field = match name.as_str() {
                "DATABASE_URL" => "database_url".to_owned(),
                "POD_NAME" => "pod_name".to_owned(),
                _ => match name.strip_prefix("PODLOCK_") {
                    Some(field) => field.to_ascii_lowercase(),
                    None => continue,
                },
            };
            // Two fields have names of their own, and those alone.
            let alias = matches!(name.as_str(), "PODLOCK_DATABASE_URL" | "PODLOCK_POD_NAME");
            if FIELDS.contains(&field.as_str()) && !alias {
                fields.insert(field, (name, value));
            } else if !is_known_other(&name) {
                tracing::warn!(target: "podlock", event = "unknown_setting", variable = %name, "this variable is no setting of podlock's; passed over");
            }
        }
        let mut config = Self { environment: Some(environment), ..Self::default() };
        for (field, (name, value)) in fields {
            config.set_text(&field, &value).map_err(|fault| {
                // No value of a secret gets here: it accepts any text.
                Error::new(ErrorKind::Config, format!("environment variable {name} cannot be used: {value:?}: {fault}"))
                    .help("durations are written 10s or 2500ms, switches true or false, labels a=b,c=d")
            })?;
        }
        Ok(config)
    }

    /// Sets [`Config::pod_name`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.pod_name = Some(name.into());
        self
    }

    /// Sets [`Config::schema`].
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Sets [`Config::lease`].
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets [`Config::capacity`].
    #[must_use]
    pub fn capacity(mut self, runs: usize) -> Self {
        self.capacity = runs;
        self
    }

    /// Adds one of [`Config::capacity_of`].
    #[must_use]
    pub fn capacity_of(mut self, kind: impl Into<String>, runs: usize) -> Self {
        self.capacity_of.insert(kind.into(), runs);
        self
    }

    /// Sets [`Config::version`].
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// Adds one of [`Config::labels`].
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Asks the service for the password whenever a connection is opened: for credentials that rotate, such as the
    /// tokens of a cloud's identity service. It wins over every password that is written down.
    ///
    /// Each connection asks anew, a reconnect too, so that no expired token is ever used. The question is part of
    /// connecting and of its time limit ([`Config::connect_timeout`]); it is asked on the runtime that the pod was
    /// started on. An error of it is [`ErrorKind::AuthFailed`]; a living pod asks again at its next try.
    ///
    /// ```
    /// # async fn token_for(user: &str) -> std::io::Result<String> { Ok(user.to_owned()) }
    /// let config = podlock::Config::new("postgres://app@db/app")
    ///     .password_from(|login| async move { token_for(&login.user).await });
    /// ```
    #[must_use]
    pub fn password_from<F, Fut, E>(mut self, ask: F) -> Self
    where
        F: Fn(PasswordRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.password_source = Some(PasswordSource::new(ask));
        self
    }

    /// Changes any field in place: `config.with(|c| c.push = false)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Resolves what was not set and checks the orders that the protocol needs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the two values that contradict each other.
    pub fn validate(&self) -> Result<Settings> {
        Settings::resolve(self)
    }

    /// The bound for each kind of death, and the outage that disturbs no run.
    ///
    /// # Errors
    ///
    /// As [`Config::validate`].
    pub fn worst_case(&self) -> Result<WorstCase> {
        Ok(self.validate()?.worst_case())
    }

    /// The pod's name: the given one, or a random one where that is allowed.
    pub(crate) fn resolve_name(&self) -> Result<PodId> {
        if let Some(name) = self.pod_name.as_deref().filter(|n| !n.is_empty()) {
            return PodId::new(name);
        }
        if self.env.as_deref().is_some_and(|e| e.trim().eq_ignore_ascii_case("production")) {
            return Err(Error::new(ErrorKind::Config, "POD_NAME is missing or empty, and PODLOCK_ENV is production")
                .state("the pod was not started")
                .help(
                    "set POD_NAME from the Kubernetes downward API (env: name: POD_NAME, valueFrom: fieldRef: \
                     fieldPath: metadata.name), or pass a name that is unique among your living pods",
                ));
        }
        let name = PodId::new(format!("pod-{:08x}", fastrand::u32(..)))?;
        tracing::info!(target: "podlock", pod = %name, "POD_NAME is not set: made a random name");
        Ok(name)
    }

    pub(crate) fn database_url(&self) -> &str {
        self.database_url.expose_secret()
    }
}

fn is_ours(name: &str) -> bool {
    matches!(name, "DATABASE_URL" | "POD_NAME") || name.starts_with("PODLOCK_")
}

/// Variables of the command, and those that Kubernetes makes for a service that is called podlock.
fn is_known_other(name: &str) -> bool {
    matches!(name, "PODLOCK_LOG" | "PODLOCK_PG_BIN" | "PODLOCK_POD" | "PODLOCK_INCARNATION")
        || name.contains("_SERVICE_")
        || name.contains("_PORT")
}

/// Makes the list of fields and the function that sets one of them, so that neither can miss one.
macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        const FIELDS: &[&str] = &[$(stringify!($field)),*];

        impl Config {
            /// Sets one of [`FIELDS`] from text.
            fn set_text(&mut self, field: &str, text: &str) -> Result<(), String> {
                match field {
                    $(stringify!($field) => self.$field = Setting::from_text(text)?,)*
                    _ => return Err("no setting has this name".to_owned()),
                }
                Ok(())
            }

            /// Fails to compile when a field is missing from the list.
            #[cfg(test)]
            fn every_field_is_listed(self) {
                let Self { $($field: _,)* schema_knows: _, environment: _, password_source: _ } = self;
            }
        }
    };
}
fields!(
    database_url,
    pod_name,
    env,
    schema,
    version,
    labels,
    lease,
    ping_interval,
    ping_timeout,
    self_fence,
    settle,
    reconnect_grace,
    reconnect_backoff_max,
    hold_probe_interval,
    sweep_interval,
    watch_slice,
    beat_interval,
    stall_cycles,
    on_stall,
    stall_after,
    acquire_timeout,
    connect_timeout,
    statement_timeout,
    claim_delay,
    push,
    migrate,
    on_detach,
    capacity,
    capacity_of,
    max_crashes,
    pool_size,
    keep_runs,
    keep_failed_runs,
    keep_events,
    prune_interval,
    result_max_bytes,
    stderr_max_bytes,
    checkpoint_max_bytes,
    input_max_bytes,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_field_can_come_from_the_environment() {
        Config::default().every_field_is_listed();
        let config = Config::from_vars(vars(&[
            ("DATABASE_URL", "postgres://u:secret@h/d"),
            ("POD_NAME", "web-0"),
            ("PODLOCK_LEASE", "2500ms"),
            ("PODLOCK_SWEEP_INTERVAL", "1s"),
            ("PODLOCK_PUSH", "false"),
            ("PODLOCK_CAPACITY", "7"),
            ("PODLOCK_CAPACITY_OF", "big=1, small=5"),
            ("PODLOCK_MAX_CRASHES", "5"),
            ("PODLOCK_ON_DETACH", "continue"),
            ("PODLOCK_LABELS", "zone=a, tier=web"),
            ("PODLOCK_SERVICE_HOST", "10.0.0.1"),
            ("UNRELATED", "x"),
        ]))
        .expect("accepted");
        assert_eq!(config.database_url(), "postgres://u:secret@h/d");
        assert_eq!(config.pod_name.as_deref(), Some("web-0"));
        assert_eq!(config.lease, Duration::from_millis(2500));
        assert_eq!(config.sweep_interval, Some(Duration::from_secs(1)));
        assert!(!config.push && config.migrate);
        assert_eq!((config.capacity, config.max_crashes), (7, 5));
        assert_eq!(config.capacity_of, BTreeMap::from([("big".to_owned(), 1), ("small".to_owned(), 5)]));
        assert_eq!(config.on_detach, OnDetach::Continue);
        assert_eq!(config.labels.len(), 2);
        assert_eq!(config.labels["tier"], "web");
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_its_variable() {
        for (name, value) in [
            ("PODLOCK_LEASE", "10"),
            ("PODLOCK_CAPACITY", "-1"),
            ("PODLOCK_PUSH", "maybe"),
            ("PODLOCK_LABELS", "novalue"),
            ("PODLOCK_CAPACITY_OF", "big=many"),
        ] {
            let error = Config::from_vars(vars(&[(name, value)])).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(name) && error.to_string().contains(value), "{error}");
        }
    }

    #[test]
    fn any_serde_source_will_do_and_an_unknown_field_is_refused() {
        let config: Config = serde_json::from_str(
            r#"{"database_url":"postgres://h/d","lease":"3s","labels":{"a":"b"},"capacity_of":{"big":1}}"#,
        )
        .expect("accepted");
        assert_eq!((config.lease, config.labels["a"].as_str()), (Duration::from_secs(3), "b"));
        assert_eq!(config.capacity_of["big"], 1);
        assert!(serde_json::from_str::<Config>(r#"{"leese":"3s"}"#).is_err());
    }

    #[test]
    fn the_password_is_not_in_debug() {
        let shown = format!("{:?}", Config::new("postgres://u:hunter2@h/d"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn pod_name_is_required_in_production_only() {
        for env in ["production", "Production", " production "] {
            for name in [None, Some("")] {
                let config = Config::default().with(|c| {
                    c.env = Some(env.to_owned());
                    c.pod_name = name.map(str::to_owned);
                });
                let error = config.resolve_name().expect_err("refused");
                assert!(error.to_string().contains("downward API"), "{error}");
            }
        }
        assert!(Config::default().resolve_name().expect("random").as_str().starts_with("pod-"));
        let named = Config::default().name("given").with(|c| c.env = Some("production".into()));
        assert_eq!(named.resolve_name().expect("given").as_str(), "given");
    }
}
