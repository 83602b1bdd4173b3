//! The systems that are compared, their settings, and what the benchmark has to know of each: how its processes are
//! started, and by which rows of its tables its jobs are counted.

use std::fmt::{self, Display};
use std::path::Path;

use clap::ValueEnum;

/// A peer, or podlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Podlock,
    /// podlock again, as it is meant to be used: the pod that gets a request starts the run itself.
    #[value(name = "podlock_start")]
    PodlockStart,
    Graphile,
    Apalis,
    Procrastinate,
    Pgqueuer,
}

impl System {
    pub(crate) const ALL: [Self; 6] =
        [Self::Podlock, Self::PodlockStart, Self::Graphile, Self::Apalis, Self::Procrastinate, Self::Pgqueuer];

    /// The word of the command line, which the names of its databases have too.
    pub(crate) fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The script of a peer in Python.
    pub(crate) fn script(self) -> Option<&'static str> {
        match self {
            Self::Procrastinate => Some("procrastinate_roles.py"),
            Self::Pgqueuer => Some("pgqueuer_roles.py"),
            Self::Podlock | Self::PodlockStart | Self::Graphile | Self::Apalis => None,
        }
    }

    /// The version that is measured. Cargo.toml pins it, or `scripts/ensure-peers.sh`.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Podlock | Self::PodlockStart => "this tree",
            Self::Graphile => "0.14.1",
            Self::Apalis => "1.0.0",
            Self::Procrastinate => "3.10.0",
            Self::Pgqueuer => "1.6.0",
        }
    }

    /// Why the system cannot be measured here.
    pub(crate) fn missing(self, python: Option<&Path>) -> Option<String> {
        self.script()?;
        match python {
            None => Some("it needs --python, the Python that has it (`make bench-peers` passes it)".to_owned()),
            Some(path) if !path.exists() => Some(format!(
                "there is no {}: scripts/ensure-peers.sh makes it, and says why it cannot",
                path.display()
            )),
            Some(_) => None,
        }
    }

    /// Whether its jobs are put into a queue by one process and worked by another.
    pub(crate) fn has_queue(self) -> bool {
        self != Self::PodlockStart
    }

    /// Whether it has a call that puts many jobs into its queue.
    pub(crate) fn has_batches(self) -> bool {
        self != Self::PodlockStart
    }

    /// Both rows of podlock recover in the same way.
    pub(crate) fn can_be_killed(self) -> bool {
        self != Self::PodlockStart
    }

    /// The rows of jobs that have not ended yet.
    fn unfinished(self) -> &'static str {
        match self {
            Self::Podlock | Self::PodlockStart => "studio_runs WHERE state = 'running'",
            Self::Graphile => "graphile_worker._private_jobs",
            Self::Apalis => "apalis.jobs WHERE status NOT IN ('Done', 'Killed')",
            // Its periodic task is a job as well.
            Self::Procrastinate => "procrastinate_jobs WHERE status IN ('todo', 'doing') AND task_name = 'job'",
            Self::Pgqueuer => "pgqueuer",
        }
    }

    /// Says whether a job has not ended yet. By its name this statement is told from those of the system.
    pub(crate) fn any_left(self) -> String {
        format!("SELECT EXISTS (SELECT FROM {}) AS bench_peers_poll", self.unfinished())
    }

    /// Counts the jobs that have not ended yet.
    pub(crate) fn left(self) -> String {
        format!("SELECT count(*) AS bench_peers_poll FROM {}", self.unfinished())
    }

    /// Counts the jobs that ended well, if the system keeps them.
    pub(crate) fn succeeded(self) -> Option<&'static str> {
        match self {
            Self::Podlock | Self::PodlockStart => {
                Some("SELECT count(*) AS bench_peers_poll FROM studio_runs WHERE state = 'succeeded'")
            }
            Self::Graphile => None,
            Self::Apalis => Some("SELECT count(*) AS bench_peers_poll FROM apalis.jobs WHERE status = 'Done'"),
            Self::Procrastinate => Some(
                "SELECT count(*) AS bench_peers_poll FROM procrastinate_jobs \
                  WHERE status = 'succeeded' AND task_name = 'job'",
            ),
            Self::Pgqueuer => Some("SELECT count(*) AS bench_peers_poll FROM pgqueuer_log WHERE status = 'successful'"),
        }
    }
}

impl Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Podlock => "podlock, submitted",
            Self::PodlockStart => "podlock, started where it runs",
            Self::Graphile => "graphile_worker",
            Self::Apalis => "apalis-postgres",
            Self::Procrastinate => "procrastinate",
            Self::Pgqueuer => "PgQueuer",
        })
    }
}

/// What a system is told besides the database and the size of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    /// Nothing.
    Default,
    /// What its documentation names for throughput, and the shortest time-outs for the kill.
    Fastest,
}

impl Setting {
    pub(crate) const ALL: [Self; 2] = [Self::Default, Self::Fastest];

    /// The word of the command line, which the scripts know as well.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fastest => "fastest",
        }
    }

    /// How many tasks of a producer enqueue at a time.
    pub(crate) fn producers(self) -> usize {
        match self {
            Self::Default => 64,
            Self::Fastest => 512,
        }
    }
}

impl Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What the letters of [`System::promises`] mean.
pub(crate) const LEGEND: &str = "\
Promises: R a job whose worker died is run again (r: after a time-out, dead or not). L a death is noticed by a lock that
the server frees, H by heartbeats that did not come. F a late write of a former worker is refused, and the worker is
told (f: it is passed over). K unique keys. O the job's output is stored. A ended jobs are kept.";

impl System {
    /// What a system keeps in a setting, by the letters of [`LEGEND`]. README.md names the source of each.
    pub(crate) fn promises(self, setting: Setting) -> &'static str {
        match (self, setting) {
            (Self::Podlock | Self::PodlockStart, _) => "R L F K O A",
            (Self::Graphile, Setting::Default) => "r K",
            (Self::Graphile, Setting::Fastest) => "R H K",
            (Self::Apalis, _) => "R H f K O A",
            (Self::Procrastinate, Setting::Default) => "K A",
            (Self::Procrastinate, Setting::Fastest) => "R H K A",
            (Self::Pgqueuer, _) => "R H K A",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_that_are_installed() {
        let manifest = include_str!("../Cargo.toml");
        let script = include_str!("../../../scripts/ensure-peers.sh");
        assert!(manifest.contains(&format!("graphile_worker = \"={}\"", System::Graphile.version())));
        assert!(manifest.contains(&format!("apalis-postgres = \"={}\"", System::Apalis.version())));
        assert!(script.contains(&format!("\nprocrastinate={}\n", System::Procrastinate.version())));
        assert!(script.contains(&format!("\npgqueuer={}\n", System::Pgqueuer.version())));
    }

    #[test]
    fn a_promise_is_a_letter_of_the_legend() {
        for (system, setting) in
            System::ALL.into_iter().flat_map(|system| Setting::ALL.map(|setting| (system, setting)))
        {
            for letter in system.promises(setting).split(' ') {
                let known =
                    [format!("{letter} "), format!("({letter}: ")].iter().any(|text| LEGEND.contains(text.as_str()));
                assert!(known, "{system} {setting}: {letter}");
            }
        }
    }
}
