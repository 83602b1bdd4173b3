//! Servers and programs of a test's own, and what a refused start must say.

use std::error::Error as _;
use std::ops::Deref;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use podlock::throwaway::{Server, ThrowawayError};
use podlock::{Config, Error, ErrorKind, Outcome, Pod, PodBuilder, Run};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio_postgres::NoTls;

use super::{sql, with_kinds};
use crate::inherited::{self, clean};
use crate::patience::SOON;

/// What a loaded machine may add to a time limit of ours.
pub(crate) fn slack() -> Duration {
    crate::patience::slack(Duration::from_secs(10))
}

/// A server of the test's own, for what would disturb the others. Dropped beside the runtime: stopping it blocks.
pub(crate) struct OwnServer(Option<Arc<Server>>);

impl OwnServer {
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let builder = settings.iter().fold(inherited::postgres(), |b, (name, value)| b.setting(*name, *value));
        let server = tokio::task::spawn_blocking(|| builder.start()).await.unwrap().expect("a throwaway PostgreSQL");
        Self(Some(Arc::new(server)))
    }

    /// Puts the server through a fault.
    pub(crate) async fn suffers(&self, fault: fn(&Server) -> Result<(), ThrowawayError>) {
        let server = Arc::clone(self.0.as_ref().expect("it is there until it is dropped"));
        tokio::task::spawn_blocking(move || fault(&server)).await.unwrap().expect("the fault");
    }
}

impl Deref for OwnServer {
    type Target = Server;
    fn deref(&self) -> &Server {
        self.0.as_deref().expect("it is there until it is dropped")
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let server = self.0.take();
        std::thread::spawn(move || drop(server));
    }
}

/// A connection as soon as the server gives one, and how long that took.
pub(crate) async fn reconnected(url: &str) -> (sql::Client, Duration) {
    let began = Instant::now();
    super::eventually(SOON, "the server is back", || async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(|e| e.to_string())?;
        drop((client, connection));
        Ok(())
    })
    .await;
    (sql::connect(url).await, began.elapsed())
}

/// A start that was refused: what it said and how long it took.
pub(crate) struct Refusal {
    pub(crate) error: Error,
    pub(crate) took: Duration,
    secret: Option<String>,
}

/// Starts a pod, expects that the start fails, and returns what it says.
pub(crate) async fn refused(config: Config) -> Refusal {
    let parsed: Result<tokio_postgres::Config, _> = config.database_url.expose_secret().parse();
    let secret = parsed.ok().and_then(|c| c.get_password().map(|p| String::from_utf8_lossy(p).into_owned()));
    let began = Instant::now();
    match with_kinds(Pod::builder(config)).start().await {
        Ok(pod) => panic!("this pod must not start: {pod:?}"),
        Err(error) => Refusal { error, took: began.elapsed(), secret },
    }
}

impl Refusal {
    /// Its kind, what its text must hold, and that it came within `limit` (and some slack) without the password.
    #[track_caller]
    pub(crate) fn is(&self, kind: ErrorKind, words: &[&str], limit: Duration) {
        let error = &self.error;
        assert_eq!(error.kind(), kind, "{error:?}");
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{text:?} has no {word:?}");
        }
        assert!(self.took < limit + slack(), "{text:?} took {:?}, its limit is {limit:?}", self.took);
        let mut shown = format!("{error} {error:?} {error:#?}");
        let mut source = error.source();
        while let Some(cause) = source {
            shown.push_str(&format!(" {cause} {cause:?}"));
            source = cause.source();
        }
        if let Some(secret) = self.secret.as_deref().filter(|s| !s.is_empty()) {
            assert!(!shown.contains(secret), "the password is in {shown}");
        }
    }
}

/// Waits until no backend of `pod` is left, nor any advisory lock that is not of a pod of the roster.
pub(crate) async fn nothing_is_left_of(client: &sql::Client, pod: &str) {
    no_lock_is_left(client).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name LIKE 'podlock/' || $1 || '/%'";
    super::eventually(SOON, "no backend is left of the refused pod", || async {
        match client.scalar::<i64>(sql, &[&pod]).await {
            0 => Ok(()),
            left => Err(format!("{left} backends")),
        }
    })
    .await;
}

