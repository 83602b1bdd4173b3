//! The figures as a table, beside floors and goals.

use comfy_table::{Table, presets};

use crate::Args;

/// What was measured so far.
pub(crate) struct Report {
    head: String,
    load_before: String,
    table: Table,
    /// Lines below the table: how each thing was measured.
    notes: Vec<String>,
    missed: usize,
}

impl Report {
    pub(crate) fn new(args: &Args) -> Self {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN).set_header(["", "n", "measured", "floor", "goal", ""]);
        let head = format!("3 pods, {} workers with a spec of about {} bytes each", args.workers, args.spec_bytes);
        Self { head, load_before: load(), table, notes: Vec::new(), missed: 0 }
    }

    /// Adds to the first line.
    pub(crate) fn says(&mut self, fact: String) {
        self.head.push_str("; ");
        self.head.push_str(&fact);
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// A figure. `goal`: in words, and whether it is met.
    pub(crate) fn row(&mut self, what: &str, n: usize, measured: String, floor: &str, goal: Option<(String, bool)>) {
        // Whoever watches a long run sees each figure at once.
        println!("{what}: {measured}{}", if floor.is_empty() { String::new() } else { format!("; floor {floor}") });
        let (goal, word) = match goal {
            Some((goal, true)) => (goal, "met"),
            Some((goal, false)) => (goal, "MISSED"),
            None => (String::new(), ""),
        };
        self.missed += usize::from(word == "MISSED");
        self.table.add_row([what.to_owned(), n.to_string(), measured, floor.to_owned(), goal, word.to_owned()]);
    }

    pub(crate) fn end(&self) {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        println!(
            "\n{}; {cores} cores, load {} before and {} after\n\n{}\n",
            self.head,
            self.load_before,
            load(),
            self.table
        );
        for note in &self.notes {
            println!("{note}");
        }
        match self.missed {
            0 => println!("\neach goal is met"),
            n => println!("\n{n} goals are missed"),
        }
    }
}

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
        format!("median {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.median, self.p99, self.max)
    }
}
