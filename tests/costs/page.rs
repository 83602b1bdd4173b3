//! The tables of `docs/costs.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/costs.md");

/// The tests renew their tables at the same time, in one file.
static FILE: Mutex<()> = Mutex::new(());

/// Counts by what is counted.
pub(crate) type Counts = BTreeMap<String, u64>;

/// How a table is compared with the page.
pub(crate) struct Table {
    /// The name that the comments around the table bear.
    pub(crate) name: &'static str,
    /// The heads of its two columns.
    pub(crate) heads: [&'static str; 2],
    /// By which part of a count it may differ.
    pub(crate) tolerance: f64,
}

/// Compares these counts with those of the page, or writes them there where `make costs` asks for that.
#[track_caller]
pub(crate) fn compare_or_renew(table: &Table, counts: &Counts) {
    let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let page = read();
    let (before, written, after) = split(&page, table.name);
    if std::env::var_os("PODLOCK_RENEW_DOCS").is_some() {
        let page = format!("{before}\n{}\n{after}", rendered(table, counts));
        std::fs::write(PAGE, page).expect("docs/costs.md can be written");
        return;
    }
    let written = parsed(written);
    let wrong: Vec<String> = differences(&written, counts, table.tolerance);
    assert!(
        wrong.is_empty(),
        "docs/costs.md, {}: {}. If the change is meant, `make costs` writes the new counts",
        table.name,
        wrong.join("; ")
    );
}

pub(crate) fn read() -> String {
    std::fs::read_to_string(PAGE).expect("docs/costs.md")
}

/// Replaces a line of the page.
pub(crate) fn replace(before: &str, after: &str) {
    let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    std::fs::write(PAGE, read().replace(before, after)).expect("docs/costs.md can be written");
}

/// The page before a table, the table, and the page after it.
fn split<'a>(page: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- {name}: made -->\n"), format!("<!-- {name}: end -->"));
    let from = page.find(&begin).unwrap_or_else(|| panic!("docs/costs.md has no {begin}")) + begin.len();
    let upto = page[from..].find(&end).unwrap_or_else(|| panic!("docs/costs.md has no {end}")) + from;
    (&page[..from], &page[from..upto], &page[upto..])
}

fn rendered(table: &Table, counts: &Counts) -> String {
    let mut text = format!("| {} | {} |\n| --- | --- |\n", table.heads[0], table.heads[1]);
    for (what, count) in counts {
        writeln!(text, "| {what} | {count} |").expect("a string grows");
    }
    text
}

fn parsed(table: &str) -> Counts {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "));
    rows.filter_map(|(what, count)| Some((what.to_owned(), count.parse().ok()?))).collect()
}

/// What differs by more than `tolerance`, in words.
fn differences(written: &Counts, counted: &Counts, tolerance: f64) -> Vec<String> {
    let all = written.keys().chain(counted.keys().filter(|what| !written.contains_key(*what)));
    let differs = |what: &String| {
        let (before, now) = (written.get(what).copied(), counted.get(what).copied());
        let slack = before.unwrap_or(0) as f64 * tolerance;
        match (before, now) {
            (Some(before), Some(now)) if (before.abs_diff(now) as f64) <= slack => None,
            _ => Some(format!("{what}: {} on the page, {} counted", said(before), said(now))),
        }
    };
    all.filter_map(differs).collect()
}

fn said(count: Option<u64>) -> String {
    count.map_or_else(|| "none".to_owned(), |count| count.to_string())
}

#[test]
fn a_count_that_differs_by_more_than_the_tolerance_is_named() {
    let counts = |of: &[(&str, u64)]| of.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect::<Counts>();
    let written = counts(&[("a", 100), ("b", 100), ("c", 1), ("gone", 5)]);
    let counted = counts(&[("a", 102), ("b", 103), ("c", 1), ("new", 7)]);
    let said = differences(&written, &counted, 0.02);
    assert_eq!(
        said,
        ["b: 100 on the page, 103 counted", "gone: 5 on the page, none counted", "new: none on the page, 7 counted",]
    );
    let table = Table { name: "t", heads: ["what", "count"], tolerance: 0.0 };
    assert_eq!(parsed(&rendered(&table, &counted)), counted);
    assert!(differences(&counted, &counted, 0.0).is_empty());
}
