//! The verbs of operators.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, Lines, PodProcess, TEST, connect, fields, finish, podlock, server, wait_for, within};

const POD: [&str; 17] = [
    "pod_id",
    "incarnation",
    "state",
    "alive",
    "holder_pid",
    "client_addr",
    "runs",
    "event_index",
    "started_at",
    "version",
    "labels",
    "condition",
    "wait_reason",
    "wait_left_ms",
    "lease_ms",
    "foreign_lock",
    "cordoned_by",
];
const RUN: [&str; 14] = [
    "run_id",
    "kind",
    "key",
    "state",
    "owner_pod",
    "owner_incarnation",
    "fence",
    "attempt",
    "crashes",
    "created_at",
    "finished_at",
    "died_with",
    "error",
    "movable",
];
const EVENT: [&str; 7] = ["idx", "at", "kind", "pod_id", "incarnation", "by_pod", "detail"];
const ATTEMPT: [&str; 7] = ["attempt", "pod_id", "incarnation", "fence", "began_at", "ended_at", "reason"];

#[test]
fn json_bears_the_names_of_the_contract() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &["--label", "zone=a"]).await;
        let run = pod.demo(json!({ "chunks": 1000, "delay_ms": 50 })).await;

        let pods = db.ok(&["pods", "list", "-o", "jsonl"]).await;
        assert_eq!(fields(&pods), POD);
        let pods = db.json(&["pods", "list"]).await;
        assert_eq!(pods[0]["pod_id"], "web-0");
        assert_eq!(pods[0]["state"], "active");
        assert_eq!(pods[0]["alive"], true);
        assert_eq!(pods[0]["runs"], 1);
        assert_eq!(pods[0]["labels"], json!({ "zone": "a" }));
        assert!(pods[0]["holder_pid"].is_i64() && pods[0]["event_index"].is_i64(), "{pods}");
        assert!(pods[0]["started_at"].as_str().unwrap().ends_with('Z'), "{pods}");
        let described = db.ok(&["pods", "describe", "web-0", "-o", "jsonl"]).await;
        assert_eq!(fields(&described)[..POD.len()], POD);
        assert_eq!((&pods[0]["condition"], &pods[0]["wait_reason"]), (&json!("fine"), &json!(null)), "{pods}");

        let runs = db.ok(&["runs", "list", "-o", "jsonl"]).await;
        assert_eq!(fields(&runs), RUN);
        let described = db.ok(&["runs", "describe", &run, "-o", "jsonl"]).await;
        assert_eq!(
            fields(&described),
            [&RUN[..], &["traceparent", "input", "checkpoint", "output", "attempts"]].concat()
        );
        let described: Value = serde_json::from_str(&described).unwrap();
        assert_eq!(described["run_id"], run);
        assert_eq!(described["state"], "running");
        assert_eq!(described["owner_pod"], "web-0");
        assert_eq!(described["owner_incarnation"], pods[0]["incarnation"]);
        let nothing = json!({
            "result": null, "error": null, "has_result": false, "stdout": "", "stderr": "", "exit_code": null,
            "output_escaped": false, "parse_error": null,
        });
        assert_eq!(described["output"], nothing);
        let attempt = &described["attempts"][0];
        for name in ATTEMPT {
            assert!(attempt.get(name).is_some(), "no {name} in {attempt}");
        }
        assert_eq!(attempt["fence"], described["fence"]);

        let events = db.ok(&["events", "-o", "jsonl"]).await;
        let first = events.lines().next().unwrap();
        assert_eq!(fields(first), EVENT);
        let first: Value = serde_json::from_str(first).unwrap();
        assert_eq!((&first["kind"], &first["pod_id"]), (&json!("joined"), &json!("web-0")));
        assert!(db.json(&["events"]).await.is_array());
        assert!(db.json(&["migrate", "status"]).await.is_array());

        let cancelled = db.json(&["runs", "cancel", &run]).await;
        assert_eq!(cancelled, json!({ "run_id": run, "state": "cancelled" }));
        let drained = db.json(&["drain", "web-0", "--wait", "20s"]).await;
        assert_eq!(drained["incarnation"], pods[0]["incarnation"]);
    });
}

