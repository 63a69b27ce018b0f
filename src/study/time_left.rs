//! Estimates the remaining time of a study.

use super::config::{Cell, StudyConfig};
use super::results::TestedAnswers;
use super::stored::StoredCell;
use crate::recipe::Summary;

/// Durations of the finished runs of a study.
#[derive(Debug, Default)]
pub(super) struct RunTimes(Vec<(Cell, f64)>);

impl RunTimes {
    /// Durations of runs that earlier processes finished. Unreadable results are ignored here; they are
    /// reported when the run itself is resumed.
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

    /// Adds a run that took this process `seconds`. If earlier processes did part of it, its summary and
    /// answers have the total.
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

    /// Returns the estimated seconds for the unfinished runs among `cells`, or `None` if there are none or if
    /// no estimate is possible yet.
    pub(super) fn left(&self, cells: &[Cell]) -> Option<f64> {
        let to_come: Vec<&Cell> = cells.iter().filter(|cell| !self.has(cell)).collect();
        if to_come.is_empty() { None } else { time_left(&self.0, &to_come) }
    }
}

/// Estimates the seconds of the remaining runs from the finished ones. `None` until each student that is
/// still to be trained has finished a run.
///
/// The estimate of a run is the mean of finished runs of the same student, preferably on the same data and
/// in the same arm, else on the same data, else on any data.
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
        // There is no estimate for the other student yet.
        assert_eq!(left(std::slice::from_ref(&first), &to_come), None);
        let second = (cell(1, 0, 0.5, 1), 70.0);
        assert_eq!(left(&[first.clone(), second], &to_come), Some(80.0));
        // Finished runs do not count.
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
        // Runs with other shares are preferred to runs on other data.
        assert_eq!(left(&finished, &[cell(0, 0, 0.5, 1)]), Some(20.0));
        assert_eq!(left(&finished, &[cell(0, 0, 1.0, 2)]), Some(30.0));
        finished.push((cell(0, 0, 1.0, 2), 50.0));
        assert_eq!(left(&finished, &[cell(0, 0, 1.0, 3), cell(0, 0, 1.0, 4)]), Some(80.0));
        // A choice is an arm like any other.
        let choice = Cell { arm: ArmKind::Choice(0), ..cell(0, 0, 0.0, 4) };
        assert_eq!(left(&finished, std::slice::from_ref(&choice)), Some(30.0));
        let chosen = [(Cell { seed: 1, ..choice.clone() }, 90.0)];
        assert_eq!(left(&chosen, &[choice]), Some(90.0));
        // Runs on other data are used if there are no others.
        assert_eq!(left(&finished[..1], &[cell(0, 0, 0.0, 1)]), Some(100.0));
    }
}
