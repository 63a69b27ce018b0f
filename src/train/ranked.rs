//! An optimizer step on several ranks.
//!
//! 1. Each rank computes the gradients of its micro-batches and sums adjacent ones into terms (see
//!    [`super::reduce`]).
//! 2. Each parameter has an owner, which receives its terms from all ranks and adds them in the order of the
//!    step.
//! 3. All ranks receive the sums of all owners and make the same update. With `shard_optimizer`, an owner
//!    updates only its own parameters, so only it has their moments (ZeRO-1, arXiv 1910.02054), and all ranks
//!    receive the updated parameters.
//!
//! With one term per rank, a rank sends about twice the size of the gradients per step, for any number of
//! ranks.

use super::losses::{Partial, StepGradients, add_all, check_teachers, pieces};
use super::optimizer::{norm_of, squares_of};
use super::reduce::{Division, Sum};
use super::slots::{
    Reader, counts, flat_gradients, gradients_of, owned, parameters, push_values, with_parameters,
};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::tensors::host;
use crate::model::{CausalLm, StepOptions};
use crate::ops::SumsOfSquares;
use crate::ranks::{Ranks, Topic};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::TensorData;
use std::collections::VecDeque;
use std::ops::Range;

/// How a step is divided among ranks.
pub(super) struct Ranked<'a> {
    pub ranks: &'a Ranks,
    pub lanes: usize,
    /// Whether only the owner of a parameter has its moments.
    pub shards: bool,
}

/// A term of a step: its loss and its gradients for the parameters of one owner, in order.
struct Term {
    loss: f32,
    gradients: Vec<Option<Tensor<1>>>,
}

impl Term {
    /// Adds two terms. A missing gradient counts as zero.
    fn plus(self, other: Self) -> Self {
        let add = |(a, b): (Option<Tensor<1>>, Option<Tensor<1>>)| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        let gradients = self.gradients.into_iter().zip(other.gradients).map(add).collect();
        Self { loss: self.loss + other.loss, gradients }
    }
}

