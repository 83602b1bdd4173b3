//! The phases of a fleet's life, and what is measured of each.

use std::time::{Duration, Instant};

use podlock::throwaway::Server as Postgres;
use tokio_postgres::Client;

use crate::bystander::{Bystander, Seen};
use crate::hosts::Hosts;
use crate::server::{self, DATABASE, Rate, Reading};
use crate::{Result, connect};

/// How many pods one process has at most.
const PODS_OF_A_HOST: usize = 50;
/// How often the roster is read for a row that should go.
const POLL: Duration = Duration::from_millis(2);
/// How long the bystander is alone, for the floor of its latencies.
const ALONE: Duration = Duration::from_secs(10);
/// How many pods a rolling deployment replaces at a time.
const ROLLING: usize = 10;

/// A phase. They come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Phase {
    /// All pods start at once.
    Boot,
    /// Nothing happens.
    Idle,
    /// One pod is killed, again and again.
    Kills,
    /// A tenth of the pods is killed at once.
    Tenth,
    /// The database is restarted: `pg_ctl restart -m fast`.
    Fast,
    /// The database is restarted: `pg_ctl restart -m immediate`.
    Immediate,
    /// Every pod is replaced by one of another name, ten at a time.
    Rolling,
    /// All pods stop at once.
    Stop,
}

/// What to do.
pub(crate) struct Plan {
    pub(crate) pods: usize,
    pub(crate) lease: Duration,
    pub(crate) idle: Duration,
    pub(crate) kills: usize,
    pub(crate) patience: Duration,
    pub(crate) until: Phase,
}

/// What was measured of a phase.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) phase: Phase,
    /// How long until the phase had done what it is for. `None`: it had not when patience ended.
    pub(crate) took: Option<Duration>,
    /// How many pods lived at its end, of how many.
    pub(crate) pods: (usize, usize),
    /// What became of the rest: pods that could not start or ended by themselves, with the reason.
    pub(crate) failed: Vec<String>,
    /// How many living pods were buried so far.
    pub(crate) buried_alive: i64,
    /// How many incarnations living pods gave up so far, because they were cut off for too long.
    pub(crate) given_up: i64,
    /// How many pods lost their lock.
    pub(crate) detached: usize,
    /// From the kill to the burial, for each dead pod, in milliseconds.
    pub(crate) burials: Vec<f64>,
    /// While the phase did its work, and in the lease after that.
    pub(crate) during: Rate,
    pub(crate) after: Rate,
    pub(crate) connections: i64,
    pub(crate) bystander: Seen,
    pub(crate) dearest: Vec<(f64, i64, String)>,
}

/// All that was measured of a fleet.
pub(crate) struct Fleet {
    pub(crate) pods: usize,
    pub(crate) lease: Duration,
    pub(crate) cores: usize,
    pub(crate) server_version: String,
    /// What the bystander saw before the first pod.
    pub(crate) alone: Seen,
    pub(crate) phases: Vec<Measured>,
}

struct Stage<'a> {
    plan: &'a Plan,
    postgres: Postgres,
    /// A connection to another database, which counts.
    outside: Client,
    hosts: Hosts,
    bystander: Bystander,
    /// The process whose one pod is killed again and again, and the one with a tenth of the pods.
    single: usize,
    tenth: usize,
    /// How many pods were killed so far.
    killed: i64,
}

/// What a phase found while it did its work.
#[derive(Default)]
struct Work {
    took: Option<Duration>,
    burials: Vec<f64>,
    /// The counters when the work began, if those from before mean nothing any more: the server was restarted.
    began: Option<Reading>,
}