/// Waits until nobody holds an advisory lock of this database.
pub(crate) async fn no_lock_is_left(client: &sql::Client) {
    let sql = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
               WHERE d.datname = current_database() AND l.locktype = 'advisory'";
    super::eventually(SOON, "no lock is left of the refused pod", || async {
        match client.scalar::<i64>(sql, &[]).await {
            0 => Ok(()),
            left => Err(format!("{left} locks")),
        }
    })
    .await;
}

/// What happened to the runs of kind `work`, and when they are to finish.
#[derive(Default)]
pub(crate) struct Audit {
    /// Why a run was told to stop, and which writes were refused.
    pub(crate) seen: Mutex<Vec<String>>,
    finish: std::sync::atomic::AtomicBool,
}

impl Audit {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on every run of kind `work` succeeds at its next step.
    pub(crate) fn let_finish(&self) {
        self.finish.store(true, std::sync::atomic::Ordering::Release);
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, run: &Run, what: &str) {
        self.seen.lock().unwrap().push(format!("{} a{}: {what}", run.pod_id(), run.attempt()));
    }
}

/// The test kinds, and `work`: checkpoints all the time until it is let finish, and heeds no token.
pub(crate) fn audited(config: Config, audit: &Arc<Audit>) -> PodBuilder {
    let audit = Arc::clone(audit);
    with_kinds(Pod::builder(config)).handler("work", move |run: Run| {
        let audit = Arc::clone(&audit);
        async move {
            let mut done = 0_u64;
            loop {
                done += 1;
                if let Err(e) = run.checkpoint(json!({ "done": done })).await {
                    audit.note(&run, &format!("{:?}", e.kind()));
                    return Err(e.into());
                }
                if let Some(reason) = run.stop_reason() {
                    audit.note(&run, &format!("told to stop: {reason}"));
                }
                if audit.finish.load(std::sync::atomic::Ordering::Acquire) {
                    return Ok(Outcome::Done(json!({ "attempt": run.attempt() })));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    })
}

/// A program of the test's own. It gets SIGQUIT when this is dropped, and from the kernel if the test is killed.
pub(crate) struct Daemon {
    /// Its end tells the thread, which is the program's parent, to end it.
    stop: Option<mpsc::Sender<()>>,
    parent: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub(crate) fn spawn(program: &str, args: Vec<String>) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let program = program.to_owned();
        let (began, ready) = mpsc::channel();
        let parent = std::thread::spawn(move || {
            let mut command = Command::new("setpriv");
            clean(&mut command);
            command.args(["--pdeathsig", "QUIT", "--", &program]).args(args);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).env("LC_ALL", "C");
            let mut child = as_account(&mut command).spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
            began.send(()).unwrap();
            let _ = stopped.recv();
            let pid = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > until {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        ready.recv().expect("the program begins");
        Self { stop: Some(stop), parent: Some(parent) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(parent) = self.parent.take() {
            let _ = parent.join();
        }
    }
}

/// PostgreSQL's programs and pgbouncer refuse root: then they run as `postgres`.
pub(crate) fn account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let id = |flag| {
        let output = Command::new("id").args([flag, "postgres"]).output().expect("id");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("an account postgres")
    };
    Some((id("-u"), id("-g")))
}

pub(crate) fn as_account(command: &mut Command) -> &mut Command {
    match account() {
        Some((uid, gid)) => command.uid(uid).gid(gid),
        None => command,
    }
}

/// A directory that programs of [`account`] may write into.
pub(crate) fn account_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("podlock-test-").tempdir().expect("a directory");
    give_to_account(dir.path());
    dir
}

pub(crate) fn give_to_account(path: &std::path::Path) {
    if let Some((uid, gid)) = account() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
}

/// A port of 127.0.0.1 on which nobody listens now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `server`'s connection string with other hosts: `(host, port)` each.
pub(crate) fn hosts_url(server: &Server, ports: &[u16], database: &str) -> String {
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    format!(
        "host={hosts} port={} user={} password={} dbname={database}",
        ports.join(","),
        server.user(),
        server.password()
    )
}
