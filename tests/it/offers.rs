//! NOTIFY is rare and goes to whom it concerns (DESIGN §9): a run without an owner wakes one pod that can take it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podlock::protocol::offer::GAP;
use podlock::{Config, NewRun, Operator, Pod, RunId};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::runs::stage::{SOON, Stage, act, story, told};
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, timed, trace};

/// Hears everything that is sent to the pods: on the channel of the fleet, and on that of each pod.
struct Ears {
    _client: Client,
    heard: UnboundedReceiver<String>,
}

impl Ears {
    async fn open(db: &Db) -> Self {
        let (client, heard) = sql::listening(&db.url).await;
        let sql = "SELECT channel FROM studio_pods UNION ALL SELECT studio_channel()";
        for row in db.client.query(sql, &[]).await.expect("the channels") {
            let channel: String = row.get(0);
            client.batch_execute(&format!("LISTEN \"{channel}\"")).await.expect("a channel");
        }
        Self { _client: client, heard }
    }

    /// What was sent since the last call, until now: how often each word.
    async fn heard(&mut self, db: &Db) -> BTreeMap<String, usize> {
        let mut words = BTreeMap::new();
        db.client.batch_execute("SELECT pg_notify(studio_channel(), 'the end')").await.expect("a notice");
        loop {
            let word =
                tokio::time::timeout(SOON, self.heard.recv()).await.expect("the end is heard").expect("it lives");
            if word == "the end" {
                return words;
            }
            *words.entry(word).or_default() += 1;
        }
    }
}

/// A pod without a handler: it only submits.
async fn gateway(config: Config) -> Pod {
    Pod::builder(config).start().await.expect("a pod")
}

fn hinted(pod: &str, kind: &str) -> usize {
    trace::hinted(pod).get(kind).copied().unwrap_or(0)
}

