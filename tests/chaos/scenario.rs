//! A fault as a test: what it is called, what it needs, what it measures.

use std::future::Future;
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use libtest_mimic::{Completion, Failed, Trial};

use crate::page;
use crate::world::Figure;

/// The longest that any scenario may take.
const LIMIT: Duration = crate::patience::TEST;

type Play = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Vec<Figure>>>> + Send>;

/// One fault.
pub(crate) struct Scenario {
    /// `group::fault`.
    pub(crate) name: &'static str,
    /// What is promised under it, a sentence for the page.
    pub(crate) promise: &'static str,
    needs: &'static [Need],
    limit: Duration,
    alone: bool,
    play: Play,
}

/// Held by each scenario that is played; by one that plays alone, for itself.
static STAGE: RwLock<()> = RwLock::new(());

/// What not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Network namespaces, mounts.
    Root,
    /// `/dev/net/tun`, and the programs that make networks.
    Tun,
    /// `ss -K`, which resets connections.
    Ss,
    /// `pgbouncer`.
    Pgbouncer,
    /// `patroni` and `etcd`.
    Patroni,
}

const PGBOUNCER: &[&str] = &["/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer", "/usr/bin/pgbouncer"];

fn first_of(paths: &[&'static str]) -> Option<&'static str> {
    paths.iter().copied().find(|path| std::path::Path::new(path).exists())
}

pub(crate) fn pgbouncer() -> Option<&'static str> {
    first_of(PGBOUNCER)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

impl Need {
    /// Why it is not there; `None` if it is.
    fn missing(self) -> Option<&'static str> {
        let (there, reason) = match self {
            Self::Root => (rustix::process::geteuid().is_root(), "needs root"),
            Self::Tun => {
                let there = std::path::Path::new("/dev/net/tun").exists() && in_path("ip") && in_path("nsenter");
                (there, "needs /dev/net/tun, ip (package iproute2) and nsenter (package util-linux)")
            }
            Self::Ss => {
                (first_of(&["/usr/bin/ss", "/bin/ss", "/usr/sbin/ss"]).is_some(), "needs ss (package iproute2)")
            }
            Self::Pgbouncer => (pgbouncer().is_some(), "needs pgbouncer (package pgbouncer)"),
            Self::Patroni => {
                (in_path("patroni") && in_path("etcd"), "needs patroni and etcd (packages patroni and etcd-server)")
            }
        };
        (!there).then_some(reason)
    }
}

impl Scenario {
    pub(crate) fn new<F>(name: &'static str, needs: &'static [Need], play: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<Figure>> + 'static,
    {
        Self { name, promise: "", needs, limit: LIMIT, alone: false, play: Box::new(move || Box::pin(play())) }
    }

    pub(crate) fn promises(mut self, promise: &'static str) -> Self {
        self.promise = promise;
        self
    }

    /// For one that keeps every core busy, or has little time: no other is played beside it.
    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// For one that takes this long before it comes to its end.
    pub(crate) fn lasting(mut self, time: Duration) -> Self {
        self.limit += time;
        self
    }

    pub(crate) fn trial(self) -> Trial {
        Trial::ignorable_test(self.name, move || self.run())
    }

    fn run(self) -> Result<Completion, Failed> {
        let missing: Vec<_> = self.needs.iter().filter_map(|need| need.missing()).collect();
        if !missing.is_empty() {
            return Ok(Completion::ignored_with(missing.join(", ")));
        }
        let (_beside_others, _for_itself) = if self.alone {
            (None, Some(STAGE.write().unwrap_or_else(PoisonError::into_inner)))
        } else {
            (Some(STAGE.read().unwrap_or_else(PoisonError::into_inner)), None)
        };
        for _ in 0..page::rounds() {
            self.play_once()?;
        }
        Ok(Completion::Completed)
    }

    fn play_once(&self) -> Result<(), Failed> {
        // The thread that blocks here is the parent of the pods, and lives as long as the scenario.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let figures = runtime.block_on(async { tokio::time::timeout(self.limit, (self.play)()).await });
        runtime.shutdown_timeout(Duration::from_secs(2));
        for figure in figures.map_err(|_| format!("it took longer than {:?}", self.limit))? {
            println!("{}: {figure}", self.name);
            page::note(self.name, figure);
        }
        Ok(())
    }
}