#[test]
fn tables_show_the_same_and_their_control_characters_are_harmless() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        let insert = "INSERT INTO studio_runs (run_id, kind, key) VALUES (gen_random_uuid(), 'x', E'a\\x1b[2Jb')";
        client.batch_execute(insert).await.unwrap();
        let table = db.ok(&["runs", "list"]).await;
        assert!(table.starts_with("RUN_ID") && table.contains("a\\u{1b}[2Jb"), "{table:?}");
        assert!(!table.contains('\u{1b}'), "{table:?}");
        for args in [&["pods", "list"][..], &["events"], &["runs", "list", "--kind", "none"]] {
            let done = db.run(args).await;
            assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{args:?}");
            assert!(done.stderr.starts_with("podlock: "), "{done:?}");
        }
    });
}

/// No text of the database begins a line of its own on stderr, or turns one round.
#[test]
fn errors_keep_to_their_line_whatever_the_database_says() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        client
            .batch_execute(
                "INSERT INTO studio_runs (run_id, kind) VALUES (gen_random_uuid(), 'x');
                 CREATE FUNCTION said() RETURNS boolean LANGUAGE plpgsql AS $$
                 BEGIN
                     RAISE EXCEPTION E'a\\npodlock: all is well\\u202e'
                         USING HINT = E'b\\npodlock: all is well\\r\\x1b[2J\\u202e\\u2028';
                 END $$;
                 ALTER TABLE studio_runs RENAME TO behind;
                 CREATE VIEW studio_runs AS SELECT * FROM behind WHERE said();",
            )
            .await
            .unwrap();
        let done = db.run(&["runs", "list"]).await;
        assert!(done.code == 1 && done.stderr.contains("all is well"), "{done:?}");
        assert_eq!(done.stderr.lines().count(), 1, "{done:?}");
        assert!(!done.stderr.contains(['\r', '\x1b', '\u{202e}', '\u{2028}']), "{done:?}");
        assert!(done.stderr.contains(r"b\npodlock: all is well\r\u{1b}[2J\u{202e}\u{2028}"), "{done:?}");
    });
}

#[test]
fn lists_are_filtered_limited_and_whole() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        // Many of one moment, so that going through pages must tell runs of the same time apart.
        client
            .batch_execute(
                "INSERT INTO studio_runs (run_id, kind, state, finished_at, created_at)
                   SELECT gen_random_uuid(), 'a', 'succeeded', now(), now() - (i / 700) * interval '1 s'
                     FROM generate_series(1, 2500) AS i;
                 INSERT INTO studio_runs (run_id, kind, key) VALUES (gen_random_uuid(), 'b', 'k');
                 SELECT studio_append_event('claimed', 'p' || i % 2, gen_random_uuid(), 'q', '{}')
                   FROM generate_series(1, 2500) AS i;",
            )
            .await
            .unwrap();
        let runs = db.json(&["runs", "list"]).await;
        let runs = runs.as_array().unwrap();
        let ids: std::collections::BTreeSet<_> = runs.iter().map(|run| run["run_id"].as_str().unwrap()).collect();
        assert_eq!((runs.len(), ids.len()), (2501, 2501));
        let count = async |args: &[&str]| db.ok(&[args, &["-o", "jsonl"]].concat()).await.lines().count();
        assert_eq!(count(&["runs", "list", "--limit", "1500"]).await, 1500);
        assert_eq!(count(&["runs", "list", "--limit", "1"]).await, 1);
        assert_eq!(count(&["runs", "list", "--state", "running"]).await, 1);
        assert_eq!(count(&["runs", "list", "--orphans"]).await, 1);
        assert_eq!(count(&["runs", "list", "--kind", "b", "--key", "k"]).await, 1);
        assert_eq!(count(&["runs", "list", "--owner", "nobody"]).await, 0);
        assert_eq!(count(&["events"]).await, 2500);
        assert_eq!(count(&["events", "--pod", "p1"]).await, 1250);
        assert_eq!(count(&["events", "--kind", "joined"]).await, 0);
        assert_eq!(count(&["events", "--after", "2400"]).await, 100);
        let newest = db.ok(&["events", "--limit", "2", "-o", "jsonl"]).await;
        let idx: Vec<_> =
            newest.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["idx"].clone()).collect();
        assert_eq!(idx, [json!(2499), json!(2500)]);
        let first = db.json(&["events", "--after", "7", "--limit", "1"]).await;
        assert_eq!(first[0]["idx"], 8);
        let cut = db.run(&["runs", "list"]).await;
        assert_eq!(cut.stdout.lines().count(), 101);
        assert!(cut.stderr.contains("--limit"), "{cut:?}");
    });
}

