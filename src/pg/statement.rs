//! Statements in files that both this crate and `psql` can run.
//!
//! The file uses psql's own variables, so a person sets them and runs the file as it is. [`render`] turns the same text
//! into the SQL that is sent to the server:
//!
//! | in the file | psql | [`render`] |
//! | --- | --- | --- |
//! | `:'own'` | the value of the variable, quoted | `$1`: the place of `own` in the list under `-- Arguments:` |
//! | `:"schema".studio_runs` | the variable, as an identifier | the schema's name, quoted |
//! | `:'studio_fence'` | as above | `'"schema".studio_fence'`: a name of ours as a literal, for a cast to `regclass` |
//! | `:crashed`, and ``\set crashed `cat part/crashed.sql` `` above | the text of the variable | the part of this name |
//! | a comment, a line that begins with `\`, the last `;` | as psql does | left out |

use std::collections::BTreeMap;
use std::str::Chars;

/// The text of a statement: the parts that it includes, then the file `sql/NAME.sql` beside the caller's own file.
macro_rules! sql {
    ($name:literal $(, $part:literal)* $(,)?) => {
        concat!(
            $("--part ", $part, "\n", include_str!(concat!("sql/part/", $part, ".sql")), "--end\n",)*
            include_str!(concat!("sql/", $name, ".sql"))
        )
    };
}

pub(crate) use sql;

/// Whether a text comes from a file. Other texts are short, and use `@.` for the schema.
pub(super) fn is_file(text: &str) -> bool {
    text.starts_with("--")
}

/// The SQL that is sent to the server. `schema` is the quoted name of the schema. A variable that is neither an
/// argument nor a part stays as it is, and the server refuses the statement. The test that runs each file finds that.
pub(super) fn render(text: &str, schema: &str) -> String {
    let (parts, main) = split(text);
    let mut sql = String::with_capacity(main.len());
    let rendering = Rendering { schema, arguments: arguments(main), parts };
    rendering.append(main, &mut sql);
    sql.trim_end().trim_end_matches(';').to_owned()
}

/// The names of the arguments, in order: the first word of each line under `-- Arguments:`.
pub(crate) fn arguments(main: &str) -> Vec<&str> {
    let comment = main.lines().map_while(|line| line.strip_prefix("--"));
    let listed = comment.skip_while(|line| line.trim() != "Arguments:").skip(1);
    let listed = listed.take_while(|line| line.starts_with("   "));
    // A line with a deeper indentation continues the text of the line before.
    listed.filter(|line| !line.starts_with("    ")).filter_map(|line| line.split_whitespace().next()).collect()
}

/// The parts by their names, and the statement itself.
fn split(mut text: &str) -> (BTreeMap<&str, &str>, &str) {
    let mut parts = BTreeMap::new();
    while let Some((name, rest)) = text.strip_prefix("--part ").and_then(|rest| rest.split_once('\n')) {
        let Some((part, rest)) = rest.split_once("--end\n") else { break };
        parts.insert(name, part);
        text = rest;
    }
    (parts, text)
}

struct Rendering<'a> {
    /// Quoted.
    schema: &'a str,
    arguments: Vec<&'a str>,
    parts: BTreeMap<&'a str, &'a str>,
}

impl Rendering<'_> {
    fn append(&self, text: &str, sql: &mut String) {
        let mut rest = text.chars();
        let mut at_line_start = true;
        while let Some(c) = rest.next() {
            let next = rest.clone().next();
            if (c == '\\' && at_line_start) || (c == '-' && next == Some('-')) {
                skip_line(&mut rest);
                at_line_start = true;
                continue;
            }
            at_line_start = c == '\n' || (at_line_start && c.is_whitespace());
            match c {
                '\'' | '"' => {
                    sql.push(c);
                    sql.push_str(quoted(&mut rest, c));
                    sql.push(c);
                }
                ':' if next == Some(':') => {
                    rest.next();
                    sql.push_str("::");
                }
                ':' if next == Some('\'') => {
                    rest.next();
                    self.append_value(quoted(&mut rest, '\''), sql);
                }
                ':' if next == Some('"') => {
                    rest.next();
                    match quoted(&mut rest, '"') {
                        "schema" => sql.push_str(self.schema),
                        other => sql.push_str(&format!(":\"{other}\"")),
                    }
                }
                ':' if next.is_some_and(|c| c.is_ascii_lowercase()) => self.append_part(name(&mut rest), sql),
                c if c.is_whitespace() => {
                    if !sql.is_empty() && !sql.ends_with(' ') {
                        sql.push(' ');
                    }
                }
                c => sql.push(c),
            }
        }
    }

    fn append_value(&self, name: &str, sql: &mut String) {
        if let Some(place) = self.arguments.iter().position(|argument| *argument == name) {
            sql.push_str(&format!("${}", place + 1));
        } else if name.starts_with("studio_") {
            let literal = format!("{}.{name}", self.schema).replace('\'', "''");
            sql.push_str(&format!("'{literal}'"));
        } else {
            sql.push_str(&format!(":'{name}'"));
        }
    }

    fn append_part(&self, name: &str, sql: &mut String) {
        match self.parts.get(name) {
            Some(part) => self.append(part.trim_end(), sql),
            None => sql.push_str(&format!(":{name}")),
        }
    }
}

fn skip_line(rest: &mut Chars<'_>) {
    let line = rest.as_str();
    *rest = line.find('\n').map_or("", |end| &line[end + 1..]).chars();
}

/// The text up to the closing quote, which is consumed as well. A doubled quote is read as two quoted texts side by
/// side.
fn quoted<'a>(rest: &mut Chars<'a>, quote: char) -> &'a str {
    let text = rest.as_str();
    let end = text.find(quote).unwrap_or(text.len());
    *rest = text.get(end + 1..).unwrap_or_default().chars();
    &text[..end]
}

fn name<'a>(rest: &mut Chars<'a>) -> &'a str {
    let text = rest.as_str();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    *rest = text[end..].chars();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"--part alive
EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid)
--end
-- Starts a run. It's -- "quoted" on purpose.
--
-- Arguments:
--   own    uuid  the owner,
--                on two lines
--   input  jsonb
\set alive `cat part/alive.sql`
INSERT INTO :"schema".studio_runs (input, fence, note)
  -- L5: under the owner's name.
  SELECT :'input'::jsonb, nextval(:'studio_fence'::regclass), 'it''s: :''own'''
   WHERE :alive;
"#;

    #[test]
    fn a_file_becomes_one_statement_with_its_arguments_in_the_order_of_the_list() {
        assert_eq!(
            render(FILE, "\"a'b\""),
            "INSERT INTO \"a'b\".studio_runs (input, fence, note) SELECT $2::jsonb, \
             nextval('\"a''b\".studio_fence'::regclass), 'it''s: :''own''' \
             WHERE EXISTS (SELECT FROM \"a'b\".studio_pods p WHERE p.incarnation = $1::uuid)"
        );
        assert_eq!(arguments(split(FILE).1), ["own", "input"]);
    }

    #[test]
    fn an_unknown_variable_stays_for_the_server_to_refuse() {
        let text = "-- Arguments:\n--   own  uuid\nSELECT :'onw'::uuid, :part, :\"other\".t, x::int[1:2]";
        assert_eq!(render(text, "\"s\""), "SELECT :'onw'::uuid, :part, :\"other\".t, x::int[1:2]");
    }
}
