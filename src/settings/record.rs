//! Finds the keys of a type by deserializing it from a recorder, which provides whatever value is requested
//! and records the request. This avoids a hand-written list of keys, which could differ from the type.

use super::schema::{Field, Kind, Schema, Table, Variant};
use crate::model::TEXT_OR_LIST;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use std::collections::BTreeMap;
use std::fmt;

/// Far more passes than any type of settings needs.
const MOST_READINGS: usize = 10_000;

/// Records the keys of a type.
///
/// # Errors
/// The type's error if it cannot be deserialized from typical values.
pub(super) fn record<T: DeserializeOwned>() -> Result<Schema, String> {
    let mut seen = Seen::default();
    let mut readings = 0;
    let mut read = |seen: &mut Seen| -> Result<Schema, Refused> {
        readings += 1;
        if readings > MOST_READINGS {
            return Err(Refused::Other("its keys do not end".into()));
        }
        let mut schema = nothing();
        T::deserialize(Recorder { seen, out: &mut schema })?;
        Ok(schema)
    };
    // One pass covers one variant of each enum.
    loop {
        read(&mut seen).map_err(|refused| refused.to_string())?;
        if seen.choices.values().flatten().all(Option::is_some) {
            break;
        }
    }
    // A struct without its fields reports the one that it needs.
    for name in seen.required.keys().copied().collect::<Vec<_>>() {
        seen.bare = Some(name);
        loop {
            match read(&mut seen) {
                Ok(_) => break,
                Err(Refused::Missing(field)) => {
                    let required = seen.required.entry(name).or_default();
                    if required.contains(&field) {
                        return Err(format!("{name} does not take its field {field}"));
                    }
                    required.push(field);
                }
                Err(refused) => return Err(refused.to_string()),
            }
        }
    }
    seen.bare = None;
    read(&mut seen).map_err(|refused| refused.to_string())
}

fn nothing() -> Schema {
    Schema { kind: Kind::Any, optional: false }
}

/// What is known after some passes.
#[derive(Default)]
struct Seen {
    /// The variants of each enum seen so far.
    choices: BTreeMap<&'static str, Vec<Option<Variant>>>,
    /// The required fields of each struct found so far.
    required: BTreeMap<&'static str, Vec<&'static str>>,
    /// The struct that is given its required fields only.
    bare: Option<&'static str>,
}

/// Why a pass failed.
#[derive(Debug)]
enum Refused {
    Missing(&'static str),
    Other(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "it needs `{field}`"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::Other(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }
}

/// Deserializes one value and records the requested type in `out`.
struct Recorder<'r> {
    seen: &'r mut Seen,
    out: &'r mut Schema,
}

impl Recorder<'_> {
    /// Records a whole number from `least` to `most`, limited to the range of TOML.
    fn whole(&mut self, least: i128, most: i128) {
        let bound = |value: i128| value.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        self.out.kind = Kind::WholeNumber { least: bound(least), most: bound(most) };
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
            self.whole(<$type>::MIN as i128, <$type>::MAX as i128);
            visitor.$visit(<$type>::default())
        }
    )*};
}

