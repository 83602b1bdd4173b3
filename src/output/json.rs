//! Reads JSON, and JSON with one value a line.

use std::collections::HashSet;

use serde_json::Value;

use super::{digits, shown};

pub(super) fn parse(text: &str) -> Result<Value, String> {
    let value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    keeps_all(text)?;
    Ok(value)
}

pub(super) fn parse_lines(text: &str) -> Result<Value, String> {
    let blank = |line: &str| line.bytes().all(|b| b.is_ascii_whitespace());
    let lines = text.lines().enumerate().filter(|(_, line)| !blank(line));
    lines.map(|(i, line)| parse(line).map_err(|why| format!("line {}: {why}", i + 1))).collect()
}

/// Whether a value keeps everything in `text`, which is valid JSON: each key occurs once in its object, and no digit is
/// lost.
fn keeps_all(text: &str) -> Result<(), String> {
    // The keys of each object that is open; `None` for an array.
    let mut open: Vec<Option<HashSet<String>>> = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.bytes().next() {
        let mut length = 1;
        match first {
            b'{' => open.push(Some(HashSet::new())),
            b'[' => open.push(None),
            b'}' | b']' => _ = open.pop(),
            b'"' => {
                length = length_of_string(rest);
                let (word, after) = rest.split_at(length);
                if let Some(Some(keys)) = open.last_mut()
                    && after.trim_start().starts_with(':')
                {
                    let key: String = serde_json::from_str(word).map_err(|e| e.to_string())?;
                    if keys.contains(&key) {
                        return Err(format!("the key {} stands twice in an object", shown(&key)));
                    }
                    keys.insert(key);
                }
            }
            b'-' | b'0'..=b'9' => {
                let is_digit = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                length = rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
                let number = &rest[..length];
                if !digits::are_kept(number) {
                    return Err(format!("the number {} has more digits than are kept", shown(number)));
                }
            }
            // Colons, commas, blanks, and words, whose letters are skipped one by one.
            _ => {}
        }
        rest = &rest[length..];
    }
    Ok(())
}

/// The length of the string at the beginning of `text`, with both quotes.
fn length_of_string(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}
