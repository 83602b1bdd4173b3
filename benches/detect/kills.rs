//! The kills: of pods, and in between of the floor's, so that whatever else the machine does meets both.
//!
//! Four pods stand in the ring as anchor → first → second → far, each watching the next, and the last the anchor.
//! Anchor and far live throughout, and so are settled. In turn *first* is killed, whose neighbour (the one that watches
//! it) is the settled anchor, and *second*, whose neighbour is *first*, only just started again: it may bury nobody
//! and has to tell the others.

use std::time::{Duration, Instant};

use podlock::throwaway::Server as Postgres;
use podlock::{Config, Incarnation};
use rustix::process::Pid;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::busy::Busy;
use crate::observer::{Observer, Row};
use crate::process::{Ear, News, Process, Says};
use crate::ring::Server;
use crate::{Result, connect, floor};

const NAMES: [&str; 4] = ["pod-a", "pod-b", "pod-c", "pod-d"];
const FIRST: usize = 1;
const SECOND: usize = 2;
/// How far from the moment of settling a neighbour must be to be counted on one side of it.
const MARGIN: Duration = Duration::from_millis(700);
/// Kills come at any moment within this, so that they do not keep step with anything.
const JITTER_MS: u64 = 150;

pub(crate) struct Plan {
    pub(crate) kills: usize,
    pub(crate) lease: Duration,
    pub(crate) runs: usize,
    pub(crate) busy: Busy,
}

/// All that was measured, in milliseconds from just before the SIGKILL.
pub(crate) struct Measured {
    pub(crate) facts: Facts,
    pub(crate) floor: Vec<f64>,
    pub(crate) settled: Vec<Kill>,
    pub(crate) unsettled: Vec<Kill>,
}

pub(crate) struct Kill {
    /// The row is gone for another connection.
    pub(crate) buried: f64,
    /// The first line of the handler on a survivor: of the first of its runs, and of the last.
    pub(crate) executing: f64,
    pub(crate) all_executing: f64,
    /// Who buried it: the neighbour that watched it or another, and whether by push or by a sweep.
    pub(crate) by: String,
}

pub(crate) struct Facts {
    pub(crate) cores: usize,
    pub(crate) load: (String, String),
    pub(crate) server_version: String,
    pub(crate) synchronous_commit: String,
    pub(crate) fsync: String,
    pub(crate) lease: Duration,
    pub(crate) runs: usize,
    /// How many notices other clients sent in a second.
    pub(crate) foreign_notices: f64,
}

pub(crate) async fn measure(plan: &Plan) -> Result<Measured> {
    let load_before = load()?;
    let server = plan.busy.suits(Postgres::builder());
    let postgres = tokio::task::spawn_blocking(|| server.start()).await??;
    let mut bench = Bench::set_up(postgres.url("postgres"), plan).await?;
    let others = plan.busy.begin(&postgres.url("postgres"));
    let mut measured = Measured {
        facts: facts(bench.server.client(), plan, load_before).await?,
        floor: Vec::new(),
        settled: Vec::new(),
        unsettled: Vec::new(),
    };
    let (unsettled, settled) = (plan.kills / 2, plan.kills - plan.kills / 2);
    let began = Instant::now();
    while measured.settled.len() < settled || measured.unsettled.len() < unsettled {
        for slot in [FIRST, SECOND] {
            bench.wait_until_whole().await?;
            measured.floor.push(bench.kill_for_the_floor().await?);
            let age = bench.pods[slot - 1].since.elapsed();
            let kill = bench.kill_pod(slot).await?;
            let settle = bench.settle;
            if slot == FIRST && age > settle + MARGIN && measured.settled.len() < settled {
                measured.settled.push(kill);
            } else if slot == SECOND && age + MARGIN < settle && measured.unsettled.len() < unsettled {
                measured.unsettled.push(kill);
            }
        }
        if began.elapsed() > Duration::from_secs(30) * u32::try_from(plan.kills)?.max(10) {
            return Err("the kills take far too long: the machine is too slow to keep a neighbour unsettled".into());
        }
        eprint!("\r{} of {} kills ", measured.settled.len() + measured.unsettled.len(), plan.kills);
    }
    eprintln!();
    measured.facts.load.1 = load()?;
    measured.facts.foreign_notices = others.end()?;
    bench.end().await?;
    tokio::task::spawn_blocking(move || drop(postgres)).await?;
    Ok(measured)
}

