//! The HTTP interface of the reference pod.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, TEST, answer, finish, podlock, wait_for, within};

#[test]
fn a_run_is_started_described_and_cancelled() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let body = json!({"kind": "demo", "key": null, "input": {"chunks": 3, "delay_ms": 1, "resume": "restart"}});
        let (status, started) = pod.post(body).await;
        assert_eq!(status, 201, "{started}");
        let names: Vec<_> = started.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["fence", "incarnation", "pod_id", "run_id"]);
        assert_eq!(started["pod_id"], "web-0");
        let path = format!("/v1/runs/{}", started["run_id"].as_str().unwrap());
        let run = wait_for("the run has succeeded", || async {
            let (status, run) = pod.get(&path).await;
            assert_eq!(status, 200, "{run}");
            if run["state"] == "succeeded" { Ok(run) } else { Err(run.to_string()) }
        })
        .await;
        let fence = started["fence"].as_i64().unwrap();
        assert_eq!(
            run["output"]["result"],
            json!({"chunks": 3, "last": format!("chunk-3 a1 f{fence}"),
                   "segments": [{"from": 1, "to": 3, "attempt": 1, "fence": fence}]})
        );
        assert_eq!(run["checkpoint"]["done"], 3);
        assert_eq!(run, db.json(&["runs", "describe", run["run_id"].as_str().unwrap()]).await);
        let (status, ended) = pod.delete(&path).await;
        assert_eq!((status, &ended["kind"], &ended["state"]), (409, &json!("already_ended"), &json!("succeeded")));

        // It sleeps when it is cancelled. A write under way would be refused, and its handler is not told to stop.
        let long = pod.demo(json!({"chunks": 1000, "delay_ms": 600_000})).await;
        wait_for("the long run is executing", || async {
            let executing = pod.log.all().into_iter().any(|l| l.contains("\"executing\"") && l.contains(&long));
            if executing { Ok(()) } else { Err(pod.log.all().join("\n")) }
        })
        .await;
        let (status, cancelled) = pod.delete(&format!("/v1/runs/{long}")).await;
        assert_eq!((status, &cancelled["state"]), (200, &json!("cancelled")));
        let told = pod.log.event("told_to_stop").await;
        assert_eq!(told["run_id"], long);
    });
}

#[test]
fn a_busy_key_is_a_conflict_that_names_its_run() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let body = json!({"kind": "demo", "key": "k", "input": {"chunks": 1000, "delay_ms": 100}});
        let (status, first) = pod.post(body.clone()).await;
        assert_eq!(status, 201, "{first}");
        let (status, busy) = pod.post(body.clone()).await;
        assert_eq!((status, &busy["kind"], &busy["run_id"]), (409, &json!("key_busy"), &first["run_id"]), "{busy}");
        let (status, _) = pod.delete(&format!("/v1/runs/{}", first["run_id"].as_str().unwrap())).await;
        assert_eq!(status, 200);
        let (status, again) = pod.post(body).await;
        assert_eq!(status, 201, "a key is free when its run has ended: {again}");
    });
}

#[test]
fn a_probe_ends_with_0_for_a_ready_pod_alone() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("web-0", &[]).await;
        let probe = async |url: &str| finish(podlock(&["probe", "--timeout", "5s", url])).await;
        let readyz = format!("{}/readyz", pod.url);
        let done = probe(&readyz).await;
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
        let answer: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(answer["status"], "ready", "{done:?}");

        let done = probe(&format!("{}/nothing", pod.url)).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stdout.is_empty() && done.stderr.contains("404") && done.stderr.contains("not_found"), "{done:?}");

        pod.signal(Signal::KILL);
        pod.ended().await;
        let done = probe(&readyz).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("refused"), "{done:?}");

        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", mute.local_addr().unwrap());
        let done = finish(podlock(&["probe", "--timeout", "200ms", &url])).await;
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains("timed out"), "{done:?}");
    });
}

