//! Optimizers whose state is kept in checkpoints: this crate's [`FusedAdamW`], which stores moments by
//! parameter name, and every `ModuleOptimizer` of Burn.

use super::config::{MomentType, ParameterGroup, TrainConfig};
use super::moments::Moments;
use crate::error::{Error, Result};
use crate::model::FileType;
use crate::model::tensors::{HostTensor, PathStack, host};
use crate::model::weights::{WeightFiles, write_file};
use crate::ops::{AdamW, SumsOfSquares};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, ModuleOptimizer, OptimizerRecord};
use burn::prelude::*;
use burn::tensor::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Updates the parameters of a model and saves its own state in checkpoints.
///
/// A learner uses [`FusedAdamW`] by default. Burn's optimizers also implement this trait:
///
/// ```
/// use burn::optim::AdamWConfig;
/// use mixdistill::model::DecoderLm;
/// use mixdistill::train::Optimizer;
/// let optimizer: Box<dyn Optimizer<DecoderLm>> = Box::new(AdamWConfig::new().init());
/// ```
pub trait Optimizer<M> {
    /// Returns the model after one update. Each gradient is multiplied by `scale`; `rate` is the learning
    /// rate.
    fn step(&mut self, rate: f64, scale: f64, model: M, gradients: GradientsParams) -> M;

    /// Returns the name of the state file in a checkpoint's folder.
    fn file_name(&self) -> &'static str;

    /// Writes the state to a file. Returns numbers that the checkpoint stores as well, for
    /// [`Optimizer::load`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Training`] if the device cannot be read.
    fn save(&self, model: &M, path: &Path) -> Result<BTreeMap<String, u64>>;

    /// Returns whether the state can be sharded across ranks by parameters.
    fn is_divisible(&self) -> bool {
        false
    }

    /// Like [`Optimizer::save`], including the parts of the state that other ranks saved.
    ///
    /// # Errors
    /// See [`Optimizer::save`]; [`Error::Config`] if the state cannot be sharded.
    fn save_joined(
        &self,
        model: &M,
        path: &Path,
        parts: &[SavedPart],
    ) -> Result<BTreeMap<String, u64>> {
        match parts {
            [] => self.save(model, path),
            _ => Err(Error::config(
                "train.shard_optimizer",
                "the state of this optimizer cannot be sharded",
                "Remove the setting, or use this crate's AdamW",
            )),
        }
    }

    /// Loads what [`Optimizer::save`] wrote, for a model with the same parameters. Returns the model with the
    /// parameter IDs that the state refers to.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] or [`Error::Checkpoint`] if the state does not match the model.
    fn load(&mut self, model: M, path: &Path, numbers: &BTreeMap<String, u64>) -> Result<M>;
}

/// The part of an optimizer's state that one rank saved.
#[derive(Clone, Debug)]
pub struct SavedPart {
    /// The file.
    pub path: PathBuf,
    /// The numbers that [`Optimizer::save`] returned.
    pub numbers: BTreeMap<String, u64>,
}

/// AdamW that updates each parameter and its moments in one pass.
#[derive(Clone)]
pub struct FusedAdamW {
    decayed: AdamW,
    plain: AdamW,
    groups: Vec<ParameterGroup>,
    moment_type: MomentType,
    /// The moments of each parameter, by name.
    moments: BTreeMap<String, Moments>,
}

impl std::fmt::Debug for FusedAdamW {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FusedAdamW")
            .field("decayed", &self.decayed)
            .field("moments", &self.moments.len())
            .finish_non_exhaustive()
    }
}

impl FusedAdamW {
    /// Creates an optimizer without moments.
    pub fn new(config: &TrainConfig) -> Self {
        let with_decay = |decay: f64| AdamW {
            beta_1: config.beta_1,
            beta_2: config.beta_2,
            epsilon: config.epsilon,
            weight_decay: decay,
        };
        Self {
            decayed: with_decay(config.weight_decay),
            plain: with_decay(0.0),
            groups: config.parameter_groups.clone(),
            moment_type: config.moments,
            moments: BTreeMap::new(),
        }
    }

    /// Returns the update rule of a parameter and the factor of its learning rate.
    fn of(&self, name: &str, dimensions: usize) -> (AdamW, f64) {
        let usual = match dimensions {
            0 | 1 => &self.plain,
            _ => &self.decayed,
        };
        let Some(group) = self.groups.iter().find(|group| group.holds(name)) else {
            return (usual.clone(), 1.0);
        };
        let weight_decay = group.weight_decay.unwrap_or(usual.weight_decay);
        (AdamW { weight_decay, ..usual.clone() }, group.learning_rate_factor.unwrap_or(1.0))
    }

