//! Handlers that the test directs, pauses inside of claims, and the tables as the tests read them.

use std::time::{Duration, Instant};

use podlock::{Config, HandlerError, Incarnation, NewRun, Outcome, Pod, Run, RunId};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc, oneshot};
use uuid::Uuid;

pub(crate) use crate::patience::{SOON, slack};
use crate::support::sql::{self, Client};
use crate::support::{Db, eventually, server, start_of, with_kinds};

/// An attempt that has begun. The test acts as its handler, and says how it ends; dropped, it hangs until it is
/// aborted.
pub(crate) struct Act {
    pub(crate) run: Run,
    pub(crate) at: Instant,
    end: oneshot::Sender<Result<Outcome, HandlerError>>,
}

impl Act {
    pub(crate) fn done(self, result: impl Into<Value>) {
        self.end(Ok(Outcome::Done(result.into())));
    }

    pub(crate) fn fail(self, error: impl Into<HandlerError>) {
        self.end(Err(error.into()));
    }

    pub(crate) fn give_back(self) {
        self.end(Ok(Outcome::Yield));
    }

    pub(super) fn end(self, how: Result<Outcome, HandlerError>) {
        // An aborted handler does not listen any more.
        let _ = self.end.send(how);
    }

    pub(crate) fn pod(&self) -> &str {
        self.run.pod_id().as_str()
    }
}

/// Where the attempts of kind `act` of all of a test's pods come together.
pub(crate) struct Stage {
    acts: Mutex<mpsc::UnboundedReceiver<Act>>,
    begun: mpsc::UnboundedSender<Act>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let (begun, acts) = mpsc::unbounded_channel();
        Self { acts: Mutex::new(acts), begun }
    }

    /// A pod with the kind `act` beside the usual ones.
    pub(crate) async fn pod(&self, config: Config) -> Pod {
        start_of(|| {
            let begun = self.begun.clone();
            with_kinds(Pod::builder(config.clone())).handler("act", move |run: Run| {
                let (end, ended) = oneshot::channel();
                // A test that has ended listens no more.
                let _ = begun.send(Act { run, at: Instant::now(), end });
                async move {
                    match ended.await {
                        Ok(how) => how,
                        Err(_) => std::future::pending().await,
                    }
                }
            })
        })
        .await
    }

    /// The next attempt that begins.
    pub(crate) async fn act(&self) -> Act {
        let mut acts = self.acts.lock().await;
        tokio::time::timeout(SOON, acts.recv()).await.expect("an attempt begins soon").expect("the stage lives")
    }

    /// The next attempt of this run. Attempts of other runs, such as one that a test took from its owner and that a pod
    /// claimed again, end here.
    pub(crate) async fn act_of(&self, run_id: RunId) -> Act {
        loop {
            let act = self.act().await;
            if act.run.id() == run_id {
                return act;
            }
        }
    }

    /// The next `count` attempts that begin.
    pub(crate) async fn acts(&self, count: usize) -> Vec<Act> {
        let mut acts = Vec::with_capacity(count);
        while acts.len() < count {
            acts.push(self.act().await);
        }
        acts
    }

    /// Fails if an attempt has begun that the test did not take up.
    pub(crate) async fn nothing_more_has_begun(&self) {
        if let Ok(act) = self.acts.lock().await.try_recv() {
            panic!("an attempt began that should not have: {:?} on {}", act.run, act.pod());
        }
    }
}

pub(crate) fn act() -> NewRun {
    NewRun::new("act")
}

/// One row of `studio_run_attempts`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) attempt: i32,
    pub(crate) pod: String,
    pub(crate) fence: i64,
    pub(crate) reason: Option<String>,
}

