//! A client of Server-Sent Events, as a browser is one.

use std::time::Duration;

use serde_json::{Value, json};

/// How long an event may take to come.
const SOON: Duration = Duration::from_secs(30);

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
    pub(crate) comments: usize,
}

impl Reader {
    pub(crate) async fn attach(url: &str, run: &str, last_id: Option<&str>) -> Self {
        let mut request =
            reqwest::Client::builder().no_proxy().build().unwrap().get(format!("{url}/v1/runs/{run}/stream"));
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

    pub(crate) async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The numbers of the chunks that a reader is left with who does as resets say; each was told of once.
pub(crate) fn numbers(events: &[Event]) -> Vec<u64> {
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
