//! Burn devices by backend name, CPU threads, and process memory.
//!
//! This module and [`crate::ops`] are the only ones that name backends. [`by_name`] creates a device,
//! [`compiled`] lists the backends in this build, and [`use_threads`] sets the number of CPU threads.
//!
//! ```
//! use mixdistill::device;
//!
//! let device = device::by_name("auto")?; // the first compiled backend, or e.g. "cuda:1"
//! assert!(device::is_compiled(device::resolved("auto")));
//!
//! let error = device::by_name("abacus").unwrap_err().to_string();
//! assert!(error.contains("no such backend"));
//! # let _ = device;
//! # Ok::<(), mixdistill::Error>(())
//! ```

use crate::error::{Error, Result};
use burn::tensor::{Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// All supported backends, fastest first. Each has a Cargo feature of the same name.
pub const BACKENDS: [&str; 7] = ["cuda", "metal", "rocm", "vulkan", "wgpu", "flex", "ndarray"];

/// Returns whether a backend is compiled in.
pub fn is_compiled(name: &str) -> bool {
    match name {
        "cuda" => cfg!(feature = "cuda"),
        "metal" => cfg!(feature = "metal"),
        "rocm" => cfg!(feature = "rocm"),
        "vulkan" => cfg!(feature = "vulkan"),
        "wgpu" => cfg!(feature = "wgpu"),
        "flex" => cfg!(feature = "flex"),
        "ndarray" => cfg!(feature = "ndarray"),
        _ => false,
    }
}

/// Returns the compiled backends, fastest first.
pub fn compiled() -> Vec<&'static str> {
    BACKENDS.into_iter().filter(|name| is_compiled(name)).collect()
}

/// Resolves `auto` to the first of [`compiled`]; other names are returned unchanged.
pub fn resolved(name: &str) -> &str {
    match name {
        "auto" => compiled().first().copied().unwrap_or("none"),
        name => name,
    }
}

/// Creates a device without autodiff. A name is a backend (`cuda`, its first device), a backend and a device
/// number from 0 (`cuda:1`), or `auto`, which is the first of [`compiled`].
///
/// # Errors
/// [`Error::Backend`] if the backend is unknown, is not compiled in, or does not start on this machine.
pub fn by_name(name: &str) -> Result<Device> {
    let failed = |what: &str, hint: String| {
        Err(Error::Backend { name: name.to_owned(), what: what.to_owned(), hint })
    };
    let (named, number) = match name.split_once(':') {
        Some((named, number)) => (named, number.parse::<usize>().ok()),
        None => (name, Some(0)),
    };
    let chosen = resolved(named);
    if !BACKENDS.contains(&chosen) {
        return failed("there is no such backend", format!("Use one of {}", BACKENDS.join(", ")));
    }
    if !is_compiled(chosen) {
        let hint = format!(
            "Use a build with the feature `{chosen}`, or choose another backend (compiled in: {})",
            compiled().join(", ")
        );
        return failed("it is not compiled into this build", hint);
    }
    let Some(number) = number else {
        return failed(
            "the device number is not a number",
            format!("Use for example `{chosen}:0` or `{chosen}:1`"),
        );
    };
    // A backend without a driver or device panics on first use.
    let started = catch_unwind(AssertUnwindSafe(|| {
        let device = create(chosen, number)?;
        let sum = Tensor::<1>::ones([2], &device).sum().try_into_scalar::<f32>();
        sum.is_ok_and(|sum| sum == 2.0).then_some(device)
    }));
    match started {
        Ok(Some(device)) => Ok(device),
        _ => Err(Error::Backend {
            name: chosen.to_owned(),
            what: "it does not start on this machine".into(),
            hint: format!(
                "Check the device and its driver, or choose another backend (compiled in: {})",
                compiled().join(", ")
            ),
        }),
    }
}

