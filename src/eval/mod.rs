//! Extracts and compares final answers, runs models on benchmarks, and scores the results.
//!
//! - **Answers**: [`final_answer`] and [`extract`] find the final answer in a solution. [`same_answer`] and
//!   [`equal`] compare two answers; [`grade()`] does both.
//! - **Benchmarks**: [`Benchmark`] reads problems. An [`EvaluationDirectory`] asks a model, saves each
//!   answer, and writes [`Scores`]. [`grade_answers`] grades answers of another program, and
//!   [`judge_misses`] asks a [`Judge`] about wrong answers.
//! - **Statistics**: [`wilson`] intervals, the paired [`Bootstrap`], and the correction of [`holm()`].
//!
//! ```
//! use mixdistill::eval::{final_answer, same_answer};
//!
//! let solution = r"Two of the four are red, so the probability is \boxed{\frac{2}{4}}.";
//! let answer = final_answer(solution).unwrap();
//! assert_eq!(answer, r"\frac{2}{4}");
//!
//! // Different forms of the same number are equal, different numbers are not.
//! assert!(same_answer("0.5", &answer));
//! assert!(same_answer(r"\frac12", &answer));
//! assert!(!same_answer("0.05", &answer));
//! ```

mod answers;
mod benchmark;
mod benchmark_rows;
mod bootstrap;
mod difference;
mod directory;
mod evaluate;
mod grade;
mod holm;
mod interval;
mod judge;
mod math;
mod parts;
mod question;
mod scores;

pub use answers::{AnswerOptions, GradedAnswers, grade_answers};
pub use benchmark::{
    AnswerKind, Benchmark, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION, SkippedRow,
};
pub use bootstrap::{Arm, Bootstrap, Estimate, Hits, score};
pub use difference::Difference;
pub use directory::{EvaluationDirectory, TestedModel, read_benchmarks};
pub(crate) use directory::{FileTimes, weight_files};
pub use evaluate::{EvaluateConfig, GradedAnswer, evaluate, stored_answers};
pub(crate) use evaluate::{LazyModel, evaluate_lazily};
pub(crate) use grade::ask_as;
pub use grade::{Answer, ask, opens_reasoning};
pub use holm::holm;
pub use interval::wilson;
pub use judge::{Judge, judge_misses, judge_prompt, judge_verdict};
pub use math::{
    ANY, Extractor, Grade, MAX_BITS, MAX_BYTES, MAX_DEPTH, MAX_STEPS, STATED, Tier,
    after_reasoning, equal, equal_to_decimals, extract, final_answer, grade, hendrycks_equal,
    hendrycks_normalized, same_answer, steps_of_comparison,
};
pub use parts::{JoinedEvaluation, join_evaluations};
pub use question::Question;
pub use scores::{Scores, ScoresTable};
