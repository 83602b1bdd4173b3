//! Builds connections from settings: the dialler, the opener of dedicated sessions, and the pool.

use super::role::Role;
use super::runs;
use crate::config::{Config, Environment, Settings};
use crate::error::Result;
use crate::id::PodId;
use crate::pg::dial::{Access, Dialer};
use crate::pg::pool::Database;
use crate::pg::schema::Schema;
use crate::pg::session::{ApplicationName, Opener};

/// The first part of each `application_name`.
const SERVICE: &str = "podlock";

/// Builds the dialler. Call it inside the runtime that must run the request for a password.
pub(crate) fn dialer(config: &Config, settings: &Settings) -> Result<Dialer> {
    let of_process;
    let environment = match &config.environment {
        Some(environment) => environment,
        None => {
            of_process = Environment::of_process();
            &of_process
        }
    };
    Dialer::new(Access {
        url: config.database_url(),
        environment,
        passwords: config.password_source.as_ref(),
        connect_timeout: config.connect_timeout,
        default_connect_timeout: settings.connect_timeout,
        lease: settings.lease,
    })
}

/// Opens the dedicated sessions of a pod. Without a pod, opens those of an operator.
pub(crate) fn opener(config: &Config, settings: &Settings, pod: Option<&PodId>) -> Result<Opener> {
    Ok(Opener {
        dialer: dialer(config, settings)?,
        limits: settings.limits(),
        schema: Schema::new(&config.schema),
        name: ApplicationName { service: SERVICE, instance: pod.map(|pod| pod.as_str().into()) },
    })
}

/// The pool of a pod. Each of its connections is ready for a claim.
pub(crate) fn pool_of_pod(opener: &Opener) -> Result<Database> {
    let name = opener.name.of(Role::Pool.as_str());
    Database::new(&opener.dialer, &opener.limits, opener.schema.clone(), name, Some(runs::warm_up_claim))
}

/// The pool of an operator.
pub(crate) fn pool_of_operator(opener: &Opener) -> Result<Database> {
    let name = opener.name.of(Role::Operator.as_str());
    Database::new(&opener.dialer, &opener.limits, opener.schema.clone(), name, None)
}
