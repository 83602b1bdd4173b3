//! A client of Server-Sent Events, as a browser is one.

use std::time::Duration;

use serde_json::{Value, json};

/// How long an event may take to come.
const SOON: Duration = Duration::from_secs(30);

/// One event, as it came over the wire.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) name: String,
    /// The last id that the client saw, with this event or before.
    pub(crate) id: String,
    pub(crate) data: Value,
}

/// Makes events of bytes, by the rules of the HTML standard ("Interpreting an event stream").
#[derive(Default)]
struct Parser {
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Vec<String>,
    id: String,
    last_id: String,
    retry: Option<Duration>,
    comments: usize,
    events: std::collections::VecDeque<Event>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (byte, std::mem::replace(&mut self.after_cr, *byte == b'\r')) {
                (b'\n', true) => {}
                (b'\r' | b'\n', _) => {
                    let line = String::from_utf8(std::mem::take(&mut self.line)).expect("text");
                    self.take_line(&line);
                }
                _ => self.line.push(*byte),
            }
        }
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            self.dispatch();
        } else if line.starts_with(':') {
            self.comments += 1;
        } else {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.name = value.to_owned(),
                "data" => self.data.push(value.to_owned()),
                "id" if !value.contains('\0') => self.id = value.to_owned(),
                "retry" => self.retry = value.parse().ok().map(Duration::from_millis),
                _ => {}
            }
        }
    }

    fn dispatch(&mut self) {
        self.last_id.clone_from(&self.id);
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        if !data.is_empty() {
            let data = serde_json::from_str(&data.join("\n")).expect("JSON");
            self.events.push_back(Event { name, id: self.last_id.clone(), data });
        }
    }
}

/// A client that is attached, and what it has read.
pub(crate) struct Reader {
    response: reqwest::Response,
    parser: Parser,
    pub(crate) comments: usize,
}

#[allow(dead_code, reason = "not every program that shares this file reads in each way")]
impl Reader {
    pub(crate) async fn attach(url: &str, run: &str, last_id: Option<&str>) -> Self {
        let response = ask(
            &reqwest::Client::builder().no_proxy().build().unwrap(),
            &format!("{url}/v1/runs/{run}/stream"),
            last_id,
        )
        .await;
        let response = response.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let last_id = last_id.unwrap_or_default().to_owned();
        let parser = Parser { id: last_id.clone(), last_id, ..Parser::default() };
        Self { response, parser, comments: 0 }
    }

    /// The next event; `None` at the end of the answer.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Some(event);
            }
            let piece = tokio::time::timeout(SOON, self.response.chunk()).await.expect("something comes");
            // A pod that is killed cuts the answer off.
            let piece = piece.ok().flatten()?;
            self.parser.feed(&piece);
            self.comments = self.parser.comments;
        }
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

async fn ask(client: &reqwest::Client, url: &str, last_id: Option<&str>) -> reqwest::Result<reqwest::Response> {
    let mut request = client.get(url).header("Accept", "text/event-stream").header("Cache-Control", "no-cache");
    if let Some(id) = last_id.filter(|id| !id.is_empty()) {
        request = request.header("Last-Event-ID", id);
    }
    request.send().await
}

/// What an `EventSource` of a browser does, by the rules of the HTML standard: when a connection ends or cannot be
/// made, it waits and comes back with the last id that it saw; any answer but 200 with the right type ends it for good.
#[allow(dead_code, reason = "not every program that shares this file comes back by itself")]
pub(crate) struct EventSource {
    client: reqwest::Client,
    /// Where each connection leads, as a load balancer decides: the last place for all that come after.
    places: Vec<String>,
    parser: Parser,
    reading: Option<reqwest::Response>,
    /// How many answers it has had.
    pub(crate) answers: usize,
    /// The status that ended it for good.
    pub(crate) gave_up_at: Option<u16>,
}

#[allow(dead_code, reason = "as above")]
impl EventSource {
    pub(crate) fn new(places: &[&str], run: &str) -> Self {
        let places = places.iter().map(|url| format!("{url}/v1/runs/{run}/stream")).collect();
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let parser = Parser { retry: Some(Duration::from_millis(500)), ..Parser::default() };
        Self { client, places, parser, reading: None, answers: 0, gave_up_at: None }
    }

    /// The next event; `None` once it has given up for good.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(2 * SOON, self.next_of_any()).await.expect("something comes")
    }

    async fn next_of_any(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.parser.events.pop_front() {
                return Some(event);
            }
            if self.gave_up_at.is_some() {
                return None;
            }
            let Some(response) = &mut self.reading else {
                self.connect().await;
                continue;
            };
            match response.chunk().await.ok().flatten() {
                Some(piece) => self.parser.feed(&piece),
                None => {
                    // What has no blank line behind it is dropped.
                    let last_id = self.parser.last_id.clone();
                    let retry = self.parser.retry;
                    self.parser = Parser { id: last_id.clone(), last_id, retry, ..Parser::default() };
                    self.reading = None;
                    tokio::time::sleep(retry.unwrap_or_default()).await;
                }
            }
        }
    }

    async fn connect(&mut self) {
        let url = if self.places.len() > 1 { self.places.remove(0) } else { self.places[0].clone() };
        let Ok(response) = ask(&self.client, &url, Some(&self.parser.last_id)).await else {
            return tokio::time::sleep(self.parser.retry.unwrap_or_default()).await;
        };
        self.answers += 1;
        let is_stream = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
        if response.status() == 200 && is_stream {
            self.reading = Some(response);
        } else {
            self.gave_up_at = Some(response.status().as_u16());
        }
    }

    /// All events until it gives up.
    pub(crate) async fn all(&mut self) -> Vec<Event> {
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
            other => assert!(other == "end" || other == "elsewhere", "{event:?}"),
        }
    }
    bodies
}
