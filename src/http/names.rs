//! Checks which host a request is for (`Host`), and from which site's page it comes (`Origin`).
//!
//! The attack that this stops is DNS rebinding. A page of `evil.example` lets its own name resolve to 127.0.0.1 once it
//! is loaded. The browser then treats the pod as the same site, and the page may read and write. But `Host` still says
//! `evil.example`.

use std::net::IpAddr;

use axum::http::header::{ACCEPT, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri};

use crate::http::problem::Problem;

/// Stands for any host, or any origin.
const ANY: &str = "*";

/// The hosts and origins that a server accepts.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    hosts: Vec<String>,
    origins: Vec<String>,
    /// Only this machine can connect, so only names of this machine are accepted.
    on_loopback: bool,
}

impl Names {
    pub(super) fn allow_host(&mut self, name: &str) {
        self.hosts.push(plain(name));
    }

    pub(super) fn allow_origin(&mut self, origin: &str) {
        self.origins.push(origin.trim_end_matches('/').to_ascii_lowercase());
    }

    pub(super) fn listens_on(&mut self, address: IpAddr) {
        self.on_loopback = address.to_canonical().is_loopback();
    }

    /// Checks whether the request is accepted.
    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = asked_for(uri, headers);
        let named = host.as_deref().unwrap_or("no host, or not one");
        if !self.takes_host(host.as_deref()) {
            let error =
                format!("this server does not answer for {named:?}: it is on loopback, or has a list (--allow-host)");
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "foreign_host", error));
        }
        if !(changes_something(method) || asks_for_a_stream(uri, headers)) {
            return Ok(());
        }
        for origin in headers.get_all(ORIGIN) {
            let origin = origin.to_str().unwrap_or("(no text)");
            if !self.takes_origin(origin, host.as_deref()) {
                let error = format!("a page of {origin:?} may not ask this of {named:?} (--allow-origin)");
                return Err(Problem::new(StatusCode::FORBIDDEN, "foreign_origin", error));
            }
        }
        Ok(())
    }

    fn takes_host(&self, host: Option<&str>) -> bool {
        if self.hosts.iter().any(|allowed| allowed == ANY) || (!self.on_loopback && self.hosts.is_empty()) {
            return true;
        }
        let Some(host) = host else { return false };
        // An address cannot be made to resolve elsewhere, so a page cannot misuse it. On a listener that is not on
        // loopback, probes use the address.
        let is_address = !self.on_loopback && host.parse::<IpAddr>().is_ok();
        is_this_machine(host) || is_address || self.hosts.iter().any(|allowed| allowed == host)
    }

    fn takes_origin(&self, origin: &str, host: Option<&str>) -> bool {
        let origin = origin.to_ascii_lowercase();
        if self.origins.iter().any(|allowed| *allowed == ANY || *allowed == origin) {
            return true;
        }
        // `null` and similar values have no host.
        let from = origin.split_once("://").and_then(|(_, authority)| host_of(authority));
        let (Some(from), Some(host)) = (from, host) else { return false };
        from == host || (is_this_machine(&from) && is_this_machine(host))
    }
}

/// The host that a request is for, without its port: the host of an absolute target (RFC 9112, 3.2.2), or else that of
/// `Host`. `None` if there is none, or more than one.
fn asked_for(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if let Some(authority) = uri.authority() {
        return host_of(authority.as_str());
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    host_of(host.to_str().ok()?)
}

fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    // `localhost@evil.example` is not a host.
    (!authority.as_str().contains('@')).then(|| plain(authority.host()))
}

