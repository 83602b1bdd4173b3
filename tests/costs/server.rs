//! A private server that counts statements, and which file of `src/store/sql` each statement comes from.

use std::collections::BTreeMap;
use std::path::Path;

use podlock::throwaway::Server;
use tokio_postgres::{Client, NoTls};

use crate::inherited;
use crate::page::Counts;

/// A server with `pg_stat_statements`, without autovacuum: what it does by itself is not counted.
pub(crate) async fn start() -> (Server, Client) {
    let server = tokio::task::spawn_blocking(|| {
        inherited::postgres()
            .setting("shared_preload_libraries", "pg_stat_statements")
            .setting("pg_stat_statements.track", "top")
            .setting("autovacuum", "off")
            .start()
            .expect("a throwaway PostgreSQL")
    })
    .await
    .expect("the server is started");
    let client = connect(&server.url("postgres")).await;
    client.batch_execute("CREATE EXTENSION pg_stat_statements").await.expect("the extension");
    (server, client)
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    tokio::spawn(async move {
        // It ends with the server.
        let _ = connection.await;
    });
    client
}

/// How often each file was run since the last [`reset`], among files that name one of `tables`.
pub(crate) async fn calls(client: &Client, tables: &[&str]) -> Counts {
    let files = files(tables);
    let mut counts = Counts::new();
    let sql = "SELECT query, calls FROM pg_stat_statements WHERE toplevel";
    for row in client.query(sql, &[]).await.expect("statements") {
        let (text, calls): (&str, i64) = (row.get(0), row.get(1));
        if let Some(file) = files.get(&shape(text)) {
            *counts.entry(file.clone()).or_default() += calls.unsigned_abs();
        }
    }
    counts
}

pub(crate) async fn reset(client: &Client) {
    client.execute("SELECT pg_stat_statements_reset()", &[]).await.expect("a reset");
}

/// The files that name one of `tables`, by the shape of their statements.
fn files(tables: &[&str]) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/sql");
    let part = |name: &str| std::fs::read_to_string(folder.join("part").join(format!("{name}.sql"))).expect("a part");
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).expect("the statements") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a statement");
        let mut sql: String =
            text.lines().filter(|line| !line.starts_with('\\')).map(|line| format!("{line}\n")).collect();
        for line in text.lines().filter(|line| line.starts_with("\\set ")) {
            let name = line.split_whitespace().nth(1).expect("a name");
            sql = sql.replace(&format!(":{name}"), &part(name));
        }
        if tables.iter().any(|table| sql.contains(&format!(".{table}\n")) || sql.contains(&format!(".{table} "))) {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            files.insert(shape(&sql.replace(":\"schema\"", "public").replace(":'studio_", "'studio_")), name);
        }
    }
    files
}

/// A statement without comments, spaces and constants: `pg_stat_statements` puts parameters in place of constants.
fn shape(sql: &str) -> String {
    let mut shape = String::new();
    for line in sql.lines() {
        let mut rest = line.split("--").next().unwrap_or_default().chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                ':' if rest.peek() == Some(&'\'') => {}
                '\'' => {
                    while rest.next_if(|c| *c != '\'').is_some() {}
                    rest.next();
                    shape.push('?');
                }
                '$' => {
                    while rest.next_if(char::is_ascii_digit).is_some() {}
                    shape.push('?');
                }
                c if c.is_ascii_alphanumeric() || c == '_' => {
                    let mut word = String::from(c);
                    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        word.push(c);
                    }
                    let is_constant = word.parse::<f64>().is_ok() || ["NULL", "true", "false"].contains(&word.as_str());
                    shape.push_str(if is_constant { "?" } else { &word });
                    shape.push(' ');
                }
                '"' | ';' => {}
                c if c.is_whitespace() => {}
                c => shape.push(c),
            }
        }
    }
    // `IS NULL` is no constant, and stays as it is in one text and not in the other.
    shape.replace("? ", "?").replace("IS ?", "IS NULL").replace("IS NOT ?", "IS NOT NULL")
}
