//! The request rate: at most a given number of requests per minute, and none during a pause that a busy
//! server asks for.

use super::Failure;
use crate::context::StopFlag;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rate limiter that all threads of a server share.
#[derive(Debug)]
pub(super) struct Pace {
    /// Time from one request to the next.
    interval: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// Returns a limit in requests per minute; 0 sets no limit.
    pub(super) fn new(per_minute: f64) -> Self {
        let seconds = if per_minute > 0.0 { 60.0 / per_minute } else { 0.0 };
        let interval = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600));
        Self { interval, next: Mutex::new(Instant::now()) }
    }

    /// Waits for this request's turn.
    pub(super) fn wait(&self, stop: &StopFlag) -> Result<(), Failure> {
        loop {
            let pause = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                if *next <= now {
                    *next = now + self.interval;
                    Duration::ZERO
                } else {
                    *next - now
                }
            };
            // Checks again after the pause: the time may have been moved, and other threads wait, too.
            if pause.is_zero() {
                return sleep(Duration::ZERO, stop);
            }
            sleep(pause, stop)?;
        }
    }

    /// Starts no request during `pause`.
    pub(super) fn hold_back(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }
}

/// Sleeps until the pause is over or a stop is requested.
pub(super) fn sleep(pause: Duration, stop: &StopFlag) -> Result<(), Failure> {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    let until = Instant::now() + pause;
    loop {
        if stop.is_requested() {
            return Err(Failure::Stopped);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_pace_and_a_pause_is_for_all() {
        let stop = StopFlag::default();
        // One in 20 ms.
        let pace = Pace::new(3000.0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| pace.wait(&stop).unwrap()));
            }
        });
        assert!(start.elapsed() >= Duration::from_millis(19 * 20), "{:?}", start.elapsed());
        let pace = Pace::new(0.0);
        pace.wait(&stop).unwrap();
        let start = Instant::now();
        pace.hold_back(Duration::from_millis(200));
        pace.hold_back(Duration::from_millis(10));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    pace.wait(&stop).unwrap();
                    assert!(start.elapsed() >= Duration::from_millis(200));
                });
            }
        });
        stop.request();
        assert!(matches!(pace.wait(&stop), Err(Failure::Stopped)));
    }
}
