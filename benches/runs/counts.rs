//! What a database was asked to do, by `pg_stat_statements`.

use tokio_postgres::Client;

use crate::Result;

/// Statements of one kind of write, and the runs that they wrote. Each returns a row for a run; but a start returns one
/// row for all, and its runs are counted elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Writes {
    pub(crate) calls: f64,
    pub(crate) rows: f64,
}

impl Writes {
    /// How many runs a statement wrote, on average.
    pub(crate) fn group(&self) -> f64 {
        if self.calls > 0.0 { self.rows / self.calls } else { 0.0 }
    }

    pub(crate) fn size(&self) -> usize {
        self.group().round().max(1.0) as usize
    }
}

/// One statement, as the server names it.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) calls: f64,
    pub(crate) ms: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// All statements, also those of the pods' own.
    pub(crate) statements: Vec<Statement>,
    pub(crate) calls: f64,
    /// The server's time for all of them.
    pub(crate) ms: f64,
    pub(crate) starts: Writes,
    pub(crate) claims: Writes,
    pub(crate) checkpoints: Writes,
    pub(crate) ends: Writes,
    pub(crate) yields: Writes,
}

impl Counts {
    pub(super) async fn read(admin: &Client, database: &str) -> Result<Self> {
        let sql = "SELECT s.query, s.calls::float8, s.rows::float8, s.total_exec_time
                     FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
                    WHERE d.datname = $1 AND s.toplevel ORDER BY s.total_exec_time DESC";
        let mut counts = Self::default();
        for row in admin.query(sql, &[&database]).await? {
            let (text, calls, rows, ms): (String, f64, f64, f64) = (row.get(0), row.get(1), row.get(2), row.get(3));
            counts.calls += calls;
            counts.ms += ms;
            if let Some(writes) = counts.of(&text) {
                writes.calls += calls;
                writes.rows += rows;
            }
            counts.statements.push(Statement { text, calls, ms });
        }
        Ok(counts)
    }

    /// The statements that take most of the server's time.
    pub(crate) fn top(&self, runs: f64) -> Vec<String> {
        let show = |statement: &Statement| {
            let Statement { text, calls, ms } = statement;
            format!("{:7.1} µs a run, {:7.3} ms each, {calls:6} calls: {}", ms * 1e3 / runs, ms / calls, gist(text))
        };
        self.statements.iter().take(4).map(show).collect()
    }

    /// Which kind of write a statement is.
    fn of(&mut self, text: &str) -> Option<&mut Writes> {
        Some(if text.contains("quarantined AS") {
            &mut self.claims
        } else if text.contains("studio_runs (run_id") {
            &mut self.starts
        } else if text.contains("SET checkpoint =") {
            &mut self.checkpoints
        } else if text.contains("SET state =") && text.contains("parse_error =") {
            &mut self.ends
        } else if text.contains("given AS") {
            &mut self.yields
        } else {
            return None;
        })
    }
}

/// A part of a statement that tells it from others, for people: what it writes, or else its first words.
pub(crate) fn gist(sql: &str) -> String {
    let words = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let from = ["INSERT INTO", "UPDATE"].iter().filter_map(|word| words.find(word)).min().unwrap_or(0);
    let first: String = words.chars().take(40).collect();
    let rest: String = words.get(from..).unwrap_or_default().chars().take(70).collect();
    if from > 40 { format!("{first} … {rest}") } else { words.chars().take(110).collect() }
}
