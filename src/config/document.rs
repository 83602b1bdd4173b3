//! `docs/bounds.md`, made from what `Config::worst_case` says.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Config, WorstCase};
use crate::pages;

const INTRODUCTION: &str = "\
# Bounds

How long it takes at most until peers bury a pod, with every push and notification lost; with them it is milliseconds where
a process or its host's connections end. At three leases, all else at its default, each answer of the database within
`ping_timeout`. `Config::worst_case()` says it for your settings; this page is made from it.

A roster of up to 62 rows, dead ones included, is looked at in one statement. A longer one takes a statement for each 64 rows,
so that dead rows cannot fill the server's lock table: each adds an answer of the database, mostly a millisecond. Where the
table is full all the same, nobody is buried on what could not be looked at, and a pod that died waits for `settle` at most
once others could be looked at again.

";

type Bound = fn(&WorstCase) -> Duration;

#[test]
fn the_page_on_bounds_says_what_the_code_does() {
    let leases = [2, 10, 30].map(Duration::from_secs);
    let all = leases.map(|lease| Config::new("host=h").lease(lease).worst_case().unwrap());
    let rows: [(&str, Bound); 11] = [
        ("a process was killed", |w| w.process_killed),
        ("a host vanished, or was cut off without a word", |w| w.host_lost),
        ("a process was stopped (SIGSTOP)", |w| w.frozen),
        ("the application's runtime is blocked", |w| w.runtime_blocked),
        ("it runs and gets nowhere: until it is suspected, from its last progress", |w| w.stalled),
        ("its connection broke, and it lives but does not come back", |w| w.connection_broken),
        ("many were lost at once", |w| w.many_lost),
        ("it died while the database restarted, from the server's return", |w| w.database_restarted),
        ("a burier that freezes between its grant and its commit adds", |w| w.burier_frozen_adds),
        ("not a burial: a silent pod has told its runs to stop, from its last answered ping (L7)", |w| {
            w.silent_pod_stops
        }),
        ("not a burial: an outage of the database that disturbs no run", |w| w.outage_tolerated),
    ];
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| what | lease 2 s | 10 s (default) | 30 s |\n| --- | --- | --- | --- |\n");
    for (what, bound) in rows {
        let [short, usual, long] = all.map(|w| bound(&w).as_secs_f64());
        writeln!(text, "| {what} | {short:.1} s | {usual:.1} s | {long:.1} s |").unwrap();
    }
    pages::renew_or_compare("docs/bounds.md", &text);
}