/// Returns the error for a failed device read: out of memory, a lost device, or a failed earlier operation.
/// GPUs report failures asynchronously, when a result is read.
pub(crate) fn failure(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let cause = root_cause(&text);
    let lower = text.to_lowercase();
    let is_memory = ["allocate", "allocating", "allocation", "device memory", "out-of-memory"];
    let is_memory = is_memory.iter().any(|word| lower.contains(word));
    let hint = match is_memory {
        true => {
            "The device is out of memory: lower train.batch_size or generate.batch_size, or set \
             train.activation_checkpointing"
        }
        false => "Check the device and its driver",
    };
    Error::Training { what: format!("the device failed: {cause}"), hint: hint.into() }
}

/// Returns the innermost cause in a CubeCL error, as one line.
fn root_cause(text: &str) -> &str {
    const AROUND: [&str; 6] =
        ["Caused by", "Backtrace", "No backtrace", "Asked at", "skipped ", "disabled backtrace"];
    let lines = text.lines().map(str::trim);
    let mut told = lines
        .filter(|line| !line.is_empty() && !AROUND.iter().any(|around| line.starts_with(around)));
    told.next_back().unwrap_or(text)
}

#[allow(deprecated, reason = "Burn deprecates ndarray in favor of flex; it is here on request")]
fn create(name: &str, number: usize) -> Option<Device> {
    // GPUs are selected by number; the CPU backends have a single device.
    #[cfg(any(feature = "metal", feature = "vulkan", feature = "wgpu"))]
    let kind = match number {
        0 => burn::tensor::DeviceKind::DefaultDevice,
        number => burn::tensor::DeviceKind::DiscreteGpu(number),
    };
    match name {
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(number)),
        #[cfg(feature = "rocm")]
        "rocm" => Some(Device::rocm(number)),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(kind)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(kind)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(kind)),
        #[cfg(feature = "flex")]
        "flex" if number == 0 => Some(Device::flex()),
        #[cfg(feature = "ndarray")]
        "ndarray" if number == 0 => Some(Device::ndarray()),
        _ => None,
    }
}

/// Sets the number of threads that the CPU backends and encoding share, and makes the calling thread one of
/// them. `None` uses `RAYON_NUM_THREADS`, or one thread per core. Call it first in `main`.
///
/// Without this call, the thread pool runs beside the calling thread, which hands over each operation and
/// waits. For small operations, the handover costs more than the work: generating a token with SmolLM2-135M
/// on two cores took a third longer. After this call, work submitted by other threads of the program has one
/// thread fewer to run on. With a single thread, the calling thread stays outside the pool.
///
/// # Errors
/// [`Error::Config`] if the threads were set before or cannot be started.
pub fn use_threads(count: Option<usize>) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count.unwrap_or(0));
    // The calling thread does no pool work while it waits for something else. If it were the pool's only
    // thread, work from other threads would never run.
    let default = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = count.or(default).filter(|n| *n > 0).unwrap_or_else(cores);
    let pool = if threads > 1 { pool.use_current_thread() } else { pool };
    pool.build_global().map_err(|error| {
        Error::config("threads", error.to_string(), "Set the threads once, before any other call")
    })
}

/// Returns the peak main memory of this process, in MiB. `None` on systems other than Linux.
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_first_cause_in_a_line() {
        let text = "An error happened during execution\nCaused by:\n  The bytes were never written\n  skipped \
                    `Sum`: it needed memory\nCaused by:\n  can't allocate buffer of size: 4096\n\
                    No backtrace available\nAsked at:\nNo backtrace available";
        let told = failure(text).to_string();
        assert!(told.contains("the device failed: can't allocate buffer of size: 4096."), "{told}");
        assert!(told.contains("train.batch_size"), "{told}");
        for text in
            ["out of device memory allocating 4096 bytes", "An out-of-memory error happened"]
        {
            assert!(failure(text).to_string().contains("train.batch_size"), "{text}");
        }
        let told = failure("lost").to_string();
        assert!(told.contains("the device failed: lost. Check the device"), "{told}");
    }
}
