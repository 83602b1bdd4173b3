//! The database restarts with runs in flight. Every lock is free then and every session new; nobody died.

use std::time::{Duration, Instant};

use podlock::throwaway::{Server, ThrowawayError};
use podlock::{Incarnation, NewRun, Pod, RunId};

use crate::patience::{SOON, TEST, slack};
use crate::support::faults::{Audit, OwnServer, audited, reconnected};
use crate::support::sql::RunState;
use crate::support::{Db, eventually, timed, within};

/// A restart takes below a second, and a lease of 8 s tolerates five times that. On a loaded machine both take longer.
fn lease() -> Duration {
    slack(Duration::from_secs(8)).min(Duration::from_secs(60))
}
const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three settled pods with two runs each that checkpoint all the time.
struct Fleet {
    server: OwnServer,
    db: Db,
    audit: std::sync::Arc<Audit>,
    pods: Vec<Pod>,
    incarnations: Vec<Incarnation>,
    runs: Vec<(RunId, RunState)>,
}

impl Fleet {
    async fn settled() -> Self {
        let server = OwnServer::start(&[]).await;
        let db = Db::on(&server).await;
        let audit = Audit::new();
        let (lease, mut pods) = (lease(), Vec::new());
        for name in NAMES {
            pods.push(audited(db.config(name).lease(lease), &audit).start().await.expect("the pod starts"));
        }
        let mut runs = Vec::new();
        for pod in pods.iter().chain(&pods) {
            let run = pod.start(NewRun::new("work")).await.unwrap().run_id;
            runs.push((run, db.client.run(run).await));
        }
        tokio::time::sleep(lease + Duration::from_millis(200)).await;
        let incarnations = pods.iter().map(Pod::incarnation).collect();
        Self { server, db, audit, pods, incarnations, runs }
    }

    /// How many steps the runs have made, in all.
    async fn steps(&self) -> i64 {
        self.db.client.scalar("SELECT sum((checkpoint ->> 'done')::bigint)::bigint FROM studio_runs", &[]).await
    }

    /// What must hold after an outage that began then: nobody was buried, and no run was disturbed. False: this
    /// machine took longer over the restart than is tolerated, so that it shows nothing.
    async fn must_be_undisturbed(mut self, began: Instant) -> bool {
        let (client, _) = reconnected(&self.db.url).await;
        self.db.client = client;
        for (name, pod) in NAMES.iter().zip(&self.pods) {
            eventually(SOON, &format!("pod {name} is back"), || async {
                if pod.status().attached { Ok(()) } else { Err(format!("{:?}", pod.status())) }
            })
            .await;
        }
        let (out, tolerated) = (began.elapsed(), self.pods[0].settings().worst_case().outage_tolerated);
        println!("all pods were back after {out:?}; {tolerated:?} is tolerated");
        if out >= tolerated {
            return false;
        }
        // A wrong burial would come by now, or as soon as the pods are settled again.
        let settings = self.pods[0].settings();
        tokio::time::sleep(settings.settle + settings.sweep_interval + Duration::from_millis(300)).await;
        let before = self.steps().await;
        eventually(SOON, "the runs go on", || async {
            let now = self.steps().await;
            if now > before { Ok(()) } else { Err(format!("{now} steps, {before} before")) }
        })
        .await;
        assert_eq!(self.audit.seen(), Vec::<String>::new(), "no token fired, no write was refused");
        for (run_id, then) in &self.runs {
            assert_eq!(&self.db.client.run(*run_id).await, then, "the run is its owner's as before");
        }
        self.audit.let_finish();
        for (run_id, then) in &self.runs {
            let end = self.db.client.run_in_state(*run_id, "succeeded", SOON).await;
            assert_eq!((end.attempt, end.crashes, end.fence, end.owner), (1, 0, then.fence, then.owner));
        }
        let now: Vec<Incarnation> = self.pods.iter().map(Pod::incarnation).collect();
        assert_eq!(now, self.incarnations);
        assert_eq!(self.db.client.roster().await, NAMES);
        let ends: i64 = self
            .db
            .client
            .scalar(
                "SELECT count(*) FROM studio_pod_events WHERE kind NOT IN ('joined', 'detached', 'returned', 'held')",
                &[],
            )
            .await;
        assert_eq!(ends, 0, "nobody was buried, nothing was claimed");
        let back: i64 = self
            .db
            .client
            .scalar("SELECT count(DISTINCT incarnation) FROM studio_pod_events WHERE kind = 'returned'", &[])
            .await;
        assert_eq!(back, 3);
        self.db.client.assert_fold_is_roster().await;
        for name in NAMES {
            self.db.client.armed(name, SOON).await;
        }
        true
    }
}