    /// Updates every parameter that has a gradient, multiplied by `scale`. Weight decay applies to matrices,
    /// but not to norms and biases, unless a group says otherwise.
    fn update<M: Module>(
        &mut self,
        rate: f64,
        scale: f64,
        module: M,
        gradients: GradientsParams,
    ) -> M {
        struct Mapper<'a> {
            path: PathStack,
            optimizer: &'a mut FusedAdamW,
            gradients: GradientsParams,
            rate: f64,
            scale: f64,
        }
        impl ModuleMapper for Mapper<'_> {
            fn enter_module(&mut self, name: &str, container_type: &str) {
                self.path.enter(name, container_type);
            }

            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.exit();
            }

            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let Some(gradient) = self.gradients.remove::<D>(param.id) else { return param };
                let name = self.path.name();
                let moments = self.optimizer.moments.remove(&name);
                let (adamw, factor) = self.optimizer.of(&name, D);
                let (rate, scale) = (self.rate * factor, self.scale);
                let kind = self.optimizer.moment_type;
                let mut new_moments = None;
                let param = param.map(|old| {
                    let trains = old.is_require_grad();
                    let dims = old.dims();
                    let count = old.shape().num_elements();
                    let pair = [old.inner().reshape([count]), gradient.reshape([count])];
                    let (new, moments) = Moments::update(moments, kind, &adamw, rate, pair, scale);
                    new_moments = Some(moments);
                    let new = Tensor::from_inner(new.reshape(dims));
                    if trains { new.require_grad() } else { new }
                });
                if let Some(moments) = new_moments {
                    self.optimizer.moments.insert(name, moments);
                }
                param
            }
        }
        let path = PathStack::default();
        module.map(&mut Mapper { path, optimizer: self, gradients, rate, scale })
    }
}

impl<M: Module> Optimizer<M> for FusedAdamW {
    fn step(&mut self, rate: f64, scale: f64, model: M, gradients: GradientsParams) -> M {
        self.update(rate, scale, model, gradients)
    }

    fn file_name(&self) -> &'static str {
        "optimizer.safetensors"
    }

    fn is_divisible(&self) -> bool {
        true
    }

    fn save(&self, model: &M, path: &Path) -> Result<BTreeMap<String, u64>> {
        self.save_joined(model, path, &[])
    }

    fn save_joined(
        &self,
        model: &M,
        path: &Path,
        parts: &[SavedPart],
    ) -> Result<BTreeMap<String, u64>> {
        let own = self
            .moments
            .iter()
            .map(|(name, moments)| (name.clone(), (moments.tensors(name), moments.time() as u64)));
        let mut all: BTreeMap<_, _> = own.collect();
        let counts = by_parameter(model, |_, count| count);
        for SavedPart { path, numbers } in parts {
            let files = Rc::new(RefCell::new(WeightFiles::open_file(path.clone())?));
            for (name, time) in numbers {
                let count = counts.get(name).copied().unwrap_or_default();
                let tensors = Moments::stored(&files, name, count, self.moment_type);
                all.insert(name.clone(), (tensors, *time));
            }
        }
        let times = all.iter().map(|(name, (_, time))| (name.clone(), *time)).collect();
        let tensors: Vec<_> = all.into_values().flat_map(|(tensors, _)| tensors).collect();
        write_file(path, &tensors, FileType::F32, HashMap::new())?;
        Ok(times)
    }

    fn load(&mut self, model: M, path: &Path, numbers: &BTreeMap<String, u64>) -> Result<M> {
        let mut files = WeightFiles::open_file(path.to_owned())?;
        let device = model.devices().first().cloned().unwrap_or_default().inner();
        let counts = by_parameter(&model, |_, count| count);
        let mut moments = BTreeMap::new();
        for (name, time) in numbers {
            let count = *counts.get(name).ok_or_else(|| Error::Checkpoint {
                path: path.to_owned(),
                what: format!("it has moments of `{name}`, which the model does not have"),
                hint: "Resume with the model that it was written for".into(),
            })?;
            let time = *time as usize;
            let read = Moments::read(&mut files, name, time, count, self.moment_type, &device)?;
            moments.insert(name.clone(), read);
        }
        self.moments = moments;
        Ok(model)
    }
}

/// Burn's own optimizers. Their state is in Burn's format. They use their own weight decay and ignore
/// [`ParameterGroup`]s.
impl<M: Module> Optimizer<M> for ModuleOptimizer {
    fn step(&mut self, rate: f64, scale: f64, model: M, gradients: GradientsParams) -> M {
        let gradients = if scale == 1.0 { gradients } else { scaled(&model, gradients, scale) };
        ModuleOptimizer::step(self, rate, model, gradients)
    }