#[test]
fn exit_codes_are_0_fine_1_failed_2_usage() {
    within(TEST, async {
        let db = Db::migrated().await;
        let run = "018f0000-0000-7000-8000-000000000000";
        let cases: &[(&[&str], i32, &str)] = &[
            (&["--help"], 0, "Usage"),
            (&["--version"], 0, "podlock"),
            (&["pods", "list"], 0, ""),
            (&["pods", "describe", "nobody"], 1, "no pod was ever named \"nobody\""),
            (&["runs", "describe", run], 1, "there is no run"),
            (&["runs", "cancel", run], 1, "there is no run"),
            (&["drain", "nobody"], 1, "no pod named \"nobody\" is in the roster"),
            (&["cordon", "nobody"], 1, "no pod named \"nobody\" is in the roster"),
            (&["uncordon", "nobody"], 1, "no pod named \"nobody\" is in the roster"),
            (&["cordon"], 2, "Usage"),
            (&["uncordon"], 2, "Usage"),
            (&["evict", "nobody"], 1, "no pod named \"nobody\" is in the roster"),
            (&["--schema", "nowhere", "pods", "list"], 1, "migrate up"),
            (&["--schema", "pg_x", "pods", "list"], 1, "server's own"),
            (&[], 2, "Usage"),
            (&["nonsense"], 2, "nonsense"),
            (&["pods"], 2, "Usage"),
            (&["pods", "list", "-o", "yaml"], 2, "yaml"),
            (&["pods", "list", "--limit", "0"], 2, "--limit"),
            (&["runs", "describe", "x"], 2, "not a run's id"),
            (&["runs", "list", "--state", "walking"], 2, "walking"),
            (&["events", "--follow", "-o", "json"], 2, "jsonl"),
            (&["pods", "watch", "-o", "json"], 2, "jsonl"),
            (&["probe"], 2, "Usage"),
            (&["probe", "8080"], 2, "8080"),
            (&["demo", "--pods", "1"], 2, "--pods"),
            (&["demo", "--kill", "hup"], 2, "hup"),
        ];
        for (args, code, word) in cases {
            let done = db.run(args).await;
            assert_eq!(done.code, *code, "podlock {args:?}: {done:?}");
            assert!(done.all().contains(word), "podlock {args:?} does not say {word:?}: {done:?}");
            assert_eq!(done.stderr.is_empty(), *code == 0 && !args.contains(&"list"), "podlock {args:?}: {done:?}");
        }
        for url in [None, Some("")] {
            let mut command = podlock(&["pods", "list"]);
            if let Some(url) = url {
                command.env("DATABASE_URL", url);
            }
            let done = finish(command).await;
            assert_eq!(done.code, 2, "{done:?}");
            assert!(done.stderr.contains("DATABASE_URL"), "{done:?}");
        }
    });
}

