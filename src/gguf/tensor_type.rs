//! Storage types of tensors.

/// Storage type of a tensor, as in ggml. All types can be read; `f32`, `f16`, `bf16`, `q8_0`, and `q4_0` can
/// be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE 754 floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits, with a scale per block of 32.
    Q4_0,
    /// 4 bits, with a scale and a minimum per block of 32.
    Q4_1,
    /// 5 bits, with a scale per block of 32.
    Q5_0,
    /// 5 bits, with a scale and a minimum per block of 32.
    Q5_1,
    /// 8 bits, with a scale per block of 32.
    Q8_0,
    /// 2 bits in blocks of 256.
    Q2K,
    /// 3 bits in blocks of 256.
    Q3K,
    /// 4 bits in blocks of 256.
    Q4K,
    /// 5 bits in blocks of 256.
    Q5K,
    /// 6 bits in blocks of 256.
    Q6K,
    /// 4-bit index into a nonlinear table, with a scale per block of 32.
    Iq4Nl,
    /// The table of `iq4_nl`, in blocks of 256.
    Iq4Xs,
    /// 4-bit floats (E2M1), with a power-of-two scale per block of 32.
    Mxfp4,
}

/// A row of [`TABLE`].
struct Row {
    kind: TensorType,
    /// The type's number in GGUF files.
    number: u32,
    name: &'static str,
    /// Elements per block.
    block: usize,
    /// Bytes per block.
    bytes: usize,
}

const fn row(kind: TensorType, number: u32, name: &'static str, block: usize, bytes: usize) -> Row {
    Row { kind, number, name, block, bytes }
}

/// In the order of [`TensorType`].
const TABLE: [Row; 16] = [
    row(TensorType::F32, 0, "f32", 1, 4),
    row(TensorType::F16, 1, "f16", 1, 2),
    row(TensorType::Bf16, 30, "bf16", 1, 2),
    row(TensorType::Q4_0, 2, "q4_0", 32, 18),
    row(TensorType::Q4_1, 3, "q4_1", 32, 20),
    row(TensorType::Q5_0, 6, "q5_0", 32, 22),
    row(TensorType::Q5_1, 7, "q5_1", 32, 24),
    row(TensorType::Q8_0, 8, "q8_0", 32, 34),
    row(TensorType::Q2K, 10, "q2_K", 256, 84),
    row(TensorType::Q3K, 11, "q3_K", 256, 110),
    row(TensorType::Q4K, 12, "q4_K", 256, 144),
    row(TensorType::Q5K, 13, "q5_K", 256, 176),
    row(TensorType::Q6K, 14, "q6_K", 256, 210),
    row(TensorType::Iq4Nl, 20, "iq4_nl", 32, 18),
    row(TensorType::Iq4Xs, 23, "iq4_xs", 256, 136),
    row(TensorType::Mxfp4, 39, "mxfp4", 32, 17),
];

/// Names of unsupported types, by their numbers in GGUF files.
const OTHERS: [(u32, &str); 18] = [
    (9, "q8_1"),
    (15, "q8_K"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (24, "i8"),
    (25, "i16"),
    (26, "i32"),
    (27, "i64"),
    (28, "f64"),
    (29, "iq1_m"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (40, "nvfp4"),
    (41, "q1_0"),
];

impl TensorType {
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Returns all types.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.kind)
    }

    /// Returns ggml's name of the type, such as `f16`, `q8_0`, or `q4_K`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Finds a type by name, ignoring case.
    pub fn by_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.kind)
    }

    /// Returns the type's number in GGUF files.
    pub(super) fn number(self) -> u32 {
        self.row().number
    }

    /// Finds a type by its number in GGUF files. The error names the unsupported type.
    pub(super) fn of_number(number: u32) -> Result<Self, String> {
        let found = TABLE.iter().find(|row| row.number == number);
        found.map(|row| row.kind).ok_or_else(|| {
            let name = OTHERS.iter().find(|(other, _)| *other == number);
            name.map_or_else(|| format!("number {number}"), |(_, name)| format!("`{name}`"))
        })
    }

    /// Returns the number of elements per block. Rows consist of whole blocks.
    pub fn block(self) -> usize {
        self.row().block
    }

    /// Returns the size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        self.row().bytes
    }

    /// Returns the size in bytes of `numbers` elements, which must be whole blocks.
    pub(crate) fn bytes(self, numbers: usize) -> usize {
        numbers / self.block() * self.block_bytes()
    }

    /// Returns the `general.file_type` of a file whose matrices have this type, as in llama.cpp.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2K => 10,
            Self::Q3K => 12,
            Self::Q4K => 15,
            Self::Q5K => 17,
            Self::Q6K => 18,
            Self::Iq4Nl => 25,
            Self::Iq4Xs => 30,
            Self::Bf16 => 32,
            Self::Mxfp4 => 38,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_found_by_name_and_number() {
        for (index, kind) in TensorType::all().enumerate() {
            assert_eq!(kind as usize, index);
            assert_eq!(TensorType::by_name(&kind.name().to_uppercase()), Some(kind));
            assert_eq!(TensorType::of_number(kind.number()), Ok(kind));
        }
        assert_eq!(TensorType::of_number(24), Err("`i8`".into()));
        assert_eq!(TensorType::of_number(4), Err("number 4".into()));
    }
}