pub(crate) async fn attempts(client: &Client, run_id: RunId) -> Vec<Attempt> {
    let sql = "SELECT attempt, pod_id, fence, reason FROM studio_run_attempts WHERE run_id = $1 ORDER BY attempt";
    let rows = client.query(sql, &[&run_id.as_uuid()]).await.expect("attempts");
    let read =
        |r: &tokio_postgres::Row| Attempt { attempt: r.get(0), pod: r.get(1), fence: r.get(2), reason: r.get(3) };
    rows.iter().map(read).collect()
}

/// Number, pod and reason of each attempt; also the law that they are contiguous and their fences rise (L9).
pub(crate) async fn story(client: &Client, run_id: RunId) -> Vec<(String, Option<String>)> {
    let attempts = attempts(client, run_id).await;
    for (i, attempt) in attempts.iter().enumerate() {
        assert_eq!(usize::try_from(attempt.attempt).unwrap(), i + 1, "attempts are contiguous: {attempts:?}");
        assert!(attempt.fence > i.checked_sub(1).map_or(0, |b| attempts[b].fence), "L9, fences rise: {attempts:?}");
    }
    attempts.into_iter().map(|a| (a.pod, a.reason)).collect()
}

/// A story as it is written down in a test.
pub(crate) fn told(parts: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
    parts.iter().map(|(pod, reason)| ((*pod).to_owned(), reason.map(str::to_owned))).collect()
}

/// The whole row of a run, to show that nothing changed.
pub(crate) async fn whole_run(client: &Client, run_id: RunId) -> Value {
    let sql = "SELECT jsonb_build_object('run', to_jsonb(r), 'attempts', \
                 (SELECT jsonb_agg(to_jsonb(a) ORDER BY a.attempt) FROM studio_run_attempts a \
                 WHERE a.run_id = r.run_id)) FROM studio_runs r WHERE run_id = $1";
    client.scalar(sql, &[&run_id.as_uuid()]).await
}

/// Makes an orphan by hand, and tells nobody: its owner is in no roster.
pub(crate) async fn orphan(client: &Client, kind: &str) -> (RunId, Incarnation) {
    let (run_id, ghost) = (RunId::generate(), Incarnation::generate());
    let sql = "WITH run AS (INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt) \
                 VALUES ($1, $2, 'ghost', $3, nextval('studio_fence'), 1) RETURNING *) \
               INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
               SELECT run_id, attempt, owner_pod, owner_incarnation, fence FROM run";
    client.execute(sql, &[&run_id.as_uuid(), &kind, &ghost.as_uuid()]).await.expect("an orphan");
    (run_id, ghost)
}

/// Holds a key in a transaction that is never committed: who starts a run of it waits, after its snapshot.
pub(crate) async fn take_key(gate: &tokio_postgres::Transaction<'_>, key: &str) {
    let sql = "INSERT INTO studio_runs (run_id, kind, key) VALUES ($1, 'act', $2)";
    gate.execute(sql, &[&RunId::generate().as_uuid(), &key]).await.expect("the key");
}

/// Makes every pod look for orphans now.
pub(crate) async fn nudge(client: &Client) {
    client.batch_execute("SELECT pg_notify(studio_channel(), 'recover')").await.expect("a nudge");
}

/// The beginnings of the pods' statements, by which a test sees which of them waits.
pub(crate) const CLAIM: &str = "WITH wanted AS%";
pub(crate) const START: &str = "WITH me AS%";
pub(crate) const FINISH: &str = "WITH done AS%";

/// Waits until `count` statements of the pods' pools wait for a lock.
pub(crate) async fn blocked(client: &Client, statement: &str, count: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'podlock/%/pool' AND wait_event_type = 'Lock' AND query LIKE $1";
    eventually(SOON, &format!("{count} statements like {statement:?} wait for a lock"), || async {
        let seen: i64 = client.scalar(sql, &[&statement]).await;
        if seen == count { Ok(()) } else { Err(format!("{seen} wait")) }
    })
    .await;
}

