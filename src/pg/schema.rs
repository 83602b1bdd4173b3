//! Puts the schema's name into statements.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::statement;

/// The schema that holds podlock's tables.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    name: Arc<str>,
    prefix: Arc<str>,
    /// Statements from files, rendered for this schema, by the length of their files. Each is added when it is first
    /// run. All clones share them. A text of several kilobytes is compared faster than it is hashed, and few files have
    /// the same length.
    rendered: Arc<RwLock<HashMap<usize, Vec<Rendered>>>>,
}

/// The text of a file, and the statement that is sent.
type Rendered = (Box<str>, Arc<str>);

impl Schema {
    pub(crate) fn new(name: &str) -> Self {
        let prefix = format!("{}.", quote_identifier(name)).into();
        Self { name: name.into(), prefix, rendered: Arc::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn quoted(&self) -> &str {
        &self.prefix[..self.prefix.len() - 1]
    }

    /// A statement for this schema: a file ([`super::statement`]), or a short text with `@.`.
    pub(crate) fn sql(&self, template: &str) -> Arc<str> {
        if !statement::is_file(template) {
            return self.replace(template).into();
        }
        let find = |same_length: &Vec<Rendered>| {
            same_length.iter().find(|(file, _)| **file == *template).map(|(_, sql)| Arc::clone(sql))
        };
        let known = self.rendered.read().unwrap_or_else(PoisonError::into_inner).get(&template.len()).and_then(find);
        known.unwrap_or_else(|| {
            let sql: Arc<str> = statement::render(template, self.quoted()).into();
            let mut rendered = self.rendered.write().unwrap_or_else(PoisonError::into_inner);
            let same_length = rendered.entry(template.len()).or_default();
            // Another thread may have added it meanwhile.
            find(same_length).unwrap_or_else(|| {
                same_length.push((template.into(), Arc::clone(&sql)));
                sql
            })
        })
    }

    /// Replaces each `@.` in a text by the schema: `SELECT … FROM @.studio_pods`. At the start of a literal, as in
    /// `'@.studio_fence'::regclass`, the name is quoted for the literal as well.
    fn replace(&self, template: &str) -> String {
        let in_literal = format!("'{}", self.prefix.replace('\'', "''"));
        // All is replaced in one pass, because the name itself may contain the placeholder.
        let parts: Vec<_> = template.split("'@.").map(|part| part.replace("@.", &self.prefix)).collect();
        parts.join(&in_literal)
    }

    /// A migration for this schema. In it `@.` stands for the schema, and the literal `'@'` for the schema's name.
    /// Function bodies are quoted with `$function$`. If the name contains that tag, another tag is used.
    pub(crate) fn migration(&self, template: &str) -> String {
        let mut tag = "$function$".to_owned();
        while self.name.contains(&tag) {
            tag.insert(tag.len() - 1, '_');
        }
        let template = template.replace("$function$", &tag);
        let name = format!("'{}'", self.name.replace('\'', "''"));
        // All is replaced in one pass, as above.
        let parts: Vec<_> = template.split("'@'").map(|part| self.replace(part)).collect();
        parts.join(&name)
    }

    /// The NOTIFY channel. The SQL function `studio_channel` makes the same name.
    pub(crate) fn channel(&self) -> String {
        format!("podlock_{}", self.name)
    }

    /// The NOTIFY channel for the readers of streams. `studio_stream_channel` makes the same name.
    pub(crate) fn stream_channel(&self) -> String {
        format!("podstream_{}", self.name)
    }
}

/// `name` as an SQL identifier.
pub(crate) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_names() {
        let schema = Schema::new("a\"; DROP TABLE x; --.");
        assert_eq!(&*schema.sql("SELECT FROM @.t"), "SELECT FROM \"a\"\"; DROP TABLE x; --.\".t");
        assert_eq!(&*Schema::new("o'b").sql("'@.s'::regclass"), "'\"o''b\".s'::regclass");
        assert_eq!(Schema::new("s").quoted(), "\"s\"");
        let hostile = Schema::new("'@'$function$@.");
        assert_eq!(
            hostile.migration("AS $function$ SELECT '@'::text FROM @.t $function$"),
            "AS $function_$ SELECT '''@''$function$@.'::text FROM \"'@'$function$@.\".t $function_$"
        );
    }
}
