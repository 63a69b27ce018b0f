//! Answers extracted, compared and counted.

mod answer;
mod grade;
mod interval;

pub use answer::{final_answer, same_answer};
pub use grade::{Accuracy, Answer, Question, ask};
pub use interval::wilson;
