//! Who may create objects in podlock's schema.
//!
//! What podlock runs has its names pinned: objects that others create there are not used (`migrations/V23__names_pinned.sql`).
//! People and services that call podlock's functions by hand look names up by their own `search_path`, and can be led astray
//! by a function of the same name. So a schema in which others may create is worth a warning.

use tokio_postgres::types::Type;

use crate::error::Result;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;

/// Roles that may create objects in the schema and own neither the schema nor podlock's tables; `PUBLIC` is everybody.
/// Superusers are not named.
pub(crate) async fn creators(session: &Session) -> Result<Vec<String>> {
    const SQL: &str = "SELECT CASE WHEN a.grantee OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN 'PUBLIC'::pg_catalog.text \
               ELSE pg_catalog.pg_get_userbyid(a.grantee)::pg_catalog.text END AS role \
          FROM pg_catalog.pg_namespace n \
         CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a \
          LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) a.grantee \
         WHERE n.nspname OPERATOR(pg_catalog.=) $1::pg_catalog.name \
           AND a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'::pg_catalog.text \
           AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner AND r.rolsuper IS NOT TRUE \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace OPERATOR(pg_catalog.=) n.oid \
                 AND c.relname OPERATOR(pg_catalog.=) 'studio_pods'::pg_catalog.name \
                 AND c.relowner OPERATOR(pg_catalog.=) a.grantee) \
         ORDER BY 1 LIMIT 100";
    let schema = session.schema().name().to_owned();
    let rows = session.query("looking who may create objects in the schema", SQL, &[(&schema, Type::TEXT)]).await?;
    rows.iter().map(|row| row.at(0)).collect()
}

/// What to say of them, with what to do.
pub(crate) fn advice(schema: &str, creators: &[String]) -> Option<String> {
    if creators.is_empty() {
        return None;
    }
    let name = quote_identifier(schema);
    let quoted = |role: &String| if role == "PUBLIC" { role.clone() } else { quote_identifier(role) };
    let roles: Vec<_> = creators.iter().map(quoted).collect();
    let roles = roles.join(", ");
    Some(format!(
        "{roles} may create objects in schema {schema:?}, and so lay functions there that people call instead of podlock's: \
         REVOKE CREATE ON SCHEMA {name} FROM {roles}, or give podlock a schema of its own"
    ))
}

/// Warns once, at a boot. That the roles cannot be read keeps no pod from starting.
pub(crate) async fn warn(session: &Session) {
    let schema = session.schema().name();
    match creators(session).await {
        Ok(creators) => {
            if let Some(advice) = advice(schema, &creators) {
                tracing::warn!(target: "podlock", event = "schema_open", schema, roles = creators.join(", "), "{advice}");
            }
        }
        Err(e) => {
            tracing::debug!(target: "podlock", event = "schema_open_unknown", error = %e, "who may create objects in the schema is not known");
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
