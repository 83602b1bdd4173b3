//! A run's stream over HTTP: Server-Sent Events of the reference pods.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Db, TEST, answer, http_client, within};
use crate::sse::{Event, EventSource, Reader, numbers};

#[test]
fn a_stream_is_sent_by_any_pod_and_resumed_by_the_id_of_the_last_event() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b) = (db.pod("web-0", &[]).await, db.pod("web-1", &[]).await);
        let run = a.demo(json!({"chunks": 5, "delay_ms": 20})).await;
        let events = Reader::attach(&b.url, &run, None).await.rest().await;
        assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
        let fence = events[0].data["fence"].as_i64().expect("a fence");
        let body = format!("chunk-1 a1 f{fence}");
        let first = json!({"event": "chunk", "generation": 1, "seq": 0, "fence": fence, "body": body});
        assert_eq!((events[0].name.as_str(), &events[0].data), ("chunk", &first));
        let last = &events[5];
        assert_eq!((last.name.as_str(), &last.data), ("end", &json!({"event": "end", "state": "succeeded"})));
        assert_ne!(last.id, events[4].id, "the end has an id of its own");
        let again = Reader::attach(&a.url, &run, Some(&events[2].id)).await.rest().await;
        assert_eq!(again, events[3..]);
        // Whoever has the last chunk and not the end is told of the end.
        let at_the_end = Reader::attach(&a.url, &run, Some(&events[4].id)).await.rest().await;
        assert_eq!(at_the_end, events[5..]);
        for pod in [&a, &b] {
            let url = format!("{}/v1/runs/{run}/stream", pod.url);
            let answer = http_client().get(url).header("Last-Event-ID", &last.id).send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.headers()["cache-control"].to_str().unwrap()),
                (204, "no-store")
            );
            assert_eq!(answer.text().await.unwrap(), "");
        }
    });
}

/// After its `end` an EventSource would reconnect for ever: the end has an id of its own, and a client that comes with
/// it gets 204.
#[test]
fn an_event_source_has_each_event_once_and_stops_behind_the_end() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b) = (db.pod("web-0", &[]).await, db.pod("web-1", &[]).await);
        let run = a.demo(json!({"chunks": 3, "delay_ms": 20})).await;
        let mut source = EventSource::new(&[&a.url, &b.url], &run);
        let events = source.all().await;
        assert_eq!(numbers(&events), [1, 2, 3]);
        assert_eq!(events.iter().filter(|e| e.name == "end").count(), 1, "{events:?}");
        assert_eq!((source.gave_up_at, source.answers), (Some(204), 2), "one connection, and one that said stop");
        // A run that was cancelled ends, too, and has no error.
        let run = a.demo(json!({"chunks": 3, "delay_ms": 60_000})).await;
        let mut source = EventSource::new(&[&b.url], &run);
        a.delete(&format!("/v1/runs/{run}")).await;
        let events = source.all().await;
        assert_eq!(events.last().map(|e| &e.data), Some(&json!({"event": "end", "state": "cancelled"})));
        assert_eq!((source.gave_up_at, source.answers), (Some(204), 2));
    });
}

/// Proxies buffer: what tells them not to is sent with every stream.
#[test]
fn a_stream_tells_proxies_to_pass_on_each_event_as_it_comes() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let run = pod.demo(json!({"chunks": 1, "delay_ms": 0})).await;
        let response = http_client().get(format!("{}/v1/runs/{run}/stream", pod.url)).send().await.unwrap();
        let header =
            |name: &str| response.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(header("content-type"), ["text/event-stream"]);
        assert_eq!(header("cache-control"), ["no-cache, no-transform"]);
        assert_eq!(header("x-accel-buffering"), ["no"]);
    });
}

