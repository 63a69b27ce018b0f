//! Promise: final answers are found and compared as mathematicians would, within the figures of the
//! table that is printed, and whatever a model writes, grading it ends.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod content;
mod figures;
mod hostile;
mod tiers;
