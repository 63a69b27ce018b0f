//! The learner as one of several ranks.

use super::learner::Learner;
use super::ranked::Ranked;
use super::reduce::{Division, Piece};
use crate::data::{BatchSize, Row, RowStream};
use crate::error::{Error, Result};
use crate::model::CausalLm;
use crate::ranks::Ranks;
use std::ops::Range;

impl<M: CausalLm> Learner<M> {
    /// Makes the learner one of several ranks. All ranks must have models with the same weights, the same
    /// settings, rows, and held-out rows, and make the same calls. Each computes a part of every step and
    /// evaluation. The results are bit-identical to those of one rank.
    ///
    /// Only the leader writes checkpoints. The paths of the other ranks' stores do not matter, but either all
    /// ranks have a store or none has; the same applies to graders. Rows, graders, and observers must not
    /// return [`Error::Stopped`] on one rank alone.
    ///
    /// # Errors
    /// [`Error::Config`] if `shard_optimizer` is set and the optimizer's state cannot be sharded.
    pub fn with_ranks(mut self, ranks: Ranks) -> Result<Self> {
        let shards = self.config.shard_optimizer && !ranks.is_solo();
        if shards && !self.state.optimizer.is_divisible() {
            return Err(Error::config(
                "train.shard_optimizer",
                "the state of this optimizer cannot be sharded",
                "Remove the setting, or use this crate's AdamW",
            ));
        }
        (self.state.ranks, self.state.shards) = (ranks, shards);
        Ok(self)
    }

    /// Returns how a step is divided among ranks.
    pub(super) fn ranked(&self) -> Ranked<'_> {
        let (ranks, shards) = (&self.state.ranks, self.state.shards);
        Ranked { ranks, lanes: self.config.lanes, shards }
    }

    /// Returns the rows of a step. Work beyond reading them, such as asking a teacher, is done only for this
    /// rank's rows.
    pub(super) fn rows_of_step(
        &self,
        rows: &mut dyn RowStream,
        range: Range<u64>,
    ) -> Result<Vec<Row>> {
        let ranks = &self.state.ranks;
        if ranks.is_solo() {
            return rows.rows(range);
        }
        rows.rows_for(range, &mut |rows| {
            let sizes = self.config.layout().sizes_of(rows);
            // Whether a batch has trained tokens does not matter here.
            let piece = |size: &BatchSize| Piece { positions: size.positions(), trains: true };
            let pieces: Vec<Piece> = sizes.iter().map(piece).collect();
            let division = Division::new(&pieces, self.config.lanes, ranks.count());
            let own = sizes.into_iter().enumerate();
            let own = own.filter(|(batch, _)| division.owner(*batch) == ranks.rank());
            own.flat_map(|(_, size)| size.members).collect()
        })
    }
}
