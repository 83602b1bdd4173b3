//! The rooms of the house: which folder or file of `src` imports which. `ARCHITECTURE.md` has the table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::source;

/// A room's name, and the rooms that it may import.
type Table = Vec<(String, BTreeSet<String>)>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The table under `## Rooms`: the first cell names the room, the last the rooms that it may import.
fn allowed() -> Table {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Rooms\n")).expect("a section \"Rooms\"");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>();
    let cells = |line: &str| line.trim_matches('|').split('|').map(str::to_owned).collect::<Vec<_>>();
    let rows = rows.map(cells).map(|cells| (names(&cells[0]).remove(0), names(cells.last().unwrap())));
    rows.map(|(room, may)| (room, may.into_iter().collect())).collect()
}

/// The room of a file: the first folder below `src`, or the file's own name.
fn room_of(file: &Path) -> String {
    let below = file.strip_prefix(root().join("src")).unwrap();
    let first = Path::new(below.components().next().unwrap().as_os_str());
    first.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The first names behind each `crate::`, without comments.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => _ = found.insert(name(rest)),
            // Of `{a::{b, c}, d}`: a and d.
            Some(group) => {
                let (mut depth, mut item) = (0, String::new());
                for c in group.chars() {
                    match c {
                        '}' if depth == 0 => break,
                        ',' if depth == 0 => _ = found.insert(name(std::mem::take(&mut item).trim())),
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                found.insert(name(item.trim()));
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// What `lib.rs` exports, by the room that it comes from.
fn exports() -> BTreeMap<String, String> {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut exports = BTreeMap::new();
    for rest in lib.split("pub use ").skip(1) {
        let path = rest.split(';').next().unwrap();
        let room = path.split("::").next().unwrap().trim().to_owned();
        for name in path.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty()) {
            exports.insert(name.to_owned(), room.clone());
        }
    }
    exports
}

/// Each import that the table does not allow, and each that it allows and nobody needs.
#[test]
fn each_import_is_one_that_the_table_allows() {
    let (allowed, exports) = (allowed(), exports());
    let rooms: BTreeSet<&str> = allowed.iter().map(|(room, _)| room.as_str()).collect();
    let files = source::files(&root().join("src"));
    let (mut forbidden, mut seen) = (Vec::new(), BTreeMap::<String, BTreeSet<String>>::new());
    for file in files.iter().filter(|file| !file.starts_with(root().join("src/bin")) && !file.ends_with("src/lib.rs")) {
        let room = room_of(file);
        let may = allowed.iter().find(|(name, _)| *name == room).map(|(_, may)| may);
        let may = may.unwrap_or_else(|| panic!("{}: ARCHITECTURE.md has no room {room:?}", file.display()));
        for name in imports(&std::fs::read_to_string(file).unwrap()) {
            let of = if rooms.contains(name.as_str()) { &name } else { exports.get(&name).unwrap_or(&name) };
            if *of == room {
                continue;
            }
            seen.entry(room.clone()).or_default().insert(of.clone());
            if !may.contains(of) {
                forbidden.push(format!("{} imports {of}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert_eq!(forbidden, Vec::<String>::new(), "the table in ARCHITECTURE.md does not allow this");
    for (room, may) in &allowed {
        let unused: Vec<_> = may.iter().filter(|of| !seen.get(room).is_some_and(|seen| seen.contains(*of))).collect();
        assert!(unused.is_empty(), "the table lets {room} import {unused:?}, and it does not");
    }
}

/// No circle between rooms: a room imports only rooms that stand below it in the table.
#[test]
fn imports_point_down_the_table() {
    let allowed = allowed();
    assert!(allowed.len() > 10, "the table is found");
    for (at, (room, may)) in allowed.iter().enumerate() {
        let below: BTreeSet<_> = allowed[at + 1..].iter().map(|(room, _)| room.clone()).collect();
        let up: Vec<_> = may.difference(&below).collect();
        assert!(up.is_empty(), "{room} imports {up:?}, which do not stand below it");
    }
}

/// The paths that a `use` imports, each as its names.
fn paths_of(tree: &syn::UseTree, before: &[String]) -> Vec<Vec<String>> {
    let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
    match tree {
        syn::UseTree::Path(path) => paths_of(&path.tree, &with(&path.ident)),
        syn::UseTree::Group(group) => group.items.iter().flat_map(|tree| paths_of(tree, before)).collect(),
        syn::UseTree::Name(name) => vec![with(&name.ident)],
        syn::UseTree::Rename(name) => vec![with(&name.ident)],
        syn::UseTree::Glob(_) => vec![before.to_vec()],
    }
}

/// The files of the same room that a file imports. A name that no file has stands in the `mod.rs` of the folder.
fn files_imported_by(file: &Path, room: &Path) -> BTreeSet<PathBuf> {
    let code = syn::parse_file(&std::fs::read_to_string(file).unwrap()).unwrap();
    let uses = code.items.iter().filter_map(|item| if let syn::Item::Use(u) = item { Some(&u.tree) } else { None });
    let folder = file.parent().unwrap();
    let above = if file.ends_with("mod.rs") { folder.parent().unwrap() } else { folder };
    let room_name = room.file_name().unwrap().to_string_lossy();
    let mut found = BTreeSet::new();
    for path in uses.flat_map(|tree| paths_of(tree, &[])) {
        let (mut at, rest) = match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["super", ref rest @ ..] => (above.to_owned(), rest.to_vec()),
            ["crate", of, ref rest @ ..] if of == room_name => (room.to_owned(), rest.to_vec()),
            _ => continue,
        };
        let mut last = at.join("mod.rs");
        for name in rest {
            let (alone, folder) = (at.join(format!("{name}.rs")), at.join(name).join("mod.rs"));
            match (alone.exists(), folder.exists()) {
                (true, _) => last = alone,
                (_, true) => last = folder,
                _ => break,
            }
            at.push(name);
        }
        found.insert(last);
    }
    found
}

/// A `Run` and every part write through the engine, so the engine must not be made of them.
#[test]
fn nothing_that_the_engine_of_runs_is_made_of_knows_the_engine() {
    let room = root().join("src/runs");
    // The `mod.rs` of the room is its face to the outside, and names everything.
    let mut reached = BTreeSet::from([room.join("mod.rs")]);
    let mut next: Vec<_> = files_imported_by(&room.join("engine.rs"), &room).into_iter().collect();
    while let Some(file) = next.pop() {
        if !reached.insert(file.clone()) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let knows: Vec<_> = code.filter(|line| line.contains("Engine") || line.contains("engine::")).collect();
        assert!(knows.is_empty(), "{}, of which the engine is made, knows it: {knows:?}", file.display());
        next.extend(files_imported_by(&file, &room));
    }
    assert!(reached.contains(&room.join("stream/queue.rs")) && reached.len() > 5, "{reached:?}");
}

#[test]
fn imports_are_found_in_groups_and_in_paths() {
    let text =
        "use crate::{a::{b, c}, D};\nfn f() { crate::e::g(); } // crate::not\npub(crate) fn h() {}\nuse crate::i;";
    assert_eq!(imports(text), ["D", "a", "e", "i"].map(ToOwned::to_owned).into());
}
