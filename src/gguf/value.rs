//! Values of a file's metadata.

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An integer of 8 bits without a sign.
    U8(u8),
    /// An integer of 8 bits.
    I8(i8),
    /// An integer of 16 bits without a sign.
    U16(u16),
    /// An integer of 16 bits.
    I16(i16),
    /// An integer of 32 bits without a sign.
    U32(u32),
    /// An integer of 32 bits.
    I32(i32),
    /// A number of 32 bits.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// A text.
    String(String),
    /// A list of values of one type.
    Array(GgufArray),
    /// An integer of 64 bits without a sign.
    U64(u64),
    /// An integer of 64 bits.
    I64(i64),
    /// A number of 64 bits.
    F64(f64),
}

/// A list of values of one type. Lists of integers of 8 and 16 bits are read as those of 64.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufArray {
    /// Texts.
    String(Vec<String>),
    /// Numbers of 32 bits.
    F32(Vec<f32>),
    /// Numbers of 64 bits.
    F64(Vec<f64>),
    /// Integers of 32 bits.
    I32(Vec<i32>),
    /// Integers of 32 bits without a sign.
    U32(Vec<u32>),
    /// Integers of 64 bits.
    I64(Vec<i64>),
    /// Yes or no.
    Bool(Vec<bool>),
}

impl GgufArray {
    /// How many there are.
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

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whole numbers, where it holds such.
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
    /// Its text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Its list, if it is one.
    pub fn as_array(&self) -> Option<&GgufArray> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// Yes or no, if it is that.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An integer of any width that is not negative.
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

    /// A number of any type. One of 32 bits has the value of its shortest spelling, so that 1e-5 is 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::F32(x) => x.to_string().parse().ok(),
            Self::F64(x) => Some(*x),
            other => other.as_u64().map(|x| x as f64),
        }
    }

    /// The number of its type in files.
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
