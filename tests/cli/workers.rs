//! The worker registry as users touch it: the routes of the reference pod, and `podlock workers`.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, Lines, PodProcess, TEST, answer, fields, wait_for, within};

/// The names of a worker in `podlock workers`, in their order. Over HTTP `origin` stands behind `url`.
const WORKER: [&str; 9] =
    ["worker_id", "url", "owner_pod", "owner_incarnation", "health", "liveness", "reported_at", "spec", "health_check"];
const NO_WORKER: &str = "018f0000-0000-7000-8000-000000000000";

async fn put(pod: &PodProcess, body: &Value) -> (u16, Value) {
    answer(pod.http.put(format!("{}/v1/workers", pod.url)).json(body).send().await.unwrap()).await
}

/// Registers a worker, and returns its id.
async fn registered(pod: &PodProcess, body: &Value) -> String {
    let (status, body) = put(pod, body).await;
    assert_eq!((status, &body["published"]), (200, &json!(true)), "{body}");
    body["worker_id"].as_str().unwrap().to_owned()
}

/// Waits until this pod shows the worker, or does not.
async fn shown(pod: &PodProcess, id: &str, is_shown: bool) -> Value {
    wait_for(&format!("worker {id} is shown: {is_shown}"), || async {
        let (status, worker) = pod.get(&format!("/v1/workers/{id}")).await;
        if (status == 200) == is_shown { Ok(worker) } else { Err(format!("{status}: {worker}")) }
    })
    .await
}

#[test]
fn a_worker_is_registered_seen_everywhere_replaced_and_removed() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a", &[]).await, db.pod("b", &[]).await);
        assert_eq!(a.get("/v1/workers").await, (200, json!([])));
        assert_eq!(db.json(&["workers", "list"]).await, json!([]));
        let spec = json!({"kind": "llm", "model": "m", "labels": {"zone": "z"}, "weight": 2, "of_ours": [1]});
        let id = registered(&a, &json!({"url": "http://127.0.0.1:9", "spec": spec})).await;

        // Published before the answer: the next command sees it.
        let listed = db.ok(&["workers", "list", "-o", "jsonl"]).await;
        assert_eq!(fields(&listed), WORKER);
        let row: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!((&row["worker_id"], &row["url"]), (&json!(id), &json!("http://127.0.0.1:9")));
        assert_eq!((&row["owner_pod"], &row["spec"], &row["health_check"]), (&json!("a"), &spec, &json!(null)));
        assert_eq!((&row["health"], &row["liveness"]), (&json!("ready"), &json!("active")));
        assert!(row["reported_at"].as_str().unwrap().ends_with('Z'), "{row}");
        assert_eq!(row["owner_incarnation"], db.json(&["pods", "list"]).await[0]["incarnation"]);
        assert_eq!(db.json(&["workers", "describe", &id]).await, row);

        let local = shown(&a, &id, true).await;
        let text = a.http.get(format!("{}/v1/workers/{id}", a.url)).send().await.unwrap().text().await.unwrap();
        let mut names = WORKER.to_vec();
        names.insert(2, "origin");
        assert_eq!(fields(&text), names);
        assert_eq!(
            (&local["origin"], &local["owner_pod"], &local["health"]),
            (&json!("local"), &json!("a"), &json!("ready"))
        );
        let mesh = wait_for("the other pod may choose it", || async {
            let worker = shown(&b, &id, true).await;
            if worker["liveness"] == "active" { Ok(worker) } else { Err(worker.to_string()) }
        })
        .await;
        assert_eq!((&mesh["origin"], &mesh["owner_pod"], &mesh["spec"]), (&json!("mesh"), &json!("a"), &spec));
        assert_eq!(b.get("/v1/workers").await.1[0]["worker_id"], id);

        // A worker of another pod is left alone.
        let (status, refused) = b.delete(&format!("/v1/workers/{id}")).await;
        assert_eq!((status, &refused["kind"], &refused["owner_pod"]), (409, &json!("foreign_worker"), &json!("a")));
        assert!(refused["error"].as_str().unwrap().contains("belongs to pod a"), "{refused}");

        let again = registered(&a, &json!({"url": "http://127.0.0.1:9", "spec": {"model": "n"}})).await;
        assert_eq!(again, id, "the same URL on the same pod is the same worker");
        wait_for("the other pod sees the new spec", || async {
            let worker = shown(&b, &id, true).await;
            if worker["spec"] == json!({"model": "n"}) { Ok(()) } else { Err(worker.to_string()) }
        })
        .await;

        let (status, removed) = a.delete(&format!("/v1/workers/{id}")).await;
        assert_eq!((status, &removed), (200, &json!({"worker_id": id, "published": true})));
        assert_eq!(db.json(&["workers", "list"]).await, json!([]));
        assert_eq!(a.delete(&format!("/v1/workers/{id}")).await.0, 404);
        shown(&b, &id, false).await;
        let done = db.run(&["workers", "describe", &id]).await;
        assert!(done.code == 1 && done.stderr.contains("there is no worker"), "{done:?}");
    });
}

