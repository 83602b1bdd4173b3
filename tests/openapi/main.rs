//! A property-based tester of HTTP interfaces, schemathesis, tries `podlock serve` by its OpenAPI document: with what the
//! document allows, and with what it does not.
//!
//! This program is its own test runner, because schemathesis comes from PyPI (`scripts/ensure-schemathesis.sh`). If it is
//! missing, the test is skipped with the reason, and counted. Where the variable `CI` is set, it fails instead.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/inherited.rs"]
mod inherited;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use podlock::throwaway::Server;

const PODLOCK: &str = env!("CARGO_BIN_EXE_podlock");
const KEY: &str = "correct-horse-battery";
/// What schemathesis makes its requests from, unless `OPENAPI_SEED` gives another seed.
const SEED: &str = "20260301";
/// Requests of each kind for each route. With these, all takes about 20 seconds.
const EXAMPLES: &str = "30";
/// How long schemathesis may take. More is a hang: it gives up on each request after a few seconds.
const MOST: Duration = Duration::from_secs(240);

/// Pods with each kind of row. schemathesis finds their names in the answers of one route, and asks others for them.
const HISTORY: &str = "
CREATE TABLE samples_of_march PARTITION OF studio_pod_heartbeats
    FOR VALUES FROM ('2026-03-01 00:00Z') TO ('2026-04-01 00:00Z');
INSERT INTO studio_pod_heartbeats
    (pod_id, incarnation, number, sampled_at, status, health, cpu_usage, running_runs, gauges, details)
    SELECT '0', '00000000-0000-0000-0000-000000000001', n, timestamptz '2026-03-02 12:00Z' + n * interval '10 s',
           'active', 'fair', 0.5, 3, '{\"gpu\": 1}', CASE WHEN n % 2 = 0 THEN jsonb '[1, \"a\"]' END
      FROM generate_series(1, 30) AS n;
INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, cause, buried_by, exit_code)
    SELECT gen_random_uuid(), '0', timestamptz '2026-03-01 00:00Z' + n * interval '1 h',
           timestamptz '2026-03-01 00:30Z' + n * interval '1 h', 'lost', 'closed', '1', 137
      FROM generate_series(1, 20) AS n;
INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at) VALUES (gen_random_uuid(), 'no features', now());
INSERT INTO studio_pod_reliability
    (pod_id, window_days, uptime_pct, sessions_count, mtbf_seconds, p_stays_4h, hourly_availability, disconnect_reasons,
     last_disconnect_at, score)
    SELECT n::text, 14, nullif(n, 3), n, n * 1000, n / 20.0, '[[0.5, null]]', '{\"lost\": 2}', now(), n / 20.0
      FROM generate_series(0, 20) AS n;
";

fn main() -> ExitCode {
    inherited::reset();
    let arguments = Arguments::from_args();
    let trial = Trial::ignorable_test("schemathesis_finds_nothing_by_the_openapi_document", schemathesis);
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

/// An OpenAPI document that a property-based API tester (schemathesis from PyPI) passes.
fn schemathesis() -> Result<Completion, Failed> {
    let program = program();
    if !program.is_file() {
        let missing = format!("no {}: scripts/ensure-schemathesis.sh installs it from PyPI", program.display());
        let needed = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        return if needed { Err(missing.into()) } else { Ok(Completion::ignored_with(missing)) };
    }
    let server = inherited::postgres().start().expect("PostgreSQL starts");
    let database = prepare(&server);
    let (_serve, url) = serve(&database);

    let seed = std::env::var("OPENAPI_SEED").unwrap_or_else(|_| SEED.to_owned());
    println!("seed {seed}: OPENAPI_SEED gives another");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(&program);
    inherited::clean(&mut command);
    command.current_dir(folder.path()).env("NO_PROXY", "127.0.0.1").env("PYTHONUNBUFFERED", "1");
    command.args(["run", &format!("{url}/v1/openapi.json"), "-H", &format!("Authorization: Bearer {KEY}")]);
    command.args(["--seed", &seed, "--max-examples", EXAMPLES, "--generation-database", "none", "--no-color"]);
    // A document cannot say that one parameter must not be before another, so some of what it allows is refused.
    command.args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"]);
    let done = output(command);
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    println!("{said}");
    if !done.status.success() || !said.contains("No issues found") || !said.contains("Tested: 5") {
        return Err(format!("schemathesis ended with {}; seed {seed}:\n{said}", done.status).into());
    }
    Ok(Completion::Completed)
}

/// Where the script puts schemathesis: beside what cargo builds, under the version that the script names.
fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ensure-schemathesis.sh");
    let script = std::fs::read_to_string(script).expect("the script");
    let version = script.lines().find_map(|line| line.strip_prefix("version=")).expect("the version");
    let target = Path::new(PODLOCK).ancestors().nth(2).expect("the target folder");
    target.join("tools").join(format!("schemathesis-{version}")).join("bin/schemathesis")
}

/// A database with podlock's tables and a history.
fn prepare(server: &Server) -> String {
    let url = server.url("postgres");
    let mut migrate = Command::new(PODLOCK);
    inherited::clean(&mut migrate);
    let done = output({
        migrate.args(["migrate", "up"]).env("DATABASE_URL", &url);
        migrate
    });
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute(HISTORY).await.expect("the history");
        connection.abort();
    });
    url
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `podlock serve`, and returns its address once it listens.
fn serve(database: &str) -> (Running, String) {
    let mut command = Command::new(PODLOCK);
    inherited::clean(&mut command);
    command.args(["serve", "--listen", "127.0.0.1:0"]).env("DATABASE_URL", database).env("PODLOCK_ADMIN_KEY", KEY);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("podlock serve");
    let out = child.stdout.take().expect("its output");
    let running = Running(child);
    let line = BufReader::new(out).lines().next().expect("a line").expect("a line");
    let url = line.rsplit(' ').next().expect("an address").to_owned();
    (running, url)
}

/// Runs a command to its end, which must come.
fn output(mut command: Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let (out, err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let (out, err) = (std::thread::spawn(|| read(out)), std::thread::spawn(|| read(err)));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("its status") {
            break status;
        }
        if began.elapsed() > MOST {
            child.kill().expect("it is killed");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Output { status, stdout: out.join().expect("its output"), stderr: err.join().expect("its errors") }
}

fn read(mut from: impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("a pipe");
    bytes
}
