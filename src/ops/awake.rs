//! Threads that stay awake between operations.
//!
//! The pool's threads go to sleep when they find no work for some ten microseconds. Between two operations
//! of a token there is often as little as that to do in one thread, and to wake another takes as long as an
//! operation (in a virtual machine up to a tenth of a millisecond).

use burn::tensor::Device;

/// Keeps the pool's other threads looking for work until it is dropped, or nothing came for a while. Does
/// nothing where the work is not done by that pool.
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

/// While this lives, threads look for work.
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

    /// How long a thread looks for work and finds none.
    const PATIENCE: Duration = Duration::from_micros(300);
    /// How long it looks in all. What it interrupts, where it was waiting within other work, goes on then.
    const LONGEST: Duration = Duration::from_millis(100);
    /// Searches between which it lets other threads of the system run.
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

    /// Returns at once in the thread that has to say when it is done.
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
        // Outside of a pool there is nobody to keep awake.
        assert!(keep_awake(&Device::flex()).is_none());
    }
}
