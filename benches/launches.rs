//! Counts and times the kernels that a piece of work launches on a GPU.

#[cfg(not(feature = "cube"))]
use mixdistill::Error;
use mixdistill::Result;
use serde_json::Value;

#[cfg(feature = "cube")]
mod observed {
    use burn_cubecl::cubecl::logging::{LaunchObserver, TimingRequest};
    use burn_cubecl::cubecl::profile::{Duration, ProfileDuration, TimingMethod};
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    /// Per kernel: the number of launches and the bytes of its buffers.
    #[derive(Default)]
    pub struct Counts(pub Mutex<BTreeMap<String, (u64, u64)>>);

    /// Returns the kernel's name without its path and type parameters, and the bytes that a patched CubeCL
    /// appends.
    fn name_and_bytes(kernel: &str) -> (String, u64) {
        let (name, bytes) = kernel.split_once('\t').unwrap_or((kernel, "0"));
        let path = name.split('<').next().unwrap_or(name);
        let name = path.rsplit("::").next().unwrap_or(path);
        (name.to_owned(), bytes.parse().unwrap_or(0))
    }

    impl LaunchObserver for Counts {
        fn launched(&self, kernel: &'static str) {
            let (name, bytes) = name_and_bytes(kernel);
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(name).or_default();
            count.0 += 1;
            count.1 += bytes;
        }
    }

    /// The time of each launch, in order. Times are read after the run, so that kernels are not delayed.
    #[derive(Default)]
    pub struct Times {
        pub unread: Mutex<Vec<(String, ProfileDuration)>>,
        pub read: Mutex<Vec<(String, Duration)>>,
    }

    impl LaunchObserver for Times {
        fn launched(&self, _kernel: &'static str) {}

        fn timing(&self) -> TimingRequest {
            TimingRequest::Deferred
        }

        fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
            let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
            unread.push((name_and_bytes(kernel).0, profile));
        }

        fn timed(&self, kernel: &'static str, duration: Duration, _method: TimingMethod) {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.push((name_and_bytes(kernel).0, duration));
        }
    }
}

/// Runs `work` twice without running its kernels: first to compile and select them, then to count them. Data
/// that `work` reads from the device is meaningless.
#[cfg(feature = "cube")]
pub fn count(mut work: impl FnMut() -> Result<()>) -> Result<Value> {
    use burn_cubecl::cubecl::{dry_run::DryRun, logging::LaunchObservation};
    use std::sync::{Arc, PoisonError};

    let _dry = DryRun::new();
    work()?;
    let counts = Arc::new(observed::Counts::default());
    let observation = LaunchObservation::new(counts.clone());
    work()?;
    drop(observation);
    let counts = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (launches, bytes) = counts.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    Ok(serde_json::json!({ "launches": launches, "mib": bytes >> 20, "kernels": *counts }))
}

/// Runs `work` three times: twice to compile and select kernels, then to time them. The slowest come first.
#[cfg(feature = "cube")]
pub fn profile(mut work: impl FnMut() -> Result<()>) -> Result<Value> {
    use burn_cubecl::cubecl::{future::block_on, logging::LaunchObservation};
    use std::collections::BTreeMap;
    use std::sync::{Arc, PoisonError};

    work()?;
    work()?;
    let times = Arc::new(observed::Times::default());
    let observation = LaunchObservation::new(times.clone());
    work()?;
    drop(observation);
    let mut of_kernels = BTreeMap::<String, (u64, f64)>::new();
    let mut add = |name: String, seconds: f64| {
        let time = of_kernels.entry(name).or_default();
        time.0 += 1;
        time.1 += 1e3 * seconds;
    };
    let unread = std::mem::take(&mut *times.unread.lock().unwrap_or_else(PoisonError::into_inner));
    for (name, profile) in unread {
        if let Some(ticks) = block_on(profile.into_future()) {
            add(name, ticks.duration().as_secs_f64());
        }
    }
    for (name, duration) in &*times.read.lock().unwrap_or_else(PoisonError::into_inner) {
        add(name.clone(), duration.as_secs_f64());
    }
    let total: f64 = of_kernels.values().map(|time| time.1).sum();
    let mut kernels: Vec<_> = of_kernels.into_iter().collect();
    kernels.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let kernels: Vec<Value> = kernels
        .into_iter()
        .map(|(name, (count, ms))| {
            serde_json::json!({ "kernel": name, "launches": count, "ms": (ms * 1e3).round() / 1e3 })
        })
        .collect();
    Ok(serde_json::json!({ "kernels_ms": (total * 1e3).round() / 1e3, "kernels": kernels }))
}

#[cfg(not(feature = "cube"))]
pub fn count(_work: impl FnMut() -> Result<()>) -> Result<Value> {
    none()
}

#[cfg(not(feature = "cube"))]
pub fn profile(_work: impl FnMut() -> Result<()>) -> Result<Value> {
    none()
}

#[cfg(not(feature = "cube"))]
fn none() -> Result<Value> {
    let hint = "Build with a GPU feature, such as `--features wgpu`";
    Err(Error::config("launches", "this build has no GPU backend", hint))
}
