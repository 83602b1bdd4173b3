//! What the registry costs while no worker changes: each pod reports its workers and compares its copy, once per report
//! interval.
//!
//! Statements are those of `pg_stat_statements` that name a table of the registry, without burials. The bytes are what a
//! proxy counts on the pool of a further pod with one worker, less what the same pool receives before the pod uses the
//! registry.

use std::time::Duration;

use podlock::throwaway::Server;
use podlock::workers::NewWorker;
use tokio_postgres::Client;

use crate::fleet::{Fleet, Member, shows};
use crate::proxy::Proxy;
use crate::report::Report;
use crate::{Args, Result, connect};

const DATABASE: &str = "idle";
/// A part of the statement that reports and compares, and of no other.
const RECONCILES: &str = "is_monitored";
/// Parts of the statements of the monitor, which one pod makes once in a monitor interval, and after a burial.
const MONITORS: [&str; 2] = ["seat AS MATERIALIZED", "ownerless AS MATERIALIZED"];

pub(crate) async fn measure(server: &Server, args: &Args, report: &mut Report) -> Result<()> {
    let every = args.report_interval;
    let fleet = Fleet::start(server, DATABASE, args, Some(every)).await?;
    // Until the first reports are made, and nobody is awake.
    tokio::time::sleep(every * 2 + Duration::from_secs(2)).await;
    let client = connect(&server.url("postgres")).await?;
    for vacuumed in [false, true] {
        if vacuumed {
            // As autovacuum does soon after: then an index scan need not visit the rows.
            connect(&fleet.url).await?.batch_execute("VACUUM ANALYZE studio_workers").await?;
        }
        client.execute("SELECT pg_stat_statements_reset()", &[]).await?;
        let before = processor_time(&client).await?;
        tokio::time::sleep(every * args.intervals).await;
        let cpu_ms = processor_time(&client).await? - before;
        let counted = Counted::read(&client, cpu_ms).await?;
        counted.report(args, if vacuumed { "after VACUUM" } else { "as registered" }, report);
    }

    let bytes = bytes(server, &fleet, args).await?;
    let what = "d: bytes that a pod receives per reconcile";
    report.row(what, bytes.reconciles, format!("{:.0} B", bytes.each), "", None);
    report.note(format!(
        "d: the report interval is {every:?} here, for {} intervals; bytes by a proxy before the pool of a fourth pod, less \
         {:.0} B a second before it uses the registry",
        args.intervals, bytes.before
    ));
    fleet.stop().await
}

/// What was counted while the pods were idle.
struct Counted {
    /// Calls, and milliseconds of execution and planning, of each statement that names a table of the registry.
    statements: Vec<(String, i64, f64)>,
    reconciles: i64,
    reconcile_ms: f64,
    /// Milliseconds of processor time of the backends of the pools.
    cpu_ms: f64,
    /// Statements of the monitor.
    monitor: i64,
}

impl Counted {
    async fn read(client: &Client, cpu_ms: f64) -> Result<Self> {
        let sql = format!(
            "SELECT s.query, s.calls, (s.total_exec_time + s.total_plan_time)::float8 FROM pg_stat_statements s \
               JOIN pg_database d ON d.oid = s.dbid \
              WHERE d.datname = '{DATABASE}' AND s.toplevel AND s.query LIKE '%studio_worker%' \
                AND s.query NOT LIKE '%studio_pod_sessions%' ORDER BY 2 DESC"
        );
        let rows = client.query(&sql, &[]).await?;
        let mut counted = Self { statements: Vec::new(), reconciles: 0, reconcile_ms: 0.0, cpu_ms, monitor: 0 };
        for row in rows {
            let (query, calls, ms): (&str, i64, f64) = (row.get(0), row.get(1), row.get(2));
            if query.contains(RECONCILES) {
                counted.reconciles += calls;
                counted.reconcile_ms += ms;
            } else if MONITORS.iter().any(|part| query.contains(part)) {
                counted.monitor += calls;
            }
            counted.statements.push((beginning(query), calls, ms));
        }
        Ok(counted)
    }

