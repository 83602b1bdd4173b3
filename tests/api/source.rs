//! The library's public functions and types, read from its sources. `pub` is what a user can reach: the lint
//! `unreachable_pub` sees to that.

use std::path::{Path, PathBuf};

use syn::{Attribute, ImplItem, Item, ReturnType, Signature, Type, TypeParamBound, Visibility};

/// The Rust files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// A public function or method.
#[derive(Debug)]
pub(crate) struct Function {
    /// `Type::name`, or `name` alone.
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) docs: String,
    /// It is async, or returns a future.
    pub(crate) is_async: bool,
    pub(crate) returns_result: bool,
}

/// What the sources offer to users.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    pub(crate) functions: Vec<Function>,
    /// Structs and enums that no macro makes.
    pub(crate) types: Vec<String>,
}

pub(crate) fn offered() -> Offered {
    let mut offered = Offered::default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // The command has no users in this sense, and the protocol's rules are public for the tests alone.
    read_folder(&root, &[root.join("bin"), root.join("protocol")], &mut offered);
    offered
}

fn read_folder(folder: &Path, but: &[PathBuf], offered: &mut Offered) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if but.contains(&path) {
            continue;
        }
        if path.is_dir() {
            read_folder(&path, but, offered);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            read_items(&file.items, &path, offered);
        }
    }
}

fn read_items(items: &[Item], file: &Path, offered: &mut Offered) {
    for item in items {
        match item {
            Item::Fn(f) if is_public(&f.vis) => {
                offered.functions.push(function(f.sig.ident.to_string(), &f.sig, &f.attrs, file));
            }
            Item::Impl(block) if block.trait_.is_none() => {
                let Type::Path(of) = &*block.self_ty else { continue };
                let of = &of.path.segments.last().unwrap().ident;
                for item in &block.items {
                    if let ImplItem::Fn(f) = item
                        && is_public(&f.vis)
                    {
                        let name = format!("{of}::{}", f.sig.ident);
                        offered.functions.push(function(name, &f.sig, &f.attrs, file));
                    }
                }
            }
            Item::Struct(s) if is_public(&s.vis) => offered.types.push(s.ident.to_string()),
            Item::Enum(e) if is_public(&e.vis) => offered.types.push(e.ident.to_string()),
            Item::Mod(m) if !is_for_tests(&m.attrs) => {
                if let Some((_, items)) = &m.content {
                    read_items(items, file, offered);
                }
            }
            _ => {}
        }
    }
}

fn function(name: String, signature: &Signature, attributes: &[Attribute], file: &Path) -> Function {
    let returned = match &signature.output {
        ReturnType::Default => None,
        ReturnType::Type(_, returned) => Some(&**returned),
    };
    let is_future = matches!(returned, Some(Type::ImplTrait(t)) if t.bounds.iter().any(
        |bound| matches!(bound, TypeParamBound::Trait(t) if t.path.segments.last().unwrap().ident == "Future")
    ));
    let returns_result = matches!(returned, Some(Type::Path(t)) if t.path.segments.last().unwrap().ident == "Result");
    let is_async = signature.asyncness.is_some() || is_future;
    Function { name, file: file.to_owned(), docs: docs(attributes), is_async, returns_result }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|a| a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test"))
}

fn docs(attributes: &[Attribute]) -> String {
    let mut docs = String::new();
    for attribute in attributes {
        if let syn::Meta::NameValue(doc) = &attribute.meta
            && doc.path.is_ident("doc")
            && let syn::Expr::Lit(line) = &doc.value
            && let syn::Lit::Str(line) = &line.lit
        {
            docs.push_str(line.value().trim_start());
            docs.push('\n');
        }
    }
    docs
}
