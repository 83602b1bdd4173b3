//! Each call of `sql!` names the parts that its file includes, and each file is used. PostgreSQL would find the first
//! only where a test runs the statement.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names of the files of a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|e| e == "sql"));
    files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

/// The arguments of each `sql!(…)`: the file, and its parts in their order.
fn calls(text: &str) -> Vec<Vec<String>> {
    let arguments = text.split("sql!(").skip(1).filter_map(|rest| rest.split(')').next());
    let literals = |arguments: &str| arguments.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect();
    arguments.map(literals).filter(|literals: &Vec<_>| !literals.is_empty()).collect()
}

/// The names behind `\set`, in their order.
fn included(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("\\set "));
    lines.filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn each_call_names_the_parts_that_its_file_includes_and_each_file_is_used() {
    let statements = ["src/pg", "src/store"].map(|room| statements_of(&root().join(room)));
    assert!(
        statements.iter().all(|there| *there > 3) && statements[1] > 70,
        "the statements are found: {statements:?}"
    );
}

/// Checks the statements of one room, and returns how many files they are.
fn statements_of(room: &Path) -> usize {
    let folder = room.join("sql");
    let (mut wrong, mut used) = (BTreeMap::new(), BTreeSet::new());
    for file in source::files(room) {
        for call in calls(&std::fs::read_to_string(&file).unwrap()) {
            let text = std::fs::read_to_string(folder.join(format!("{}.sql", call[0]))).unwrap();
            let parts = included(&text);
            if call[1..] != parts {
                wrong.insert(call[0].clone(), format!("the call names {:?}, the file {parts:?}", &call[1..]));
            }
            used.extend(call.into_iter().chain(parts));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let there: BTreeSet<String> = names(&folder).into_iter().chain(names(&folder.join("part"))).collect();
    let unused: Vec<_> = there.difference(&used).collect();
    assert!(unused.is_empty(), "{}: nobody runs {unused:?}", folder.display());
    there.len()
}

#[test]
fn calls_and_parts_are_found() {
    let code = "const A: &str = sql!(\"a\", \"p\", \"q\");\nf(sql!(\n    \"b\",\n    \"p\",\n));\nmacro_rules! sql";
    assert_eq!(calls(code), [vec!["a", "p", "q"], vec!["b", "p"]]);
    assert_eq!(included("-- x\n\\set p `cat part/p.sql`\n\\set q `cat part/q.sql`\nSELECT :p"), ["p", "q"]);
}
