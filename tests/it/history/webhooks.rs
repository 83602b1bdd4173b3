//! Webhooks: one pod of the fleet delivers the alerts of the log, signed, in order, at least once.

use std::sync::Arc;
use std::time::Duration;

use podlock::http::{Webhook, webhook};
use podlock::{Config, ErrorKind, Pod};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::alerts::append;
use crate::patience::SOON;
use crate::receiver::{Answer, Got, Receiver};
use crate::support::{Db, eventually, sql, start, timed, trace};

/// The bytes `a…x`, and `A…X`.
const SECRETS: [&str; 2] = ["whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"];
const MS: Duration = Duration::from_millis(1);

/// A webhook with short delays.
fn hook(url: &str) -> Webhook {
    Webhook::new(url, SECRETS[0]).unwrap().delays(MS, 20 * MS)
}

/// A pod that looks at its webhook every 150 ms.
fn keen(db: &Db, name: &str) -> Config {
    db.config(name).with(|c| c.beat_interval = Some(150 * MS))
}

/// A pod with the webhook, once some pod delivers to it.
async fn pod(db: &Db, name: &str, hook: Webhook) -> Pod {
    let pod = start(keen(db, name)).await;
    webhook(&pod, hook).unwrap();
    deliverer(db).await;
    pod
}

/// The pod that delivers.
async fn deliverer(db: &Db) -> uuid::Uuid {
    eventually(SOON, "a pod delivers", || async {
        let sql = "SELECT w.incarnation FROM studio_webhooks w JOIN studio_pods p USING (incarnation)";
        let row = db.client.query_opt(sql, &[]).await.unwrap();
        row.map(|row| row.get(0)).ok_or_else(|| "none".to_owned())
    })
    .await
}

/// Appends an alert, and returns its id.
async fn alert(db: &Db, workers: i64) -> String {
    let idx = append(db, "workers_inactive", "w", json!({"workers": workers})).await;
    let sql = "SELECT concat(idx, '-', incarnation) FROM studio_pod_events WHERE idx = $1";
    db.client.scalar(sql, &[&idx]).await
}

async fn accepted(receiver: &Receiver, expected: &[String]) {
    eventually(SOON, "the alerts are delivered", || async {
        let accepted = receiver.accepted();
        if accepted == expected { Ok(()) } else { Err(format!("{accepted:?}, expected {expected:?}")) }
    })
    .await;
}

/// The position that is written.
async fn reached(db: &Db, name: &str) -> i64 {
    db.client.scalar("SELECT idx FROM studio_webhooks WHERE name = $1", &[&name]).await
}

fn logged(pod: &str, event: &str) -> Vec<trace::Event> {
    trace::events(pod).into_iter().filter(|e| e.get("event").is_some_and(|seen| seen == event)).collect()
}

/// HMAC-SHA256 as RFC 2104 writes it, with the server's own SHA-256, in base64.
async fn hmac(db: &Db, key: &[u8], message: &[u8]) -> String {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let sha = |text: Vec<u8>| async move { db.client.scalar::<Vec<u8>>("SELECT sha256($1::bytea)", &[&text]).await };
    let inner = sha([&pad(0x36)[..], message].concat()).await;
    let outer = sha([&pad(0x5c)[..], &inner].concat()).await;
    db.client.scalar("SELECT encode($1::bytea, 'base64')", &[&outer]).await
}

