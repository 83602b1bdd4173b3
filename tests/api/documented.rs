//! What each public function's documentation says.

use std::path::Path;

use crate::source::{Function, offered};

/// The text under a heading is there, and is more than the heading.
fn has_section(function: &Function, heading: &str) -> bool {
    let mut lines = function.docs.lines().skip_while(|line| *line != heading).skip(1);
    lines.find(|line| !line.is_empty()).is_some_and(|line| !line.starts_with('#'))
}

fn without(heading: &str, needs: impl Fn(&Function) -> bool) -> Vec<String> {
    let offered = offered();
    let needing: Vec<_> = offered.functions.iter().filter(|f| needs(f)).collect();
    assert!(
        needing.iter().any(|f| f.name == "Pod::start") && needing.len() > 15,
        "the sources were not read: {needing:#?}"
    );
    let lacking = needing.iter().filter(|f| !has_section(f, heading));
    lacking.map(|f| format!("{} in {}", f.name, f.file.display())).collect()
}

#[test]
fn every_public_future_says_what_dropping_it_does() {
    let lacking = without("# Cancel safety", |f| f.is_async);
    assert!(lacking.is_empty(), "these have no section `# Cancel safety`: {lacking:#?}");
}

#[test]
fn every_public_function_that_can_fail_says_how() {
    let lacking = without("# Errors", |f| f.returns_result);
    assert!(lacking.is_empty(), "these have no section `# Errors`: {lacking:#?}");
}

#[test]
fn every_public_function_and_type_is_held_to_the_threads_that_it_may_cross() {
    let held = include_str!("threads.rs");
    let offered = offered();
    let futures = offered.functions.iter().filter(|f| f.is_async);
    let unheld: Vec<_> = futures.map(|f| format!("{}(", f.name)).filter(|call| !held.contains(call)).collect();
    assert!(unheld.is_empty(), "tests/api/threads.rs does not hold these futures to be Send: {unheld:#?}");
    let is_held = |name: &&String| ["<", "::"].iter().any(|before| held.contains(&format!("{before}{name}>()")));
    let unheld: Vec<_> = offered.types.iter().filter(|name| !is_held(name)).collect();
    assert!(unheld.is_empty(), "tests/api/threads.rs does not hold these types to be Send and Sync: {unheld:#?}");
}

/// The page on handlers names the tests that show what it says: `a::b::begin_of_the_name_…`.
#[test]
fn every_test_that_the_page_on_handlers_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/handlers.md")).unwrap();
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        read_all(&root.join(folder), &mut sources);
    }
    let named = page.split('`').filter(|word| {
        ["runs::", "laws::", "execute::tests::", "registry::tests::", "…::"]
            .iter()
            .any(|begins| word.starts_with(begins))
    });
    let beginnings: Vec<_> = named
        .filter_map(|word| word.rsplit("::").next())
        .map(|name| name.trim_end_matches('…'))
        .filter(|name| !name.is_empty())
        .collect();
    assert!(beginnings.len() >= 10, "the page was not read: {beginnings:?}");
    let gone: Vec<_> = beginnings.iter().filter(|begin| !sources.contains(&format!("fn {begin}"))).collect();
    assert!(gone.is_empty(), "docs/handlers.md names tests that are not there: {gone:?}");
}

/// A breaking version of the crate of dates is none of ours: one file knows the crate, and offers nothing of it.
#[test]
fn no_public_item_shows_the_crate_of_dates() {
    fn naming(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                naming(&path, found);
            } else if std::fs::read_to_string(&path).unwrap().contains("jiff") {
                found.push(path.display().to_string());
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    naming(&source, &mut found);
    let file = source.join("timestamp.rs");
    assert_eq!(found, [file.display().to_string()]);
    let text = std::fs::read_to_string(file).unwrap();
    let shown =
        |line: &&str| ["impl", "pub fn", "pub use", "pub type"].iter().any(|item| line.trim().starts_with(item));
    let shown: Vec<_> = text.lines().filter(|line| line.contains("jiff")).filter(shown).collect();
    assert!(shown.is_empty(), "{shown:?}");
}

fn read_all(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
