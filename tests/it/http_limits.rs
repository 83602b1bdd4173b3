//! What clients that send or take too little, or too many of them, can do to a server of `podlock::http::serve`:
//! nothing to others.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures_util::stream;
use podlock::http::{Limits, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::patience::SOON;
use crate::support::timed;

/// Short for a limit, and long enough that a whole request comes within it.
const SHORT: Duration = Duration::from_millis(500);
/// A limit that plays no part.
const NEVER: Duration = Duration::from_secs(3600);

/// A server, until it is dropped.
struct Served {
    address: SocketAddr,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    /// With limits that play no part but for those that `set` sets.
    async fn of(router: Router, set: impl FnOnce(&mut Limits)) -> Self {
        Self::until(router, set, std::future::pending(), Duration::ZERO).await
    }

    async fn until(
        router: Router,
        set: impl FnOnce(&mut Limits),
        stop: impl Future<Output = ()> + Send + 'static,
        grace: Duration,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = serve(listener, router).with(|limits| {
            (limits.connections, limits.head, limits.body, limits.write) = (1000, NEVER, NEVER, NEVER);
            set(limits);
        });
        Self { address, task: tokio::spawn(server.until(stop, grace)) }
    }

    /// A connection that has sent this.
    async fn sent(&self, request: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.expect("connected");
        client.write_all(request.as_bytes()).await.expect("sent");
        client
    }

    /// Sends a request that asks the server to close the connection. Returns the status and the whole answer.
    async fn asked(&self, request: &str) -> (u16, String) {
        let answer = rest(self.sent(request).await).await;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {answer:?}")), answer)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the server sends until it closes the connection, which it does.
async fn rest(mut client: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, client.read_to_end(&mut answer)).await;
    // A connection that is cut off with unread bytes is reset.
    let _ = read.expect("the server closes the connection");
    String::from_utf8(answer).expect("text")
}

/// The beginning of what is sent, up to these words.
async fn read_to(client: &mut TcpStream, words: &str) -> String {
    let mut answer = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&answer).contains(words) {
            assert_ne!(client.read_buf(&mut answer).await.expect("read"), 0, "it ended after {answer:?}");
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| panic!("no {words:?} comes"));
    String::from_utf8(answer).expect("text")
}

const HELLO: &str = "GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST_HELLO: &str = "GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fn hello() -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/size", post(async |body: Bytes| body.len().to_string()))
}

/// A route `/open` whose answers begin with `begun` and go on until the sender is dropped that comes with each.
fn open() -> (Router, mpsc::UnboundedReceiver<oneshot::Sender<()>>) {
    let (tell, opened) = mpsc::unbounded_channel();
    let answer = move || {
        let (hold, held) = oneshot::channel::<()>();
        tell.send(hold).expect("the test listens");
        let pieces = stream::unfold((0, Some(held)), |(n, held)| async move {
            match (n, held) {
                (0, held) => Some((Ok::<_, Infallible>("begun"), (1, held))),
                (_, Some(held)) => {
                    // Dropped by the test: the answer ends.
                    let _ = held.await;
                    Some((Ok("done"), (2, None)))
                }
                (_, None) => None,
            }
        });
        std::future::ready(Body::from_stream(pieces))
    };
    (hello().route("/open", get(answer)), opened)
}

const OPEN: &str = "GET /open HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_whole_head_is_closed() {
    timed(async {
        let served = Served::of(hello(), |limits| limits.head = SHORT).await;
        for beginning in ["", "G", "GET /hello HTTP/1.1\r\nHost: local", "GET /hello HTTP/1.1\r\nHost: localhost\r\n"] {
            assert_eq!(rest(served.sent(beginning).await).await, "", "{beginning:?}");
        }
        // A byte now and then does not help.
        let (mut reads, mut writes) = served.sent("GET /hello HTTP/1.1\r\nX: ").await.into_split();
        let drip = tokio::spawn(async move {
            while writes.write_all(b"x").await.is_ok() {
                tokio::time::sleep(SHORT / 10).await;
            }
        });
        let mut answer = Vec::new();
        // Closed, or reset because the last byte was not read.
        let _ = tokio::time::timeout(SOON, reads.read_to_end(&mut answer)).await.expect("closed");
        assert!(answer.is_empty(), "{answer:?}");
        tokio::time::timeout(SOON, drip).await.expect("closed for writing as well").unwrap();
        // After an answer the time begins anew.
        let answer = rest(served.sent(HELLO).await).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello"), "{answer}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_in_time_is_answered_408() {
    timed(async {
        let served = Served::of(hello(), |limits| limits.body = SHORT).await;
        let head = "POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
        let is_refused = |answer: &str| {
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"kind\":\"body_too_slow\""), "{answer}");
            assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
        };
        is_refused(&rest(served.sent(head).await).await);
        is_refused(&rest(served.sent(&format!("{head}half")).await).await);
        // Something comes all the time, and still it is too slow.
        let (mut reads, mut writes) = served.sent(head).await.into_split();
        let drip = tokio::spawn(async move {
            while writes.write_all(b"x").await.is_ok() {
                tokio::time::sleep(SHORT / 10).await;
            }
        });
        let mut answer = Vec::new();
        // The answer may be followed by a reset: bytes of the body were not read.
        let _ = tokio::time::timeout(SOON, reads.read_to_end(&mut answer)).await.expect("closed");
        is_refused(&String::from_utf8(answer).unwrap());
        tokio::time::timeout(SOON, drip).await.expect("closed for writing as well").unwrap();
        // One that comes in time, in pieces.
        let mut client = served
            .sent("POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabc")
            .await;
        client.write_all(b"def").await.unwrap();
        assert!(rest(client).await.ends_with("\r\n\r\n6"));
    })
    .await;
}

