//! `podlock migrate`: podlock's tables.

use podlock::migrate::{self, Version};

use crate::failure::{Failure, note};
use crate::global::Global;
use crate::output::{self, List, OutputArgs, Tabular};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Apply what is missing, and list it. Any number may do this at once
    Up {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Which versions there are, and which of them the database has
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the whole schema as a script for psql, for a database that only its administrators may change
    Sql,
}

pub(crate) async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Up { output } => list(&migrate::up(&global.config()?).await?, output, "the schema was up to date"),
        Verb::Status { output } => {
            let versions = migrate::status(&global.config()?).await?;
            list(&versions, output, "this version knows no migration")?;
            if versions.iter().any(|version| !version.applied) {
                note("the database lacks a version; `podlock migrate up` applies it");
            }
            Ok(())
        }
        Verb::Sql => Ok(output::line(migrate::sql(global.schema()?).trim_end())?),
    }
}

fn list(versions: &[Version], output: OutputArgs, nothing: &str) -> Result<(), Failure> {
    let mut list = List::new(output.format);
    for version in versions {
        list.push(version)?;
    }
    Ok(list.finish(nothing)?)
}

impl Tabular for Version {
    const COLUMNS: &'static [&'static str] = &["version", "name", "applied"];
    const NUMBERS: &'static [&'static str] = &["version"];

    fn cells(&self) -> Vec<String> {
        vec![self.version.to_string(), self.name.clone(), self.applied.to_string()]
    }
}
