//! Recovery from a step that is not finite.

use super::config::OnNotFinite;
use super::learner::{Fit, Learner};
use crate::context::Event;
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::ranks::Topic;
use std::collections::BTreeSet;

/// Failed steps.
#[derive(Default)]
pub(super) struct Failures {
    pub in_a_row: usize,
    /// Steps that caused a rollback.
    pub steps: BTreeSet<usize>,
}

/// Maximum number of consecutive skipped steps, and of rollbacks.
const MOST_FAILURES: usize = 10;

impl<M: CausalLm> Learner<M> {
    /// Continues after a step that is not finite, if the settings allow it. Returns the number of the skipped
    /// step, or `None` after a rollback.
    pub(super) fn recover(
        &mut self,
        error: Error,
        fit: &mut Fit<'_, '_, '_, M>,
    ) -> Result<Option<usize>> {
        let Error::NotFinite { step, what, rows, hint } = error else { return Err(error) };
        let (context, failures) = (fit.context, &mut fit.failures);
        let newest = fit.checkpoints.and_then(|store| store.newest_path().ok().flatten());
        let has_checkpoint = self.state.ranks.any(Topic::Checkpoint, newest.is_some())?;
        let skips = match self.config.on_not_finite {
            OnNotFinite::Stop => false,
            OnNotFinite::Skip => failures.in_a_row < MOST_FAILURES,
            // A step that failed before would fail again.
            OnNotFinite::RollBack => failures.steps.contains(&step),
        };
        if skips {
            failures.in_a_row += 1;
            self.state.step = step;
            context.emit(&Event::Skipped { step, what })?;
            return Ok(Some(step));
        }
        if let (OnNotFinite::RollBack, Some(store), true) =
            (self.config.on_not_finite, fit.checkpoints, has_checkpoint)
            && failures.steps.len() < MOST_FAILURES
        {
            failures.steps.insert(step);
            let (_, damaged) = store.resume(&mut self.state)?;
            for problem in damaged {
                context.notice(format!("skipped {problem}"))?;
            }
            let (to, evaluation_due) = (self.state.step, self.state.evaluation_due);
            context.emit(&Event::RolledBack { from: step, to, evaluation_due })?;
            return Ok(None);
        }
        let last = match newest {
            Some(path) => format!("the last checkpoint is {}", path.display()),
            None => "there is no checkpoint yet".into(),
        };
        Err(Error::NotFinite { step, what, rows, hint: format!("{hint}; {last}") })
    }
}
