//! Reads YAML as JSON values, by the core schema of YAML 1.2.

mod second;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde::de::IgnoredAny;
use serde_json::{Number, Value};

use super::{DEPTH, digits, json, shown};

/// How much anchors and aliases may copy: the number of nodes plus the bytes of their texts. A few lines of aliases to
/// aliases could otherwise fill the memory. A document that people write copies far less.
const COPIES: usize = 1 << 20;

pub(super) fn parse(text: &str) -> Result<Value, String> {
    // JSON is YAML. JSON's own reader knows all of it: pairs of escaped surrogates, keys of any length.
    if serde_json::from_str::<IgnoredAny>(text).is_ok() {
        return json::parse(text);
    }
    tree(text).map(Tree::into_value)
}

/// The only document, if two readers agree on it.
fn tree(text: &str) -> Result<Tree, String> {
    // All readers skip it at the beginning. But not all of them see that `---` behind it begins a document.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Elsewhere, some readers treat it as part of the text, and others skip it.
    if text.contains('\u{feff}') {
        return Err("a byte order mark stands elsewhere than at its beginning".to_owned());
    }
    let mut document = Document::default();
    let mut documents = 0;
    let mut plainer = Plainer { text, upto: 0, written: String::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| e.to_string())?;
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
        }
        if documents > 1 {
            return Err("it holds more than one document".to_owned());
        }
        let at = span.byte_range().ok_or("the reader lost its place")?;
        if matches!(event, Event::Scalar(_, ScalarStyle::DoubleQuoted, ..)) {
            plainer.join_surrogates(at.clone());
        }
        document.take(event, at.is_empty()).map_err(|why| format!("{why}, at line {}", span.start.line()))?;
    }
    let tree = document.root.ok_or_else(|| "it holds no document".to_owned())?;
    second::agrees(&plainer.finish(), &tree)?;
    Ok(tree)
}

/// The text for a reader that does not accept JSON's pairs of escaped surrogates. Each pair is written as the single
/// escape of its character.
struct Plainer<'a> {
    text: &'a str,
    /// `written` replaces the text up to this position.
    upto: usize,
    written: String,
}

impl<'a> Plainer<'a> {
    /// Joins pairs in the double-quoted scalar at `at`.
    fn join_surrogates(&mut self, at: Range<usize>) {
        let Some(quoted) = self.text.get(at.clone()) else { return };
        let mut offset = 0;
        while let Some(backslash) = quoted[offset..].find('\\').map(|found| offset + found) {
            offset = match surrogates(&quoted[backslash..]) {
                Some(c) => {
                    self.written.push_str(&self.text[self.upto..at.start + backslash]);
                    self.written.push_str(&format!("\\U{:08X}", u32::from(c)));
                    self.upto = at.start + backslash + PAIR;
                    backslash + PAIR
                }
                // The escaped character may be a backslash.
                None => backslash + 1 + quoted[backslash + 1..].chars().next().map_or(0, char::len_utf8),
            };
        }
    }

    fn finish(self) -> Cow<'a, str> {
        if self.upto == 0 { Cow::Borrowed(self.text) } else { Cow::Owned(self.written + &self.text[self.upto..]) }
    }
}

/// The length of a pair of escaped surrogates.
const PAIR: usize = 12;