macro_rules! plain_values {
    ($($method:ident $kind:ident $visit:ident($value:expr)),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            self.out.kind = Kind::$kind;
            visitor.$visit($value)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Recorder<'_> {
    type Error = Refused;

    whole_numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    plain_values! {
        deserialize_any Any visit_str(""),
        deserialize_ignored_any Any visit_str(""),
        deserialize_bool TrueFalse visit_bool(false),
        deserialize_f32 Number visit_f32(0.0),
        deserialize_f64 Number visit_f64(0.0),
        deserialize_char Text visit_char(' '),
        deserialize_str Text visit_str(""),
        deserialize_string Text visit_str(""),
        deserialize_identifier Text visit_str(""),
        deserialize_bytes Any visit_bytes(&[]),
        deserialize_byte_buf Any visit_bytes(&[])
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let value = visitor.visit_some(Recorder { seen: self.seen, out: &mut *self.out })?;
        self.out.optional = true;
        Ok(value)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        if name == TEXT_OR_LIST {
            self.out.kind = Kind::TextOrList;
            return visitor.visit_newtype_struct(text(""));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let mut parts = vec![];
        let value = visitor.visit_seq(Parts { seen: self.seen, left: 1, parts: &mut parts })?;
        self.out.kind = Kind::List(Box::new(parts.pop().unwrap_or_else(nothing)));
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let mut parts = vec![];
        let value = visitor.visit_seq(Parts { seen: self.seen, left: len, parts: &mut parts })?;
        self.out.kind = Kind::Tuple(parts);
        Ok(value)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let mut fields = vec![];
        let names = vec!["name"];
        let value = visitor.visit_map(Fields { seen: self.seen, names, fields: &mut fields })?;
        let inner = fields.pop().map_or_else(nothing, |field| field.schema);
        self.out.kind = Kind::Map(Box::new(inner));
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let required = self.seen.required.entry(name).or_default().clone();
        let mut names = match self.seen.bare == Some(name) {
            true => required.clone(),
            false => fields.to_vec(),
        };
        // Names are taken from the end.
        names.reverse();
        let mut fields = vec![];
        let value = visitor.visit_map(Fields { seen: self.seen, names, fields: &mut fields })?;
        fields.iter_mut().for_each(|field| field.required = required.contains(&field.name));
        self.out.kind = Kind::Table(Table { type_name: name, fields, ..Table::default() });
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let made = self.seen.choices.entry(name).or_insert_with(|| vec![None; variants.len()]);
        let index = made.iter().position(Option::is_none).unwrap_or(0);
        let Some(&variant) = variants.get(index) else {
            return Err(Refused::Other(format!("{name} has no choice")));
        };
        let mut content = None;
        let access = Choosing { seen: self.seen, type_name: name, variant, content: &mut content };
        let value = visitor.visit_enum(access)?;
        let made = self.seen.choices.entry(name).or_default();
        if let Some(place) = made.get_mut(index) {
            *place = Some(Variant { name: variant, content });
        }
        let variants = made.iter().flatten().cloned().collect();
        self.out.kind = Kind::Choice { type_name: name, variants };
        Ok(value)
    }
}

/// Entries of a list.
struct Parts<'r> {
    seen: &'r mut Seen,
    left: usize,
    parts: &'r mut Vec<Schema>,
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut schema = nothing();
        let value = seed.deserialize(Recorder { seen: self.seen, out: &mut schema })?;
        self.parts.push(schema);
        Ok(Some(value))
    }
}

/// Fields of a struct, or entries of a map.
struct Fields<'r> {
    seen: &'r mut Seen,
    /// The remaining names, the next one last.
    names: Vec<&'static str>,
    fields: &'r mut Vec<Field>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        let Some(&name) = self.names.last() else { return Ok(None) };
        seed.deserialize(text(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        let mut schema = nothing();
        let value = seed.deserialize(Recorder { seen: self.seen, out: &mut schema })?;
        let name = self.names.pop().unwrap_or_default();
        self.fields.push(Field { name, schema, required: false });
        Ok(value)
    }
}

fn text(text: &'static str) -> StrDeserializer<'static, Refused> {
    text.into_deserializer()
}

/// One choice of an enum.
struct Choosing<'r> {
    seen: &'r mut Seen,
    type_name: &'static str,
    variant: &'static str,
    content: &'r mut Option<Schema>,
}

impl<'de> EnumAccess<'de> for Choosing<'_> {
    type Error = Refused;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Refused> {
        Ok((seed.deserialize(text(self.variant))?, self))
    }
}

impl<'de> VariantAccess<'de> for Choosing<'_> {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        let out = self.content.insert(nothing());
        seed.deserialize(Recorder { seen: self.seen, out })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        let out = self.content.insert(nothing());
        de::Deserializer::deserialize_tuple(Recorder { seen: self.seen, out }, len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let out = self.content.insert(nothing());
        let recorder = Recorder { seen: self.seen, out };
        de::Deserializer::deserialize_struct(recorder, self.type_name, fields, visitor)
    }
}
