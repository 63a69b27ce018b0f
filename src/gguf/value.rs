//! Metadata values.

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Unsigned 8-bit integer.
    U8(u8),
    /// Signed 8-bit integer.
    I8(i8),
    /// Unsigned 16-bit integer.
    U16(u16),
    /// Signed 16-bit integer.
    I16(i16),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// Signed 32-bit integer.
    I32(i32),
    /// 32-bit float.
    F32(f32),
    /// Boolean.
    Bool(bool),
    /// UTF-8 string.
    String(String),
    /// Array of values of one type.
    Array(GgufArray),
    /// Unsigned 64-bit integer.
    U64(u64),
    /// Signed 64-bit integer.
    I64(i64),
    /// 64-bit float.
    F64(f64),
}

/// An array of values of one type. Arrays of 8-bit, 16-bit, and unsigned 64-bit integers are read as `I64`.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    /// UTF-8 strings.
    String(Vec<String>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Booleans.
    Bool(Vec<bool>),
}

impl GgufArray {
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::String(list) => list.len(),
            Self::F32(list) => list.len(),
            Self::F64(list) => list.len(),
            Self::I32(list) => list.len(),
            Self::U32(list) => list.len(),
            Self::I64(list) => list.len(),
            Self::Bool(list) => list.len(),
        }
    }

    /// Returns whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the values as integers; `None` for strings and floats.
    pub fn integers(&self) -> Option<Vec<i64>> {
        match self {
            Self::I32(list) => Some(list.iter().map(|x| i64::from(*x)).collect()),
            Self::U32(list) => Some(list.iter().map(|x| i64::from(*x)).collect()),
            Self::I64(list) => Some(list.clone()),
            Self::Bool(list) => Some(list.iter().map(|x| i64::from(*x)).collect()),
            _ => None,
        }
    }
}

impl GgufValue {
    /// Returns the string, if the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the array, if the value is one.
    pub fn as_array(&self) -> Option<&GgufArray> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// Returns the boolean, if the value is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns the value of a non-negative integer of any width.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U8(x) => Some(u64::from(*x)),
            Self::U16(x) => Some(u64::from(*x)),
            Self::U32(x) => Some(u64::from(*x)),
            Self::U64(x) => Some(*x),
            Self::I8(x) => u64::try_from(*x).ok(),
            Self::I16(x) => u64::try_from(*x).ok(),
            Self::I32(x) => u64::try_from(*x).ok(),
            Self::I64(x) => u64::try_from(*x).ok(),
            _ => None,
        }
    }

    /// Returns the value of a float or a non-negative integer. An `F32` is converted through its shortest
    /// decimal form, so 1e-5 stays 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::F32(x) => x.to_string().parse().ok(),
            Self::F64(x) => Some(*x),
            other => other.as_u64().map(|x| x as f64),
        }
    }

    /// Returns the type's number in GGUF files.
    pub(super) fn type_number(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::String(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }
}

impl From<&str> for GgufValue {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for GgufValue {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for GgufValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u32> for GgufValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for GgufValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}
