//! Final answers to problems in mathematics: found in solutions, and compared.
//!
//! The rule: lenient about form, never about content. Units, nouns, moduli, percent signs and other
//! spellings change nothing; a second value, a negation, a condition or a comparison makes another
//! answer. Where a comparison of texts and the parser disagree, the parser decides; where the parser
//! cannot read one of two answers, their texts are compared, and no words are cut off that say
//! something. Only what follows the end of a model's reasoning states an answer, and a marker, such
//! as a box or `####`, counts where something like an answer follows it.
//!
//! | stage | files |
//! | --- | --- |
//! | where to look | `kind` (of benchmark), `reasoning` |
//! | finding | `extract`; `boxes`, `phrases`, `statement` and `clauses` (sentences), `formulas`, `numerals`, `choice` |
//! | tiers of equality | `tier`, `hendrycks` (the normalization of the MATH data set's authors) |
//! | reading LaTeX and plain text | `lexer`, `digits`, `scripts`, `words`, `parser`, `primary`, `marks`, `calls` to an `expression` |
//! | values | `number` (exact), `complex`, `evaluate` (at random points), `matrix`, `signs` (±), `dates` |
//! | comparing | `equal`, `names`, `sets`, `text`, `notes` (what words say), `spoken`, `units` |
//!
//! Whatever is written in an answer, reading and comparing it is bounded (`limits`): bytes, tokens,
//! depth, bits of a number, steps. What exceeds a bound is not equal to anything but its own text.

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