/// The port from which the one waiting statement of the pods' pools came.
pub(crate) async fn port_of_blocked(client: &Client, statement: &str) -> u16 {
    blocked(client, statement, 1).await;
    let sql = "SELECT client_port FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name LIKE 'podlock/%/pool' AND wait_event_type = 'Lock' AND query LIKE $1";
    client.scalar::<i32>(sql, &[&statement]).await.try_into().expect("a TCP port")
}

pub(crate) async fn no_orphans(client: &Client) {
    eventually(SOON, "no orphan is left", || async {
        let count: i64 = client.scalar("SELECT count(*) FROM studio_orphans", &[]).await;
        if count == 0 { Ok(()) } else { Err(format!("{count} orphans")) }
    })
    .await;
}

pub(crate) async fn detail_of_event(client: &Client, kind: &str, incarnation: Incarnation) -> Option<Value> {
    let sql = "SELECT detail FROM studio_pod_events WHERE kind = $1 AND incarnation = $2 ORDER BY idx DESC LIMIT 1";
    let id: Uuid = incarnation.as_uuid();
    client.query_opt(sql, &[&kind, &id]).await.expect("events").map(|row| row.get(0))
}

/// Holds the statements of chosen pods that change runs in the moment between their snapshot and their first row: the
/// interleavings in which a claim could double happen there. A chosen pod connects by [`Pause::config`]. Where there
/// is nothing to claim or take up, nobody is held: a claim of nothing is only a warm-up.
pub(crate) struct Pause(Client);

impl Pause {
    pub(crate) async fn install(db: &Db) -> Self {
        podlock::migrate::up(&db.config("migrator")).await.expect("the schema");
        let sql = "CREATE FUNCTION test_pause() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                     IF current_setting('test.pause', true) <> '' \
                        AND (EXISTS (SELECT FROM public.studio_orphans) \
                             OR EXISTS (SELECT FROM public.studio_runs WHERE state = 'running' AND attempt = 0)) THEN \
                       PERFORM pg_catalog.pg_advisory_xact_lock_shared(current_setting('test.pause')::bigint); \
                     END IF; RETURN NULL; END $$; \
                   CREATE TRIGGER test_pause BEFORE UPDATE ON studio_runs \
                     FOR EACH STATEMENT EXECUTE FUNCTION test_pause()";
        db.client.batch_execute(sql).await.expect("a trigger");
        let pause = Self(sql::connect(&db.url).await);
        pause.0.batch_execute("SELECT pg_advisory_lock(n) FROM unnest(ARRAY[1, 2]) n").await.expect("pauses are held");
        pause
    }

    /// A pod that pauses until the pause of that number, 1 or 2, is released; as long as the test wants.
    pub(crate) fn config(db: &Db, pod: &str, number: u8) -> Config {
        let url = format!("{}?options=-c%20test.pause%3D{number}", db.pod_url);
        let config = db.config(pod);
        Config::new(url).with(|c| {
            c.pod_name = config.pod_name;
            c.lease = config.lease;
            // As it is by default, on a machine that is as fast as others.
            c.connect_timeout = Some(slack(Duration::from_secs(2)));
            c.statement_timeout = Some(Duration::from_secs(30));
        })
    }

    pub(crate) async fn release(&self, number: u8) {
        let number = i64::from(number);
        assert!(self.0.scalar::<bool>("SELECT pg_advisory_unlock($1)", &[&number]).await, "the pause was held");
    }
}

/// A proxy before the tests' server, and the settings of a pod that connects through it.
pub(crate) async fn behind_proxy(db: &Db, pod: &str) -> (crate::support::proxy::Proxy, Config) {
    let port = server().port();
    let proxy = crate::support::proxy::Proxy::before(port).await;
    let config = db.config(pod);
    let through = Config::new(proxy.url(&db.pod_url, port)).with(|c| {
        c.pod_name = config.pod_name;
        c.lease = config.lease;
        // As it is by default, on a machine that is as fast as others.
        c.connect_timeout = Some(slack(Duration::from_secs(2)));
    });
    (proxy, through)
}
