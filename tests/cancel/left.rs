//! What the process and the server hold, before and after.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::patience::SOON;
use tokio_postgres::NoTls;
use tokio_postgres::types::FromSqlOwned;

/// The tests of this binary count what belongs to the whole process.
pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) struct Db {
    pub(crate) url: String,
    client: tokio_postgres::Client,
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    tokio::spawn(connection);
    client
}

impl Db {
    pub(crate) async fn new(url: String) -> Self {
        let client = connect(&url).await;
        Self { url, client }
    }

    pub(crate) async fn scalar<T: FromSqlOwned>(&self, sql: &str) -> T {
        self.client.query_one(sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
    }
}

/// Waits until `look` says that it is so; else fails with what it said last.
pub(crate) async fn eventually<F: Future<Output = Result<(), String>>>(what: &str, mut look: impl FnMut() -> F) {
    let began = Instant::now();
    while let Err(seen) = look().await {
        assert!(began.elapsed() < SOON, "{what}: not within {SOON:?}; seen last: {seen}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is held now.
#[derive(Debug)]
struct Held {
    roster: Vec<String>,
    /// Advisory locks in this database.
    locks: i64,
    /// Backends that any pod or operator opened.
    backends: i64,
    /// Tasks of the application's runtime.
    tasks: usize,
    /// Threads that keep a pod.
    keepers: usize,
    descriptors: usize,
}

impl Held {
    async fn now(db: &Db) -> Self {
        let locks = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
                     WHERE d.datname = current_database() AND l.locktype = 'advisory'";
        let backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'podlock%'";
        Self {
            roster: db.scalar("SELECT coalesce(array_agg(pod_id ORDER BY 1), '{}') FROM studio_pods").await,
            locks: db.scalar(locks).await,
            backends: db.scalar(backends).await,
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            keepers: threads_called("podlock-keeper"),
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

/// What was held when nothing was under way, and how much more may be.
pub(crate) struct Usage {
    before: Held,
    slack: usize,
}

impl Usage {
    pub(crate) async fn of(db: &Db, slack: usize) -> Self {
        // The pods that are there have their two locks each, and nothing else is under way.
        eventually("the pods are at rest", || async {
            let held = Held::now(db).await;
            let due = 2 * i64::try_from(held.roster.len()).unwrap();
            if held.locks == due { Ok(()) } else { Err(format!("{held:?}")) }
        })
        .await;
        Self { before: Held::now(db).await, slack }
    }

    pub(crate) async fn is_all_that_is_left(&self, db: &Db, what: &str) {
        let Self { before, slack } = self;
        eventually(&format!("nothing is left of {what}, before: {before:?}"), || async {
            let now = Held::now(db).await;
            let same = now.roster == before.roster && now.locks == before.locks && now.keepers == before.keepers;
            let within = now.backends <= before.backends + i64::try_from(*slack).unwrap()
                && now.tasks <= before.tasks + slack
                && now.descriptors <= before.descriptors + slack;
            if same && within { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        println!("after {what}: {:?}", Held::now(db).await);
    }
}

/// The kernel keeps the first 15 characters.
fn threads_called(name: &str) -> usize {
    let name = &name[..name.len().min(15)];
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    threads.filter(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
}

pub(crate) fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
