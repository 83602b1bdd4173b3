//! Any role of the database can take the lock of a pod. podlock cannot prevent that; it says who did.

use podlock::operator::EventFilter;
use podlock::{ErrorKind, NewRun, Operator, Pod};
use serde_json::Value;

use crate::patience::SOON;
use crate::support::faults::{OwnServer, refused};
use crate::support::trace::{self, Event};
use crate::support::{Db, eventually, lease, server, sql, start, timed};

/// A role that may connect and has no right on anything of podlock's.
async fn stranger(db: &Db) -> String {
    let role = format!("stranger_{}", db.name);
    db.client.batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2secret'")).await.unwrap();
    let rights = "SELECT count(*) FROM pg_class WHERE relname LIKE 'studio\\_%' AND relkind IN ('r', 'v') \
                  AND has_table_privilege($1, oid, 'SELECT, INSERT, UPDATE, DELETE')";
    assert_eq!(db.client.scalar::<i64>(rights, &[&role]).await, 0);
    role
}

async fn connect(db: &Db, role: &str, application: &str) -> (sql::Client, i32) {
    let url = format!(
        "postgresql://{role}:hunter2secret@127.0.0.1:{}/{}?application_name={application}",
        server().port(),
        db.name
    );
    let client = sql::connect(&url).await;
    let pid = client.scalar("SELECT pg_backend_pid()", &[]).await;
    (client, pid)
}

async fn key(db: &Db, of: &str, pod: &str) -> i64 {
    db.client.scalar(&format!("SELECT studio_{of}_key($1::text)"), &[&pod]).await
}

