//! One round: start runs on every pod, kill the first pod, stop the second, and see how each run ends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::project::{Container, Project, wait_for};
use crate::records::{self, Attempt, RunRecord, Session};
use crate::sse::{Reader, numbers};

/// How many runs each pod is given.
const RUNS: usize = 4;
/// How many chunks a run makes, one in 100 ms. So it is far from done when the second pod is stopped.
const CHUNKS: i64 = 100;
/// The limit for a condition that usually comes true within a moment.
const SOON: Duration = Duration::from_secs(30);
/// How long all runs may take to end, on a machine that does much else.
const END: Duration = Duration::from_secs(90);
/// A pod with runs that stop when they are told to ends well below its deadline, which is 20 s.
const STOP: Duration = Duration::from_secs(10);

/// Who took part: incarnations.
pub(crate) struct Round {
    pub(crate) killed: String,
    pub(crate) stopped: String,
    pub(crate) survivor: String,
}

/// A pod as it is in this round.
struct Pod {
    name: &'static str,
    container: Container,
    url: String,
    incarnation: String,
}

/// A run as its start was answered.
struct Started {
    run_id: String,
    fence: i64,
    incarnation: String,
}

/// Plays a round; all that it counts is of the runs that it started itself.
pub(crate) async fn play(project: &Project, number: u32) -> Round {
    let killed = Pod::find(project, "pod-1").await;
    let stopped = Pod::find(project, "pod-2").await;
    let survivor = Pod::find(project, "pod-3").await;
    let mut started = Vec::new();
    for pod in [&killed, &stopped, &survivor] {
        for _ in 0..RUNS {
            started.push(pod.start(project).await);
        }
    }
    let ids: Vec<_> = started.iter().map(|run| run.run_id.as_str()).collect();
    // On the pod to which nothing happens, one reader for each run; the runs are on all three.
    let mut readers = Vec::new();
    for run in &started {
        let (url, run_id) = (survivor.url.clone(), run.run_id.clone());
        readers.push(tokio::spawn(async move {
            let mut reader = Reader::attach(&url, &run_id, None).await;
            let mut events = reader.some(1).await;
            events.extend(reader.rest().await);
            events
        }));
    }

    wait_for("each run has made progress", SOON, || async {
        let runs = records::runs(project, &ids).await;
        if runs.iter().all(|run| run.done() > 0) { Ok(()) } else { Err(format!("{runs:#?}")) }
    })
    .await;
    let runs = records::runs(project, &ids).await;
    for (run, started) in runs.iter().zip(&started) {
        assert_eq!(run.worker(), Some(started.incarnation.as_str()), "before anything happened: {run:#?}");
    }

    let at = Instant::now();
    killed.container.kill().await;
    wait_for("the runs of the killed pod go on elsewhere", SOON, || async {
        let runs = records::runs(project, &ids[..RUNS]).await;
        let go_on = |run: &RunRecord| run.worker().is_some_and(|worker| worker != killed.incarnation);
        if runs.iter().all(go_on) { Ok(()) } else { Err(format!("{runs:#?}")) }
    })
    .await;
    println!("round {number}: the runs of the killed pod go on elsewhere, seen {:?} after the kill", at.elapsed());

    let (at, before) = (Instant::now(), records::runs(project, &ids).await);
    stopped.container.stop().await;
    println!("round {number}: a pod at work took {:?} to stop", at.elapsed());
    assert!(at.elapsed() < STOP, "a clean stop took {:?}", at.elapsed());
    let given_back = before.iter().filter(|run| run.worker() == Some(&stopped.incarnation)).count();
    assert!(given_back >= RUNS, "the pod to stop worked on {given_back} runs, so its stop shows little: {before:#?}");

    let at = Instant::now();
    let runs = wait_for("no run is running any more", END, || async {
        let runs = records::runs(project, &ids).await;
        if runs.iter().all(|run| run.state != "running") { Ok(runs) } else { Err(format!("{runs:#?}")) }
    })
    .await;
    println!("round {number}: every run had ended {:?} after that", at.elapsed());
    for (run, started) in runs.iter().zip(&started) {
        ended_once(run, started, &killed.incarnation, &stopped.incarnation);
    }
    for (reader, run) in readers.into_iter().zip(&ids) {
        let attached = reader.await.unwrap();
        let late = Reader::attach(&survivor.url, run, None).await.rest().await;
        for (who, events) in [("attached", attached), ("late", late)] {
            let whole: Vec<u64> = (1..=CHUNKS.unsigned_abs()).collect();
            assert_eq!(numbers(&events), whole, "the {who} reader of {run} sees the whole answer once");
            assert_eq!(
                events.last().map(|e| &e.data),
                Some(&json!({"event": "end", "state": "succeeded"})),
                "{who}, {run}"
            );
        }
    }
    println!("round {number}: readers on {} saw each of {} answers whole, once", survivor.name, ids.len());
    let yielded = runs.iter().flat_map(|run| &run.attempts).filter(|a| a.reason.as_deref() == Some("yielded")).count();
    assert_eq!(yielded, given_back, "the stopped pod gave back what it worked on: {runs:#?}");

    ended(project, &killed, 137, "lost", &[stopped.name, survivor.name]).await;
    ended(project, &stopped, 0, "shutdown", &[survivor.name]).await;
    let session = records::session(project, &survivor.incarnation).await;
    assert_eq!(session, Session { reason: None, buried_by: None }, "{} lives", survivor.name);
    Round { killed: killed.incarnation, stopped: stopped.incarnation, survivor: survivor.incarnation }
}

