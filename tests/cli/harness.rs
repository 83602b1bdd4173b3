//! One server for all tests, a database for each, processes that end with their test, and waits with a deadline.

use std::future::Future;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

pub(crate) use crate::examples::example;
use crate::inherited;
pub(crate) use crate::patience::{SOON, TEST};

/// The server that all tests of this binary share.
pub(crate) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| inherited::postgres().start().expect("PostgreSQL starts"))
}

/// Runs a test on a runtime of its own with a hard deadline.
pub(crate) fn within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(async {
        tokio::time::timeout(limit, test).await.unwrap_or_else(|_| panic!("the test took longer than {limit:?}"))
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// A database of its own.
pub(crate) struct Db {
    pub(crate) url: String,
}

impl Db {
    pub(crate) async fn new() -> Self {
        Self::on(server()).await
    }

    pub(crate) async fn on(server: &Server) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cli_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = connect(&server.url("postgres")).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        Self { url: server.url(&name) }
    }

    pub(crate) async fn migrated() -> Self {
        let db = Self::new().await;
        db.ok(&["migrate", "up"]).await;
        db
    }

    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        connect(&self.url).await
    }

    /// The command on this database, ready to be run.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = podlock(args);
        command.env("DATABASE_URL", &self.url).env("PODLOCK_CONNECT_TIMEOUT", "60s");
        command
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Done {
        finish(self.command(args)).await
    }

    /// Runs the command, which must succeed, and returns what it printed.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args).await;
        assert_eq!(done.code, 0, "podlock {args:?} failed: {done:?}");
        done.stdout
    }

    /// Runs the command with `-o json` and returns the value.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("podlock {args:?} printed no JSON: {e}: {text}"))
    }

    /// Starts a pod with a short lease and waits until it is registered.
    pub(crate) async fn pod(&self, name: &str, args: &[&str]) -> PodProcess {
        let mut command = self.command(&["pod", "--name", name, "--log-format", "json"]);
        command.env("PODLOCK_LEASE", "3s").args(args);
        PodProcess::start(command).await
    }
}

/// The command, without anything of the environment that could matter to it.
pub(crate) fn podlock(args: &[&str]) -> Command {
    let mut command = clean(Path::new(env!("CARGO_BIN_EXE_podlock")));
    command.args(args);
    command
}

/// A program, without anything of the environment that could matter to podlock.
pub(crate) fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    inherited::clean(command.as_std_mut());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
pub(crate) async fn finish(mut command: Command) -> Done {
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    Done {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Asks `look` again and again until it answers, at most for [`SOON`]. Until then it says what it saw.
pub(crate) async fn wait_for<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if began.elapsed() > SOON => panic!("waited {SOON:?} until {what}, in vain; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// What a process has written so far, line by line.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub(crate) fn read(from: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let lines = Self::default();
        let to = lines.clone();
        tokio::spawn(async move {
            let mut from = BufReader::new(from).lines();
            while let Ok(Some(line)) = from.next_line().await {
                to.0.lock().unwrap().push(line);
            }
        });
        lines
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Waits until `pick` finds something in one of the lines.
    pub(crate) async fn find<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        wait_for(what, || async {
            let lines = self.all();
            let found = lines.iter().find_map(|line| pick(line));
            found.ok_or_else(|| lines.join("\n"))
        })
        .await
    }

    /// Waits for a line of a JSON log with this event.
    pub(crate) async fn event(&self, event: &str) -> Value {
        self.find(&format!("event {event} is logged"), |line| {
            serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == event)
        })
        .await
    }
}

/// Through no proxy, whatever the environment says.
pub(crate) fn http_client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A `podlock pod` that is registered.
pub(crate) struct PodProcess {
    pub(crate) child: Child,
    pub(crate) pid: u32,
    pub(crate) url: String,
    pub(crate) ready: String,
    pub(crate) log: Lines,
    pub(crate) http: reqwest::Client,
}

impl PodProcess {
    pub(crate) async fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id().unwrap();
        let out = Lines::read(child.stdout.take().unwrap());
        let log = Lines::read(child.stderr.take().unwrap());
        let ready = wait_for("the pod is ready", || async {
            if let Some(line) = out.all().first() {
                return Ok(line.clone());
            }
            Err(log.all().join("\n"))
        })
        .await;
        let url = ready.rsplit(' ').next().unwrap().to_owned();
        Self { child, pid, url, ready, log, http: http_client() }
    }

    pub(crate) fn signal(&self, with: Signal) {
        signal(self.pid, with);
    }

    /// Waits until it has ended, and returns its exit code.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(SOON, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("the pod has not ended: {:#?}", self.log.all())).unwrap().code()
    }

    pub(crate) async fn post(&self, body: Value) -> (u16, Value) {
        let response = self.http.post(format!("{}/v1/runs", self.url)).json(&body).send().await.unwrap();
        answer(response).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.http.get(format!("{}{path}", self.url)).send().await.unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.http.delete(format!("{}{path}", self.url)).send().await.unwrap()).await
    }

    /// Starts a run of kind `demo` and returns its id.
    pub(crate) async fn demo(&self, input: Value) -> String {
        let (status, body) = self.post(json!({ "kind": "demo", "input": input })).await;
        assert_eq!(status, 201, "{body}");
        body["run_id"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn answer(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} with a body that is no JSON: {text:?}")))
}

/// The names of an object's fields, in their order.
pub(crate) fn fields(json: &str) -> Vec<String> {
    // serde_json sorts an object's fields; the order of the text is what a reader sees.
    let mut names = Vec::new();
    let mut depth = 0;
    let mut chars = json.char_indices().peekable();
    let mut key = true;
    while let Some((start, c)) = chars.next() {
        match c {
            '{' | '[' => {
                depth += 1;
                key = c == '{';
            }
            '}' | ']' => depth -= 1,
            ',' if depth == 1 => key = true,
            '"' => {
                let mut end = start + 1;
                while let Some((at, c)) = chars.next() {
                    if c == '\\' {
                        chars.next();
                    } else if c == '"' {
                        end = at;
                        break;
                    }
                }
                if depth == 1 && key {
                    names.push(json[start + 1..end].to_owned());
                    key = false;
                }
            }
            _ => {}
        }
    }
    names
}

/// Processes whose environment or command line bears `mark`, but for this one.
pub(crate) fn marked_processes(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        let text = |file: &str| {
            let bytes = std::fs::read(Path::new("/proc").join(&name).join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        if text("environ").contains(mark) || text("cmdline").contains(mark) {
            found.push(format!("{name}: {}", text("cmdline")));
        }
    }
    found
}
