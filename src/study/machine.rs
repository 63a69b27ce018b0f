//! The machine that trained a cell. On another machine, the same cell may give different numbers.

use crate::device;
use serde::{Deserialize, Serialize};

/// Processor, threads, and backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name, or its architecture if the system does not report a name.
    pub processor: String,
    /// The number of compute threads.
    pub threads: usize,
    /// The backend's name.
    pub backend: String,
}

impl Machine {
    /// This machine, with a backend as named in the settings.
    pub(super) fn here(backend: &str) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let names = info.lines().filter(|line| line.starts_with("model name"));
        let name =
            names.filter_map(|line| line.split_once(':')).map(|(_, name)| name.trim()).next();
        Self {
            processor: name.unwrap_or(std::env::consts::ARCH).to_owned(),
            threads: rayon::current_num_threads(),
            backend: device::resolved(backend).to_owned(),
        }
    }
}
