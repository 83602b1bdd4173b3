//! L11: a notice is a hint. A stranger, a role that may connect and nothing else, hears no name and moves nothing.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podlock::operator::EventFilter;
use podlock::protocol::notices::{GAP_MOST, StreamNotice, Word};
use podlock::protocol::offer::GAP;
use podlock::{Config, Incarnation, NewRun, Operator, Pod, PodEvent, RunId, StopReason};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use crate::inherited::clean;
use crate::patience::{SOON, slack};
use crate::runs::stage::{Stage, act, behind_proxy};
use crate::support::proxy::Flow;
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, lease, server, start, timed, trace};

const CHANNELS: [&str; 2] = ["podlock_app", "podstream_app"];

/// A database with podlock's tables in the schema `app`, and a role that may connect to it, and nothing more.
struct Stranger {
    db: Db,
    url: String,
}

impl Stranger {
    async fn new() -> Self {
        let db = Db::empty().await;
        podlock::migrate::up(&db.config("-").schema("app")).await.unwrap();
        let role = format!("stranger_{}", db.name);
        let sql = format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter2secret'; SET search_path = app");
        db.client.batch_execute(&sql).await.unwrap();
        let url = format!("postgresql://{role}:hunter2secret@127.0.0.1:{}/{}", server().port(), db.name);
        let client = sql::connect(&url).await;
        let sql = "SELECT has_database_privilege(current_database(), 'CONNECT') \
                   AND NOT has_schema_privilege('app', 'USAGE') AND NOT rolsuper FROM pg_roles \
                   WHERE rolname = current_user";
        assert!(client.scalar::<bool>(sql, &[]).await);
        client.query("SELECT FROM app.studio_pods", &[]).await.expect_err("it may not look");
        Self { db, url }
    }

    fn config(&self, pod: &str) -> Config {
        self.db.config(pod).schema("app")
    }

    async fn operator(&self) -> Operator {
        Operator::connect(&self.config("-")).await.unwrap()
    }

    async fn listens(&self) -> (Client, UnboundedReceiver<String>) {
        let (client, heard) = sql::listening(&self.url).await;
        for channel in CHANNELS {
            client.batch_execute(&format!("LISTEN {channel}")).await.expect("PostgreSQL has no rights on channels");
        }
        (client, heard)
    }

    /// All names, incarnations and runs that the tables know, as they could be written.
    async fn secrets(&self) -> BTreeSet<String> {
        let sql = "SELECT pod_id FROM studio_pod_sessions UNION SELECT incarnation::text FROM studio_pod_sessions \
                   UNION SELECT run_id::text FROM studio_runs";
        let rows = self.db.client.query(sql, &[]).await.unwrap();
        let plain: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let short = plain.iter().filter_map(|id| id.parse::<Uuid>().ok()).map(|id| id.simple().to_string());
        short.chain(plain.iter().cloned()).collect()
    }
}

/// The whole roster, all runs and attempts, how every pod ended, and what the log tells.
async fn everything(client: &Client) -> serde_json::Value {
    let sql = "SELECT jsonb_build_object( \
        'pods', (SELECT jsonb_agg(to_jsonb(p) - 'event_index' - 'beat_at' ORDER BY p.pod_id) FROM studio_pods p), \
        'runs', (SELECT jsonb_agg(to_jsonb(r) ORDER BY r.run_id) FROM studio_runs r), \
        'attempts', (SELECT jsonb_agg(to_jsonb(a) ORDER BY a.run_id, a.attempt) FROM studio_run_attempts a), \
        'sessions', (SELECT jsonb_agg(to_jsonb(s) - 'last_heartbeat_at' - 'runs_served' ORDER BY s.incarnation) FROM studio_pod_sessions s), \
        'events', (SELECT jsonb_agg(to_jsonb(e) ORDER BY e.idx) FROM studio_pod_events e))";
    client.scalar(sql, &[]).await
}