/// A pod's process as it stands.
struct Member {
    process: Process,
    incarnation: Incarnation,
    /// When it was known to be registered.
    since: Instant,
    runs: usize,
}

struct Bench {
    url: String,
    lease: Duration,
    settle: Duration,
    runs: usize,
    server: Server,
    observer: Observer,
    ear: Ear,
    ring: Vec<(String, i64)>,
    pods: Vec<Member>,
    waiter: Process,
    alone: Member,
    /// The lock of the floor's pod, and the row that is deleted next.
    floor: (i64, i64),
    last_kill: Instant,
}

impl Bench {
    async fn set_up(url: String, plan: &Plan) -> Result<Self> {
        let config = Config::new(&url).lease(plan.lease);
        podlock::migrate::up(&config).await?;
        podlock::migrate::up(&config.clone().schema(floor::POD_SCHEMA)).await?;
        let server = Server::new(connect(&url).await?).await?;
        server.client().batch_execute(floor::SCHEMA).await?;
        let observer = Observer::start(url.clone())?;
        let ring = server.in_ring_order(&NAMES).await?;
        let mut ear = Ear::new();
        let mut pods = Vec::new();
        for (slot, (name, _)) in ring.iter().enumerate() {
            let runs = if slot == FIRST || slot == SECOND { plan.runs } else { 0 };
            pods.push(start_pod(&url, name, "public", plan.lease, runs, &mut ear).await?);
        }
        let waiter = Process::start(&["waiter"], &url, &ear)?;
        ready(&mut ear, &waiter).await?;
        let floor = (server.floor_key().await?, 1);
        let alone = start_alone(&url, plan.lease, plan.runs, &mut ear).await?;
        let settle = config.validate()?.settle;
        tokio::time::sleep(settle + MARGIN + Duration::from_secs(1)).await;
        let (lease, runs, last_kill) = (plan.lease, plan.runs, Instant::now());
        Ok(Self { url, lease, settle, runs, server, observer, ear, ring, pods, waiter, alone, floor, last_kill })
    }

    /// Every pod watches the next, and the last loss is out of the window in which another would be looked at twice.
    async fn wait_until_whole(&self) -> Result<()> {
        self.server.closed_ring(&self.ring).await?;
        tokio::time::sleep((self.lease / 5).saturating_sub(self.last_kill.elapsed())).await;
        Ok(())
    }

    async fn kill_for_the_floor(&mut self) -> Result<f64> {
        let (lock, row) = self.floor;
        self.server.client().execute("INSERT INTO floor VALUES ($1)", &[&row]).await?;
        self.waiter.tell(&format!("{lock} {row}")).await?;
        self.server.somebody_waits(lock).await?;
        jitter().await;
        let gone = self.observer.watch(Row::Floor(row)).await?;
        let killed = self.alone.process.kill()?;
        let gone = gone.await?.ms_since(killed);
        self.floor.1 += 1;
        let next = start_alone(&self.url, self.lease, self.runs, &mut self.ear).await?;
        std::mem::replace(&mut self.alone, next).process.reap().await?;
        Ok(gone)
    }

