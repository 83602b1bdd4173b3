//! Pages name what the code has: verbs, kinds, log events, parts of a pod. A name that one of them forgets fails here.

use std::collections::BTreeSet;
use std::path::Path;

use podlock::protocol::cause::Cause;
use podlock::protocol::ending::Reason;
use podlock::protocol::event::EventKind;

use crate::source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between `before` and the next `"`, at each place.
fn quoted<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// The names in backticks in the first cell of each row, without the heads of tables.
fn first_cells(page: &str) -> BTreeSet<&str> {
    let below = page.lines().skip(1).chain([""]);
    let is_row = |(line, below): &(&str, &str)| line.starts_with("| `") && !below.starts_with("| ---");
    let rows = page.lines().zip(below).filter(is_row).map(|(line, _)| line);
    rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// `HoldExec` as the command line writes it.
fn kebab(name: &str) -> String {
    let mut word = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.extend(c.to_lowercase());
    }
    word
}

/// The verbs of an `enum Verb` that help shows, and whether each has verbs of its own.
fn verbs(file: &str) -> Vec<(String, bool)> {
    let file = syn::parse_file(&read(file)).unwrap();
    let verb = file.items.into_iter().find_map(|item| match item {
        syn::Item::Enum(e) if e.ident == "Verb" => Some(e),
        _ => None,
    });
    let mut found = Vec::new();
    for variant in verb.expect("an enum Verb").variants {
        let (mut hidden, mut nested) = (false, false);
        for attribute in variant.attrs.iter().filter(|a| a.path().is_ident("command")) {
            let list = attribute.meta.require_list().unwrap().tokens.to_string();
            hidden |= list.contains("hide");
            nested |= list.contains("subcommand");
        }
        if !hidden {
            found.push((kebab(&variant.ident.to_string()), nested));
        }
    }
    found
}

#[test]
fn the_page_on_operations_has_a_row_for_each_verb_of_the_command() {
    let page = read("docs/operations.md");
    let rows = |verb: &str| -> Vec<&str> {
        let begins = [format!("| `podlock {verb} "), format!("| `podlock {verb}`")];
        page.lines().filter(|line| begins.iter().any(|b| line.starts_with(b.as_str()))).collect()
    };
    let verbs_of_all = verbs("src/bin/podlock/main.rs");
    assert!(verbs_of_all.len() > 8, "the verbs are found: {verbs_of_all:?}");
    let mut forgotten = Vec::new();
    for (verb, nested) in verbs_of_all {
        let rows = rows(&verb);
        if rows.is_empty() {
            forgotten.push(verb);
        } else if nested {
            let named: BTreeSet<&str> = rows
                .iter()
                .filter_map(|row| row.split('`').nth(1))
                .flat_map(|call| call.split(' ').nth(2).unwrap_or_default().split("\\|"))
                .collect();
            let own = verbs(&format!("src/bin/podlock/{verb}.rs"));
            forgotten.extend(
                own.iter().filter(|(own, _)| !named.contains(own.as_str())).map(|(own, _)| format!("{verb} {own}")),
            );
        }
    }
    assert_eq!(forgotten, [""; 0], "docs/operations.md, under \"From a shell\", has no row for these");
}

#[test]
fn the_page_on_operations_has_a_row_for_each_kind_of_event_each_reason_and_each_cause() {
    let page = read("docs/operations.md");
    let section = |title: &str| {
        let found = page.split("\n## ").find(|section| section.lines().next() == Some(title));
        first_cells(found.unwrap_or_else(|| panic!("docs/operations.md has no section {title:?}")))
    };
    let set = |names: Vec<&'static str>| names.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(section("What the event log says"), set(EventKind::ALL.map(EventKind::as_str).to_vec()));
    let mut ends = Reason::ALL.map(Reason::as_str).to_vec();
    ends.extend(Cause::ALL.map(Cause::as_str));
    assert_eq!(section("How an incarnation ended"), set(ends));
}

/// What `podlock::pod` logs, the reference pod, is no part of the page.
#[test]
fn the_page_on_tracing_has_exactly_the_events_that_the_library_logs() {
    let files = source::files(&root().join("src")).into_iter();
    let files = files.filter(|path| !path.starts_with(root().join("src/bin")));
    let texts: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let logged: BTreeSet<&str> = texts.iter().flat_map(|text| quoted(text, "event = \"")).collect();
    let page = read("docs/tracing.md");
    let named = first_cells(&page);
    assert!(logged.len() > 40, "the events are found: {logged:?}");
    let forgotten: Vec<_> = logged.difference(&named).collect();
    let gone: Vec<_> = named.difference(&logged).collect();
    assert!(forgotten.is_empty() && gone.is_empty(), "docs/tracing.md: no row for {forgotten:?}; nobody logs {gone:?}");
}

#[test]
fn the_architecture_names_each_part_that_a_pod_spawns() {
    let page = read("ARCHITECTURE.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Threads and tasks\n")).expect("a section");
    // Words that two lines share.
    let section = section.split_whitespace().collect::<Vec<_>>().join(" ");
    let files = source::files(&root().join("src")).into_iter();
    let texts: Vec<String> = files.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let texts = texts.iter().map(|text| text.split("#[cfg(test)]").next().unwrap_or_default());
    let parts: BTreeSet<&str> = texts.flat_map(|text| quoted(text, "const NAME: &'static str = \"")).collect();
    assert!(parts.len() > 5, "the parts are found: {parts:?}");
    let forgotten: Vec<_> = parts.iter().filter(|part| !section.contains(&format!("*{part}*"))).collect();
    assert!(forgotten.is_empty(), "ARCHITECTURE.md, \"Threads and tasks\", does not name {forgotten:?}");
}

/// `CHANGING.md` names files, and tests as one gives them to cargo: `it schema::each_column_…`.
#[test]
fn every_file_and_test_that_the_page_on_changes_names_is_there() {
    let page = read("CHANGING.md");
    let mut texts = Vec::new();
    for folder in ["src", "tests"] {
        let files = source::files(&root().join(folder)).into_iter();
        texts.extend(files.map(|path| std::fs::read_to_string(path).unwrap()));
    }
    let words: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
    let is_path = |word: &str| {
        let is_file = [".rs", ".md", ".sql", ".toml"].iter().any(|end| word.ends_with(end));
        is_file && word.contains('/') && !word.contains(['*', ' ', '…', '<'])
    };
    let paths: Vec<_> = words.iter().filter(|word| is_path(word)).collect();
    let lost: Vec<_> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    let suites = ["it ", "api ", "cli ", "lib ", "chaos ", "model "];
    let tests: Vec<_> = words.iter().filter(|word| suites.iter().any(|suite| word.starts_with(suite))).collect();
    let names = |test: &str| test.rsplit([':', ' ']).next().unwrap_or_default().to_owned();
    let is_there = |test: &str| {
        let (function, literal) = (format!("fn {}(", names(test)), format!("{}\"", names(test)));
        texts.iter().any(|text| text.contains(&function) || text.contains(&literal))
    };
    let gone: Vec<_> = tests.iter().filter(|test| !is_there(test)).collect();
    assert!(paths.len() > 20 && tests.len() > 10, "the page was read: {paths:?} {tests:?}");
    assert!(
        lost.is_empty() && gone.is_empty(),
        "CHANGING.md names files {lost:?} and tests {gone:?} that are not there"
    );
}