#[test]
fn each_refusal_says_what_was_wrong() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &["--capacity", "1"]).await;
        let none = "018f0000-0000-7000-8000-000000000000";
        let refused = |status: u16, body: &Value, due: u16, kind: &str, word: &str| {
            assert_eq!(status, due, "{body}");
            assert_eq!(body["kind"], kind, "{body}");
            assert!(body["error"].as_str().is_some_and(|error| error.contains(word)), "no {word:?} in {body}");
        };
        let cases = [
            (json!({"kind": "unknown"}), "no_handler", "unknown"),
            (json!({"kind": ""}), "invalid_input", "kind is empty"),
            (json!({"kind": "a\u{0}b"}), "invalid_input", "control character"),
            (json!({"kind": "demo", "key": "k".repeat(513)}), "invalid_input", "513 bytes"),
            (json!({"kind": "demo", "key": 3}), "invalid_input", "key is 3"),
            (json!({"kind": null}), "invalid_input", "kind is null"),
            (json!({"kind": "demo", "movable": 1}), "invalid_input", "movable is 1"),
            (json!({"kind": "demo", "movable": null}), "invalid_input", "movable is null"),
            (json!({"input": {}}), "invalid_input", "kind is missing"),
            (json!({"kind": "demo", "inputs": {}}), "invalid_input", "no field \"inputs\""),
            (json!([]), "invalid_input", "map"),
            (json!(["demo", null, {}]), "invalid_input", "map"),
            (json!({"kind": "demo", "input": []}), "invalid_input", "object"),
            (json!({"kind": "demo", "input": {"chunks": 0}}), "invalid_input", "chunks is 0"),
            (json!({"kind": "demo", "input": {"chunks": 100_001}}), "invalid_input", "100000"),
            (json!({"kind": "demo", "input": {"chunks": -1}}), "invalid_input", "chunks is -1"),
            (json!({"kind": "demo", "input": {"chunks": 1e18}}), "invalid_input", "whole number"),
            (json!({"kind": "demo", "input": {"delay_ms": 600_001}}), "invalid_input", "600000"),
            (json!({"kind": "demo", "input": {"resume": "later"}}), "invalid_input", "later"),
            (json!({"kind": "demo", "input": {"delay": 1}}), "invalid_input", "no field \"delay\""),
        ];
        for (body, kind, word) in cases {
            let (status, answer) = pod.post(body).await;
            refused(status, &answer, 422, kind, word);
        }
        let raw = |content_type: &'static str, body: String| {
            let request = pod.http.post(format!("{}/v1/runs", pod.url)).header("content-type", content_type).body(body);
            async { answer(request.send().await.unwrap()).await }
        };
        let (status, body) = raw("application/json", "{\"kind\": ".to_owned()).await;
        refused(status, &body, 400, "bad_json", "EOF");
        let (status, body) = raw("application/json", format!("{{\"kind\":{}", "[".repeat(100_000))).await;
        refused(status, &body, 400, "bad_json", "recursion");
        let (status, body) = raw("application/json", r#"{"kind":"demo","input":{"chunks":1e999}}"#.to_owned()).await;
        refused(status, &body, 400, "bad_json", "number");
        let (status, body) = raw("text/plain", "{}".to_owned()).await;
        refused(status, &body, 415, "unsupported_media_type", "application/json");
        let (status, body) = raw("application/json", format!("\"{}\"", "x".repeat(1024 * 1024))).await;
        refused(status, &body, 413, "too_large", "");
        let (status, body) = pod.get("/v1/runs/x").await;
        refused(status, &body, 400, "bad_request", "not a run's id");
        for path in ["/v1/runs/%FF", "/v1/runs/%00"] {
            let (status, body) = pod.get(path).await;
            assert_eq!((status, &body["kind"]), (400, &json!("bad_request")), "{body}");
        }
        let (status, body) = pod.get(&format!("/v1/runs/{none}")).await;
        refused(status, &body, 404, "not_found", none);
        let (status, body) = pod.delete(&format!("/v1/runs/{none}")).await;
        refused(status, &body, 404, "not_found", none);
        let (status, body) = pod.get("/nowhere").await;
        refused(status, &body, 404, "not_found", "/nowhere");
        let (status, body) = pod.get("/v1/runs").await;
        refused(status, &body, 400, "bad_request", "kind and key");
        let (status, body) = pod.delete("/v1/runs").await;
        refused(status, &body, 405, "method_not_allowed", "DELETE");

        pod.demo(json!({"chunks": 1000, "delay_ms": 100})).await;
        let full = pod.http.post(format!("{}/v1/runs", pod.url)).json(&json!({"kind": "demo"})).send().await.unwrap();
        assert_eq!(full.headers().get("retry-after").map(|v| v.to_str().unwrap()), Some("1"));
        let (status, body) = answer(full).await;
        refused(status, &body, 503, "at_capacity", "");
        let runs = db.json(&["runs", "list"]).await;
        assert_eq!(runs.as_array().unwrap().len(), 1, "what was refused left nothing behind: {runs}");
    });
}

