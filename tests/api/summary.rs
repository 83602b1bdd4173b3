//! `make test` ends with one summary of all suites, and fails if any of them did: scripts/test.sh, with a cargo of this
//! test's own in place of the real one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// Plays what suites do, in the words of libtest and libtest-mimic: pass, fail, skip, crash, hang, not compile.
const CARGO: &str = r#"#!/bin/sh
result() {
    echo
    echo "test result: $1. $2 passed; $3 failed; $4 ignored; 0 measured; 0 filtered out; finished in 0.01s"
}
case "$*" in
    *--no-run*) echo 'error: could not compile `podlock` (test "model") due to 1 previous error' >&2; exit 101 ;;
    'build '*) ;;
    *--doc*)
        printf 'running 1 test\ntest src/lib.rs - (line 1) ... ok\n'; result ok 1 0 0
        printf 'running 2 tests\ntest src/lib.rs - a (line 9) - compile ... ok\ntest src/lib.rs - b (line 8) ... ok\n'
        result ok 2 0 0 ;;
    *--lib*) printf 'running 2 tests\ntest a::b ... ok\ntest a::c ... ok\n'; result ok 2 0 0 ;;
    *--bins*) printf 'running 0 tests\n'; result ok 0 0 0 ;;
    *'--test api '*)
        printf 'running 3 tests\ntest a::d ... FAILED\ntest a::c ... ok\ntest a::b ... FAILED\n\nfailures:\n\n'
        printf -- '---- a::b stdout ----\n'
        printf 'said %s\n' 1 2 3 4 5 6 7
        printf '\n---- a::d stdout ----\nsaid by another\n\nfailures:\n    a::b\n    a::d\n\n'
        result FAILED 1 2 0
        echo 'error: test failed, to rerun pass `--test api`' >&2
        exit 101 ;;
    *'--test cancel '*) printf 'running 3 tests\ntest one ... ok\nhalf a line'; kill -SEGV $$ ;;
    *'--test chaos '*)
        printf 'running 3 tests\ntest networks::cut   ... \033[33mignored (needs root, needs ip (iproute2))\033[0m\n'
        printf 'a: buried 3 ms (bound 9 ms)\ntest limits::disk    ... ok\n'
        [ -n "${HANGS:-}" ] && sleep 600
        printf 'test limits::locks   ... ok\n'; result ok 2 0 1 ;;
    *'--test compose '*) printf 'running 1 test\ntest twice ... ignored, needs a Docker engine\n'; result ok 0 0 1 ;;
    *'--test model '*) echo 'error: could not compile `podlock` (test "model") due to 1 previous error' >&2; exit 101 ;;
    *'--test '*) printf 'running 2 tests\ntest a ... ignored, large\ntest b ... ignored, large\n'; result ok 0 0 2 ;;
esac
"#;

/// What the script prints for these suites, and its exit code.
fn test_sh(hangs: bool, suites: &[&str]) -> (String, i32) {
    let dir = tempfile::tempdir().unwrap();
    let cargo = dir.path().join("cargo");
    fs::write(&cargo, CARGO).unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let mut script = Command::new("sh");
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/test.sh")).args(suites);
    script.env("CARGO", &cargo).env("CARGO_TARGET_DIR", dir.path().join("target"));
    // Only what hangs is to be stopped, on a slow machine too.
    script.env("TEST_LIMIT", if hangs { "10s" } else { "10m" }).env_remove("HANGS");
    if hangs {
        script.env("HANGS", "1");
    }
    let done = script.output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    println!("{text}{}", String::from_utf8_lossy(&done.stderr));
    (text, done.status.code().unwrap())
}

/// The line of the table: passed, failed, skipped, and what is said of the suite.
fn row<'t>(text: &'t str, suite: &str) -> (&'t str, &'t str, &'t str, String) {
    let table = text.rsplit_once("\nsuite ").expect("a table").1;
    let line = table.lines().find(|line| line.split_whitespace().next() == Some(suite)).expect("its line");
    let words: Vec<_> = line.split_whitespace().collect();
    (words[1], words[2], words[3], words[5..].join(" "))
}

#[test]
fn one_summary_tells_of_every_suite_and_why_tests_were_skipped() {
    let all = ["doc", "lib", "bins", "api", "cancel", "chaos", "cli", "compose", "costs", "it", "model", "openapi"];
    let (text, code) = test_sh(false, &[]);
    assert_eq!(code, 1);
    let counts = |suite| {
        let (passed, failed, skipped, note) = row(&text, suite);
        (format!("{passed} {failed} {skipped}"), note)
    };
    let expected = [
        ("doc", "3 0 0", ""),
        ("lib", "2 0 0", ""),
        ("bins", "0 0 0", ""),
        ("api", "1 2 0", "FAILED"),
        ("cancel", "1 1 0", "crashed (status 139); 2 of its 3 tests came to no end"),
        ("chaos", "2 0 1", ""),
        ("cli", "0 0 2", ""),
        ("compose", "0 0 1", ""),
        ("costs", "0 0 2", ""),
        ("it", "0 0 2", ""),
        ("model", "0 1 0", "did not compile"),
        ("openapi", "0 0 2", ""),
    ];
    assert_eq!(expected.map(|(suite, ..)| suite), all);
    for (suite, numbers, note) in expected {
        assert_eq!(counts(suite), (numbers.to_owned(), note.to_owned()), "{suite}");
    }
    for line in [
        "  1 of chaos: needs root, needs ip (iproute2)",
        "  1 of compose: needs a Docker engine",
        "  2 of it: large",
        "  api: a::b",
        "  model: did not compile",
    ] {
        assert!(text.lines().any(|l| l == line), "no line {line:?}");
    }
    assert_eq!(text.lines().last(), Some("9 passed, 4 failed, 10 skipped"));
}

/// A machine may keep no more of the output than its end.
#[test]
fn the_summary_says_why_one_test_of_each_suite_failed() {
    let (text, _) = test_sh(false, &["api", "cancel", "lib", "model"]);
    let told = text.rsplit_once("\nfailed:\n").expect("a list of failures").1;
    let expected = "  api: a::d
  api: a::b
      said 1
      said 2
      said 3
      …
      said 5
      said 6
      said 7
  cancel: crashed (status 139); 2 of its 3 tests came to no end
      running 3 tests
      test one ... ok
      half a line
  model: did not compile
      error: could not compile `podlock` (test \"model\") due to 1 previous error

4 passed, 4 failed, 0 skipped
";
    assert_eq!(told, expected);
}

#[test]
fn a_suite_that_hangs_is_stopped_and_has_failed() {
    let (text, code) = test_sh(true, &["chaos", "lib"]);
    let (passed, failed, skipped, note) = row(&text, "chaos");
    assert_eq!((passed, failed, skipped), ("1", "1", "1"));
    assert_eq!(note, "took too long and was stopped; 1 of its 3 tests came to no end");
    assert_eq!((text.lines().last(), code), (Some("3 passed, 1 failed, 1 skipped"), 1));
}

#[test]
fn suites_that_pass_are_a_success_and_one_that_is_not_there_is_refused() {
    let (text, code) = test_sh(false, &["doc", "lib", "bins", "it"]);
    assert_eq!((text.lines().last(), code), (Some("5 passed, 0 failed, 2 skipped"), 0));
    let (text, code) = test_sh(false, &["lib", "none"]);
    assert_eq!((text.as_str(), code), ("", 2));
}
