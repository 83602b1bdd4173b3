//! The tables.

use std::collections::BTreeMap;

use comfy_table::{ContentArrangement, Table, presets};

use crate::idle::Idle;
use crate::kills::{Kill, Measured};

/// Burial: at most this many times the floor's median, and this many milliseconds at the 99th percentile.
const BURIED_GOAL: f64 = 2.0;
const BURIED_P99_GOAL_MS: f64 = 50.0;
/// Execution: at most this many times the floor's median.
const EXECUTING_GOAL: f64 = 4.0;
/// An idle pod: statements and row writes a second.
const STATEMENTS_GOAL: f64 = 2.5;
const WRITES_GOAL: f64 = 0.15;

pub(crate) fn kills(measured: &Measured) {
    let f = &measured.facts;
    println!(
        "\n{} kills of pods with {} runs each, {} for the floor; lease {}; {} cores, load {} before and {} \
         after;\nPostgreSQL {}, synchronous_commit {}, fsync {}; {:.0} notices a second from others. Milliseconds from \
         just before the SIGKILL.\n",
        measured.settled.len() + measured.unsettled.len(),
        f.runs,
        measured.floor.len(),
        humantime::format_duration(f.lease),
        f.cores,
        f.load.0,
        f.load.1,
        f.server_version,
        f.synchronous_commit,
        f.fsync,
        f.foreign_notices
    );
    let mut table = table(&["", "n", "min", "median", "p90", "p99", "max", "of floor", "goal", ""]);
    let floor = Spread::of(measured.floor.clone());
    table.add_row(row("floor: bare SQL", &floor, None, "", None));
    let all: Vec<&Kill> = measured.settled.iter().chain(&measured.unsettled).collect();
    let groups = [
        ("neighbour settled", measured.settled.iter().collect()),
        ("neighbour not settled", measured.unsettled.iter().collect()),
        ("all", all),
    ];
    for (group, kills) in &groups {
        let spread = |of: fn(&Kill) -> f64| Spread::of(kills.iter().map(|k| of(k)).collect());
        let buried = spread(|k| k.buried);
        let met = buried.median <= BURIED_GOAL * floor.median && buried.p99 <= BURIED_P99_GOAL_MS;
        let goal = format!("≤ {BURIED_GOAL} × floor, p99 ≤ {BURIED_P99_GOAL_MS} ms");
        table.add_row(row(&format!("{group}: buried"), &buried, Some(&floor), &goal, Some(met)));
        let executing = spread(|k| k.executing);
        let met = executing.median <= EXECUTING_GOAL * floor.median;
        let goal = format!("≤ {EXECUTING_GOAL} × floor");
        table.add_row(row(&format!("{group}: executing"), &executing, Some(&floor), &goal, Some(met)));
        let last = spread(|k| k.all_executing);
        table.add_row(row(&format!("{group}: its last run"), &last, Some(&floor), "", None));
    }
    println!("{table}\n");
    for (group, kills) in &groups {
        let mut by: BTreeMap<&str, usize> = BTreeMap::new();
        kills.iter().for_each(|kill| *by.entry(&kill.by).or_default() += 1);
        let by: Vec<String> = by.iter().map(|(by, n)| format!("{n} {by}")).collect();
        println!("{group}: buried {}", by.join("; "));
    }
}

pub(crate) fn idle(idle: &Idle) {
    println!(
        "\n{} idle pods, {} s, lease {}; a second and pod:\n",
        idle.pods,
        idle.lasted.as_secs(),
        humantime::format_duration(idle.lease)
    );
    let mut table = table(&["", "measured", "goal", ""]);
    let goals =
        [("top-level statements", idle.statements, STATEMENTS_GOAL), ("row writes", idle.row_writes, WRITES_GOAL)];
    for (what, measured, goal) in goals {
        table.add_row([what, &format!("{measured:.2}"), &format!("≤ {goal}"), word(measured <= goal)]);
    }
    let logged = idle.logged.len();
    table.add_row(["lines logged at WARNING or above", &logged.to_string(), "0", word(logged == 0)]);
    println!("{table}\n");
    for (calls, statement) in &idle.by_statement {
        println!("{calls:5.2}  {statement}");
    }
    for line in &idle.logged {
        println!("{line}");
    }
}

/// How some measurements are spread.
struct Spread {
    n: usize,
    min: f64,
    median: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        // Nearest rank: the smallest value that at least this share of them does not exceed.
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { n: values.len(), min: at(0.0), median: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

fn row(what: &str, spread: &Spread, floor: Option<&Spread>, goal: &str, met: Option<bool>) -> [String; 10] {
    let ms = |value: f64| format!("{value:.2}");
    [
        what.to_owned(),
        spread.n.to_string(),
        ms(spread.min),
        ms(spread.median),
        ms(spread.p90),
        ms(spread.p99),
        ms(spread.max),
        floor.map_or_else(String::new, |f| format!("{:.2}", spread.median / f.median)),
        goal.to_owned(),
        met.map_or("", word).to_owned(),
    ]
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}
