use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use super::*;

/// The tree, with each scalar as its original text.
fn texts(tree: &Tree) -> Value {
    match tree {
        Tree::Scalar { text, .. } => json!(text),
        Tree::Sequence(items) => items.iter().map(texts).collect(),
        Tree::Mapping(fields) => fields.iter().map(|field| (field.key.clone(), texts(&field.value))).collect(),
    }
}

/// Pieces of documents that tests join at random. Readers stumble over them.
const PIECES: [&str; 72] = [
    "a",
    "b c",
    "- ",
    "- x\n",
    ": ",
    ":",
    "?",
    "? ",
    "#",
    "# c",
    " #c",
    "|",
    ">",
    "|-",
    "|+",
    ">-",
    ">+",
    "|2",
    "|1-",
    ">2+",
    "---",
    "--- ",
    "...",
    "\n",
    "\n",
    "\n  ",
    "\n ",
    "\n    ",
    "\n\n",
    "  ",
    "\t",
    " \t",
    "\r\n",
    "'",
    "\"",
    "''",
    "\\n",
    "\\",
    "\\u0041",
    "\\ud83d\\ude00",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "!",
    "!!str ",
    "!!int ",
    "1",
    "017",
    "~",
    "null",
    "yes",
    "1e3",
    "é",
    "\u{2028}",
    "\u{85}",
    "\u{feff}",
    "<<: ",
    "a: ",
    "b: ",
    "k: |\n",
    "k: >\n",
    "x\n",
    "\n  x",
    "\n  y\n",
    "\n \n",
    "@",
    "%",
    ", b",
];

fn pick<'a>(random: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

fn glued(random: &mut fastrand::Rng) -> String {
    (0..random.usize(1..14)).map(|_| pick(random, &PIECES)).collect()
}

/// A mapping or sequence around a block scalar, with every header, indentation and end.
fn block(random: &mut fastrand::Rng) -> String {
    let indent = " ".repeat(random.usize(..3));
    let mut text = if indent.is_empty() { String::new() } else { "o:\n".to_owned() };
    text += &format!("{indent}{}{}", pick(random, &["a: ", "- ", "a:\n    ", ""]), pick(random, &["|", ">"]));
    text += pick(random, &["", "", "-", "+", "2", "1-", "+3"]);
    text += pick(random, &["\n", "\n", "  \n", " # c\n"]);
    for _ in 0..random.usize(..6) {
        let line = pick(random, &["", "", "x", "x y", "\tx", "x ", "# c", "- x", "---", "..."]);
        text += &format!("{}{line}\n", " ".repeat(random.usize(..7)));
    }
    if random.bool() {
        text.truncate(text.trim_end_matches('\n').len());
        text += &" ".repeat(random.usize(..5));
    } else {
        text += pick(random, &["", "b: 1\n", "- y\n", "---\n", "...\n"]);
    }
    if random.u8(..8) == 0 { text.replace('\n', "\r\n") } else { text }
}

const REFERENCE: &str = "
import json, sys, yaml
def read(text):
    try:
        documents = list(yaml.load_all(text, Loader=yaml.BaseLoader))
    except Exception:
        return None
    return documents
def keyed(node):
    if isinstance(node, dict):
        return {key: keyed(value) for key, value in node.items()}
    return [keyed(item) for item in node] if isinstance(node, list) else node
print(json.dumps([keyed(read(text)) for text in json.load(sys.stdin)]))
";

/// The values that PyYAML reads in each text, with scalars as texts. `None` if Python or PyYAML is missing.
fn reference(texts: &[String]) -> Option<Vec<Value>> {
    let there = Command::new("python3").args(["-c", "import yaml"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return None;
    }
    let mut python = Command::new("python3");
    python.args(["-c", REFERENCE]).env("PYTHONIOENCODING", "utf-8").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let input = serde_json::to_vec(texts).unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "the reference reader failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// No value is stored that another reader does not find in the same text. For generated documents that reader is
/// PyYAML.
#[test]
fn a_generated_document_is_what_other_readers_find_in_it_or_stays_text() {
    let seed = std::env::var("YAML_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let documents: Vec<String> =
        (0..4000).map(|i| if i % 2 == 0 { glued(&mut random) } else { block(&mut random) }).collect();
    let read: Vec<Option<Tree>> = documents.iter().map(|text| tree(text).ok()).collect();
    let kept = read.iter().flatten().count();
    assert!(kept > documents.len() / 5, "seed {seed}: only {kept} of {} documents are values", documents.len());
    let Some(found) = reference(&documents) else {
        eprintln!("skipped: python3 with PyYAML (python3-yaml) is not there; the comparison with it was not made");
        return;
    };
    for ((text, tree), found) in documents.iter().zip(&read).zip(&found) {
        // PyYAML reads YAML 1.1, so its refusal proves nothing.
        if let (Some(tree), Value::Array(_)) = (tree, found) {
            assert_eq!(found, &json!([texts(tree)]), "YAML_SEED={seed}: {text:?}");
        }
    }
}

/// A value that a common writer of YAML wrote is read again unchanged, whatever its strings.
#[test]
fn what_a_writer_writes_comes_back() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let words = [
        "x",
        "a b",
        " lead",
        "trail ",
        "multi\nline\n",
        "multi\n\nline",
        "\n\nx\n",
        " x\n y",
        "#",
        "- a",
        "a: b",
        "yes",
        "1e3",
        "é😀",
        "\t",
        "",
        "'q'",
        "\"q\"",
        "a\\b",
        "0x1",
        "~",
        "017",
        "2020-01-01",
        "a\n",
        "a\n\n",
        "\u{feff}",
        ".inf",
        "<<",
        "null",
    ];
    for _ in 0..1000 {
        let mut word = || random.choice(words).unwrap_or_default();
        let value =
            json!({ word(): [word(), {word(): word()}, 1, -0.5, null, true], word(): {word(): [[word()], []]} });
        let written = serde_yaml_ng::to_string(&value).unwrap();
        match parse(&written) {
            Ok(read) => assert_eq!(read, value, "seed {seed}: {written:?}"),
            Err(why) => panic!("seed {seed}: {why}: {written:?}"),
        }
    }
}

#[test]
fn a_pair_of_surrogates_is_joined_only_where_it_is_an_escape() {
    let joined = |text: &str| {
        let mut plainer = Plainer { text, upto: 0, written: String::new() };
        plainer.join_surrogates(0..text.len());
        plainer.finish().into_owned()
    };
    assert_eq!(joined(r#""a\ud83d\ude00b\uD83D\uDE01""#), r#""a\U0001F600b\U0001F601""#);
    for same in [r#""\\ud83d\ude00""#, r#""\ud83d""#, r#""\ud83d\u0041""#, r#""\u+83d\ude00""#, r#""\é\"#, ""] {
        assert_eq!(joined(same), same);
    }
    assert_eq!(joined(r#""\\\ud83d\ude00""#), r#""\\\U0001F600""#);
}
