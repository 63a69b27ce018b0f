//! Parses SentencePiece's `tokenizer.model`: the pieces with their scores, and the normalization of text.
//!
//! The file is a Protocol Buffers message with these relevant fields:
//!
//! ```text
//! 1  pieces       each: 1 text, 2 score, 3 type
//! 3  normalizer   3: whether a space is added before a text
//! ```

/// A piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// Type, with the same numbers as in GGUF: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6
    /// byte.
    pub kind: i32,
}

/// A `tokenizer.model`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SentencePiece {
    pub pieces: Vec<Piece>,
    pub adds_space: bool,
}

/// A field's value.
enum Field<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    Number(f32),
    /// Eight bytes, which no relevant field has.
    Other,
}

/// Parses the fields of a message. `None` if it is invalid.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = vec![];
    while !bytes.is_empty() {
        let key = integer(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Integer(integer(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                Field::Other
            }
            2 => {
                let length = usize::try_from(integer(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Number(f32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?)),
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head)
}

/// Reads a varint: seven bits per byte, lowest first.
fn integer(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 127) << shift;
        if *byte < 128 {
            return Some(value);
        }
    }
    None
}

impl SentencePiece {
    /// Parses a file. `None` if it is not a SentencePiece model.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut model = Self { pieces: vec![], adds_space: true };
        for (number, field) in fields(bytes)? {
            match (number, field) {
                (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
                (3, Field::Bytes(bytes)) => {
                    for (number, field) in fields(bytes)? {
                        if let (3, Field::Integer(adds)) = (number, field) {
                            model.adds_space = adds != 0;
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Number(score)) => piece.score = score,
            (3, Field::Integer(kind)) => piece.kind = i32::try_from(kind).ok()?,
            _ => {}
        }
    }
    Some(piece)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_read_and_damage_is_not() {
        let mut bytes = vec![];
        for (text, score, kind) in [("<unk>", 0f32, 2u8), ("\u{2581}a", -1.5, 1)] {
            let mut piece = vec![0x0A, text.len() as u8];
            piece.extend(text.as_bytes());
            piece.push(0x15);
            piece.extend(score.to_le_bytes());
            piece.extend([0x18, kind]);
            bytes.extend([0x0A, piece.len() as u8]);
            bytes.extend(piece);
        }
        bytes.extend([0x1A, 2, 0x18, 0]);
        let model = SentencePiece::parse(&bytes).unwrap();
        assert!(!model.adds_space);
        assert_eq!(model.pieces[0].kind, 2);
        let second = Piece { text: "\u{2581}a".into(), score: -1.5, kind: 1 };
        assert_eq!(model.pieces[1], second);
        assert_eq!(SentencePiece::parse(&bytes[..bytes.len() - 1]), None);
        assert_eq!(SentencePiece::parse(b""), None);
        // A length beyond the end, and one of more than 64 bits.
        assert_eq!(SentencePiece::parse(&[0x0A, 200, 1]), None);
        assert_eq!(
            SentencePiece::parse(&[0x0A, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
            None
        );
    }
}
