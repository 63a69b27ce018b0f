//! Finds final answers to math problems in solutions, and compares them.
//!
//! The rule is to be lenient about form, but never about content. Units, nouns, moduli, percent signs, and
//! other spellings do not matter. A second value, a negation, a condition, or a comparison makes a different
//! answer. If the parser can read both answers, it decides. Otherwise, the texts are compared, without
//! dropping words that carry meaning. Only the text after a model's reasoning can state an answer, and a
//! marker such as a box or `####` counts only if something like an answer follows it.
//!
//! | stage | files |
//! | --- | --- |
//! | where to look | `kind` (of benchmark), `reasoning` |
//! | finding | `extract`; `boxes`, `phrases`, `statement` and `clauses` (sentences), `formulas`, `numerals`, `choice` |
//! | tiers of equality | `tier`, `hendrycks` (the normalization of the MATH dataset's authors) |
//! | parsing LaTeX and plain text | `lexer`, `digits`, `scripts`, `words`, `parser`, `primary`, `marks`, `calls`; the result is an `expression` |
//! | values | `number` (exact), `complex`, `evaluate` (at random points), `matrix`, `signs` (±), `dates` |
//! | comparing | `equal`, `names`, `sets`, `text`, `notes` (meaning of words), `spoken`, `units` |
//!
//! Parsing and comparing are bounded for any input (`limits`): bytes, tokens, depth, bits of a number, and
//! steps. An answer that exceeds a bound equals only its own text.

mod boxes;
mod calls;
mod choice;
mod clauses;
mod complex;
mod dates;
mod digits;
mod equal;
mod evaluate;
mod expression;
mod extract;
mod formulas;
mod hendrycks;
mod kind;
mod lexer;
mod limits;
mod marks;
mod matrix;
mod names;
mod notes;
mod number;
mod numerals;
mod parser;
mod phrases;
mod primary;
mod reasoning;
mod scripts;
mod sets;
mod signs;
mod spoken;
mod statement;
mod text;
mod tier;
mod units;
mod words;

pub use extract::{ANY, Extractor, STATED, extract, final_answer};
pub use hendrycks::{hendrycks_equal, hendrycks_normalized};
pub use kind::AnswerKind;
pub use limits::{MAX_BITS, MAX_BYTES, MAX_DEPTH, MAX_STEPS};
pub use reasoning::after_reasoning;
pub use tier::{Grade, Tier, equal, equal_to_decimals, grade, same_answer, steps_of_comparison};