    fn report(&self, args: &Args, when: &str, report: &mut Report) {
        let all: i64 = self.statements.iter().map(|(_, calls, _)| calls).sum();
        let n = usize::try_from(self.reconciles).unwrap_or_default();
        let each = |count: i64| count as f64 / self.reconciles as f64;
        let expected = f64::from(args.intervals) * 3.0;
        report.row(
            &format!("d: statements per reconcile and pod, {when}"),
            n,
            format!("{:.2}", each(all)),
            "1",
            Some(("1, and the monitor's".to_owned(), all - self.monitor <= self.reconciles)),
        );
        let ms = self.reconcile_ms / self.reconciles as f64;
        report.row(&format!("d: the server's time for a reconcile, {when}"), n, format!("{ms:.2} ms"), "", None);
        let cpu = self.cpu_ms / self.reconciles as f64;
        report.row(&format!("d: its processor time, {when}"), n, format!("{cpu:.2} ms"), "", None);
        report.note(format!(
            "d: {} reconciles of 3 pods, about {expected:.0} expected; time by pg_stat_statements, execution and planning; \
             processor time by /proc/PID/schedstat of the pools' backends; the statements, {when}:",
            self.reconciles
        ));
        for (query, calls, ms) in &self.statements {
            report.note(format!("   {calls:5} calls, {:8.3} ms each: {query}", ms / *calls as f64));
        }
    }
}

/// Milliseconds of processor time that the backends of the pods' pools have had.
async fn processor_time(client: &Client) -> Result<f64> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{DATABASE}' AND application_name LIKE 'podlock/%/pool'"
    );
    let mut all = 0.0;
    for row in client.query(&sql, &[]).await? {
        let pid: i32 = row.get(0);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
        all += stat.split(' ').next().ok_or("an empty schedstat")?.parse::<f64>()? / 1e6;
    }
    Ok(all)
}

fn beginning(sql: &str) -> String {
    let statement = sql.split_whitespace().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    statement.chars().take(84).collect()
}

struct Bytes {
    each: f64,
    /// A second, before the registry is used.
    before: f64,
    reconciles: usize,
}

async fn bytes(server: &Server, fleet: &Fleet, args: &Args) -> Result<Bytes> {
    let every = args.report_interval;
    let time = every * args.intervals;
    let proxy = Proxy::start(server.port()).await?;
    let url = server.url(DATABASE).replace(&format!(":{}", server.port()), &format!(":{}", proxy.port));
    let member = Member::start(&url, "d", Some(every)).await?;
    tokio::time::sleep(every).await;
    let from = proxy.received();
    tokio::time::sleep(time).await;
    let before = (proxy.received() - from) as f64 / time.as_secs_f64();

    member.pod.workers().register(NewWorker::new("http://127.0.0.1:2"))?;
    shows(&member.pod, fleet.ids.len() + 1).await?;
    tokio::time::sleep(every + Duration::from_secs(2)).await;
    let client = connect(&server.url(DATABASE)).await?;
    let (from, reports) = (proxy.received(), reports(&client, &member).await?);
    tokio::time::sleep(time).await;
    let received = (proxy.received() - from) as f64 - before * time.as_secs_f64();
    let reconciles = self::reports(&client, &member).await? - reports;
    member.stop().await?;
    Ok(Bytes { each: received / reconciles as f64, before, reconciles: usize::try_from(reconciles)? })
}

/// How often a pod has reported. It does so with each reconcile.
async fn reports(client: &Client, member: &Member) -> Result<i64> {
    let sql = "SELECT report FROM studio_worker_pods WHERE incarnation = $1";
    Ok(client.query_one(sql, &[&member.pod.incarnation().as_uuid()]).await?.get(0))
}