impl Ranked<'_> {
    /// Returns how the micro-batches are divided and in which order they are added.
    fn plan(&self, batches: &[Batch]) -> (Division, Option<Sum>) {
        let pieces = pieces(batches);
        let division = Division::new(&pieces, self.lanes, self.ranks.count());
        (division, Sum::of(&pieces, self.lanes))
    }

    /// Computes the loss, gradients, and gradient norm of a step. With sharding, only the gradients of this
    /// rank's parameters are returned.
    ///
    /// # Errors
    /// See [`super::step_gradients_with`]; [`Error::Ranks`].
    pub fn step_gradients<M: CausalLm>(
        &self,
        model: &M,
        batches: &[Batch],
        options: &StepOptions,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(StepGradients, f64)> {
        let (division, sum) = self.plan(batches);
        let me = self.ranks.rank();
        let own = |(index, _): &(usize, &Batch)| division.owner(*index) == me;
        check_teachers(model, batches.iter().enumerate().filter(own).map(|(_, b)| b), options)?;
        let trained: usize = batches.iter().map(|batch| batch.trained).sum();
        let Some(sum) = sum else {
            let gradients = GradientsParams::new();
            return Ok((StepGradients { loss: 0.0, trained, gradients }, 0.0));
        };
        let terms = sum.terms(&division);
        let own: Vec<&Sum> =
            terms.iter().filter(|(rank, _)| *rank == me).map(|(_, term)| term).collect();
        let (mut done, of) = (0, own.iter().map(|term| term.batches().len()).sum());
        let mut step = || {
            done += 1;
            progress(done, of)
        };
        let owned = owned(&counts(model), self.ranks.count());
        let scale = 1.0 / trained as f64;
        let mut kept = VecDeque::new();
        for term in own {
            if let Some(partial) = add_all(model, batches, term, scale, options, &mut step)? {
                // Sent immediately, while the next term is computed.
                kept.push_back(self.send_term(model, partial, &owned)?);
            }
        }
        // Terms from one rank arrive in order and are added on arrival.
        let mut order = terms.iter().map(|(rank, _)| *rank);
        let mut next = || match order.next() {
            Some(rank) if rank == me => kept.pop_front().ok_or_else(missing),
            Some(rank) => self.receive_term(model, rank, &owned[me]),
            None => Err(missing()),
        };
        let Term { loss, gradients } = sum.combined(&division, &mut next, &Term::plus)?;
        let norm = self.norm(&gradients)?;
        let flat = match self.shards {
            true => placed(gradients, &owned[me], counts(model).len()),
            false => self.gather(model, gradients, &owned)?,
        };
        let gradients = gradients_of(model, flat);
        Ok((StepGradients { loss: f64::from(loss), trained, gradients }, norm))
    }

    /// Sends a term to the owners of its parameters and returns this rank's part of it.
    fn send_term<M: Module>(
        &self,
        model: &M,
        partial: Partial,
        owned: &[Range<usize>],
    ) -> Result<Term> {
        let loss = host(partial.loss)?.values.first().copied().unwrap_or(f32::NAN);
        let flat = flat_gradients(model, partial.gradients);
        let part = |slots: &Range<usize>| flat.get(slots.clone()).unwrap_or_default();
        for rank in self.ranks.others() {
            let mut message = vec![];
            push_values(&mut message, &[loss]);
            push_flat(&mut message, part(&owned[rank]))?;
            self.ranks.send(Topic::Terms, rank, message)?;
        }
        Ok(Term { loss, gradients: part(&owned[self.ranks.rank()]).to_vec() })
    }

    fn receive_term<M: Module>(
        &self,
        model: &M,
        from: usize,
        slots: &Range<usize>,
    ) -> Result<Term> {
        let message = self.ranks.receive(Topic::Terms, from)?;
        let mut reader = Reader::new(&message, from);
        let loss = reader.values(1)?[0];
        let (sizes, device) = (&counts(model)[slots.clone()], device_of(model));
        Ok(Term { loss, gradients: read_flat(&mut reader, sizes, &device)? })
    }

    /// Assembles the full gradients from the parts of all owners.
    fn gather<M: Module>(
        &self,
        model: &M,
        own: Vec<Option<Tensor<1>>>,
        owned: &[Range<usize>],
    ) -> Result<Vec<Option<Tensor<1>>>> {
        let mut message = vec![];
        push_flat(&mut message, &own)?;
        let (sizes, device, me) = (counts(model), device_of(model), self.ranks.rank());
        let messages = self.ranks.all(Topic::Gradients, message)?;
        let mut all = vec![];
        // Owners have consecutive parameters in rank order.
        for (rank, message) in messages.into_iter().enumerate() {
            if rank == me {
                all.extend(own.iter().cloned());
            } else {
                let mut reader = Reader::new(&message, rank);
                all.extend(read_flat(&mut reader, &sizes[owned[rank].clone()], &device)?);
            }
        }
        Ok(all)
    }

    /// Returns the global gradient norm from the parts of all owners. All ranks get the same number, even if
    /// a device sums in a different order each time.
    fn norm(&self, own: &[Option<Tensor<1>>]) -> Result<f64> {
        let mut squares = SumsOfSquares::default();
        own.iter().flatten().cloned().for_each(|gradient| squares.add(gradient));
        let mut message = vec![];
        push_values(&mut message, &squares_of(squares)?);
        let mut all = vec![];
        // Parameters are in rank order, which is the order of the module.
        for (rank, message) in self.ranks.all(Topic::Squares, message)?.iter().enumerate() {
            all.extend(Reader::new(message, rank).values(message.len() / 4)?);
        }
        Ok(norm_of(all))
    }

    /// Returns the model with the parameters that the owners updated.
    ///
    /// # Errors
    /// [`Error::Training`] if the device cannot be read; [`Error::Ranks`].
    pub fn updated<M: Module>(&self, model: M) -> Result<M> {
        if !self.shards {
            return Ok(model);
        }
        let (sizes, me) = (counts(&model), self.ranks.rank());
        let owned = owned(&sizes, self.ranks.count());
        let message = parameters(&model, owned[me].clone())?;
        let mut values = vec![];
        for (rank, message) in self.ranks.all(Topic::Parameters, message)?.iter().enumerate() {
            let mut reader = Reader::new(message, rank);
            for size in &sizes[owned[rank].clone()] {
                // This rank's own parameters are already up to date.
                values.push(if rank == me { None } else { Some(reader.values(*size)?) });
            }
        }
        Ok(with_parameters(model, values))
    }
}

/// Returns the error for a missing term.
fn missing() -> Error {
    Error::Ranks {
        what: "a part of the step is missing".into(),
        hint: "This is a bug; please report it".into(),
    }
}

/// Places a range of gradients in a list for all parameters.
fn placed(
    part: Vec<Option<Tensor<1>>>,
    slots: &Range<usize>,
    all: usize,
) -> Vec<Option<Tensor<1>>> {
    let mut flat: Vec<Option<Tensor<1>>> = vec![None; all];
    for (slot, gradient) in slots.clone().zip(part) {
        flat[slot] = gradient;
    }
    flat
}

/// Writes one byte per parameter that tells whether it has a gradient, then the gradients.
fn push_flat(message: &mut Vec<u8>, flat: &[Option<Tensor<1>>]) -> Result<()> {
    message.extend(flat.iter().map(|gradient| u8::from(gradient.is_some())));
    for gradient in flat.iter().flatten() {
        push_values(message, &host(gradient.clone())?.values);
    }
    Ok(())
}

/// Reads what [`push_flat`] wrote.
fn read_flat(
    reader: &mut Reader<'_>,
    sizes: &[usize],
    device: &Device,
) -> Result<Vec<Option<Tensor<1>>>> {
    let present = reader.bytes(sizes.len())?;
    let gradients = sizes.iter().zip(present).map(|(size, present)| {
        if *present == 0 {
            return Ok(None);
        }
        let data = TensorData::new(reader.values(*size)?, [*size]);
        Ok(Some(Tensor::from_data(data, device)))
    });
    gradients.collect()
}

/// Returns the device of the gradients.
fn device_of<M: Module>(model: &M) -> Device {
    model.devices().first().cloned().unwrap_or_default().inner()
}