/// Issue: "a webhook (signed …) for lost, quarantined, inactive". By the convention "Standard Webhooks".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_come_in_the_order_of_the_log_each_signed_with_each_secret_and_no_secret_is_shown() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::start().await;
        alert(&db, 1).await;
        let name = "webhook-signs";
        let (a, c) = (pod(&db, name, hook(&receiver.url).secret(SECRETS[1]).unwrap()).await, db.pod("c").await);
        let lost = c.incarnation();
        drop(c);
        eventually(SOON, "the lost pod is told", || async {
            if receiver.accepted().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        let run = uuid::Uuid::now_v7();
        append(&db, "quarantined", "b", json!({"run": run, "kind": "llm", "key": null, "why": "a fence"})).await;
        alert(&db, 7).await;
        let got = eventually(SOON, "all three", || async {
            let got = receiver.got();
            if got.len() == 3 { Ok(got) } else { Err(format!("{got:#?}")) }
        })
        .await;
        let told: Vec<_> = got.iter().map(|got| got.alert["type"].as_str().unwrap()).collect();
        assert_eq!(told, ["lost", "quarantined", "inactive"], "a first start begins at the end of the log");
        let of_lost = &got[0].alert;
        assert_eq!((&of_lost["pod"], &of_lost["incarnation"]), (&json!("c"), &json!(lost)));
        assert_eq!(
            (&of_lost["reason"], &of_lost["by"], &of_lost["schema"]),
            (&json!("lost"), &json!(name), &json!("public"))
        );
        assert_eq!(of_lost["run_id"], json!(null));
        let of_run = &got[1].alert;
        assert_eq!((&of_run["run_id"], &of_run["run_kind"]), (&json!(run), &json!("llm")));
        assert_eq!((&of_run["reason"], &got[2].alert["workers"]), (&json!("unclaimable"), &json!(7)));
        for got in &got {
            assert_eq!((&json!(got.id), &*got.headers["content-type"]), (&got.alert["id"], "application/json"));
            let message = format!("{}.{}.{}", got.id, got.headers["webhook-timestamp"], got.body);
            let mut expected = Vec::new();
            for key in [&b"abcdefghijklmnopqrstuvwx"[..], b"ABCDEFGHIJKLMNOPQRSTUVWX"] {
                expected.push(format!("v1,{}", hmac(&db, key, message.as_bytes()).await));
            }
            assert_eq!(got.headers["webhook-signature"], expected.join(" "));
        }
        a.shutdown(SOON).await.unwrap();
        let shown = format!("{:?} {:?}", trace::events(name), hook(&receiver.url));
        assert!(!shown.contains("YWJj") && !shown.contains("abcdef") && !shown.contains("QUJD"), "{shown}");
        assert!(!shown.contains("/alerts?from"), "a path may be a secret: {shown}");
    })
    .await;
}

