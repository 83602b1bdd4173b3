//! Random faults, several at a time, from a seed and for a given time. The seed decides which faults come. It does not
//! decide how long each takes, so what a fault meets differs from run to run. A seed that found a bug is kept, and the
//! bug has a test of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use podlock::throwaway::Server;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::checker::Excused;
use crate::network::Weather;
use crate::pod::{Input, Order};
use crate::scenario::{Need, Scenario};
use crate::workers::Workers;
use crate::world::{Figure, START, World, connect};

/// The workers of each pod. They change so rarely that replicas also sleep, and need the notifications.
const WORKERS: Workers = Workers { count: 20, changes: Duration::from_secs(5) };

/// Played by every run of the suite; those that once found something stay.
const KEPT: [u64; 2] = [1, 2];
const KEPT_FOR: Duration = Duration::from_secs(25);

const PROMISE: &str = "Faults at random, several at a time, on pods, network and server: every law holds.";

/// These suffer everything.
const VICTIMS: [&str; 2] = ["a", "b"];
/// Only its network fails: it must always have told its runs to stop before another begins them.
const REMOTE: &str = "c";
/// Nothing happens to it but what happens to the database: it must keep its registration to the end.
const SPARED: &str = "d";

const NEEDS: &[Need] = &[Need::Root, Need::Tun, Need::Ss];

pub(crate) fn scenarios() -> Vec<Scenario> {
    let names = ["nemesis::kept_seed_1", "nemesis::kept_seed_2"];
    let kept = names.into_iter().zip(KEPT);
    kept.map(|(name, seed)| Scenario::new(name, NEEDS, move || play(seed, KEPT_FOR)).promises(PROMISE)).collect()
}

/// For `make chaos`.
pub(crate) fn of(seed: u64, time: Duration) -> Scenario {
    Scenario::new("nemesis::as_asked", NEEDS, move || play(seed, time)).lasting(time)
}

/// What is done, and later undone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Kill,
    Terminate,
    Freeze,
    Block,
    Cut { to_server: bool, to_pod: bool },
    Storm,
    EndSessions { roles: &'static [&'static str] },
    Reset,
    FastRestart,
    ImmediateRestart,
    KillPostmaster,
    KillBackend,
    Pause,
    LockRuns,
}

/// What is to be done at a time.
enum Due {
    Start(String),
    Thaw(String),
    Mend(String),
    Resume,
}

const OF_A_VICTIM: [Fault; 12] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Terminate,
    Fault::Freeze,
    Fault::Block,
    Fault::Cut { to_server: true, to_pod: true },
    Fault::Storm,
    Fault::EndSessions { roles: &["liveness"] },
    Fault::EndSessions { roles: &["control"] },
    Fault::EndSessions { roles: &["watch", "pool"] },
    Fault::EndSessions { roles: &["liveness", "control", "watch", "pool"] },
    Fault::Reset,
];
const OF_THE_REMOTE: [Fault; 4] = [
    Fault::Cut { to_server: true, to_pod: true },
    Fault::Cut { to_server: true, to_pod: false },
    Fault::Cut { to_server: false, to_pod: true },
    Fault::Storm,
];
const OF_THE_SERVER: [Fault; 6] = [
    Fault::FastRestart,
    Fault::ImmediateRestart,
    Fault::KillPostmaster,
    Fault::KillBackend,
    Fault::Pause,
    Fault::LockRuns,
];

struct Nemesis {
    world: World,
    random: Rng,
    began: Instant,
    due: Vec<(Instant, Due)>,
    /// Pods that something is being done to.
    busy: BTreeSet<String>,
    /// Before this the server is left alone: outages that follow one another at once are one long outage.
    server_rests: Instant,
    /// Whether the database was away for longer than disturbs no run, as on a machine with much to do.
    long_outage: bool,
    paused: Option<Instant>,
    faults: u32,
}