#[test]
fn a_check_decides_the_health_and_lists_are_narrowed_by_it() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a", &[]).await, db.pod("b", &[]).await);
        let check = json!({"path": "/livez", "interval_ms": 50, "timeout_ms": 5000});
        let good = registered(&a, &json!({"url": b.url, "health_check": check})).await;
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // It stays "not_ready" for the rest of the test.
        let check =
            json!({"tcp": true, "interval_ms": 50, "timeout_ms": 1000, "fail_after": 1, "give_up_after": 100_000});
        let bad = registered(&b, &json!({"url": format!("tcp://{closed}"), "health_check": check})).await;
        let ids = async |args: &[&str]| {
            let workers = db.json(&[&["workers", "list"], args].concat()).await;
            let ids = workers.as_array().unwrap().iter().map(|w| w["worker_id"].as_str().unwrap().to_owned());
            ids.collect::<Vec<_>>()
        };
        wait_for("both were probed", || async {
            let (ready, not) = (ids(&["--health", "ready"]).await, ids(&["--health", "not_ready"]).await);
            if (&ready, &not) == (&vec![good.clone()], &vec![bad.clone()]) {
                Ok(())
            } else {
                Err(format!("{ready:?} {not:?}"))
            }
        })
        .await;
        assert_eq!(ids(&[]).await, [&*good, &*bad], "by pod");
        assert_eq!(ids(&["--pod", "b"]).await, [&*bad]);
        assert_eq!(ids(&["--pod", "b", "--health", "ready"]).await, [""; 0]);
        assert_eq!(ids(&["--liveness", "active"]).await, [&*good, &*bad]);
        assert_eq!(ids(&["--liveness", "inactive"]).await, [""; 0]);
        assert_eq!(ids(&["--limit", "1"]).await, [&*good]);
        let table = db.ok(&["workers", "list"]).await;
        assert!(table.starts_with("WORKER_ID") && table.lines().count() == 3 && table.contains("not_ready"), "{table}");
        let described = db.ok(&["workers", "describe", &good]).await;
        assert!(described.contains("\nhealth") && described.contains("\"interval_ms\":50"), "{described}");
        for args in [
            &["workers", "list", "--health", "well"][..],
            &["workers", "watch", "-o", "json"],
            &["workers", "describe", "x"],
        ] {
            let done = db.run(args).await;
            assert_eq!(done.code, 2, "{args:?}: {done:?}");
        }
    });
}

