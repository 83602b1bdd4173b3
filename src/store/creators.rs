//! Roles that may create objects in podlock's schema.
//!
//! podlock's own statements pin every name, so they do not use objects that others create there
//! (`migrations/V23__names_pinned.sql`). People and services that call podlock's functions by hand use their own
//! `search_path`, and may call another function of the same name. So a schema in which others may create objects
//! deserves a warning.

use tokio_postgres::types::Type;

use crate::error::Result;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::pg::statement::sql;

/// Roles that may create objects in the schema and own neither the schema nor podlock's tables. `PUBLIC` is every
/// role. Superusers are not listed.
pub(crate) async fn creators(session: &Session) -> Result<Vec<String>> {
    const SQL: &str = sql!("list_creators");
    let schema = session.schema().name().to_owned();
    let rows = session.query("looking who may create objects in the schema", SQL, &[(&schema, Type::TEXT)]).await?;
    rows.iter().map(|row| row.at("role")).collect()
}

/// The warning about these roles, with what to do.
pub(crate) fn advice(schema: &str, creators: &[String]) -> Option<String> {
    if creators.is_empty() {
        return None;
    }
    let name = quote_identifier(schema);
    let quoted = |role: &String| if role == "PUBLIC" { role.clone() } else { quote_identifier(role) };
    let roles: Vec<_> = creators.iter().map(quoted).collect();
    let roles = roles.join(", ");
    Some(format!(
        "{roles} may create objects in schema {schema:?}, and so lay functions there that people call instead of \
         podlock's: REVOKE CREATE ON SCHEMA {name} FROM {roles}, or give podlock a schema of its own"
    ))
}

/// Warns once, when a pod boots. If the roles cannot be read, the pod starts all the same.
pub(crate) async fn warn(session: &Session) {
    let schema = session.schema().name();
    match creators(session).await {
        Ok(creators) => {
            if let Some(advice) = advice(schema, &creators) {
                tracing::warn!(
                    target: "podlock", event = "schema_open", schema, roles = creators.join(", "),
                    "{advice}"
                );
            }
        }
        Err(e) => {
            tracing::debug!(
                target: "podlock", event = "schema_open_unknown", error = %e,
                "who may create objects in the schema is not known"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_quotes_what_it_names() {
        assert_eq!(advice("s", &[]), None);
        let advice = advice("a\"b", &["PUBLIC".to_owned(), "o\"p".to_owned()]).expect("somebody may");
        assert!(advice.contains("REVOKE CREATE ON SCHEMA \"a\"\"b\" FROM PUBLIC, \"o\"\"p\""), "{advice}");
    }
}
