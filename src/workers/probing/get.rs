//! An HTTP probe: one GET on a connection of its own.
//!
//! The library below (hyper) speaks HTTP on a connection and does nothing else. So no proxy, no pool of connections,
//! no redirect and no second try comes between the probe and the worker.

use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::body::Body;
use futures_util::future::{Either, select};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::Target;
use super::dial::Dialer;
use super::failure::{Limit, ProbeFailure};
use crate::error::chain;
use crate::workers::check::HeaderText;

/// How much of a body a probe reads: 10 KiB, as Kubernetes does. With less, a worker sees its connection break off
/// before it has sent a usual answer. With more, a worker that sends without end costs more.
const BODY_MOST: usize = 10 * 1024;
/// How long the head of an answer may be: 64 KiB. The library would take 400 KiB from each worker.
const HEAD_MOST: usize = 64 * 1024;

/// How the probes of a pod speak TLS. The system's authorities are read at the first probe over `https`, and again only
/// by a new process.
#[derive(Default)]
pub(super) struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts these authorities alone.
    #[cfg(test)]
    pub(super) fn trusting(roots: RootCertStore) -> Self {
        Self { config: OnceCell::new_with(Some(Arc::new(client_config(roots).expect("a configuration")))) }
    }

    async fn connector(&self) -> Result<TlsConnector, ProbeFailure> {
        let config = self.config.get_or_try_init(|| async {
            let read = tokio::task::spawn_blocking(|| rustls_native_certs::load_native_certs().certs).await;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(read.map_err(|e| tls(&e))?);
            if roots.is_empty() {
                let why = "the system has no certificate authorities to trust; install them (Debian: ca-certificates)";
                return Err(ProbeFailure::Tls { why: why.to_owned() });
            }
            Ok(Arc::new(client_config(roots).map_err(|e| tls(&e))?))
        });
        Ok(TlsConnector::from(Arc::clone(config.await?)))
    }
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Sends the GET, and judges the status.
pub(super) async fn probe(
    target: &Target,
    url: &Url,
    path: &str,
    (dialer, tls_of_pod): (&Dialer, &Tls),
    limit: Limit,
) -> Result<(), ProbeFailure> {
    let request = request(target, url, path)?;
    let tcp = dialer.connect(url, limit).await?;
    let status = if url.scheme() == "https" {
        let connector = limit.wait("reading the system's certificates", tls_of_pod.connector()).await??;
        let tls = limit.wait("waiting for the TLS handshake", connector.connect(server_name(url)?, tcp)).await?;
        exchange(tls.map_err(|e| self::tls(&e))?, request, limit).await?
    } else {
        exchange(tcp, request, limit).await?
    };
    if target.check.expects(status.0) {
        // The body decides nothing, and is read so that the worker can send it in peace.
        status.1
    } else {
        Err(ProbeFailure::Status { status: status.0, expected: target.check.expected_words() })
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
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    };
    let mut headers = HeaderMap::new();
    headers.insert(HOST, header_value(&host, "the host")?);
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

fn server_name(url: &Url) -> Result<ServerName<'static>, ProbeFailure> {
    match url.host() {
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(|e| tls(&e)),
        Some(Host::Ipv4(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        Some(Host::Ipv6(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        None => Err(impossible("the URL has no host".to_owned())),
    }
}

/// Sends the request. Returns the status, and whether the body could be read.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: hyper::Request<Body>,
    limit: Limit,
) -> Result<(u16, Result<(), ProbeFailure>), ProbeFailure> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MOST);
    let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|e| answer(&e))?;
    let talk = async {
        let response = limit.wait("waiting for the answer", sender.send_request(request)).await?;
        let response = response.map_err(|e| answer(&e))?;
        let status = response.status().as_u16();
        let read = limit.wait("reading the body of the answer", read_some(response.into_body())).await;
        Ok((status, read.and_then(|read| read.map_err(|e| answer(&e)))))
    };
    // The connection must be driven until the answer is there. It may end before: the answer is then in its buffer.
    match select(pin!(talk), pin!(connection)).await {
        Either::Left((done, _)) => done,
        Either::Right((_, talk)) => talk.await,
    }
}

/// Reads the body to its end, or until it is too long.
async fn read_some(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut read = 0;
    while read < BODY_MOST
        && let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
    {
        read += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(())
}

fn answer(error: &hyper::Error) -> ProbeFailure {
    ProbeFailure::Answer { why: chain(error) }
}

fn tls(error: &dyn std::error::Error) -> ProbeFailure {
    ProbeFailure::Tls { why: chain(error) }
}

fn impossible(why: String) -> ProbeFailure {
    ProbeFailure::Impossible { why }
}
