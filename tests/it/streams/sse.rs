//! Server-Sent Events: through a proxy that buffers, and from a pod that is cut off. The client keeps to the rules of a
//! browser's `EventSource`.

use std::time::{Duration, Instant};

use podlock::{ErrorKind, Pod};
use serde_json::json;

use super::{SOON, attach, chunk, end, rest, say, some};
use crate::patience::slack;
use crate::runs::stage::{Stage, act, behind_proxy};
use crate::sse::{EventSource, Reader, numbers};
use crate::support::nginx::Nginx;
use crate::support::proxy::{ALL, Flow, Proxy};
use crate::support::{Db, timed};

/// The reference pod's router of `pod`, served until this is dropped.
struct Served {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn of(pod: &Pod) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = podlock::http::router(pod.clone());
        let task = tokio::spawn(async move { podlock::http::serve(listener, router).await.unwrap() });
        Self { url, task }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Silence on every connection of a pod: nobody is told.
fn cut_off(proxy: &Proxy, flow: Flow) {
    proxy.all(&ALL, flow);
    proxy.all(&["stream"], flow);
}

/// Proxies buffer (nginx by its defaults: all at once at the end). Each chunk is awaited before the next is said, so
/// that only what is passed on as it comes can be read. That this nginx does buffer where it is not told, shows the
/// other port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_chunk_comes_through_a_proxy_that_buffers_before_the_next_is_said() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("a")).await;
        let served = Served::of(&pod).await;
        let nginx = Nginx::before(&served.url).await;
        let run_id = pod.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut source = EventSource::new(&[&nginx.url], &run_id.to_string());
        let held_back = tokio::spawn({
            let (url, run_id) = (nginx.heedless_url.clone(), run_id.to_string());
            async move {
                let mut reader = Reader::attach(&url, &run_id, None).await;
                (reader.next().await.expect("an event"), Instant::now())
            }
        });
        let mut events = Vec::new();
        for n in 1..=5 {
            say(&begun.run, &[&format!("chunk-{n}")]).await;
            let event = tokio::time::timeout(SOON, source.next()).await;
            events.push(event.unwrap_or_else(|_| panic!("chunk {n} is held back")).expect("a chunk"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = Instant::now();
        begun.done(json!(null));
        events.extend(source.all().await);
        assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
        assert_eq!((source.gave_up_at, source.answers), (Some(204), 2));
        let (first, at) = held_back.await.unwrap();
        assert!(first.name == "chunk" && at > ended, "this nginx does not buffer, so that the test shows nothing");
    })
    .await;
}

/// Readers that are attached to a pod that is cut off hear nothing for a lease: by default an EventSource is told to go
/// elsewhere after `self_fence`, and has each chunk once, although it comes to the same pod once more on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_source_of_a_pod_that_is_cut_off_goes_elsewhere_and_has_each_chunk_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let (a, b) = (stage.pod(config).await, stage.pod(db.config("b")).await);
        let (on_a, on_b) = (Served::of(&a).await, Served::of(&b).await);
        let run_id = b.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["chunk-1", "chunk-2", "chunk-3"]).await;
        let mut source = EventSource::new(&[&on_a.url, &on_a.url, &on_b.url], &run_id.to_string());
        let mut events = Vec::new();
        for _ in 0..3 {
            events.push(source.next().await.expect("a chunk"));
        }
        cut_off(&proxy, Flow::Hole);
        let cut = Instant::now();
        say(&begun.run, &["chunk-4", "chunk-5"]).await;
        let told = source.next().await.expect("it is told");
        let settings = a.settings();
        let most = settings.self_fence + slack(Duration::from_secs(3));
        assert!(
            cut.elapsed() < most,
            "told after {:?}, and the self-fence is {:?}",
            cut.elapsed(),
            settings.self_fence
        );
        assert!(
            cut.elapsed() + settings.ping_interval + settings.ping_timeout > settings.self_fence,
            "{:?}",
            cut.elapsed()
        );
        let asked = Instant::now();
        let again = source.next().await.expect("it is told at once");
        for told in [told, again] {
            assert_eq!((told.name.as_str(), &told.id), ("elsewhere", &events[2].id));
            assert_eq!((&told.data["kind"], &told.data["event"]), (&json!("detached"), &json!("elsewhere")));
        }
        // Between one and three seconds until it comes back, and no wait for the database behind it.
        assert!(asked.elapsed() < Duration::from_secs(3) + slack(Duration::from_secs(1)), "{:?}", asked.elapsed());
        begun.done(json!(null));
        events.extend(source.all().await);
        assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
        assert_eq!((source.gave_up_at, source.answers), (Some(204), 4));
        cut_off(&proxy, Flow::Pass);
    })
    .await;
}