/// The character of the surrogate pair at the beginning of `text`.
fn surrogates(text: &str) -> Option<char> {
    let half = |at: usize| {
        let digits = text.get(at..at + PAIR / 2)?.strip_prefix("\\u")?;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    char::decode_utf16([half(0)?, half(PAIR / 2)?]).next()?.ok().filter(|c| u32::from(*c) > 0xffff)
}

/// A value, with the texts from which it was read.
#[derive(Clone)]
enum Tree {
    Scalar { text: String, value: Value },
    Sequence(Vec<Tree>),
    Mapping(Vec<Field>),
}

#[derive(Clone)]
struct Field {
    /// The key as it is written.
    key: String,
    /// The key in JSON.
    name: String,
    value: Tree,
}

impl Tree {
    fn into_value(self) -> Value {
        match self {
            Self::Scalar { value, .. } => value,
            Self::Sequence(items) => items.into_iter().map(Self::into_value).collect(),
            Self::Mapping(fields) => {
                Value::Object(fields.into_iter().map(|field| (field.name, field.value.into_value())).collect())
            }
        }
    }
}

/// A sequence or mapping that is open.
enum Node {
    Sequence(Vec<Tree>),
    Mapping {
        fields: Vec<Field>,
        names: HashSet<String>,
        /// The key and the name of the next value.
        next: Option<(String, String)>,
    },
}

struct Document {
    /// The open nodes, each with its anchor; 0 means none.
    open: Vec<(Node, usize)>,
    anchors: HashMap<usize, Tree>,
    copies_left: usize,
    root: Option<Tree>,
}

impl Default for Document {
    fn default() -> Self {
        Self { open: Vec::new(), anchors: HashMap::new(), copies_left: COPIES, root: None }
    }
}

impl Document {
    /// `absent`: the event is for a node without any text.
    fn take(&mut self, event: Event<'_>, absent: bool) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                // The reader reports an absent node as `~`.
                let text = if absent && style == ScalarStyle::Plain { String::new() } else { text.into_owned() };
                let value = resolve(&text, style, tag.as_deref())?;
                let scalar = Tree::Scalar { text, value };
                self.anchor(anchor, &scalar)?;
                self.place(scalar)
            }
            Event::Alias(anchor) => {
                let Some(tree) = self.anchors.get(&anchor).cloned() else {
                    return Err("an alias stands inside of what it repeats".to_owned());
                };
                self.copy(&tree, DEPTH - self.open.len())?;
                self.place(tree)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(Node::Sequence(Vec::new()), "seq", anchor, tag.as_deref())
            }
            Event::MappingStart(_, anchor, tag) => {
                let mapping = Node::Mapping { fields: Vec::new(), names: HashSet::new(), next: None };
                self.begin(mapping, "map", anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (tree, anchor) = match self.open.pop() {
                    Some((Node::Sequence(items), anchor)) => (Tree::Sequence(items), anchor),
                    Some((Node::Mapping { fields, .. }, anchor)) => (Tree::Mapping(fields), anchor),
                    None => return Err("something ends that has not begun".to_owned()),
                };
                self.anchor(anchor, &tree)?;
                self.place(tree)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, kind: &str, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        if let Some(tag) = tag.filter(|tag| !(is_core(tag, kind) || is_non_specific(tag))) {
            return Err(no_counterpart(tag));
        }
        if let Some((Node::Mapping { next: None, .. }, _)) = self.open.last() {
            return Err("a key is a sequence or a mapping, and JSON's are strings".to_owned());
        }
        if self.open.len() >= DEPTH {
            return Err(format!("it is nested deeper than {DEPTH}"));
        }
        self.open.push((node, anchor));
        Ok(())
    }

    /// Adds a node to the open sequence or mapping, or makes it the document.
    fn place(&mut self, tree: Tree) -> Result<(), String> {
        match self.open.last_mut() {
            None => self.root = Some(tree),
            Some((Node::Sequence(items), _)) => items.push(tree),
            Some((Node::Mapping { fields, names, next }, _)) => match next.take() {
                Some((key, name)) => fields.push(Field { key, name, value: tree }),
                None => {
                    let Tree::Scalar { text, value } = tree else {
                        return Err("a key is a sequence or a mapping, and JSON's are strings".to_owned());
                    };
                    let name = if let Value::String(word) = value { word } else { text.clone() };
                    if !names.insert(name.clone()) {
                        return Err(format!("the key {} stands twice in a mapping", shown(&name)));
                    }
                    *next = Some((text, name));
                }
            },
        }
        Ok(())
    }

    fn anchor(&mut self, anchor: usize, tree: &Tree) -> Result<(), String> {
        if anchor > 0 {
            self.copy(tree, DEPTH)?;
            self.anchors.insert(anchor, tree.clone());
        }
        Ok(())
    }

    fn copy(&mut self, tree: &Tree, depth: usize) -> Result<(), String> {
        self.copies_left = spend(tree, self.copies_left, depth).ok_or("its aliases repeat or nest too much")?;
        Ok(())
    }
}

/// The rest of `budget` after a copy of `tree`. `None` if the budget is too small, or `tree` is nested deeper than
/// `depth`. It stops counting as soon as that is known.
fn spend(tree: &Tree, budget: usize, depth: usize) -> Option<usize> {
    let left = budget.checked_sub(1)?;
    match tree {
        Tree::Scalar { text, .. } => left.checked_sub(text.len()),
        Tree::Sequence(items) => {
            let depth = depth.checked_sub(1)?;
            items.iter().try_fold(left, |left, item| spend(item, left, depth))
        }
        Tree::Mapping(fields) => {
            let depth = depth.checked_sub(1)?;
            fields.iter().try_fold(left, |left, field| spend(&field.value, left.checked_sub(field.key.len())?, depth))
        }
    }
}

/// Whether a tag is one of the core schema, however it is written: `!!str`, verbatim, or with a handle that the
/// document defines.
fn is_core(tag: &Tag, kind: &str) -> bool {
    tag.is_yaml_core_schema_tag(kind)
}

/// Whether the tag is a single `!`, which makes a scalar a string.
fn is_non_specific(tag: &Tag) -> bool {
    matches!((tag.handle(), tag.suffix()), ("!", "") | ("", "!"))
}

fn no_counterpart(tag: &Tag) -> String {
    format!("the tag {} has no counterpart in JSON", shown(&format!("{}{}", tag.handle(), tag.suffix())))
}

fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let as_text = || Ok(Value::String(text.to_owned()));
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain { plain(text) } else { as_text() };
    };
    if is_core(tag, "str") || is_non_specific(tag) {
        return as_text();
    }
    let value = plain(text)?;
    let fits = match &value {
        Value::Null => is_core(tag, "null"),
        Value::Bool(_) => is_core(tag, "bool"),
        Value::Number(number) => is_core(tag, "float") || (is_core(tag, "int") && !number.is_f64()),
        _ => false,
    };
    if fits { Ok(value) } else { Err(no_counterpart(tag)) }
}

/// Reads a plain scalar by the core schema.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!("{text} has no counterpart in JSON"));
    }
    let too_long = || format!("the number {} has more digits than are kept", shown(text));
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(number) = text.strip_prefix(prefix)
            && !number.is_empty()
            && number.chars().all(|c| c.is_digit(radix))
        {
            return u64::from_str_radix(number, radix).map(Value::from).map_err(|_| too_long());
        }
    }
    if !is_decimal(unsigned) {
        return Ok(Value::String(text.to_owned()));
    }
    if !digits::are_kept(text) {
        return Err(too_long());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(number.into());
    }
    let double = text.parse().ok().and_then(Number::from_f64);
    double.map(Value::Number).ok_or_else(too_long)
}

/// `[0-9]+` or `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`.
fn is_decimal(unsigned: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let some = !whole.is_empty() || !fraction.is_empty();
    some && !exponent.is_empty() && digits(whole) && digits(fraction) && digits(exponent)
}