pub(crate) async fn measure(plan: &Plan) -> Result<Fleet> {
    // Three sessions a pod, now and then one of its pool, and as many again while former ones have not ended.
    let postgres = server::start(plan.pods * 6 + 50).await?;
    let outside = connect(&postgres.url("postgres")).await?;
    let url = postgres.url(DATABASE);
    let bystander = Bystander::start(&url).await?;
    bystander.take();
    tokio::time::sleep(ALONE).await;
    let alone = bystander.take();
    let mut hosts = Hosts::new(url, plan.lease);
    let (single, tenth) = (hosts.open()?, hosts.open()?);
    let mut stage = Stage { plan, postgres, outside, hosts, bystander, single, tenth, killed: 0 };
    let mut phases = Vec::new();
    for phase in [
        Phase::Boot,
        Phase::Idle,
        Phase::Kills,
        Phase::Tenth,
        Phase::Fast,
        Phase::Immediate,
        Phase::Rolling,
        Phase::Stop,
    ] {
        if phase > plan.until {
            break;
        }
        eprintln!("bench-fleet: {} pods: {phase:?}", plan.pods);
        let measured = stage.play(phase).await?;
        let is_over = measured.took.is_none();
        phases.push(measured);
        if is_over {
            eprintln!("bench-fleet: {} pods: {phase:?} did not end in time; the rest is left out", plan.pods);
            break;
        }
    }
    let server_version = stage.outside.query_one("SHOW server_version", &[]).await?.get(0);
    let Stage { postgres, hosts, .. } = stage;
    drop(hosts);
    tokio::task::spawn_blocking(move || drop(postgres)).await?;
    let cores = std::thread::available_parallelism()?.get();
    Ok(Fleet { pods: plan.pods, lease: plan.lease, cores, server_version, alone, phases })
}

