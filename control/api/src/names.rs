//! Members of a request in any case, as Go reads them: `replicated`, which docker-py sends, is `Replicated`.
//!
//! Only names of a struct's fields are so. Keys of maps (labels, options) are what the user wrote.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

/// The name of the field, a map, that has the members which no other field of its struct takes.
pub const REST: &str = "*";

/// What `value` says.
pub fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    T::deserialize(AnyCase(value))
}

struct AnyCase(Value);

impl<'de> Deserializer<'de> for AnyCase {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => visit_items(items, visitor),
            Value::Object(entries) => visit_entries(entries, visitor),
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(entries) => visit_entries(by_field(entries, fields), visitor),
            other => Self(other).deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, Error> for AnyCase {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn visit_items<'de, V: Visitor<'de>>(items: Vec<Value>, visitor: V) -> Result<V::Value, Error> {
    let mut items = SeqDeserializer::new(items.into_iter().map(AnyCase));
    let value = visitor.visit_seq(&mut items)?;
    items.end()?;
    Ok(value)
}

fn visit_entries<'de, V: Visitor<'de>>(entries: Map<String, Value>, visitor: V) -> Result<V::Value, Error> {
    let mut entries = MapDeserializer::new(entries.into_iter().map(|(name, value)| (name, AnyCase(value))));
    let value = visitor.visit_map(&mut entries)?;
    entries.end()?;
    Ok(value)
}

/// The entries under the names of the fields that they are meant for; a field's very name goes before others like it.
fn by_field(entries: Map<String, Value>, fields: &[&str]) -> Map<String, Value> {
    let field_of =
        |name: &str| fields.iter().find(|field| **field != REST && field.eq_ignore_ascii_case(name));
    let (mut named, mut rest) = (Map::new(), Map::new());
    for (name, value) in entries {
        match field_of(&name) {
            Some(field) if *field == name => drop(named.insert(name, value)),
            Some(field) => {
                named.entry(*field).or_insert(value);
            }
            None => drop(rest.insert(name, value)),
        }
    }
    if fields.contains(&REST) {
        named.insert(REST.to_owned(), Value::Object(rest));
    }
    named
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Outer {
        #[serde(rename = "NanoCPUs")]
        nano_cpus: i64,
        inner: Option<Inner>,
        list: Vec<Inner>,
        labels: BTreeMap<String, String>,
        #[serde(rename = "*")]
        rest: BTreeMap<String, Value>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Inner {
        replicas: Option<u64>,
    }

    #[test]
    fn fields_have_names_in_any_case_and_maps_have_keys() {
        let given = json!({
            "nanocpus": 5, "INNER": {"replicas": 2}, "list": [{"rePlicas": 3}], "Labels": {"a": "b", "A": "c"},
            "other": {"Inner": 1}, "*": 7,
        });
        let inner = |replicas| Inner { replicas: Some(replicas) };
        let pairs = |pairs: &[(&str, Value)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
        };
        let expected = Outer {
            nano_cpus: 5,
            inner: Some(inner(2)),
            list: vec![inner(3)],
            labels: [("a", "b"), ("A", "c")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            rest: pairs(&[("other", json!({"Inner": 1})), ("*", json!(7))]),
        };
        assert_eq!(read::<Outer>(given).expect("it is read"), expected);
    }

    #[test]
    fn the_very_name_goes_first() {
        let given = json!({"replicas": 1, "Replicas": 2, "REPLICAS": 3});
        assert_eq!(read::<Inner>(given).expect("it is read").replicas, Some(2));
    }

    #[test]
    fn what_is_of_another_type_is_said() {
        let error = |given| read::<Outer>(given).expect_err("refused").to_string();
        assert_eq!(error(json!({"NanoCPUs": "1"})), "invalid type: string \"1\", expected i64");
        assert_eq!(error(json!({"Inner": [[]]})), "invalid type: sequence, expected u64");
        assert_eq!(error(json!("x")), "invalid type: string \"x\", expected struct Outer");
    }
}
