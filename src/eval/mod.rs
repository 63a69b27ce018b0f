//! Answers extracted, compared and counted.

mod answer;
mod benchmark;
mod evaluate;
mod grade;
mod interval;

pub use answer::{final_answer, same_answer};
pub use benchmark::{Benchmark, BenchmarkProblem, CHOICE_INSTRUCTION, INSTRUCTION};
pub use evaluate::{Answering, EvaluateConfig, Judged, evaluate};
pub use grade::{Accuracy, Answer, Question, ask};
pub use interval::wilson;
