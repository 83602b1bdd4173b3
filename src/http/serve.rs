//! The server: who may connect, for how long, and how many at a time.
//!
//! hyper answers HTTP/1.1 and has the time-out of the head. This module adds the rest: a limit on connections that
//! leaves descriptors for the database, a time-out of the body, one for a client that does not read, and the check of
//! `Host` and `Origin`. HTTP/2 is off: one connection would carry any number of requests and streams, past the limit.

use std::convert::Infallible;
use std::future::{Future, IntoFuture, pending};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::http::bodies::{InTime, Watched};
use crate::http::names::Names;
use crate::http::problem::Problem;
use crate::http::seats::{Seat, Seats};
use crate::nag::Nag;

/// The most connections at a time, if the limit of descriptors allows them. Each may take about 200 KiB of buffers, so
/// more could exhaust the memory of a small container.
const CONNECTIONS_MAX: u64 = 1024;
/// The fewest connections, however low the limit is: enough for a probe and a few clients.
const CONNECTIONS_MIN: u64 = 4;
/// Descriptors that are reserved for other uses: the pod's sessions (4), its pool (4 by default), connections that open
/// while old ones still close, the runtime, the standard streams, files. HTTP gets half of the others.
const DESCRIPTORS_KEPT: u64 = 64;
/// The buffer that hyper has for each connection: a request's head, and data to be written, without a frame of the
/// body. A larger head is refused.
const BUFFER: usize = 64 * 1024;
/// How many unsent bytes the kernel buffers for a connection. The kernel's own limit is several megabytes, which slow
/// readers of streams would fill. Fewer: a fast reader waits for the process more often.
const UNSENT: u32 = 128 * 1024;
/// The least and the longest wait before the next `accept` after one that failed for lack of descriptors or memory.
/// Shorter: the loop burns processor time while nothing is free. Longer: clients wait after it is free again.
const ACCEPT_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// The time between two warnings while `accept` keeps failing, which may be many times a second.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The limits of a [server](serve).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The most connections at a time. Default: half of the descriptors that remain after 64 are reserved, of the
    /// process's soft limit of open files (`RLIMIT_NOFILE`); at least 4 and at most 1,024. Further connections wait in
    /// the kernel. A stream is a connection.
    ///
    /// If all are taken, the connection that has been without a request longest is closed, after at least a second. So
    /// idle clients keep nobody out.
    pub connections: usize,
    /// How long a connection may be without a whole request head: one that sends nothing, half a head, or nothing after
    /// its last answer. Then it is closed. Default: 30 s.
    pub head: Duration,
    /// How long the body of a request may take, from its head to its end. Then the answer is 408, and the connection is
    /// closed. Default: 30 s.
    pub body: Duration,
    /// How long a client may take none of the data that is sent to it. Then it is cut off. A stream's client comes back
    /// with `Last-Event-ID`. Default: 30 s.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let seconds = Duration::from_secs;
        Self { connections: connections(descriptors), head: seconds(30), body: seconds(30), write: seconds(30) }
    }
}