#[test]
fn a_password_is_never_printed() {
    within(TEST, async {
        let port = server().port();
        let urls = [
            (format!("postgres://podlock:hunter2@127.0.0.1:{port}/postgres"), "password authentication failed"),
            ("postgres://podlock:hunter2@127.0.0.1:1/postgres".to_owned(), "127.0.0.1:1"),
            ("postgres://podlock:hunter2@[bad/postgres".to_owned(), "DATABASE_URL"),
            ("host=127.0.0.1 password=hunter2 nonsense".to_owned(), "DATABASE_URL"),
        ];
        let run = "018f0000-0000-7000-8000-000000000000";
        let verbs: &[&[&str]] = &[
            &["pods", "list"],
            &["pods", "describe", "x"],
            &["runs", "list"],
            &["runs", "cancel", run],
            &["events"],
            &["drain", "x"],
            &["cordon", "x"],
            &["uncordon", "x"],
            &["evict", "x"],
            &["migrate", "up"],
            &["migrate", "status"],
            &["pod", "--name", "x"],
        ];
        for (url, word) in &urls {
            for args in verbs {
                for in_environment in [true, false] {
                    let mut command = podlock(args);
                    command.env("PODLOCK_LOG", "trace");
                    if in_environment {
                        command.env("DATABASE_URL", url);
                    } else {
                        command.args(["--database-url", url]);
                    }
                    let done = finish(command).await;
                    assert_eq!(done.code, 1, "podlock {args:?}: {done:?}");
                    assert!(done.stderr.contains(word), "podlock {args:?} on {url} does not say {word:?}: {done:?}");
                    assert!(!done.all().contains("hunter2"), "podlock {args:?} on {url}: {done:?}");
                }
            }
            for args in
                [&["--help"][..], &["pods", "list", "--help"], &["pod", "--nonsense"], &["pods", "--limit", "x"]]
            {
                let mut command = podlock(args);
                command.env("DATABASE_URL", url);
                let done = finish(command).await;
                assert!(!done.all().contains("hunter2"), "podlock {args:?}: {done:?}");
            }
        }
    });
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    within(TEST, async {
        let db = Db::migrated().await;
        let insert = "INSERT INTO studio_runs (run_id, kind) SELECT gen_random_uuid(), repeat('x', 200)
                        FROM generate_series(1, 5000)";
        db.client().await.batch_execute(insert).await.unwrap();
        for args in [
            &["runs", "list", "-o", "jsonl"][..],
            &["runs", "list", "-o", "json"],
            &["runs", "list", "--limit", "5000"],
        ] {
            let mut command = db.command(args);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            let done = child.wait_with_output().await.unwrap();
            let stderr = String::from_utf8(done.stderr).unwrap();
            assert_eq!((done.status.code(), stderr.as_str()), (Some(0), ""), "podlock {args:?}");
        }
    });
}

#[test]
fn migrations_are_applied_once_listed_and_printed() {
    within(TEST, async {
        let db = Db::new().await;
        let before = db.json(&["migrate", "status"]).await;
        assert_eq!(before[0]["applied"], false);
        assert_eq!(before[0]["version"], 1);
        let check: &[&str] = &["migrate", "status", "--check"];
        let done = db.run(check).await;
        let once = done.stderr.matches("the database lacks a version").count();
        assert!(done.code == 1 && once == 1 && done.stdout.contains("spine"), "{done:?}");
        let applied = db.json(&["migrate", "up"]).await;
        assert_eq!(applied.as_array().unwrap().len(), before.as_array().unwrap().len());
        assert_eq!(db.json(&["migrate", "up"]).await, json!([]));
        assert_eq!(db.json(check).await[0]["applied"], true);

        // The printed script, run by hand, leaves nothing to do. Its schema's name is hostile.
        let schema = "o'b\"; DROP SCHEMA public; --";
        let script = db.ok(&["--schema", schema, "migrate", "sql"]).await;
        let script = script.strip_prefix("\\set ON_ERROR_STOP on\n").expect("psql stops at the first error");
        connect(&db.url).await.batch_execute(script).await.unwrap();
        assert_eq!(db.json(&["--schema", schema, "migrate", "status"]).await[0]["applied"], true);
        assert_eq!(db.json(&["--schema", schema, "migrate", "up"]).await, json!([]));
        assert_eq!(db.json(&["--schema", schema, "pods", "list"]).await, json!([]));
        let done = finish(podlock(&["migrate", "sql"])).await;
        assert_eq!(done.code, 0, "no database is needed: {done:?}");
    });
}

/// Of a killed pod the lists say that it is dead and what is waited for, and the watch how it ended, by whom, and the
/// cause.
#[test]
fn a_foreign_object_of_podlocks_name_stops_a_first_migration_and_the_advice_is_to_remove_it() {
    within(TEST, async {
        for (make, remove) in [
            (
                "FUNCTION studio_drain(pod text) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
                "FUNCTION studio_drain(text)",
            ),
            ("TABLE studio_runs (id integer)", "TABLE studio_runs"),
            ("TYPE studio_pruned AS (id integer)", "TYPE studio_pruned"),
        ] {
            let db = Db::new().await;
            let client = db.client().await;
            client.batch_execute(&format!("CREATE {make}")).await.unwrap();
            let done = db.run(&["migrate", "up"]).await;
            assert!(done.code == 1 && done.stderr.contains("already exists"), "{done:?}");
            assert!(
                done.stderr.contains("drop or rename that object, or give podlock a schema of its own"),
                "{done:?}"
            );
            assert!(!done.stderr.contains("may create tables"), "{done:?}");
            client.batch_execute(&format!("DROP {remove}")).await.unwrap();
            db.ok(&["migrate", "up"]).await;
        }
    });
}

