//! The callback for alerts: each pod calls its own, for each alert that it hears.

use std::sync::{Arc, Mutex, mpsc};

use podlock::{Alert, AlertKind, NewRun, Pod, PodEvent};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use crate::patience::SOON;
use crate::support::{Db, eventually, start_of, timed, trace, with_kinds};

/// The alerts that a callback got.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Alert>>>);

impl Heard {
    fn all(&self) -> Vec<Alert> {
        self.0.lock().unwrap().clone()
    }

    async fn pod(&self, db: &Db, name: &str) -> Pod {
        let heard = self.clone();
        let config = db.config(name).with(|c| c.max_crashes = 1);
        start_of(|| {
            let heard = heard.clone();
            with_kinds(Pod::builder(config.clone())).on_alert(move |alert| heard.0.lock().unwrap().push(alert.clone()))
        })
        .await
    }

    async fn hears(&self, what: &str, count: usize) -> Vec<Alert> {
        eventually(SOON, what, || async {
            let all = self.all();
            if all.len() >= count { Ok(all) } else { Err(format!("{all:#?}")) }
        })
        .await
    }
}

/// Appends an event to the log, as a pod does.
pub(super) async fn append(db: &Db, kind: &str, pod: &str, detail: Value) -> i64 {
    let sql = "SELECT studio_append_event($1, $2, gen_random_uuid(), 'writer', $3)";
    db.client.scalar(sql, &[&kind, &pod, &detail]).await
}

/// Issue: "Hooks: an application callback … for lost, quarantined, inactive".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pod_is_told_of_a_lost_pod_a_quarantined_run_and_inactive_workers_and_of_no_clean_stop() {
    timed(async {
        let db = Db::new().await;
        let (of_a, of_b) = (Heard::default(), Heard::default());
        let (a, b) = (of_a.pod(&db, "a").await, of_b.pod(&db, "b").await);
        let [c, d] = [Heard::default().pod(&db, "c").await, db.pod("d").await];
        let run = c.start(NewRun::new("wait")).await.unwrap().run_id;
        let (lost, stopped) = (c.incarnation(), d.incarnation());
        d.shutdown(SOON).await.unwrap();
        eventually(SOON, "the stopped pod is buried", || async {
            db.client.session_end(stopped).await.filter(|end| end.0 == "shutdown").ok_or_else(|| "not yet".to_owned())
        })
        .await;
        drop(c);
        db.client.run_in_state(run, "quarantined", SOON).await;
        append(&db, "workers_inactive", "w", json!({"workers": 3, "urls": ["http://a"]})).await;
        for heard in [&of_a, &of_b] {
            let alerts = heard.hears("the three alerts", 3).await;
            let kinds: Vec<_> = alerts.iter().map(|alert| alert.kind).collect();
            assert_eq!(kinds, [AlertKind::Lost, AlertKind::Quarantined, AlertKind::Inactive], "{alerts:#?}");
            let of_lost = &alerts[0];
            assert_eq!((of_lost.pod.as_str(), of_lost.incarnation), ("c", lost));
            assert_eq!((of_lost.reason.as_deref(), &*of_lost.schema), (Some("lost"), "public"));
            assert_eq!(of_lost.id, format!("{}-{lost}", of_lost.idx));
            assert!(["a", "b"].contains(&&*of_lost.by), "{of_lost:?}");
            let of_run = &alerts[1];
            assert_eq!((of_run.run_id, of_run.run_kind.as_deref()), (Some(run), Some("wait")));
            assert_eq!(of_run.reason.as_deref(), Some("crashes"));
            assert_eq!((alerts[2].workers, alerts[2].pod.as_str()), (Some(3), "w"));
        }
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// A pod that takes a dead pod's name ends it, before anybody buries it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_is_told_for_the_incarnation_that_was_replaced_and_hand_made_rows_harm_nothing() {
    timed(async {
        let db = Db::new().await;
        let heard = Heard::default();
        let pod = heard.pod(&db, "a").await;
        let replaced = Uuid::now_v7();
        for detail in [
            json!({"replaced": "no uuid", "reason": "lost"}),
            json!({"reason": "lost"}),
            json!({"replaced": Uuid::now_v7(), "reason": "shutdown"}),
            json!({"replaced": Uuid::now_v7(), "reason": "of a newer version"}),
            json!({"replaced": Uuid::now_v7(), "reason": ["lost"]}),
            json!({}),
        ] {
            append(&db, "joined", "b", detail).await;
        }
        append(&db, "buried", "x\ny", json!({"reason": "lost"})).await;
        append(&db, "quarantined", "b", json!("no object")).await;
        append(&db, "joined", "b", json!({"replaced": replaced, "reason": "replaced", "cause": "killed"})).await;
        let alerts = heard.hears("the alerts", 2).await;
        assert_eq!((alerts[0].kind, alerts[0].run_id), (AlertKind::Quarantined, None));
        assert_eq!((alerts[1].incarnation.as_uuid(), alerts[1].reason.as_deref()), (replaced, Some("replaced")));
        assert_eq!(alerts[1].cause, None, "the cause is that of another incarnation");
        assert_eq!(heard.all().len(), 2);
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callback_that_panics_is_called_again_and_one_that_is_slow_misses_alerts_which_is_said() {
    timed(async {
        let db = Db::new().await;
        let name = "hooks-slow";
        let heard = Heard::default();
        let (release, gate) = mpsc::channel::<()>();
        let (gate, config) = (Arc::new(Mutex::new(gate)), db.config(name));
        let pod = start_of(|| {
            let (heard, gate) = (heard.clone(), Arc::clone(&gate));
            Pod::builder(config.clone()).on_alert(move |alert| {
                heard.0.lock().unwrap().push(alert.clone());
                match alert.workers {
                    Some(1) => panic!("as asked"),
                    Some(2) => gate.lock().unwrap().recv().unwrap(),
                    _ => {}
                }
            })
        })
        .await;
        let mut events = pod.events();
        append(&db, "workers_inactive", "w", json!({"workers": 1})).await;
        append(&db, "workers_inactive", "w", json!({"workers": 2})).await;
        heard.hears("it is called again after a panic", 2).await;
        let sql = "SELECT studio_append_event('quarantined', 'w', gen_random_uuid(), 'w',
                     jsonb_build_object('run', gen_random_uuid())) FROM generate_series(1, 600)";
        db.client.execute(sql, &[]).await.unwrap();
        // The pod publishes this event after the alert of the same row.
        let mut seen = 0;
        while seen < 600 {
            seen += match events.recv().await {
                Ok(PodEvent::Quarantined { .. }) => 1,
                Ok(_) => 0,
                Err(RecvError::Lagged(missed)) => missed,
                Err(RecvError::Closed) => panic!("the pod has ended"),
            };
        }
        release.send(()).unwrap();
        append(&db, "workers_inactive", "w", json!({"workers": 3})).await;
        eventually(SOON, "the last alert", || async {
            let all = heard.all();
            if all.last().and_then(|alert| alert.workers) == Some(3) { Ok(()) } else { Err(format!("{}", all.len())) }
        })
        .await;
        let logged = |event: &str| {
            trace::events(name)
                .into_iter()
                .filter(|e| e.get("event").is_some_and(|seen| seen == event))
                .collect::<Vec<_>>()
        };
        assert_eq!(logged("alert_hook_panicked").len(), 1);
        let missed: usize = logged("alert_hook_lagged").iter().map(|e| e["missed"].parse::<usize>().unwrap()).sum();
        assert!(missed >= 600 - 256 && heard.all().len() == 603 - missed, "missed {missed}, got {}", heard.all().len());
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
