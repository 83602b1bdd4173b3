//! The project of containers, by the command lines of Docker and Compose, and waits with a deadline.

use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long a command may take that starts no container.
const COMMAND: Duration = Duration::from_secs(60);
/// How long it may take until every container has started: PostgreSQL makes its cluster, then comes the migration.
const UP: Duration = Duration::from_secs(180);

/// Runs a test on a runtime of its own with a hard deadline.
pub(crate) fn within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(limit, test).await.unwrap_or_else(|_| panic!("the test took longer than {limit:?}"))
    })
}

/// Asks `look` again and again until it answers, at most for `limit`. Until then it says what it saw.
pub(crate) async fn wait_for<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if began.elapsed() > limit => panic!("waited {limit:?} until {what}, in vain; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The project that `make compose-test` named; Compose reads the name and the file from the environment itself.
pub(crate) struct Project {
    name: String,
    /// `docker compose` or `docker-compose`, as words.
    compose: Vec<String>,
    pub(crate) http: reqwest::Client,
}

/// What Docker says of a container.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    /// `running`, `exited`, …
    pub(crate) status: String,
    pub(crate) exit_code: i64,
    /// How often its restart policy started it again.
    pub(crate) restarts: i64,
    /// By its health check.
    pub(crate) health: Option<String>,
}

impl Project {
    pub(crate) fn from_env() -> Self {
        let var = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: this test is run by `make compose-test`"))
        };
        let name = var("COMPOSE_PROJECT_NAME");
        assert!(name.starts_with("podlock-test-"), "this test touches no project but its own");
        var("COMPOSE_FILE");
        let compose = var("COMPOSE").split_whitespace().map(str::to_owned).collect();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
        Self { name, compose, http }
    }

    /// Starts whatever does not run, and waits until the migration has ended well and every pod says that it is ready.
    pub(crate) async fn up(&self) {
        run(self.compose(&["up", "-d", "--no-build"]), "", UP).await;
        let migration = self.container("migrate").await.seen().await;
        assert_eq!((migration.status.as_str(), migration.exit_code), ("exited", 0), "{migration:?}");
        for pod in ["pod-1", "pod-2", "pod-3"] {
            let container = self.container(pod).await;
            wait_for(&format!("the health check finds {pod} ready"), COMMAND, || async {
                let seen = container.seen().await;
                if seen.health.as_deref() == Some("healthy") { Ok(()) } else { Err(format!("{seen:?}")) }
            })
            .await;
        }
    }

    /// The container of a service of this project, whether it runs or not. By Compose's labels: Compose itself takes
    /// seconds to answer on a busy machine.
    pub(crate) async fn container(&self, service: &str) -> Container {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let label = format!("label=com.docker.compose.service={service}");
        let ids = run(docker(&["ps", "-a", "-q", "--filter", &project, "--filter", &label]), "", COMMAND).await;
        let ids: Vec<_> = ids.split_whitespace().collect();
        assert_eq!(ids.len(), 1, "service {service} has the containers {ids:?}");
        Container { id: ids[0].to_owned() }
    }

    /// Runs a query of one column of JSON in psql, in the database's container.
    pub(crate) async fn query(&self, sql: &str) -> Vec<Value> {
        let postgres = self.container("postgres").await;
        let mut command = Command::new("docker");
        command.args(["exec", "-i", &postgres.id, "psql", "--username=podlock", "--dbname=podlock"]);
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        let rows = run(command, sql, COMMAND).await;
        rows.lines().map(|row| serde_json::from_str(row).unwrap_or_else(|e| panic!("{e}: {row}"))).collect()
    }

    fn compose(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(args);
        command
    }
}

/// A container of the project, which keeps its id when it is started again.
pub(crate) struct Container {
    id: String,
}

impl Container {
    /// SIGKILL, without a word to the process.
    pub(crate) async fn kill(&self) {
        run(docker(&["kill", "--signal", "KILL", &self.id]), "", COMMAND).await;
    }

    /// SIGTERM, and SIGKILL after the container's `stop_grace_period`. Returns when it has ended.
    pub(crate) async fn stop(&self) {
        run(docker(&["stop", &self.id]), "", COMMAND).await;
    }

    /// Where the HTTP interface is for us. It changes when the container is started again.
    pub(crate) async fn url(&self) -> String {
        format!("http://{}", run(docker(&["port", &self.id, "8080/tcp"]), "", COMMAND).await.trim())
    }

    pub(crate) async fn seen(&self) -> Seen {
        let text = run(docker(&["container", "inspect", &self.id]), "", COMMAND).await;
        let value: Value = serde_json::from_str(&text).unwrap();
        let (container, state) = (&value[0], &value[0]["State"]);
        Seen {
            status: state["Status"].as_str().unwrap().to_owned(),
            exit_code: state["ExitCode"].as_i64().unwrap(),
            restarts: container["RestartCount"].as_i64().unwrap(),
            health: state["Health"]["Status"].as_str().map(str::to_owned),
        }
    }
}

fn docker(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.args(args);
    command
}

/// Runs a command, which must succeed, and returns what it printed.
async fn run(mut command: Command, input: &str, limit: Duration) -> String {
    let shown = format!("{:?}", command.as_std());
    let output = async {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
        child.wait_with_output().await.unwrap()
    };
    let output =
        tokio::time::timeout(limit, output).await.unwrap_or_else(|_| panic!("{shown} took longer than {limit:?}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown} failed, {}:\n{out}{err}", output.status);
    out.into_owned()
}
