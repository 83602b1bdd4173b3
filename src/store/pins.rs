//! Lints SQL text: is every name pinned to the intended object?
//!
//! There are three kinds of text, with different rules:
//!
//! - Migrations from version 23 on. A function runs under `search_path = pg_catalog, pg_temp`, so operators and the
//!   server's functions need no schema. Our own names need one. An argument of one of our functions needs a type,
//!   because a bare literal could select another function of that name. `pinned::…` in `tests/it` shows two things of a
//!   migrated database. Each function has this `search_path`, or was bound to its objects when it was created. Views
//!   and CHECK constraints, whose operators are bound at creation, use only the server's operators.
//! - Statements on our own connections. These have the same `search_path`, so the same rules hold.
//! - Statements under another `search_path`: on the user's own connection, those that the pages show, and those that a
//!   session of ours runs before it has set its `search_path` (`src/pg/sql`). [`unpinned`] requires a schema for every
//!   operator, function and type, and a type for every literal and NULL.

use std::path::{Path, PathBuf};

/// A piece of SQL text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A word with its qualification: `pg_catalog.now`.
    Word(String),
    /// A string, a number or a parameter.
    Literal(String),
    Operator(String),
    /// One of `( ) , ; [ ]`, or `::`.
    Mark(String),
}

/// How a file of [`crate::pg::statement`] writes the schema.
const SCHEMA: &str = ":\"schema\".";

/// Splits SQL into tokens, without comments. `@.` counts as a qualification, and psql's `:'name'` as a literal.
fn tokens(sql: &str) -> Vec<Token> {
    let text: Vec<char> = sql.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or(' ');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut i, mut tokens) = (0, Vec::new());
    while i < text.len() {
        let from = i;
        let upto = |end: usize| text[from..end.min(text.len())].iter().collect::<String>();
        match at(i) {
            c if c.is_whitespace() || c == '\\' => i += 1,
            '-' if at(i + 1) == '-' => i += text[i..].iter().take_while(|c| **c != '\n').count(),
            '\'' => {
                i += 1 + text[i + 1..].iter().take_while(|c| **c != '\'').count() + 1;
                tokens.push(Token::Literal(upto(i)));
            }
            // COLLATE pg_catalog."C"
            '"' => {
                i += 1 + text[i + 1..].iter().take_while(|c| **c != '"').count() + 1;
                tokens.push(Token::Word(upto(i)));
            }
            ':' if at(i + 1) == '\'' => {
                i += 2 + text[i + 2..].iter().take_while(|c| **c != '\'').count() + 1;
                tokens.push(Token::Literal(upto(i)));
            }
            ':' if text[i..].starts_with(&SCHEMA.chars().collect::<Vec<_>>()) => {
                i += SCHEMA.len() + text[i + SCHEMA.len()..].iter().take_while(|c| is_word(**c)).count();
                tokens.push(Token::Word(upto(i).replace(SCHEMA, "@.")));
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                tokens.push(Token::Mark(upto(i)));
            }
            '$' | '0'..='9' => {
                i += 1 + text[i + 1..].iter().take_while(|c| is_word(**c) || **c == '.').count();
                tokens.push(Token::Literal(upto(i)));
            }
            '@' if at(i + 1) == '.' => {
                i += 2 + text[i + 2..].iter().take_while(|c| is_word(**c)).count();
                tokens.push(Token::Word(upto(i)));
            }
            c if is_word(c) => {
                i += text[i..].iter().take_while(|c| is_word(**c) || **c == '.').count();
                tokens.push(Token::Word(upto(i)));
            }
            '(' | ')' | ',' | ';' | '[' | ']' => {
                i += 1;
                tokens.push(Token::Mark(upto(i)));
            }
            '=' if at(i + 1) == '>' => {
                i += 2;
                tokens.push(Token::Mark(upto(i)));
            }
            _ => {
                let signs = text[i..].iter().take_while(|c| "+-*/<>=~!@#%^&|`?:.\"".contains(**c)).count();
                i += signs.max(1);
                tokens.push(Token::Operator(upto(i)));
            }
        }
    }
    tokens
}