#[test]
fn a_reader_without_rights_is_told_how_it_is_given_them() {
    within(TEST, async {
        let db = Db::migrated().await;
        let role = format!("reader_{}", std::process::id());
        let client = db.client().await;
        client.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; SET ROLE {role}")).await.unwrap();
        let database: String = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
        let mut command = podlock(&["pods", "list"]);
        command.env("DATABASE_URL", format!("postgresql://{role}:x@127.0.0.1:{}/{database}", server().port()));
        let done = finish(command).await;
        assert!(done.code == 1 && done.stderr.contains("permission denied"), "{done:?}");
        let advice = "`podlock migrate grants ROLE`, with `--read-only` for one that only reads";
        assert!(done.stderr.contains(advice), "{done:?}");
    });
}

#[test]
fn of_a_killed_pod_the_lists_say_dead_and_the_watch_how_it_ended() {
    within(TEST, async {
        let db = Db::new().await;
        // It beats often, so that it was seen to beat just before its end.
        let mut command = db.command(&["pod", "--name", "first", "--log-format", "json"]);
        command.env("PODLOCK_LEASE", "3s").env("PODLOCK_BEAT_INTERVAL", "200ms");
        let mut first = PodProcess::start(command).await;
        let second = db.pod("second", &[]).await;
        let incarnation = db.json(&["pods", "describe", "first"]).await["incarnation"].clone();
        let spawn = |args: &[&str]| db.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut watch = spawn(&["pods", "watch", "--every", "50ms"]);
        let mut as_json = spawn(&["pods", "watch", "--every", "50ms", "-o", "jsonl"]);
        let seen = Lines::read(watch.stdout.take().unwrap());
        let json = Lines::read(as_json.stdout.take().unwrap());
        seen.find("first is present", |line| (line.contains("present") && line.contains("first")).then_some(())).await;
        json.find("first is present", |line| line.contains("first").then_some(())).await;
        first.signal(Signal::KILL);
        assert_eq!(first.ended().await, None);
        // Nobody has been up for `settle`: it stays in the roster for a while, dead.
        let table = wait_for("the list says that it is dead", || async {
            let table = db.ok(&["pods", "list"]).await;
            if table.contains("dead, waiting: no pod has been up for settle, ") { Ok(table) } else { Err(table) }
        })
        .await;
        assert!(table.lines().next().unwrap().contains("CONDITION"), "{table}");
        assert!(table.lines().any(|line| line.starts_with("second") && line.contains("fine")), "{table}");
        let dead = db.json(&["pods", "describe", "first"]).await;
        assert_eq!((&dead["condition"], &dead["wait_reason"]), (&json!("dead_waiting"), &json!("unsettled")), "{dead}");
        seen.find("its change to dead", |line| {
            (line.contains("changed") && line.contains("not alive  dead, waiting: ")).then_some(())
        })
        .await;

        let left = seen.find("first left", |line| line.contains("left     ").then(|| line.to_owned())).await;
        assert!(left.contains("first  lost: ") && left.contains("; buried by second"), "{left}");
        let left = json.find("first left", |line| line.contains(r#""change":"left""#).then(|| line.to_owned())).await;
        let left: Value = serde_json::from_str(&left).unwrap();
        assert_eq!(
            (&left["alive"], &left["condition"], &left["state"]),
            (&json!(false), &json!("gone"), &json!("gone"))
        );
        assert_eq!(
            (&left["ended"]["reason"], &left["ended"]["buried_by"]),
            (&json!("lost"), &json!("second")),
            "{left}"
        );
        assert_eq!(left["ended"]["incarnation"], incarnation);
        for mut watch in [watch, as_json] {
            watch.kill().await.unwrap();
        }
        let cause = left["ended"]["cause"].as_str().expect("a cause");
        assert_eq!(cause, "closed", "{left}");
        let gone = db.ok(&["pods", "describe", "first"]).await;
        assert!(gone.contains("gone: lost: ") && gone.contains("CAUSE") && gone.contains(cause), "{gone}");
        let events = db.ok(&["events", "--kind", "buried"]).await;
        assert!(events.contains("CAUSE") && events.contains(cause), "{events}");
        assert_eq!(db.json(&["events", "--kind", "buried"]).await[0]["detail"]["cause"], cause);
        assert_eq!(db.json(&["events", "--kind", "held"]).await[0]["detail"]["reason"], "unsettled");
        drop(second);
    });
}

#[test]
fn pods_watch_shows_who_comes_and_goes() {
    within(TEST, async {
        let db = Db::new().await;
        let first = db.pod("first", &[]).await;
        let mut watch = db.command(&["pods", "watch", "-o", "jsonl", "--every", "100ms"]);
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let seen = Lines::read(watch.stdout.take().unwrap());
        let change = |change: &'static str, pod: &'static str| {
            let seen = seen.clone();
            async move {
                seen.find(&format!("{pod} {change}"), |line| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    (line["change"] == change && line["pod_id"] == pod).then_some(())
                })
                .await;
            }
        };
        change("present", "first").await;
        let mut second = db.pod("second", &[]).await;
        change("joined", "second").await;
        second.signal(Signal::TERM);
        assert_eq!(second.ended().await, Some(0));
        change("left", "second").await;
        watch.kill().await.unwrap();
        drop(first);
    });
}

#[test]
fn events_follow_skips_none_and_repeats_none() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        let append =
            "SELECT studio_append_event('claimed', 'p', gen_random_uuid(), 'q', '{}') FROM generate_series(1, 50)";
        client.batch_execute(append).await.unwrap();
        let mut follow = db.command(&["events", "--follow", "-o", "jsonl"]);
        let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let seen = Lines::read(follow.stdout.take().unwrap());
        let idx = |seen: &Lines| -> Vec<i64> {
            seen.all()
                .iter()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["idx"].as_i64().unwrap())
                .collect()
        };
        for round in 1..=3_i64 {
            wait_for("all events are printed", || async {
                let got = idx(&seen);
                if got.len() as i64 >= round * 50 { Ok(()) } else { Err(format!("{got:?}")) }
            })
            .await;
            if round == 1 {
                // Its connections end under it; it goes on.
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                            WHERE datname = current_database() AND pid <> pg_backend_pid()";
                client.batch_execute(end).await.unwrap();
            }
            if round < 3 {
                client.batch_execute(append).await.unwrap();
            }
        }
        assert_eq!(idx(&seen), (1..=150).collect::<Vec<_>>());
        follow.kill().await.unwrap();
    });
}

