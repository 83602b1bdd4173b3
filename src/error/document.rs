//! Makes `docs/errors.md` from the tables in the code and the template `document.md`.

use std::fmt::Write as _;

use super::rules::{REFUSED_BY_DRIVER, RULES};
use super::{Error, ErrorKind};
use crate::pages;

const TEMPLATE: &str = include_str!("document.md");

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn document() -> String {
    let (mut kinds, mut sqlstates, mut refused) = (String::new(), String::new(), String::new());
    for kind in ErrorKind::ALL {
        let [means, state, help] = kind.words();
        let passes = yes_or_no(kind.is_transient());
        let elsewhere = yes_or_no(kind.retry_elsewhere());
        let (name, status) = (kind.as_str(), kind.http_status());
        writeln!(kinds, "| `{name}` | `{kind:?}` | {means} | {passes} | {elsewhere} | {status} | {state} | {help} |")
            .unwrap();
    }
    for rule in RULES {
        let pattern = rule.pattern();
        // This asks a real error, so that the column shows what a caller will see.
        let passes = yes_or_no(Error::new(rule.kind, "").with_sqlstate(&pattern).is_transient());
        let (condition, kind, help) = (rule.condition.to_lowercase(), rule.kind.as_str(), rule.help);
        writeln!(sqlstates, "| `{pattern}` | {condition} | `{kind}` | {passes} | {help} |").unwrap();
    }
    for (begins, kind, help) in REFUSED_BY_DRIVER {
        writeln!(refused, "| {begins} | `{}` | {help} |", kind.as_str()).unwrap();
    }
    pages::filled(TEMPLATE, &[("kinds", &kinds), ("sqlstates", &sqlstates), ("refused_by_driver", &refused)])
}

#[test]
fn the_page_on_errors_says_what_the_code_does() {
    pages::renew_or_compare("docs/errors.md", &document());
}

#[test]
fn every_kind_and_every_sqlstate_says_what_to_do_and_names_are_unique() {
    let mut names = std::collections::BTreeSet::new();
    for kind in ErrorKind::ALL {
        assert!(names.insert(kind.as_str()), "{kind:?} bears the name of another kind");
        let [means, state, help] = kind.words();
        for sentence in [means, state, help] {
            assert!(sentence.ends_with('.') && !sentence.contains('|'), "{kind:?}: {sentence:?} is no sentence");
        }
    }
    for rule in RULES {
        assert!(!rule.help.is_empty() && !rule.help.contains('|'), "{}", rule.pattern());
    }
}