/// Keywords that a parenthesis may follow.
const GRAMMAR: [&str; 21] = [
    "as",
    "materialized",
    "from",
    "select",
    "where",
    "exists",
    "coalesce",
    "least",
    "greatest",
    "values",
    "and",
    "or",
    "not",
    "on",
    "lateral",
    "over",
    "filter",
    "then",
    "else",
    "union",
    "all",
];
/// Keywords for which the server looks up an operator by its name.
const HIDDEN_OPERATORS: [&str; 9] = ["in", "between", "like", "ilike", "similar", "distinct", "nullif", "any", "some"];
/// Types that are keywords. They are always the server's, whatever the `search_path`.
const GRAMMAR_TYPES: [&str; 5] = ["bigint", "integer", "boolean", "interval", "timestamptz"];

/// Lists what in this statement depends on the `search_path`. An empty list is good.
pub(super) fn unpinned(sql: &str) -> Vec<String> {
    let tokens = tokens(sql);
    let word = |i: usize| match tokens.get(i) {
        Some(Token::Word(word)) => word.to_lowercase(),
        _ => String::new(),
    };
    let is_mark = |i: usize, mark: &str| tokens.get(i) == Some(&Token::Mark(mark.to_owned()));
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match token {
            // OPERATOR(pg_catalog.=): the dot belongs to the word.
            Token::Operator(_)
                if i > 1 && word(i - 1) == "pg_catalog." && word_before(&tokens, i - 1) == "operator" => {}
            // count(*)
            Token::Operator(star) if star == "*" && is_mark(i - 1, "(") && is_mark(i + 1, ")") => {}
            // SELECT *
            Token::Operator(star) if star == "*" && word(i - 1) == "select" => {}
            Token::Operator(sign) => found.push(format!("operator {sign}")),
            Token::Literal(literal) if !is_mark(i + 1, "::") => found.push(format!("{literal} without a type")),
            Token::Word(null) if null.eq_ignore_ascii_case("null") => {
                let is_test = word(i.wrapping_sub(1)) == "is" || word(i.wrapping_sub(1)) == "not";
                if !is_test && !is_mark(i + 1, "::") {
                    found.push("NULL without a type".to_owned());
                }
            }
            Token::Word(name) => {
                let lower = name.to_lowercase();
                if HIDDEN_OPERATORS.contains(&lower.as_str()) {
                    found.push(format!("the operator of {name}"));
                }
                let is_known = lower.starts_with("pg_catalog.") || GRAMMAR_TYPES.contains(&lower.as_str());
                if i > 0 && is_mark(i - 1, "::") && !is_known {
                    found.push(format!("type {name}"));
                }
                let is_qualified = name.contains('.') || GRAMMAR.contains(&lower.as_str()) || lower == "operator";
                // FROM … AS name (column, …)
                let is_alias = i > 0 && word(i - 1) == "as";
                if is_mark(i + 1, "(") && !is_qualified && !is_alias {
                    found.push(format!("function {name}"));
                }
            }
            _ => {}
        }
    }
    found
}

fn word_before(tokens: &[Token], i: usize) -> String {
    match (tokens.get(i.wrapping_sub(1)), tokens.get(i.wrapping_sub(2))) {
        (Some(Token::Mark(_)), Some(Token::Word(word))) => word.to_lowercase(),
        _ => String::new(),
    }
}

/// Calls of our functions (`@.studio_…(…)`) with an argument that has no type of its own: a bare literal, parameter or
/// NULL, or an expression that may be one.
fn untyped_calls(sql: &str) -> Vec<String> {
    let tokens = tokens(sql);
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let Token::Word(name) = token else { continue };
        if !name.starts_with("@.studio_") || tokens.get(i + 1) != Some(&Token::Mark("(".to_owned())) {
            continue;
        }
        // The name is a table before its columns, or belongs to the definition of a function.
        let before = tokens[i.saturating_sub(1)].clone();
        if ["into", "function", "on", "index", "references", "table"]
            .iter()
            .any(|w| before == Token::Word((*w).to_uppercase()))
        {
            continue;
        }
        for argument in arguments(&tokens[i + 2..]) {
            if !is_typed(argument) {
                found.push(format!("{name}: {argument:?}"));
            }
        }
    }
    found
}

