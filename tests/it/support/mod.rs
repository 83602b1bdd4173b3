//! A database per test, pods on it, and waiting for conditions.

pub(crate) mod faults;
pub(crate) mod nginx;
pub(crate) mod pgbouncer;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod roles;
pub(crate) mod sql;
pub(crate) mod trace;

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use podlock::{Config, Outcome, Pod, PodBuilder, Run};
use serde_json::json;

use crate::inherited;
use crate::patience::{CONNECT, SOON, slowness};

/// The lease of most tests: long enough that a loaded machine does not break it, short enough to be waited out. Four
/// seconds; longer where four tasks or more wanted each core when the tests began.
pub(crate) fn lease() -> Duration {
    static LEASE: LazyLock<Duration> =
        LazyLock::new(|| Duration::from_secs(4).mul_f64((slowness() / 4.0).clamp(1.0, 4.0)));
    *LEASE
}

/// The server of this test binary. It ends with the process.
pub(crate) fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        inherited::postgres()
            .setting("max_connections", "600")
            .setting("max_locks_per_transaction", "256")
            .start()
            .expect("a throwaway PostgreSQL")
    })
}

/// A database of the test's own. Advisory locks are per database, so tests do not see each other.
pub(crate) struct Db {
    pub(crate) name: String,
    /// The superuser's: for what tests do themselves.
    pub(crate) url: String,
    /// For pods.
    pub(crate) pod_url: String,
    pub(crate) client: sql::Client,
}

impl Db {
    /// A database with podlock's tables, which its owner made; pods connect as a role that has what
    /// [`podlock::migrate::grants`] gives it, and nothing more.
    pub(crate) async fn new() -> Self {
        let roles = roles::of(server()).await;
        // The owner of the tables makes the partitions of the samples, so it must be able to create tables here too.
        let template = format!("{} OWNER podlock_owner", roles.template);
        let mut db = Self::at(|database| server().url(database), &template).await;
        db.pod_url = roles.pod_url(&db.name);
        db
    }

    /// A database with nothing in it, where pods connect as the superuser.
    pub(crate) async fn empty() -> Self {
        Self::on(server()).await
    }

    /// As [`Db::empty`], on a server of the test's own.
    pub(crate) async fn on(server: &Server) -> Self {
        Self::at(|database| server.url(database), "template1").await
    }

    /// As [`Db::empty`], with a collation that sorts "a" before "B".
    pub(crate) async fn in_english() -> Self {
        let template = "template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";
        Self::at(|database| server().url(database), template).await
    }

    /// Reached over the server's unix socket.
    pub(crate) async fn over_socket(server: &Server) -> Self {
        Self::at(|database| server.socket_url(database), "template1").await
    }

    async fn at(url: impl Fn(&str) -> String, template: &str) -> Self {
        trace::keep();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = sql::connect(&url("postgres")).await;
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await.expect("a database");
        let url = url(&name);
        let client = sql::connect(&url).await;
        Self { name, pod_url: url.clone(), url, client }
    }

    pub(crate) fn config(&self, pod: &str) -> Config {
        // A loaded machine takes its time to connect; that is not what these tests are about.
        Config::new(&self.pod_url).name(pod).lease(lease()).with(|c| c.connect_timeout = Some(CONNECT))
    }

    /// A pod with the test kinds, and a lease of [`lease`].
    pub(crate) async fn pod(&self, name: &str) -> Pod {
        start(self.config(name)).await
    }

    /// Pods `a`, `b`, … that may bury: their `settle` has passed.
    pub(crate) async fn settled_pods<const N: usize>(&self) -> [Pod; N] {
        let mut pods = Vec::new();
        for i in 0..N {
            pods.push(self.pod(&char::from(b'a' + u8::try_from(i).unwrap()).to_string()).await);
        }
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        pods.try_into().expect("as many as asked for")
    }
}

/// A start that a slow machine defeats is tried again, as a service's is by what restarts it: the server's time limits
/// on what a pod does there are parts of the lease, and do not grow with the load.
pub(crate) async fn start(config: Config) -> Pod {
    start_of(|| with_kinds(Pod::builder(config.clone()))).await
}

/// The same of a pod with other kinds.
pub(crate) async fn start_of(builder: impl Fn() -> PodBuilder) -> Pod {
    let began = Instant::now();
    loop {
        match builder().start().await {
            Ok(pod) => return pod,
            Err(error) if error.is_transient() && slowness() > 2.0 && began.elapsed() < SOON => {
                println!("trying again on a slow machine: {error}");
            }
            Err(error) => panic!("the pod does not start: {error:?}"),
        }
    }
}

/// The kinds that tests run: `wait` runs until it is told to stop, `echo` returns its input at once, `steps` counts
/// checkpoints up to its input's `steps`, `panic` panics, `fail` fails.
pub(crate) fn with_kinds(builder: PodBuilder) -> PodBuilder {
    builder
        .handler("wait", |run: Run| async move {
            run.stopped().await;
            Err::<Outcome, _>("told to stop".into())
        })
        .handler("echo", |run: Run| async move { Ok(Outcome::Done(run.input().clone())) })
        .handler("steps", |run: Run| async move {
            let steps = run.input()["steps"].as_u64().unwrap_or(10);
            let pause = Duration::from_millis(run.input()["pause_ms"].as_u64().unwrap_or(50));
            let mut done = run.saved().and_then(|s| s["done"].as_u64()).unwrap_or(0);
            while done < steps {
                done += 1;
                run.checkpoint(json!({"done": done})).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(Outcome::Done(json!({"steps": done, "attempt": run.attempt()})))
        })
        .handler("panic", |_run: Run| async move { panic!("as asked") })
        .handler("fail", |_run: Run| async move { Err::<Outcome, _>("as asked".into()) })
}

/// Waits until `look` gives a value, at most `limit`; else fails with what `look` said last.
pub(crate) async fn eventually<T, F, Fut>(limit: Duration, what: &str, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) => {
                assert!(began.elapsed() < limit, "{what}: not within {limit:?}; seen last: {seen}");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Fails a test that takes longer than any of its waits should.
pub(crate) async fn within<T>(limit: Duration, test: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, test).await.expect("the whole test took too long")
}

/// The same for most tests.
pub(crate) async fn timed<T>(test: impl Future<Output = T>) -> T {
    within(crate::patience::TEST, test).await
}
