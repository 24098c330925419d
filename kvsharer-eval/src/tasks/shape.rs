//! The keys of JSON objects in the order of the file, which [`serde_json::Value`] does not keep.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A JSON value without its numbers and texts.
#[derive(Debug)]
pub(super) enum Shape {
    Object(Vec<(String, Shape)>),
    List(Vec<Shape>),
    Plain,
}

impl Shape {
    /// A field of an object.
    pub(super) fn get(&self, key: &str) -> Option<&Shape> {
        let Shape::Object(fields) = self else {
            return None;
        };
        fields.iter().find_map(|(name, shape)| (name == key).then_some(shape))
    }

    /// The elements of a list; of anything else there are none.
    pub(super) fn elements(&self) -> &[Shape] {
        if let Shape::List(elements) = self { elements } else { &[] }
    }

    /// The keys of an object; of anything else there are none.
    pub(super) fn keys(&self) -> Vec<&str> {
        let Shape::Object(fields) = self else {
            return Vec::new();
        };
        fields.iter().map(|(key, _)| key.as_str()).collect()
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Plain)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Shape::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Shape, A::Error> {
        let mut fields: Vec<(String, Shape)> = Vec::new();
        while let Some((key, shape)) = object.next_entry::<String, Shape>()? {
            // A key that comes again changes its value and keeps its place, as in Python.
            match fields.iter_mut().find(|(name, _)| *name == key) {
                Some(field) => field.1 = shape,
                None => fields.push((key, shape)),
            }
        }
        Ok(Shape::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_order() {
        let shape: Shape = serde_json::from_str(r#"{"z": [{"b": 1, "a": -2.5, "b": "x"}, null], "y": true}"#).unwrap();
        assert_eq!(shape.keys(), ["z", "y"]);
        let elements = shape.get("z").unwrap().elements();
        assert_eq!(elements[0].keys(), ["b", "a"]);
        assert!(elements[1].keys().is_empty() && elements[1].elements().is_empty());
    }
}
