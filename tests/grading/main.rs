//! Promise: final answers are found and compared as a mathematician would, with the accuracy in the printed
//! table, and grading always ends, whatever a model writes.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod content;
mod figures;
mod hostile;
mod tiers;
