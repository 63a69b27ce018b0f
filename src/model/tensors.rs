//! A module's parameters by name.
//!
//! Names are the module's paths (`model.layers.0.mlp.up_proj.weight`). Burn's linear layers hold
//! `[input, output]`, files hold `[output, input]` as PyTorch does; the change happens here.

use crate::device;
use crate::error::{Error, Result};
use crate::ops::resident;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A tensor on the host in f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// A matrix, transposed in memory. A transposed view would do for the values, but products with
    /// it are summed in another order, so that a model that was read would not give the bits of the
    /// one that was written.
    pub(crate) fn transposed(self) -> Self {
        let [rows, columns] = self.shape[..] else { return self };
        /// Rows and columns of a block that stays in the cache.
        const BLOCK: usize = 32;
        let mut values = vec![0.0; self.values.len()];
        values.par_chunks_mut((rows * BLOCK).max(1)).enumerate().for_each(|(block, out)| {
            for start in (0..rows).step_by(BLOCK) {
                let here = start..(start + BLOCK).min(rows);
                for (column, out) in out.chunks_mut(rows).enumerate() {
                    for row in here.clone() {
                        out[row] = self.values[row * columns + block * BLOCK + column];
                    }
                }
            }
        });
        Self { shape: vec![columns, rows], values }
    }
}

/// Follows the path through a module.
#[derive(Default)]
pub(crate) struct PathStack {
    path: Vec<String>,
    containers: Vec<String>,
}

impl PathStack {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    pub(crate) fn exit(&mut self) {
        self.path.pop();
        self.containers.pop();
    }

    pub(crate) fn name(&self) -> String {
        self.path.join(".")
    }

    /// Whether the parameter is a part of a matrix in codes, which no file has.
    fn is_encoded(&self) -> bool {
        self.containers.last().is_some_and(|last| last == "Struct:EncodedMatrix")
    }

    /// Whether the parameter is the matrix of a linear layer, which files hold transposed.
    fn is_transposed(&self, rank: usize) -> bool {
        let linear = ["Struct:Linear", "Struct:LoraLinear"];
        rank == 2 && self.containers.last().is_some_and(|last| linear.contains(&last.as_str()))
    }
}

/// A parameter that is read from its device when it is needed.
pub(crate) struct NamedTensor {
    /// Its path in the module.
    pub(crate) name: String,
    /// Its shape, as files hold it.
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements,
}

/// How a tensor's elements are read.
///
/// Both give [`Error::Training`] where the device cannot be read.
pub(crate) enum Elements {
    /// Numbers, which files hold in their own type.
    Numbers(Box<dyn Fn() -> Result<HostTensor>>),
    /// Bytes, which files hold as they are.
    Bytes(Box<dyn Fn() -> Result<Vec<u8>>>),
}

impl NamedTensor {
    /// A tensor as it is.
    pub(crate) fn new<const D: usize>(name: String, tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        Self { name, shape, elements: Elements::Numbers(Box::new(move || host(tensor.clone()))) }
    }

    /// A tensor of bytes.
    pub(crate) fn bytes(
        name: String,
        shape: Vec<usize>,
        read: impl Fn() -> Result<Vec<u8>> + 'static,
    ) -> Self {
        Self { name, shape, elements: Elements::Bytes(Box::new(read)) }
    }
}

/// The module's parameters as files hold them, in the module's order, without matrices in codes;
/// `trained` leaves out those that are frozen.
pub(crate) fn lazy_tensors<M: Module>(module: &M, trained: bool) -> Vec<NamedTensor> {
    struct Visitor {
        path: PathStack,
        trained: bool,
        tensors: Vec<NamedTensor>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            if self.path.is_encoded() || (self.trained && !tensor.is_require_grad()) {
                return;
            }
            let tensor = if self.path.is_transposed(D) { tensor.swap_dims(0, 1) } else { tensor };
            self.tensors.push(NamedTensor::new(self.path.name(), tensor));
        }
    }
    let mut visitor = Visitor { path: PathStack::default(), trained, tensors: vec![] };
    module.visit(&mut visitor);
    visitor.tensors
}