/// Begins to wait for a key, on a connection of its own, and returns once it is next: a watch that waits as well stands
/// behind it.
async fn queues(db: &Db, role: &str, key: i64) -> (tokio::task::JoinHandle<()>, i32) {
    let (client, pid) = connect(db, role, "queuer").await;
    let waits = tokio::spawn(async move {
        // It ends with the connection.
        let _ = client.batch_execute(&format!("SELECT pg_advisory_lock({key})")).await;
        std::future::pending::<()>().await;
    });
    eventually(SOON, "the stranger is the next to be granted the lock", || async {
        let sql = "SELECT array_agg(pid ORDER BY waitstart) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                   AND ((classid::bigint << 32) | objid::bigint) = $1";
        let waiting: Option<Vec<i32>> = db.client.scalar(sql, &[&key]).await;
        if waiting.as_ref().is_some_and(|w| w.first() == Some(&pid)) { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    (waits, pid)
}

async fn end(db: &Db, pid: i32) {
    assert!(db.client.scalar::<bool>("SELECT pg_terminate_backend($1)", &[&pid]).await);
}

/// The events about strangers at locks of this pod: by the process, the key, and whether it holds it.
async fn events(db: &Db, pod: &str) -> Vec<Value> {
    let sql = "SELECT detail FROM studio_pod_events WHERE kind = 'foreign_lock' AND pod_id = $1 ORDER BY idx";
    db.client.query(sql, &[&pod]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Waits for the event and returns it.
async fn told(db: &Db, pod: &str, pid: i32, key: &str, granted: bool) -> Value {
    eventually(SOON, &format!("the log tells that {pid} is at the {key} lock of {pod}, granted: {granted}"), || async {
        let events = events(db, pod).await;
        let is = |e: &&Value| e["pid"] == pid && e["key"] == key && e["granted"] == granted;
        events.iter().find(is).cloned().ok_or_else(|| format!("{events:?}"))
    })
    .await
}

fn warned(pod: &str, pid: i32) -> Vec<Event> {
    let is = |e: &Event| {
        let has = |field, value: &str| e.get(field).is_some_and(|v| v == value);
        has("event", "foreign_lock") && has("pod", pod) && has("pid", &pid.to_string())
    };
    trace::events(pod).into_iter().filter(is).collect()
}

async fn column(db: &Db, pod: &str) -> Option<String> {
    db.client.scalar("SELECT foreign_lock FROM studio_pod_status WHERE pod_id = $1", &[&pod]).await
}

/// A pod that cannot start says who holds its lock and how to end it, however the lock is held, and starts when that is
/// done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_lock_a_stranger_holds_is_not_called_a_living_pod() {
    timed(async {
        let db = Db::new().await;
        let role = stranger(&db).await;
        for (of, take) in [
            ("lock", "pg_advisory_lock"),
            ("witness", "pg_advisory_lock"),
            // A shared lock keeps the pod out as well.
            ("lock", "pg_advisory_lock_shared"),
        ] {
            let key = key(&db, of, "a").await;
            let (client, pid) = connect(&db, &role, "nosy").await;
            client.query_one(&format!("SELECT {take}($1)"), &[&key]).await.unwrap();
            // Long enough for the short waits of a start, and soon over.
            let wait = lease() / 2;
            let refusal = refused(db.config("a").with(|c| c.acquire_timeout = Some(wait))).await;
            let process = format!("server process {pid} from an address that is hidden from this role");
            let who = format!("role {role}, application nosy");
            let remedy = format!("SELECT pg_terminate_backend({pid})");
            let words = ["somebody who is no pod", &process, &who, &remedy, "REVOKE CONNECT"];
            refusal.is(ErrorKind::NameTaken, &words, SOON);
            assert!(!refusal.error.to_string().contains("lives already"), "{}", refusal.error);
            db.client.batch_execute(&remedy).await.unwrap();
            start(db.config("a")).await.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// A stranger waits for the lock of a living pod, and a pod reports this. Then the living pod dies, and the server
/// grants the lock to the stranger. Nobody buries the dead pod (L10), and a pod reports the stranger once more. When
/// the stranger is gone, the burial and the claim go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_a_pods_lock_is_an_event_a_log_line_and_a_column_and_when_it_is_gone_all_goes_on() {
    timed(async {
        let db = Db::new().await;
        let role = stranger(&db).await;
        let names = ["strange-a", "strange-b", "strange-c"];
        let [a, b, c]: [Pod; 3] =
            [start(db.config(names[0])).await, start(db.config(names[1])).await, start(db.config(names[2])).await];
        tokio::time::sleep(lease()).await;
        let run = a.start(NewRun::new("wait")).await.unwrap().run_id;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        assert_eq!(column(&db, names[0]).await, None, "the watch of its predecessor is no stranger");

        let (waiting, pid) = queues(&db, &role, key(&db, "lock", names[0]).await).await;
        let event = told(&db, names[0], pid, "liveness", false).await;
        assert_eq!((event["role"].as_str(), event["application"].as_str()), (Some(role.as_str()), Some("queuer")));
        let seen = column(&db, names[0]).await.expect("the column says it");
        let who = format!("server process {pid} (role {role}, application queuer, from 127.0.0.1)");
        assert_eq!(seen, format!("{who} waits for its liveness lock"), "a superuser sees the address");
        eventually(SOON, "one line in the log", || async {
            let lines = warned(names[0], pid);
            if lines.len() == 1 { Ok(()) } else { Err(format!("{lines:?}")) }
        })
        .await;
        let line = warned(names[0], pid).remove(0);
        let field = |name: &str| line.get(name).map(String::as_str);
        assert_eq!((field("level"), field("key"), field("granted")), (Some("WARN"), Some("liveness"), Some("false")));
        assert_eq!((field("role"), field("application")), (Some(role.as_str()), Some("queuer")));
        let text = "waits for the liveness lock of pod strange-a: ";
        assert!(field("message").is_some_and(|message| message.contains(text)), "{line:?}");
        assert!(names.contains(&field("by").unwrap()) && line.contains_key("incarnation"), "{line:?}");

        // A second stranger takes the witness lock of the same pod when that pod is dead.
        let dead = a.incarnation();
        drop(a);
        let held = told(&db, names[0], pid, "liveness", true).await;
        assert_eq!(held["pid"], pid);
        let (holder, second) = connect(&db, &role, "holder").await;
        let witness = key(&db, "witness", names[0]).await;
        holder.query_one("SELECT pg_advisory_lock($1)", &[&witness]).await.unwrap();
        told(&db, names[0], second, "witness", true).await;
        let pods = operator.pods(Default::default()).await.unwrap();
        let shown = pods.iter().find(|p| p.pod_id == names[0]).expect("it is not buried");
        let column = shown.foreign_lock.as_deref().unwrap_or_default();
        assert!(
            column.contains(&format!("server process {pid} ")) && column.contains("holds its liveness lock"),
            "{column}"
        );
        assert!(
            column.contains(&format!("server process {second} ")) && column.contains("its witness lock"),
            "{column}"
        );
        assert_eq!(shown.condition_in_words(), "dead; a stranger holds its lock: end that session");
        assert_eq!(db.client.session_end(dead).await, None, "L10: nobody is buried on it");
        assert!(pods.iter().filter(|p| p.pod_id != names[0]).all(|p| p.foreign_lock.is_none()), "{pods:?}");

        // Each stranger was reported once, although two pods check again and again.
        let before = db.client.scalar::<i64>("SELECT max(event_index) FROM studio_pods", &[]).await;
        eventually(SOON, "the pods beat some more times", || async {
            let now = db.client.scalar::<i64>("SELECT max(event_index) FROM studio_pods", &[]).await;
            if now >= before + 4 { Ok(()) } else { Err(format!("{before} {now}")) }
        })
        .await;
        let all = events(&db, names[0]).await;
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!((warned(names[0], pid).len(), warned(names[0], second).len()), (2, 1));

        end(&db, second).await;
        end(&db, pid).await;
        waiting.abort();
        db.client.roster_is(&[names[1], names[2]], SOON).await;
        assert_eq!(db.client.session_end(dead).await.map(|(reason, _)| reason).as_deref(), Some("lost"));
        eventually(SOON, "the run is claimed", || async {
            let run = db.client.run(run).await;
            if run.attempt == 2 { Ok(()) } else { Err(format!("{run:?}")) }
        })
        .await;
        let listed = operator.events(EventFilter::new().kind("foreign_lock")).await.unwrap();
        assert_eq!(listed.len(), 3);
        db.client.assert_fold_is_roster().await;
        drop((b, c));
    })
    .await;
}

/// Strangers hold the locks of dead pods, so these pods look alive to a probe. Such dead pods take no turn in the check
/// for strangers. So the living pods check as often as without the dead ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_pods_whose_locks_a_stranger_holds_delay_no_look_for_strangers() {
    timed(async {
        const DEAD: usize = 200;
        let db = Db::new().await;
        let often = |name: &str| db.config(name).with(|c| c.beat_interval = Some(lease() / 8));
        let pods = [start(often("a")).await, start(often("b")).await];
        let role = stranger(&db).await;
        let (holder, _) = connect(&db, &role, "holder").await;
        let keys = "SELECT pg_advisory_lock(studio_lock_key('g' || n)) FROM generate_series(1, $1::bigint) n";
        holder.query(keys, &[&i64::try_from(DEAD).unwrap()]).await.unwrap();
        let rows = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                        liveness_pid, liveness_started) \
                    SELECT 'g' || n, '', 0, gen_random_uuid(), studio_lock_key('g' || n), studio_witness_key('g' || \
                    n), 0, now() FROM generate_series(1, $1::bigint) n";
        db.client.execute(rows, &[&i64::try_from(DEAD).unwrap()]).await.unwrap();
        // Every pod has looked at the dead by the time that it looks for strangers at one of them.
        tokio::time::sleep(lease() / 2).await;
        let (queuer, pid) = queues(&db, &role, key(&db, "lock", "a").await).await;
        let index = "SELECT max(event_index) FROM studio_pods";
        let before: i64 = db.client.scalar(index, &[]).await;
        told(&db, "a", pid, "liveness", false).await;
        let beats = db.client.scalar::<i64>(index, &[]).await - before;
        // In four beats of two pods each has a turn, and that turn tells of pod a first.
        assert!(beats <= 12, "two pods looked for strangers only after {beats} beats");
        queuer.abort();
        for pod in pods {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// Whoever comes again and again fills no log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_strangers_at_one_pod_are_at_most_sixteen_events() {
    timed(async {
        let db = Db::new().await;
        let pod = start(db.config("crowded")).await;
        let note = "SELECT studio_note_foreign_locks((SELECT jsonb_agg(jsonb_build_object('nth', n, 'incarnation', \
                        $1::uuid, 'key', 'witness', 'granted', true, 'pid', $2::int + n)) \
                        FROM generate_series(0, 9) n), 'x'::text)";
        let client = sql::connect(&db.pod_url).await;
        let mut noted = Vec::new();
        for from in [100, 100, 105, 200, 300] {
            // The pod itself may have the log at the moment: then nothing is noted, and it is tried again.
            let new = eventually(SOON, "the log is free", || async {
                let new: Option<Vec<i32>> = client.scalar(note, &[&pod.incarnation().as_uuid(), &from]).await;
                new.ok_or_else(|| "not yet".to_owned())
            })
            .await;
            noted.push(new.len());
        }
        assert_eq!(noted, [10, 0, 5, 1, 0]);
        assert_eq!(events(&db, "crowded").await.len(), 16);
        let gone = eventually(SOON, "the log is free", || async {
            let gone: Option<Vec<i32>> = client.scalar(note, &[&uuid::Uuid::now_v7(), &1_i32]).await;
            gone.ok_or_else(|| "not yet".to_owned())
        })
        .await;
        assert_eq!(gone, [0; 0], "who is not in the roster is not told of");
        // Nobody waits for the log to tell of a stranger.
        db.client.batch_execute("BEGIN; LOCK TABLE studio_log_order IN EXCLUSIVE MODE").await.unwrap();
        let busy: Option<Vec<i32>> = client.scalar(note, &[&pod.incarnation().as_uuid(), &400_i32]).await;
        assert_eq!(busy, None);
        db.client.batch_execute("ROLLBACK").await.unwrap();
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A prepared transaction holds a lock without any process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_that_holds_a_pods_lock_is_named() {
    timed(async {
        let server = OwnServer::start(&[("max_prepared_transactions", "4")]).await;
        let db = Db::on(&server).await;
        podlock::migrate::up(&db.config("x")).await.unwrap();
        let prepare = "BEGIN; SELECT pg_advisory_xact_lock(studio_witness_key('a'::text)); PREPARE TRANSACTION 'it''s'";
        db.client.batch_execute(prepare).await.unwrap();
        let wait = lease() / 2;
        let refusal = refused(db.config("a").with(|c| c.acquire_timeout = Some(wait))).await;
        let words = ["somebody who is no pod", "prepared transaction 'it''s'", "ROLLBACK PREPARED 'it''s'"];
        refusal.is(ErrorKind::NameTaken, &words, SOON);
        db.client.batch_execute("ROLLBACK PREPARED 'it''s'").await.unwrap();
        let pod = start(db.config("a")).await;
        // A shared one beside the pod's own is no more possible; one on a dead pod's key is.
        let row = "INSERT INTO studio_pods (pod_id, state, version, event_index, beat_at, incarnation, lock_key, \
                       witness_key, liveness_pid, liveness_started) \
                   VALUES ('d', 'active', '', 0, now(), gen_random_uuid(), studio_lock_key('d'::text), \
                       studio_witness_key('d'::text), 0, now())";
        let take = format!(
            "BEGIN; SELECT pg_advisory_xact_lock(studio_lock_key('d'::text)); {row}; PREPARE \
                            TRANSACTION 'd'"
        );
        // The row is made by the same transaction, and another takes the lock before it is committed.
        let hold = "BEGIN; SELECT pg_advisory_xact_lock_shared(studio_lock_key('d'::text)); PREPARE TRANSACTION 'gone'";
        db.client.batch_execute(&take.replace("xact_lock(", "xact_lock_shared(")).await.unwrap();
        db.client.batch_execute(hold).await.unwrap();
        db.client.batch_execute("COMMIT PREPARED 'd'").await.unwrap();
        eventually(SOON, "the prepared transaction is told of", || async {
            let events = events(&db, "d").await;
            let is = |e: &&Value| e["prepared"] == "gone" && e.get("pid").is_none() && e["granted"] == true;
            events.iter().find(is).map(|_| ()).ok_or_else(|| format!("{events:?}"))
        })
        .await;
        let seen = column(&db, "d").await;
        assert!(seen.as_deref().is_some_and(|s| s.starts_with("prepared transaction 'gone' of role")), "{seen:?}");
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}
