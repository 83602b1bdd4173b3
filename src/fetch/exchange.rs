//! One HTTP request and its answer.
//!
//! The library below (hyper) speaks HTTP on a connection and does nothing else.

use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::body::Body;
use futures_util::future::{Either, select};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::dial::Dialer;
use super::failure::{Failure, Limit};
use crate::error::chain;

/// How much of a body is read: 10 KiB, as Kubernetes does for its probes. With less, a host sees its connection break
/// off before it has sent a usual answer. With more, a host that sends without end costs more.
const BODY_MOST: usize = 10 * 1024;
/// How long the head of an answer may be: 64 KiB. The library would take 400 KiB from each host.
const HEAD_MOST: usize = 64 * 1024;

/// How requests of a pod speak TLS. The system's authorities are read at the first request over `https`, and again only
/// by a new process.
#[derive(Default)]
pub(crate) struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts these authorities alone.
    #[cfg(test)]
    pub(crate) fn trusting(roots: RootCertStore) -> Self {
        Self { config: OnceCell::new_with(Some(Arc::new(client_config(roots).expect("a configuration")))) }
    }

    async fn connector(&self) -> Result<TlsConnector, Failure> {
        let config = self.config.get_or_try_init(|| async {
            let read = tokio::task::spawn_blocking(|| rustls_native_certs::load_native_certs().certs).await;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(read.map_err(|e| tls(&e))?);
            if roots.is_empty() {
                let why = "the system has no certificate authorities to trust; install them (Debian: ca-certificates)";
                return Err(Failure::Tls { why: why.to_owned() });
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

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether the body could be read, up to its limit.
    pub(crate) body: Result<(), Failure>,
}

/// Sends the request to the host of the URL. The request has its path and its headers already.
pub(crate) async fn send(
    url: &Url,
    request: hyper::Request<Body>,
    (dialer, tls_of_pod): (&Dialer, &Tls),
    limit: Limit,
) -> Result<Answer, Failure> {
    let tcp = dialer.connect(url, limit).await?;
    if url.scheme() != "https" {
        return exchange(tcp, request, limit).await;
    }
    let connector = limit.wait("reading the system's certificates", tls_of_pod.connector()).await??;
    let tls = limit.wait("waiting for the TLS handshake", connector.connect(server_name(url)?, tcp)).await?;
    exchange(tls.map_err(|e| self::tls(&e))?, request, limit).await
}

/// The value of the header `Host`.
pub(crate) fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn server_name(url: &Url) -> Result<ServerName<'static>, Failure> {
    match url.host() {
        Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(|e| tls(&e)),
        Some(Host::Ipv4(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        Some(Host::Ipv6(ip)) => Ok(ServerName::from(std::net::IpAddr::from(ip))),
        None => Err(Failure::Impossible { why: "the URL has no host".to_owned() }),
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: hyper::Request<Body>,
    limit: Limit,
) -> Result<Answer, Failure> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MOST);
    let (mut sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|e| answer(&e))?;
    let talk = async {
        let response = limit.wait("waiting for the answer", sender.send_request(request)).await?;
        let response = response.map_err(|e| answer(&e))?;
        let status = response.status().as_u16();
        let read = limit.wait("reading the body of the answer", read_some(response.into_body())).await;
        Ok(Answer { status, body: read.and_then(|read| read.map_err(|e| answer(&e))) })
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

fn answer(error: &hyper::Error) -> Failure {
    Failure::Answer { why: chain(error) }
}

fn tls(error: &dyn std::error::Error) -> Failure {
    Failure::Tls { why: chain(error) }
}
