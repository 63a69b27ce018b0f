//! How this process was started, and which device of its machine it uses.

use crate::device;
use crate::error::{Error, Result};

/// The place of this process among those that a launcher started together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of this process, from 0.
    pub rank: usize,
    /// The number of processes.
    pub ranks: usize,
    /// The number of this process on its machine, from 0.
    pub local: usize,
    /// The number of processes on this machine, if the launcher provides it.
    pub on_machine: Option<usize>,
}

/// How this process was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// Without a launcher.
    Alone,
    /// By `mpirun`, `mpiexec`, or `srun`.
    Mpi(Place),
    /// By a launcher that sets `WORLD_SIZE`, such as `torchrun`.
    Other(Place),
}

/// The variables of MPI launchers for the rank and the number of ranks.
const OF_MPI: [[&str; 2]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
    ["PMI_RANK", "PMI_SIZE"],
    // Set by `srun` for a job step, but not for the batch script.
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"],
];
const OTHER: [&str; 2] = ["RANK", "WORLD_SIZE"];
/// The number of a process on its machine. The one that users set comes first. Some Slurm plugins set the
/// rank like other launchers, but this number in their own way.
const LOCAL: [&str; 4] =
    ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
/// The number of processes on a machine. Slurm's looks like `4(x2),3`.
const ON_MACHINE: [&str; 4] = [
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "LOCAL_WORLD_SIZE",
    "SLURM_STEP_TASKS_PER_NODE",
];

impl Started {
    /// Determines how this process was started from environment variables, which `variable` reads.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| {
            let text = variable(name)?;
            let digits = text.trim().split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<usize>().ok()
        };
        let first = |names: &[&str]| names.iter().find_map(|name| number(name));
        let place = |names: &[&str; 2]| {
            let (rank, ranks) = (number(names[0])?, number(names[1])?);
            let (local, on_machine) = (first(&LOCAL).unwrap_or(0), first(&ON_MACHINE));
            (ranks > 1).then_some(Place { rank, ranks, local, on_machine })
        };
        if let Some(place) = OF_MPI.iter().find_map(place) {
            return Self::Mpi(place);
        }
        let world = number(OTHER[1]).filter(|ranks| *ranks > 1);
        match (place(&OTHER), world) {
            (Some(place), _) => Self::Other(place),
            (None, Some(ranks)) => {
                Self::Other(Place { rank: 0, ranks, local: 0, on_machine: None })
            }
            (None, None) => Self::Alone,
        }
    }

    /// Returns the place of this process, if there are several.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Alone => None,
            Self::Mpi(place) | Self::Other(place) => Some(place),
        }
    }

    /// Rejects a launcher that this build cannot communicate with, because every process would do the same
    /// work.
    ///
    /// # Errors
    /// [`Error::Ranks`] that names the launchers that work.
    pub fn check(&self) -> Result<()> {
        const HOW: &str = "Start them with `mpirun -np N mixdistill train ...` or `srun -n N mixdistill \
                           train ...`";
        match self {
            Self::Other(place) => Err(Error::Ranks {
                what: format!("WORLD_SIZE is {}, but MPI did not start this process", place.ranks),
                hint: format!("{HOW}, or unset WORLD_SIZE for one process"),
            }),
            Self::Mpi(place) if !cfg!(feature = "mpi") => Err(Error::Ranks {
                what: format!(
                    "mpirun or srun started {} processes, but this build does not support MPI",
                    place.ranks
                ),
                hint: format!("Use a build with the feature `mpi`. {HOW}; or start one process"),
            }),
            _ => Ok(()),
        }
    }
}

/// Returns the device name of a backend for the process or thread with this number on its machine. All share
/// the CPU.
pub fn local_device(backend: &str, local: usize) -> String {
    match device::resolved(backend) {
        "flex" | "ndarray" | "none" => backend.to_owned(),
        named if named.contains(':') || local == 0 => backend.to_owned(),
        named => format!("{named}:{local}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Started {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Started::from_environment(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_known_by_their_environment() {
        assert_eq!(of(&[]), Started::Alone);
        let place = |rank, ranks, local, on_machine| Place { rank, ranks, local, on_machine };
        let open = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(of(&open), Started::Mpi(place(3, 4, 1, Some(2))));
        let by_hand = [&open[..], &[("LOCAL_RANK", "0")]].concat();
        assert_eq!(of(&by_hand), Started::Mpi(place(3, 4, 0, Some(2))));
        let step = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ];
        assert_eq!(of(&step), Started::Mpi(place(5, 8, 1, Some(4))));
        // Slurm's PMI-2 plugin sets the rank, but not the number on the machine.
        let plugin = [&step[..], &[("PMI_RANK", "5"), ("PMI_SIZE", "8")]].concat();
        assert_eq!(of(&plugin), Started::Mpi(place(5, 8, 1, Some(4))));
        // A batch script that requests 8 tasks and starts none.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), Started::Alone);
        assert_eq!(of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]), Started::Mpi(place(1, 2, 0, None)));
        let torch = [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")];
        assert_eq!(of(&torch), Started::Other(place(1, 2, 1, None)));
        for alone in [[("WORLD_SIZE", "1"), ("RANK", "0")], [("OMPI_COMM_WORLD_SIZE", "1"); 2]] {
            assert_eq!(of(&alone), Started::Alone);
        }
    }

    #[test]
    fn processes_that_cannot_talk_are_refused() {
        let error = of(&[("WORLD_SIZE", "4")]).check().unwrap_err().to_string();
        assert!(error.contains("mpirun") && error.contains("srun"), "{error}");
        assert!(error.contains("WORLD_SIZE is 4"), "{error}");
        of(&[]).check().unwrap();
        let mpi = of(&[("PMI_RANK", "1"), ("PMI_SIZE", "2")]).check();
        assert_eq!(mpi.is_ok(), cfg!(feature = "mpi"));
    }

    #[test]
    fn each_has_a_device_of_its_own_where_there_are_several() {
        assert_eq!(local_device("cuda", 0), "cuda");
        assert_eq!(local_device("cuda", 3), "cuda:3");
        assert_eq!(local_device("cuda:1", 3), "cuda:1");
        assert_eq!(local_device("flex", 3), "flex");
        // `auto` is the fastest backend in this build.
        let fastest = device::resolved("auto");
        let expected = match fastest {
            "flex" | "ndarray" => "auto".to_owned(),
            gpu => format!("{gpu}:2"),
        };
        assert_eq!(local_device("auto", 2), expected);
    }
}