#[test]
fn a_dead_pod_is_not_said_to_have_drained_and_is_not_evicted() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("pod", &[]).await;
        pod.demo(json!({ "chunks": 1000, "delay_ms": 20 })).await;
        pod.signal(Signal::KILL);
        pod.ended().await;
        wait_for("its locks are free", || async {
            let pod = db.json(&["pods", "describe", "pod"]).await;
            if pod["alive"] == false && pod["witness"] == false { Ok(()) } else { Err(pod.to_string()) }
        })
        .await;
        let waited: &[&str] = &["drain", "pod", "--wait", "1s"];
        for (args, said) in [(&waited[..2], "neither of its locks"), (waited, "did not drain")] {
            let done = db.run(args).await;
            assert!(done.code == 1 && done.stderr.contains(said) && done.stderr.contains("1 running"), "{done:?}");
        }
        let done = db.run(&["evict", "pod"]).await;
        assert!(done.code == 1 && done.stderr.contains("nobody holds its locks"), "{done:?}");
        let events = db.json(&["events", "--kind", "evicted"]).await;
        assert_eq!(events, json!([]));
    });
}

#[test]
fn a_drained_pod_ends_and_drain_can_wait_for_it() {
    within(TEST, async {
        let db = Db::new().await;
        let other = db.pod("other", &[]).await;
        let mut pod = db.pod("pod", &[]).await;
        let run = pod.demo(json!({ "chunks": 1000, "delay_ms": 20 })).await;
        let said = db.ok(&["drain", "pod", "--wait"]).await;
        assert!(said.contains("gone"), "{said}");
        assert_eq!(pod.ended().await, Some(0));
        wait_for("the run goes on elsewhere", || async {
            let run = db.json(&["runs", "describe", &run]).await;
            if run["owner_pod"] == "other" && run["state"] == "running" { Ok(()) } else { Err(run.to_string()) }
        })
        .await;
        let gone = wait_for("it is buried", || async {
            let pod = db.json(&["pods", "describe", "pod"]).await;
            if pod["state"] == "gone" { Ok(pod) } else { Err(pod.to_string()) }
        })
        .await;
        assert_eq!(gone["alive"], false);
        assert_eq!(gone["sessions"][0]["reason"], "shutdown");
        drop(other);
    });
}

