//! Pages of the documentation that are made from the code, so that neither can say what the other does not.

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
