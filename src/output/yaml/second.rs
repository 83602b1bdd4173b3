//! A second reader of YAML, of another family (libyaml's), which must read the same.
//!
//! Readers of YAML disagree on details: a block scalar whose last line has no line break, line breaks of other
//! alphabets, indentation after a comment. A value from one reader alone could be wrong. So text that the two read
//! differently does not become a value.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::Tree;

/// Checks that the second reader finds in `text` the same nodes with the same texts as the first.
pub(super) fn agrees(text: &str, tree: &Tree) -> Result<(), String> {
    tree.deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|e| format!("two readers of YAML do not read it alike: {e}"))
}

/// Expects the tree's contents from a reader.
impl<'de> DeserializeSeed<'de> for &Tree {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self {
            Tree::Scalar { text, .. } => Text(text).deserialize(deserializer),
            Tree::Sequence(_) => deserializer.deserialize_seq(self),
            Tree::Mapping(_) => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for &Tree {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tree::Scalar { text, .. } => Text(text).expecting(f),
            Tree::Sequence(items) => write!(f, "a sequence of {}", items.len()),
            Tree::Mapping(fields) => write!(f, "a mapping of {}", fields.len()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let Tree::Sequence(items) = self else { return Err(A::Error::custom("a sequence")) };
        for item in items {
            access.next_element_seed(item)?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
        }
        let more = access.next_element::<serde::de::IgnoredAny>()?;
        if more.is_some() { Err(A::Error::invalid_length(items.len() + 1, &self)) } else { Ok(()) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let Tree::Mapping(fields) = self else { return Err(A::Error::custom("a mapping")) };
        for field in fields {
            access.next_key_seed(Text(&field.key))?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
            access.next_value_seed(&field.value)?;
        }
        let more = access.next_key::<serde::de::IgnoredAny>()?;
        if more.is_some() { Err(A::Error::invalid_length(fields.len() + 1, &self)) } else { Ok(()) }
    }
}

/// Expects a scalar with this text.
struct Text<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the scalar {}", super::super::shown(self.0))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if text == self.0 {
            Ok(())
        } else {
            Err(E::custom(format!("{} and {}", super::super::shown(self.0), super::super::shown(text))))
        }
    }
}