/// The words, the JSON, and what the pod answers over HTTP meanwhile.
#[test]
fn a_cordoned_pod_refuses_new_runs_until_it_is_uncordoned() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("pod", &[]).await;
        let input = json!({ "chunks": 1000, "delay_ms": 20 });
        let (_, kept) = pod.post(json!({ "kind": "demo", "input": input, "movable": true })).await;
        let kept = kept["run_id"].as_str().unwrap().to_owned();
        let said = db.ok(&["cordon", "pod"]).await;
        assert!(said.contains("is cordoned") && said.contains("podlock uncordon pod"), "{said}");
        let pods = db.json(&["pods", "list"]).await;
        assert_eq!(
            (&pods[0]["condition"], &pods[0]["state"], &pods[0]["runs"]),
            (&json!("cordoned"), &json!("active"), &json!(1))
        );
        assert!(pods[0]["cordoned_by"].is_string(), "{pods}");
        assert!(db.ok(&["pods", "describe", "pod"]).await.contains("cordoned_by"));
        let demo = json!({ "kind": "demo", "input": { "chunks": 1 } });
        let (status, body) = pod.post(demo.clone()).await;
        assert_eq!((status, &body["kind"]), (503, &json!("cordoned")), "{body}");
        let again = json!({ "pod_id": "pod", "incarnation": pods[0]["incarnation"], "cordoned": true });
        assert_eq!(db.json(&["cordon", "pod"]).await, again);

        let lifted = json!({ "pod_id": "pod", "incarnation": pods[0]["incarnation"], "cordoned": false });
        assert_eq!(db.json(&["uncordon", "pod"]).await, lifted);
        wait_for("it starts runs again", || async {
            let (status, body) = pod.post(demo.clone()).await;
            if status == 201 { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
        assert!(db.ok(&["uncordon", "pod"]).await.contains("it gets runs again"));
        let kept = db.json(&["runs", "describe", &kept]).await;
        assert_eq!((&kept["attempt"], &kept["movable"]), (&json!(1), &json!(true)), "it kept its run");
        let events = db.json(&["events"]).await;
        let kinds: Vec<_> = events.as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
        assert_eq!(
            kinds.iter().filter(|kind| kind.ends_with("cordoned")).collect::<Vec<_>>(),
            [&"cordoned", &"uncordoned"]
        );
    });
}

/// A failed run has its error in the list: the beginning in a table, harmless for the terminal, and more of it as JSON.
#[test]
fn a_failed_run_shows_its_error_in_the_list() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        let sql = "INSERT INTO studio_runs (run_id, kind, state, finished_at, error) \
                   VALUES (gen_random_uuid(), 'demo', 'failed', now(), E'broke\\x1b[2J\\n' || repeat('x', 5000))";
        client.execute(sql, &[]).await.unwrap();
        let table = db.ok(&["runs", "list", "--state", "failed"]).await;
        let shown = format!("broke\\u{{1b}}[2J\\n{}…", "x".repeat(60 - 10));
        assert!(table.lines().last().unwrap().ends_with(&shown), "{table}");
        let listed = db.json(&["runs", "list", "--state", "failed"]).await;
        let error = format!("broke\u{1b}[2J\n{}…", "x".repeat(1000 - 10));
        assert_eq!(listed[0]["error"], error);
        assert_eq!(db.json(&["events", "--kind", "run_failed"]).await, json!([]));
    });
}