/// Waits until the pods have read what others wrote when they started.
async fn quiet(db: &Db, ears: &mut Ears) {
    loop {
        tokio::time::sleep(GAP * 2).await;
        if ears.heard(db).await.is_empty() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_wakes_one_pod_that_has_room_and_not_all() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let names = ["wakes-a", "wakes-b", "wakes-c", "wakes-d"];
        let mut pods = Vec::new();
        for name in names {
            pods.push(stage.pod(db.config(name)).await);
        }
        let gateway = gateway(db.config("wakes-gateway")).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        for _ in 0..3 {
            let before: usize = names.iter().map(|name| hinted(name, "recover")).sum();
            let run = gateway.submit(NewRun::new("echo")).await.unwrap();
            db.client.run_in_state(run, "succeeded", SOON).await;
            // A notice that went to others as well would have arrived by then.
            tokio::time::sleep(GAP * 2).await;
            let after: usize = names.iter().map(|name| hinted(name, "recover")).sum();
            let heard = ears.heard(&db).await;
            assert_eq!(heard.get("recover"), None, "not all are told: {heard:?}");
            // A sweep may have been quicker than the notice.
            assert!(heard.get("take").is_none_or(|n| *n == 1) && after - before <= 1, "{heard:?}, {before} to {after}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_submits_what_it_can_run_itself_tells_nobody() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let own = stage.pod(db.config("itself-a")).await;
        let _other = stage.pod(db.config("itself-b")).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        let run = own.submit(act()).await.unwrap();
        let begun = stage.act_of(run).await;
        let heard = ears.heard(&db).await;
        assert_eq!(heard, BTreeMap::new());
        begun.done(json!(null));
        db.client.run_in_state(run, "succeeded", SOON).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_submits_a_second_few_are_told_and_every_run_is_taken() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let _pods = [stage.pod(db.config("many-a")).await, stage.pod(db.config("many-b")).await];
        let gateway = gateway(db.config("many-gateway")).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        let began = Instant::now();
        for _ in 0..300 {
            gateway.submit(NewRun::new("echo")).await.unwrap();
        }
        eventually(SOON, "all have ended", || async {
            let left: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE state = 'running'", &[]).await;
            if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
        })
        .await;
        let gaps = usize::try_from(began.elapsed().as_millis() / GAP.as_millis()).unwrap() + 1;
        let heard = ears.heard(&db).await;
        let sent: usize = heard.values().sum();
        // The gateway, and each of the pods that pass on what they leave, tell at most four in a gap.
        assert!(sent <= gaps * 3 * 4, "{heard:?} in {gaps} gaps");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_chosen_and_has_no_room_tells_one_that_has() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let full = stage.pod(db.config("chosen-full").with(|c| c.capacity = 1)).await;
        full.start(act()).await.unwrap();
        let fills = stage.act().await;
        let _roomy = stage.pod(db.config("chosen-roomy")).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        let before = hinted("chosen-roomy", "recover");
        // An orphan of which only the full pod is told.
        let run = RunId::generate();
        let sql = "WITH run AS (INSERT INTO studio_runs (run_id, kind) VALUES ($1, 'act')) \
                   SELECT pg_notify(channel, 'take') FROM studio_pods WHERE pod_id = 'chosen-full'";
        db.client.query(sql, &[&run.as_uuid()]).await.unwrap();
        let begun = stage.act_of(run).await;
        assert_eq!(begun.pod(), "chosen-roomy");
        eventually(SOON, "it was told by the full pod", || async {
            let now = hinted("chosen-roomy", "recover");
            if now > before { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        fills.done(json!(null));
        begun.done(json!(null));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_in_a_callers_transaction_wakes_its_pod_at_the_commit_and_no_other() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let own = stage.pod(db.config("in-txn-a")).await;
        let _other = stage.pod(db.config("in-txn-b")).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        let mut client = sql::connect(&db.url).await;
        let before = hinted("in-txn-b", "runs") + hinted("in-txn-b", "recover");
        for submits in [false, true] {
            tokio::time::sleep(GAP).await;
            let txn = client.transaction().await.unwrap();
            let run = if submits {
                own.submit_in_txn(&txn, act()).await.unwrap()
            } else {
                own.start_in_txn(&txn, act()).await.unwrap()
            };
            txn.commit().await.unwrap();
            stage.act_of(run).await.done(json!(null));
            db.client.run_in_state(run, "succeeded", SOON).await;
            let heard = ears.heard(&db).await;
            let word = if submits { "take" } else { "runs" };
            assert_eq!(heard, BTreeMap::from([(word.to_owned(), 1)]));
        }
        assert_eq!(hinted("in-txn-b", "runs") + hinted("in-txn-b", "recover"), before, "the other was told nothing");
        // Several at once: the first is told, and those of the others that nobody saw by then.
        tokio::time::sleep(GAP).await;
        for _ in 0..5 {
            let txn = client.transaction().await.unwrap();
            own.submit_in_txn(&txn, NewRun::new("echo")).await.unwrap();
            txn.commit().await.unwrap();
        }
        eventually(SOON, "all have ended", || async {
            let left: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE state = 'running'", &[]).await;
            if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yield_wakes_another_pod_and_a_cancel_and_a_drain_only_whom_they_concern() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let names = ["concerns-a", "concerns-b", "concerns-c"];
        let mut pods = Vec::new();
        for name in names {
            pods.push(stage.pod(db.config(name)).await);
        }
        let operator = Operator::connect(&db.config("-")).await.unwrap();
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        let run = pods[0].start(act()).await.unwrap().run_id;
        stage.act_of(run).await.give_back();
        let again = stage.act_of(run).await;
        assert_ne!(again.pod(), "concerns-a", "the others go first");
        let heard = ears.heard(&db).await;
        assert_eq!(heard.get("recover"), None, "{heard:?}");
        assert!(heard.get("take").is_none_or(|n| *n == 1), "{heard:?}");

        let owner = again.pod().to_owned();
        let before = names.map(|name| hinted(name, "runs"));
        operator.cancel(run).await.unwrap();
        again.run.stopped().await;
        tokio::time::sleep(GAP).await;
        for (name, before) in names.iter().zip(before) {
            assert!(*name == owner || hinted(name, "runs") == before, "{name} was told of a run of {owner}");
        }
        let before = names.map(|name| hinted(name, "asked"));
        operator.drain("concerns-b").await.unwrap();
        pods[1].drain_requested().await;
        for (name, before) in names.iter().zip(before) {
            assert!(*name == "concerns-b" || hinted(name, "asked") == before, "{name} was asked");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_fleet_and_one_that_works_send_no_notice() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("silent-a")).await;
        let _b = stage.pod(db.config("silent-b")).await;
        let run = a.start(act()).await.unwrap().run_id;
        let works = stage.act_of(run).await;
        let mut ears = Ears::open(&db).await;
        quiet(&db, &mut ears).await;
        tokio::time::sleep(lease()).await;
        assert_eq!(ears.heard(&db).await, BTreeMap::new(), "nobody does anything");
        for n in 0..20 {
            works.run.checkpoint(json!(n)).await.unwrap();
            a.start(NewRun::new("echo")).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ears.heard(&db).await, BTreeMap::new(), "runs are started, checkpointed and ended");
        works.done(json!(null));
        db.client.run_in_state(run, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run).await, told(&[("silent-a", Some("succeeded"))]));
    })
    .await;
}
