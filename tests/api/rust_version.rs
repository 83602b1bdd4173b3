//! `rust-version` is no lower than what any dependency of the library or the command asks for: `make msrv`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

/// The packages that are built for this platform with all features, but for those that only tests need: the name, and
/// the oldest Rust that it says it can do with.
fn built(metadata: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let nodes: BTreeMap<_, _> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let (mut found, mut next) = (BTreeSet::new(), vec![text(&metadata["resolve"]["root"])]);
    while let Some(id) = next.pop() {
        if found.insert(id.clone()) {
            let needed = list(&nodes[&id]["deps"]).into_iter();
            let needed = needed.filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev"));
            next.extend(needed.map(|dep| text(&dep["pkg"])));
        }
    }
    let packages = list(&metadata["packages"]).into_iter().filter(|package| found.contains(&text(&package["id"])));
    packages.map(|package| (text(&package["name"]), package["rust_version"].as_str().map(str::to_owned))).collect()
}

fn number(version: &str) -> [u32; 3] {
    let mut numbers = version.split('.').map(|part| part.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

/// Those that need a newer Rust than `ours`.
fn too_new(built: &[(String, Option<String>)], ours: &str) -> Vec<String> {
    let newer = built.iter().filter_map(|(name, needs)| {
        let needs = needs.as_deref().filter(|needs| number(needs) > number(ours))?;
        Some(format!("{name} needs {needs}"))
    });
    newer.collect()
}

fn cargo(args: &[&str]) -> String {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let done = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).output().unwrap();
    assert!(done.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn the_rust_version_is_what_the_dependencies_need() {
    let about = cargo(&["-vV"]);
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("the host");
    let metadata =
        cargo(&["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", host]);
    let built = built(&serde_json::from_str(&metadata).unwrap());
    let has = |name: &str| built.iter().any(|(other, _)| other == name);
    assert!(has("tokio-postgres") && has("clap") && !has("stateright"), "these are not what is built: {built:?}");
    let ours = env!("CARGO_PKG_RUST_VERSION");
    let too_new = too_new(&built, ours);
    assert!(too_new.is_empty(), "rust-version is {ours}; raise it, or keep the older version: {too_new:?}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compatibility.md")).unwrap();
    assert!(page.contains(&format!("The minimum is Rust {ours},")), "docs/compatibility.md names another version");
}

#[test]
fn a_rust_version_too_low_is_found_wherever_it_is_needed_but_in_tests() {
    let dep = |pkg: &str, kinds: &[Option<&str>]| {
        let kinds: Vec<_> = kinds.iter().map(|kind| json!({ "kind": kind })).collect();
        json!({ "pkg": pkg, "dep_kinds": kinds })
    };
    let package = |name: &str, needs: Option<&str>| json!({ "id": name, "name": name, "rust_version": needs });
    let metadata = json!({
        "packages": [
            package("ours", Some("1.85")), package("a", Some("1.85.1")), package("b", Some("1.100")),
            package("tests", Some("1.99")), package("of-tests", Some("1.99")), package("builds", Some("2.0")),
            package("silent", None), package("older", Some("1.9")),
        ],
        "resolve": { "root": "ours", "nodes": [
            { "id": "ours", "deps": [
                dep("a", &[Some("dev"), None]), dep("tests", &[Some("dev")]), dep("builds", &[Some("build")])
            ] },
            { "id": "a", "deps": [dep("b", &[None]), dep("silent", &[None])] },
            { "id": "b", "deps": [dep("a", &[None]), dep("older", &[None])] },
            { "id": "tests", "deps": [dep("of-tests", &[None])] },
            { "id": "of-tests", "deps": [] }, { "id": "builds", "deps": [] }, { "id": "silent", "deps": [] },
            { "id": "older", "deps": [] },
        ] },
    });
    let built = built(&metadata);
    assert_eq!(too_new(&built, "1.85"), ["a needs 1.85.1", "b needs 1.100", "builds needs 2.0"]);
    assert_eq!(too_new(&built, "1.85.1"), ["b needs 1.100", "builds needs 2.0"]);
    assert!(too_new(&built, "2.0.0").is_empty());
}
