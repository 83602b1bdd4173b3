//! Each statement in `src/store/sql` and `src/pg/sql` is a file that a person can run with psql after setting its
//! arguments.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::inherited::clean;
use crate::support::{Db, timed};

fn folders() -> [PathBuf; 2] {
    ["src/store/sql", "src/pg/sql"].map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
}

/// The statements of a folder, without the parts that they share.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    files
}

/// The names and types that a file lists under `-- Arguments:`.
fn arguments(text: &str) -> Vec<(String, String)> {
    let listed = text.lines().map_while(|line| line.strip_prefix("--")).skip_while(|line| line.trim() != "Arguments:");
    let listed = listed.skip(1).take_while(|line| line.starts_with("   ")).filter(|line| !line.starts_with("    "));
    let words = listed.map(|line| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>());
    words.map(|words| (words[0].clone(), words.get(1).cloned().unwrap_or_default())).collect()
}

/// A value of the type, as text.
fn sample(of: &str) -> &'static str {
    match of {
        array if array.ends_with("[]") => "{}",
        "uuid" => "00000000-0000-0000-0000-000000000001",
        "text" => "x",
        "int2" | "int4" | "int8" | "numeric" => "1",
        // An hour, in seconds: nothing younger is pruned.
        "float8" => "3600",
        "bool" => "true",
        // An array: the statements that take a list apart want one, and the others take any value.
        "json" | "jsonb" => "[]",
        "interval" => "1 s",
        "timestamptz" => "2026-01-01T00:00:00Z",
        "oid" | "regclass" => "1259",
        "bytea" => "\\x00",
        "pg_snapshot" => "10:20:10,14",
        "xid8" => "10",
        other => panic!("no sample of type {other:?}: write types as pg_type names them"),
    }
}

/// The psql variables (`:'name'`) that stand for names of podlock's own objects.
fn names_of_ours(text: &str) -> Vec<&str> {
    let names = text.split(":'").skip(1).filter_map(|rest| rest.split('\'').next());
    names.filter(|name| name.starts_with("studio_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_runs_each_file() {
    timed(async {
        let db = Db::new().await;
        for folder in folders() {
            let parts: Vec<_> = std::fs::read_dir(folder.join("part")).unwrap().map(|e| e.unwrap().path()).collect();
            let parts: String = parts.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
            let files = files(&folder);
            assert!(!files.is_empty(), "{}: there are statements", folder.display());
            for file in files {
                run(&db, &file, &parts).await;
            }
        }
    })
    .await;
}

/// Runs a file with psql, in a transaction that is rolled back. `parts` is the text of all parts of its folder.
async fn run(db: &Db, file: &Path, parts: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    let arguments = arguments(&text);
    for (name, _) in &arguments {
        let used = format!(":'{name}'");
        assert!(text.contains(&used) || parts.contains(&used), "{}: {name} is not used", file.display());
    }
    let mut psql = psql(&db.url, file);
    psql.args(["-v", "schema=public"]);
    for name in names_of_ours(&text).into_iter().chain(names_of_ours(parts)) {
        psql.args(["-v", &format!("{name}=public.{name}")]);
    }
    for (name, of) in &arguments {
        psql.args(["-v", &format!("{name}={}", sample(of))]);
    }
    psql.arg("-c").arg("BEGIN").arg("-f").arg(file).arg("-c").arg("ROLLBACK");
    answer(psql).await.unwrap_or_else(|said| panic!("{}: {said}", file.display()));
}

/// psql, where the parts of this file are.
fn psql(url: &str, file: &Path) -> Command {
    let mut psql = Command::new("psql");
    clean(psql.as_std_mut());
    psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "-v", "ON_ERROR_STOP=1", "--dbname", url]);
    psql.current_dir(file.parent().expect("a folder")).stdin(Stdio::null()).kill_on_drop(true);
    psql
}

/// What psql printed, or what it complained of.
async fn answer(mut psql: Command) -> Result<String, String> {
    let output = psql.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A configuration can have a setting of auto_explain without the library. Then nothing is logged.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_of_auto_explain_counts_only_with_its_library() {
    timed(async {
        let db = Db::new().await;
        let [_, folder] = folders();
        let file = folder.join("read_server_facts.sql");
        for (before, expected) in [
            ("SET deadlock_timeout = '3s'", "3s|-1|-1|"),
            ("SET auto_explain.log_min_duration = 0", "1s|-1|-1|"),
            ("LOAD 'auto_explain'; SET auto_explain.log_min_duration = '2500ms'", "1s|-1|-1|2500"),
        ] {
            let mut psql = psql(&db.url, &file);
            psql.arg("-c").arg(before).arg("-f").arg(&file);
            assert_eq!(answer(psql).await.as_deref(), Ok(expected), "after {before}");
        }
    })
    .await;
}
