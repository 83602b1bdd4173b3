//! Inputs of a connection beside `DATABASE_URL`: libpq's environment variables, and passwords that are requested.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

/// The variables that libpq reads. They are captured once, so that a process uses the values from which its settings
/// were made.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process. A value that is not UTF-8 counts as not set.
    pub(crate) fn of_process() -> Self {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        let mut environment: Self = std::env::vars_os().filter_map(text).collect();
        // Without HOME, uses the home directory that the system has on record for the user, as libpq does.
        if environment.get("HOME").is_none()
            && let Some(home) = std::env::home_dir().and_then(|home| home.into_os_string().into_string().ok())
        {
            environment.0.insert("HOME".to_owned(), home);
        }
        environment
    }

    /// The value of a variable. Empty counts as not set.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        let is_of_libpq = |name: &str| name.starts_with("PG") || name == "HOME";
        Self(vars.into_iter().filter(|(name, _)| is_of_libpq(name)).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The login for which a password is requested. A cloud's identity service makes a token for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PasswordRequest {
    /// The host of the connection, or the directory of a unix socket.
    pub host: String,
    /// The host's port.
    pub port: u16,
    /// The role that logs in.
    pub user: String,
    /// The database.
    pub database: String,
}

type Answer = Result<SecretString, Box<dyn StdError + Send + Sync>>;

/// Asks the service for a password.
#[derive(Clone)]
pub(crate) struct PasswordSource(Arc<dyn Fn(PasswordRequest) -> BoxFuture<'static, Answer> + Send + Sync>);

impl PasswordSource {
    pub(crate) fn new<F, Fut, E>(ask: F) -> Self
    where
        F: Fn(PasswordRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        Self(Arc::new(move |request| {
            let asked = ask(request);
            async move { asked.await.map(SecretString::from).map_err(Into::into) }.boxed()
        }))
    }

    pub(crate) fn ask(&self, request: PasswordRequest) -> BoxFuture<'static, Answer> {
        (self.0)(request)
    }
}

impl fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSource")
    }
}
