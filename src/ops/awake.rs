//! Keeps threads awake between operations.
//!
//! The pool's threads sleep after about ten microseconds without work. Between two operations for a token,
//! one thread often works alone for about that long, and waking another thread takes as long as an operation
//! (up to a tenth of a millisecond in a virtual machine).

use burn::tensor::Device;

/// Keeps the pool's other threads looking for work until the result is dropped, or until no work arrives for
/// a while. Does nothing if the device does not use that pool.
#[must_use]
pub(crate) fn keep_awake(device: &Device) -> Option<Awake> {
    #[cfg(feature = "flex")]
    return (device.clone().inner() == Device::flex()).then(flex::keep_awake).flatten();
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        None
    }
}

/// Threads look for work while this lives.
pub(crate) struct Awake(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::Awake;
    use rayon::Yield;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// How long a thread looks without finding work.
    const PATIENCE: Duration = Duration::from_micros(300);
    /// How long it looks in total. Work that it interrupted while waiting continues then.
    const LONGEST: Duration = Duration::from_millis(100);
    /// Number of searches between yields to other threads of the system.
    const SEARCHES: u32 = 16;

    pub(super) fn keep_awake() -> Option<Awake> {
        let owner = rayon::current_thread_index()?;
        let done = Arc::new(AtomicBool::new(false));
        for _ in 1..rayon::current_num_threads() {
            let done = done.clone();
            rayon::spawn(move || look_for_work(&done, owner));
        }
        Some(Awake(done))
    }

    /// Returns immediately in the thread that signals the end.
    fn look_for_work(done: &AtomicBool, owner: usize) {
        if rayon::current_thread_index() == Some(owner) {
            return;
        }
        let start = Instant::now();
        let (mut last, mut searches) = (start, 0);
        while !done.load(Ordering::Relaxed) {
            if rayon::yield_now() == Some(Yield::Executed) {
                (last, searches) = (Instant::now(), 0);
                continue;
            }
            if last.elapsed() > PATIENCE || start.elapsed() > LONGEST {
                return;
            }
            searches += 1;
            match searches % SEARCHES {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn work_is_done_and_ends_whoever_is_awake() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum: usize = pool.install(|| {
                (0..200usize)
                    .map(|round| {
                        let _awake = keep_awake(&Device::flex());
                        (0..round).into_par_iter().with_max_len(1).sum::<usize>()
                    })
                    .sum()
            });
            assert_eq!(sum, (1..200usize).map(|round| round * (round - 1) / 2).sum::<usize>());
        }
        // Outside a pool there are no threads to keep awake.
        assert!(keep_awake(&Device::flex()).is_none());
    }
}