impl Pod {
    /// The pod as it presents itself over HTTP.
    async fn find(project: &Project, name: &'static str) -> Self {
        let container = project.container(name).await;
        let url = container.url().await;
        let response = project.http.get(format!("{url}/healthz")).send().await.unwrap();
        let health: Value = response.json().await.unwrap();
        assert_eq!((&health["pod_id"], &health["ready"]), (&json!(name), &json!(true)), "{url}: {health}");
        let incarnation = text(&health, "incarnation");
        Self { name, container, url, incarnation }
    }

    /// Starts a run on this pod.
    async fn start(&self, project: &Project) -> Started {
        let input = json!({"chunks": CHUNKS, "delay_ms": 100, "resume": "continue"});
        let request = project.http.post(format!("{}/v1/runs", self.url)).json(&json!({"kind": "demo", "input": input}));
        let response = request.send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status.as_u16(), 201, "{}: {body}", self.name);
        let started = Started {
            run_id: text(&body, "run_id"),
            fence: body["fence"].as_i64().unwrap_or_else(|| panic!("no fence: {body}")),
            incarnation: text(&body, "incarnation"),
        };
        assert_eq!(started.incarnation, self.incarnation, "{} is another by now: {body}", self.name);
        started
    }
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("no {field}: {value}")).to_owned()
}

/// The run has succeeded, once; each other attempt ended as its pod did; and its result holds each chunk once, made
/// under the fences of its attempts.
fn ended_once(run: &RunRecord, started: &Started, killed: &str, stopped: &str) {
    assert_eq!(run.state, "succeeded", "{run:#?}");
    let (last, others) = run.attempts.split_last().unwrap_or_else(|| panic!("it has no attempt: {run:#?}"));
    assert_eq!(last.reason.as_deref(), Some("succeeded"), "{run:#?}");
    assert_eq!(last.fence, run.fence, "{run:#?}");
    for attempt in others {
        let due = if attempt.incarnation == killed {
            "lost"
        } else if attempt.incarnation == stopped {
            "yielded"
        } else {
            panic!("an attempt of a pod to which nothing happened was not the last: {run:#?}")
        };
        assert_eq!(attempt.reason.as_deref(), Some(due), "{run:#?}");
    }
    assert!(![killed, stopped].contains(&last.incarnation.as_str()), "{run:#?}");
    assert_eq!(run.attempts[0].incarnation, started.incarnation, "{run:#?}");
    assert_eq!(run.attempts[0].fence, started.fence, "{run:#?}");
    assert!(run.attempts.windows(2).all(|pair| pair[0].fence < pair[1].fence), "fences only rise: {run:#?}");
    assert!((1..).zip(&run.attempts).all(|(n, attempt)| attempt.attempt == n), "{run:#?}");

    let result = run.result.as_ref().unwrap_or_else(|| panic!("it has no result: {run:#?}"));
    assert_eq!(result["chunks"], CHUNKS, "{run:#?}");
    let mut made = 0;
    let segments = result["segments"].as_array().unwrap_or_else(|| panic!("no segments: {run:#?}"));
    for segment in segments {
        let number = |field: &str| segment[field].as_i64().unwrap_or_else(|| panic!("no {field}: {run:#?}"));
        assert_eq!(number("from"), made + 1, "a chunk is missing, or was made twice: {run:#?}");
        made = number("to");
        let of = |a: &Attempt| (a.attempt, a.fence) == (number("attempt"), number("fence"));
        assert!(run.attempts.iter().any(of), "made by nobody: {segment} in {run:#?}");
    }
    assert_eq!(made, CHUNKS, "{run:#?}");
    assert!(segments.len() >= run.attempts.len(), "an attempt went on and left no trace: {run:#?}");
}

/// The container has ended with `exit_code` and stays so, and the pod was buried for `reason` by one of `buriers`.
async fn ended(project: &Project, pod: &Pod, exit_code: i64, reason: &str, buriers: &[&str]) {
    let seen = pod.container.seen().await;
    assert_eq!(
        (seen.status.as_str(), seen.exit_code, seen.restarts),
        ("exited", exit_code, 0),
        "{}: {seen:?}",
        pod.name
    );
    let session = records::session(project, &pod.incarnation).await;
    let buried = session.buried_by.as_deref().is_some_and(|by| buriers.contains(&by));
    assert!(session.reason.as_deref() == Some(reason) && buried, "{}: {session:?}", pod.name);
}
