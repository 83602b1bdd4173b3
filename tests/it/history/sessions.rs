//! Sessions: how each incarnation began and ended.

use std::time::Duration;

use podlock::history::ProcessExit;
use podlock::{Config, Incarnation, Pod};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::patience::SOON;
use crate::support::process::Process;
use crate::support::{Db, eventually, lease, start, timed};

/// A pod that looks for sessions that nobody closed every 150 ms.
fn keen(db: &Db, name: &str) -> Config {
    db.config(name).with(|c| c.beat_interval = Some(Duration::from_millis(150)))
}

/// An open session of a pod that is not in the roster.
async fn stray(db: &Db, pod: &str, last_sample: Option<&str>) -> Incarnation {
    let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, last_heartbeat_at)
               VALUES (gen_random_uuid(), $1, '2026-01-01', $2::text::timestamptz) RETURNING incarnation";
    db.client.scalar::<uuid::Uuid>(sql, &[&pod, &last_sample]).await.into()
}

/// The reason, the cause, the exit code and the signal of an incarnation.
async fn end(db: &Db, incarnation: Incarnation) -> (Option<String>, Option<String>, Option<i32>, Option<i32>) {
    let sql = "SELECT reason, cause, exit_code, exit_signal FROM studio_pod_sessions WHERE incarnation = $1";
    let row = db.client.query_one(sql, &[&incarnation.as_uuid()]).await.unwrap();
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

async fn ended(
    db: &Db,
    incarnation: Incarnation,
    (reason, cause): (&str, Option<&str>),
    exit: (Option<i32>, Option<i32>),
) {
    eventually(SOON, &format!("it ended as {reason}, {cause:?}, {exit:?}"), || async {
        let seen = end(db, incarnation).await;
        let wanted = (Some(reason), cause, exit.0, exit.1);
        if (seen.0.as_deref(), seen.1.as_deref(), seen.2, seen.3) == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Issue: "opened at boot, closed by the burial in its own transaction".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_begins_with_the_pods_labels_and_its_cgroup_and_the_burial_closes_it() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let labelled = start(db.config("c").label("node", "n1")).await;
        let sql = "SELECT labels, ended_at IS NULL, cgroup IS NULL OR cgroup ?& '{id,oom_kills}'
                     FROM studio_pod_sessions WHERE incarnation = $1";
        let row = db.client.query_one(sql, &[&labelled.incarnation().as_uuid()]).await.unwrap();
        assert_eq!((row.get::<_, Value>(0), row.get(1), row.get(2)), (json!({"node": "n1"}), true, true));
        let dead = labelled.incarnation();
        drop(labelled);
        eventually(SOON, "the burial closed it", || async {
            db.client.session_end(dead).await.ok_or_else(|| "open".to_owned())
        })
        .await;
        let sql = "SELECT s.ended_at <= e.at AND s.ended_at > e.at - interval '5 s'
                     FROM studio_pod_sessions s JOIN studio_pod_events e USING (incarnation)
                    WHERE e.kind = 'buried' AND s.incarnation = $1 AND s.xmin = e.xmin";
        assert!(db.client.scalar::<bool>(sql, &[&dead.as_uuid()]).await, "one transaction wrote both");
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Issue: "A close that fails is counted and repaired by the next sweep, never left open for weeks; a live sibling's row
/// is never closed, whatever the deployment looks like (blue and green together)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_closed_is_closed_and_that_of_a_living_sibling_never() {
    timed(async {
        let db = Db::new().await;
        let blue = start(keen(&db, "blue-0").label("deployment", "blue")).await;
        let green = start(db.config("green-0").label("deployment", "green").version("2")).await;
        let sampled = stray(&db, "blue-1", Some("2026-03-01T10:00:00Z")).await;
        let silent = stray(&db, "green-1", None).await;
        // A pod of the same name lives: only the incarnation counts.
        let namesake = stray(&db, "green-0", None).await;
        for lost in [sampled, silent, namesake] {
            ended(&db, lost, ("lost", Some("unrecorded")), (None, None)).await;
        }
        let sql = "SELECT ended_at = '2026-03-01T10:00:00Z', (SELECT now() - ended_at < interval '1 min'
                     FROM studio_pod_sessions WHERE incarnation = $2) FROM studio_pod_sessions WHERE incarnation = $1";
        let row = db.client.query_one(sql, &[&sampled.as_uuid(), &silent.as_uuid()]).await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (true, true), "at the last sample, or when it was found");
        for living in [&blue, &green] {
            assert_eq!(end(&db, living.incarnation()).await.0, None, "{living:?} lives");
        }
        for pod in [blue, green] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// The repair waits for no row. A row that a transaction has locked is closed by a later round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_the_repair_passes_over_a_locked_session_and_closes_the_others() {
    timed(async {
        let db = Db::new().await;
        let (locked, free) = (stray(&db, "a", None).await, stray(&db, "b", None).await);
        let sql = "SELECT FROM studio_pod_sessions WHERE incarnation = $1 FOR UPDATE";
        db.client.batch_execute("BEGIN").await.unwrap();
        db.client.query(sql, &[&locked.as_uuid()]).await.unwrap();
        let pod = start(keen(&db, "c")).await;
        let other = crate::support::sql::connect(&db.url).await;
        eventually(SOON, "the free one is closed", || async {
            other.session_end(free).await.ok_or_else(|| "open".to_owned())
        })
        .await;
        assert_eq!(other.session_end(locked).await, None, "the locked one waits");
        db.client.batch_execute("COMMIT").await.unwrap();
        eventually(SOON, "the locked one is closed", || async {
            other.session_end(locked).await.ok_or_else(|| "open".to_owned())
        })
        .await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The row of a pod that registers at this moment is either not visible at all or has its row in the roster: the repair
/// never closes it. Many pods start while the repair runs without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repair_closes_no_session_of_a_pod_that_is_starting() {
    timed(async {
        let db = Db::new().await;
        let repairer = start(db.config("repairer").with(|c| c.beat_interval = Some(Duration::from_millis(20)))).await;
        for round in 0..4 {
            let starting = (0..3).map(|n| start(db.config(&format!("pod-{n}"))));
            let pods: Vec<Pod> = futures_util::future::join_all(starting).await;
            for pod in &pods {
                assert_eq!(end(&db, pod.incarnation()).await.0, None, "round {round}: {pod:?} lives");
            }
            for pod in pods {
                pod.shutdown(SOON).await.unwrap();
            }
        }
        let sql = "SELECT count(*) FROM studio_pod_sessions WHERE cause = 'unrecorded'";
        assert_eq!(db.client.scalar::<i64>(sql, &[]).await, 0);
        repairer.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Issue: "the service itself may add what it knows (signal, exit code …) at the next start of the same name".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_of_the_name_adds_how_the_one_before_ended() {
    timed(async {
        let db = Db::new().await;
        let other = db.pod("other").await;
        let cases = [
            (ProcessExit::signal(11), Some("killed"), (None, Some(11))),
            (ProcessExit::code(3), Some("exited"), (Some(3), None)),
            (ProcessExit::signal(9).out_of_memory(), Some("out_of_memory"), (None, Some(9))),
        ];
        for (exit, cause, codes) in cases {
            let url = db.url.clone();
            let process = tokio::task::spawn_blocking(move || Process::start(&url, "a", lease())).await.unwrap();
            let sql = "SELECT incarnation FROM studio_pods WHERE pod_id = 'a'";
            let dead: Incarnation = db.client.scalar::<uuid::Uuid>(sql, &[]).await.into();
            process.signal(Signal::KILL);
            eventually(SOON, "it is buried", || async {
                db.client.session_end(dead).await.ok_or_else(|| "open".to_owned())
            })
            .await;
            let next = Pod::builder(db.config("a")).former_exit(exit).start().await.unwrap();
            ended(&db, dead, ("lost", cause), codes).await;
            next.shutdown(SOON).await.unwrap();
            db.client.roster_is(&["other"], SOON).await;
        }
        other.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// What the former process wrote itself stays, a clean stop gets no cause, and older sessions are left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_the_former_process_overrules_nothing_that_it_said_itself() {
    timed(async {
        let db = Db::new().await;
        let past = async |pod: &str, reason: &str, cause: Option<&str>, hours_ago: i32| -> Incarnation {
            let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, cause)
                       VALUES (gen_random_uuid(), $1, now() - make_interval(hours => $4), now(), $2, $3)
                       RETURNING incarnation";
            db.client.scalar::<uuid::Uuid>(sql, &[&pod, &reason, &cause, &hours_ago]).await.into()
        };
        let cases = [
            ("lost", Some("failed"), Some("failed")),
            ("lost", Some("frozen"), Some("frozen")),
            ("shutdown", None, None),
            ("lost", None, Some("killed")),
            ("replaced", None, Some("killed")),
            ("lost", Some("silent"), Some("killed")),
        ];
        for (n, (reason, before, after)) in cases.into_iter().enumerate() {
            let name = format!("pod-{n}");
            let oldest = past(&name, "lost", Some("closed"), 9).await;
            let former = past(&name, reason, before, 3).await;
            let pod = Pod::builder(db.config(&name)).former_exit(ProcessExit::signal(6)).start().await.unwrap();
            if reason == "shutdown" {
                // The part has worked once the one of the next start has: nothing is recorded here.
                pod.shutdown(SOON).await.unwrap();
                // It began after the pod, whose last statement may still be under way on the server.
                let next = past(&name, "lost", None, 0).await;
                let exit = ProcessExit::code(1).of(next);
                let pod = Pod::builder(db.config(&name)).former_exit(exit).start().await.unwrap();
                ended(&db, next, ("lost", Some("exited")), (Some(1), None)).await;
                assert_eq!(end(&db, former).await, (Some("shutdown".into()), None, None, None));
                pod.shutdown(SOON).await.unwrap();
                continue;
            }
            ended(&db, former, (reason, after), (None, Some(6))).await;
            assert_eq!(end(&db, oldest).await, (Some("lost".into()), Some("closed".into()), None, None));
            assert_eq!(end(&db, pod.incarnation()).await, (None, None, None, None));
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Issue: "OOM read from the cgroup's events at the next start of the same name". The row of the former session says that
/// it ran in this cgroup, and that fewer processes had been killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grown_count_of_the_cgroup_shows_that_the_former_process_lacked_memory() {
    timed(async {
        let db = Db::new().await;
        let first = db.pod("a").await;
        let sql = "SELECT cgroup FROM studio_pod_sessions WHERE incarnation = $1";
        let cgroup: Option<Value> = db.client.scalar(sql, &[&first.incarnation().as_uuid()]).await;
        first.shutdown(SOON).await.unwrap();
        let Some(cgroup) = cgroup else {
            eprintln!("skipped: this system shows no cgroup");
            return;
        };
        let kills = cgroup["oom_kills"].as_i64().unwrap();
        let other = json!({"id": "another", "oom_kills": kills - 1});
        let fewer = json!({"id": cgroup["id"], "oom_kills": kills - 1});
        let cases = [
            (fewer.clone(), false, Some("out_of_memory")),
            (fewer, true, Some("closed")),
            (cgroup.clone(), false, Some("closed")),
            (other, false, Some("closed")),
            (Value::Null, false, Some("closed")),
        ];
        for (n, (was, has_neighbour, cause)) in cases.into_iter().enumerate() {
            let name = format!("b{n}");
            db.client.execute("DELETE FROM studio_pod_sessions", &[]).await.unwrap();
            if has_neighbour {
                // Another pod of the cgroup, of which the victim may have been.
                let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, cgroup)
                           VALUES (gen_random_uuid(), 'neighbour', now() - interval '30 min', now(), 'lost', $1)";
                db.client.execute(sql, &[&cgroup]).await.unwrap();
            }
            let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, cause, cgroup)
                       VALUES (gen_random_uuid(), $1, now() - interval '1 h', now(), 'lost', 'closed', $2)
                       RETURNING incarnation";
            let former: Incarnation = db.client.scalar::<uuid::Uuid>(sql, &[&name, &was]).await.into();
            let pod = db.pod(&name).await;
            if cause == Some("out_of_memory") {
                ended(&db, former, ("lost", cause), (None, None)).await;
            } else {
                pod.shutdown(SOON).await.unwrap();
                ended(&db, former, ("lost", cause), (None, None)).await;
                continue;
            }
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Issue: "a supervisor such as `hold` … may add what it knows".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_notes_the_exit_of_what_it_supervises_before_it_stops_its_pod() {
    timed(async {
        let db = Db::new().await;
        let other = db.pod("other").await;
        let cases = [
            (ProcessExit::code(0), None, (Some(0), None)),
            (ProcessExit::code(7), Some("exited"), (Some(7), None)),
            (ProcessExit::signal(15).was_asked(), None, (None, Some(15))),
        ];
        for (exit, cause, codes) in cases {
            let pod = db.pod("held").await;
            let own = pod.incarnation();
            pod.note_exit(exit).await.unwrap();
            pod.shutdown(SOON).await.unwrap();
            ended(&db, own, ("shutdown", cause), codes).await;
            db.client.roster_is(&["other"], SOON).await;
        }
        other.shutdown(SOON).await.unwrap();
    })
    .await;
}
