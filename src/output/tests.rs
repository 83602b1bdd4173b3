use proptest::prelude::*;
use serde_json::json;

use super::*;

const LIMITS: Limits = Limits { result: 1 << 20, stderr: 1 << 20 };

fn parse(format: OutputFormat, stdout: impl AsRef<[u8]>) -> Output {
    Output::parse(format, 0, stdout, "noise")
}

/// Asserts that parsing `stdout` gives the result `value`.
#[track_caller]
fn kept(format: OutputFormat, stdout: &str, value: Value) {
    let output = parse(format, stdout);
    assert_eq!((output.result(), output.parse_error()), (Some(&value), None), "{format}: {stdout:?}");
    assert_eq!((output.stdout(), output.stderr(), output.exit_code()), (&b""[..], &b"noise"[..], Some(0)));
    // They are not only equal, since -0 equals 0 and 1.0 equals 1. They have the same text.
    assert_eq!(output.result().unwrap().to_string(), value.to_string(), "{format}: {stdout:?}");
}

/// Asserts that the output stayed text, for a reason with these words.
#[track_caller]
fn text_of(format: OutputFormat, stdout: impl AsRef<[u8]>, why: &str) {
    let stdout = stdout.as_ref();
    let output = parse(format, stdout);
    let reason = output.parse_error().unwrap_or_else(|| panic!("{format}: kept as {:?}", output.result()));
    assert!(reason.contains(why) && reason.starts_with(&format!("not kept as {format}: ")), "{format}: {reason}");
    assert_eq!((output.result(), output.stdout(), output.stderr()), (None, stdout, &b"noise"[..]), "{reason}");
    output.columns(LIMITS).expect("text can always be stored");
}

use OutputFormat::{Json, Jsonl, Text, Yaml};

#[test]
fn an_error_text_that_is_too_long_is_cut_and_says_so() {
    assert_eq!(cut_error("short"), "short");
    let longest = "x".repeat(ERROR_LIMIT);
    assert_eq!(cut_error(&longest), longest);
    for text in ["é".repeat(ERROR_LIMIT), "x".repeat(ERROR_LIMIT + 1), "𝄞x".repeat(ERROR_LIMIT)] {
        let cut = cut_error(&text);
        assert!(cut.len() <= ERROR_LIMIT && cut.ends_with(" bytes more were cut)"), "{}", cut.len());
        let (kept, _) = cut.split_once(" … (").expect("a note");
        assert!(text.starts_with(kept) && cut.contains(&(text.len() - kept.len()).to_string()));
    }
}

#[test]
fn text_is_kept_as_it_stands_and_has_no_result() {
    for stdout in ["", "a\r\nb\n", "null", "{}", "  "] {
        let output = parse(Text, stdout);
        assert_eq!((output.result(), output.stdout(), output.parse_error()), (None, stdout.as_bytes(), None));
    }
}

#[test]
fn what_parses_is_the_result_and_json_null_is_one() {
    for format in [Json, Yaml] {
        kept(format, "null", Value::Null);
        kept(format, "  {\"a\": [1, \"x\", true, {}]}\n", json!({"a": [1, "x", true, {}]}));
        kept(format, "\"\"", json!(""));
    }
    kept(Jsonl, "{\"a\": 1}\r\n\n \t\n2\nnull", json!([{"a": 1}, 2, null]));
    kept(Jsonl, "", json!([]));
    kept(Jsonl, "\n\n", json!([]));
}

#[test]
fn what_does_not_parse_is_kept_as_text_with_a_reason() {
    text_of(Json, "", "EOF");
    text_of(Json, "3 pages", "trailing");
    text_of(Json, "{\"a\": }", "expected value");
    text_of(Json, "\u{feff}{}", "expected value");
    text_of(Json, "NaN", "expected");
    text_of(Jsonl, "{}\n[1,\n", "line 2");
    text_of(Yaml, "", "no document");
    text_of(Yaml, "# only a comment\n", "no document");
    text_of(Yaml, "a: [1", "line");
    text_of(Yaml, "a: b: c", "");
    for format in [Json, Yaml, Jsonl] {
        text_of(format, b"\"\xff\"", "not UTF-8");
    }
}