    fn file_name(&self) -> &'static str {
        "optimizer.bpk"
    }

    fn save(&self, model: &M, path: &Path) -> Result<BTreeMap<String, u64>> {
        let bytes = self.into_bytes().map_err(|e| Error::Training {
            what: format!("cannot write the optimizer's state: {e}"),
            hint: "Check the device and its memory".into(),
        })?;
        crate::files::write_whole(path, |file| {
            file.write_all(&bytes).map_err(|e| Error::io("write", path, e))
        })?;
        // Burn's parameter IDs differ between processes.
        Ok(by_parameter(model, |id, _| id.val()))
    }

    fn load(&mut self, model: M, path: &Path, numbers: &BTreeMap<String, u64>) -> Result<M> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let record = OptimizerRecord::from_bytes(Bytes::from_bytes_vec(bytes));
        let record = record.map_err(|e| Error::Checkpoint {
            path: path.to_owned(),
            what: format!("it is not an optimizer state: {e}"),
            hint: "Resume with the optimizer of the original run, or use another checkpoint".into(),
        })?;
        *self = self.clone().load_record(record);
        Ok(with_parameter_ids(model, numbers))
    }
}

/// Multiplies gradients by a number.
fn scaled<M: Module>(module: &M, gradients: GradientsParams, scale: f64) -> GradientsParams {
    struct Visitor {
        gradients: GradientsParams,
        scale: f64,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient * self.scale);
            }
        }
    }
    let mut visitor = Visitor { gradients, scale };
    module.visit(&mut visitor);
    visitor.gradients
}

/// Maps each parameter's ID and number of elements through `what`, by parameter name.
fn by_parameter<M: Module, T>(
    module: &M,
    what: impl Fn(ParamId, usize) -> T,
) -> BTreeMap<String, T> {
    struct Visitor<T, F> {
        path: PathStack,
        what: F,
        found: BTreeMap<String, T>,
    }
    impl<T, F: Fn(ParamId, usize) -> T> ModuleVisitor for Visitor<T, F> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let count = param.lazy_shape().num_elements();
            self.found.insert(self.path.name(), (self.what)(param.id, count));
        }
    }
    let mut visitor = Visitor { path: PathStack::default(), what, found: BTreeMap::new() };
    module.visit(&mut visitor);
    visitor.found
}

/// Sets the parameter IDs of a module.
fn with_parameter_ids<M: Module>(module: M, ids: &BTreeMap<String, u64>) -> M {
    struct Mapper<'a> {
        path: PathStack,
        ids: &'a BTreeMap<String, u64>,
    }
    impl ModuleMapper for Mapper<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn map_float<const D: usize>(&mut self, mut param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if let Some(id) = self.ids.get(&self.path.name()) {
                param.id = ParamId::from(*id);
            }
            param
        }
    }
    module.map(&mut Mapper { path: PathStack::default(), ids })
}

/// Returns the global norm: the square root of the sum of squares of all gradients of a module.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub fn global_norm<M: Module>(module: &M, gradients: &GradientsParams) -> Result<f64> {
    struct Visitor<'a> {
        gradients: &'a GradientsParams,
        squares: SumsOfSquares,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.squares.add(gradient);
            }
        }
    }
    let mut visitor = Visitor { gradients, squares: SumsOfSquares::default() };
    module.visit(&mut visitor);
    Ok(norm_of(squares_of(visitor.squares)?))
}

/// Reads sums of squares from the device in one transfer.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub(super) fn squares_of(gradients: SumsOfSquares) -> Result<Vec<f32>> {
    gradients.sums().map_or(Ok(vec![]), |sums| Ok(host(sums)?.values))
}

/// Returns the square root of the sum, added in f64.
pub(super) fn norm_of(squares: Vec<f32>) -> f64 {
    squares.into_iter().map(f64::from).sum::<f64>().sqrt()
}

/// Reads the gradients of a module, by parameter name, in the module's own layout.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub fn named_gradients<M: Module>(
    module: &M,
    gradients: &GradientsParams,
) -> Result<BTreeMap<String, HostTensor>> {
    struct Visitor<'a> {
        path: PathStack,
        gradients: &'a GradientsParams,
        named: Result<BTreeMap<String, HostTensor>, Error>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
            let Ok(named) = &mut self.named else { return };
            match host(gradient) {
                Ok(gradient) => {
                    named.insert(self.path.name(), gradient);
                }
                Err(error) => self.named = Err(error),
            }
        }
    }
    let mut visitor = Visitor { path: PathStack::default(), gradients, named: Ok(BTreeMap::new()) };
    module.visit(&mut visitor);
    visitor.named
}
