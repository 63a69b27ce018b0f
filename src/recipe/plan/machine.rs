//! The memory of this machine: of the system, and below the limits of its control groups.

use serde::Serialize;
use std::path::{Path, PathBuf};

/// Memory of the system and of its control groups in bytes. Known on Linux only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Total memory of the system.
    pub total: Option<u64>,
    /// Memory that is free or used for file caches.
    pub available: Option<u64>,
    /// The smallest limit of this process's control groups, if one is below the total.
    pub limit: Option<u64>,
    /// What the control groups leave below their limits.
    pub below_limit: Option<u64>,
    /// Memory that this process uses now.
    pub used: Option<u64>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self::below(Path::new("/"))
    }

    /// Returns a machine whose system files are below `root`.
    fn below(root: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
        let memory = read("proc/meminfo");
        let total = kib(&memory, "MemTotal:");
        let groups = groups(&read("proc/self/cgroup"));
        let mounts = root.join("sys/fs/cgroup");
        let limits = groups.iter().flat_map(|group| group.limits(&mounts));
        // A limit above the total is no limit.
        let real = limits.filter(|(limit, _)| total.is_none_or(|total| *limit < total));
        let real: Vec<(u64, u64)> = real.collect();
        Self {
            total,
            available: kib(&memory, "MemAvailable:"),
            limit: real.iter().map(|(limit, _)| *limit).min(),
            below_limit: real.iter().map(|(limit, used)| limit.saturating_sub(*used)).min(),
            used: kib(&read("proc/self/status"), "VmRSS:"),
        }
    }

    /// Returns the memory that this process can use in total: what it uses now and what is available.
    pub fn for_process(&self) -> Option<u64> {
        let free = [self.available, self.below_limit].into_iter().flatten().min()?;
        Some(free + self.used.unwrap_or(0))
    }

    /// Returns what bounds this memory, in words.
    pub fn bound(&self) -> &'static str {
        match (self.available, self.below_limit) {
            (Some(system), Some(group)) if group < system => "control group limit",
            _ => "system memory",
        }
    }
}

/// Returns the value of a line such as `MemTotal:  24683652 kB` in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number << 10)
}

/// A control group that limits memory.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    /// Its path below the mount point.
    path: PathBuf,
    /// Whether it is of version 2, which has one mount point for all controllers.
    unified: bool,
}

/// Returns the memory groups in `/proc/self/cgroup`.
fn groups(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, kinds, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = PathBuf::from(path.trim_start_matches('/'));
        let of_memory = kinds.split(',').any(|kind| kind == "memory");
        (kinds.is_empty() || of_memory).then_some(Group { path, unified: kinds.is_empty() })
    };
    text.lines().filter_map(group).collect()
}

impl Group {
    /// Returns the limits of the group and of its ancestors, each with the memory in use without inactive
    /// file caches.
    fn limits(&self, mounts: &Path) -> Vec<(u64, u64)> {
        let (place, limit, usage, file) = match self.unified {
            true => (mounts.to_owned(), "memory.max", "memory.current", "inactive_file"),
            false => (
                mounts.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
        };
        let number = |path: PathBuf| -> Option<u64> {
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        let of = |group: &Path| {
            let folder = place.join(group);
            // No limit is `max` (version 2) or a very large number (version 1).
            let limit = number(folder.join(limit))?;
            let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            let file = stat.lines().find_map(|line| line.strip_prefix(file)?.trim().parse().ok());
            let usage = number(folder.join(usage)).unwrap_or(0);
            Some((limit, usage.saturating_sub(file.unwrap_or(0))))
        };
        // In a container, the path may be that of the host, while the mount is the container's own group.
        self.path.ancestors().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Machine::below(folder.path())
    }

    const MEMORY: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    600 kB\n");
    const STATUS: (&str, &str) = ("proc/self/status", "Name:\tx\nVmRSS:\t   100 kB\n");

    #[test]
    fn without_a_limit_the_systems_memory_counts() {
        let machine = machine(&[MEMORY, STATUS, ("proc/self/cgroup", "0::/\n")]);
        assert_eq!((machine.total, machine.available), (Some(1000 << 10), Some(600 << 10)));
        assert_eq!((machine.limit, machine.for_process()), (None, Some(700 << 10)));
        assert_eq!(machine.bound(), "system memory");
    }

    #[test]
    fn the_smallest_limit_around_the_process_counts() {
        let machine = machine(&[
            MEMORY,
            STATUS,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "512000\n"),
            ("sys/fs/cgroup/a/memory.current", "300000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\n"),
        ]);
        assert_eq!((machine.limit, machine.below_limit), (Some(512_000), Some(312_000)));
        assert_eq!(machine.for_process(), Some(312_000 + (100 << 10)));
        assert_eq!(machine.bound(), "control group limit");
    }

    #[test]
    fn groups_of_version_1_are_read_in_their_own_place() {
        let machine = machine(&[
            MEMORY,
            ("proc/self/cgroup", "4:cpu,memory:/x\n1:name=systemd:/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "400000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100000\n"),
        ]);
        assert_eq!((machine.limit, machine.below_limit), (Some(400_000), Some(300_000)));
    }

    #[test]
    fn a_system_that_tells_nothing_has_nothing_to_compare_with() {
        assert_eq!(machine(&[]), Machine::default());
        assert_eq!(Machine::default().for_process(), None);
    }
}