/// The module's parameters as files hold them, by name.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read.
pub fn named_tensors<M: Module>(module: &M) -> Result<BTreeMap<String, HostTensor>> {
    let tensors = lazy_tensors(module, false).into_iter();
    let numbers = tensors.filter_map(|tensor| match tensor.elements {
        Elements::Numbers(read) => Some((tensor.name, read)),
        Elements::Bytes(_) => None,
    });
    numbers.map(|(name, read)| Ok((name, read()?))).collect()
}

/// The tensor on the device without autodiff.
pub(crate) fn off_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor.inner() } else { tensor }
}

/// A tensor's elements on the host.
///
/// # Errors
/// [`Error::Training`] where the device cannot be read.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Result<HostTensor> {
    let shape = tensor.dims().to_vec();
    let values = tensor.try_into_vec_as::<f32>().map_err(device::failure)?;
    Ok(HostTensor { shape, values })
}

/// The module with its parameters replaced by those of `tensors`; frozen parameters stay.
///
/// # Errors
/// A list of the parameters that are missing, left over or of another shape, in words.
pub fn with_named_tensors<M: Module>(
    module: M,
    tensors: &mut dyn FnMut(&str) -> Option<HostTensor>,
) -> std::result::Result<M, Vec<String>> {
    struct Mapper<'a> {
        path: PathStack,
        tensors: &'a mut dyn FnMut(&str) -> Option<HostTensor>,
        problems: Vec<String>,
    }
    impl ModuleMapper for Mapper<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let frozen = param.device().is_autodiff() && !param.val().is_require_grad();
            if frozen || self.path.is_encoded() {
                return param;
            }
            let name = self.path.name();
            let transposed = self.path.is_transposed(D);
            let Some(host) = (self.tensors)(&name) else {
                self.problems.push(format!("`{name}` is missing"));
                return param;
            };
            let mut expected = param.lazy_shape().to_vec();
            if transposed {
                expected.reverse();
            }
            if host.shape != expected {
                let problem = format!("`{name}` is {:?}, not {expected:?}", host.shape);
                self.problems.push(problem);
                return param;
            }
            param.map(|old| {
                let device = old.device();
                let trains = old.is_require_grad();
                let host = if transposed { host.transposed() } else { host };
                let new: Tensor<D> = resident(host.values, host.shape, &device);
                if trains { new.detach().require_grad() } else { new }
            })
        }
    }
    let mut mapper = Mapper { path: PathStack::default(), tensors, problems: vec![] };
    let module = module.map(&mut mapper);
    if mapper.problems.is_empty() { Ok(module) } else { Err(mapper.problems) }
}

/// The module with the parameters of these names as `value` gives them, or as they are where it gives none; they
/// are trained from then on or frozen, all others stay.
///
/// # Errors
/// What `value` gives.
pub(crate) fn with_replaced<M: Module>(
    module: M,
    names: &BTreeSet<String>,
    trained: bool,
    value: &mut dyn FnMut(&str) -> Result<Option<HostTensor>>,
) -> Result<M> {
    struct Mapper<'a> {
        path: PathStack,
        names: &'a BTreeSet<String>,
        trained: bool,
        value: &'a mut dyn FnMut(&str) -> Result<Option<HostTensor>>,
        error: Option<Error>,
    }
    impl ModuleMapper for Mapper<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.path.name();
            if !self.names.contains(&name) || self.error.is_some() {
                return param;
            }
            let old = param.val();
            let new: Tensor<D> = match (self.value)(&name) {
                Ok(None) => old.detach(),
                Ok(Some(host)) => {
                    let host = if self.path.is_transposed(D) { host.transposed() } else { host };
                    resident(host.values, host.shape, &old.device())
                }
                Err(error) => {
                    self.error = Some(error);
                    return param;
                }
            };
            let new = Param::from_tensor(new);
            if self.trained { new } else { new.no_grad() }
        }
    }
    let path = PathStack::default();
    let mut mapper = Mapper { path, names, trained, value, error: None };
    let module = module.map(&mut mapper);
    mapper.error.map_or(Ok(module), Err)
}
