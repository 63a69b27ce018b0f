//! An optimizer step on several ranks.
//!
//! 1. Each rank computes the gradients of its micro-batches, and adds up those that lie together
//!    (`terms` of [`super::reduce`]).
//! 2. Each parameter has an owner. It gets the terms of its parameters from all ranks, and adds them in the
//!    order of the step.
//! 3. All ranks get the sums of all owners and make the same update. With `shard_optimizer` an owner
//!    updates its own parameters only, so that it alone has their moments (ZeRO-1, arXiv 1910.02054), and all ranks
//!    get the updated parameters.
//!
//! A rank sends about twice the size of the gradients in a step, however many ranks there are, where each
//! has one term.

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

/// How a step is divided.
pub(super) struct Ranked<'a> {
    pub ranks: &'a Ranks,
    pub lanes: usize,
    /// Whether an owner keeps the moments of its parameters to itself.
    pub shards: bool,
}

/// A term of a step: its loss, and its gradients of the parameters of one rank, in their order.
struct Term {
    loss: f32,
    gradients: Vec<Option<Tensor<1>>>,
}

impl Term {
    /// The sum of two; a gradient that is missing is left out of it.
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
    /// The division of a step, and how it is added up.
    fn plan(&self, batches: &[Batch]) -> (Division, Option<Sum>) {
        let pieces = pieces(batches);
        let division = Division::new(&pieces, self.lanes, self.ranks.count());
        (division, Sum::of(&pieces, self.lanes))
    }

    /// Loss and gradients of a step, and their norm. With shards the gradients are those of this rank's own
    /// parameters.
    ///
    /// # Errors
    /// As [`super::step_gradients_with`]; [`Error::Ranks`].
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
                // It goes as soon as it is there, while the next one is computed.
                kept.push_back(self.send_term(model, partial, &owned)?);
            }
        }
        // Those of one rank come in the order of the step; each is added as it comes.
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

    /// Sends a term to the owners of its parameters, and gives what this rank owns of it.
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

    /// The whole gradients, of which each owner has a part.
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
        // Owners have their parameters side by side, in the order of the ranks.
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

    /// The root of the sum of the squares of all gradients, of which each owner has a part. All ranks get the
    /// same number, even where a device sums in another order each time.
    fn norm(&self, own: &[Option<Tensor<1>>]) -> Result<f64> {
        let mut squares = SumsOfSquares::default();
        own.iter().flatten().cloned().for_each(|gradient| squares.add(gradient));
        let mut message = vec![];
        push_values(&mut message, &squares_of(squares)?);
        let mut all = vec![];
        // Owners have their parameters in the order of the ranks, so that this is the module's own.
        for (rank, message) in self.ranks.all(Topic::Squares, message)?.iter().enumerate() {
            all.extend(Reader::new(message, rank).values(message.len() / 4)?);
        }
        Ok(norm_of(all))
    }

    /// The model with the parameters that each owner has updated.
    ///
    /// # Errors
    /// [`Error::Training`] where the device cannot be read; [`Error::Ranks`].
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
                // Its own are there already.
                values.push(if rank == me { None } else { Some(reader.values(*size)?) });
            }
        }
        Ok(with_parameters(model, values))
    }
}

/// What is wrong where a term is not there.
fn missing() -> Error {
    Error::Ranks {
        what: "a part of the step is missing".into(),
        hint: "This is a defect; please report it".into(),
    }
}

/// A part of the parameters among all of them.
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

/// A byte for each parameter that says whether it has a gradient, then the gradients.
fn push_flat(message: &mut Vec<u8>, flat: &[Option<Tensor<1>>]) -> Result<()> {
    message.extend(flat.iter().map(|gradient| u8::from(gradient.is_some())));
    for gradient in flat.iter().flatten() {
        push_values(message, &host(gradient.clone())?.values);
    }
    Ok(())
}

/// What [`push_flat`] wrote.
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

/// Where gradients are.
fn device_of<M: Module>(model: &M) -> Device {
    model.devices().first().cloned().unwrap_or_default().inner()
}
