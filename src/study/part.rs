//! One part of a study, made independently of the others.

use super::arms::{ArmKind, WEAK};
use super::config::{Cell, StudyConfig};
use super::pretrained::pretrain;
use super::run::{
    Asked, Begun, KIND, Place, SETTINGS, Work, date_of, going_on, how_to_share, name, part, toml_of,
};
use super::shared::all_cells;
use super::time_left::RunTimes;
use crate::context::Context;
use crate::error::Result;
use crate::files::{PART, PartRecord, WorkDir, check_part};
use crate::part::Part;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;

/// The outcome of one part of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyPart {
    /// Which part this is.
    pub part: Part,
    /// Its directory.
    pub out: PathBuf,
    /// The number of its cells, all done.
    pub cells: usize,
    /// The number of cells of the whole study.
    pub all_cells: usize,
    /// The number of its untuned students, all tested.
    pub untuned: usize,
    /// The number of untuned students of the whole study.
    pub all_untuned: usize,
}

/// Makes one part of a study in its own directory, without the other parts. Finished work is skipped.
/// [`join`](super::join) makes the report once all parts are done.
///
/// # Errors
/// See [`study`](super::study).
pub fn study_part(config: &StudyConfig, which: Part, context: &Context<'_>) -> Result<StudyPart> {
    config.validate()?;
    KIND.check(&config.out).map_err(|error| how_to_share(error, &config.out))?;
    let record = config.out.join(PART);
    check_part(&config.out, &record, Some(which), false)?;
    let asked = Asked::read(config, context)?;
    let directory = WorkDir::open(&config.out, KIND);
    let directory = directory.map_err(|error| how_to_share(error, &config.out))?;
    let date = date_of(&directory)?;
    // The directory may get more cells later, even with other settings, but not those of another part.
    let names = all_cells(config).into_iter().map(|cell| name(config, &cell).join(", "));
    PartRecord::new(which, json!({}), json!({}), names)?.keep(&record)?;
    let pretrained = pretrain(config, None, context).map_err(going_on)?;
    let place = Place { directory, date, claims: None };
    let mut begun = Begun::new(config, asked, place, pretrained, context)?;
    begun.tell_date()?;
    let (untuned, cells) = (config.untuned_cells(), config.cells());
    let own = |cells: &[Cell]| -> Vec<Cell> {
        let own = cells.iter().enumerate().filter(|(index, _)| which.holds(*index));
        own.map(|(_, cell)| cell.clone()).collect()
    };
    let (own_untuned, own_cells) = (own(&untuned), own(&cells));
    begun.work.check_done(&all_cells(config)).map_err(going_on)?;
    // `join` reads the settings and the original directory from it.
    begun.directory.write(SETTINGS, &toml_of(config)?)?;
    let work = &mut begun.work;
    for cell in &own_untuned {
        let untuned = Cell { arm: ArmKind::Untuned, ..cell.clone() };
        work.make(&untuned, [0, 0], None).map_err(going_on)?;
    }
    for (number, cell) in own_cells.iter().enumerate() {
        context.check().map_err(going_on)?;
        let left = RunTimes::of_earlier(config, &own_cells).left(&own_cells[number..]);
        work.make(cell, [number + 1, own_cells.len()], left).map_err(going_on)?;
    }
    Ok(StudyPart {
        part: which,
        out: config.out.clone(),
        cells: own_cells.len(),
        all_cells: cells.len(),
        untuned: own_untuned.len(),
        all_untuned: untuned.len(),
    })
}

impl Begun<'_, '_> {
    /// Gives a notice if chat templates see the date, because parts may start on different days.
    fn tell_date(&self) -> Result<()> {
        let work = &self.work;
        for cell in work.config.untuned_cells() {
            let (run, asked) = (work.run_config(&cell)?, work.config.run_config(&cell)?);
            let is_dated = sees_day(&work.unmixed(&cell, &run)?.chat_template);
            if is_dated && run.data.date != asked.data.date {
                return work.context.notice(format!(
                    "chat templates see the date on which this part was started, {}. If parts may start on \
                     different days, set run.data.date to the same date for all of them",
                    run.data.date.unwrap_or_default()
                ));
            }
        }
        Ok(())
    }
}

impl Work<'_, '_> {
    /// Trains and tests a cell, or tests an untuned student. Finished work is skipped.
    pub(super) fn make(
        &mut self,
        cell: &Cell,
        place: [usize; 2],
        seconds_left: Option<f64>,
    ) -> Result<()> {
        if cell.arm == ArmKind::Untuned {
            let student = &self.config.students[cell.student].name;
            part(self.context, student, "untuned", place, None)?;
            return self.untuned(&as_tested(cell)).map(|_| ());
        }
        let [student, about] = name(self.config, cell);
        part(self.context, &student, &about, place, seconds_left)?;
        let run = self.weighted(cell, &[])?;
        self.finish(cell, &run).map(|_| ())
    }
}

/// Returns whether prompts in a chat template contain the date.
pub(super) fn sees_day(chat_template: &str) -> bool {
    chat_template.contains("strftime_now")
}

/// Returns the cell with whose settings an untuned student is tested.
pub(super) fn as_tested(untuned: &Cell) -> Cell {
    Cell { arm: WEAK, ..untuned.clone() }
}
