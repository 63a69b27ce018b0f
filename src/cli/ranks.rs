//! Processes that `mpirun` or `srun` started together. Rank 0 prints, and all of them end together.

use super::common::Ended;
use mixdistill::ranks::{Place, Ranks, Started, local_device};
use mixdistill::{Error, Result};
use std::process::ExitCode;
use std::time::Duration;

/// How long a failed rank waits for the leader to report the error and abort the job, and how much longer
/// each further rank waits. If the leader stays silent, one of the others reports the error.
const COURTESY: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(3)];

/// Refuses processes that a launcher started together but that MPI does not see as one job. Each of them
/// would do all of the work.
///
/// # Errors
/// [`Error::Ranks`].
#[cfg(feature = "mpi")]
fn same_world(place: &Place, [rank, ranks]: [usize; 2]) -> Result<()> {
    if [rank, ranks] == [place.rank, place.ranks] {
        return Ok(());
    }
    Err(Error::Ranks {
        what: format!(
            "the launcher reports process {} of {}, but MPI reports {rank} of {ranks}",
            place.rank, place.ranks
        ),
        hint:
            "Use the mpirun of the MPI library that this program was built with, or srun --mpi=pmix"
                .into(),
    })
}

/// The processes of the job, seen from this one.
pub struct Together {
    started: Started,
    #[cfg(feature = "mpi")]
    mpi: Option<std::sync::Arc<mixdistill::ranks::Mpi>>,
}

impl Together {
    /// Detects how this process was started, and starts MPI if it is one of several.
    ///
    /// # Errors
    /// [`Error::Ranks`] if there are several and this build or this command cannot use them.
    pub fn start(trains: bool) -> Result<Self> {
        let started = Started::from_environment(|name| std::env::var(name).ok());
        match (&started, trains) {
            (_, true) => started.check()?,
            (Started::Mpi(place), false) => {
                return Err(Error::Ranks {
                    what: format!(
                        "this command runs in one process, but {} were started",
                        place.ranks
                    ),
                    hint:
                        "Start it without mpirun or srun; `--part 1/4` divides the work of study, \
                           evaluate, score, logits, and pairs"
                            .into(),
                });
            }
            _ => {}
        }
        #[cfg(feature = "mpi")]
        let mpi = match (&started, trains) {
            (Started::Mpi(_), true) => Some(std::sync::Arc::new(mixdistill::ranks::Mpi::start()?)),
            _ => None,
        };
        #[cfg(feature = "mpi")]
        if let (Started::Mpi(place), Some(mpi)) = (&started, &mpi) {
            let world = Ranks::new(mpi.clone());
            same_world(place, [world.rank(), world.count()])?;
        }
        Ok(Self {
            started,
            #[cfg(feature = "mpi")]
            mpi,
        })
    }

    /// Returns the place of this process among several.
    fn place(&self) -> Option<&Place> {
        match &self.started {
            Started::Mpi(place) => Some(place),
            _ => None,
        }
    }

    /// Returns whether this is the process that prints.
    pub fn speaks(&self) -> bool {
        self.place().is_none_or(|place| place.rank == 0)
    }

    /// Returns whether there are other processes.
    pub fn are_several(&self) -> bool {
        self.place().is_some()
    }

    /// Returns the ranks to train on.
    pub fn ranks(&self, patience: Duration) -> Ranks {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            return Ranks::new(mpi.clone()).with_patience(patience);
        }
        Ranks::default().with_patience(patience)
    }

    /// Returns the device of this process on a backend.
    pub fn device(&self, backend: &str) -> String {
        local_device(backend, self.place().map_or(0, |place| place.local))
    }

    /// Returns the thread count of this process if several processes share the cores of a machine and the
    /// user set none. A launcher that binds processes to cores has already divided them.
    pub fn threads(&self) -> Option<usize> {
        let here = self.place()?.on_machine?;
        if std::env::var_os("RAYON_NUM_THREADS").is_some() {
            return None;
        }
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let all = processors.lines().filter(|line| line.starts_with("processor")).count();
        (available >= all).then(|| (available / here.max(1)).max(1))
    }

    /// Waits so that the leader can report the error first if it knows of it.
    pub fn before_an_error(&self, ended: &Ended) {
        if let (Err(super::common::Failure::Error(error)), false) = (ended, self.speaks())
            && !matches!(error, Error::Stopped { .. })
        {
            let rank = self.place().map_or(0, |place| place.rank);
            std::thread::sleep(COURTESY[0] + COURTESY[1] * rank as u32);
        }
    }

    /// Ends this process with a status. After an error, ends all of them.
    pub fn end(&self, status: ExitCode) -> ExitCode {
        if status == ExitCode::FAILURE || status == ExitCode::from(2) {
            self.abort();
        }
        status
    }

    /// Aborts all processes. Does nothing if there are no others.
    fn abort(&self) {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.abort();
        }
    }
}

/// Ends after a usage error or a request for help. Only one of several processes prints.
pub fn end_with(error: &clap::Error) -> ! {
    leave_it_to_the_first(error.exit_code());
    error.exit()
}

/// Ends this process if another one reports why.
pub fn leave_it_to_the_first(status: i32) {
    let started = Started::from_environment(|name| std::env::var(name).ok());
    if started.place().is_some_and(|place| place.rank > 0) {
        // The launcher ends the others together with the one that prints.
        std::thread::sleep(Duration::from_secs(1));
        std::process::exit(status);
    }
}
