//! The bounds that make every comparison end: on size and depth of what is read, on the digits of
//! exact numbers, and on the work of one comparison, which is counted in steps and not by a clock,
//! so that the same two answers get the same verdict on every machine.

/// Longest answer, in bytes, that is read as mathematics; a longer one equals only its own text.
pub const MAX_BYTES: usize = 1 << 16;
/// Most tokens of an answer.
pub const MAX_TOKENS: usize = 1 << 14;
/// Deepest nesting of an answer.
pub const MAX_DEPTH: usize = 64;
/// Most marks behind one value, such as factorials; each is a level of the tree as well.
pub const MAX_MARKS: usize = 8;
/// Most binary digits of a numerator or denominator.
pub const MAX_BITS: u64 = 1 << 15;
/// Most steps of one comparison: a visit to a node of an expression is one, and exact arithmetic
/// counts by the size of its numbers.
pub const MAX_STEPS: u64 = 1 << 20;
/// Most values that ± may stand for in one answer.
pub const MAX_SIGNS: u32 = 4;

/// What is left of the work that one comparison may take.
#[derive(Clone, Debug)]
pub struct Steps {
    left: u64,
}

impl Steps {
    /// The full allowance.
    pub fn new() -> Self {
        Self { left: MAX_STEPS }
    }

    /// Takes `steps` off; `None` once there are none left, so that `?` gives up.
    pub fn take(&mut self, steps: u64) -> Option<()> {
        self.left = self.left.saturating_sub(steps);
        (self.left > 0).then_some(())
    }

    /// Steps taken so far.
    pub fn taken(&self) -> u64 {
        MAX_STEPS - self.left
    }
}

impl Default for Steps {
    fn default() -> Self {
        Self::new()
    }
}