async fn play(seed: u64, time: Duration) -> Vec<Figure> {
    let mut world = World::networked(&[]).await;
    world.workers = Some(WORKERS);
    let all: Vec<&str> = VICTIMS.into_iter().chain([REMOTE, SPARED]).collect();
    world.settled(&all).await;
    let began = Instant::now();
    println!("nemesis: seed {seed}, {} s", time.as_secs());
    let mut nemesis = Nemesis {
        world,
        random: Rng::with_seed(seed),
        began,
        due: Vec::new(),
        busy: BTreeSet::new(),
        server_rests: began,
        long_outage: false,
        paused: None,
        faults: 0,
    };
    let mut next_fault = began;
    let mut next_load = began;
    while began.elapsed() < time {
        nemesis.settle_what_is_due().await;
        if Instant::now() >= next_load {
            nemesis.load().await;
            next_load = Instant::now() + nemesis.between(100, 600);
        }
        if Instant::now() >= next_fault {
            nemesis.strike().await;
            next_fault = Instant::now() + nemesis.between(300, 4000);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while !nemesis.due.is_empty() {
        nemesis.settle_what_is_due().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Nemesis { world, faults, long_outage, .. } = nemesis;
    world.all_runs_ended(Duration::from_secs(120)).await;
    let sums = "SELECT (SELECT count(*) FROM studio_runs), (SELECT count(*) FROM studio_run_attempts \
                WHERE attempt > 1), (SELECT count(*) FROM chaos.history)";
    let row = world.admin.query_one(sums, &[]).await.expect("sums");
    let (runs, takeovers, writes): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    println!("nemesis: seed {seed}: {faults} faults, {runs} runs, {takeovers} taken over, {writes} rows written");
    let mut harmed: Vec<&str> = VICTIMS.to_vec();
    let frozen = harmed.clone();
    harmed.push(REMOTE);
    if long_outage {
        println!("nemesis: the database was away for long: even pod {SPARED} may have given up");
        harmed.push(SPARED);
    }
    world.conclude(&Excused::ended(&harmed).overlap(&frozen)).await
}

impl Nemesis {
    fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(self.random.u64(least_ms..=most_ms))
    }

    fn lease_times(&mut self, least: f64, most: f64) -> Duration {
        self.world.lease.mul_f64(least + self.random.f64() * (most - least))
    }

    fn later(&mut self, after: Duration, what: Due) {
        self.due.push((Instant::now() + after, what));
    }

    async fn settle_what_is_due(&mut self) {
        let now = Instant::now();
        while let Some(at) = self.due.iter().position(|(when, _)| *when <= now) {
            match self.due.swap_remove(at).1 {
                Due::Start(pod) => {
                    let command = self.world.command(&pod);
                    self.world.spawn(&pod, command);
                    self.busy.remove(&pod);
                }
                Due::Thaw(pod) => {
                    self.world.process(&pod).thaw();
                    self.busy.remove(&pod);
                }
                Due::Mend(pod) => {
                    self.world.links[&pod].mend();
                    self.busy.remove(&pod);
                }
                Due::Resume => {
                    self.world.server.suffers(Server::resume).await;
                    let began = self.paused.take();
                    self.note_outage(began);
                    self.server_rests = Instant::now() + self.world.lease;
                }
            }
        }
    }

    /// A user asks one of the pods for something.
    async fn load(&mut self) {
        let names: Vec<String> = self.world.pods.keys().cloned().collect();
        let Some(pod) = self.random.choice(names) else { return };
        let input = Input { steps: self.random.u64(5..60), pause_ms: self.random.u64(5..40) };
        let count = self.random.u32(1..=3);
        let order = if self.random.bool() { Order::Start { count, input } } else { Order::Submit { count, input } };
        if self.world.process(&pod).is_running() && !self.busy.contains(&pod) {
            self.world.process(&pod).order(&order).await;
        }
    }

    async fn strike(&mut self) {
        let fault = match self.random.u32(0..10) {
            0..=1 => return self.strike_the_server().await,
            2..=3 => (REMOTE, self.random.choice(OF_THE_REMOTE)),
            n => (VICTIMS[n as usize % 2], self.random.choice(OF_A_VICTIM)),
        };
        let (pod, Some(fault)) = fault else { return };
        if self.busy.contains(pod) {
            return;
        }
        let process = self.world.process(pod);
        if !process.is_running() {
            let last = process.said().last().cloned();
            // A start that meets a server that shuts down is refused. Whatever supervises the process starts it again.
            let is_refused =
                last.as_ref().is_some_and(|said| said.ev == "refused" && said.kind.as_deref() == Some("unreachable"));
            assert!(is_refused, "pod {pod} has ended by itself: {last:?}");
            let pod = pod.to_owned();
            self.tell(&format!("pod {pod}: starts again, for the server was away"));
            let command = self.world.command(&pod);
            self.world.spawn(&pod, command);
            return;
        }
        self.tell(&format!("pod {pod}: {fault:?}"));
        let pod = pod.to_owned();
        match fault {
            Fault::Kill => {
                self.world.kill(&pod).await;
                let rest = if self.random.bool() { Duration::ZERO } else { self.lease_times(0.1, 1.5) };
                self.busy.insert(pod.clone());
                self.later(rest, Due::Start(pod));
            }
            Fault::Terminate => {
                self.world.process(&pod).signal(Signal::TERM);
                assert_eq!(self.world.process(&pod).ended(START).await, 0, "pod {pod} was told to stop");
                self.busy.insert(pod.clone());
                let rest = self.lease_times(0.0, 1.0);
                self.later(rest, Due::Start(pod));
            }
            Fault::Freeze => {
                self.world.process(&pod).freeze().await;
                self.busy.insert(pod.clone());
                let rest = self.lease_times(0.1, 2.0);
                self.later(rest, Due::Thaw(pod));
            }
            Fault::Block => {
                let ms = u64::try_from(self.lease_times(0.2, 2.0).as_millis()).unwrap();
                self.world.process(&pod).order(&Order::Block { ms }).await;
            }
            Fault::Cut { to_server, to_pod } => {
                let weather = |cut| if cut { Weather::CUT } else { Weather::FAIR };
                self.world.links[&pod].weather(weather(to_server), weather(to_pod));
                self.busy.insert(pod.clone());
                let rest = self.lease_times(0.1, 2.0);
                self.later(rest, Due::Mend(pod));
            }
            Fault::Storm => {
                let delay = self.between(20, 500);
                let bad = Weather { delay, loss: self.random.f64() * 0.3 };
                self.world.links[&pod].weather(bad, bad);
                self.busy.insert(pod.clone());
                let rest = self.lease_times(0.5, 2.0);
                self.later(rest, Due::Mend(pod));
            }
            Fault::EndSessions { roles } => drop(self.world.terminate(&pod, roles).await),
            Fault::Reset => {
                let ports = self.world.ports_of_its_locks(&pod).await;
                self.world.links[&pod].reset(&ports);
            }
            _ => unreachable!("not a pod's"),
        }
    }

    async fn strike_the_server(&mut self) {
        if Instant::now() < self.server_rests {
            return;
        }
        let Some(fault) = self.random.choice(OF_THE_SERVER) else { return };
        self.tell(&format!("server: {fault:?}"));
        let began = Instant::now();
        let short = self.world.worst_case().outage_tolerated.mul_f64(0.5);
        match fault {
            Fault::FastRestart => {
                self.world.server.suffers(Server::restart_fast).await;
                self.world.reconnect().await;
            }
            Fault::ImmediateRestart => {
                self.world.server.suffers(Server::restart_immediate).await;
                self.world.reconnect().await;
            }
            Fault::KillPostmaster => {
                self.world.server.suffers(|s| s.kill_postmaster().and_then(|()| s.start_again())).await;
                self.world.reconnect().await;
            }
            Fault::KillBackend => {
                let client = connect(&self.world.server.socket_url(&self.world.database)).await;
                let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a backend").get(0);
                rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
                    .expect("killed");
                // Until the server has ended the others, it lets newcomers in.
                while !self.world.admin.is_closed() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.world.reconnect().await;
            }
            Fault::Pause => {
                self.world.server.suffers(Server::pause).await;
                // Nothing else is asked of the server until it goes on.
                self.server_rests = Instant::now() + self.world.lease * 4;
                self.paused = Some(began);
                tokio::time::sleep(short).await;
                self.due.push((Instant::now(), Due::Resume));
                return;
            }
            Fault::LockRuns => {
                let lock = format!(
                    "BEGIN; LOCK TABLE studio_runs IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({}); COMMIT",
                    short.as_secs_f64()
                );
                self.world.admin.batch_execute(&lock).await.expect("the runs are locked for a while");
            }
            _ => unreachable!("a pod's"),
        }
        self.note_outage(Some(began));
        self.server_rests = Instant::now() + self.world.lease;
    }

    fn note_outage(&mut self, began: Option<Instant>) {
        let most = self.world.worst_case().outage_tolerated.mul_f64(0.7);
        self.long_outage |= began.is_some_and(|began| began.elapsed() > most);
    }

    fn tell(&mut self, what: &str) {
        self.faults += 1;
        println!("nemesis: {:6.2} s: {what}", self.began.elapsed().as_secs_f64());
    }
}
