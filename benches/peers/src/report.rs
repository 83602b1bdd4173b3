//! The tables.

use std::time::Duration;

use comfy_table::{Table, presets};

use crate::measure::{Figures, Phase};
use crate::server::Server;
use crate::system::{Setting, System};
use crate::{Args, Error, Result};

/// What was measured of a system in a setting.
pub(crate) struct Row {
    pub(crate) system: System,
    pub(crate) setting: Setting,
    pub(crate) rounds: Vec<Figures>,
    /// `None` if the job did not begin again in time.
    pub(crate) kills: Vec<Option<Duration>>,
    failures: Vec<String>,
}

impl Row {
    pub(crate) fn new(system: System, setting: Setting) -> Self {
        Self { system, setting, rounds: Vec::new(), kills: Vec::new(), failures: Vec::new() }
    }

    /// Keeps what went wrong; it is printed below the table.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.failures.push(error.to_string());
    }

    /// The newest round, for those that wait.
    pub(crate) fn progress(&self) -> String {
        format!("{} {}: {:?} {:?}", self.system, self.setting, self.rounds.last(), self.failures.last())
    }

    fn rate(&self, phase: impl Fn(&Figures) -> Option<Phase>) -> String {
        let rates = self.rounds.iter().filter_map(phase).map(|phase| phase.jobs as f64 / phase.took.as_secs_f64());
        median(rates.collect()).map_or_else(none, thousands)
    }

    /// What a job costs on its way through a queue, if it is put there by itself, or at its start where it runs.
    fn a_job(&self, count: impl Fn(&Phase) -> f64) -> String {
        let counts = self.rounds.iter().map(|figures| match (&figures.enqueue, &figures.work) {
            (Some(enqueue), Some(work)) => count(enqueue) / enqueue.jobs as f64 + count(work) / work.jobs as f64,
            _ => count(&figures.both) / figures.both.jobs as f64,
        });
        median(counts.collect()).map_or_else(none, |count| format!("{count:.2}"))
    }

    fn again(&self, args: &Args) -> String {
        let times: Vec<f64> = self.kills.iter().flatten().map(Duration::as_secs_f64).collect();
        match (median(times.clone()), times.into_iter().reduce(f64::max)) {
            _ if self.kills.contains(&None) => format!("not within {} s", args.limit),
            (Some(median), Some(max)) => format!("{}, at most {}", span(median), span(max)),
            _ => none(),
        }
    }
}

/// The circumstances.
pub(crate) async fn head(args: &Args, server: &Server) -> Result<()> {
    let cpus = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{} jobs, {} rounds, {} kills, second worker up for {} s; PostgreSQL {}, fsync {}; {cpus} processors; load {}",
        args.jobs,
        args.rounds,
        args.kills,
        args.warm,
        server.version().await?,
        if args.no_fsync { "off" } else { "on" },
        load.split(' ').next().unwrap_or("?"),
    );
    Ok(())
}

pub(crate) fn print(args: &Args, rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "system",
        "version",
        "setting",
        "promises",
        "enqueue/s",
        "in batches/s",
        "work/s",
        "both/s",
        "statements a job",
        "commits a job",
        "SIGKILL until it begins again",
    ]);
    for row in rows {
        table.add_row([
            row.system.to_string(),
            row.system.version().to_owned(),
            row.setting.to_string(),
            row.system.promises(row.setting).to_owned(),
            row.rate(|figures| figures.enqueue),
            row.rate(|figures| figures.in_batches),
            row.rate(|figures| figures.work),
            row.rate(|figures| Some(figures.both)),
            row.a_job(|phase| phase.statements),
            row.a_job(|phase| phase.commits),
            row.again(args),
        ]);
    }
    println!("\n{table}\n");
    println!("{}", crate::system::LEGEND);
    for row in rows {
        for failure in &row.failures {
            println!("{} {}: FAILED: {failure}", row.system, row.setting);
        }
    }
}

fn none() -> String {
    "—".to_owned()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A rate, with three digits that mean something.
fn thousands(rate: f64) -> String {
    if rate < 10.0 {
        return format!("{rate:.1}");
    }
    let step = 10_f64.powf((rate.log10().floor() - 2.0).max(0.0));
    let digits = format!("{:.0}", (rate / step).round() * step);
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn span(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1e3) } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_three_digits_that_mean_something() {
        assert_eq!(thousands(12_345.0), "12,300");
        assert_eq!(thousands(1_996.0), "2,000");
        assert_eq!(thousands(317.4), "317");
        assert_eq!(thousands(7.23), "7.2");
        assert_eq!(thousands(1_234_567.0), "1,230,000");
    }

    #[test]
    fn the_median_of_an_even_number_is_the_upper_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![2.0, 1.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_span_has_the_unit_that_suits_it() {
        assert_eq!(span(0.0134), "13 ms");
        assert_eq!(span(3.04), "3.0 s");
    }
}
