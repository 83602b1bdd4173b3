//! YAML as JSON's values, by the core schema of YAML 1.2.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use super::{DEPTH, digits, shown};

/// How much anchors and aliases may copy: nodes and the bytes of their texts, together.
const COPIES: usize = 1 << 20;

pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut document = Document::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| e.to_string())?;
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
        }
        if documents > 1 {
            return Err("it holds more than one document".to_owned());
        }
        document.take(event).map_err(|why| format!("{why}, at line {}", span.start.line()))?;
    }
    document.root.ok_or_else(|| "it holds no document".to_owned())
}

/// A sequence or mapping that is open.
enum Node {
    Sequence(Vec<Value>),
    /// With the key whose value comes next.
    Mapping(Map<String, Value>, Option<String>),
}

struct Document {
    /// Each with its anchor; 0 is none.
    open: Vec<(Node, usize)>,
    anchors: HashMap<usize, Value>,
    copies_left: usize,
    root: Option<Value>,
}

impl Default for Document {
    fn default() -> Self {
        Self { open: Vec::new(), anchors: HashMap::new(), copies_left: COPIES, root: None }
    }
}

impl Document {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = resolve(&text, style, tag.as_deref())?;
                self.anchor(anchor, &value)?;
                let word = if let Value::String(word) = &value { word.clone() } else { text.into_owned() };
                self.place(value, Some(word))
            }
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor).cloned() else {
                    return Err("an alias stands inside of what it repeats".to_owned());
                };
                self.copy(&value, DEPTH - self.open.len())?;
                let word = match &value {
                    Value::Array(_) | Value::Object(_) => None,
                    Value::String(word) => Some(word.clone()),
                    other => Some(other.to_string()),
                };
                self.place(value, word)
            }
            Event::SequenceStart(anchor, tag) => self.begin(Node::Sequence(Vec::new()), "seq", anchor, tag.as_deref()),
            Event::MappingStart(anchor, tag) => {
                self.begin(Node::Mapping(Map::new(), None), "map", anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (value, anchor) = match self.open.pop() {
                    Some((Node::Sequence(items), anchor)) => (Value::Array(items), anchor),
                    Some((Node::Mapping(fields, _), anchor)) => (Value::Object(fields), anchor),
                    None => return Err("something ends that has not begun".to_owned()),
                };
                self.anchor(anchor, &value)?;
                self.place(value, None)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, node: Node, kind: &str, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        if let Some(tag) = tag.filter(|tag| !(is_core(tag, kind) || is_non_specific(tag))) {
            return Err(no_counterpart(tag));
        }
        if let Some((Node::Mapping(_, None), _)) = self.open.last() {
            return Err("a key is a sequence or a mapping, and JSON's are strings".to_owned());
        }
        if self.open.len() >= DEPTH {
            return Err(format!("it is nested deeper than {DEPTH}"));
        }
        self.open.push((node, anchor));
        Ok(())
    }

    /// Puts a node where it belongs. `word` is what it is as a key; `None` for what can be none.
    fn place(&mut self, value: Value, word: Option<String>) -> Result<(), String> {
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some((Node::Sequence(items), _)) => items.push(value),
            Some((Node::Mapping(fields, key), _)) => match key.take() {
                Some(name) => _ = fields.insert(name, value),
                None => {
                    let name = word.ok_or("a key is a sequence or a mapping, and JSON's are strings")?;
                    if fields.contains_key(&name) {
                        return Err(format!("the key {} stands twice in a mapping", shown(&name)));
                    }
                    *key = Some(name);
                }
            },
        }
        Ok(())
    }

    fn anchor(&mut self, anchor: usize, value: &Value) -> Result<(), String> {
        if anchor > 0 {
            self.copy(value, DEPTH)?;
            self.anchors.insert(anchor, value.clone());
        }
        Ok(())
    }

    fn copy(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        self.copies_left = spend(value, self.copies_left, depth).ok_or("its aliases repeat or nest too much")?;
        Ok(())
    }
}

/// What is left of `budget` after a copy of `value`; `None`, before more is looked at, if it does not suffice or `value` is
/// nested deeper than `depth`.
fn spend(value: &Value, budget: usize, depth: usize) -> Option<usize> {
    let left = budget.checked_sub(1)?;
    match value {
        Value::String(text) => left.checked_sub(text.len()),
        Value::Array(items) => {
            let depth = depth.checked_sub(1)?;
            items.iter().try_fold(left, |left, item| spend(item, left, depth))
        }
        Value::Object(fields) => {
            let depth = depth.checked_sub(1)?;
            fields.iter().try_fold(left, |left, (name, field)| spend(field, left.checked_sub(name.len())?, depth))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Some(left),
    }
}

fn is_core(tag: &Tag, kind: &str) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == kind
}

/// A lone `!`, which makes a scalar a string.
fn is_non_specific(tag: &Tag) -> bool {
    matches!((tag.handle.as_str(), tag.suffix.as_str()), ("!", "") | ("", "!"))
}

fn no_counterpart(tag: &Tag) -> String {
    format!("the tag {} has no counterpart in JSON", shown(&format!("{}{}", tag.handle, tag.suffix)))
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

/// A plain scalar by the core schema.
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
