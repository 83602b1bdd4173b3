//! Every setting. `declared.rs` declares each once: its text, default, bound and environment variable.
//!
//! A [`Config`] comes from code, from the environment ([`Config::from_env`]) or from any serde source. What is not set
//! follows from the one number that matters, [`Config::lease`]. [`Config::validate`] resolves it into [`Settings`] and
//! refuses a combination that would break an order that the protocol needs.

mod declare;
mod declared;
#[cfg(test)]
mod document;
#[cfg(test)]
mod page;
mod settings;
mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};
use crate::id::PodId;

pub use crate::pg::credentials::PasswordRequest;
pub(crate) use crate::pg::credentials::{Environment, PasswordSource};
pub use crate::pg::limits::Keepalives;
use declared::DECLARED;
pub use declared::{Config, Settings};
pub use settings::WorstCase;
pub(crate) use settings::{KEEP_MAX, KEEP_MIN};

/// The server ends a transaction of a burier or watcher that was silent for this time: the process may be frozen, and
/// holds the dead pod's lock. Longer: a burial waits longer for a frozen burier. Shorter: a pod that is only slow loses
/// its session in the middle of a burial.
pub(crate) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(1);
/// The dedicated sessions of a pod: liveness, control, watch, and one that listens for the readers of streams.
pub(crate) const DEDICATED_SESSIONS: usize = 4;
/// How long a granted watcher waits for the witness lock in the same statement. The two backends of a killed pod end
/// within 1 ms of each other on a quiet server (measured). Shorter: the first probe after a death finds the witness
/// lock still held, and proves nothing. Longer: where only one connection broke, the watcher holds the liveness lock
/// for longer.
pub(crate) const WITNESS_WAIT: Duration = Duration::from_millis(25);
/// The shortest slice of a watch. Each slice is a round trip of each pod, so shorter ones cost the server more than a
/// burial a few seconds earlier is worth. Then push turns itself off.
pub(crate) const SHORTEST_WATCH_SLICE: Duration = Duration::from_millis(100);
/// The first delay of the reconnect back-off. A dropped connection is usually opened again at once. Shorter: a server
/// that is coming back is hit harder. Longer: a pod is without its lock for longer.
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

/// What a pod does about a peer that runs and makes no progress.
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

/// For each setting that an environment variable gave: the variable's name and its text.
type Variables = BTreeMap<&'static str, (String, String)>;

impl Config {
    /// The defaults, on the database at `database_url`.
    #[must_use]
    pub fn new(database_url: impl Into<String>) -> Self {
        Self { database_url: SecretString::from(database_url.into()), ..Self::default() }
    }

    /// Reads `DATABASE_URL`, `POD_NAME` and `PODLOCK_<FIELD>` for every other field of this type, and libpq's `PG*`.
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
        let mut read = Variables::new();
        for (variable, text) in vars {
            if let Some(name) = setting_of(&variable) {
                read.insert(name, (variable, text));
            } else if variable.starts_with("PODLOCK_") && !is_known_other(&variable) {
                tracing::warn!(
                    target: "podlock", event = "unknown_setting", %variable,
                    "this variable is no setting of podlock's; passed over"
                );
            }
        }
        let mut config = Self { environment: Some(environment), ..Self::default() };
        for (name, (variable, text)) in &read {
            config.set_text(name, text).map_err(|fault| {
                // No value of a secret gets here: it accepts any text.
                let what =
                    format!("environment variable {variable} (setting {name}) cannot be used: {text:?}: {fault}");
                Error::new(ErrorKind::Config, what)
                    .state("nothing was started")
                    .help("durations are written 10s or 2500ms, switches true or false, labels a=b,c=d")
            })?;
        }
        // It may hold a password, and no error asks for its text.
        read.remove("database_url");
        config.variables = read;
        Ok(config)
    }

    /// The environment variable that gave the setting `name` the value that it has now.
    fn variable_of(&self, name: &str) -> Option<&str> {
        let (variable, text) = self.variables.get(name)?;
        self.is_text(name, text).then_some(variable.as_str())
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
    /// [`ErrorKind::Config`] naming the setting that is out of its bound, or the two values that contradict each other,
    /// and the environment variables that set them.
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
            return PodId::new(name).map_err(|error| match self.variable_of("pod_name") {
                Some(variable) => error.during(&format!("reading environment variable {variable} (setting pod_name)")),
                None => error.during("reading the setting pod_name"),
            });
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

/// The setting that an environment variable sets. The part after `PODLOCK_` may be upper or lower case.
fn setting_of(variable: &str) -> Option<&'static str> {
    let of_ours = |name: &str| name.strip_prefix("PODLOCK_").map(str::to_ascii_uppercase);
    let is = |known: &str| known == variable || (of_ours(known).is_some() && of_ours(known) == of_ours(variable));
    DECLARED.iter().find(|setting| is(setting.variable)).map(|setting| setting.name)
}