/// The answer is dropped, and what it held with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_is_cut_off() {
    timed(async {
        let (tell, mut told) = mpsc::unbounded_channel::<mpsc::UnboundedSender<()>>();
        let answer = move || {
            let (hold, held) = mpsc::unbounded_channel::<()>();
            tell.send(hold).expect("the test listens");
            let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
            let endless = stream::unfold(held, move |held| {
                let piece = piece.clone();
                async move { Some((Ok::<_, Infallible>(piece), held)) }
            });
            std::future::ready(Body::from_stream(endless))
        };
        let served = Served::of(hello().route("/endless", get(answer)), |limits| limits.write = SHORT).await;
        let client = served.sent("GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let answer = told.recv().await.expect("it is answered");
        tokio::time::timeout(SOON, answer.closed()).await.expect("the answer is dropped");
        drop(client);
        assert_eq!(served.asked(LAST_HELLO).await.0, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_out_and_busy_ones_are_kept() {
    timed(async {
        let (router, mut opened) = open();
        let served = Served::of(router, |limits| limits.connections = 4).await;
        let mut busy = served.sent(OPEN).await;
        read_to(&mut busy, "begun").await;
        let hold = opened.recv().await.expect("opened");
        let mut idle = Vec::new();
        for beginning in ["", "GET /hello HTT", HELLO, "", "", "", "", ""] {
            idle.push(served.sent(beginning).await);
        }
        for _ in 0..3 {
            assert_eq!(served.asked(LAST_HELLO).await.0, 200);
        }
        drop(hold);
        read_to(&mut busy, "done").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_clients_than_the_cap_wait_for_a_busy_one_to_end() {
    timed(async {
        let (router, mut opened) = open();
        let served = Served::of(router, |limits| limits.connections = 1).await;
        let mut busy = served.sent(OPEN).await;
        read_to(&mut busy, "begun").await;
        let hold = opened.recv().await.expect("opened");
        let mut next = served.sent(LAST_HELLO).await;
        let early = tokio::time::timeout(2 * SHORT, next.read_u8()).await;
        assert!(early.is_err(), "the cap is 1: {early:?}");
        drop((busy, hold));
        assert!(rest(next).await.ends_with("hello"));
    })
    .await;
}

/// An answer is done with, for the server, long before a slow client has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_its_answer_slowly_keeps_its_seat_until_it_has_it() {
    timed(async {
        const LARGE: usize = 32 << 20;
        let large = Router::new().route("/large", get(|| async { "x".repeat(LARGE) })).merge(hello());
        let served = Served::of(large, |limits| (limits.connections, limits.write) = (1, SOON)).await;
        let mut slow = served.sent("GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        read_to(&mut slow, "200 OK").await;
        let mut next = served.sent(LAST_HELLO).await;
        // Longer than an idle connection keeps its seat.
        let early = tokio::time::timeout(Duration::from_secs(3), next.read_u8()).await;
        assert!(early.is_err(), "the cap is 1: {early:?}");
        assert!(rest(slow).await.len() >= LARGE, "the answer was cut");
        assert!(rest(next).await.ends_with("hello"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_finishes_answers_and_cuts_off_those_that_last() {
    timed(async {
        for ends in [true, false] {
            let (router, mut opened) = open();
            let (stop, stopped) = oneshot::channel::<()>();
            let stopped = async { stopped.await.expect("told") };
            let grace = if ends { SOON } else { SHORT };
            let mut served = Served::until(router, |_| {}, stopped, grace).await;
            let idle = served.sent("").await;
            let mut client = served.sent(OPEN).await;
            read_to(&mut client, "begun").await;
            let hold = opened.recv().await.expect("opened");
            stop.send(()).expect("it listens");
            assert_eq!(rest(idle).await, "");
            let hold = if ends {
                drop(hold);
                None
            } else {
                Some(hold)
            };
            tokio::time::timeout(SOON, &mut served.task).await.expect("it ends").unwrap().unwrap();
            assert_eq!(rest(client).await.contains("done"), ends);
            TcpStream::connect(served.address).await.expect_err("nobody listens");
            drop(hold);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_not_spoken() {
    timed(async {
        let served = Served::of(hello(), |_| {}).await;
        let answer = rest(served.sent("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await).await;
        assert!(!answer.contains("HTTP/2") && !answer.contains(" 200 "), "{answer:?}");
        assert_eq!(served.asked(LAST_HELLO).await.0, 200);
    })
    .await;
}

/// A page in a browser of this machine, whose site's name leads to this server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_host_and_a_foreign_origin_are_refused_before_the_router() {
    timed(async {
        let served = Served::of(hello(), |_| {}).await;
        let (status, answer) =
            served.asked("GET /hello HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
        assert!(status == 421 && answer.contains("\"kind\":\"foreign_host\""), "{answer}");
        let post = |origin: &str| {
            format!(
                "POST /size HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nContent-Length: 0\r\nConnection: \
                 close\r\n\r\n"
            )
        };
        let (status, answer) = served.asked(&post("http://evil.example")).await;
        assert!(status == 403 && answer.contains("\"kind\":\"foreign_origin\""), "{answer}");
        assert_eq!(served.asked(&post("http://localhost:3000")).await.0, 200);
    })
    .await;
}
