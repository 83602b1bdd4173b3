//! Makes `docs/connections.md` from the table of words and the template `document.md`.

use std::fmt::Write as _;

use super::words::{Support, WORDS};
use crate::pages;

const TEMPLATE: &str = include_str!("document.md");

fn document() -> String {
    let mut words = String::new();
    for word in WORDS {
        let variable = word.variable.map_or_else(String::new, |v| format!("`{v}`"));
        let made = match word.support {
            Support::Honoured(how) => how.to_owned(),
            Support::Only(values, why) => {
                format!("{} only: {why}", values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", "))
            }
            Support::Refused(why) => format!("refused: {why}"),
        };
        writeln!(words, "| `{}` | {variable} | {made} |", word.name).unwrap();
    }
    pages::filled(TEMPLATE, &[("words", &words)])
}

#[test]
fn the_page_on_connections_says_what_the_code_does() {
    pages::renew_or_compare("docs/connections.md", &document());
}
