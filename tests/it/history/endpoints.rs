//! What operators and HTTP clients read of the history.

use std::time::Duration;

use podlock::http::{AdminKey, liveness_router, not_found, operator_probes, serve};
use podlock::operator::{Operator, ReliabilityFilter};
use podlock::{Config, Timestamp};
use serde_json::{Value, json};

use crate::support::{Db, eventually, timed};

const KEY: &str = "correct-horse-battery";
const SOON: Duration = Duration::from_secs(20);

/// Samples, sessions and scores with known answers. `web-1` has everything, `web-2` only a session, `old` only a score.
const KNOWN: &str = "
CREATE TABLE samples_of_march PARTITION OF studio_pod_heartbeats
    FOR VALUES FROM ('2026-03-01 00:00Z') TO ('2026-04-01 00:00Z');
INSERT INTO studio_pod_heartbeats
    (pod_id, incarnation, number, sampled_at, status, health, cpu_usage, memory_pressure, memory_available, running_runs,
     runtime_lag_ms, gauges)
    SELECT 'web-1', '00000000-0000-0000-0000-000000000012', n, timestamptz '2026-03-02 12:00Z' + n * interval '10 s',
           'active', CASE WHEN n % 2 = 0 THEN 'fair' ELSE 'nominal' END, 0.5, NULL, 1024, 3, 0.25,
           jsonb_build_object('gpu', n)
      FROM generate_series(1, 30) AS n;
INSERT INTO studio_pod_sessions
    (incarnation, pod_id, began_at, ended_at, reason, cause, buried_by, labels, last_heartbeat_at, runs_served, counters,
     exit_code, exit_signal)
    VALUES
    ('00000000-0000-0000-0000-000000000011', 'web-1', '2026-03-01 12:00Z', '2026-03-02 11:00Z', 'lost', 'closed', 'web-2',
     '{\"node\": \"n1\"}', '2026-03-02 10:59Z', 7, '{\"tokens\": 5}', NULL, 9),
    ('00000000-0000-0000-0000-000000000012', 'web-1', '2026-03-02 11:30Z', NULL, NULL, NULL, NULL,
     '{\"node\": \"n1\"}', '2026-03-02 12:05Z', 2, '{}', NULL, NULL),
    ('00000000-0000-0000-0000-000000000021', 'web-2', '2026-03-01 12:00Z', NULL, NULL, NULL, NULL, '{}', NULL, 0, '{}',
     NULL, NULL);
";

/// A row of the table of reliability for each of these: name, score, uptime, share of four hours.
async fn score(db: &Db, rows: &[(&str, f64, Option<f64>, Option<f64>)]) {
    for (pod, score, uptime, p4h) in rows {
        let hourly = json!(vec![vec![score; 24]; 7]);
        let sql = "INSERT INTO studio_pod_reliability (pod_id, window_days, uptime_pct, sessions_count, mtbf_seconds, \
                   p_stays_4h, hourly_availability, score) VALUES ($1, 14, $2, 3, 7200, $3, $4, $5)";
        db.client.execute(sql, &[pod, uptime, p4h, &hourly, score]).await.expect("a row");
    }
}

async fn operator(db: &Db) -> Operator {
    Operator::connect(&Config::new(&db.pod_url)).await.expect("an operator")
}