#[test]
fn a_stream_that_cannot_be_had_is_refused_with_a_reason() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let run = pod.demo(json!({"chunks": 1})).await;
        let get = async |path: &str, id: &str| {
            let request = http_client().get(format!("{}{path}", pod.url)).header("Last-Event-ID", id);
            answer(request.send().await.unwrap()).await
        };
        let (status, body) = get("/v1/runs/018f0000-0000-7000-8000-000000000000/stream", "").await;
        assert_eq!((status, &body["kind"]), (404, &json!("not_found")), "{body}");
        let (status, body) = get("/v1/runs/x/stream", "").await;
        assert_eq!((status, &body["kind"]), (400, &json!("bad_request")), "{body}");
        let (status, body) = get(&format!("/v1/runs/{run}/stream"), "7").await;
        assert_eq!((status, &body["kind"]), (422, &json!("invalid_input")), "{body}");
        let response = http_client().post(format!("{}/v1/runs/{run}/stream", pod.url)).send().await.unwrap();
        assert_eq!(response.status(), 405);
    });
}

#[test]
fn a_quiet_stream_is_kept_alive_by_comments_and_ends_with_its_pod() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, mut b) = (db.pod("web-0", &[]).await, db.pod("web-1", &[]).await);
        let run = a.demo(json!({"chunks": 2, "delay_ms": 12_000})).await;
        let mut reader = Reader::attach(&b.url, &run, None).await;
        let first = reader.some(1).await.remove(0);
        assert_eq!(reader.comments, 1);
        b.signal(Signal::TERM);
        // Without an end, for the run goes on, and without an id, for it goes on where the client is.
        let rest = reader.rest().await;
        let [Event { name, id, data }] = &rest[..] else { panic!("{rest:?}") };
        assert_eq!((name.as_str(), id, &data["kind"]), ("elsewhere", &first.id, &json!("stopped")));
        assert_eq!(b.ended().await, Some(0));
        let left = Reader::attach(&a.url, &run, Some(&first.id)).await.rest().await;
        assert_eq!(left.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["chunk", "end"]);
    });
}

/// A user's whole answer, once, although its pod is killed in the middle of it, and so is the one that the user is
/// attached to.
#[test]
fn a_client_that_comes_back_elsewhere_has_the_whole_answer_once_across_kills() {
    for (resume, with) in [("continue", Signal::KILL), ("restart", Signal::KILL), ("continue", Signal::TERM)] {
        within(TEST, async {
            let db = Db::new().await;
            let pods = [
                db.pod("web-0", &["--lease", "2s"]).await,
                db.pod("web-1", &["--lease", "2s"]).await,
                db.pod("web-2", &["--lease", "2s"]).await,
            ];
            // Until they may bury.
            tokio::time::sleep(Duration::from_millis(2_200)).await;
            let run = pods[0].demo(json!({"chunks": 60, "delay_ms": 30, "resume": resume})).await;
            let mut on_owner = Reader::attach(&pods[0].url, &run, None).await;
            let on_other = Reader::attach(&pods[1].url, &run, None).await;
            let mut events = on_owner.some(20).await;
            pods[0].signal(with);
            while let Some(event) = on_owner.next().await {
                events.push(event);
            }
            assert_ne!(events.last().map(|e| e.name.as_str()), Some("end"));
            let last = events.last().map(|e| e.id.clone());
            events.extend(Reader::attach(&pods[2].url, &run, last.as_deref()).await.rest().await);
            let late = Reader::attach(&pods[2].url, &run, None).await.rest().await;
            let whole: Vec<u64> = (1..=60).collect();
            for (who, events) in [("comes back", events), ("stays", on_other.rest().await), ("late", late)] {
                assert_eq!(numbers(&events), whole, "{who}, {resume} after {with:?}");
                let resets = events.iter().filter(|e| e.name == "reset").count();
                assert_eq!(resets > 0, resume == "restart" && who != "late", "{who}, {resume} after {with:?}");
                assert_eq!(
                    events.last().map(|e| &e.data),
                    Some(&json!({"event": "end", "state": "succeeded"})),
                    "{who}"
                );
            }
        });
    }
}