fn is_ours(name: &str) -> bool {
    matches!(name, "DATABASE_URL" | "POD_NAME") || name.starts_with("PODLOCK_")
}

/// Variables of the command, and those that Kubernetes makes for a service that is called podlock.
fn is_known_other(name: &str) -> bool {
    let of_the_command = ["ADMIN_KEY", "ADMIN_KEY_FILE", "INCARNATION", "LOG", "PG_BIN", "POD", "WEBHOOK_SECRET"];
    name.strip_prefix("PODLOCK_").is_some_and(|name| of_the_command.contains(&name))
        || name.contains("_SERVICE_")
        || name.contains("_PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_field_can_come_from_the_environment() {
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
    fn an_error_in_a_file_names_the_setting() {
        for (file, name) in [
            (r#"{"lease":10}"#, "setting lease: "),
            (r#"{"settle":"soon"}"#, "setting settle: "),
            (r#"{"capacity":-1}"#, "setting capacity: "),
            (r#"{"push":"yes"}"#, "setting push: "),
            (r#"{"on_stall":"kill"}"#, "setting on_stall: "),
            (r#"{"capacity_of":"big=many"}"#, "setting capacity_of: "),
            (r#"{"database_url":5}"#, "setting database_url: "),
            (r#"{"push":true,"push":false}"#, "duplicate field `push`"),
            (r#"{"leese":"3s"}"#, "unknown field `leese`, expected one of `pod_name`"),
            (r#"["host=h"]"#, "expected a map of podlock's settings"),
            (r#"{"variables":{}}"#, "unknown field `variables`"),
            (r#"{"schema_knows":1}"#, "unknown field `schema_knows`"),
        ] {
            let error = serde_json::from_str::<Config>(file).expect_err(file).to_string();
            assert!(error.contains(name), "{file}: {error}");
            assert_eq!(error.matches(" at line 1 column ").count(), 1, "{file}: {error}");
        }
    }

    #[test]
    fn a_refused_setting_names_the_variable_that_set_it() {
        let refused = |set: &[(&str, &str)], change: fn(&mut Config)| {
            let config = Config::from_vars(vars(set)).expect("accepted").with(change);
            config.validate().expect_err("refused").to_string()
        };
        for (variable, text, words) in [
            ("PODLOCK_LEASE", "1s", "lease is 1s, but must be from 2 s to 1 h"),
            ("PODLOCK_capacity", "0", "capacity is 0, but must be from 1 to 1000000"),
            ("PODLOCK_CAPACITY_OF", "big=0", "capacity_of \"big\" is 0"),
            ("PODLOCK_SETTLE", "1s", "settle, 1s"),
            ("PODLOCK_SCHEMA", "pg_x", "schema \"pg_x\" cannot be used"),
        ] {
            let error = refused(&[(variable, text)], |_| ());
            assert!(error.contains(words), "{error}");
            assert!(error.contains(&format!("(set by environment variable {variable})")), "{error}");
        }
        let both = refused(&[("PODLOCK_PING_INTERVAL", "5s"), ("PODLOCK_SELF_FENCE", "6s")], |_| ());
        assert!(both.contains("PODLOCK_PING_INTERVAL and PODLOCK_SELF_FENCE"), "{both}");
        // What code has set since is not the variable's fault.
        let of_code = refused(&[("PODLOCK_CAPACITY", "7")], |c| c.capacity = 0);
        assert!(of_code.contains("capacity is 0") && !of_code.contains("PODLOCK_"), "{of_code}");
        let unnamed = refused(&[("PODLOCK_LEASE", "9s")], |c| c.capacity = 0);
        assert!(!unnamed.contains("PODLOCK_LEASE"), "{unnamed}");

        let name = Config::from_vars(vars(&[("POD_NAME", "a\nb")])).expect("accepted").resolve_name();
        let name = name.expect_err("refused").to_string();
        assert!(name.contains("POD_NAME") && name.contains("pod_name"), "{name}");
    }

    #[test]
    fn the_password_is_not_in_debug() {
        let of_variables = Config::from_vars(vars(&[("DATABASE_URL", "postgres://u:hunter2@h/d")])).expect("accepted");
        for config in [Config::new("postgres://u:hunter2@h/d"), of_variables] {
            let shown = format!("{config:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
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