#[test]
fn probes_do_not_touch_the_database() {
    within(TEST, async {
        let server = tokio::task::spawn_blocking(|| crate::inherited::postgres().start().unwrap()).await.unwrap();
        let db = Db::on(&server).await;
        let pod = db.pod("web-0", &[]).await;
        assert_eq!(pod.get("/livez").await.0, 200);
        assert_eq!(pod.get("/readyz").await.0, 200);
        let (status, health) = pod.get("/healthz").await;
        assert_eq!((status, &health["pod_id"], &health["phase"]), (200, &json!("web-0"), &json!("active")), "{health}");
        assert!(health["incarnation"].is_string(), "{health}");

        let server = tokio::task::spawn_blocking(move || {
            server.pause().unwrap();
            server
        })
        .await
        .unwrap();
        let unready = wait_for("it is not ready any more", || async {
            let (status, body) = pod.get("/readyz").await;
            if status == 503 { Ok(body) } else { Err(format!("{status} {body}")) }
        })
        .await;
        assert_eq!(unready["kind"], "detached", "{unready}");
        for path in ["/livez", "/healthz"] {
            let asked = std::time::Instant::now();
            assert_eq!(pod.get(path).await.0, 200, "{path}");
            assert!(asked.elapsed().as_millis() < 500, "{path} took {:?}", asked.elapsed());
        }
        let (status, body) = pod.post(json!({"kind": "demo"})).await;
        assert_eq!((status, &body["kind"]), (503, &json!("detached")), "{body}");

        let server = tokio::task::spawn_blocking(move || {
            server.resume().unwrap();
            server
        })
        .await
        .unwrap();
        wait_for("it is ready again", || async {
            let (status, body) = pod.get("/readyz").await;
            if status == 200 { Ok(()) } else { Err(format!("{status} {body}")) }
        })
        .await;
        drop(pod);
        tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    });
}

/// What the row holds is what HTTP, `-o json` and the table show, to the last character.
#[test]
fn outputs_are_shown_as_they_are_stored() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let client = db.client().await;
        for (columns, output, table) in [
            (
                "result = 'null', exit_code = 3",
                json!({"result": null, "has_result": true, "exit_code": 3}),
                "result             null\n",
            ),
            (
                "stdout = E'a\\n\\u001b[2J', stderr = 'b', parse_error = 'not kept as json: x'",
                json!({"stdout": "a\n\u{1b}[2J", "stderr": "b", "parse_error": "not kept as json: x"}),
                "stdout             a\\n\\u{1b}[2J\n",
            ),
            (
                "stdout = 'a\\x00\\\\', output_escaped = true",
                json!({"stdout": "a\\x00\\\\", "output_escaped": true}),
                "a\\x00\\\\\n",
            ),
            (
                "stdout = repeat('x', 5000)",
                json!({"stdout": "x".repeat(5000)}),
                "xx… (5000 bytes in all; -o json shows them)\n",
            ),
        ] {
            let insert =
                "INSERT INTO studio_runs (run_id, kind) VALUES (gen_random_uuid(), 'k') RETURNING run_id::text";
            let run: String = client.query_one(insert, &[]).await.unwrap().get(0);
            let end = format!(
                "UPDATE studio_runs SET state = 'succeeded', finished_at = now(), {columns} WHERE run_id::text = $1"
            );
            client.execute(&end, &[&run]).await.unwrap();
            let mut expected = json!({
                "result": null, "error": null, "has_result": false, "stdout": "", "stderr": "", "exit_code": null,
                "output_escaped": false, "parse_error": null,
            });
            expected.as_object_mut().unwrap().extend(output.as_object().unwrap().clone());
            let (status, shown) = pod.get(&format!("/v1/runs/{run}")).await;
            assert_eq!((status, &shown["output"]), (200, &expected), "{columns}");
            assert_eq!(db.json(&["runs", "describe", &run]).await, shown);
            let text = db.ok(&["runs", "describe", &run]).await;
            assert!(text.contains(table), "{columns}: {text}");
        }
    });
}

/// A key leads to its run, over HTTP and on the command line.
#[test]
fn the_run_of_a_key_is_found() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let path = "/v1/runs?kind=demo&key=chat%207";
        let (status, none) = pod.get(path).await;
        assert_eq!((status, &none["kind"]), (404, &json!("not_found")), "{none}");
        let none = db.run(&["runs", "latest", "demo", "chat 7"]).await;
        assert_eq!(none.code, 1, "{none:?}");
        let body = json!({"kind": "demo", "key": "chat 7", "input": {"chunks": 1000, "delay_ms": 100}});
        let (status, started) = pod.post(body).await;
        assert_eq!(status, 201, "{started}");
        let (status, run) = pod.get(path).await;
        assert_eq!((status, &run["run_id"], &run["state"]), (200, &started["run_id"], &json!("running")), "{run}");
        assert_eq!(db.json(&["runs", "latest", "demo", "chat 7"]).await["run_id"], started["run_id"]);
        pod.delete(&format!("/v1/runs/{}", started["run_id"].as_str().unwrap())).await;
        let (status, ended) = pod.get(path).await;
        assert_eq!(
            (status, &ended["run_id"], &ended["state"]),
            (200, &started["run_id"], &json!("cancelled")),
            "{ended}"
        );
        let (status, bad) = pod.get("/v1/runs?kind=demo").await;
        assert_eq!((status, &bad["kind"]), (400, &json!("bad_request")), "{bad}");
    });
}