#[test]
fn each_refusal_says_which_field_was_wrong() {
    within(TEST, async {
        let db = Db::new().await;
        let mut command = db.command(&["pod", "--name", "a"]);
        command.env("PODLOCK_WORKER_SPEC_MAX_BYTES", "100");
        let pod = PodProcess::start(command).await;
        let url = "http://127.0.0.1:9";
        for (body, word) in [
            (json!({}), "url is missing"),
            (json!({"url": 3}), "url: expected a string"),
            (json!({"url": "nowhere"}), "URL \"nowhere\" is no URL"),
            (json!({"url": "http://u:hunter2@a"}), "has a user or a password"),
            (json!({"url": url, "specs": {}}), "no field \"specs\""),
            (json!({"url": url, "spec": []}), "spec: expected an object"),
            (json!({"url": url, "spec": {"kind": 1}}), "spec.kind: expected a string"),
            (json!({"url": url, "spec": {"labels": {"zone": 1}}}), "spec.labels.zone: expected a string"),
            (json!({"url": url, "spec": {"capacity": 0}}), "spec.capacity: expected"),
            (json!({"url": url, "spec": {"api_key": ["hunter2"]}}), "spec.api_key: expected a string"),
            (json!({"url": url, "health_check": 1}), "health_check"),
            (json!({"url": url, "health_check": {"interval_ms": 5}}), "path, tcp (true) and function"),
            (json!({"url": url, "health_check": {"path": "health"}}), "path: expected"),
            (json!({"url": url, "health_check": {"path": "/", "timeout_ms": 0}}), "timeout_ms: expected"),
            (json!({"url": url, "health_check": {"path": "/", "intervall_ms": 5}}), "no field \"intervall_ms\""),
            (json!({"url": "tcp://a:1", "health_check": {"path": "/"}}), "is not HTTP"),
        ] {
            let (status, answer) = put(&pod, &body).await;
            assert_eq!((status, &answer["kind"]), (422, &json!("invalid_input")), "{body}: {answer}");
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains(word) && !error.contains("hunter2"), "no {word:?} in {error}");
        }
        let (status, large) = put(&pod, &json!({"url": url, "spec": {"model": "m".repeat(100)}})).await;
        assert_eq!((status, &large["kind"]), (413, &json!("too_large")));
        assert!(large["error"].as_str().unwrap().contains("worker_spec_max_bytes"), "{large}");
        assert_eq!(pod.get("/v1/workers/x").await.0, 400);
        assert_eq!(pod.get(&format!("/v1/workers/{NO_WORKER}")).await.0, 404);
        assert_eq!(pod.delete(&format!("/v1/workers/{NO_WORKER}")).await.0, 404);
        assert_eq!(pod.delete("/v1/workers").await.0, 405);
        assert_eq!(pod.get("/v1/workers").await, (200, json!([])), "nothing was registered");
    });
}

#[test]
fn secrets_are_neither_shown_nor_stored() {
    within(TEST, async {
        let db = Db::new().await;
        let mut command = db.command(&["pod", "--name", "a"]);
        command.env("PODLOCK_LEASE", "3s").env("PODLOCK_LOG", "podlock=trace");
        let mut a = PodProcess::start(command).await;
        let b = db.pod("b", &[]).await;
        let id = registered(
            &a,
            &json!({
                "url": b.url,
                "spec": {"model": "m", "api_key": "hunter2", "secrets": {"token": "hunter3"}},
                "health_check": {"path": "/livez", "interval_ms": 50, "timeout_ms": 5000,
                                 "headers": {"authorization": {"secret": "token"}}},
            }),
        )
        .await;
        wait_for("it is ready", || async {
            let worker = shown(&b, &id, true).await;
            if worker["health"] == "ready" { Ok(()) } else { Err(worker.to_string()) }
        })
        .await;
        let client = db.client().await;
        let mut said = Vec::new();
        for table in [
            "studio_workers",
            "studio_worker_pods",
            "studio_worker_tombstones",
            "studio_worker_status",
            "studio_pod_events",
        ] {
            let rows = client.query(&format!("SELECT to_jsonb(t)::text FROM {table} t"), &[]).await.unwrap();
            said.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        for pod in [&a, &b] {
            said.push(pod.get("/v1/workers").await.1.to_string());
            said.push(pod.get(&format!("/v1/workers/{id}")).await.1.to_string());
        }
        said.push(db.ok(&["workers", "list"]).await);
        said.push(db.ok(&["workers", "describe", &id]).await);
        assert!(said.iter().any(|text| text.contains(&id)), "{said:#?}");
        a.signal(Signal::TERM);
        a.ended().await;
        said.extend(a.log.all());
        let leaks: Vec<_> = said.iter().filter(|text| text.contains("hunter")).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
    });
}

#[test]
fn a_worker_of_a_killed_pod_is_gone_for_every_pod_and_the_watch_says_what_changed() {
    within(TEST, async {
        let db = Db::new().await;
        let (mut a, b) = (db.pod("a", &[]).await, db.pod("b", &[]).await);
        let mut watch = db.command(&["workers", "watch", "--every", "20ms", "-o", "jsonl"]);
        let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let seen = Lines::read(watch.stdout.take().unwrap());
        let id = registered(&a, &json!({"url": "http://127.0.0.1:9", "spec": {"model": "m"}})).await;
        let kept = registered(&b, &json!({"url": "http://127.0.0.1:8", "spec": {"model": "m"}})).await;
        shown(&b, &id, true).await;
        let change = async |change: &str, id: &str| {
            seen.find(&format!("{id} {change}"), |line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["change"] == change && line["worker_id"] == id).then_some(line)
            })
            .await
        };
        let added = wait_for("the watch began before or after", || async {
            let found = seen
                .all()
                .iter()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|line| line["worker_id"] == id);
            found.ok_or_else(|| seen.all().join("\n"))
        })
        .await;
        assert!(["added", "present"].iter().any(|word| added["change"] == *word), "{added}");
        assert_eq!(added["owner_pod"], "a", "{added}");

        a.signal(Signal::KILL);
        a.ended().await;
        shown(&b, &id, false).await;
        assert_eq!(change("removed", &id).await["url"], "http://127.0.0.1:9");
        let left = db.json(&["workers", "list"]).await;
        assert_eq!((left.as_array().unwrap().len(), &left[0]["worker_id"]), (1, &json!(kept)));
        let (_, left) = b.get("/v1/workers").await;
        assert_eq!((left.as_array().unwrap().len(), &left[0]["worker_id"]), (1, &json!(kept)));

        let (status, _) = b.delete(&format!("/v1/workers/{kept}")).await;
        assert_eq!(status, 200);
        change("removed", &kept).await;
    });
}

