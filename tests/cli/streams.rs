//! A run's stream over HTTP: Server-Sent Events of the reference pods.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, SOON, TEST, answer, within};

/// One event, as it came over the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

/// A client that is attached, and what it has read.
pub(crate) struct Reader {
    response: reqwest::Response,
    text: String,
    comments: usize,
}

impl Reader {
    pub(crate) async fn attach(url: &str, run: &str, last_id: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(format!("{url}/v1/runs/{run}/stream"));
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new(), comments: 0 }
    }

    /// The next event; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                match self.read(&block) {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let piece = tokio::time::timeout(SOON, self.response.chunk()).await.expect("something comes");
            // A pod that is killed cuts the answer off.
            let piece = piece.ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&piece).expect("text"));
        }
    }

    fn read(&mut self, block: &str) -> Option<Event> {
        let field = |name: &str| {
            let value = block.lines().find_map(|line| line.strip_prefix(name));
            value.map(|value| value.strip_prefix(": ").unwrap_or(value).to_owned())
        };
        let Some(name) = field("event") else {
            assert!(block.starts_with(':'), "neither an event nor a comment: {block:?}");
            self.comments += 1;
            return None;
        };
        let data = field("data").expect("data");
        Some(Event { name, id: field("id").expect("an id"), data: serde_json::from_str(&data).expect("JSON") })
    }

    pub(crate) async fn some(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.unwrap_or_else(|| panic!("it ended after {events:?}")));
        }
        events
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The numbers of the chunks that a reader is left with who does as resets say; each was told of once.
fn numbers(events: &[Event]) -> Vec<u64> {
    let mut bodies: Vec<u64> = Vec::new();
    for event in events {
        match event.name.as_str() {
            "chunk" => {
                assert_eq!(event.data["seq"], json!(bodies.len()), "a gap, or twice: {events:?}");
                let body = event.data["body"].as_str().expect("a body");
                let word = body.split(' ').next().and_then(|word| word.strip_prefix("chunk-"));
                bodies.push(word.and_then(|n| n.parse().ok()).expect("a number"));
            }
            "reset" => bodies.truncate(usize::try_from(event.data["from_seq"].as_u64().expect("a number")).unwrap()),
            other => assert_eq!(other, "end"),
        }
    }
    bodies
}

#[test]
fn a_stream_is_sent_by_any_pod_and_resumed_by_the_id_of_the_last_event() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b) = (db.pod("web-0", &[]).await, db.pod("web-1", &[]).await);
        let run = a.demo(json!({"chunks": 5, "delay_ms": 20})).await;
        let events = Reader::attach(&b.url, &run, None).await.rest().await;
        assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
        let fence = events[0].data["fence"].as_i64().expect("a fence");
        let first = json!({"generation": 1, "seq": 0, "fence": fence, "body": format!("chunk-1 a1 f{fence}")});
        assert_eq!((events[0].name.as_str(), &events[0].data), ("chunk", &first));
        let last = &events[5];
        assert_eq!((last.name.as_str(), &last.data), ("end", &json!({"state": "succeeded"})));
        let again = Reader::attach(&a.url, &run, Some(&events[2].id)).await.rest().await;
        assert_eq!(again, events[3..]);
        let at_the_end = Reader::attach(&a.url, &run, Some(&last.id)).await.rest().await;
        assert_eq!(at_the_end, events[5..], "whoever comes back is told again that it has ended");
    });
}

#[test]
fn a_stream_that_cannot_be_had_is_refused_with_a_reason() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let run = pod.demo(json!({"chunks": 1})).await;
        let get = async |path: &str, id: &str| {
            let request = reqwest::Client::new().get(format!("{}{path}", pod.url)).header("Last-Event-ID", id);
            answer(request.send().await.unwrap()).await
        };
        let (status, body) = get("/v1/runs/018f0000-0000-7000-8000-000000000000/stream", "").await;
        assert_eq!((status, &body["kind"]), (404, &json!("not_found")), "{body}");
        let (status, body) = get("/v1/runs/x/stream", "").await;
        assert_eq!((status, &body["kind"]), (400, &json!("bad_request")), "{body}");
        let (status, body) = get(&format!("/v1/runs/{run}/stream"), "7").await;
        assert_eq!((status, &body["kind"]), (422, &json!("invalid_input")), "{body}");
        let response = reqwest::Client::new().post(format!("{}/v1/runs/{run}/stream", pod.url)).send().await.unwrap();
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
        assert_eq!(reader.rest().await, [], "without an end: the run goes on");
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
                assert_eq!(events.last().map(|e| &e.data), Some(&json!({"state": "succeeded"})), "{who}");
            }
        });
    }
}
