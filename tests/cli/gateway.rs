//! `examples/gateway.rs`, run as its head says: three pods, a stream of requests, and one pod is killed.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Db, Lines, SOON, TEST, clean, example, http_client, signal, wait_for, within};

/// How many clients ask at a time.
const CLIENTS: usize = 8;
/// How many requests are answered before the kill, and after the burial was heard, so that they show something.
const ENOUGH: usize = 100;

struct Asked {
    sent: Instant,
    status: u16,
    /// The pods whose workers were tried, in their order.
    pods: Vec<String>,
    text: String,
}

async fn ask(http: &reqwest::Client, gateway: &str) -> Asked {
    let sent = Instant::now();
    let answer = http.get(format!("{gateway}/ask")).send().await.expect("the gateway lives");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("the gateway lives");
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let pods = body["pods"].as_array().into_iter().flatten().filter_map(|pod| pod.as_str().map(str::to_owned));
    Asked { sent, status, pods: pods.collect(), text }
}

#[test]
fn no_request_is_lost_when_a_pod_is_killed_and_none_goes_to_its_workers_after_the_burial_was_heard() {
    let program = within(10 * TEST, example("gateway"));
    within(TEST, async {
        let db = Db::new().await;
        let start = async |name: &str| {
            let mut command = clean(&program);
            command.env("DATABASE_URL", &db.url).env("POD_NAME", name).env("PODLOCK_LEASE", "3s");
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let (out, log) = (Lines::read(child.stdout.take().unwrap()), Lines::read(child.stderr.take().unwrap()));
            let url = wait_for("the gateway listens", || async {
                let line = out.all().first().and_then(|line| line.rsplit(' ').next().map(str::to_owned));
                line.ok_or_else(|| log.all().join("\n"))
            })
            .await;
            (child, url, log)
        };
        let (mut a, gateway, log) = start("a").await;
        let (mut b, ..) = start("b").await;
        let (mut c, ..) = start("c").await;
        let ready = async || {
            let workers = db.json(&["workers", "list", "--health", "ready"]).await;
            workers.as_array().unwrap().len()
        };
        wait_for("all six workers are ready", || async {
            let ready = ready().await;
            if ready == 6 { Ok(()) } else { Err(format!("{ready} are")) }
        })
        .await;
        let http = http_client();
        wait_for("the workers of all pods answer", || async {
            let mut pods: Vec<String> = Vec::new();
            for _ in 0..30 {
                pods.extend(ask(&http, &gateway).await.pods.pop());
            }
            if ["a", "b", "c"].iter().all(|pod| pods.iter().any(|p| p == pod)) {
                Ok(())
            } else {
                Err(format!("{pods:?}"))
            }
        })
        .await;

        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (http, gateway) = (http.clone(), gateway.clone());
                let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
                tokio::spawn(async move {
                    let mut asked = Vec::new();
                    while !over.load(Ordering::Acquire) {
                        asked.push(ask(&http, &gateway).await);
                        answered.fetch_add(1, Ordering::AcqRel);
                    }
                    asked
                })
            })
            .collect();
        let more = async || {
            let began = answered.load(Ordering::Acquire);
            wait_for("more requests are answered", || async {
                let more = answered.load(Ordering::Acquire) - began;
                // Those under way at the beginning do not count.
                if more >= ENOUGH + CLIENTS { Ok(()) } else { Err(format!("{more} are")) }
            })
            .await;
        };
        more().await;
        let killed = Instant::now();
        signal(c.id().unwrap(), Signal::KILL);
        c.wait().await.unwrap();
        log.find("the burial is heard", |line| {
            (line.contains("heard of the burial") && line.contains("pod=c")).then_some(())
        })
        .await;
        let heard = Instant::now();
        more().await;
        over.store(true, Ordering::Release);
        let mut asked = Vec::new();
        for client in clients {
            asked.extend(client.await.unwrap());
        }

        let lost: Vec<_> = asked.iter().filter(|a| a.status != 200).map(|a| &a.text).collect();
        assert!(lost.is_empty(), "{} of {} were not answered: {lost:#?}", lost.len(), asked.len());
        let after: Vec<_> = asked.iter().filter(|a| a.sent > heard).collect();
        let to_the_dead: Vec<_> =
            after.iter().filter(|a| a.pods.iter().any(|pod| pod == "c")).map(|a| &a.text).collect();
        assert!(to_the_dead.is_empty(), "routed to a buried pod: {to_the_dead:#?}");
        let between = asked.iter().filter(|a| a.sent > killed && a.sent <= heard).count();
        let before = asked.iter().filter(|a| a.sent <= killed && a.pods.iter().any(|pod| pod == "c")).count();
        assert!(
            after.len() >= ENOUGH && before > 0,
            "{before} went to c before, {between} between, {} after",
            after.len()
        );
        let retried = asked.iter().filter(|a| a.pods.len() > 1).count();
        println!(
            "{} requests, all answered; {retried} tried several workers; {between} while nobody knew",
            asked.len()
        );
        assert_eq!(ready().await, 4);

        for (name, pod) in [("a", &mut a), ("b", &mut b)] {
            db.ok(&["drain", name]).await;
            let status = tokio::time::timeout(SOON, pod.wait()).await;
            assert!(status.unwrap_or_else(|_| panic!("{name} has not ended: {:#?}", log.all())).unwrap().success());
        }
    });
}
