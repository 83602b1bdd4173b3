//! An HTTP probe: one GET on a connection of its own ([`crate::fetch`]).

use axum::body::Body;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use secrecy::ExposeSecret as _;
use url::Url;

use super::Target;
use super::failure::ProbeFailure;
use crate::fetch::{self, Dialer, Limit, Tls};
use crate::workers::check::HeaderText;

/// Sends the GET, and judges the status.
pub(super) async fn probe(
    target: &Target,
    url: &Url,
    path: &str,
    tools: (&Dialer, &Tls),
    limit: Limit,
) -> Result<(), ProbeFailure> {
    let answer = fetch::send(url, request(target, url, path)?, tools, limit).await?;
    if target.check.expects(answer.status) {
        // The body decides nothing, and is read so that the worker can send it in peace.
        Ok(answer.body?)
    } else {
        Err(ProbeFailure::Status { status: answer.status, expected: target.check.expected_words() })
    }
}

fn request(target: &Target, url: &Url, path: &str) -> Result<hyper::Request<Body>, ProbeFailure> {
    // The type of URLs knows which characters of a path must be written in another way.
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let mut asked = url.clone();
    asked.set_path(path);
    asked.set_query(query);
    let asked = match asked.query() {
        Some(query) => format!("{}?{query}", asked.path()),
        None => asked.path().to_owned(),
    };
    let mut headers = HeaderMap::new();
    headers.insert(HOST, header_value(&fetch::host_of(url), "the host")?);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("podlock-probe/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    for (name, text) in target.check.headers() {
        let value = match text {
            HeaderText::Plain(value) => header_value(value, name)?,
            HeaderText::Secret(secret) => {
                let value = target.secrets.get(secret);
                let value = value.ok_or_else(|| impossible(format!("the worker has no secret {secret:?}")))?;
                let mut value = header_value(value.expose_secret(), name)?;
                value.set_sensitive(true);
                value
            }
        };
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|e| impossible(format!("header {name}: {e}")))?;
        headers.insert(header, value);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let mut request = hyper::Request::new(Body::empty());
    *request.uri_mut() = asked.parse().map_err(|e| impossible(format!("the path: {e}")))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The error does not contain the value, which may be secret.
fn header_value(text: &str, name: &str) -> Result<HeaderValue, ProbeFailure> {
    HeaderValue::from_str(text).map_err(|e| impossible(format!("the value of header {name}: {e}")))
}

fn impossible(why: String) -> ProbeFailure {
    ProbeFailure::Impossible { why }
}
