//! `podlock migrate`: the schema of podlock's tables.

use podlock::Config;
use podlock::migrate::{self, Access, Version};

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
        /// Exit with 1 if the database lacks a version
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the schema as a script for psql, for a database that only its administrators may change
    Sql {
        /// The newest version that the database has, by `podlock migrate status`; 0 for none
        #[arg(long, value_name = "VERSION", default_value_t = 0)]
        from: i32,
    },
    /// Print a script for psql that gives a role what a pod needs, and no more. Run it again after each migration
    Grants {
        /// The role; it must exist
        role: String,
        /// Only what reading needs, for people and dashboards
        #[arg(long)]
        read_only: bool,
    },
}

pub(crate) async fn run(global: &Global, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Up { output } => {
            let config = global.config()?;
            list(&migrate::up(&config).await?, output, "the schema was up to date")?;
            warn(&config).await
        }
        Verb::Status { check, output } => {
            let config = global.config()?;
            let versions = migrate::status(&config).await?;
            list(&versions, output, "this version knows no migration")?;
            let behind = versions.iter().any(|version| !version.applied);
            let says = "the database lacks a version; `podlock migrate up` applies it";
            if behind && !check {
                note(says);
            }
            warn(&config).await?;
            if behind && check { Err(Failure::Failed(says.to_owned())) } else { Ok(()) }
        }
        Verb::Sql { from } => {
            let newest = migrate::newest();
            if from > newest {
                let what = format!("this binary knows versions up to {newest}, and --from says {from}");
                return Err(Failure::Usage(what));
            }
            script(&migrate::sql(global.schema()?, from))
        }
        Verb::Grants { role, read_only } => {
            let access = if read_only { Access::Read } else { Access::Pod };
            script(&migrate::grants(global.schema()?, &role, access))
        }
    }
}

async fn warn(config: &Config) -> Result<(), Failure> {
    for warning in migrate::warnings(config).await? {
        note(&warning);
    }
    Ok(())
}

/// Prints a script for psql. Without this setting, psql goes on after an error and exits with 0.
fn script(sql: &str) -> Result<(), Failure> {
    Ok(output::line(&format!("\\set ON_ERROR_STOP on\n{}", sql.trim_end()))?)
}

fn list(versions: &[Version], output: OutputArgs, nothing: &str) -> Result<(), Failure> {
    let mut list = List::new(output.format);
    for version in versions {
        list.push(version)?;
    }
    Ok(list.finish(nothing)?)
}

impl Tabular for Version {
    const COLUMNS: &'static [&'static str] = &["version", "name", "applied", "known"];
    const NUMBERS: &'static [&'static str] = &["version"];

    fn cells(&self) -> Vec<String> {
        vec![self.version.to_string(), self.name.clone(), self.applied.to_string(), self.known.to_string()]
    }
}