#[test]
fn what_jsonb_cannot_hold_is_kept_as_text() {
    for format in [Json, Yaml, Jsonl] {
        text_of(format, r#"{"a": ["\u0000"]}"#, "U+0000");
        text_of(format, r#"{"\u0000": 1}"#, "U+0000");
        text_of(format, "\"a\0b\"", "");
    }
    text_of(Json, r#""\ud800""#, "");
    text_of(Jsonl, r#""\udc00x""#, "");
    text_of(Yaml, r#""\ud800""#, "");
    kept(Json, r#""\ud83d\ude00""#, json!("😀"));
}

#[test]
fn no_digit_is_lost_without_a_word() {
    for (token, kept_as) in [
        ("0", "0"),
        ("-1", "-1"),
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("0.1", "0.1"),
        ("1.10", "1.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("1e22", "1e22"),
        ("100000000000000000000000", "1e23"),
        ("5e-324", "5e-324"),
        ("1.7976931348623157e308", "1.7976931348623157e308"),
        ("0.10000000000000001", "0.1"),
        ("2.2250738585072014E-308", "2.2250738585072014e-308"),
    ] {
        assert!(digits::are_kept(token), "{token}");
        for format in [Json, Yaml] {
            kept(format, token, serde_json::from_str(kept_as).unwrap());
        }
    }
    for token in [
        "18446744073709551616",
        "-9223372036854775809",
        "12345678901234567890123",
        "3.141592653589793238",
        "1e400",
        "-1e400",
        "1e-400",
        "1e-99999999999999999999999",
        "0.1000000000000000055511151231257827",
    ] {
        assert!(!digits::are_kept(token), "{token}");
        let why = if token.contains("e400") { "" } else { "digits" };
        text_of(Json, token, why);
        text_of(Json, format!(r#"{{"a": [1, {token}]}}"#), why);
        text_of(Yaml, format!("a: [1, {token}]"), why);
    }
    // Digits in strings and keys are not numbers.
    kept(Json, r#"{"18446744073709551616": "1e400"}"#, json!({"18446744073709551616": "1e400"}));
}

#[test]
fn a_key_that_stands_twice_is_not_passed_over() {
    for format in [Json, Yaml] {
        text_of(format, r#"{"a": 1, "b": {"c": 1, "c": 1}}"#, "twice");
        text_of(format, r#"{"a": 1, "\u0061": 2}"#, "\"a\" stands twice");
        kept(
            format,
            r#"{"a": {"a": "a"}, "b": [{"a": 1}, {"a": 2}]}"#,
            json!({"a": {"a": "a"}, "b": [{"a": 1}, {"a": 2}]}),
        );
    }
    kept(Json, r#"{"a": ":", "b": "\"a\":"}"#, json!({"a": ":", "b": "\"a\":"}));
    let long = "k".repeat(5000);
    let reason = parse(Json, format!(r#"{{"{long}": 1, "{long}": 2}}"#));
    assert!(reason.parse_error().unwrap().len() < 200);
}

#[test]
fn nesting_is_bounded_by_what_can_be_read_again() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for format in [Json, Yaml] {
        let output = parse(format, nested(DEPTH));
        let value = output.result().expect("that deep is kept");
        serde_json::from_str::<Value>(&value.to_string()).expect("and can be read again");
        text_of(format, nested(DEPTH + 1), "");
        text_of(format, nested(100_000), "");
    }
    assert!(parse(Jsonl, nested(DEPTH - 1)).result().is_some());
    text_of(Jsonl, nested(DEPTH), "nested");
    let deep = (0..DEPTH).fold(json!(1), |value, _| json!([value]));
    Output::value(deep.clone()).columns(LIMITS).unwrap();
    let error = Output::value(json!({"a": deep})).columns(LIMITS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn yaml_is_read_by_its_core_schema() {
    kept(
        Yaml,
        "a: 1\nb: [x, ~, TRUE, no, 0x1F, 0o17, 017, +5, .5, 1., 1e3, -0]",
        json!({
            "a": 1, "b": ["x", null, true, "no", 31, 15, 17, 5, 0.5, 1.0, 1000.0, 0]
        }),
    );
    let text = "a: '1'\nb: \"true\"\nc: |\n  two\n  lines\nd: 2026-11-22\ne: 1_000\nf: 12:30\ng: .\ni: 1e\n";
    kept(
        Yaml,
        text,
        json!({
            "a": "1", "b": "true", "c": "two\nlines\n", "d": "2026-11-22",
            "e": "1_000", "f": "12:30", "g": ".", "i": "1e"
        }),
    );
    kept(
        Yaml,
        "a: !!str 1\nb: !!float 1\nc: ! 2\nd: !!int \"3\"\ne: !!seq [!!map {}]",
        json!({
            "a": "1", "b": 1, "c": "2", "d": 3, "e": [{}]
        }),
    );
    kept(Yaml, "---\nnull\n...\n", Value::Null);
    text_of(Yaml, "--- 1\n--- 2\n", "more than one document");
    for tag in
        ["!mine 1", "!!binary aGk=", "!!set {a}", "!!int x", "!!bool 1", "!!null 1", "!mine [1]", "!<tag:x,1:y> 1"]
    {
        text_of(Yaml, format!("a: {tag}"), "no counterpart");
    }
    for number in [".inf", "-.INF", ".nan"] {
        text_of(Yaml, format!("[{number}]"), "no counterpart");
    }
}

/// Nothing is stored wrong silently: each becomes the value that other readers of YAML find, or stays text.
#[test]
fn yaml_at_its_edges_is_read_right_or_stays_text() {
    for (text, value) in [
        // The end of a block scalar: chomping, blank lines and blanks after it, what follows.
        ("a: |\n  x\n  ", json!({"a": "x\n"})),
        ("a: |\n  x\n  \n", json!({"a": "x\n"})),
        ("a: >\n  x\n \n  ", json!({"a": "x\n"})),
        ("a: |-\n  x\n\n\n", json!({"a": "x"})),
        ("a: |+\n  x\n\n", json!({"a": "x\n\n"})),
        ("- |\n  x\n\n- y\n", json!(["x\n", "y"])),
        ("a: |\n\n\n  x\n", json!({"a": "\n\nx\n"})),
        ("a: |2\n    x\n", json!({"a": "  x\n"})),
        ("a: >\n  x\n  y\n\n  z\n   w\n", json!({"a": "x y\nz\n w\n"})),
        ("a: |\r\n  x\r\n  y\r\nb: 1\r\n", json!({"a": "x\ny\n", "b": 1})),
        ("--- |\n  x\n...\n", json!("x\n")),
        ("a: |\n  ---\n  x\n", json!({"a": "---\nx\n"})),
        // JSON inside of YAML.
        (r#"a: "\ud83d\ude00""#, json!({"a": "😀"})),
        (
            r#"a: {"b": ["\uD83D\uDE00 \\ud83d", "\/"], 'c': '\ud83d\ude00'}"#,
            json!({"a": {"b": ["😀 \\ud83d", "/"], "c": "\\ud83d\\ude00"}}),
        ),
        ("a: \\ud83d\\ude00", json!({"a": "\\ud83d\\ude00"})),
        (r#""\ud83d\ude00": 1"#, json!({"😀": 1})),
        ("a:\t1\nb:\t \tx", json!({"a": 1, "b": "x"})),
        ("{\n\t\"a\":\t1,\n\t\"b\":\t[\n\t\t2\n\t]\n}\n# JSON, but for this\n", json!({"a": 1, "b": [2]})),
        // Tags of the core schema, however they are written.
        ("a: !<tag:yaml.org,2002:str> 1", json!({"a": "1"})),
        ("!<tag:yaml.org,2002:map> {a: !<tag:yaml.org,2002:seq> [!<tag:yaml.org,2002:int> 1]}", json!({"a": [1]})),
        ("%TAG !c! tag:yaml.org,2002:\n--- !c!str 1\n", json!("1")),
        // Marks, blanks, and nodes without any text.
        ("\u{feff}a: 1", json!({"a": 1})),
        ("\u{feff}---\na: 1", json!({"a": 1})),
        ("%YAML 1.2\n---\na: 1\n...\n", json!({"a": 1})),
        ("a: x \t \nb: 'y ' # c\n", json!({"a": "x", "b": "y "})),
        ("a:\nb: !!str\nc: ''\n", json!({"a": null, "b": "", "c": ""})),
        ("- ~\n-\n- '~'\n", json!([null, null, "~"])),
        ("~: 1", json!({"~": 1})),
        // From YAML 1.1, only forms that 1.2 has too.
        (
            "[yes, No, on, 1_000, 1:30, 0b1, 010, 0o10, 2026-01-01, =, <<]",
            json!(["yes", "No", "on", "1_000", "1:30", "0b1", 10, 8, "2026-01-01", "=", "<<"]),
        ),
        ("x: &x {a: 1}\ny: {<<: *x, b: 2}", json!({"x": {"a": 1}, "y": {"<<": {"a": 1}, "b": 2}})),
    ] {
        kept(Yaml, text, value);
    }
    for text in [
        // If the last line has no line break, readers disagree whether it gets one.
        "a: |\n  x",
        "- >+\n  x\n   ",
        // A line break of YAML 1.1.
        "a: x\u{2028}y",
        "- 'x\u{85} y'",
        "\u{feff}---\u{2028}>-\r\n\n  ",
        "|\n# c\n",
        // A block scalar that is not indented.
        "--- |\nx\n...\n",
        "|\nx\ny\n",
        ">\nx\n---y\n",
    ] {
        text_of(Yaml, text, "two readers of YAML");
    }
    for (text, why) in [
        ("a: 1\n---\nb: 2\n", "more than one document"),
        ("|\n  x\n---\ny\n", "more than one document"),
        // A block scalar ends at the marker of the next document, even one that is not indented.
        ("|\nx\n---\ny\n", "more than one document"),
        ("--- |\nx\n---\ny\n", "more than one document"),
        (">\nx\n--- y\n", "more than one document"),
        ("|\nx\n---\n", "more than one document"),
        ("|\nx\n...\n---\ny\n", "more than one document"),
        ("a: |\n---\ny\n", "more than one document"),
        ("- >-\n  x\n--- |\ny\n", "more than one document"),
        ("---\n---\n", "more than one document"),
        (r#"a: "\ud83d""#, ""),
        (r#"a: "\ude00\ud83d""#, ""),
        ("# c\n\u{feff}a: 1", "byte order mark"),
        ("[!note, next]", "no counterpart"),
        ("a: !<tag:yaml.org,2002:timestamp> 2026-01-01", "no counterpart"),
        ("a: 0xFFFFFFFFFFFFFFFFF", "digits"),
        ("? \n: 1\n'': 2", "twice"),
    ] {
        text_of(Yaml, text, why);
    }
}

#[test]
fn yaml_keys_become_strings_as_they_are_written_or_are_refused() {
    kept(
        Yaml,
        "200: ok\n0x10: hex\ntrue: yes\n~: nothing\n1.50: x",
        json!({
            "200": "ok", "0x10": "hex", "true": "yes", "~": "nothing", "1.50": "x"
        }),
    );
    text_of(Yaml, "1: a\n\"1\": b", "twice");
    text_of(Yaml, "? [a]\n: b", "JSON's are strings");
    text_of(Yaml, "x: &x {a: 1}\n? *x\n: b", "JSON's are strings");
    kept(Yaml, "x: &x y\n*x : b\n<<: c", json!({"x": "y", "y": "b", "<<": "c"}));
}

#[test]
fn yaml_aliases_are_expanded_within_bounds() {
    kept(Yaml, "a: &a [1, &b two]\nb: [*a, *b]", json!({"a": [1, "two"], "b": [[1, "two"], "two"]}));
    text_of(Yaml, "a: *nothing", "");
    text_of(Yaml, "&a [*a]", "");
    let laughs = (1..40)
        .fold("a0: &a0 [x, x]\n".to_owned(), |bomb, i| format!("{bomb}a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1));
    text_of(Yaml, laughs, "");
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a, ".repeat(100));
    text_of(Yaml, long, "");
    let tower = (1..10_000).fold("a0: &a0 [x]\n".to_owned(), |tower, i| format!("{tower}a{i}: &a{i} [*a{}]\n", i - 1));
    text_of(Yaml, tower, "");
}

#[test]
fn a_nonzero_exit_code_is_data_until_the_handler_says_otherwise() {
    let output = Output::parse(Json, 3, "1", "");
    assert_eq!((output.exit_code(), output.error()), (Some(3), None));
    assert_eq!(output.fail_unless_exit_0().error(), Some("exit code 3"));
    assert_eq!(
        Output::parse(Json, None, "1", "").fail_unless_exit_0().error(),
        Some("no exit code: ended by a signal")
    );
    assert_eq!(Output::parse(Json, 0, "1", "").fail_unless_exit_0().error(), None);
}

#[test]
fn what_is_too_large_is_refused_by_name_and_never_cut() {
    let limits = Limits { result: 10, stderr: 5 };
    for (output, words) in [
        (Output::value("x".repeat(8)), None),
        (Output::value("x".repeat(9)), Some(["result has 11 bytes", "result_max_bytes"])),
        (Output::text("x".repeat(10)), None),
        (Output::text("x".repeat(11)), Some(["standard output has 11 bytes", "10 (result_max_bytes)"])),
        // The size as stored: escaped, each of these bytes takes four.
        (Output::text(vec![0xff; 3]), Some(["standard output has 12 bytes", "10 (result_max_bytes)"])),
        (Output::default().with_stderr("x".repeat(5)), None),
        (Output::default().with_stderr("x".repeat(6)), Some(["standard error has 6 bytes", "5 (stderr_max_bytes)"])),
    ] {
        match (output.columns(limits), words) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => {
                assert_eq!(error.kind(), ErrorKind::TooLarge);
                words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error}"));
            }
            (columns, words) => panic!("{columns:?}, not {words:?}"),
        }
    }
}

#[test]
fn formats_have_names() {
    for (format, name) in [(Text, "text"), (Json, "json"), (Yaml, "yaml"), (Jsonl, "jsonl")] {
        assert_eq!((format.to_string().as_str(), name.parse().ok()), (name, Some(format)));
        assert_eq!(serde_json::to_value(format).unwrap(), json!(name));
    }
    assert_eq!("xml".parse::<OutputFormat>().unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::from),
        "[^\0]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(("[^\0]{0,6}", inner), 0..6).prop_map(|fields| fields.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    /// Every value that can be stored is read again unchanged to the last bit, whatever wrote the JSON.
    #[test]
    fn every_value_comes_back_as_it_was(value in any_value()) {
        for written in [value.to_string(), format!("{value:#}")] {
            let output = parse(Json, &written);
            prop_assert_eq!(output.result(), Some(&value), "{:?}", output.parse_error());
        }
        let (line, lines) = (value.to_string(), json!([value, value]));
        let output = parse(Jsonl, format!("{line}\n{line}\n"));
        prop_assert_eq!(output.result(), Some(&lines), "{:?}", output.parse_error());
    }

    /// For any bytes: a result or a text, never both, nothing lost, and it can be stored.
    #[test]
    fn any_bytes_are_a_result_or_the_same_bytes(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            "[\\[\\]{}:,\"'0-9a&*!\\-. \n\\\\|>?#~\0]{0,60}".prop_map(String::into_bytes),
        ],
    ) {
        for format in [Text, Json, Yaml, Jsonl] {
            let output = parse(format, &bytes);
            prop_assert!(output.stdout() == bytes || (output.stdout().is_empty() && output.result().is_some()));
            prop_assert_eq!(output.result().is_none() && format != Text, output.parse_error().is_some());
            let columns = output.columns(LIMITS).expect("it can be stored");
            prop_assert!(columns.result.is_none() || columns.stdout.is_empty());
            prop_assert!(!columns.stdout.contains('\0') && !columns.parse_error.is_some_and(|why| why.contains('\0')));
            let back = match columns.escaped {
                true => unescape(&columns.stdout).expect("escaped"),
                false => columns.stdout.as_bytes().to_vec(),
            };
            prop_assert_eq!(back, output.stdout());
        }
    }

    #[test]
    fn escaping_is_undone(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\\'), Just(0)], 0..40)) {
        prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
    }
}
