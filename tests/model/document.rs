//! The tables of `docs/model.md`, made from the rules and the mistakes.

use crate::caught;
use crate::properties::Rule;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/model.md");

fn rules() -> String {
    let every = Rule::OF_STATES.into_iter().chain([Rule::EveryRunCanEnd]);
    every.map(|rule| format!("- {}\n", rule.says())).collect()
}

fn mistakes() -> String {
    let row = |(test, mistake): &(&str, crate::mistakes::Mistake)| {
        format!("| {} | {} | `{test}` |\n", mistake.says(), mistake.case().caught_by.says())
    };
    let rows: String = caught::TABLE.iter().map(row).collect();
    format!("| mistake | caught by | test |\n| --- | --- | --- |\n{rows}")
}

/// `page` with what stands between the two comments of each name replaced.
fn renewed(page: &str) -> String {
    [("rules", rules()), ("mistakes", mistakes())].into_iter().fold(page.to_owned(), |page, (name, made)| {
        let (begin, end) = (format!("<!-- {name}: made -->\n"), format!("<!-- {name}: end -->"));
        let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("docs/model.md has no {begin}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("docs/model.md has no {end}"));
        format!("{before}{begin}\n{made}\n{end}{after}")
    })
}

#[test]
fn the_page_on_the_model_says_what_it_checks() {
    let page = std::fs::read_to_string(PAGE).expect("docs/model.md");
    let renewed = renewed(&page);
    if std::env::var_os("PODLOCK_RENEW_DOCS").is_some() {
        std::fs::write(PAGE, renewed).expect("docs/model.md can be written");
        return;
    }
    assert_eq!(page, renewed, "docs/model.md is not what the model checks: make docs");
}
