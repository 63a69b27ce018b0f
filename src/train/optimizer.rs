//! AdamW over a whole module, with its moments kept by parameter name, so that they can be saved
//! and read back in another process.

use super::config::{ParameterGroup, TrainConfig};
use crate::error::{Error, Result};
use crate::model::tensors::{HostTensor, NamedTensor, PathStack, host};
use crate::ops::{AdamW, sum_of_squares};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdaptiveMomentumState, GradientsParams};
use burn::prelude::*;
use burn::tensor::TensorData;
use std::collections::BTreeMap;

/// AdamW with its moments.
#[derive(Clone)]
pub struct ModuleAdamW {
    decayed: AdamW,
    plain: AdamW,
    groups: Vec<ParameterGroup>,
    /// First and second moment of each parameter, flat.
    moments: BTreeMap<String, AdaptiveMomentumState<1>>,
}

impl std::fmt::Debug for ModuleAdamW {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModuleAdamW")
            .field("decayed", &self.decayed)
            .field("moments", &self.moments.len())
            .finish_non_exhaustive()
    }
}

impl ModuleAdamW {
    /// An optimizer without moments yet.
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
            moments: BTreeMap::new(),
        }
    }

    /// The update of a parameter, and what its learning rate is multiplied by.
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

    /// Updates every parameter that has a gradient. Matrices decay, norms and biases do not, unless
    /// a group says otherwise.
    pub fn step<M: Module>(&mut self, rate: f64, module: M, gradients: GradientsParams) -> M {
        self.scaled_step(rate, 1.0, module, gradients)
    }

    /// As [`ModuleAdamW::step`], with all gradients times `scale`.
    pub fn scaled_step<M: Module>(
        &mut self,
        rate: f64,
        scale: f64,
        module: M,
        gradients: GradientsParams,
    ) -> M {
        struct Mapper<'a> {
            path: PathStack,
            optimizer: &'a mut ModuleAdamW,
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
                let mut new_moments = None;
                let param = param.map(|old| {
                    let trains = old.is_require_grad();
                    let dims = old.dims();
                    let count = old.shape().num_elements();
                    let (new, moments) = adamw.update(
                        rate,
                        old.inner().reshape([count]),
                        gradient.reshape([count]),
                        scale,
                        moments,
                    );
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

    /// The moments as tensors `NAME.exp_avg` and `NAME.exp_avg_sq`, and the updates made.
    pub(crate) fn export(&self) -> (Vec<NamedTensor>, BTreeMap<String, usize>) {
        let tensors = self.moments.iter().flat_map(|(name, state)| {
            [("exp_avg", &state.moment_1), ("exp_avg_sq", &state.moment_2)]
                .map(|(part, moment)| NamedTensor::new(format!("{name}.{part}"), moment.clone()))
        });
        let times = self.moments.iter().map(|(name, state)| (name.clone(), state.time));
        (tensors.collect(), times.collect())
    }

    /// Takes over what [`ModuleAdamW::export`] gave; `read` reads a tensor.
    ///
    /// # Errors
    /// As `read`.
    pub(crate) fn import(
        &mut self,
        read: &mut dyn FnMut(&str) -> Result<HostTensor>,
        times: &BTreeMap<String, usize>,
        device: &Device,
    ) -> Result<()> {
        self.moments.clear();
        for (name, time) in times {
            let mut take = |moment: &str| -> Result<Tensor<1>> {
                let host = read(&format!("{name}.{moment}"))?;
                let data = TensorData::new(host.values, host.shape);
                Ok(Tensor::from_data(data, device))
            };
            let (first, second) = (take("exp_avg")?, take("exp_avg_sq")?);
            let state = AdaptiveMomentumState::new(*time, first, second);
            self.moments.insert(name.clone(), state);
        }
        Ok(())
    }
}

/// The root of the sum of the squares of all gradients of a module.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read.
pub fn global_norm<M: Module>(module: &M, gradients: &GradientsParams) -> Result<f64> {
    struct Visitor<'a> {
        gradients: &'a GradientsParams,
        squares: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.squares.push(sum_of_squares(gradient));
            }
        }
    }
    let mut visitor = Visitor { gradients, squares: vec![] };
    module.visit(&mut visitor);
    if visitor.squares.is_empty() {
        return Ok(0.0);
    }
    // One transfer; the few numbers are summed in f64.
    let squares = host(Tensor::cat(visitor.squares, 0))?.values;
    Ok(squares.into_iter().map(f64::from).sum::<f64>().sqrt())
}

/// The gradients of a module on the host, by parameter name, in the module's own layout.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read.
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
