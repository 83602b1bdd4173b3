//! Three pods of this process, each with a runtime of its own, and the workers that they register.

use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use podlock::workers::{NewWorker, WorkerSpec};
use podlock::{Config, Pod, WorkerId};
use tokio::runtime::Runtime;

use crate::{Args, Result, SOON, connect};

const PODS: [&str; 3] = ["a", "b", "c"];
/// One worker in so many has the model that is chosen by.
pub(crate) const ONE_IN: usize = 10;
/// The model of these.
pub(crate) const MODEL: &str = "chosen";

/// A server that counts statements.
pub(crate) fn server() -> Result<Server> {
    let builder = Server::builder()
        .setting("max_connections", "200")
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("pg_stat_statements.track", "top")
        .setting("pg_stat_statements.track_planning", "on");
    Ok(builder.start()?)
}

/// What the server is, in a line.
pub(crate) async fn facts(server: &Server) -> Result<String> {
    let sql = "SELECT 'PostgreSQL ' || current_setting('server_version') || ', fsync ' || current_setting('fsync') \
               || ', synchronous_commit ' || current_setting('synchronous_commit')";
    let client = connect(&server.url("postgres")).await?;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// The runtime of one pod.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// A pod, and the runtime that it lives on.
pub(crate) struct Member {
    pub(crate) pod: Pod,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Member {
    pub(crate) async fn start(url: &str, name: &str, report_interval: Option<Duration>) -> Result<Self> {
        let runtime = runtime()?;
        let mut config = Config::new(url).name(name);
        config.worker_report_interval = report_interval.unwrap_or(config.worker_report_interval);
        let pod = runtime.spawn(async move { Pod::builder(config).start().await }).await??;
        Ok(Self { pod, runtime: Some(runtime) })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.pod.clone().shutdown(SOON).await?;
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A runtime may not be dropped where others run.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The pods.
pub(crate) struct Fleet {
    pub(crate) url: String,
    pub(crate) members: Vec<Member>,
    /// The workers, by the number that their URL has. Worker `n` belongs to pod `n % 3`.
    pub(crate) ids: Vec<WorkerId>,
    /// How long it took until each pod showed all workers.
    pub(crate) filled: Duration,
}

impl Fleet {
    /// Starts the pods on a new database, and waits until each shows all workers.
    pub(crate) async fn start(
        server: &Server,
        database: &str,
        args: &Args,
        report_interval: Option<Duration>,
    ) -> Result<Self> {
        connect(&server.url("postgres")).await?.batch_execute(&format!("CREATE DATABASE {database}")).await?;
        let url = server.url(database);
        let mut members = Vec::new();
        for name in PODS {
            members.push(Member::start(&url, name, report_interval).await?);
        }
        let (began, mut ids) = (Instant::now(), Vec::new());
        for n in 0..args.workers {
            ids.push(members[n % PODS.len()].pod.workers().register(worker(n, args.spec_bytes))?);
        }
        let mut fleet = Self { url, members, ids, filled: Duration::ZERO };
        fleet.shows_all().await?;
        fleet.filled = began.elapsed();
        Ok(fleet)
    }

    pub(crate) fn owner_of(&self, n: usize) -> &Pod {
        &self.members[n % self.members.len()].pod
    }

    /// Waits until each pod shows all workers, and may choose all of them.
    async fn shows_all(&self) -> Result<()> {
        for member in &self.members {
            shows(&member.pod, self.ids.len()).await?;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        for member in self.members {
            member.stop().await?;
        }
        Ok(())
    }
}

/// Waits until a pod shows so many workers.
pub(crate) async fn shows(pod: &Pod, expected: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let shown = pod.workers().list().len();
        if shown == expected {
            return Ok(());
        }
        if began.elapsed() > SOON {
            return Err(format!("after {SOON:?}, a pod shows {shown} workers, and {expected} are registered").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn worker(n: usize, spec_bytes: usize) -> NewWorker {
    let model = if n.is_multiple_of(ONE_IN) { MODEL } else { "other" };
    let mut spec = WorkerSpec::new().kind("llm").model(model).label("zone", format!("z{}", n % 3));
    // A spec as services write them: some fields of theirs, and a long text.
    spec.other.insert("gpu".into(), serde_json::json!({ "kind": "h100", "count": n % 8 }));
    let rest = spec_bytes.saturating_sub(spec.encode().to_string().len() + r#","template":"""#.len());
    // Text that does not compress to nothing, the same in each run.
    let mut random = fastrand::Rng::with_seed(n as u64);
    spec.other.insert("template".into(), (0..rest).map(|_| random.alphanumeric()).collect::<String>().into());
    NewWorker::new(format!("http://10.{}.{}.{}:8000", n >> 16, (n >> 8) & 255, n & 255)).spec(spec)
}
