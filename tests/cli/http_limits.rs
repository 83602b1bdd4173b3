//! The reference pod among clients that are many, slow, or not its own.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{Db, PodProcess, TEST, answer, clean, connect, wait_for, within};
use crate::patience::SOON;

/// The descriptors of a pod, few enough that clients can use them up.
const DESCRIPTORS: usize = 128;

/// The host and port of a pod.
fn authority(pod: &PodProcess) -> &str {
    pod.url.strip_prefix("http://").expect("a URL")
}

/// A pod that may open [`DESCRIPTORS`] files.
async fn cramped_pod(db: &Db) -> PodProcess {
    let mut command = clean(Path::new("/bin/sh"));
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_podlock")]);
    command.args(["pod", "--name", "web-0", "--log-format", "json"]);
    command.env("DATABASE_URL", &db.url).env("PODLOCK_CONNECT_TIMEOUT", "60s").env("PODLOCK_LEASE", "3s");
    PodProcess::start(command).await
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

/// Clients that connect and send nothing leave the pod the descriptors that it needs to come back to its database, and
/// leave others their seats.
#[test]
fn idle_sockets_do_not_keep_a_pod_from_its_database() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = cramped_pod(&db).await;
        let run = pod.demo(json!({"chunks": 1, "delay_ms": 600_000})).await;
        let client = db.client().await;
        let incarnation = async |state: &str| -> Option<String> {
            let sql = "SELECT incarnation::text FROM studio_pod_status WHERE pod_id = 'web-0' AND condition = $1";
            client.query_opt(sql, &[&state]).await.unwrap().map(|row| row.get(0))
        };
        let before = incarnation("fine").await.expect("it is fine");
        let mut idle = Vec::new();
        for _ in 0..DESCRIPTORS {
            idle.push(TcpStream::connect(authority(&pod)).await.expect("connected, or in the kernel's queue"));
        }
        // It has taken what it takes.
        let mut last = 0;
        wait_for("it takes no more of them", || {
            let now = descriptors(pod.pid);
            let still = now == std::mem::replace(&mut last, now);
            async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if still { Ok(()) } else { Err(format!("{now} descriptors")) }
            }
        })
        .await;
        assert!(last < DESCRIPTORS - 32, "{last} descriptors are open, and {DESCRIPTORS} is the most");
        let sql = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE application_name LIKE 'podlock/web-0/%' AND datname = current_database()";
        let ended: Vec<i32> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(ended.len() >= 2, "{ended:?}");
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'podlock/web-0/%' \
                        AND datname = current_database() AND pid <> ALL ($1)";
        let after = wait_for("it has its locks again", || async {
            let others: i64 = client.query_one(sessions, &[&ended]).await.unwrap().get(0);
            match incarnation("fine").await {
                Some(now) if others >= 3 => Ok(now),
                state => Err(format!("{state:?}, {others} sessions: {:#?}", pod.log.all())),
            }
        })
        .await;
        assert_eq!(after, before, "it lives on");
        let (status, shown) = pod.get(&format!("/v1/runs/{run}")).await;
        assert_eq!((status, &shown["state"]), (200, &json!("running")), "{shown}");
        drop(idle);
    });
}

/// What a pod needs for the readers of large chunks grows neither with their number nor with their slowness.
#[test]
fn many_readers_of_large_chunks_share_them() {
    const READERS: usize = 300;
    const CHUNKS: usize = 8;
    const MIB: usize = 1024 * 1024;
    within(TEST, async {
        let db = Db::new().await;
        // This is about memory, not about how busy the machine is.
        let pod = db.pod("web-0", &["--lease", "60s"]).await;
        let run = pod.demo(json!({"chunks": 1, "delay_ms": 600_000})).await;
        let (status, _) = pod.delete(&format!("/v1/runs/{run}")).await;
        assert_eq!(status, 200);
        let sql = format!(
            "INSERT INTO studio_run_chunks (run_id, generation, seq, fence, body) \
             SELECT run_id, stream_generation, n, fence, repeat(chr(34), {MIB}) \
               FROM studio_runs, generate_series(0, {CHUNKS} - 1) AS n WHERE run_id = '{run}'"
        );
        connect(&db.url).await.batch_execute(&sql).await.expect("chunks");
        let request = format!(
            "GET /v1/runs/{run}/stream HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n",
            authority(&pod)
        );
        let attach = async || {
            let socket = TcpSocket::new_v4().expect("a socket");
            // What it does not read stays with the pod.
            socket.set_recv_buffer_size(64 * 1024).expect("a small buffer");
            let mut reader = socket.connect(authority(&pod).parse().expect("an address")).await.expect("connected");
            reader.write_all(request.as_bytes()).await.expect("sent");
            reader
        };
        // A quote is two bytes of JSON. Most take the beginning and then nothing more.
        let mut stuck = Vec::new();
        for _ in 0..READERS - READERS / 4 {
            let mut reader = attach().await;
            let first = tokio::time::timeout(SOON, reader.read_u8()).await;
            first.expect("it comes soon").expect("it is answered");
            stuck.push(reader);
        }
        let mut whole = tokio::task::JoinSet::new();
        for _ in 0..READERS / 4 {
            let mut reader = attach().await;
            whole.spawn(async move {
                let (mut all, mut end, mut piece) = (0, Vec::new(), vec![0; 256 * 1024]);
                loop {
                    let count = tokio::time::timeout(SOON, reader.read(&mut piece)).await.expect("it goes on");
                    match count.expect("read") {
                        0 => return (all, String::from_utf8_lossy(&end).into_owned()),
                        count => {
                            all += count;
                            end.extend_from_slice(&piece[..count]);
                            end.drain(..end.len().saturating_sub(300));
                        }
                    }
                }
            });
        }
        while let Some(read) = whole.join_next().await {
            let (bytes, end) = read.unwrap();
            assert!(bytes > 2 * CHUNKS * MIB && end.contains("event: end"), "{bytes} bytes, and at the end {end:?}");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pid)).expect("its status");
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        let peak: usize = peak.expect("its largest size");
        println!("{READERS} readers of {CHUNKS} chunks of 1 MiB: {} MiB at most", peak / 1024);
        assert!(peak / 1024 < READERS_MIB, "{} MiB for {READERS} readers of {CHUNKS} chunks of 1 MiB", peak / 1024);
    });
}