    async fn kill_pod(&mut self, slot: usize) -> Result<Kill> {
        let (name, _) = self.ring[slot].clone();
        let incarnation = self.pods[slot].incarnation;
        jitter().await;
        self.server.closed_ring(&self.ring).await?;
        self.ear.clear();
        let gone = self.observer.watch(Row::Pod(incarnation)).await?;
        let killed = self.pods[slot].process.kill()?;
        self.last_kill = Instant::now();
        let mut begun = Vec::new();
        while begun.len() < self.runs {
            let News { from, says } = self.ear.next("the killed pod's runs to begin elsewhere").await?;
            match says {
                Says::Begun { at, attempt: 2, .. } if self.is_neighbour(slot, from) => {
                    begun.push(at.ms_since(killed));
                }
                Says::Begun { .. } | Says::Ready { .. } => {}
            }
        }
        begun.sort_by(f64::total_cmp);
        let kill = Kill {
            buried: gone.await?.ms_since(killed),
            executing: begun.first().copied().unwrap_or(f64::NAN),
            all_executing: begun.last().copied().unwrap_or(f64::NAN),
            by: self.buried_by(incarnation, &self.ring[slot - 1].0).await?,
        };
        let again = start_pod(&self.url, &name, "public", self.lease, self.pods[slot].runs, &mut self.ear).await?;
        std::mem::replace(&mut self.pods[slot], again).process.reap().await?;
        Ok(kill)
    }

    /// Whether it is one of the killed pod's neighbours that speaks.
    fn is_neighbour(&self, killed: usize, from: Pid) -> bool {
        self.pods.iter().enumerate().any(|(slot, pod)| slot != killed && pod.process.pid == from)
    }

    async fn buried_by(&self, incarnation: Incarnation, neighbour: &str) -> Result<String> {
        const SQL: &str = "SELECT by_pod, detail->>'trigger' FROM studio_pod_events \
             WHERE kind = 'buried' AND incarnation = $1";
        let row = self.server.client().query_one(SQL, &[&incarnation.to_string().parse::<Uuid>()?]).await?;
        let who = if row.get::<_, &str>(0) == neighbour { "its neighbour" } else { "another" };
        Ok(format!("by {who}, by {}", row.get::<_, &str>(1)))
    }

    async fn end(self) -> Result<()> {
        let processes = self.pods.into_iter().map(|p| p.process).chain([self.waiter, self.alone.process]);
        for process in processes {
            process.kill()?;
            process.reap().await?;
        }
        Ok(())
    }
}

async fn start_pod(url: &str, name: &str, schema: &str, lease: Duration, runs: usize, ear: &mut Ear) -> Result<Member> {
    let (lease, count) = (humantime::format_duration(lease).to_string(), runs.to_string());
    let args = ["pod", "--name", name, "--schema", schema, "--lease", &lease, "--runs", &count];
    let process = Process::start(&args, url, ear)?;
    let incarnation = ready(ear, &process).await?.ok_or("a pod has no incarnation")?;
    Ok(Member { process, incarnation, since: Instant::now(), runs })
}

/// The floor's pod.
async fn start_alone(url: &str, lease: Duration, runs: usize, ear: &mut Ear) -> Result<Member> {
    start_pod(url, floor::POD, floor::POD_SCHEMA, lease, runs, ear).await
}

/// Waits until a process is ready.
pub(crate) async fn ready(ear: &mut Ear, process: &Process) -> Result<Option<Incarnation>> {
    loop {
        match ear.next("a process to be ready").await? {
            News { from, says: Says::Ready { incarnation } } if from == process.pid => return Ok(incarnation),
            _ => {}
        }
    }
}

async fn jitter() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..JITTER_MS))).await;
}

async fn facts(client: &Client, plan: &Plan, load_before: String) -> Result<Facts> {
    let mut shown = Vec::new();
    for setting in ["server_version", "synchronous_commit", "fsync"] {
        shown.push(client.query_one(&format!("SHOW {setting}"), &[]).await?.get::<_, String>(0));
    }
    let [server_version, synchronous_commit, fsync] = <[String; 3]>::try_from(shown).map_err(|_| "three settings")?;
    Ok(Facts {
        cores: std::thread::available_parallelism()?.get(),
        load: (load_before, String::new()),
        server_version,
        synchronous_commit,
        fsync,
        foreign_notices: 0.0,
        lease: plan.lease,
        runs: plan.runs,
    })
}

/// The machine's load average over the last minute.
fn load() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/loadavg")?.split_whitespace().next().unwrap_or("?").to_owned())
}
