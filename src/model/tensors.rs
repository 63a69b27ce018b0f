//! Parameters of a module, by name.
//!
//! Names are paths in the module (`model.layers.0.mlp.up_proj.weight`). Burn's linear layers store `[input,
//! output]`, and files store `[output, input]` as PyTorch does; this module converts between them.

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
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// Transposes a matrix in memory. Products with a transposed view would be summed in another order, so a
    /// loaded model would not be bit-identical to the one that was saved.
    pub(crate) fn transposed(self) -> Self {
        let [rows, columns] = self.shape[..] else { return self };
        /// Rows and columns of a block that fits the cache.
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

/// Tracks the path within a module.
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

    /// Returns whether the parameter belongs to a quantized matrix, which no file stores.
    fn is_encoded(&self) -> bool {
        self.containers.last().is_some_and(|last| last == "Struct:EncodedMatrix")
    }

    /// Returns whether the parameter is the matrix of a linear layer, which files store transposed.
    fn is_transposed(&self, rank: usize) -> bool {
        let linear = ["Struct:Linear", "Struct:LoraLinear"];
        rank == 2 && self.containers.last().is_some_and(|last| linear.contains(&last.as_str()))
    }
}

/// A parameter that is read from its device on request.
pub(crate) struct NamedTensor {
    /// Path in the module.
    pub(crate) name: String,
    /// Shape in files.
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements,
}

/// Reads the elements of a tensor.
///
/// Both variants return [`Error::Training`] if the device cannot be read.
pub(crate) enum Elements {
    /// Floats, which are converted to the type of the file.
    Numbers(Box<dyn Fn() -> Result<HostTensor>>),
    /// Bytes, which are stored unchanged.
    Bytes(Box<dyn Fn() -> Result<Vec<u8>>>),
}

impl NamedTensor {
    /// Returns a tensor of floats, in its own shape.
    pub(crate) fn new<const D: usize>(name: String, tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        Self { name, shape, elements: Elements::Numbers(Box::new(move || host(tensor.clone()))) }
    }

    /// Returns a tensor of bytes.
    pub(crate) fn bytes(
        name: String,
        shape: Vec<usize>,
        read: impl Fn() -> Result<Vec<u8>> + 'static,
    ) -> Self {
        Self { name, shape, elements: Elements::Bytes(Box::new(read)) }
    }
}

/// Returns the parameters of a module in the layout of files, in the module's order, without quantized
/// matrices. `trained` excludes frozen parameters.
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

/// Returns the parameters of a module in the layout of files, by name. Quantized matrices are excluded.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub fn named_tensors<M: Module>(module: &M) -> Result<BTreeMap<String, HostTensor>> {
    let tensors = lazy_tensors(module, false).into_iter();
    let numbers = tensors.filter_map(|tensor| match tensor.elements {
        Elements::Numbers(read) => Some((tensor.name, read)),
        Elements::Bytes(_) => None,
    });
    numbers.map(|(name, read)| Ok((name, read()?))).collect()
}

/// Returns the tensor on the device without autodiff.
pub(crate) fn off_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.device().is_autodiff() { tensor.inner() } else { tensor }
}

/// Copies a tensor to the host.
///
/// # Errors
/// [`Error::Training`] if the device cannot be read.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Result<HostTensor> {
    let shape = tensor.dims().to_vec();
    let values = tensor.try_into_vec_as::<f32>().map_err(device::failure)?;
    Ok(HostTensor { shape, values })
}

/// Replaces the parameters of a module with those that `tensors` returns for their names, in the layout of
/// files. Frozen parameters stay.
///
/// # Errors
/// Messages about parameters that are missing or have another shape.
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

/// Replaces the named parameters with the results of `value`, or keeps their values if it returns `None`, and
/// makes them trained or frozen. All other parameters stay.
///
/// # Errors
/// The errors of `value`.
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