/// A name in the form in which it is compared: lower case, without brackets and without the dot of the root.
fn plain(name: &str) -> String {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn changes_something(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// An `EventSource` sends the `Accept` header of a stream. A script can leave it out, so the path counts too.
fn asks_for_a_stream(uri: &Uri, headers: &HeaderMap) -> bool {
    let accepts = |value: &axum::http::HeaderValue| {
        value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("text/event-stream"))
    };
    uri.path().ends_with("/stream") || headers.get_all(ACCEPT).iter().any(accepts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(listens_on: &str, hosts: &[&str], origins: &[&str]) -> Names {
        let mut names = Names::default();
        names.listens_on(listens_on.parse().unwrap());
        hosts.iter().for_each(|host| names.allow_host(host));
        origins.iter().for_each(|origin| names.allow_origin(origin));
        names
    }

    /// The status of the refusal; 0 if the request is accepted.
    fn asked(names: &Names, request: &str, headers: &[(&'static str, &str)]) -> u16 {
        let (method, uri) = request.split_once(' ').unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let checked = names.check(&method.parse().unwrap(), &uri.parse().unwrap(), &map);
        checked.err().map_or(0, |problem| axum::response::IntoResponse::into_response(problem).status().as_u16())
    }

    #[test]
    fn on_loopback_this_machine_is_meant_or_a_name_that_is_allowed() {
        let names = names("127.0.0.1", &["Pods.Example.com", "10.0.0.7"], &[]);
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "127.0.0.1",
            "127.9.9.9:8080",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
            "pods.example.com:1",
            "10.0.0.7:80",
        ] {
            assert_eq!(asked(&names, "GET /livez", &[("host", host)]), 0, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "10.0.0.8",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost:80:80",
            "",
            " ",
            "*",
        ] {
            assert_eq!(asked(&names, "GET /livez", &[("host", host)]), 421, "{host}");
        }
        assert_eq!(asked(&names, "GET /livez", &[]), 421, "no host");
        assert_eq!(asked(&names, "GET /livez", &[("host", "localhost"), ("host", "evil.example")]), 421);
        // The target takes precedence over `Host`.
        assert_eq!(asked(&names, "GET http://evil.example/livez", &[("host", "localhost")]), 421);
        assert_eq!(asked(&names, "GET http://localhost:1/livez", &[("host", "evil.example")]), 0);
    }

    #[test]
    fn elsewhere_each_host_is_taken_until_some_are_named() {
        let any = names("0.0.0.0", &[], &[]);
        assert_eq!(asked(&any, "GET /livez", &[("host", "evil.example")]), 0);
        assert_eq!(asked(&any, "GET /livez", &[]), 0);
        let listed = names("::", &["pods.example.com"], &[]);
        for (host, due) in
            [("pods.example.com", 0), ("10.1.2.3:8080", 0), ("[fe80::1]", 0), ("localhost", 0), ("evil.example", 421)]
        {
            assert_eq!(asked(&listed, "GET /livez", &[("host", host)]), due, "{host}");
        }
        assert_eq!(asked(&names("127.0.0.1", &["*"], &[]), "GET /livez", &[("host", "evil.example")]), 0);
    }

    #[test]
    fn pages_of_other_hosts_change_nothing_and_read_no_stream() {
        let local = names("127.0.0.1", &[], &["https://App.example.com/", "null"]);
        let events = ("accept", "text/event-stream");
        for origin in ["http://localhost:1", "http://127.0.0.1:5173", "http://[::1]", "https://app.example.com", "null"]
        {
            assert_eq!(asked(&local, "POST /v1/runs", &[("host", "localhost:80"), ("origin", origin)]), 0, "{origin}");
        }
        for origin in ["http://evil.example", "http://app.example.com", "https://app.example.com:1", "x", ""] {
            let headers = [("host", "localhost"), ("origin", origin)];
            for request in ["POST /v1/runs", "DELETE /v1/runs/1", "GET /v1/runs/1/stream"] {
                assert_eq!(asked(&local, request, &headers), 403, "{request} {origin}");
            }
            assert_eq!(asked(&local, "GET /mine", &[headers[0], headers[1], events]), 403, "{origin}");
            // The browser does not show the answer to the page, and the request changes nothing.
            assert_eq!(asked(&local, "GET /v1/runs/1", &headers), 0, "{origin}");
        }
        let public = names("0.0.0.0", &[], &[]);
        let of = |origin| asked(&public, "POST /v1/runs", &[("host", "a.example:8080"), ("origin", origin)]);
        assert_eq!((of("https://a.example"), of("https://b.example"), of("null")), (0, 403, 403));
        assert_eq!(asked(&public, "POST /v1/runs", &[("host", "a.example")]), 0, "no browser");
        let two = [("host", "a.example"), ("origin", "http://a.example"), ("origin", "http://b.example")];
        assert_eq!(asked(&public, "POST /v1/runs", &two), 403);
    }
}
