//! Round trips of a burial: a proxy counts how often a session sends after it has received.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podlock::{Config, Pod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::page::{Counts, Table, compare_or_renew};
use crate::patience::SOON;
use crate::server;

/// How many pods are buried. The least number counts: whatever else the session does in between can only add to it.
const BURIALS: usize = 5;

/// Counts the turns of each session that passes through, and notes the turn in which a text was sent.
#[derive(Default)]
struct Turns {
    /// The name of the pod that was killed last, as it stands in the burial's argument.
    sought: Mutex<String>,
    /// Turns since the kill, of the session that sent that name.
    found: Mutex<Option<u64>>,
    /// Raised with each kill: the sessions count from 0 again.
    round: AtomicU64,
}

/// Accepts connections and passes them on to the server.
async fn proxy(upstream: u16, turns: Arc<Turns>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)).await else { continue };
            // A client that waits for neither is slow, and this is about counts alone.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            tokio::spawn(pass(client, server, Arc::clone(&turns)));
        }
    });
    port
}

/// Passes one connection on, until either side ends it.
async fn pass(client: TcpStream, server: TcpStream, turns: Arc<Turns>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let received = AtomicBool::new(false);
    let requests = async {
        let (mut bytes, mut round, mut count) = (vec![0; 64 * 1024], 0, 0);
        while let Ok(length) = from_client.read(&mut bytes).await {
            if length == 0 {
                return;
            }
            let now = turns.round.load(Ordering::Acquire);
            if round != now {
                (round, count) = (now, 0);
            }
            count += u64::from(received.swap(false, Ordering::AcqRel));
            let sought = turns.sought.lock().expect("no test has failed").clone();
            let sent = &bytes[..length];
            if !sought.is_empty() && sent.windows(sought.len()).any(|window| window == sought.as_bytes()) {
                turns.found.lock().expect("no test has failed").get_or_insert(count);
            }
            if to_server.write_all(sent).await.is_err() {
                return;
            }
        }
    };
    let replies = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(length) = from_server.read(&mut bytes).await {
            received.store(true, Ordering::Release);
            if length == 0 || to_client.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = replies => {}
    }
}

async fn pod(url: &str, name: &str, lease: Duration) -> Pod {
    Pod::builder(Config::new(url).name(name).lease(lease)).start().await.expect("a pod")
}

/// A pod is killed, and its neighbour buries it. The burial's own message is the last turn that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_of_a_burial_are_those_of_the_page() {
    let (server, admin) = server::start().await;
    let turns = Arc::new(Turns::default());
    let port = proxy(server.port(), Arc::clone(&turns)).await;
    let url = server.url("postgres");
    let through = url.replace(&format!(":{}/", server.port()), &format!(":{port}/"));
    assert_ne!(url, through, "the URL names the server's port");
    let lease = Duration::from_secs(4);
    let _neighbour = pod(&through, "neighbour", lease).await;
    tokio::time::sleep(lease + Duration::from_millis(200)).await;
    let mut least = u64::MAX;
    for n in 0..BURIALS {
        let name = format!("victim-{n}");
        let victim = pod(&url, &name, lease).await;
        // The neighbour's watch has to turn to it.
        tokio::time::sleep(lease / 4).await;
        *turns.sought.lock().expect("no test has failed") = format!("\"{name}\"");
        *turns.found.lock().expect("no test has failed") = None;
        turns.round.fetch_add(1, Ordering::AcqRel);
        drop(victim);
        let buried = async {
            loop {
                let sql = "SELECT count(*) FROM studio_pods WHERE pod_id = $1";
                let there: i64 = admin.query_one(sql, &[&name]).await.expect("the roster").get(0);
                if there == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, buried).await.expect("it is buried soon");
        let found = turns.found.lock().expect("no test has failed").take();
        least = least.min(found.expect("the burial passed through the proxy, and named the pod"));
    }
    let counts = Counts::from([("from the kill to the burial's COMMIT".to_owned(), least)]);
    compare_or_renew(&Table { name: "round trips", heads: ["what", "round trips"], tolerance: 0.0 }, &counts);
}
