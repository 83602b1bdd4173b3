//! HTTP checks of real servers.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// A server. It ends when it is dropped.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Serves each connection by `serve`.
    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::at("127.0.0.1:0", serve).await.expect("a listener")
    }

    async fn at<F>(address: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Option<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.ok()?;
        let port = listener.local_addr().expect("an address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (seen, mut tasks) = (Arc::clone(&connections), JoinSet::new());
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                seen.fetch_add(1, Ordering::SeqCst);
                served.spawn(serve(stream));
            }
        });
        Some(Self { port, connections, _tasks: tasks })
    }

    /// Answers HTTP requests by `answer`.
    async fn http<F>(answer: impl Fn(Request<hyper::body::Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start(move |stream| talk(stream, answer.clone())).await
    }

    /// Sends these bytes to whoever connects, and then waits for the end of the connection.
    async fn says(words: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            _ = stream.write_all(words.as_bytes()).await;
            _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/base?x=y", self.port)
    }

    fn target(&self, check: &HealthCheck) -> Target {
        target(1, &self.url(), check)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn talk<F>(
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<hyper::body::Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // A probe may hang up.
    _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

fn status(status: u16) -> Response<Body> {
    Response::builder().status(status).body(Body::from("a word")).expect("an answer")
}

/// A check with a time limit that no busy machine reaches.
fn patient(path: &str) -> HealthCheck {
    HealthCheck::http(path).timeout(PATIENCE / 2)
}

#[tokio::test]
async fn the_status_decides() {
    let server = Server::http(|request| {
        let code = request.uri().path().trim_start_matches('/').parse().expect("a status");
        async move { status(code) }
    })
    .await;
    for (code, expected, passes) in [
        (200, None, true),
        (204, None, true),
        (301, None, true),
        (399, None, true),
        (400, None, false),
        (404, None, false),
        (503, None, false),
        (200, Some(vec![204]), false),
        (204, Some(vec![204]), true),
        (503, Some(vec![200, 503]), true),
    ] {
        let check = patient(&format!("/{code}"));
        let check = match &expected {
            Some(expected) => check.expect(expected.iter().copied()),
            None => check,
        };
        let result = probe_once(&server.target(&check)).await;
        assert_eq!(result.is_ok(), passes, "{code}, {expected:?}: {result:?}");
    }
    let said = words_of_failure(&server.target(&patient("/503"))).await;
    assert_eq!(said, "status 503, expected 200 to 399");
    let said = words_of_failure(&server.target(&patient("/503").expect([200, 204]))).await;
    assert_eq!(said, "status 503, expected 200 or 204");
}

#[tokio::test]
async fn the_request_has_the_path_and_the_headers_of_the_check() {
    let (seen_tx, mut seen) = mpsc::unbounded_channel();
    let server = Server::http(move |request| {
        let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        let names = ["host", "user-agent", "accept", "connection", "x-plain", "authorization"];
        let line = format!("{} {}", request.method(), request.uri());
        seen_tx.send((line, names.map(header))).unwrap();
        async { status(200) }
    })
    .await;
    let some = |text: &str| Some(text.to_owned());
    let agent = concat!("podlock-probe/", env!("CARGO_PKG_VERSION"));
    let check = patient("/a/ü?q=1&r=ä").header("X-Plain", "b c").secret_header("Authorization", "token");
    let probed = with_secret(server.target(&check), "token", "Bearer hunter2");
    probe_once(&probed).await.unwrap();
    let host = format!("127.0.0.1:{}", server.port);
    let (line, headers) = seen.recv().await.unwrap();
    assert_eq!(line, "GET /a/%C3%BC?q=1&r=%C3%A4", "the path of the URL is not put in front");
    assert_eq!(headers, [some(&host), some(agent), some("*/*"), some("close"), some("b c"), some("Bearer hunter2")]);
    // The check may name another host, and another program.
    let check = patient("/").header("host", "a.example").header("USER-AGENT", "me");
    probe_once(&server.target(&check)).await.unwrap();
    assert_eq!(seen.recv().await.unwrap().1[..2], [some("a.example"), some("me")]);
}

#[tokio::test]
async fn a_secret_is_never_written_and_one_that_is_missing_is_named() {
    let server = Server::http(|_| async { status(500) }).await;
    let check = patient("/").secret_header("Authorization", "token");
    let probed = with_secret(server.target(&check), "token", "hunter2");
    let failure = probe_once(&probed).await.unwrap_err();
    let unusable = with_secret(server.target(&check), "token", "hunter2\r\nX: y");
    let unusable = probe_once(&unusable).await.unwrap_err();
    assert!(unusable.to_string().starts_with("this pod cannot probe it: the value of header Authorization: "));
    let written = format!("{probed:?} {:?} {failure:?} {failure} {unusable:?} {unusable}", probed.check);
    let written = written + &serde_json::to_string(&*probed.check).unwrap();
    assert!(!written.contains("hunter2"), "{written}");
    let said = words_of_failure(&server.target(&check)).await;
    assert_eq!(said, "this pod cannot probe it: the worker has no secret \"token\"");
    assert_eq!(server.connections(), 1, "a probe that cannot be made connects to nobody");
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_its_own_status_counts() {
    let server = Server::http(|request| {
        assert_eq!(request.uri().path(), "/");
        async { Response::builder().status(302).header("location", "/elsewhere").body(Body::empty()).unwrap() }
    })
    .await;
    probe_once(&server.target(&patient("/"))).await.unwrap();
    let said = words_of_failure(&server.target(&patient("/").expect([200]))).await;
    assert_eq!(said, "status 302, expected 200");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_connection_serves_one_probe() {
    let server = Server::http(|_| async { status(200) }).await;
    let mut running = Running::start(8, []);
    running.list.set(vec![server.target(&patient("/").interval(MS * 20))]);
    for n in 1..=5 {
        assert_eq!(running.result().await, (worker(1), Ok(())));
        assert!(server.connections() >= n);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_never_answers_fails_by_the_time_out() {
    let server = Server::says("").await;
    let mut running = Running::start(8, []);
    running.list.set(vec![server.target(&HealthCheck::http("/").interval(MS * 50).timeout(MS * 50))]);
    for _ in 0..3 {
        let (_, result) = running.result().await;
        let failure = result.unwrap_err();
        assert_eq!(failure.to_string(), "time-out after 50ms while waiting for the answer");
    }
    running.stop().await;
}

#[tokio::test]
async fn a_head_or_a_body_that_does_not_end_in_time_fails() {
    // Long enough for what the server has sent to arrive.
    let check = HealthCheck::http("/").timeout(MS * 500);
    for (words, step) in [
        ("HTTP/1.1 200 OK\r\ncontent-", "waiting for the answer"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", "reading the body of the answer"),
    ] {
        let server = Server::says(words).await;
        let said = words_of_failure(&server.target(&check)).await;
        assert_eq!(said, format!("time-out after 500ms while {step}"));
    }
    // The status is known before the body, and says more.
    let server = Server::says("HTTP/1.1 503 No\r\ncontent-length: 50\r\n\r\nhalf").await;
    assert_eq!(words_of_failure(&server.target(&check)).await, "status 503, expected 200 to 399");
}

#[tokio::test]
async fn of_an_endless_body_the_beginning_is_read() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let server = Server::http(move |_| {
        let count = Arc::clone(&count);
        let endless = futures_util::stream::unfold((), move |()| {
            count.fetch_add(1024, Ordering::SeqCst);
            async { Some((Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024])), ())) }
        });
        async { Response::new(Body::from_stream(endless)) }
    })
    .await;
    probe_once(&server.target(&patient("/"))).await.unwrap();
    // What the sockets and the server itself hold comes to some megabytes.
    let sent_then = sent.load(Ordering::SeqCst);
    assert!((10 * 1024..32 << 20).contains(&sent_then), "{sent_then} bytes");
    // The body shares the count. It is dropped with its connection.
    until("the probe hangs up", || Arc::strong_count(&sent) == 2).await;
}

#[tokio::test]
async fn what_is_no_answer_is_said() {
    let other = Server::says("SSH-2.0-OpenSSH_9.2\r\n").await;
    let failure = words_of_failure(&other.target(&patient("/"))).await;
    assert!(failure.starts_with("no complete HTTP answer: "), "{failure}");
    let hangs_up = Server::start(|stream| async { drop(stream) }).await;
    let failure = words_of_failure(&hangs_up.target(&patient("/"))).await;
    assert!(failure.starts_with("no complete HTTP answer: "), "{failure}");
    let too_long = Server::start(|mut stream| async move {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
    })
    .await;
    let failure = words_of_failure(&too_long.target(&patient("/"))).await;
    assert!(failure.starts_with("no complete HTTP answer: "), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_than_n_requests_are_under_way() {
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let seen = Arc::clone(&counts);
    let server = Server::http(move |_| {
        let seen = Arc::clone(&seen);
        async move {
            let now = seen[0].fetch_add(1, Ordering::SeqCst) + 1;
            seen[1].fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(MS * 10).await;
            seen[0].fetch_sub(1, Ordering::SeqCst);
            status(200)
        }
    })
    .await;
    let mut running = Running::start(4, []);
    let check = patient("/").interval(MS * 20);
    running.list.set((0..40).map(|n| target(n, &server.url(), &check)).collect());
    let mut seen = HashMap::<Uuid, usize>::new();
    while seen.len() < 40 || seen.values().any(|count| *count < 2) {
        let (worker, result) = running.result().await;
        result.expect("a success");
        *seen.entry(worker).or_default() += 1;
    }
    assert_eq!(counts[1].load(Ordering::SeqCst), 4, "all slots are used, and no more");
    running.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_removed_is_hung_up_on_and_not_probed_any_more() {
    let (ends_tx, mut ends) = mpsc::unbounded_channel();
    let server = Server::start(move |mut stream| {
        let ends = ends_tx.clone();
        async move {
            _ = stream.read_to_end(&mut Vec::new()).await;
            _ = ends.send(());
        }
    })
    .await;
    let mut running = Running::start(1, []);
    // The probe does not end by itself while the test waits.
    let check = HealthCheck::http("/").interval(MS * 10).timeout(PATIENCE * 2);
    running.list.set(vec![server.target(&check)]);
    until("the probe has connected", || server.connections() == 1).await;
    running.list.set(vec![]);
    timeout(PATIENCE, ends.recv()).await.expect("the probe hangs up in time").unwrap();
    running.expect_silence(MS * 100).await;
    assert_eq!(server.connections(), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_ipv6_literal_works() {
    let answers = |stream| talk(stream, |_| async { status(200) });
    let Some(server) = Server::at("[::1]:0", answers).await else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let url = format!("http://[::1]:{}", server.port);
    probe_once(&target(1, &url, &patient("/"))).await.unwrap();
}

/// A server for the names of its certificate, and the authorities that trust it.
async fn tls_server(names: &[&str]) -> (Server, RootCertStore) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = Server::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(tls) = acceptor.accept(stream).await {
                talk(tls, |_| async { status(200) }).await;
            }
        }
    })
    .await;
    (server, roots)
}

#[tokio::test]
async fn over_https_the_certificate_must_be_good() {
    let (server, roots) = tls_server(&["localhost", "127.0.0.1"]).await;
    let trusting = Tools::trusting(roots.clone());
    let of = |host: &str, port: u16| target(1, &format!("https://{host}:{port}"), &patient("/"));
    for host in ["localhost", "127.0.0.1"] {
        probe::probe(&of(host, server.port), None, &trusting).await.unwrap();
    }
    let mut failures = Vec::new();
    // The system does not know its authority, or has none.
    failures.push(probe_once(&of("localhost", server.port)).await.unwrap_err());
    // Another name.
    let (other, its_roots) = tls_server(&["a.example"]).await;
    failures.push(probe::probe(&of("localhost", other.port), None, &Tools::trusting(its_roots)).await.unwrap_err());
    // No TLS at all.
    let plain = Server::says("HTTP/1.1 200 OK\r\n\r\n").await;
    failures.push(probe::probe(&of("localhost", plain.port), None, &trusting).await.unwrap_err());
    for failure in failures {
        assert!(failure.to_string().starts_with("the TLS handshake failed: "), "{failure}");
    }
    let silent = Server::says("").await;
    let check = HealthCheck::http("/").timeout(MS * 100);
    let silent = target(1, &format!("https://127.0.0.1:{}", silent.port), &check);
    let failure = probe::probe(&silent, None, &trusting).await.unwrap_err();
    assert_eq!(failure.to_string(), "time-out after 100ms while waiting for the TLS handshake");
}
