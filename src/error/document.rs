//! Makes `docs/errors.md` from the tables in the code, so that the page and the code always agree.

use std::fmt::Write as _;

use super::rules::{REFUSED_BY_DRIVER, RULES};
use super::{Error, ErrorKind};
use crate::pages;

const INTRODUCTION: &str = "\
# Errors

Everything that can fail returns one opaque `podlock::Error`. `Error::kind` tells cases apart; there are predicates for
the usual questions: `is_transient` (the same call may succeed later without anybody changing anything), `is_fenced`
(stop working on the run), `retry_elsewhere` (the same call may succeed at once on another pod), `is_session_lost`,
`is_name_taken`. `Error::http_status` is the status that the crate's own router answers with, and `Error::retry_after`
says where and when a client may send the same request again. `Error::run_id` names the run that the error is about,
`Error::sqlstate` what the server said, and `source()` is the driver's error. Kinds may be added in a minor version; the
names in the first column never change their meaning, and are what logs, the HTTP interface and `Debug` show.

A message says what failed, on what, in what state that left things where it is not the kind's usual one, and what to
do. It never holds a password.

This page is made from the tables in `src/error/mod.rs` and `src/error/rules.rs`: change them there, then `make docs`.

## Kinds

";

const SQLSTATES: &str = "
## What the server says

By its SQLSTATE; `xxx` stands for every code of the class that has no line of its own. \"Passes\" is what
`Error::is_transient` answers.

";

const DRIVER: &str = "
## What the driver refuses

Before the server has said anything there is no SQLSTATE. Then the driver's text decides:

";

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str(
        "| kind | `ErrorKind::` | means | passes | elsewhere | HTTP | leaves | what to do |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for kind in ErrorKind::ALL {
        let [means, state, help] = kind.words();
        let passes = yes_or_no(kind.is_transient());
        let elsewhere = yes_or_no(kind.retry_elsewhere());
        let (name, status) = (kind.as_str(), kind.http_status());
        writeln!(text, "| `{name}` | `{kind:?}` | {means} | {passes} | {elsewhere} | {status} | {state} | {help} |")
            .unwrap();
    }
    text.push_str(SQLSTATES);
    text.push_str("| SQLSTATE | condition | kind | passes | what to do |\n| --- | --- | --- | --- | --- |\n");
    for rule in RULES {
        let pattern = rule.pattern();
        // This asks a real error, so that the column shows what a caller will see.
        let passes = yes_or_no(Error::new(rule.kind, "").with_sqlstate(&pattern).is_transient());
        let (condition, kind, help) = (rule.condition.to_lowercase(), rule.kind.as_str(), rule.help);
        writeln!(text, "| `{pattern}` | {condition} | `{kind}` | {passes} | {help} |").unwrap();
    }
    text.push_str(DRIVER);
    text.push_str("| its text begins | kind | what to do |\n| --- | --- | --- |\n");
    for (begins, kind, help) in REFUSED_BY_DRIVER {
        writeln!(text, "| {begins} | `{}` | {help} |", kind.as_str()).unwrap();
    }
    text
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
