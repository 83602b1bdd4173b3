//! Each statement in `src/store/sql` is a file that a person can run with psql after setting its arguments.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::inherited::clean;
use crate::support::{Db, timed};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sql")
}

/// The statements, without the parts that they share.
fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
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
        "int2" | "int4" | "int8" | "float8" | "numeric" => "1",
        "bool" => "true",
        // An array: the statements that take a list apart want one, and the others take any value.
        "json" | "jsonb" => "[]",
        "interval" => "1 s",
        "timestamptz" => "2026-01-01T00:00:00Z",
        "oid" | "regclass" => "1259",
        "bytea" => "\\x00",
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
        let parts: Vec<_> = std::fs::read_dir(folder().join("part")).unwrap().map(|e| e.unwrap().path()).collect();
        let parts: String = parts.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let files = files();
        assert!(!files.is_empty(), "there are statements");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let arguments = arguments(&text);
            for (name, _) in &arguments {
                let used = format!(":'{name}'");
                assert!(text.contains(&used) || parts.contains(&used), "{}: {name} is not used", file.display());
            }
            let mut psql = tokio::process::Command::new("psql");
            clean(psql.as_std_mut());
            psql.args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-v", "schema=public"]);
            for name in names_of_ours(&text).into_iter().chain(names_of_ours(&parts)) {
                psql.args(["-v", &format!("{name}=public.{name}")]);
            }
            for (name, of) in &arguments {
                psql.args(["-v", &format!("{name}={}", sample(of))]);
            }
            psql.arg("-c").arg("BEGIN").arg("-f").arg(&file).arg("-c").arg("ROLLBACK").arg("--dbname").arg(&db.url);
            psql.current_dir(folder()).stdin(Stdio::null()).kill_on_drop(true);
            let output = psql.output().await.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}", file.display());
        }
    })
    .await;
}
