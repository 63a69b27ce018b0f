//! Answers extracted, compared and counted; benchmarks asked and scored.

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
