//! `docs/faults.md`: each fault, what is promised under it, and what was measured. `make faults` renews it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::scenario::Scenario;
use crate::world::{Figure, LEASE};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
const HEAD: &str = include_str!("page.md");

static FIGURES: Mutex<BTreeMap<&'static str, Vec<Figure>>> = Mutex::new(BTreeMap::new());

/// How often each scenario is played.
pub(crate) fn rounds() -> u32 {
    std::env::var("CHAOS_ROUNDS").map_or(1, |text| text.parse().expect("CHAOS_ROUNDS is a number"))
}

pub(crate) fn note(scenario: &'static str, figure: Figure) {
    FIGURES.lock().unwrap_or_else(PoisonError::into_inner).entry(scenario).or_default().push(figure);
}

/// What the page says of a scenario, beside its figures.
pub(crate) struct Entry {
    name: &'static str,
    promise: &'static str,
}

pub(crate) fn entries(scenarios: &[Scenario]) -> Vec<Entry> {
    scenarios.iter().map(|s| Entry { name: s.name, promise: s.promise }).collect()
}

/// The page names every fault with its promise; figures are as they were when it was renewed.
pub(crate) fn trial(entries: &[Entry]) -> Trial {
    let rows: Vec<String> = entries.iter().map(row_begins).collect();
    let silent = entries.iter().find(|e| e.promise.is_empty()).map(|e| e.name);
    Trial::test("page::names_every_fault_and_what_is_promised_under_it", move || {
        let page = std::fs::read_to_string(PATH)?;
        if let Some(silent) = silent {
            return Err(format!("{silent} promises nothing").into());
        }
        let missing: Vec<_> = rows.iter().filter(|row| !page.contains(row.as_str())).collect();
        let there = page.lines().filter(|line| line.starts_with("| `")).count();
        if !missing.is_empty() || there != rows.len() || !page.starts_with(HEAD) {
            return Err(
                format!("docs/faults.md is not renewed: make faults; {there} rows; missing {missing:#?}").into()
            );
        }
        Ok(())
    })
}

fn row_begins(entry: &Entry) -> String {
    format!("| `{}` | {} |", entry.name, entry.promise)
}

/// Writes the page anew, with the figures of this run.
pub(crate) fn renew(entries: &[Entry]) {
    let figures = FIGURES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut page = HEAD.to_owned();
    let mut group = "";
    for entry in entries {
        let of = entry.name.split("::").next().unwrap_or_default();
        if of != group {
            group = of;
            let _ =
                write!(page, "\n## {}\n\n| fault | what is promised | measured |\n| --- | --- | --- |\n", title(of));
        }
        let measured = figures.get(entry.name).map_or_else(|| "as promised".to_owned(), |all| measured(all));
        let _ = writeln!(page, "{} {measured} |", row_begins(entry));
    }
    let last = figures.values().flatten().count();
    let _ = write!(page, "\n{last} figures; lease {} s; rounds: {}.\n", LEASE.as_secs(), rounds());
    std::fs::write(PATH, page).expect("the page is written");
}

fn title(group: &str) -> String {
    let mut letters = group.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// `buried 18 ms, at most 25 ms (bound 3.2 s)` for each thing that was measured, in the order of the first round.
fn measured(figures: &[Figure]) -> String {
    let mut order: Vec<&str> = Vec::new();
    for figure in figures {
        if !order.contains(&figure.what) {
            order.push(figure.what);
        }
    }
    let parts = order.into_iter().map(|what| {
        let mut all: Vec<&Figure> = figures.iter().filter(|f| f.what == what).collect();
        all.sort_by_key(|f| f.took);
        let (median, most) = (all[all.len() / 2].took, all[all.len() - 1].took);
        let bound = all
            .iter()
            .filter_map(|f| f.bound)
            .max()
            .map_or(String::new(), |bound| format!(" (bound {})", shown(bound)));
        let most = if all.len() > 1 { format!(", at most {}", shown(most)) } else { String::new() };
        format!("{what}: {}{most}{bound}", shown(median))
    });
    parts.collect::<Vec<_>>().join("<br>")
}

fn shown(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