/// Shows a sentence about a restart on a machine that may be too busy for it at the first try.
async fn shown(tried: impl AsyncFn() -> bool) {
    within(TEST, async {
        for _ in 0..3 {
            if tried().await {
                return;
            }
        }
        panic!("this machine is too busy to restart a server in time: nothing was shown");
    })
    .await;
}

async fn after(fault: fn(&Server) -> Result<(), ThrowawayError>) {
    shown(async || {
        let fleet = Fleet::settled().await;
        let began = Instant::now();
        fleet.server.suffers(fault).await;
        fleet.must_be_undisturbed(began).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_restart_buries_nobody_and_disturbs_no_run() {
    after(Server::restart_fast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_immediate_restart_buries_nobody_and_disturbs_no_run() {
    after(Server::restart_immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_one_unrelated_backend_buries_nobody_and_disturbs_no_run() {
    shown(async || {
        let fleet = Fleet::settled().await;
        let unrelated: i32 = fleet.db.client.scalar("SELECT pg_backend_pid()", &[]).await;
        let liveness = fleet.db.client.backend("a", "liveness").await;
        let began = Instant::now();
        let pid = rustix::process::Pid::from_raw(unrelated).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        eventually(SOON, "the postmaster ended all backends", || async {
            let said = fleet.server.log_text().unwrap().contains("all server processes terminated; reinitializing");
            if said { Ok(()) } else { Err("its log does not say so".to_owned()) }
        })
        .await;
        let (client, _) = reconnected(&fleet.db.url).await;
        assert_ne!(client.backend("a", "liveness").await, liveness, "pod a has another backend");
        fleet.must_be_undisturbed(began).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_died_during_the_restart_is_buried_within_its_bound() {
    timed(async {
        let mut fleet = Fleet::settled().await;
        let dead = fleet.pods.pop().unwrap();
        let (dead_incarnation, bound) = (dead.incarnation(), dead.settings().worst_case().database_restarted);
        let (went, tolerated) = (Instant::now(), dead.settings().worst_case().outage_tolerated);
        fleet.server.suffers(Server::stop).await;
        drop(dead);
        fleet.server.suffers(Server::start_again).await;
        let back = Instant::now();
        let (client, _) = reconnected(&fleet.db.url).await;
        // On a machine so slow that it was out for longer, the living gave their runs up, too.
        let undisturbed = went.elapsed() < tolerated;
        client.roster_is(&["a", "b"], bound + slack(Duration::from_secs(3))).await;
        println!("buried {:?} after the server's return; the bound is {bound:?}", back.elapsed());
        let (reason, _) = client.session_end(dead_incarnation).await.expect("its end");
        assert_eq!(reason, "lost");
        fleet.audit.let_finish();
        for (run_id, then) in &fleet.runs {
            let end = client.run_in_state(*run_id, "succeeded", SOON).await;
            let was_its = then.owner == Some(dead_incarnation.as_uuid());
            assert!(!was_its || end.attempt == 2, "{end:?}");
            assert!(was_its || !undisturbed || end.attempt == 1, "{end:?}");
        }
        client.assert_fold_is_roster().await;
    })
    .await;
}