/// Two pods may register one URL. The store has both workers. Each pod shows its own, and the others the lowest id.
#[test]
fn of_two_workers_with_one_url_a_pod_shows_its_own() {
    within(TEST, async {
        let db = Db::new().await;
        let (a, b, c) = (db.pod("a", &[]).await, db.pod("b", &[]).await, db.pod("c", &[]).await);
        let body = json!({"url": "http://127.0.0.1:9"});
        let (of_a, of_b) = (registered(&a, &body).await, registered(&b, &body).await);
        assert_eq!(db.json(&["workers", "list"]).await.as_array().unwrap().len(), 2);
        let lowest = of_a.clone().min(of_b.clone());
        for (pod, id) in [(&a, &of_a), (&b, &of_b), (&c, &lowest)] {
            wait_for("one worker is shown", || async {
                let (_, workers) = pod.get("/v1/workers").await;
                let ids: Vec<_> =
                    workers.as_array().unwrap().iter().map(|w| w["worker_id"].as_str().unwrap()).collect();
                if ids == [id] { Ok(()) } else { Err(format!("{ids:?}, not {id}")) }
            })
            .await;
        }
    });
}

#[test]
fn while_the_database_is_away_lists_are_answered_and_changes_are_published_later() {
    within(TEST, async {
        let server = tokio::task::spawn_blocking(|| crate::inherited::postgres().start().unwrap()).await.unwrap();
        let db = Db::on(&server).await;
        let (a, b) = (db.pod("a", &[]).await, db.pod("b", &[]).await);
        let id = registered(&a, &json!({"url": "http://127.0.0.1:9"})).await;
        shown(&b, &id, true).await;
        let server = tokio::task::spawn_blocking(move || {
            server.pause().unwrap();
            server
        })
        .await
        .unwrap();
        wait_for("the pods are cut off", || async {
            let (status, body) = b.get("/readyz").await;
            if status == 503 { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
        let (status, workers) = b.get("/v1/workers").await;
        assert_eq!((status, &workers[0]["worker_id"]), (200, &json!(id)), "{workers}");
        let (status, later) = put(&b, &json!({"url": "http://127.0.0.1:8"})).await;
        assert_eq!((status, &later["published"]), (200, &json!(false)), "{later}");
        let server = tokio::task::spawn_blocking(move || {
            server.resume().unwrap();
            server
        })
        .await
        .unwrap();
        shown(&a, later["worker_id"].as_str().unwrap(), true).await;
        drop((a, b));
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    });
}
