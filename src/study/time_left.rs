//! How long the rest of a study takes.

use super::config::{Cell, StudyConfig};
use super::results::TestedAnswers;
use super::stored::StoredCell;
use crate::recipe::Summary;

/// How long the finished runs of a study took.
#[derive(Debug, Default)]
pub(super) struct RunTimes(Vec<(Cell, f64)>);

impl RunTimes {
    /// Those that earlier processes finished. What cannot be read tells no time; whether it is an
    /// error shows where the run is taken up.
    pub(super) fn of_earlier(config: &StudyConfig, cells: &[Cell]) -> Self {
        let mut times = Self::default();
        for cell in cells {
            let Ok(Some(stored)) = StoredCell::read(&config.result_file(cell)) else { continue };
            if let Some(summary) = stored.summary {
                times.add(cell, 0.0, &summary, &stored.answers);
            }
        }
        times
    }

    /// Adds a run that this process took up for so many seconds. Where an earlier one has made a part
    /// of it, its summary and its answers know more.
    pub(super) fn add(
        &mut self,
        cell: &Cell,
        seconds: f64,
        summary: &Summary,
        answers: &TestedAnswers,
    ) {
        if !self.has(cell) {
            let made = summary.seconds.max(summary.training_seconds) + answers.seconds();
            let seconds = seconds.max(made);
            self.0.push((cell.clone(), seconds));
        }
    }

    fn has(&self, cell: &Cell) -> bool {
        self.0.iter().any(|(finished, _)| finished == cell)
    }

    /// Seconds that those of the runs will take that are not finished: `None` where there are none,
    /// and before it can be known.
    pub(super) fn left(&self, cells: &[Cell]) -> Option<f64> {
        let to_come: Vec<&Cell> = cells.iter().filter(|cell| !self.has(cell)).collect();
        if to_come.is_empty() { None } else { time_left(&self.0, &to_come) }
    }
}

/// Seconds that runs which are still to come will take, by those that are finished: `None` before it
/// can be known, which is when each student that is to be trained has been trained once.
///
/// A run takes about as long as those of the same student, on the same data, in the same arm;
/// without these as those in other arms, and without these as those on other data.
fn time_left(finished: &[(Cell, f64)], to_come: &[&Cell]) -> Option<f64> {
    to_come.iter().map(|cell| estimate(finished, cell)).sum()
}

fn estimate(finished: &[(Cell, f64)], cell: &Cell) -> Option<f64> {
    let mean = |alike: &dyn Fn(&Cell) -> bool| {
        let times = finished.iter().filter(|(other, _)| alike(other)).map(|(_, seconds)| seconds);
        let times: Vec<f64> = times.copied().collect();
        (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64)
    };
    let same_student = |other: &Cell| other.student == cell.student;
    let same_data = |other: &Cell| same_student(other) && other.comparison == cell.comparison;
    mean(&|other| same_data(other) && other.arm == cell.arm)
        .or_else(|| mean(&same_data))
        .or_else(|| mean(&same_student))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::ArmKind;

    fn cell(student: usize, comparison: usize, share: f64, seed: u64) -> Cell {
        Cell { student, comparison, arm: ArmKind::Share(share), seed }
    }

    /// Seconds left for runs, by finished ones.
    fn left(finished: &[(Cell, f64)], to_come: &[Cell]) -> Option<f64> {
        RunTimes(finished.to_vec()).left(to_come)
    }

    #[test]
    fn no_time_is_told_before_it_can_be_known() {
        let to_come = [cell(0, 0, 1.0, 1), cell(1, 0, 0.0, 1)];
        assert_eq!(left(&[], &to_come), None);
        let first = (cell(0, 0, 0.0, 1), 10.0);
        // How long the other student takes is not known.
        assert_eq!(left(std::slice::from_ref(&first), &to_come), None);
        let second = (cell(1, 0, 0.5, 1), 70.0);
        assert_eq!(left(&[first.clone(), second], &to_come), Some(80.0));
        // Runs that are finished take no time again.
        let again = [first.0.clone(), cell(0, 0, 1.0, 1)];
        assert_eq!(left(std::slice::from_ref(&first), &again), Some(10.0));
        assert_eq!(left(&[first], &again[..1]), None);
    }

    #[test]
    fn the_nearest_runs_tell_the_time() {
        let mut finished = vec![
            (cell(0, 1, 0.5, 1), 100.0),
            (cell(0, 0, 0.0, 1), 10.0),
            (cell(0, 0, 1.0, 1), 30.0),
        ];
        // Those with other shares, and not those on other data.
        assert_eq!(left(&finished, &[cell(0, 0, 0.5, 1)]), Some(20.0));
        assert_eq!(left(&finished, &[cell(0, 0, 1.0, 2)]), Some(30.0));
        finished.push((cell(0, 0, 1.0, 2), 50.0));
        assert_eq!(left(&finished, &[cell(0, 0, 1.0, 3), cell(0, 0, 1.0, 4)]), Some(80.0));
        // A choice is an arm like others.
        let choice = Cell { arm: ArmKind::Choice(0), ..cell(0, 0, 0.0, 4) };
        assert_eq!(left(&finished, std::slice::from_ref(&choice)), Some(30.0));
        let chosen = [(Cell { seed: 1, ..choice.clone() }, 90.0)];
        assert_eq!(left(&chosen, &[choice]), Some(90.0));
        // Those on other data where there are no others.
        assert_eq!(left(&finished[..1], &[cell(0, 0, 0.0, 1)]), Some(100.0));
    }
}
