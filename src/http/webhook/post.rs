//! One POST of an alert.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use url::Url;

use super::key::Key;
use crate::Alert;
use crate::error::{Error, ErrorKind, Result};
use crate::fetch::{self, Dialer, Limit, Tls};
use crate::history::alerts::{Courier, Undelivered};
use crate::protocol::alerts::{Met, judge};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Sends alerts to a URL, each on a connection of its own.
pub(super) struct Post {
    pub(super) url: Url,
    /// All of them sign.
    pub(super) keys: Vec<Key>,
    pub(super) timeout: Duration,
    pub(super) dialer: Dialer,
    pub(super) tls: Tls,
}

impl Post {
    /// The request. The time is that of the attempt, so that a receiver can refuse an old recording.
    fn request(&self, alert: &Alert, now: SystemTime) -> Result<Request<Body>> {
        let body = serde_json::to_vec(alert).map_err(|e| impossible(&format!("the alert is no JSON: {e}")))?;
        let timestamp = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let signatures = self.keys.iter().map(|key| key.sign(&alert.id, timestamp, &body));
        let signature = signatures.collect::<Result<Vec<_>>>()?.join(" ");
        let mut headers = HeaderMap::new();
        headers.insert(HOST, value(&fetch::host_of(&self.url))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("podlock-webhook/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ID, value(&alert.id)?);
        headers.insert(TIMESTAMP, HeaderValue::from(timestamp));
        headers.insert(SIGNATURE, value(&signature)?);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let path = match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        };
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.parse().map_err(|_| impossible("the path of the URL cannot be sent"))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

impl Courier for Post {
    async fn deliver(&self, alert: &Alert) -> std::result::Result<(), Undelivered> {
        let limit = Limit::begin(self.timeout);
        let failed = |is_final, why: String| Undelivered { is_final, why };
        let request = self.request(alert, SystemTime::now()).map_err(|e| failed(true, e.to_string()))?;
        let answer = fetch::send(&self.url, request, (&self.dialer, &self.tls), limit).await;
        // The status decides. The body is read only so that the receiver can send it in peace.
        let answer = answer.map_err(|e| failed(false, e.to_string()))?;
        match judge(answer.status) {
            Met::Accepted => Ok(()),
            met => Err(failed(met == Met::Refused, format!("the receiver answered {}", answer.status))),
        }
    }
}

fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| impossible("a header cannot be written"))
}

fn impossible(why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, why).state("nothing was sent").help("report it")
}
