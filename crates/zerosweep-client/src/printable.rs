//! Text from outside, escaped so that it can be shown: nothing in it moves a cursor, changes a
//! terminal, reverses text or begins a line.
//!
//! Text from a socket goes through [`printable_json`] as soon as it is text. Text for standard
//! error goes through [`printable_lines`] when it is written.

use std::borrow::Cow;

use serde_json::Value;

/// Escapes every character that has no shape of its own: C0 and C1 controls, line separators,
/// Unicode's direction and format characters, combining marks.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, has_shape)
}

/// As [`printable`], but keeps line ends.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |letter| letter == '\n' || has_shape(letter))
}

/// A document whose strings are printable.
pub fn printable_json(mut value: Value) -> Value {
    match &mut value {
        Value::String(text) => {
            if let Cow::Owned(escaped) = printable(text) {
                *text = escaped;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| {
            *value = printable_json(value.take());
        }),
        Value::Object(fields) => fields.values_mut().for_each(|value| {
            *value = printable_json(value.take());
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    value
}

fn escape(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(&is_kept) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_kept(letter) { escaped.push(letter) } else { escaped.extend(letter.escape_debug()) }
    }
    Cow::Owned(escaped)
}

/// The standard library knows which characters have none.
fn has_shape(letter: char) -> bool {
    matches!(letter, '"' | '\'' | '\\') || letter.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_shape_is_escaped_and_nothing_else() {
        for plain in ["a guest's \"name\" \\ 50 %", "größer → 日本 🐧", ""] {
            assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain), "{plain}");
        }
        for (wild, shown) in [
            ("\x1b[31m", r"\u{1b}[31m"),
            ("a\nb\tc\rd\0e\x07f\x7f", r"a\nb\tc\rd\0e\u{7}f\u{7f}"),
            ("\u{9b}2J\u{9d}0;x\u{9c}", r"\u{9b}2J\u{9d}0;x\u{9c}"),
            ("\u{202e}\u{2066}\u{2069}\u{200f}\u{61c}", r"\u{202e}\u{2066}\u{2069}\u{200f}\u{61c}"),
            ("\u{200b}\u{feff}\u{ad}\u{2028}\u{2029}", r"\u{200b}\u{feff}\u{ad}\u{2028}\u{2029}"),
            ("\u{e0041}x\u{301}", r"\u{e0041}x\u{301}"),
        ] {
            assert_eq!(printable(wild), shown);
        }
        assert_eq!(printable_lines("one\ntwo\r\x1bc"), "one\ntwo\\r\\u{1b}c");
    }

    #[test]
    fn in_a_document_every_string_is_and_nothing_else_changes() {
        let line =
            r#"{"a":["\u001b","b",{"c":"\u009b"}],"n":18446744073709551615,"f":0.5,"x":null}"#;
        let value = printable_json(serde_json::from_str(line).unwrap());
        let expect =
            r#"{"a":["\\u{1b}","b",{"c":"\\u{9b}"}],"f":0.5,"n":18446744073709551615,"x":null}"#;
        assert_eq!(value, serde_json::from_str::<Value>(expect).unwrap());
    }
}
