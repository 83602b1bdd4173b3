//! `Pod::until_stopped`: real signals to real processes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podlock::{Config, Incarnation, Outcome, Pod, Run, RunId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::watch;

use crate::patience::SOON;
use crate::support::{Db, eventually, timed};

/// Longer than a test may take: nothing ends because this is over.
const GRACE: Duration = Duration::from_secs(600);
/// Set in the environment of the process below: the file at which a stubborn handler ends.
const AS_POD: &str = "UNTIL_STOPPED_IS_POD";

/// The process of a service: this program, started again for this one test. It calls `until_stopped` when a line comes.
#[test]
#[ignore = "is a service, when another test starts it"]
fn the_process_of_a_service() {
    let Some(file) = std::env::var_os(AS_POD).map(PathBuf::from) else { return };
    let (go, mut told) = watch::channel(false);
    // It ends with the test that started it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            line.expect("a line");
            go.send_replace(true);
        }
        std::process::exit(99);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Pod::builder(Config::from_env().unwrap())
            .handler("polite", |run: Run| async move {
                run.stopped().await;
                Ok(Outcome::Yield)
            })
            .handler("stubborn", move |_run: Run| {
                let file = file.clone();
                async move {
                    while !file.exists() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(Outcome::Done(Value::Null))
                }
            });
        let pod = match builder.stop_on_signals().start().await {
            Ok(pod) => pod,
            Err(e) => {
                println!("refused as {}: {e}", e.kind().as_str());
                return;
            }
        };
        println!("started");
        told.wait_for(|told| *told).await.expect("the line");
        match pod.until_stopped(GRACE).await {
            Ok(stopped) => println!("{}", serde_json::to_string(&stopped).unwrap()),
            Err(e) => println!("failed: {e}"),
        }
    });
}

