//! The figures as tables, and the goals.

use comfy_table::presets;

use crate::stage::Stage;

/// What was measured so far.
#[derive(Default)]
pub(crate) struct Report {
    facts: String,
    fsync: String,
    /// Printed with the next table.
    notes: Vec<String>,
    goals: Vec<String>,
    missed: usize,
}

pub(crate) struct Table {
    title: String,
    table: comfy_table::Table,
}

impl Table {
    pub(crate) fn new(title: &str, head: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(head);
        Self { title: title.to_owned(), table }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.table.add_row(cells);
    }
}

impl Report {
    pub(crate) fn begins(&mut self, stage: &Stage) {
        self.facts.clone_from(&stage.facts);
        self.fsync = stage.fsync.word();
        println!("\n# {}", self.facts);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Prints a table at once, so that whoever watches a long run sees it.
    pub(crate) fn table(&mut self, table: Table) {
        println!("\n{} ({}; load {})\n\n{}", table.title, self.facts, load(), table.table);
        for note in self.notes.drain(..) {
            println!("  {note}");
        }
        println!();
    }

    /// `at_least`: whether the goal is the least, and not the most.
    pub(crate) fn goal(&mut self, what: &str, value: f64, goal: f64, at_least: bool) {
        let is_met = if at_least { value >= goal } else { value <= goal };
        let (word, bound) = (if is_met { "met" } else { "MISSED" }, if at_least { "least" } else { "most" });
        self.missed += usize::from(!is_met);
        let fsync = &self.fsync;
        self.goals.push(format!("{word:6} fsync {fsync:4} {what}: {value:.2}, goal at {bound} {goal}"));
    }

    pub(crate) fn end(&self) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        println!("\n{cores} cores, load {}; the goals:", load());
        self.goals.iter().for_each(|goal| println!("  {goal}"));
        match self.missed {
            0 => println!("\neach goal is met"),
            n => println!("\n{n} goals are missed"),
        }
    }
}

/// The load of the last minute. The bench itself is part of it.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

/// How some measurements are spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) n: usize,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        // Nearest rank: the smallest value that at least this share of them does not exceed.
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { n: values.len(), median: at(0.5), p99: at(0.99), max: at(1.0) }
    }

    /// In milliseconds.
    pub(crate) fn ms(&self) -> String {
        format!("median {:.2} ms, p99 {:.2} ms, max {:.1} ms", self.median, self.p99, self.max)
    }
}
