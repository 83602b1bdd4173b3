//! What the replicas of the worker registry showed, held to what was true at the time.
//!
//! A replica is held to it only after a while: from the moment when its pod was attached without a break, and the truth
//! had not changed, for as long as the bound says. A pod that was stopped, blocked or cut off says nothing meanwhile, or
//! says that it is not attached. Then its time begins again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Rule, Violation};
use crate::history::{Change, PodLog, Record, Said};

/// A longer time without a word is a break: five times what passes between two words.
const BREAK: u64 = 1_000_000_000;
/// How many violations of one replica are told: they are all of one kind.
const TOLD: usize = 3;

/// A time in which a process was attached without a break, as the same incarnation and with as many workers of its own.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    incarnation: &'a str,
    own: u32,
    from: u64,
    to: u64,
}

/// `within`: how soon each replica must show what has become of workers.
pub(super) fn check(history: &[Record], logs: &[PodLog], within: Duration) -> Vec<Violation> {
    let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
    let ends = ends(history);
    let spans: BTreeMap<usize, Vec<(Span<'_>, Vec<&Said>)>> =
        logs.iter().enumerate().map(|(at, log)| (at, spans(log))).collect();
    // An incarnation lives for as long as its process says so, and the database does.
    let lives: Vec<Span<'_>> = spans
        .values()
        .flatten()
        .map(|(span, _)| Span { to: ends.get(span.incarnation).map_or(span.to, |end| span.to.min(*end)), ..*span })
        .collect();
    let mut found = Vec::new();
    for (at, spans) in &spans {
        let mut of_this = Vec::new();
        for (span, said) in spans {
            for said in said {
                // What was true for so long, this replica must show.
                let since = |moment: u64| said.t > moment.max(span.from).saturating_add(within);
                for (owner, count) in &said.shown {
                    if let Some(end) = ends.get(owner.as_str()).filter(|end| since(**end)) {
                        let late = (said.t - end) / 1_000_000;
                        of_this.push(format!("shows {count} workers of {owner} {late} ms after its end"));
                    }
                }
                for life in lives.iter().filter(|life| since(life.from) && said.t <= life.to) {
                    let shown = said.shown.get(life.incarnation).copied().unwrap_or_default();
                    if shown != life.own {
                        let age = (said.t - life.from) / 1_000_000;
                        of_this.push(format!(
                            "shows {shown} of the {} workers of {}, which has had them for {age} ms",
                            life.own, life.incarnation
                        ));
                    }
                }
            }
        }
        let pod = &logs[*at].pod;
        found.extend(
            of_this
                .into_iter()
                .take(TOLD)
                .map(|text| Violation { rule: Rule::WorkersOfTheLiving, text: format!("pod {pod} {text}") }),
        );
    }
    found
}

/// When each incarnation left the roster.
fn ends(history: &[Record]) -> HashMap<&str, u64> {
    let mut ends = HashMap::new();
    for record in history {
        if let Change::Pod { old: Some(old), new, .. } = &record.change
            && new.as_ref().is_none_or(|new| new.incarnation != old.incarnation)
        {
            ends.insert(old.incarnation.as_str(), record.at);
        }
    }
    ends
}

/// The spans of a process, each with what was said in it.
fn spans(log: &PodLog) -> Vec<(Span<'_>, Vec<&Said>)> {
    let mut spans: Vec<(Span<'_>, Vec<&Said>)> = Vec::new();
    let mut goes_on = false;
    for said in log.said.iter().filter(|said| said.ev == "shows") {
        let (Some(incarnation), Some(own), Some(true)) = (said.by.as_deref(), said.registered, said.attached) else {
            goes_on = false;
            continue;
        };
        let same = spans.last_mut().filter(|(span, _)| {
            goes_on && span.incarnation == incarnation && span.own == own && said.t <= span.to.saturating_add(BREAK)
        });
        if let Some((span, all)) = same {
            span.to = said.t;
            all.push(said);
        } else {
            spans.push((Span { incarnation, own, from: said.t, to: said.t }, vec![said]));
        }
        goes_on = true;
    }
    spans
}