impl Stage<'_> {
    async fn play(&mut self, phase: Phase) -> Result<Measured> {
        self.hosts.clear();
        self.bystander.take();
        server::reset(&self.outside).await?;
        let before = self.read().await?;
        let work = match phase {
            Phase::Boot => self.boot().await?,
            Phase::Idle => self.idle().await,
            Phase::Kills => self.kill_one_by_one().await?,
            Phase::Tenth => self.kill_a_tenth().await?,
            Phase::Fast => self.restart(Postgres::restart_fast).await?,
            Phase::Immediate => self.restart(Postgres::restart_immediate).await?,
            Phase::Rolling => self.replace_all().await?,
            Phase::Stop => self.stop().await?,
        };
        let before = work.began.unwrap_or(before);
        let middle = self.read().await?;
        let dearest = server::dearest(&self.outside).await?;
        tokio::time::sleep(self.plan.lease).await;
        let end = self.read().await?;
        let should_live = self.hosts.pods().len();
        let lives = self.hosts.attached();
        let mut failed: Vec<String> =
            self.hosts.refused().iter().map(|(pod, why, ms)| format!("{pod} after {ms} ms: {why}")).collect();
        let by_themselves = self.hosts.ended().iter().filter_map(|(pod, why)| Some((pod, why.as_ref()?)));
        failed.extend(by_themselves.map(|(pod, why)| format!("{pod}: {why}")));
        let (buried_alive, given_up) = self.ends().await?;
        Ok(Measured {
            phase,
            took: work.took,
            pods: (lives, should_live + self.hosts.refused().len()),
            failed,
            buried_alive,
            given_up,
            detached: self.hosts.detached(),
            burials: work.burials,
            during: Rate::between(&before, &middle),
            after: Rate::between(&middle, &end),
            connections: middle.connections,
            bystander: self.bystander.take(),
            dearest,
        })
    }

    async fn read(&self) -> Result<Reading> {
        server::read(&self.outside, &self.postgres, &self.hosts.pids()).await
    }

    async fn boot(&mut self) -> Result<Work> {
        let pods = self.plan.pods;
        let tenth = (pods / 10).max(1);
        let rest = pods.saturating_sub(tenth + 1);
        let mut rest = (0..rest).map(|i| format!("pod-{i:04}")).collect::<Vec<_>>();
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let at = rest.len().saturating_sub(PODS_OF_A_HOST);
            groups.push((self.hosts.open()?, rest.split_off(at)));
        }
        groups.push((self.single, vec!["single".to_owned()]));
        groups.push((self.tenth, (0..tenth).map(|i| format!("tenth-{i:03}")).collect()));
        let began = Instant::now();
        for (host, names) in groups {
            self.hosts.start(host, names).await?;
        }
        self.whole(began).await
    }

    /// Waits until each pod that should live holds its lock.
    async fn whole(&mut self, began: Instant) -> Result<Work> {
        let (whole, _) = self.hosts.until(self.plan.patience, Hosts::is_whole).await;
        Ok(Work { took: whole.then(|| began.elapsed()), ..Work::default() })
    }

    async fn idle(&mut self) -> Work {
        tokio::time::sleep(self.plan.idle).await;
        Work { took: Some(self.plan.idle), ..Work::default() }
    }

    async fn kill_one_by_one(&mut self) -> Result<Work> {
        let began = Instant::now();
        let mut burials = Vec::new();
        for _ in 0..self.plan.kills {
            burials.extend(self.kill(self.single).await?);
            self.single = self.hosts.open()?;
            self.hosts.start(self.single, ["single".to_owned()]).await?;
            let (whole, _) = self.hosts.until(self.plan.patience, Hosts::is_whole).await;
            if !whole {
                return Ok(Work { burials, ..Work::default() });
            }
            // Losses that are close together make pods wait: they may be one fault that all share.
            tokio::time::sleep(self.plan.lease / 5).await;
        }
        Ok(Work { took: Some(began.elapsed()), burials, began: None })
    }

    async fn kill_a_tenth(&mut self) -> Result<Work> {
        let began = Instant::now();
        let burials = self.kill(self.tenth).await?;
        self.tenth = self.hosts.open()?;
        Ok(Work { took: Some(began.elapsed()), burials, began: None })
    }

    /// Kills a process, and waits for the burial of all its pods. Returns when each was buried, in milliseconds.
    async fn kill(&mut self, host: usize) -> Result<Vec<f64>> {
        let inside = connect(&self.postgres.url(DATABASE)).await?;
        let left =
            inside.prepare("SELECT count(*) FROM studio_pods WHERE incarnation = ANY ($1::text[]::uuid[])").await?;
        let (dead, killed) = self.hosts.kill(host).await?;
        self.killed += i64::try_from(dead.len())?;
        let mut burials = Vec::new();
        while burials.len() < dead.len() {
            if killed.elapsed() > self.plan.patience {
                return Err(
                    format!("{} of {} dead pods were not buried", dead.len() - burials.len(), dead.len()).into()
                );
            }
            let left = usize::try_from(inside.query_one(&left, &[&dead]).await?.get::<_, i64>(0))?;
            burials.resize((dead.len() - left).max(burials.len()), killed.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(POLL).await;
        }
        Ok(burials)
    }

    async fn restart(
        &mut self,
        restart: fn(&Postgres) -> Result<(), podlock::throwaway::ThrowawayError>,
    ) -> Result<Work> {
        let all = self.hosts.pods().len();
        tokio::task::block_in_place(|| restart(&self.postgres))?;
        // The time counts from when the server accepts connections again.
        let began = Instant::now();
        self.outside = connect(&self.postgres.url("postgres")).await?;
        server::reset(&self.outside).await?;
        let reading = self.read().await?;
        // Each pod says that it lost its lock before it says that it has it again.
        let patience = self.plan.patience;
        let _ = self.hosts.until(patience, |hosts| hosts.detached() >= all).await;
        Ok(Work { began: Some(reading), ..self.whole(began).await? })
    }

    async fn replace_all(&mut self) -> Result<Work> {
        let began = Instant::now();
        let old: Vec<String> = self.hosts.pods().into_iter().collect();
        let host = self.hosts.open()?;
        for (number, group) in old.chunks(ROLLING).enumerate() {
            let names: Vec<String> = (0..group.len()).map(|i| format!("new-{number:03}-{i}")).collect();
            self.hosts.start(host, names).await?;
            let (whole, _) = self.hosts.until(self.plan.patience, Hosts::is_whole).await;
            if !whole {
                return Ok(Work::default());
            }
            self.hosts.stop(group).await?;
            let stopped = |hosts: &Hosts| hosts.ended().len() >= (number * ROLLING) + group.len();
            if !self.hosts.until(self.plan.patience, stopped).await.0 {
                return Ok(Work::default());
            }
        }
        Ok(Work { took: Some(began.elapsed()), ..Work::default() })
    }

    async fn stop(&mut self) -> Result<Work> {
        let began = Instant::now();
        let pods: Vec<String> = self.hosts.pods().into_iter().collect();
        self.hosts.stop(&pods).await?;
        let (done, _) = self.hosts.until(self.plan.patience, |hosts| hosts.ended().len() >= pods.len()).await;
        Ok(Work { took: done.then(|| began.elapsed()), ..Work::default() })
    }

    /// How many burials the log has whose pods were neither killed nor draining, and how many incarnations were given
    /// up by pods that live.
    async fn ends(&self) -> Result<(i64, i64)> {
        let inside = connect(&self.postgres.url(DATABASE)).await?;
        let row = inside
            .query_one(
                "SELECT (SELECT count(*) FROM studio_pod_events e \
                          WHERE e.kind = 'buried' AND e.detail->>'reason' <> 'shutdown'), \
                        (SELECT count(*) FROM studio_pod_sessions s WHERE s.reason IN ('detached', 'replaced'))",
                &[],
            )
            .await?;
        Ok((row.get::<_, i64>(0) - self.killed, row.get(1)))
    }
}
