//! Pages of the documentation that are made from the code, so that page and code always agree. Their prose is in
//! templates beside the code.

use std::path::Path;

/// Fails where the page `name` is not `made`; writes it instead where `make docs` asks for that.
#[track_caller]
pub(crate) fn renew_or_compare(name: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("PODLOCK_RENEW_DOCS").is_some_and(|v| v == "1") {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(written.lines()).find(|(made, written)| made != written);
    assert!(
        made == written,
        "{name} is not what the code says: `make docs` renews it. The first line that differs: {differs:#?}"
    );
}

/// The text of `template` with each place filled. A place is a line `{name}`, and its text is whole lines. `places` has
/// every place of the template, in the order of the template.
#[track_caller]
pub(crate) fn filled(template: &str, places: &[(&str, &str)]) -> String {
    let mut page = String::new();
    let mut rest = template;
    for &(name, text) in places {
        let Some((before, after)) = rest.split_once(&format!("\n{{{name}}}\n")) else {
            panic!("the template has no place {{{name}}}, or not in this order");
        };
        assert!(!before.contains('{'), "a place before {{{name}}} is not filled");
        assert!(text.ends_with('\n'), "the text for {{{name}}} ends in the middle of a line");
        page.extend([before, "\n", text]);
        rest = after;
    }
    assert!(!rest.contains('{'), "a place of the template is not filled: {rest}");
    page + rest
}