/// Issue: "retried". A redirect is not followed, and a long body is not read to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_fails_is_made_again_with_the_same_id_and_the_next_alert_waits() {
    timed(async {
        let db = Db::new().await;
        let answers = [Some(500), None, Some(302), Some(404), Some(429), Some(200)];
        let receiver = Receiver::answering(move |_, number| match answers.get(number) {
            Some(Some(status)) => Answer::Status(*status),
            Some(None) => Answer::Hang,
            None => Answer::Status(204),
        })
        .await;
        let a = pod(&db, "webhook-retries", hook(&receiver.url).timeout(Duration::from_secs(2))).await;
        let (first, second) = (alert(&db, 1).await, alert(&db, 2).await);
        accepted(&receiver, &[first.clone(), second.clone()]).await;
        let ids = receiver.ids();
        assert_eq!(ids, [vec![first; 6], vec![second]].concat());
        let got = receiver.got();
        assert!(got[..6].iter().all(|again| again.body == got[0].body), "the same message");
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_cannot_be_reached_gets_the_alert_when_it_is_back() {
    timed(async {
        let db = Db::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let name = "webhook-refused";
        let hook = hook(&format!("http://{address}/alerts")).attempts(50).delays(MS, Duration::from_secs(1));
        let a = pod(&db, name, hook).await;
        let id = alert(&db, 1).await;
        eventually(SOON, "an attempt failed", || async {
            let failed = logged(name, "webhook_failed");
            if failed.iter().any(|e| e["error"].contains("cannot connect")) {
                Ok(())
            } else {
                Err(format!("{failed:?}"))
            }
        })
        .await;
        let receiver = Receiver::on(TcpListener::bind(address).await.unwrap(), |_, _| Answer::Status(200));
        accepted(&receiver, &[id]).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Issue: "bounded". L12: one alert that nobody takes delays the others, and never stops them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_an_alert_that_cannot_be_delivered_is_given_up_after_its_attempts_and_the_next_one_follows() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::answering(|got, _| {
            Answer::Status(match got.alert["workers"].as_i64() {
                Some(1) => 500,
                Some(2) => 410,
                Some(3) => 422,
                _ => 200,
            })
        })
        .await;
        let name = "webhook-gives-up";
        let a = pod(&db, name, hook(&receiver.url).attempts(3)).await;
        let mut ids = Vec::new();
        for workers in 1..=4 {
            ids.push(alert(&db, workers).await);
        }
        accepted(&receiver, &ids[3..]).await;
        let tries = [vec![ids[0].clone(); 3], ids[1..].to_vec()].concat();
        assert_eq!(receiver.ids(), tries, "a refusal of the message itself is final");
        let given_up: Vec<_> = logged(name, "webhook_given_up").into_iter().map(|e| e["alert"].clone()).collect();
        assert_eq!(given_up, ids[..3]);
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// One pod delivers. When it dies, another goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pod_of_the_fleet_delivers_and_another_takes_over_when_it_dies() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::start().await;
        let mut pods = Vec::new();
        for name in ["webhook-1", "webhook-2", "webhook-3"] {
            pods.push(pod(&db, name, hook(&receiver.url)).await);
        }
        assert_eq!(deliverer(&db).await, pods[0].incarnation().as_uuid());
        let mut ids = Vec::new();
        for workers in 0..20 {
            ids.push(alert(&db, workers).await);
        }
        accepted(&receiver, &ids).await;
        let dead = pods.remove(0);
        let lost = dead.incarnation();
        drop(dead);
        ids.push(alert(&db, 20).await);
        eventually(SOON, "the others tell of it", || async {
            let got = receiver.got();
            let tells = |got: &Got| got.alert["incarnation"] == json!(lost);
            let is_all = got.iter().any(tells) && got.iter().any(|got| got.alert["workers"] == 20);
            if is_all { Ok(()) } else { Err(format!("{:?}", receiver.ids())) }
        })
        .await;
        assert_ne!(deliverer(&db).await, lost.as_uuid());
        let mut once = receiver.ids();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), 22, "each alert once, and that of the deliverer itself: {:?}", receiver.ids());
        for pod in pods {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// At least once: the deliverer dies after the receiver has the alert, and before it has written so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_whose_deliverer_dies_before_it_could_write_so_is_delivered_again_with_the_same_id() {
    timed(async {
        let db = Db::new().await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let receiver = Receiver::answering(move |_, number| match number {
            0 => Answer::Gate(Arc::clone(&held)),
            _ => Answer::Status(200),
        })
        .await;
        let a = pod(&db, "webhook-dies", hook(&receiver.url).timeout(Duration::from_secs(30))).await;
        let b = pod(&db, "webhook-repeats", hook(&receiver.url)).await;
        let before = reached(&db, "default").await;
        let id = alert(&db, 1).await;
        eventually(SOON, "the receiver has it", || async {
            if receiver.ids().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        // From here on nobody can write the position.
        let other = sql::connect(&db.url).await;
        other.batch_execute("BEGIN; SELECT FROM studio_webhooks FOR UPDATE").await.unwrap();
        gate.add_permits(1);
        eventually(SOON, "the receiver accepted it", || async {
            if receiver.accepted().len() == 1 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let dead = a.incarnation();
        drop(a);
        eventually(SOON, "it is buried", || async {
            db.client.session_end(dead).await.ok_or_else(|| "not yet".to_owned())
        })
        .await;
        assert_eq!(reached(&db, "default").await, before, "the position was not written");
        other.batch_execute("COMMIT").await.unwrap();
        eventually(SOON, "it is delivered again, and the lost deliverer after it", || async {
            let got = receiver.got();
            if got.len() == 3 { Ok(()) } else { Err(format!("{got:#?}")) }
        })
        .await;
        let got = receiver.got();
        assert_eq!([&got[0].id, &got[1].id], [&id, &id]);
        assert_eq!((&got[0].body, &got[2].alert["incarnation"]), (&got[1].body, &json!(dead)));
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Issue: "bounded". More alerts than a page of the log has, among events that are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_alerts_is_delivered_one_after_another_and_other_events_are_passed_over() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::start().await;
        let a = pod(&db, "webhook-burst", hook(&receiver.url)).await;
        let sql = "SELECT studio_append_event(CASE WHEN n % 8 = 0 THEN 'workers_inactive' ELSE 'claimed' END, 'w',
                     gen_random_uuid(), 'w', jsonb_build_object('workers', n)) FROM generate_series(1, 800) n";
        db.client.execute(sql, &[]).await.unwrap();
        eventually(SOON, "all are delivered", || async {
            let count = receiver.accepted().len();
            if count == 100 { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
        let told: Vec<_> = receiver.got().iter().map(|got| got.alert["workers"].as_i64().unwrap()).collect();
        assert_eq!(told, (1..=100).map(|n| n * 8).collect::<Vec<_>>());
        let end: i64 = db.client.scalar("SELECT max(idx) FROM studio_pod_events", &[]).await;
        eventually(SOON, "the position is written", || async {
            let reached = reached(&db, "default").await;
            if reached >= end { Ok(()) } else { Err(format!("{reached} of {end}")) }
        })
        .await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Retention cuts the log, and a failover may take its end away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_under_the_position_or_ends_before_it_is_read_from_where_it_is() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::start().await;
        let mut ids = Vec::new();
        for workers in 1..=3 {
            ids.push(alert(&db, workers).await);
        }
        let name = "webhook-cut";
        db.client
            .batch_execute(
                "UPDATE studio_pod_events SET kind = 'snapshot', detail = '{\"roster\": [], \"suspected\": {}}'
                  WHERE idx = (SELECT idx FROM studio_pod_events ORDER BY idx OFFSET 1 LIMIT 1);
                 DELETE FROM studio_pod_events WHERE idx = (SELECT min(idx) FROM studio_pod_events);
                 INSERT INTO studio_webhooks (name, idx) VALUES ('cut', 0), ('beyond', 1000000)",
            )
            .await
            .unwrap();
        let a = start(keen(&db, name)).await;
        webhook(&a, hook(&receiver.url).name("cut")).unwrap();
        accepted(&receiver, &ids[2..]).await;
        let cuts = || {
            logged(name, "webhook_log_cut")
                .into_iter()
                .map(|e| (e["webhook"].clone(), e["from"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(cuts(), [("cut".to_owned(), "0".to_owned())]);
        let of_beyond = Receiver::start().await;
        webhook(&a, hook(&of_beyond.url).name("beyond")).unwrap();
        eventually(SOON, "the position is corrected", || async {
            let reached = reached(&db, "beyond").await;
            if reached < 1_000_000 { Ok(()) } else { Err(format!("{reached}")) }
        })
        .await;
        let id = alert(&db, 4).await;
        accepted(&of_beyond, std::slice::from_ref(&id)).await;
        accepted(&receiver, &[ids[2].clone(), id]).await;
        assert_eq!(cuts().len(), 2);
        let error = webhook(&a, hook(&receiver.url).name("cut")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "two of one name would both deliver");
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// L8: a deliverer that is in the roster and stands still is taken over by the looks of another pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deliverer_that_stands_still_is_taken_over() {
    timed(async {
        let db = Db::new().await;
        let receiver = Receiver::start().await;
        let still = db.pod("webhook-still").await;
        let sql = "INSERT INTO studio_webhooks (name, idx, incarnation, rounds) VALUES ('default', 0, $1, 5)";
        let id = alert(&db, 1).await;
        db.client.execute(sql, &[&still.incarnation().as_uuid()]).await.unwrap();
        let a = pod(&db, "webhook-moves", hook(&receiver.url).timeout(20 * MS)).await;
        accepted(&receiver, &[id]).await;
        for pod in [a, still] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// L12: a transaction that has locked the row delays the alerts of this webhook, and they come when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_locked_row_delays_the_alerts_and_a_stop_waits_for_no_attempt() {
    timed(async {
        let db = Db::new().await;
        let receiver =
            Receiver::answering(|_, number| if number == 0 { Answer::Status(200) } else { Answer::Hang }).await;
        let name = "webhook-locked";
        let a = pod(&db, name, hook(&receiver.url).timeout(Duration::from_secs(30))).await;
        let other = sql::connect(&db.url).await;
        other.batch_execute("BEGIN; SELECT FROM studio_webhooks FOR UPDATE").await.unwrap();
        let id = alert(&db, 1).await;
        let sql = "SELECT rounds FROM studio_webhooks";
        let rounds: i64 = db.client.scalar(sql, &[]).await;
        eventually(SOON, "the deliverer says that it is held up", || async {
            if logged(name, "webhook_delayed").is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
        assert_eq!((receiver.ids().len(), db.client.scalar::<i64>(sql, &[]).await), (0, rounds));
        other.batch_execute("COMMIT").await.unwrap();
        accepted(&receiver, &[id]).await;
        alert(&db, 2).await;
        eventually(SOON, "an attempt is under way", || async {
            if receiver.ids().len() == 2 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        // The attempt would take 30 s.
        tokio::time::timeout(Duration::from_secs(25), a.shutdown(SOON)).await.expect("it does not wait").unwrap();
    })
    .await;
}
