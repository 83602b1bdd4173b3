//! The two roles that a careful administrator makes: one owns the tables and runs the migrations, and pods log in as
//! the other.

use podlock::Config;
use podlock::migrate::{self, Access};
use podlock::throwaway::Server;
use tokio::sync::OnceCell;

use super::sql;

const PASSWORD: &str = "hunter2secret";

/// A server's roles, and the database that others are copies of.
pub(crate) struct Roles {
    pub(crate) template: &'static str,
    port: u16,
}

impl Roles {
    /// Where pods log in.
    pub(crate) fn pod_url(&self, database: &str) -> String {
        format!("postgresql://podlock_pod:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    fn owner_url(&self, database: &str) -> String {
        format!("postgresql://podlock_owner:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }
}

/// The roles of this binary's server, made at the first call.
pub(crate) async fn of(server: &'static Server) -> &'static Roles {
    static ROLES: OnceCell<Roles> = OnceCell::const_new();
    ROLES.get_or_init(|| make(server)).await
}

async fn make(server: &Server) -> Roles {
    let roles = Roles { template: "podlock_template", port: server.port() };
    let admin = sql::connect(&server.url("postgres")).await;
    for role in ["podlock_owner", "podlock_pod"] {
        let create = format!("CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD '{PASSWORD}'");
        admin.batch_execute(&create).await.expect("a role");
    }
    let create = format!("CREATE DATABASE {} OWNER podlock_owner", roles.template);
    admin.batch_execute(&create).await.expect("a database");
    // Migrates as the owner of the database, who is no superuser. From PostgreSQL 15 on, the schema `public` belongs to
    // the database's owner. Before that, every role may create objects in it.
    let owner_url = roles.owner_url(roles.template);
    migrate::up(&Config::new(&owner_url)).await.expect("the owner may migrate");
    let owner = sql::connect(&owner_url).await;
    owner.batch_execute(&migrate::grants("public", "podlock_pod", Access::Pod)).await.expect("the owner may grant");
    drop(owner);
    // A database can be copied only while nobody is connected to it.
    super::eventually(crate::patience::SOON, "nobody is connected to the template", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
        match admin.scalar::<i64>(sql, &[&roles.template]).await {
            0 => Ok(()),
            n => Err(format!("{n}")),
        }
    })
    .await;
    roles
}
