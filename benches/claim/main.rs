//! `make bench-claim`: how long four survivors take to claim what one dead pod leaves, beside a floor that is taken in
//! the same run: the same writes, made by hand in the same batches over as many connections.
//!
//! It prints a table and says whether the goal is met. It asserts nothing, and writes nothing but to a private server
//! that is gone afterwards.

mod by_hand;
mod survivors;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use comfy_table::{Table, presets};
use podlock::throwaway::Server;
use tokio_postgres::{Client, NoTls};

/// Whatever goes wrong ends the run.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// At least this many times as fast as by hand.
const GOAL: f64 = 0.9;
/// What a pod claims in one statement, and so what is claimed by hand.
pub(crate) const BATCH: i64 = 500;
/// How long anything may take that is waited for: far more than it ever takes.
pub(crate) const SOON: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Parser)]
#[command(name = "bench-claim", about = "How fast survivors claim the runs of a dead pod, beside bare SQL")]
struct Args {
    /// How many runs the dead pod leaves
    #[arg(long, default_value_t = 10_000)]
    orphans: i64,
    /// How many pods claim them, and over how many connections they are claimed by hand
    #[arg(long, default_value_t = 4)]
    survivors: usize,
    /// How often each is measured, in turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Also print which statements the server's time went to. Counting them makes both a little slower
    #[arg(long)]
    statements: bool,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is measured without --bench: `make bench-claim` passes it");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(args))
}

async fn measure(args: Args) -> Result<()> {
    let mut server = Server::builder().setting("max_connections", "200");
    if args.statements {
        server = server.setting("shared_preload_libraries", "pg_stat_statements");
        server = server.setting("pg_stat_statements.track", "top").setting("pg_stat_statements.track_planning", "on");
    }
    let server = server.start()?;
    let admin = connect(&server.url("postgres")).await?;
    if args.statements {
        admin.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    }
    let (mut by_hand, mut by_pods, mut spread) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        for pods in [false, true] {
            let name = format!("round_{round}_{pods}");
            admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
            let url = server.url(&name);
            if pods {
                let (took, owned) = survivors::claim(&url, args.survivors, args.orphans).await?;
                by_pods.push(took);
                spread.extend(owned);
            } else {
                by_hand.push(by_hand::claim(&url, args.survivors, args.orphans).await?);
            }
        }
    }
    report(&args, &mut by_hand, &mut by_pods, &spread)?;
    if args.statements {
        say_statements(&admin, &args).await?;
    }
    Ok(())
}

fn report(args: &Args, by_hand: &mut [Duration], by_pods: &mut [Duration], spread: &[i64]) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "\n{} orphans of one dead pod, {} survivors, {} rounds; load {}",
        args.orphans,
        args.survivors,
        args.rounds,
        load.split(' ').next().unwrap_or("?")
    );
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(["", "min", "median", "max", "runs a second"]);
    let mut medians = Vec::new();
    for (what, times) in [("by hand", by_hand), ("by pods, until each handler has begun", by_pods)] {
        times.sort_unstable();
        let (Some(min), Some(median), Some(max)) = (times.first(), times.get(times.len() / 2), times.last()) else {
            return Err("no round was made".into());
        };
        let ms = |time: &Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        let rate = args.orphans as f64 / median.as_secs_f64();
        table.add_row([what.to_owned(), ms(min), ms(median), ms(max), format!("{rate:.0}")]);
        medians.push(median.as_secs_f64());
    }
    println!("{table}");
    let ratio = medians[0] / medians[1];
    let met = if ratio >= GOAL { "met" } else { "MISSED" };
    println!("\n{ratio:.2} times as fast as by hand; goal at least {GOAL}: {met}");
    let (least, most) = (spread.iter().min().unwrap_or(&0), spread.iter().max().unwrap_or(&0));
    println!("a survivor had {least} to {most} of them in the end");
    Ok(())
}

/// The server's time per run for each statement, in the databases of either way.
async fn say_statements(admin: &Client, args: &Args) -> Result<()> {
    let sql = "SELECT d.datname LIKE '%true', s.query, sum(s.calls)::int8, sum(s.rows)::int8,
                      sum(s.total_exec_time), sum(s.total_plan_time)
                 FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
                WHERE d.datname LIKE 'round%' AND s.query NOT ILIKE 'BEGIN;%INSERT INTO studio_pod_sessions%'
                GROUP BY 1, 2 ORDER BY 1, 5 DESC";
    let runs = args.orphans as f64 * args.rounds as f64;
    let mut shown = [0, 0];
    for row in admin.query(sql, &[]).await? {
        let (by_pods, text): (bool, &str) = (row.get(0), row.get(1));
        let (calls, rows, ran, planned): (i64, i64, f64, f64) = (row.get(2), row.get(3), row.get(4), row.get(5));
        shown[usize::from(by_pods)] += 1;
        if shown[usize::from(by_pods)] > 8 {
            continue;
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        println!(
            "{}: {:6.2} µs a run, {:6.2} of planning; {calls} calls, {rows} rows: {}",
            if by_pods { "by pods" } else { "by hand" },
            ran * 1e3 / runs,
            planned * 1e3 / runs,
            words.chars().take(80).collect::<String>()
        );
    }
    Ok(())
}

/// The runs of a pod that is dead and buried, and a word to all in the same transaction.
pub(crate) async fn leave_orphans(client: &Client, orphans: i64) -> Result<()> {
    client
        .batch_execute(&format!(
            "BEGIN;
             INSERT INTO studio_pod_sessions (incarnation, pod_id, ended_at, reason)
               VALUES ('00000000-0000-0000-0000-0000000000ff', 'dead', now(), 'lost');
             INSERT INTO studio_runs (run_id, kind, owner_pod, owner_incarnation, fence, attempt)
               SELECT gen_random_uuid(), 'work', 'dead', '00000000-0000-0000-0000-0000000000ff', nextval('studio_fence'),
                      1
                 FROM generate_series(1, {orphans});
             INSERT INTO studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
               SELECT run_id, 1, owner_pod, owner_incarnation, fence FROM studio_runs;
             SELECT pg_notify(studio_channel(), 'recover');
             COMMIT"
        ))
        .await?;
    Ok(())
}

/// A plain connection, whose driver ends with the runtime.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            eprintln!("bench-claim: a connection ended: {e}");
        }
    });
    Ok(client)
}
