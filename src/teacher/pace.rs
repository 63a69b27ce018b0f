//! When requests are begun: so many in a minute, and none before a busy server wishes.

use super::Failure;
use crate::train::StopFlag;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by all threads that ask a server.
#[derive(Debug)]
pub(super) struct Pace {
    /// Time from one request to the next.
    interval: Duration,
    next: Mutex<Instant>,
}

impl Pace {
    /// So many requests in a minute; 0 sets no limit.
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
            // Looked at again afterwards: it may have been put off, and others wait too.
            if pause.is_zero() {
                return sleep(Duration::ZERO, stop);
            }
            sleep(pause, stop)?;
        }
    }

    /// No request begins for so long.
    pub(super) fn hold_back(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
    }
}

/// Sleeps, but not beyond a stop.
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