/// `podlock hold`, around a command that ends with it.
struct Hold(Child);

impl Hold {
    fn start(url: &str, name: &str) -> Self {
        let child = clean(&mut Command::new(env!("CARGO_BIN_EXE_podlock")))
            .args(["--schema", "app", "hold", "--name", name, "--lease", &format!("{}ms", lease().as_millis())])
            .args(["--", "sleep", "3600"])
            .env("DATABASE_URL", url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the podlock command");
        Self(child)
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("its status").is_none()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_asked_to_drain(pod: &Pod) -> bool {
    futures_util::FutureExt::now_or_never(pod.drain_requested()).is_some()
}

/// Waits until the stranger has heard this word.
async fn hears(heard: &mut UnboundedReceiver<String>, all: &mut Vec<String>, word: Word) {
    while !all.iter().any(|payload| payload == word.as_str()) {
        let next = tokio::time::timeout(SOON, heard.recv()).await;
        all.push(next.unwrap_or_else(|_| panic!("{word:?} is not told; heard {all:?}")).expect("it listens"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_who_may_only_connect_hears_that_something_happened_and_no_name() {
    timed(async {
        let (stranger, stage) = (Stranger::new().await, Stage::new());
        let client = &stranger.db.client;
        let (ears, mut heard) = stranger.listens().await;
        let operator = stranger.operator().await;
        let mut all = Vec::new();

        // Pods join, and one dies next to pods that may not bury yet: they tell the others.
        let [first, second, third] = ["pod-first", "pod-second", "pod-third"].map(|name| stranger.config(name));
        let first = stage.pod(first).await;
        let second = stage.pod(second).await;
        let third = stage.pod(third).await;
        // Nobody tells it the pods' own channels. It hears them here as well.
        for row in client.query("SELECT channel FROM studio_pods", &[]).await.unwrap() {
            ears.batch_execute(&format!("LISTEN {}", row.get::<_, String>(0))).await.unwrap();
        }
        first.start(act().key("key-of-first")).await.unwrap();
        let begun = stage.act().await;
        eventually(SOON, "somebody watches the third", || async {
            let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND NOT granted \
                       AND ((classid::bigint << 32) | objid::bigint) = studio_lock_key('pod-third')";
            if client.scalar::<i64>(sql, &[]).await > 0 { Ok(()) } else { Err("nobody".to_owned()) }
        })
        .await;
        drop(third);
        hears(&mut heard, &mut all, Word::Free).await;
        hears(&mut heard, &mut all, Word::Look).await;
        client.roster_is(&["pod-first", "pod-second"], SOON).await;
        hears(&mut heard, &mut all, Word::Roster).await;

        // Runs are submitted, started in a transaction, streamed, read on another pod, cancelled, restarted, released.
        first.submit(NewRun::new("echo")).await.unwrap();
        let mut reader = second.attach(begun.run.id()).await.unwrap();
        for n in 0..3 {
            begun.run.append(format!("chunk {n}")).await.unwrap();
            begun.run.flush().await.unwrap();
            reader.next().await.unwrap().expect("a chunk");
        }
        let mut other = sql::connect(&stranger.db.url).await;
        other.batch_execute("SET search_path = app").await.unwrap();
        // The run that was submitted may have been told to the other pod a moment ago.
        tokio::time::sleep(GAP).await;
        let txn = other.transaction().await.unwrap();
        first.start_in_txn(&txn, act()).await.unwrap();
        txn.commit().await.unwrap();
        let in_txn = stage.act().await;
        hears(&mut heard, &mut all, Word::Runs).await;
        operator.cancel(begun.run.id()).await.unwrap();
        begun.run.stopped().await;
        operator.restart(begun.run.id()).await.unwrap();
        hears(&mut heard, &mut all, Word::Recover).await;
        stage.act().await.done(json!(null));
        let id = in_txn.run.id();
        in_txn.give_back();
        stage.act_of(id).await.done(json!(null));
        let poison = first.start(act()).await.unwrap().run_id;
        stage.act_of(poison).await.done(json!(null));
        client.run_in_state(poison, "succeeded", SOON).await;
        let quarantine = "UPDATE studio_runs SET state = 'quarantined', result = NULL WHERE run_id = $1";
        client.execute(quarantine, &[&poison.as_uuid()]).await.unwrap();
        operator.release(poison).await.unwrap();
        stage.act_of(poison).await.done(json!(null));

        // One is asked to drain, one is evicted; a run of it is claimed.
        first.start(act()).await.unwrap();
        let left = stage.act().await;
        operator.drain("pod-second").await.unwrap();
        hears(&mut heard, &mut all, Word::Asked).await;
        second.drain_requested().await;
        operator.evict("pod-first").await.unwrap();
        left.run.stopped().await;
        stage.act_of(left.run.id()).await.done(json!(null));
        client.run_in_state(left.run.id(), "succeeded", SOON).await;
        hears(&mut heard, &mut all, Word::Log).await;

        while let Ok(payload) = heard.try_recv() {
            all.push(payload);
        }
        // SECURITY.md: not from us, but from the server it learns the pods' names.
        let names = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'podlock/pod-second/%'";
        assert!(sql::connect(&stranger.url).await.scalar::<i64>(names, &[]).await > 0);
        let secrets = stranger.secrets().await;
        assert!(secrets.len() > 10 && secrets.contains("pod-first"), "{secrets:?}");
        for payload in &all {
            let leaked: Vec<_> = secrets.iter().filter(|secret| payload.contains(*secret)).collect();
            assert!(leaked.is_empty(), "{payload} tells {leaked:?}");
            assert!(Word::parse(payload).is_some() || StreamNotice::parse(payload).is_some(), "{payload}");
        }
        assert!(all.iter().any(|payload| StreamNotice::parse(payload).is_some()), "streams were told of: {all:?}");
    })
    .await;
}

/// What a stranger could send who knows all ids: every word, the payloads of former versions, and garbage.
fn payloads(pods: &[(String, Uuid, i64)], runs: &[RunId]) -> Vec<String> {
    let mut all: Vec<String> = Word::ALL.iter().map(|word| word.as_str().to_owned()).collect();
    for (pod, incarnation, key) in pods {
        for ask in ["drain", "adopt", "look", "recover", "evict"] {
            all.push(json!({ "ask": ask, "incarnation": incarnation, "pod": pod, "key": key }).to_string());
            all.push(format!("{ask} {incarnation}"));
        }
        for event in ["joined", "draining", "buried", "suspected", "evicted", "quarantined", "returned", "nonsense"] {
            let by = json!({ "event": event, "pod": pod, "incarnation": incarnation, "by": pod, "reason": "lost" });
            all.push(by.to_string());
        }
        all.push(json!({ "by": incarnation, "runs": runs }).to_string());
        for run in runs {
            for ask in ["stop", "cancel"] {
                all.push(json!({ "ask": ask, "run": run, "incarnation": incarnation }).to_string());
            }
            all.push(json!({ "event": "quarantined", "run": run, "pod": pod, "incarnation": incarnation }).to_string());
        }
    }
    all.push(StreamNotice::new(7, runs.iter()).to_string());
    all.extend(
        ["00000007:*", "", " ", "null", "{", "{}", "[]", "\"look\"", "look ", "LOOK", "\u{202e}", "ä:ö"]
            .map(str::to_owned),
    );
    all.extend(["x", "[", "{\"a\":", "0"].map(|part| part.repeat(7999 / part.len())));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_whatever_a_stranger_sends_two_leases_later_nothing_has_changed() {
    timed(async {
        let (stranger, stage) = (Stranger::new().await, Stage::new());
        let client = &stranger.db.client;
        let (a, b) = (stage.pod(stranger.config("hears-a")).await, stage.pod(stranger.config("hears-b")).await);
        let mut hold = Hold::start(&stranger.db.url, "hears-hold");
        client.roster_is(&["hears-a", "hears-b", "hears-hold"], SOON).await;
        let runs = [a.start(act()).await.unwrap().run_id, b.start(act().key("k")).await.unwrap().run_id];
        let acts = stage.acts(2).await;
        for name in ["hears-a", "hears-b", "hears-hold"] {
            client.armed(name, SOON).await;
        }
        let sql = "SELECT pod_id, incarnation, lock_key FROM studio_pods";
        let pods = client.query(sql, &[]).await.unwrap();
        let pods: Vec<_> = pods.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let before = everything(client).await;
        // One is due at a time of its own, when the pod has been up for a while.
        let counts = |e: &&trace::Event| e.get("event").is_none_or(|event| event != "max_crashes_high");
        let said = |pod: &str| trace::events(pod).iter().filter(counts).count();
        let said_before = [said("hears-a"), said("hears-b")];
        let mut happened = a.events();

        let sender = sql::connect(&stranger.url).await;
        let all = payloads(&pods, &runs);
        let began = Instant::now();
        while began.elapsed() < lease() * 2 {
            for payload in &all {
                for channel in CHANNELS {
                    sender.execute("SELECT pg_notify($1, $2)", &[&channel, payload]).await.unwrap();
                }
            }
        }
        assert_eq!(everything(client).await, before);
        assert!(hold.lives() && !is_asked_to_drain(&a) && !is_asked_to_drain(&b));
        assert_eq!(acts.iter().filter_map(|act| act.run.stop_reason()).collect::<Vec<_>>(), []);
        stage.nothing_more_has_begun().await;
        assert_eq!([said("hears-a"), said("hears-b")], said_before, "nothing was logged");
        assert!(happened.try_recv().is_err(), "the application was told of nothing");
        // They were heard: each kind made the pods look.
        for pod in ["hears-a", "hears-b"] {
            let hinted = trace::hinted(pod);
            assert_eq!(hinted.keys().collect::<Vec<_>>(), ["asked", "log", "look", "recover", "runs"], "{hinted:?}");
        }
        // And they are as well as ever.
        for act in acts {
            act.done(json!(null));
        }
        for run in runs {
            assert_eq!(client.run_in_state(run, "succeeded", SOON).await.attempt, 1);
        }
    })
    .await;
}

/// Sends notices from several connections until it is dropped: in each transaction each word, and garbage that the
/// server cannot merge.
struct Flood {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    began: Instant,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

const A_TRANSACTION: u64 = 50;

impl Flood {
    async fn begin(stranger: &Stranger) -> Self {
        let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let words: Vec<_> = Word::ALL.iter().map(|word| word.as_str()).collect();
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let (client, words, over, sent) =
                (sql::connect(&stranger.url).await, words.clone(), Arc::clone(&over), Arc::clone(&sent));
            tasks.push(tokio::spawn(async move {
                let sql = "SELECT pg_notify('podlock_app', COALESCE(($1::text[])[n], n || repeat('x', 40))), \
                             pg_notify('podstream_app', '00000007:*') FROM generate_series(1, $2::bigint::int) n";
                let statement = client.prepare(sql).await.unwrap();
                let most = i64::try_from(A_TRANSACTION).unwrap();
                while !over.load(Ordering::Relaxed) {
                    client.execute(&statement, &[&words, &most]).await.unwrap();
                    sent.fetch_add(A_TRANSACTION, Ordering::Relaxed);
                    // More than 10,000 a second from all, where the machine can.
                    tokio::time::sleep(Duration::from_millis(15)).await;
                }
            }));
        }
        Self { over, sent, began: Instant::now(), tasks }
    }

    /// Ends it; returns how many notices there were, and for how long.
    async fn end(self) -> (u64, Duration) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("it could send");
        }
        (self.sent.load(Ordering::Relaxed), self.began.elapsed())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_in_a_flood_of_notices_pods_beat_bury_and_start_runs_and_look_a_bounded_number_of_times() {
    timed(async {
        let (stranger, stage) = (Stranger::new().await, Stage::new());
        let client = &stranger.db.client;
        let beats = |name: &str| stranger.config(name).with(|c| c.beat_interval = Some(Duration::from_millis(500)));
        let names = ["flooded-a", "flooded-b", "flooded-c"];
        let [a, b, c] = names.map(beats);
        let (a, b, c) = (stage.pod(a).await, stage.pod(b).await, stage.pod(c).await);
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        c.start(act()).await.unwrap();
        let orphan = stage.act().await.run.id();
        let beaten = || async {
            let sql = "SELECT min(event_index) FROM studio_pods WHERE pod_id IN ('flooded-a', 'flooded-b')";
            client.scalar::<i64>(sql, &[]).await
        };
        // A reader waits for a stream, so that its pod hears notices of streams.
        let silent = a.start(act()).await.unwrap().run_id;
        stage.act_of(silent).await.run.append("nothing more").await.unwrap();
        let mut waits = a.attach(silent).await.unwrap();
        waits.next().await.unwrap().expect("a chunk");
        let waiting = tokio::spawn(async move { waits.next().await });
        let hinted_before = names.map(trace::hinted);
        let flood = Flood::begin(&stranger).await;

        // Beats.
        for _ in 0..3 {
            let before = beaten().await;
            eventually(SOON, "both beat", || async {
                if beaten().await > before { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
        }
        // A burial and the claim of the dead pod's run. Then starts, and a cancel.
        drop(c);
        client.roster_is(&["flooded-a", "flooded-b"], SOON).await;
        let again = stage.act_of(orphan).await;
        assert_eq!(again.run.attempt(), 2);
        again.done(json!(null));
        for _ in 0..10 {
            let run = a.start(NewRun::new("echo")).await.unwrap().run_id;
            client.run_in_state(run, "succeeded", SOON).await;
            let run = b.submit(NewRun::new("echo")).await.unwrap();
            client.run_in_state(run, "succeeded", SOON).await;
        }
        let run = a.start(act()).await.unwrap().run_id;
        let act = stage.act_of(run).await;
        // A stream, to a reader elsewhere.
        let mut reader = b.attach(run).await.unwrap();
        for n in 0..5 {
            act.run.append(n.to_string()).await.unwrap();
            act.run.flush().await.unwrap();
            tokio::time::timeout(SOON, reader.next()).await.expect("soon").unwrap().expect("a chunk");
        }
        stranger.operator().await.cancel(run).await.unwrap();
        assert_eq!(tokio::time::timeout(SOON, act.run.stopped()).await.expect("told to stop"), StopReason::Cancelled);
        stranger.operator().await.drain("flooded-b").await.unwrap();
        tokio::time::timeout(SOON, b.drain_requested()).await.expect("asked to drain");
        eventually(SOON, "enough notices", || async {
            let sent = flood.sent.load(Ordering::Relaxed);
            if sent >= 30_000 { Ok(()) } else { Err(sent.to_string()) }
        })
        .await;

        let (sent, took) = flood.end().await;
        // What came to something is followed sooner: the events of the log.
        let events: i64 = client.scalar("SELECT count(*) FROM studio_pod_events", &[]).await;
        let started = usize::try_from(events).unwrap() + 40;
        let most = usize::try_from(took.as_millis() / GAP_MOST.as_millis()).unwrap() + 4 * started;
        for (name, before) in names.into_iter().zip(hinted_before).take(2) {
            let now = trace::hinted(name);
            for kind in ["asked", "log", "look", "recover", "runs", "streams"] {
                let count = now.get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
                let most = match kind {
                    "log" | "recover" => most,
                    // At most once in 10 ms.
                    "streams" => usize::try_from(took.as_millis() / 10).unwrap() + 2,
                    _ => most - 4 * started + 8,
                };
                assert!(count > 0 || name != "flooded-a", "{name} did not look at {kind}: {now:?}");
                assert!(
                    count <= most,
                    "{name} looked {count} times at {kind}, at most {most}; {sent} notices in {took:?}"
                );
            }
        }
        assert_eq!(client.roster().await, ["flooded-a", "flooded-b"]);
        assert!(!waiting.is_finished(), "its stream has nothing new");
        waiting.abort();
        println!("{sent} notices in {took:?}: {:?}", trace::hinted("flooded-a"));
    })
    .await;
}

/// Sweeps that are far away, so that nothing but a notice can be what a pod acts on.
fn rarely_sweeping(config: Config) -> Config {
    let lease = Duration::from_secs(150);
    config.lease(lease).with(|c| (c.sweep_interval, c.beat_interval) = (Some(lease / 2), Some(lease)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notice_brings_a_cancel_a_start_in_a_transaction_and_a_drain_to_their_pod_at_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(rarely_sweeping(db.config("a"))).await;
        let _b = stage.pod(rarely_sweeping(db.config("b"))).await;
        let operator = Operator::connect(&db.config("-")).await.unwrap();
        let at_once = |what: &str, began: Instant| {
            assert!(began.elapsed() < slack(Duration::from_secs(1)), "{what} took {:?}", began.elapsed());
        };
        let mut client = sql::connect(&db.url).await;
        for _ in 0..5 {
            let txn = client.transaction().await.unwrap();
            let run = a.start_in_txn(&txn, act()).await.unwrap();
            txn.commit().await.unwrap();
            let began = Instant::now();
            let act = tokio::time::timeout(SOON, stage.act_of(run)).await.expect("it begins");
            at_once("a start in a transaction", began);
            let began = Instant::now();
            operator.cancel(run).await.unwrap();
            let reason = tokio::time::timeout(SOON, act.run.stopped()).await.expect("told to stop");
            at_once("a cancel", began);
            assert_eq!(reason, StopReason::Cancelled);
            act.fail("told to stop");
        }
        let mut notices = operator.notices().await.unwrap();
        let began = Instant::now();
        operator.drain("a").await.unwrap();
        tokio::time::timeout(SOON, a.drain_requested()).await.expect("asked to drain");
        at_once("a drain", began);
        tokio::time::timeout(SOON, notices.next()).await.expect("operators hear of it").unwrap();
    })
    .await;
}

/// The same changes as a drain request and a cancel make, with every notice lost (L6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l6_a_pod_that_missed_all_notices_learns_of_a_drain_and_of_cancelled_runs_at_its_next_sweep() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let b = stage.pod(db.config("b")).await;
        let cancel = "UPDATE studio_runs SET state = 'cancelled', finished_at = now() WHERE run_id = $1";
        let mut acts = Vec::new();
        for pod in [&a, &a, &b] {
            let run = pod.start(act()).await.unwrap().run_id;
            acts.push(stage.act_of(run).await);
        }
        let [active, draining, _] = acts.try_into().ok().unwrap();
        let mut happened = b.events();

        db.client.execute(cancel, &[&active.run.id().as_uuid()]).await.unwrap();
        let reason = tokio::time::timeout(SOON, active.run.stopped()).await.expect("told to stop");
        assert_eq!(reason, StopReason::Cancelled);
        active.fail("told to stop");

        let ask = "UPDATE studio_pods SET drain_requested = 'somebody' WHERE pod_id = 'a'";
        db.client.execute(ask, &[]).await.unwrap();
        tokio::time::timeout(SOON, a.drain_requested()).await.expect("asked to drain");

        // A draining pod claims nothing, so it makes no recovery pass. Its runs can be cancelled all the same.
        let stopping = tokio::spawn(a.shutdown(SOON * 2));
        assert_eq!(draining.run.stopped().await, StopReason::Draining);
        db.client.execute(cancel, &[&draining.run.id().as_uuid()]).await.unwrap();
        eventually(SOON, "the run of the draining pod is told that it was cancelled", || async {
            match draining.run.stop_reason() {
                Some(StopReason::Cancelled) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        draining.fail("told to stop");
        stopping.await.unwrap().unwrap();

        // The application is told of events that were not announced.
        let ghost = Incarnation::generate();
        let event = "INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod, detail) \
                     VALUES ('suspected', 'ghost', $1, 'c', '{}')";
        db.client.execute(event, &[&ghost.as_uuid()]).await.unwrap();
        let told = tokio::time::timeout(SOON, async {
            loop {
                match happened.recv().await.expect("events") {
                    PodEvent::Suspected { incarnation, .. } => return incarnation,
                    _ => continue,
                }
            }
        });
        assert_eq!(told.await.expect("told of it"), ghost);
    })
    .await;
}

/// What happens while a pod has no control session, no notice tells it. It reads the log when it has one again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_without_a_control_session_is_told_once_there_is_one() {
    timed(async {
        let db = Db::new().await;
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = start(config).await;
        let mut happened = a.events();
        proxy.future(&["control"], Flow::Hole);
        assert_eq!(db.client.terminate("a", "control").await, 1);
        // Suspected and nothing else: no look at the roster would tell of it.
        let event = "INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod, detail) \
                     SELECT 'suspected', 'ghost', $1, 'c', '{}' RETURNING idx";
        eventually(SOON, "a's control session has ended", || async {
            let left = db.client.backend("a", "control").await;
            if left.is_none() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        let ghost = Incarnation::generate();
        db.client.query_one(event, &[&ghost.as_uuid()]).await.unwrap();
        proxy.future(&["control"], Flow::Pass);
        let told = tokio::time::timeout(SOON, async {
            loop {
                if let PodEvent::Suspected { incarnation, .. } = happened.recv().await.expect("events") {
                    return incarnation;
                }
            }
        });
        assert_eq!(told.await.expect("told of it"), ghost);
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Who follows the log reads each event, and a flood makes it read a bounded number of times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l11_who_follows_the_log_is_not_driven_by_strangers() {
    timed(async {
        let stranger = Stranger::new().await;
        let operator = stranger.operator().await;
        let mut follow = operator.follow(EventFilter::new()).await.unwrap();
        let flood = Flood::begin(&stranger).await;
        let pod = stranger.config("followed");
        let joined = tokio::spawn(async move { Pod::builder(pod).start().await });
        let events = tokio::time::timeout(SOON, follow.next()).await.expect("soon").unwrap();
        assert_eq!((events[0].kind.as_str(), events[0].pod_id.as_str()), ("joined", "followed"));
        let pod = joined.await.unwrap().unwrap();

        let reads = || async {
            let sql = "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'studio_pod_events'";
            stranger.db.client.scalar::<i64>(sql, &[]).await
        };
        drop(pod);
        eventually(SOON, "nobody but the follower is left to read the log", || async {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name LIKE 'podlock/followed/%'";
            match stranger.db.client.scalar::<i64>(sql, &[]).await {
                0 => Ok(()),
                left => Err(left.to_string()),
            }
        })
        .await;
        let began = Instant::now();
        let before = reads().await;
        let quiet = tokio::time::timeout(Duration::from_secs(4), follow.next()).await;
        assert!(quiet.is_err(), "nothing more happened: {quiet:?}");
        // The server counts a little later, so some of those that are counted now are of the time before.
        let (reads, most) = (reads().await - before, i64::try_from(began.elapsed().as_millis() / 20).unwrap() + 60);
        let (sent, _) = flood.end().await;
        assert!((1..=most).contains(&reads), "the log was read {reads} times, at most {most}; {sent} notices");
    })
    .await;
}
