//! The bounds that make every comparison terminate: on the size and depth of answers, on the digits of exact
//! numbers, and on the work of one comparison. Work is counted in steps rather than time, so that the same
//! two answers get the same verdict on every machine.

/// Maximum length in bytes of an answer that is parsed. A longer one equals only its own text.
pub const MAX_BYTES: usize = 1 << 16;
/// Maximum number of tokens in an answer.
pub const MAX_TOKENS: usize = 1 << 14;
/// Maximum nesting depth of an answer.
pub const MAX_DEPTH: usize = 64;
/// Maximum number of marks after one value, such as factorials. Each is also a level of the tree.
pub const MAX_MARKS: usize = 8;
/// Maximum number of binary digits of a numerator or denominator.
pub const MAX_BITS: u64 = 1 << 15;
/// Maximum number of steps in one comparison. A visit to a node of an expression is one step, and exact
/// arithmetic counts by the size of its numbers.
pub const MAX_STEPS: u64 = 1 << 20;
/// Maximum number of ± signs in one answer.
pub const MAX_SIGNS: u32 = 4;

/// The remaining steps of one comparison.
#[derive(Clone, Debug)]
pub struct Steps {
    left: u64,
}

impl Steps {
    /// Returns the full allowance.
    pub fn new() -> Self {
        Self { left: MAX_STEPS }
    }

    /// Subtracts `steps`. Returns `None` once none are left, so that `?` gives up.
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