/// A client that takes no events is refused as by every other request, while the pod is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_event_source_is_refused_by_a_pod_that_is_cut_off() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let (a, b) = (stage.pod(config).await, stage.pod(db.config("b")).await);
        let served = Served::of(&a).await;
        let run_id = b.start(act()).await.unwrap().run_id;
        let mut waiting = attach(&a, run_id).await.wait_while_cut_off(false);
        cut_off(&proxy, Flow::Hole);
        waiting.next().await.expect_err("the pod is cut off");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("{}/v1/runs/{run_id}/stream", served.url)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["kind"], "detached");
        cut_off(&proxy, Flow::Pass);
    })
    .await;
}

/// In the library a reader waits for its pod to come back, or ends with a reason: as it is asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_a_pod_that_is_cut_off_ends_or_waits_as_it_was_asked_to() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let (a, b) = (stage.pod(config).await, stage.pod(db.config("b")).await);
        let run_id = b.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["0", "1"]).await;
        let mut patient = attach(&a, run_id).await;
        let mut leaves = attach(&a, run_id).await.wait_while_cut_off(false);
        let both = [chunk(1, 0, "0"), chunk(1, 1, "1")];
        assert_eq!(some(&mut patient, 2).await, both);
        // What was handed over before is returned first.
        assert_eq!(some(&mut leaves, 1).await, both[..1]);
        cut_off(&proxy, Flow::Hole);
        assert_eq!(some(&mut leaves, 1).await, both[1..]);
        let left = tokio::time::timeout(SOON, leaves.next()).await.expect("it ends").expect_err("the pod is cut off");
        assert_eq!((left.kind(), left.run_id()), (ErrorKind::Detached, Some(run_id)), "{left}");
        assert!(left.to_string().contains("attach to another pod"), "{left}");
        say(&begun.run, &["2"]).await;
        let mut there = b.attach_after(run_id, leaves.position()).await.unwrap();
        assert_eq!(some(&mut there, 1).await, [chunk(1, 2, "2")]);
        assert!(leaves.next().await.is_err(), "it is cut off still");
        cut_off(&proxy, Flow::Pass);
        begun.done(json!(null));
        let last = [chunk(1, 2, "2"), end("succeeded")];
        assert_eq!(rest(&mut patient).await, last);
        // The reader that left goes on as well, once its pod is back.
        let back = async {
            while a.status().phase != podlock::Phase::Active {
                a.status_changes().await;
            }
        };
        tokio::time::timeout(SOON, back).await.expect("the pod comes back");
        assert_eq!(rest(&mut leaves).await, last);
        assert_eq!(rest(&mut there).await, [end("succeeded")]);
    })
    .await;
}

/// Who attaches behind the end is told nothing more, on any pod; who has the last chunk only is told of the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_knows_the_end_is_told_it_once_unless_the_run_goes_on_after_all() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["0"]).await;
        let mut reader = attach(&a, run_id).await;
        some(&mut reader, 1).await;
        let before = reader.position();
        assert!(!reader.is_over());
        begun.done(json!(null));
        assert_eq!(rest(&mut reader).await, [end("succeeded")]);
        assert!(reader.is_over());
        let behind = reader.position();
        assert_ne!(behind, before);
        for pod in [&a, &b] {
            let mut again = pod.attach_after(run_id, behind).await.unwrap();
            assert!(again.is_over());
            assert_eq!(rest(&mut again).await, []);
            let mut again = pod.attach_after(run_id, before).await.unwrap();
            assert_eq!(rest(&mut again).await, [end("succeeded")]);
        }
        // As an operator's release of a quarantined run, or a failover that took the end back.
        let undo =
            "UPDATE studio_runs SET state = 'running', finished_at = NULL, owner_pod = NULL, owner_incarnation = NULL";
        db.client.batch_execute(undo).await.unwrap();
        let mut goes_on = b.attach_after(run_id, behind).await.unwrap();
        assert!(!goes_on.is_over());
        let begun = stage.act().await;
        begun.run.continue_from(1).await.unwrap();
        say(&begun.run, &["1"]).await;
        begun.done(json!(null));
        assert_eq!(rest(&mut goes_on).await, [chunk(1, 1, "1"), end("succeeded")]);
        let mut missed_it = a.attach_after(run_id, behind).await.unwrap();
        assert_eq!(rest(&mut missed_it).await, [chunk(1, 1, "1"), end("succeeded")]);
    })
    .await;
}
