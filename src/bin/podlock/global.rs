//! The options that every verb takes.

use podlock::{Config, Operator};

use crate::failure::Failure;

/// Where the database is.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Where PostgreSQL is, as postgres://user:password@host/database, or in libpq's words
    ///
    /// What it leaves out comes from libpq's variables (PGHOST, PGUSER, PGPASSWORD, PGSERVICE, ...).
    ///
    /// Better given in the environment: other users of the machine can see a command line.
    #[arg(long, global = true, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    #[arg(help_heading = "Database")]
    database_url: Option<String>,
    /// The schema of podlock's tables [default: public]
    #[arg(long, global = true, env = "PODLOCK_SCHEMA", value_name = "NAME", help_heading = "Database")]
    schema: Option<String>,
}

impl Global {
    /// The settings of the environment, overridden by the command line.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let named_otherwise = ["PGHOST", "PGHOSTADDR", "PGSERVICE"].iter().any(|name| std::env::var_os(name).is_some());
        let url = match self.url() {
            Some(url) => url,
            None if named_otherwise => String::new(),
            None => {
                let missing = "no database is named; set DATABASE_URL, PGHOST or PGSERVICE, or give --database-url";
                return Err(Failure::Usage(missing.to_owned()));
            }
        };
        let config = Config::from_env()?.with(|c| c.database_url = url.into());
        Ok(match &self.schema {
            Some(schema) => config.schema(schema),
            None => config,
        })
    }

    /// The database's URL, if one was given. An empty one counts as not given, because an unset variable often becomes
    /// empty.
    pub(crate) fn url(&self) -> Option<String> {
        self.database_url.clone().filter(|url| !url.is_empty())
    }

    /// The schema's name. Needs no database.
    pub(crate) fn schema(&self) -> Result<&str, Failure> {
        let schema = self.schema.as_deref().unwrap_or("public");
        Config::new("").schema(schema).validate()?;
        Ok(schema)
    }

    /// A handle on the database.
    pub(crate) async fn operator(&self) -> Result<Operator, Failure> {
        Ok(Operator::connect(&self.config()?).await?)
    }
}
