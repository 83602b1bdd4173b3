//! Streams: what a run says reaches whoever is attached, on any pod, whole, in order, each chunk once; what was taken
//! back is told of; and nothing of a former owner comes in.

mod faults;
mod load;
mod notices;
mod readers;
mod sse;
mod writers;

use podlock::{Attached, Pod, Run, RunId, StreamEvent};

use crate::patience::SOON;
use crate::support::sql::Client;

/// An event as the tests write it down.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Chunk(i32, u64, String),
    Reset(i32, u64),
    End(String),
}

fn chunk(generation: i32, seq: u64, body: &str) -> Seen {
    Seen::Chunk(generation, seq, body.to_owned())
}

fn end(state: &str) -> Seen {
    Seen::End(state.to_owned())
}

impl From<StreamEvent> for Seen {
    fn from(event: StreamEvent) -> Self {
        match event {
            StreamEvent::Chunk { generation, seq, body, .. } => Self::Chunk(generation, seq, body.to_string()),
            StreamEvent::Reset { generation, from_seq } => Self::Reset(generation, from_seq),
            StreamEvent::End { state, .. } => Self::End(state.to_string()),
            other => panic!("an event of a later version: {other:?}"),
        }
    }
}

async fn next(attached: &mut Attached) -> Option<Seen> {
    let next = tokio::time::timeout(SOON, attached.next()).await;
    next.unwrap_or_else(|_| panic!("nothing comes to {attached:?}")).expect("the stream is readable").map(Seen::from)
}

/// The next `count` events.
async fn some(attached: &mut Attached, count: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.push(next(attached).await.unwrap_or_else(|| panic!("it ended after {seen:?}")));
    }
    seen
}

/// All events up to the end of the run.
async fn rest(attached: &mut Attached) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some(event) = next(attached).await {
        seen.push(event);
    }
    seen
}

/// What a reader ends up with who does as resets say.
fn whole(seen: &[Seen]) -> Vec<String> {
    let mut bodies = Vec::new();
    for event in seen {
        match event {
            Seen::Chunk(_, seq, body) => {
                assert_eq!(u64::try_from(bodies.len()).unwrap(), *seq, "a gap, or a chunk twice: {seen:?}");
                bodies.push(body.clone());
            }
            Seen::Reset(_, from) => bodies.truncate(usize::try_from(*from).unwrap()),
            Seen::End(_) => {}
        }
    }
    bodies
}

async fn say(run: &Run, bodies: &[&str]) {
    for body in bodies {
        run.append(*body).await.expect("appended");
    }
    run.flush().await.expect("stored");
}

async fn attach(pod: &Pod, run_id: RunId) -> Attached {
    pod.attach(run_id).await.expect("attached")
}

/// Generation, number and body of all chunks of a run, as the table has them.
async fn stored(client: &Client, run_id: RunId) -> Vec<(i32, i64, String)> {
    let sql = "SELECT generation, seq, body FROM studio_run_chunks WHERE run_id = $1 ORDER BY 1, 2";
    let rows = client.query(sql, &[&run_id.as_uuid()]).await.expect("chunks");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Gives the run to nobody in the roster, under a new fence: what a claim does, without a pod.
async fn take_away(client: &Client, run_id: RunId) {
    let sql = "UPDATE studio_runs SET fence = nextval('studio_fence'), owner_incarnation = gen_random_uuid(), written \
               = 0 WHERE run_id = $1";
    client.execute(sql, &[&run_id.as_uuid()]).await.expect("taken");
}
