//! Tests do not depend on what started them. This program is started here as scripts, `nohup` and odd shells start it.

use tokio::process::Command;

use crate::harness::{Done, finish, within};
use crate::patience::TEST;

/// Tests whose processes are sent signals, have a terminal, or print for people; and one that uses the environment of
/// libpq, a proxy or the locale, if anything does.
const TESTS: [&str; 5] = [
    "hold::signals_are_passed_on_and_end_only_what_they_would_have_ended",
    "hold::a_stop_from_the_terminal_stops_both_and_both_go_on",
    "hold::neither_the_command_nor_what_it_started_outlives_a_killed_podlock",
    "http::a_run_is_started_described_and_cancelled",
    "verbs::tables_show_the_same_and_their_control_characters_are_harmless",
];

/// Runs [`TESTS`] from a shell that first does what `before` says.
async fn tests_after(before: &str, environment: &[(&str, &str)]) -> Done {
    let this = std::env::current_exe().unwrap();
    let mut shell = Command::new("setsid");
    shell.args(["-w", "sh", "-c", &format!("{before}\nexec \"$@\""), "sh"]).arg(this);
    shell.args(["--exact", "--test-threads=2"]).args(TESTS).envs(environment.iter().copied());
    finish(shell).await
}

fn all_passed(done: &Done) {
    let passed = format!("{} passed; 0 failed", TESTS.len());
    assert!(done.code == 0 && done.stdout.contains(&passed), "{}\n{}", done.stdout, done.stderr);
}

/// `make test &` in a script has SIGINT and SIGQUIT ignored, `nohup` SIGHUP; the others come from odder parents.
#[test]
fn tests_hold_where_signals_are_ignored_and_there_is_no_terminal_and_no_input() {
    within(TEST, async {
        let ignored = "trap '' HUP INT QUIT TERM USR1 USR2 ALRM PIPE CHLD CONT TSTP TTIN TTOU WINCH IO; exec <&-";
        all_passed(&tests_after(ignored, &[]).await);
    });
}

#[test]
fn tests_hold_under_any_umask_environment_locale_and_time_zone() {
    within(TEST, async {
        let environment = [
            ("PGHOST", "nowhere.invalid"),
            ("PGPORT", "1"),
            ("PGUSER", "nobody"),
            ("PGSSLMODE", "verify-full"),
            ("PGSERVICE", "none"),
            ("PGOPTIONS", "-c search_path=elsewhere"),
            ("DATABASE_URL", "postgres://nobody@nowhere.invalid/none"),
            ("POD_NAME", "another"),
            ("PODLOCK_LEASE", "1ms"),
            ("PODLOCK_SCHEMA", "elsewhere"),
            ("RUST_LOG", "trace"),
            ("NO_COLOR", "1"),
            ("CLICOLOR_FORCE", "1"),
            ("COLUMNS", "20"),
            ("http_proxy", "http://127.0.0.1:1"),
            ("HTTP_PROXY", "http://127.0.0.1:1"),
            ("ALL_PROXY", "http://127.0.0.1:1"),
            ("LANG", "tr_TR.UTF-8"),
            ("LC_ALL", "tr_TR.UTF-8"),
            ("LANGUAGE", "de"),
            ("TZ", "Pacific/Chatham"),
        ];
        all_passed(&tests_after("umask 077", &environment).await);
    });
}
