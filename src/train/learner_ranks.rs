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
    /// The learner as one of several ranks. All of them are given models of the same weights, the same
    /// settings, rows and held-out rows, and make the same calls; each computes a part of every step and
    /// evaluation. A step comes to the same bits as on one rank. The leader alone writes checkpoints; the
    /// others' stores may be anywhere, but all ranks must have one, or none, and so with graders. Rows,
    /// graders and observers must not end the training with [`Error::Stopped`] on one rank alone.
    ///
    /// # Errors
    /// [`Error::Config`] where `shard_optimizer` is set and the optimizer's state cannot be divided.
    pub fn with_ranks(mut self, ranks: Ranks) -> Result<Self> {
        let shards = self.config.shard_optimizer && !ranks.is_solo();
        if shards && !self.state.optimizer.is_divisible() {
            return Err(Error::config(
                "train.shard_optimizer",
                "the state of this optimizer cannot be divided",
                "Leave it out, or use this crate's AdamW",
            ));
        }
        (self.state.ranks, self.state.shards) = (ranks, shards);
        Ok(self)
    }

    /// How a step is divided.
    pub(super) fn ranked(&self) -> Ranked<'_> {
        let (ranks, shards) = (&self.state.ranks, self.state.shards);
        Ranked { ranks, lanes: self.config.lanes, shards }
    }

    /// The rows of a step; what costs more than reading them, of those that this rank computes.
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
            // Which of them train is not asked here.
            let piece = |size: &BatchSize| Piece { positions: size.positions(), trains: true };
            let pieces: Vec<Piece> = sizes.iter().map(piece).collect();
            let division = Division::new(&pieces, self.config.lanes, ranks.count());
            let own = sizes.into_iter().enumerate();
            let own = own.filter(|(batch, _)| division.owner(*batch) == ranks.rank());
            own.flat_map(|(_, size)| size.members).collect()
        })
    }
}