/// The arguments of a call. `tokens` begins after the parenthesis.
fn arguments(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut from, mut arguments) = (0_usize, 0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        let Token::Mark(mark) = token else { continue };
        match mark.as_str() {
            "(" | "[" => depth += 1,
            ")" if depth == 0 => {
                arguments.push(&tokens[from..i]);
                break;
            }
            ")" | "]" => depth -= 1,
            "," if depth == 0 => {
                arguments.push(&tokens[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// Whether an argument has a type of its own: it ends in a cast, is a name (a column, a variable), or is one function
/// call.
fn is_typed(argument: &[Token]) -> bool {
    let cast = argument.iter().rposition(|t| *t == Token::Mark("::".to_owned()));
    if let Some(cast) = cast
        && argument[cast + 1..]
            .iter()
            .all(|t| matches!(t, Token::Word(_)) || matches!(t, Token::Mark(m) if m == "[" || m == "]"))
    {
        return true;
    }
    match argument {
        [Token::Word(name)] => !name.eq_ignore_ascii_case("null"),
        [Token::Word(_), Token::Mark(open), .., Token::Mark(close)] => {
            open == "(" && close == ")" && !argument.iter().any(|t| matches!(t, Token::Operator(_)))
        }
        _ => false,
    }
}

/// Our names without their schema, outside of strings and comments.
fn unqualified(sql: &str) -> Vec<String> {
    let words = tokens(sql).into_iter().filter_map(|t| if let Token::Word(word) = t { Some(word) } else { None });
    // Constraints and indexes are named without a schema.
    words.filter(|w| w.starts_with("studio_") && !w.ends_with("_check") && !w.ends_with("_key")).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push((path.clone(), std::fs::read_to_string(&path).expect("a text")));
        }
    }
}

#[test]
fn migrations_are_pinned() {
    let (mut all, mut read) = (Vec::new(), 0);
    files(&root().join("migrations"), "sql", &mut all);
    for (path, sql) in all {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let version: i32 = name[1..].split_once("__").and_then(|(v, _)| v.parse().ok()).expect("V<number>__<name>");
        if version < super::migrate::TEMPLATES_FROM {
            continue;
        }
        read += 1;
        assert!(sql.contains("\nSET LOCAL search_path = pg_catalog, pg_temp;\n"), "{name} pins no search_path");
        assert!(!sql.contains("FROM CURRENT"), "{name} pins a function to the schema of the migration");
        assert_eq!((untyped_calls(&sql), unqualified(&sql)), (Vec::new(), Vec::new()), "{name}");
    }
    assert!(read > 0, "there are migrations to read");
}

#[test]
fn calls_in_the_librarys_statements_are_typed() {
    let (mut all, mut calls) = (Vec::new(), 0);
    files(&root().join("src"), "rs", &mut all);
    files(&root().join("src"), "sql", &mut all);
    for (path, text) in all.iter().filter(|(path, _)| !path.ends_with("pins.rs")) {
        let text = text.replace(SCHEMA, "@.");
        calls += text.matches("@.studio_").count();
        // A Rust comment or lifetime must not be read as the beginning of a string.
        for statement in text.split("@.studio_").skip(1).map(|rest| format!("@.studio_{rest}")) {
            let statement: String = statement.chars().take(600).collect();
            let first = untyped_calls(statement.split(';').next().unwrap_or_default());
            let call = statement.split('(').next().unwrap_or_default();
            let first: Vec<_> = first.into_iter().filter(|f| f.starts_with(&format!("{call}:"))).collect();
            assert_eq!(first, Vec::<String>::new(), "{}: {statement}", path.display());
        }
    }
    assert!(calls > 100, "the statements are found: {calls}");
}

/// These run before the session has a `search_path` of ours.
#[test]
fn the_statements_of_connections_are_pinned() {
    let mut all = Vec::new();
    files(&root().join("src/pg/sql"), "sql", &mut all);
    assert!(all.len() >= 4, "the statements are found: {all:?}");
    for (path, sql) in &all {
        // The lines that only psql reads, and the places of the parts, each of which is a file of its own.
        let is_sql = |line: &&str| !line.starts_with('\\') && !line.trim_start().starts_with(':');
        let sql: String = sql.lines().filter(is_sql).map(|line| format!("{line}\n")).collect();
        assert_eq!(unpinned(&sql), Vec::<String>::new(), "{}", path.display());
    }
}

/// Checks every call of our functions in a page or an example. Readers may try it under any `search_path`.
#[test]
fn calls_in_the_pages_are_pinned() {
    let mut pages = Vec::new();
    files(&root().join("docs"), "md", &mut pages);
    files(&root().join("examples"), "rs", &mut pages);
    pages.push((root().join("README.md"), std::fs::read_to_string(root().join("README.md")).expect("a text")));
    let mut calls = 0;
    for (path, text) in &pages {
        for line in text.lines() {
            let Some((_, statement)) = line.split_once("SELECT ") else { continue };
            let statement = statement.split([';', '`']).next().unwrap_or_default();
            let Some(end) = statement.rfind(')') else { continue };
            let statement = &statement[..=end];
            let Some((name, _)) = statement.split_once('(').filter(|(name, _)| name.contains("studio_")) else {
                continue;
            };
            // These are the columns of a table.
            if name.contains(' ') {
                continue;
            }
            calls += 1;
            assert!(name.contains('.'), "{}: {line}: name the schema", path.display());
            let statement = format!("@.{}", name.rsplit_once('.').map_or(name, |(_, n)| n)) + &statement[name.len()..];
            assert_eq!(unpinned(&statement), Vec::<String>::new(), "{}: {line}", path.display());
        }
    }
    assert!(calls >= 4, "the calls are found: {calls}");
}

/// Shows that the lints find unpinned names.
#[test]
fn what_is_not_pinned_is_found() {
    for (sql, what) in [
        ("SELECT a OPERATOR(pg_catalog.=) b", ""),
        ("SELECT a = b", "operator ="),
        ("SELECT a::pg_catalog.text, 'x'::pg_catalog.text, NULL::bigint, $1::integer", ""),
        ("SELECT a::text", "type text"),
        ("SELECT 'x'", "'x' without a type"),
        ("SELECT :'x'", ":'x' without a type"),
        ("SELECT NULL", "NULL without a type"),
        ("SELECT a IS NOT NULL, b IS NULL", ""),
        ("SELECT a -- = b\n", ""),
        ("SELECT now()", "function now"),
        ("SELECT pg_catalog.now(), COALESCE(a, b)", ""),
        ("SELECT a WHERE b IN (c, d)", "the operator of IN"),
        ("SELECT a IS DISTINCT FROM b", "the operator of DISTINCT"),
    ] {
        let expected: Vec<String> = Some(what.to_owned()).into_iter().filter(|w| !w.is_empty()).collect();
        let found: Vec<_> = unpinned(sql).into_iter().filter(|f| f != "function IN").collect();
        assert_eq!(found, expected, "{sql}");
    }
    for typed in
        ["@.studio_f()", "@.studio_f(a, b.c, $1::bigint)", "@.studio_f(pg_catalog.f(1))", "@.studio_f((a->>'b')::text)"]
    {
        assert_eq!(untyped_calls(typed), Vec::<String>::new(), "{typed}");
    }
    for untyped in ["@.studio_f('x')", "@.studio_f($1)", "@.studio_f(a, NULL)", "@.studio_f(a->>'b')", "@.studio_f(1)"]
    {
        assert_eq!(untyped_calls(untyped).len(), 1, "{untyped}");
    }
    assert_eq!(unqualified("SELECT FROM studio_pods, @.studio_runs -- studio_x"), ["studio_pods"]);
}