fn names(rows: &[podlock::operator::ReliabilityRow]) -> Vec<&str> {
    rows.iter().map(|row| row.pod_id.as_str()).collect()
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

/// By score, then uptime, then id; `max_score=0` is no bound.
#[tokio::test(flavor = "multi_thread")]
async fn scores_are_listed_by_score_then_uptime_then_name_and_in_pages() {
    timed(async {
        let db = Db::new().await;
        score(
            &db,
            &[
                ("b", 0.9, Some(99.0), Some(0.5)),
                ("a", 0.9, Some(99.0), Some(0.25)),
                ("c", 0.9, Some(100.0), None),
                ("d", 0.9, None, Some(1.0)),
                ("e", 0.95, Some(10.0), Some(1.0)),
                ("f", 0.1, Some(50.0), Some(0.0)),
                ("g", 0.0, None, None),
            ],
        )
        .await;
        let operator = operator(&db).await;
        let all = operator.reliability(ReliabilityFilter::new()).await.expect("rows");
        assert_eq!(names(&all), ["e", "c", "a", "b", "d", "f", "g"]);
        for limit in 1..=3 {
            let (mut seen, mut filter) = (Vec::new(), ReliabilityFilter::new().limit(limit));
            loop {
                let page = operator.reliability(filter.clone()).await.expect("a page");
                let Some(last) = page.last() else { break };
                assert!(i64::try_from(page.len()).unwrap() <= limit);
                filter = filter.after(last);
                seen.extend(page);
            }
            assert_eq!(seen, all, "in pages of {limit}");
        }
        let new = ReliabilityFilter::new;
        for (filter, expected) in [
            (new().min_uptime(0.0).min_stays_4h(0.0).min_score(0.0).max_score(0.0), "e c a b d f g"),
            (new().max_score(0.5), "f g"),
            (new().min_score(0.9), "e c a b d"),
            (new().min_score(0.9).max_score(0.9), "c a b d"),
            (new().min_uptime(99.0), "c a b"),
            (new().min_stays_4h(0.5), "e b d"),
            (new().min_stays_4h(0.5).min_uptime(50.0), "b"),
            (new().limit(0), ""),
        ] {
            let rows = operator.reliability(filter.clone()).await.expect("rows");
            assert_eq!(names(&rows).join(" "), expected, "{filter:?}");
        }
        assert_eq!(operator.reliability_of("f").await.expect("an answer").expect("a row").score, 0.1);
        assert_eq!(operator.reliability_of("h").await.expect("an answer"), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_pod_and_its_sessions_and_samples() {
    timed(async {
        let db = Db::new().await;
        db.client.batch_execute(KNOWN).await.expect("the history");
        score(&db, &[("web-1", 0.75, Some(95.0), Some(0.5)), ("old", 0.5, None, None)]).await;
        let operator = operator(&db).await;

        let one = operator.liveness("web-1").await.expect("an answer").expect("it is known");
        let json = serde_json::to_value(&one).expect("JSON");
        assert_eq!((one.in_roster, one.state.as_str()), (false, "gone"));
        assert_eq!(json["incarnation"], "00000000-0000-0000-0000-000000000012");
        assert_eq!(
            (&json["score"], &json["uptime_pct"], &json["scored_as"]),
            (&json!(0.75), &json!(95.0), &json!("web-1"))
        );
        assert_eq!(json["last_end"]["exit_signal"], 9);
        assert_eq!((&json["last_sample"]["number"], &json["last_sample"]["gauges"]), (&json!(30), &json!({"gpu": 30})));
        assert_eq!(json["last_sample"]["memory_pressure"], Value::Null);

        let two =
            serde_json::to_value(operator.liveness("web-2").await.expect("an answer").expect("known")).expect("JSON");
        for field in ["score", "uptime_pct", "p_stays_8h", "last_sample", "last_end", "updated_at", "scored_as"] {
            assert_eq!(two.get(field), Some(&Value::Null), "{field}");
        }
        assert!(operator.liveness("old").await.expect("an answer").is_some_and(|old| old.incarnation.is_none()));
        assert_eq!(operator.liveness("nobody").await.expect("an answer"), None);
        for (pod, known) in [("web-1", true), ("web-2", true), ("old", true), ("nobody", false)] {
            assert_eq!(operator.knows_pod(pod).await.expect("an answer"), known, "{pod}");
        }

        let sessions = operator.pod_sessions("web-1", 10, None).await.expect("sessions");
        let ids: Vec<_> = sessions.iter().map(|row| row.incarnation.as_uuid().as_u128()).collect();
        assert_eq!(ids, [0x12, 0x11]);
        assert_eq!((sessions[1].runs_served, &sessions[1].counters), (7, &json!({"tokens": 5})));
        let first = operator.pod_sessions("web-1", 1, None).await.expect("sessions");
        assert_eq!(first, sessions[..1]);
        let second = operator.pod_sessions("web-1", 1, Some(first[0].began_at)).await.expect("sessions");
        assert_eq!(second, sessions[1..]);

        let samples = |since: Option<&str>, until: Option<&str>, limit| {
            let (since, until) = (since.map(at), until.map(at));
            let operator = operator.clone();
            async move {
                let rows = operator.heartbeats("web-1", since, until, limit).await.expect("samples");
                rows.iter().map(|row| row.number).collect::<Vec<_>>()
            }
        };
        assert_eq!(samples(None, None, 3).await, [30, 29, 28]);
        assert_eq!(samples(Some("2026-03-02T12:04:50Z"), None, 9).await, [30, 29]);
        assert_eq!(samples(None, Some("2026-03-02T12:00:30Z"), 9).await, [2, 1]);
        assert_eq!(samples(Some("-005000-01-01T00:00:00Z"), Some("9999-12-30T00:00:00Z"), 1).await, [30]);
    })
    .await;
}

/// The percentile rank is `round(p * (n - 1))`; by hour, the mean over the pods with data.
#[tokio::test(flavor = "multi_thread")]
async fn the_availability_of_the_fleet_has_known_answers() {
    timed(async {
        let db = Db::new().await;
        let operator = operator(&db).await;
        let nobody = operator.availability().await.expect("an answer");
        assert_eq!((nobody.pods, nobody.score.p50), (0, None));
        assert_eq!(nobody.by_hour, vec![vec![None; 24]; 7]);

        // Ranks of six values: 0.5, 2.5 and 4.5, which are rounded up to 1, 3 and 5.
        let scores: Vec<_> = (0..6).map(|n| (["a", "b", "c", "d", "e", "f"][n], n as f64 / 10.0)).collect();
        for (pod, value) in &scores {
            score(&db, &[(pod, *value, Some(value * 100.0), None)]).await;
        }
        db.client
            .batch_execute(
                "UPDATE studio_pod_reliability SET hourly_availability = '[[null, 1]]', uptime_pct = NULL WHERE pod_id = 'f';
                 UPDATE studio_pod_reliability SET hourly_availability = '{\"by\": \"hand\"}' WHERE pod_id = 'e'",
            )
            .await
            .expect("changed");
        let fleet = operator.availability().await.expect("an answer");
        assert_eq!((fleet.pods, fleet.score.p10, fleet.score.p50, fleet.score.p90), (6, Some(0.1), Some(0.3), Some(0.5)));
        // Five values are left: ranks 0.4, 2 and 3.6.
        let uptime = fleet.uptime_pct;
        assert_eq!((uptime.p10, uptime.p50, uptime.p90), (Some(0.0), Some(20.0), Some(40.0)));
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let near = |hour: Option<f64>, expected: f64| hour.is_some_and(|hour| (hour - expected).abs() < 1e-9);
        assert!(near(fleet.by_hour[0][0], mean(&[0.0, 0.1, 0.2, 0.3])), "{:?}", fleet.by_hour[0]);
        assert!(near(fleet.by_hour[0][1], mean(&[0.0, 0.1, 0.2, 0.3, 1.0])), "{:?}", fleet.by_hour[0]);
        assert!(near(fleet.by_hour[6][23], mean(&[0.0, 0.1, 0.2, 0.3])), "{:?}", fleet.by_hour[6]);
    })
    .await;
}

/// `score_by`: the features of a pod are those of its label.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_scored_as_its_label() {
    timed(async {
        let db = Db::new().await;
        db.client.batch_execute(KNOWN).await.expect("the history");
        score(&db, &[("n1", 0.75, None, None)]).await;
        let config = Config::new(&db.pod_url).with(|c| c.score_by = "node".to_owned());
        let operator = Operator::connect(&config).await.expect("an operator");
        for (pod, expected) in [("web-1", Some("n1")), ("web-2", None), ("n1", Some("n1"))] {
            let known = operator.liveness(pod).await.expect("an answer").expect("it is known");
            assert_eq!(known.features.scored_as.as_deref(), expected, "{pod}");
        }
    })
    .await;
}

/// The routes, served until this is dropped.
struct Served {
    url: String,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn of(operator: Operator, key: AdminKey) -> Self {
        let router = liveness_router(operator.clone(), key).merge(operator_probes(operator)).fallback(not_found);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { serve(listener, router).await.unwrap() });
        Self { url, task }
    }

    async fn new(db: &Db) -> Self {
        Self::of(operator(db).await, AdminKey::new(KEY).unwrap()).await
    }

    /// Asks with the key.
    async fn get(&self, path: &str) -> (u16, Value) {
        let request = http().get(format!("{}{path}", self.url)).bearer_auth(KEY);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert_eq!(response.headers()["content-type"], "application/json", "{path}");
        (status, response.json().await.unwrap())
    }

    async fn ok(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Behind an admin key (`Authorization: Bearer`; none set = all refused): the gate in all its cases.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_very_key_opens_the_gate() {
    timed(async {
        let db = Db::new().await;
        let served = Served::new(&db).await;
        let paths = [
            "/v1/pods/web-1/liveness",
            "/v1/pods/web-1/sessions",
            "/v1/pods/web-1/heartbeats",
            "/v1/pods/reliability",
            "/v1/network/availability",
        ];
        let right = format!("Bearer {KEY}").into_bytes();
        let lower = format!("bearer {KEY}").into_bytes();
        let cases: [(&str, Vec<Vec<u8>>, bool); 10] = [
            ("no header", vec![], false),
            ("another scheme", vec![format!("Basic {KEY}").into_bytes()], false),
            ("no scheme", vec![KEY.into()], false),
            ("a wrong key", vec![b"Bearer correct-horse-batterz".to_vec()], false),
            ("a prefix of the key", vec![right[..right.len() - 1].to_vec()], false),
            ("a longer key", vec![[right.as_slice(), b"x"].concat()], false),
            ("two headers", vec![right.clone(), right.clone()], false),
            ("bytes that are not ASCII", vec![[right.as_slice(), b"\xe9"].concat()], false),
            ("the key", vec![right.clone()], true),
            ("the key, with its scheme in lower case", vec![lower], true),
        ];
        for path in paths {
            for (what, headers, passes) in &cases {
                for method in [reqwest::Method::GET, reqwest::Method::HEAD] {
                    let mut request = http().request(method.clone(), format!("{}{path}", served.url));
                    for value in headers {
                        let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
                        request = request.header(reqwest::header::AUTHORIZATION, value);
                    }
                    let answer = request.send().await.unwrap();
                    let (status, challenge) = (answer.status(), answer.headers().get("www-authenticate").cloned());
                    assert_eq!(status == 401, !passes, "{method} {path} with {what}: {status}");
                    assert_eq!(challenge.is_some(), !passes, "{method} {path} with {what}");
                    let text = answer.text().await.unwrap();
                    assert!(!text.contains("correct-horse"), "{text}");
                    if !passes && method == reqwest::Method::GET {
                        let body: Value = serde_json::from_str(&text).unwrap();
                        assert_eq!(body["kind"], "unauthorized", "{path} with {what}");
                    }
                }
            }
            let url = format!("{}{path}", served.url);
            let other = http().request(reqwest::Method::OPTIONS, &url).send().await.unwrap();
            assert_eq!(other.status(), 401, "OPTIONS {path}");
            let other = http().request(reqwest::Method::OPTIONS, &url).bearer_auth(KEY).send().await.unwrap();
            assert_eq!(other.status(), 405, "OPTIONS {path}");
        }
        // No key is set: refused, also with one.
        let shut = Served::of(operator(&db).await, AdminKey::none()).await;
        for path in paths {
            let (status, body) = shut.get(path).await;
            assert_eq!((status, &body["kind"]), (403, &json!("no_admin_key")), "{path}: {body}");
        }
        for path in ["/v1/openapi.json", "/livez", "/readyz", "/healthz"] {
            let open = http().get(format!("{}{path}", shut.url)).send().await.unwrap();
            assert_eq!(open.status(), 200, "{path}");
        }
    })
    .await;
}

/// Bad parameters 400 with the field, unknown pod 404, known pod without features 200 with nulls, errors of one shape.
#[tokio::test(flavor = "multi_thread")]
async fn each_route_answers_and_refuses_as_it_is_documented() {
    timed(async {
        let db = Db::new().await;
        db.client.batch_execute(KNOWN).await.expect("the history");
        db.client
            .batch_execute(
                "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at) VALUES \
                 ('00000000-0000-0000-0000-000000000031', 'a/b c%?\u{e4}', '2026-03-01 12:00Z')",
            )
            .await
            .expect("a session");
        score(&db, &[("web-1", 0.75, Some(95.0), Some(0.5)), ("old", 0.5, None, None)]).await;
        let served = Served::new(&db).await;

        let one = served.ok("/v1/pods/web-1/liveness").await;
        assert_eq!(
            (&one["score"], &one["state"], &one["last_end"]["reason"]),
            (&json!(0.75), &json!("gone"), &json!("lost"))
        );
        let two = served.ok("/v1/pods/web-2/liveness").await;
        assert_eq!((two.get("score"), two.get("mtbf_seconds")), (Some(&Value::Null), Some(&Value::Null)));
        assert_eq!(served.ok("/v1/pods/a%2Fb%20c%25%3F%C3%A4/liveness").await["pod_id"], "a/b c%?\u{e4}");

        let page = served.ok("/v1/pods/web-1/sessions?limit=1").await;
        assert_eq!(
            (&page["sessions"][0]["incarnation"], &page["limit"]),
            (&json!("00000000-0000-0000-0000-000000000012"), &json!(1))
        );
        let next = page["next"].as_str().expect("a full page has a next one");
        let page = served.ok(&format!("/v1/pods/web-1/sessions?limit=1&before={next}")).await;
        assert_eq!(page["sessions"][0]["exit_signal"], 9);
        let next = page["next"].as_str().expect("a full page has a next one");
        let page = served.ok(&format!("/v1/pods/web-1/sessions?before={next}")).await;
        assert_eq!((&page["sessions"], &page["next"]), (&json!([]), &Value::Null));

        let page =
            served.ok("/v1/pods/web-1/heartbeats?since=2026-03-02T13:04:50%2B01:00&until=2026-03-02T12:05:00Z").await;
        assert_eq!((&page["heartbeats"][0]["number"], &page["since"]), (&json!(29), &json!("2026-03-02T12:04:50Z")));
        assert_eq!(served.ok("/v1/pods/web-2/heartbeats").await["heartbeats"], json!([]));

        let listed = served.ok("/v1/pods/reliability?max_score=0&min_uptime=50&limit=7").await;
        let filters = json!({"min_uptime": 50.0, "min_stays_4h": 0.0, "min_score": 0.0, "max_score": 0.0, "limit": 7});
        assert_eq!(
            (&listed["filters"], &listed["count"], &listed["pods"][0]["pod_id"]),
            (&filters, &json!(1), &json!("web-1"))
        );
        assert_eq!(served.ok("/v1/pods/reliability").await["count"], 2);
        let fleet = served.ok("/v1/network/availability").await;
        assert_eq!(
            (&fleet["pods"], &fleet["uptime_pct"]["p50"], &fleet["score"]["p90"]),
            (&json!(2), &json!(95.0), &json!(0.75))
        );
        assert_eq!((fleet["by_hour"].as_array().map(Vec::len), &fleet["by_hour"][6][23]), (Some(7), &json!(0.625)));

        let long = format!("/v1/pods/{}/liveness", "x".repeat(257));
        for (path, field) in [
            ("/v1/pods/web-1/liveness?limit=1", "limit"),
            ("/v1/pods/web%00/liveness", "id"),
            ("/v1/pods/%ff/liveness", "id"),
            (long.as_str(), "id"),
            ("/v1/pods/web-1/sessions?limit=0", "limit"),
            ("/v1/pods/web-1/sessions?limit=1001", "limit"),
            ("/v1/pods/web-1/sessions?before=now", "before"),
            ("/v1/pods/web-1/sessions?befor=2026-03-01T12:00:00Z", "befor"),
            ("/v1/pods/nobody/sessions?limit=-1", "limit"),
            ("/v1/pods/web-1/heartbeats?since=2026-03-02T12:00:00Z&until=2026-03-02T11:00:00Z", "since"),
            ("/v1/pods/web-1/heartbeats?since=2026-03-01T12:00:00Z&until=2026-04-02T12:00:00Z", "since"),
            ("/v1/pods/web-1/heartbeats?until=2026-13-01T12:00:00Z", "until"),
            ("/v1/pods/reliability?min_uptime=NaN", "min_uptime"),
            ("/v1/pods/reliability?min_uptime=101", "min_uptime"),
            ("/v1/pods/reliability?min_stays_4h=-0.1", "min_stays_4h"),
            ("/v1/pods/reliability?min_score=1.1", "min_score"),
            ("/v1/pods/reliability?max_score=x", "max_score"),
            ("/v1/pods/reliability?min_score=0.9&max_score=0.1", "min_score"),
            ("/v1/pods/reliability?limit=1&limit=2", "limit"),
            ("/v1/network/availability?hour=1", "hour"),
        ] {
            let (status, body) = served.get(path).await;
            assert_eq!(
                (status, &body["kind"], &body["field"]),
                (400, &json!("bad_request"), &json!(field)),
                "{path}: {body}"
            );
        }
        for path in ["liveness", "sessions", "heartbeats"] {
            let (status, body) = served.get(&format!("/v1/pods/nobody/{path}")).await;
            assert_eq!((status, &body["kind"]), (404, &json!("not_found")), "{path}: {body}");
        }
        let (status, body) = served.get("/v1/pods/web-1/nothing").await;
        assert_eq!((status, &body["kind"]), (404, &json!("not_found")), "{body}");
        for path in ["/v1/pods/reliability", "/v1/openapi.json"] {
            let answer = http().post(format!("{}{path}", served.url)).bearer_auth(KEY).send().await.unwrap();
            let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
            assert_eq!((status, &body["kind"]), (405, &json!("method_not_allowed")), "{path}: {body}");
        }
    })
    .await;
}

/// Limits on everything: a few requests read at a time, some wait, and others are told to come again.
#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_can_be_answered_are_refused_at_once() {
    timed(async {
        let mut db = Db::new().await;
        let served = Served::new(&db).await;
        // Nothing reads the table until the lock is gone.
        let url = db.url.clone();
        let txn = db.client.transaction().await.unwrap();
        txn.batch_execute("LOCK TABLE studio_pod_reliability").await.unwrap();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        for _ in 0..70 {
            let (told, url) = (told.clone(), served.url.clone());
            tokio::spawn(async move {
                let answer = http().get(format!("{url}/v1/pods/reliability")).bearer_auth(KEY).send().await.unwrap();
                let after = answer.headers().contains_key("retry-after");
                let _ = told.send((answer.status().as_u16(), after, answer.json::<Value>().await.unwrap()));
            });
        }
        for _ in 0..6 {
            let (status, after, body) = heard.recv().await.expect("an answer");
            assert_eq!((status, after, &body["kind"]), (503, true, &json!("busy")), "{body}");
        }
        let watch = crate::support::sql::connect(&url).await;
        eventually(SOON, "two requests read", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event_type = 'Lock' AND query LIKE '%studio_pod_reliability%'";
            let reading: i64 = watch.scalar(sql, &[]).await;
            if reading == 2 { Ok(()) } else { Err(format!("{reading} read")) }
        })
        .await;
        txn.rollback().await.unwrap();
        for _ in 0..64 {
            let (status, _, body) = heard.recv().await.expect("an answer");
            assert!(status == 200, "{status}: {body}");
        }
    })
    .await;
}
