//! No reply of the server may be a panic: a column may be NULL where the server hides it, or of another type behind a
//! proxy.

use std::path::Path;

use crate::source;

/// The lines that call the driver's `Row::get`, which panics: by a number, with the column's type named, or on a `row`.
fn panics_in(text: &str) -> Vec<String> {
    let is_call = |line: &str| {
        let by_number = line.split(".get(").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        by_number || line.contains(".get::<") || line.contains("row.get(")
    };
    let lines = text.lines().enumerate().filter(|(_, line)| is_call(line));
    lines.map(|(n, line)| format!("{}: {}", n + 1, line.trim())).collect()
}

/// Each value of a reply is read by `Reply::at` or by name through `operator::rows::get`, whose errors a caller sees.
#[test]
fn no_reply_of_the_server_can_be_a_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    // The command and the HTTP interface read no rows.
    for folder in ["pg", "store", "operator", "pod", "runs", "history", "membership"] {
        files.extend(source::files(&root.join(folder)));
    }
    assert!(files.len() > 40, "{files:?}");
    for file in files {
        let found = panics_in(&std::fs::read_to_string(&file).unwrap());
        assert!(found.is_empty(), "{}: {found:?} reads a reply by a get that panics; use Reply::at", file.display());
    }
}

#[test]
fn the_search_for_panics_finds_them() {
    let code =
        "let a: i32 = row.get(0);\nrow.get::<_, bool>(1);\nrow.get(\"x\");\nmap.get(&key);\nrow.at(2)?;\nmap.get(key);";
    assert_eq!(panics_in(code).len(), 3);
}
