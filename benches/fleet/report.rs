//! The tables.

use comfy_table::{ContentArrangement, Table, presets};

use crate::phases::{Fleet, Measured, Phase};

/// Of the goals: how long a fleet of so many pods may take to come in, in seconds.
const BOOT_GOALS: [(usize, f64); 2] = [(200, 15.0), (500, 60.0)];
/// An idle pod of the largest fleet costs at most this many times as much as one of the smallest.
const IDLE_GOAL: f64 = 1.5;
/// The burial of one pod takes at most this many times as long in the largest fleet as in the smallest.
const BURIED_GOAL: f64 = 2.0;
/// The bystander's p99 is at most this many times what it is alone.
const BYSTANDER_GOAL: f64 = 2.0;

pub(crate) fn fleet(fleet: &Fleet, statements: bool) {
    println!(
        "\n{} pods, lease {}; {} cores, PostgreSQL {}, fsync on. The bystander alone: SELECT p50 {} ms, p99 {} ms; \
         INSERT p50 {} ms, p99 {} ms.\n",
        fleet.pods,
        humantime::format_duration(fleet.lease),
        fleet.cores,
        fleet.server_version,
        ms(&fleet.alone.selects, 0.5),
        ms(&fleet.alone.selects, 0.99),
        ms(&fleet.alone.inserts, 0.5),
        ms(&fleet.alone.inserts, 0.99),
    );
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header([
        "phase",
        "took s",
        "pods",
        "lost their lock",
        "failed",
        "buried alive",
        "given up",
        "kill → buried ms p50/p99",
        "statements /s/pod, then",
        "server cores, then",
        "pods' cores",
        "WAL KiB/s/pod",
        "blocks /s/pod, then",
        "connections",
        "SELECT p50/p99 ms",
        "INSERT p50/p99 ms",
    ]);
    for phase in &fleet.phases {
        table.add_row(row(fleet, phase));
    }
    println!("{table}\n");
    for phase in &fleet.phases {
        for why in phase.failed.iter().take(3) {
            println!("{:?}: {why}", phase.phase);
        }
        if statements {
            println!("\n{:?}: milliseconds in all, calls, statement", phase.phase);
            for (ms, calls, sql) in &phase.dearest {
                println!("{ms:>10.0} {calls:>8} {sql}");
            }
        }
    }
}

fn row(fleet: &Fleet, m: &Measured) -> [String; 16] {
    let a_pod = |value: f64| format!("{:.2}", value / fleet.pods as f64);
    [
        format!("{:?}", m.phase).to_lowercase(),
        m.took.map_or_else(|| "NOT DONE".to_owned(), |took| format!("{:.1}", took.as_secs_f64())),
        format!("{} of {}", m.pods.0, m.pods.1),
        m.detached.to_string(),
        m.failed.len().to_string(),
        m.buried_alive.to_string(),
        m.given_up.to_string(),
        if m.burials.is_empty() {
            String::new()
        } else {
            format!("{} / {}", ms(&m.burials, 0.5), ms(&m.burials, 0.99))
        },
        format!("{}, {}", a_pod(m.during.statements), a_pod(m.after.statements)),
        format!("{:.2}, {:.2}", m.during.server_cpu, m.after.server_cpu),
        format!("{:.2}", m.during.hosts_cpu),
        a_pod(m.during.wal / 1024.0),
        format!("{}, {}", a_pod(m.during.blocks), a_pod(m.after.blocks)),
        m.connections.to_string(),
        format!("{} / {}", ms(&m.bystander.selects, 0.5), ms(&m.bystander.selects, 0.99)),
        format!("{} / {}", ms(&m.bystander.inserts, 0.5), ms(&m.bystander.inserts, 0.99)),
    ]
}

/// The goals that these fleets can show.
pub(crate) fn goals(fleets: &[Fleet]) {
    let of = |fleet: &Fleet, phase: Phase| fleet.phases.iter().find(|m| m.phase == phase).cloned();
    for fleet in fleets {
        if let Some(boot) = of(fleet, Phase::Boot)
            && let Some((_, goal)) = BOOT_GOALS.iter().find(|(pods, _)| *pods == fleet.pods)
        {
            let met = boot.failed.is_empty() && boot.took.is_some_and(|took| took.as_secs_f64() <= *goal);
            println!("{} pods are in within {goal} s, and none is refused: {}", fleet.pods, word(met));
        }
        for restart in [Phase::Fast, Phase::Immediate].into_iter().filter_map(|phase| of(fleet, phase)) {
            let back = restart.took.is_some_and(|took| took <= 2 * fleet.lease);
            let met = back && restart.buried_alive == 0 && restart.given_up == 0 && restart.failed.is_empty();
            println!(
                "{} pods are back within two leases of a restart ({:?}), and none is buried: {}",
                fleet.pods,
                restart.phase,
                word(met)
            );
        }
        for phase in [Phase::Boot, Phase::Fast, Phase::Immediate].into_iter().filter_map(|phase| of(fleet, phase)) {
            let within = |now: &[f64], alone: &[f64]| at(now, 0.99) <= BYSTANDER_GOAL * at(alone, 0.99);
            let met = within(&phase.bystander.selects, &fleet.alone.selects)
                && within(&phase.bystander.inserts, &fleet.alone.inserts);
            println!(
                "{} pods, {:?}: the bystander's p99 is within {BYSTANDER_GOAL} times what it is alone: {}",
                fleet.pods,
                phase.phase,
                word(met)
            );
        }
    }
    let (Some(small), Some(large)) = (fleets.first(), fleets.last()) else { return };
    if small.pods >= large.pods {
        return;
    }
    let ratio = |what: &str, goal: f64, of: &dyn Fn(&Fleet) -> Option<f64>| {
        if let (Some(few), Some(many)) = (of(small), of(large)) {
            let ratio = many / few;
            println!(
                "{what}: {ratio:.2} times as much at {} pods as at {}: goal {goal}, {}",
                large.pods,
                small.pods,
                { word(ratio <= goal) }
            );
        }
    };
    let idle = |fleet: &Fleet, what: fn(&Measured) -> f64| of(fleet, Phase::Idle).map(|m| what(&m) / fleet.pods as f64);
    ratio("statements of an idle pod", IDLE_GOAL, &|fleet| idle(fleet, |m| m.during.statements));
    ratio("the server's processor time for an idle pod", IDLE_GOAL, &|fleet| idle(fleet, |m| m.during.server_cpu));
    ratio("blocks read for an idle pod", IDLE_GOAL, &|fleet| idle(fleet, |m| m.during.blocks));
    ratio("from kill to burial, median", BURIED_GOAL, &|fleet| of(fleet, Phase::Kills).map(|m| at(&m.burials, 0.5)));
}

/// Nearest rank: the smallest value that at least this share of them does not exceed.
pub(crate) fn at(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn ms(values: &[f64], share: f64) -> String {
    format!("{:.1}", at(values, share))
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