struct Service {
    child: Child,
    stdin: ChildStdin,
    said: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn start(db: &Db, name: &str, file: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "until_stopped::the_process_of_a_service", "--ignored", "--nocapture"])
            .env(AS_POD, file)
            .env("DATABASE_URL", &db.pod_url)
            .env("POD_NAME", name)
            .env("PODLOCK_LEASE", "4s")
            .env("PODLOCK_ACQUIRE_TIMEOUT", "60s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, stdin, said }
    }

    async fn says(&self, word: &str) -> String {
        eventually(SOON, &format!("the service says {word:?}"), || async {
            let said = self.said.lock().unwrap().clone();
            // The test harness begins a line of its own in front of the first.
            let line = said.iter().find_map(|line| line.find(word).map(|at| line[at..].to_owned()));
            line.ok_or_else(|| format!("{said:?}"))
        })
        .await
    }

    fn go(&mut self) {
        self.stdin.write_all(b"go\n").expect("it reads");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// Whether the signal would not end the process by itself.
    fn listens_for(&self, signal: Signal) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask").trim();
        u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
    }

    async fn ends_with(&mut self, code: i32) {
        let status = eventually(SOON, "the service ends", || {
            let status = self.child.try_wait().expect("its status");
            let said = format!("{:?}", self.said.lock().unwrap());
            async move { status.ok_or(said) }
        })
        .await;
        assert_eq!(status.code(), Some(code), "{status}: {:?}", self.said.lock().unwrap());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that the service has taken up.
async fn run_of(db: &Db, kind: &str) -> RunId {
    let run_id = RunId::generate();
    let sql = "INSERT INTO studio_runs (run_id, kind) VALUES ($1, $2)";
    db.client.execute(sql, &[&run_id.as_uuid(), &kind]).await.unwrap();
    eventually(SOON, "the service takes the run", || async {
        let run = db.client.run(run_id).await;
        if run.attempt == 1 { Ok(()) } else { Err(format!("{run:?}")) }
    })
    .await;
    run_id
}

async fn is_draining(db: &Db) {
    eventually(SOON, "the pod drains", || async {
        let state: String = db.client.scalar("SELECT state FROM studio_pods", &[]).await;
        if state == "draining" { Ok(()) } else { Err(state) }
    })
    .await;
}

/// "Ctrl-C on the README's sample leaves a run that nobody resumes for 10 s": it is handed over, whether the signal
/// comes while the service waits, or before it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_ctrl_c_hand_the_runs_over_and_end_the_service_cleanly() {
    timed(async {
        for (signal, name, before) in [(Signal::TERM, "SIGTERM", false), (Signal::INT, "SIGINT", true)] {
            let (db, none) = (Db::new().await, Path::new("/nonexistent"));
            let mut service = Service::start(&db, "s", none);
            service.says("started").await;
            let run_id = run_of(&db, "polite").await;
            if before {
                service.signal(signal);
                service.go();
            } else {
                service.go();
                service.signal(signal);
            }
            let stopped: Value = serde_json::from_str(&service.says("{\"cause\"").await).unwrap();
            assert_eq!(stopped["cause"]["signal"], name, "{stopped}");
            assert_eq!((&stopped["report"]["yielded"], &stopped["report"]["aborted"]), (&1.into(), &0.into()));
            service.ends_with(0).await;
            let run = db.client.run(run_id).await;
            assert_eq!((run.state.as_str(), run.owner), ("running", None), "anybody may take it at once");
            let state: String = db.client.scalar("SELECT state FROM studio_pods", &[]).await;
            assert_eq!(state, "draining", "a clean stop says so in its row");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_service_at_once() {
    timed(async {
        let (db, none) = (Db::new().await, Path::new("/nonexistent"));
        let mut service = Service::start(&db, "s", none);
        service.says("started").await;
        let run_id = run_of(&db, "stubborn").await;
        service.go();
        service.signal(Signal::TERM);
        is_draining(&db).await;
        assert!(service.child.try_wait().unwrap().is_none(), "one signal waits for the run");
        service.signal(Signal::INT);
        service.ends_with(128 + 2).await;
        let run = db.client.run(run_id).await;
        assert!(run.state == "running" && run.owner.is_some(), "a survivor buries the pod first: {run:?}");
    })
    .await;
}

/// An operator drains a pod, and the orchestrator then ends its process: that signal is the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_during_a_drain_that_was_asked_for_does_not_cut_it_short() {
    timed(async {
        let db = Db::new().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("end");
        let mut service = Service::start(&db, "s", &file);
        service.says("started").await;
        let run_id = run_of(&db, "stubborn").await;
        service.go();
        db.client.execute("SELECT studio_drain('s')", &[]).await.unwrap();
        is_draining(&db).await;
        service.signal(Signal::TERM);
        eventually(SOON, "the signal is delivered", || async {
            let status = std::fs::read_to_string(format!("/proc/{}/status", service.child.id())).unwrap();
            let pending = |name| status.lines().find_map(|l| l.strip_prefix(name)).map(|m| m.trim().to_owned());
            let mask = pending("ShdPnd:").unwrap_or_default();
            if mask.chars().all(|c| c == '0') { Ok(()) } else { Err(mask) }
        })
        .await;
        std::fs::write(&file, "").unwrap();
        let stopped: Value = serde_json::from_str(&service.says("{\"cause\"").await).unwrap();
        assert_eq!((&stopped["cause"], &stopped["report"]["finished"]), (&"drain_requested".into(), &1.into()));
        service.ends_with(0).await;
        assert_eq!(db.client.run(run_id).await.state, "succeeded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_while_the_pod_starts_undoes_the_start() {
    timed(async {
        let db = Db::new().await;
        let holder = db.pod("s").await;
        let mut service = Service::start(&db, "s", Path::new("/nonexistent"));
        eventually(SOON, "it listens, and waits for the name", || async {
            let listens = service.listens_for(Signal::TERM) && service.listens_for(Signal::INT);
            if listens { Ok(()) } else { Err(format!("{:?}", service.said.lock().unwrap())) }
        })
        .await;
        service.signal(Signal::TERM);
        let refused = service.says("refused as stopped").await;
        assert!(refused.contains("SIGTERM came while the pod was starting"), "{refused}");
        service.ends_with(0).await;
        let there: uuid::Uuid = db.client.scalar("SELECT incarnation FROM studio_pods", &[]).await;
        assert_eq!(Incarnation::from(there), holder.incarnation(), "the holder is undisturbed");
    })
    .await;
}

/// A pod that ends because another handle shuts it down is no failure; one that ends by itself is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_by_another_handle_ends_the_wait() {
    timed(async {
        let db = Db::new().await;
        let pod = db.pod("a").await;
        let waiting = tokio::spawn(pod.clone().until_stopped(Duration::MAX));
        pod.shutdown(Duration::MAX).await.expect("any time may be given");
        let stopped = waiting.await.unwrap().expect("a clean stop");
        assert_eq!(stopped.cause, podlock::StopCause::Shutdown);
    })
    .await;
}