/// How many connections a process may have with this limit of open files.
fn connections(descriptors: Option<u64>) -> usize {
    let half = descriptors.map_or(CONNECTIONS_MAX, |most| most.saturating_sub(DESCRIPTORS_KEPT) / 2);
    usize::try_from(half.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

/// Serves `router` on `listener` with [`Limits`], and checks `Host` and `Origin`. HTTP/1.1 only.
///
/// ```no_run
/// # async fn f(pod: podlock::Pod) -> std::io::Result<()> {
/// use std::time::Duration;
///
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// let server = podlock::http::serve(listener, podlock::http::router(pod.clone()));
/// server.allow_host("pods.example.com").until(pod.closed(), Duration::from_secs(5)).await
/// # }
/// ```
///
/// If it is awaited directly, it serves until it is dropped.
///
/// **`Host`.** On a loopback listener a request must name `localhost`, a loopback address, or a name of
/// [`Serve::allow_host`]. Otherwise a page of another site could reach this server from its visitor's browser: its own
/// name can resolve to 127.0.0.1 (DNS rebinding). On another listener every name is accepted, unless `allow_host` gives
/// some. Then only those names and addresses are accepted.
///
/// **`Origin`.** A browser says from which site a request's page is. A request that changes something, or asks for a
/// stream, is refused if that is another host than `Host` and not one of [`Serve::allow_origin`].
pub fn serve(listener: TcpListener, router: Router) -> Serve {
    Serve { listener, router, limits: Limits::default(), names: Names::default() }
}

/// A server that has not been awaited yet. [`serve`] makes it.
#[derive(Debug)]
#[must_use = "it serves when it is awaited"]
pub struct Serve {
    listener: TcpListener,
    router: Router,
    limits: Limits,
    names: Names,
}

impl Serve {
    /// Changes the limits: `.with(|limits| limits.connections = 100)`.
    pub fn with(mut self, set: impl FnOnce(&mut Limits)) -> Self {
        set(&mut self.limits);
        self
    }

    /// Accepts requests for this host name or address, without a port. `*` accepts any.
    pub fn allow_host(mut self, name: impl AsRef<str>) -> Self {
        self.names.allow_host(name.as_ref());
        self
    }

    /// Accepts requests from pages of this origin, as `Origin` gives it: `https://app.example.com`. `*` accepts any.
    pub fn allow_origin(mut self, origin: impl AsRef<str>) -> Self {
        self.names.allow_origin(origin.as_ref());
        self
    }

    /// Serves until `stop` resolves. Then it closes the listener and idle connections, waits at most `grace` for
    /// answers that are under way, and cuts off the remaining ones.
    ///
    /// # Errors
    ///
    /// The system's error if the listener's address cannot be read. Nothing else ends it: failures of single
    /// connections, and of `accept`, are logged.
    ///
    /// # Cancel safety
    ///
    /// If dropped, it closes the listener and all connections at once.
    pub async fn until(self, stop: impl Future<Output = ()> + Send, grace: Duration) -> io::Result<()> {
        let Self { listener, router, limits, mut names } = self;
        names.listens_on(listener.local_addr()?.ip());
        let service = Arc::new(Service { router: TowerToHyperService::new(router), names, limits });
        let seats = Seats::new(service.limits.connections);
        let closing = CancellationToken::new();
        // Dropped with this future, which ends every connection.
        let mut tasks = JoinSet::new();
        let mut stop = pin!(stop);
        let mut trouble = Trouble::new();
        loop {
            let (stream, seat) = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = accept(&listener, &seats, &mut trouble) => accepted,
            };
            // Removes connections that have ended.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(connection(stream, seat, service.clone(), closing.clone()));
        }
        drop(listener);
        closing.cancel();
        let answers = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, answers).await.is_err() {
            tracing::debug!(
                target: "podlock", event = "http_cut_off", connections = tasks.len(),
                "answers were cut off"
            );
            tasks.shutdown().await;
        }
        Ok(())
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.until(pending(), Duration::ZERO))
    }
}

/// Failures of `accept` in a row.
struct Trouble {
    began: Instant,
    nag: Nag,
    backoff: Backoff,
}

impl Trouble {
    fn new() -> Self {
        Self { began: Instant::now(), nag: Nag::new(SAY_AGAIN), backoff: Self::backoff() }
    }

    fn backoff() -> Backoff {
        Backoff::new(ACCEPT_AGAIN.0, ACCEPT_AGAIN.1)
    }
}

/// Accepts the next connection, once there is a seat for it.
async fn accept(listener: &TcpListener, seats: &Arc<Seats>, trouble: &mut Trouble) -> (TcpStream, Arc<Seat>) {
    let seat = seats.take().await;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                trouble.nag.passed();
                trouble.backoff = Trouble::backoff();
                return (stream, seat);
            }
            // The client left before the connection was accepted.
            Err(e) if is_of_one_client(&e) => {
                tracing::debug!(target: "podlock", event = "http_accept", error = %e, "a connection was lost");
            }
            Err(e) => {
                if let Some(times) = trouble.nag.failed(trouble.began.elapsed(), Duration::ZERO) {
                    tracing::warn!(
                        target: "podlock", event = "http_accept", error = %e, times,
                        "cannot accept connections; trying again"
                    );
                }
                tokio::time::sleep(trouble.backoff.delay()).await;
            }
        }
    }
}

fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The state that all connections of a server share.
struct Service {
    router: TowerToHyperService<Router>,
    names: Names,
    limits: Limits,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>, seat: Arc<Seat>) -> Response<Watched> {
        // The connection is busy until the answer's body is dropped.
        let busy = seat.begin();
        let checked = self.names.check(request.method(), request.uri(), request.headers());
        let response = match checked {
            Ok(()) => self.route(request).await,
            Err(problem) => problem.into_response(),
        };
        response.map(|body| Watched::new(body, busy))
    }

    async fn route(&self, request: Request<Incoming>) -> axum::response::Response {
        let limit = self.limits.body;
        let late = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| InTime::new(body, limit, late.clone()));
        let Ok(response) = self.router.call(request).await;
        if !late.load(Ordering::Relaxed) {
            return response;
        }
        // The handler only saw that the body broke off, and cannot know why.
        let error = format!("the body of the request did not come within {limit:?}");
        let mut response = Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", error).into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// A connection's stream that knows whether its client still has to take data. For hyper, an answer is finished once it
/// is in the buffer.
struct Sending {
    inner: Pin<Box<TimeoutWriter<TcpStream>>>,
    /// True while a write to the client is pending. The connection reads it before it gives up its seat.
    sending: Arc<AtomicBool>,
}

impl Sending {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.sending.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

impl AsyncRead for Sending {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Sending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.inner.as_mut().poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.inner.as_mut().poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(cx)
    }
}

/// Answers the requests of one connection, until either side closes the connection, or the connection is idle and a new
/// client needs its seat.
async fn connection(stream: TcpStream, seat: Arc<Seat>, service: Arc<Service>, closing: CancellationToken) {
    tune(&stream);
    let (head, write) = (service.limits.head, service.limits.write);
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(write));
    let sending = Arc::new(AtomicBool::new(false));
    let stream = Sending { inner: Box::pin(stream), sending: sending.clone() };
    let answers = service_fn(|request| {
        let (service, seat) = (service.clone(), seat.clone());
        async move { Ok::<_, Infallible>(service.answer(request, seat).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(BUFFER);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), answers));
    let mut told = false;
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(e) = ended {
                    tracing::debug!(target: "podlock", event = "http_connection", error = %e, "a connection has ended");
                }
                return;
            }
            () = closing.cancelled(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = seat.is_needed() => {
                if seat.is_idle() && !sending.load(Ordering::Relaxed) {
                    return;
                }
                seat.keep();
            }
        }
    }
}

/// Sets the socket's options: events are sent at once, and data that a client does not take stays here and not in the
/// kernel. The connection works without them.
fn tune(stream: &TcpStream) {
    let unsent = |stream: &TcpStream| {
        #[cfg(any(target_os = "android", target_os = "linux"))]
        socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT)?;
        #[cfg(not(any(target_os = "android", target_os = "linux")))]
        socket2::SockRef::from(stream).set_send_buffer_size(UNSENT as usize)?;
        io::Result::Ok(())
    };
    if let Err(e) = stream.set_nodelay(true).and_then(|()| unsent(stream)) {
        tracing::debug!(
            target: "podlock", event = "http_connection", error = %e,
            "an option of a socket cannot be set"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_database() {
        for (descriptors, most) in [(None, 1024), (Some(0), 4), (Some(70), 4), (Some(128), 32), (Some(1024), 480)] {
            assert_eq!(connections(descriptors), most, "{descriptors:?}");
        }
        assert_eq!(connections(Some(1_048_576)), 1024);
        assert_eq!(connections(Some(u64::MAX)), 1024);
    }
}