/// A run that was quarantined says which owners died with it, wherever it is shown; released, it runs.
#[test]
fn a_quarantined_run_names_the_owners_that_died_with_it_until_it_is_released() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        let sql = "WITH run AS (INSERT INTO studio_runs (run_id, kind, key, owner_pod, owner_incarnation, fence, \
                     attempt, crashes, input) \
                     VALUES (gen_random_uuid(), 'demo', 'k', 'web-9', gen_random_uuid(), nextval('studio_fence'), 2, \
                     2, '{\"chunks\": 1}') RETURNING *), \
                   ended AS (INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason) \
                     SELECT owner_incarnation, 'web-9', '2026-01-02T03:04:05.678Z', 'lost' FROM run) \
                   INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
                   SELECT run_id, 2, owner_pod, owner_incarnation, fence FROM run \
                   RETURNING run_id::text, incarnation::text";
        let row = client.query_one(sql, &[]).await.unwrap();
        let (run, owner): (String, String) = (row.get(0), row.get(1));
        let refused = db.run(&["runs", "release", &run]).await;
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("it is running, not quarantined"), "{refused:?}");
        let pod = db.pod("web-0", &[]).await;
        wait_for("it is quarantined", || async {
            let state = db.json(&["runs", "describe", &run]).await["state"].clone();
            if state == "quarantined" { Ok(()) } else { Err(state.to_string()) }
        })
        .await;
        let died_with = json!([
            { "pod_id": "web-9", "incarnation": owner, "reason": "lost", "ended_at": "2026-01-02T03:04:05.678Z" },
        ]);
        let listed = db.json(&["runs", "list", "--state", "quarantined"]).await;
        assert_eq!((&listed[0]["run_id"], &listed[0]["died_with"]), (&json!(run), &died_with));
        let (status, shown) = pod.get(&format!("/v1/runs/{run}")).await;
        assert_eq!((status, &shown["died_with"], &shown["crashes"]), (200, &died_with, &json!(3)));
        let error = shown["output"]["error"].as_str().unwrap();
        assert!(error.contains("web-9 (lost at 2026-01-02T03:04:05.678Z)"), "{error}");
        let table = db.ok(&["runs", "list", "--state", "quarantined"]).await;
        let (header, line) = table.split_once('\n').unwrap();
        assert!(
            header.trim_end().ends_with("DIED_WITH  ERROR") && line.contains("  web-9      3 owners in a row"),
            "{table}"
        );
        assert_eq!((&listed[0]["error"], &shown["error"]), (&json!(error), &json!(error)));
        assert!(db.ok(&["runs", "describe", &run]).await.contains("Died with it:"));
        pod.log.event("quarantined").await;
        assert_eq!(db.json(&["events", "--kind", "quarantined"]).await[0]["detail"]["run"], run);

        let (status, other) = pod.post(json!({ "kind": "demo", "key": "k", "input": { "delay_ms": 60_000 } })).await;
        assert_eq!(status, 201, "{other}");
        let busy = db.run(&["runs", "release", &run]).await;
        assert!(busy.code == 1 && busy.stderr.contains(other["run_id"].as_str().unwrap()), "{busy:?}");
        db.ok(&["runs", "cancel", other["run_id"].as_str().unwrap()]).await;
        let released = db.json(&["runs", "release", &run]).await;
        assert_eq!(released, json!({ "run_id": run, "state": "running" }));
        wait_for("it runs again, and ends", || async {
            let seen = db.json(&["runs", "describe", &run]).await;
            let fresh = seen["died_with"] == json!([]) && seen["crashes"] == 0;
            if seen["state"] == "succeeded" && fresh { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
        let nobody = db.run(&["runs", "release", "01890000-0000-7000-8000-000000000000"]).await;
        assert!(nobody.code == 1 && nobody.stderr.contains("there is no run"), "{nobody:?}");
    });
}

#[test]
fn unclaimable_runs_are_those_that_no_pod_of_the_roster_has_a_handler_for() {
    within(TEST, async {
        let db = Db::migrated().await;
        let client = db.client().await;
        let insert = "INSERT INTO studio_runs (run_id, kind) VALUES (gen_random_uuid(), 'other')";
        client.batch_execute(insert).await.unwrap();
        let _pod = db.pod("web-0", &["--capacity-of", "demo=1", "--max-crashes", "0"]).await;
        let listed = db.json(&["runs", "list", "--unclaimable"]).await;
        assert_eq!((listed.as_array().unwrap().len(), &listed[0]["kind"]), (1, &json!("other")));
        client.batch_execute("UPDATE studio_pods SET kinds = kinds || '{other}'").await.unwrap();
        assert_eq!(db.json(&["runs", "list", "--unclaimable"]).await, json!([]));
        assert_eq!(db.json(&["runs", "list", "--orphans"]).await.as_array().unwrap().len(), 1);
    });
}