/// The program, its threads' heaps and a few copies of eight chunks. A copy for each of 300 readers is more.
const READERS_MIB: usize = 200;

async fn post(pod: &PodProcess, headers: &[(&str, &str)]) -> (u16, Value) {
    let mut request = pod.http.post(format!("{}/v1/runs", pod.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    answer(request.json(&json!({"kind": "demo", "input": {"chunks": 1, "delay_ms": 0}})).send().await.unwrap()).await
}

#[test]
fn a_foreign_host_or_origin_starts_nothing_and_allowed_ones_do() {
    within(TEST, async {
        let db = Db::new().await;
        let args = ["--allow-host", "pods.example.com", "--allow-origin", "https://app.example.com"];
        let (closed, open) = (db.pod("web-0", &[]).await, db.pod("web-1", &args).await);
        let foreign_host = [("host", "pods.example.com")];
        let foreign_origin = [("origin", "https://app.example.com")];
        let refused = |(status, body): (u16, Value), due: u16, kind: &str| {
            assert_eq!((status, &body["kind"]), (due, &json!(kind)), "{body}");
        };
        refused(post(&closed, &foreign_host).await, 421, "foreign_host");
        refused(post(&closed, &foreign_origin).await, 403, "foreign_origin");
        let runs: i64 = db.client().await.query_one("SELECT count(*) FROM studio_runs", &[]).await.unwrap().get(0);
        assert_eq!(runs, 0, "nothing was started");
        for headers in [foreign_host, foreign_origin] {
            assert_eq!(post(&open, &headers).await.0, 201, "{headers:?}");
        }
        refused(post(&open, &[("host", "evil.example")]).await, 421, "foreign_host");
        refused(post(&open, &[("origin", "https://evil.example")]).await, 403, "foreign_origin");
        for pod in [&closed, &open] {
            let localhost = authority(pod).replace("127.0.0.1", "localhost");
            assert_eq!(post(pod, &[("host", &localhost), ("origin", &pod.url)]).await.0, 201);
        }
    });
}

/// What a browser sends for `new EventSource(url)`, of a page of the pod's own and of a foreign one.
#[test]
fn an_event_source_of_a_foreign_page_is_refused() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &["--allow-origin", "https://app.example.com"]).await;
        let run = pod.demo(json!({"chunks": 1, "delay_ms": 0})).await;
        let events = async |origin: Option<&str>| {
            let mut request = pod.http.get(format!("{}/v1/runs/{run}/stream", pod.url));
            request = request.header("accept", "text/event-stream").header("cache-control", "no-cache");
            if let Some(origin) = origin {
                request = request.header("origin", origin).header("sec-fetch-mode", "cors");
            }
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        };
        for origin in [None, Some(pod.url.as_str()), Some("https://app.example.com")] {
            let (status, text) = events(origin).await;
            assert!(
                status == 200 && text.contains("event: chunk") && text.contains("event: end"),
                "{origin:?}: {text}"
            );
        }
        for origin in ["https://evil.example", "null"] {
            let (status, text) = events(Some(origin)).await;
            assert!(status == 403 && text.contains("foreign_origin"), "{origin}: {text}");
        }
    });
}

#[test]
fn an_open_pod_off_loopback_warns_that_there_is_no_authentication() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &["--listen", "0.0.0.0:0", "--open"]).await;
        let warning = pod.log.event("no_authentication").await;
        assert_eq!(warning["level"], "WARN", "{warning}");
        // Off loopback it may be meant by any name.
        let local = pod.url.replace("0.0.0.0", "127.0.0.1");
        let asked = pod.http.get(format!("{local}/livez")).header("host", "pods.example.com").send().await.unwrap();
        assert_eq!(asked.status(), 200);

        let mut command = db.command(&["pod", "--name", "web-1", "--listen", "0.0.0.0:0", "--open"]);
        command.env("PODLOCK_LOG", "off");
        let quiet = PodProcess::start(command).await;
        quiet.log.find("it is said without a log", |line| line.contains("no authentication").then_some(())).await;
        let inside = db.pod("web-2", &[]).await;
        assert!(!inside.log.all().concat().contains("no_authentication"), "{:?}", inside.log.all());
    });
}
