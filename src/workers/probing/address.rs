//! Where a probe goes: the URL of a worker, and what a check needs of it.

use url::{Host, Url};

use crate::error::{Error, ErrorKind, Result};
use crate::workers::check::{HealthCheck, Means};

/// Parses the URL of a worker.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] if it is no URL, has no host, or has a user or a password: the URL is stored, and every
/// pod reads it.
pub(crate) fn check_url(url: &str) -> Result<Url> {
    let parsed = Url::parse(url).map_err(|e| refused(url, &format!("is no URL: {e}")))?;
    match parsed.host() {
        None => return Err(refused(url, "has no host")),
        Some(Host::Domain("")) => return Err(refused(url, "has an empty host")),
        Some(_) => {}
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(refused(url, "has a user or a password, and would be stored with it")
            .help("leave it out, and use a secret of the worker"));
    }
    Ok(parsed)
}

/// Checks that `check` can be made of a worker at `url`, in this build of podlock. For the registration of a worker.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`]: the errors of [`check_url`] and [`HealthCheck::validate`], a TCP check without a port,
/// an HTTP check of a URL that is not HTTP, or one in a build without the feature `http`.
pub(crate) fn check_target(url: &str, check: &HealthCheck) -> Result<()> {
    let parsed = check_url(url)?;
    check.validate()?;
    match check.means() {
        Means::Http(_) if !cfg!(feature = "http") => Err(Error::new(ErrorKind::InvalidInput, NO_HTTP)
            .state("nothing was registered")
            .help("build podlock with the feature `http`, or use a TCP check or a function")),
        Means::Http(_) if !matches!(parsed.scheme(), "http" | "https") => {
            Err(refused(url, "is not HTTP, and its health check is")
                .help("use a TCP check or a function, or an http:// or https:// URL"))
        }
        Means::Tcp if parsed.port_or_known_default().is_none() => {
            Err(refused(url, "has no port, and its scheme has no default port"))
        }
        Means::Http(_) | Means::Tcp | Means::Function(_) => Ok(()),
    }
}

/// What an HTTP check meets in a build without HTTP.
pub(super) const NO_HTTP: &str = "an HTTP check needs podlock's feature `http`, which this program was built without";

fn refused(url: &str, why: &str) -> Error {
    // What stands before an `@` may be a password.
    let named = if url.contains('@') { "the worker's URL".to_owned() } else { format!("the worker's URL {url:?}") };
    Error::new(ErrorKind::InvalidInput, format!("{named} {why}"))
        .state("nothing was registered")
        .help("write it as http://host:port or tcp://host:port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_no_password() {
        for good in
            ["http://a", "http://a:80/x?y", "https://[::1]:9", "tcp://10.0.0.1:5", "grpc://a.b:1", "http://[::1]"]
        {
            check_url(good).unwrap();
        }
        for (bad, words) in [
            ("", "is no URL"),
            ("a", "is no URL"),
            ("/health", "is no URL"),
            ("localhost:9001", "has no host"),
            ("unix:/run/worker.sock", "has no host"),
            ("file:///x", "has no host"),
            ("http://", "is no URL: empty host"),
            ("tcp://:80", "is no URL: empty host"),
            ("http://a:99999", "is no URL: invalid port number"),
            ("http://[::g]", "is no URL: invalid IPv6 address"),
            ("http://hunter2@a", "has a user or a password"),
            ("http://u:hunter2@a", "has a user or a password"),
            ("http://u:hunter2@a:99999", "is no URL"),
        ] {
            let error = check_url(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(words) && !error.to_string().contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_check_fits_its_url() {
        let refused = |url, check: HealthCheck| check_target(url, &check).unwrap_err().to_string();
        for url in ["http://a", "tcp://a:1", "ws://a"] {
            check_target(url, &HealthCheck::tcp()).unwrap();
            check_target(url, &HealthCheck::function("f")).unwrap();
        }
        assert!(refused("tcp://a", HealthCheck::tcp()).contains("has no port"));
        assert!(refused("http://a", HealthCheck::http("health")).contains("path: expected"));
        if cfg!(feature = "http") {
            check_target("https://a", &HealthCheck::http("/")).unwrap();
            assert!(refused("tcp://a:1", HealthCheck::http("/")).contains("is not HTTP"));
        } else {
            assert!(refused("http://a", HealthCheck::http("/")).contains("feature `http`"));
        }
    }
}
