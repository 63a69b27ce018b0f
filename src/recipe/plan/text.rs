//! Displays a plan.

use super::{MemoryPlan, MicroBatch, Plan, TimePlan};
use crate::text::{DISPLAY_WIDTH, Table, bytes, duration};
use std::fmt;

impl MemoryPlan {
    /// Returns the nonzero parts by name, in bytes.
    pub fn parts(&self) -> Vec<(&'static str, f64)> {
        let parts = [
            ("program", self.program),
            ("data", self.data),
            ("weights", self.weights),
            ("teacher", self.teacher),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("logits and loss", self.logits),
            ("kernels and files", self.working),
            ("kept for reuse", self.kept),
        ];
        parts.into_iter().filter(|(_, bytes)| *bytes >= 0.5).collect()
    }
}

impl MicroBatch {
    /// Returns the size in words.
    fn words(&self) -> String {
        let rows = match self.rows {
            1 => format!("{} positions in one row", self.length),
            rows => format!("{rows} rows of {} positions", self.length),
        };
        format!("{rows}, {} trained targets", self.trained)
    }
}

impl Plan {
    /// Returns the plan in one line, as a run prints it at the start.
    pub fn line(&self) -> String {
        let memory = &self.memory;
        let mut parts = memory.parts();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let parts = parts.iter().filter(|(_, part)| *part >= 0.05 * memory.peak);
        let parts: Vec<String> =
            parts.map(|(name, part)| format!("{name} {}", bytes(*part))).collect();
        let there = match self.there() {
            Some(there) => format!(", {there} available"),
            None => String::new(),
        };
        format!(
            "planned memory: peak {} ({}){there}; disk: {}; {}",
            bytes(memory.peak),
            parts.join(", "),
            bytes(self.disk.total),
            self.time.words(),
        )
    }

    /// Returns a warning if the available memory is not enough.
    pub fn warning(&self) -> Option<String> {
        let (room, bound) = (self.room()?, self.machine?.bound());
        if self.fits != Some(false) {
            return None;
        }
        let what = format!(
            "this run will not fit: it needs about {} of memory, but only {} are available ({bound})",
            bytes(self.memory.peak),
            bytes(room),
        );
        let enough = self.savings.iter().find(|saving| saving.fits == Some(true));
        let best = enough.or(self.savings.last());
        Some(match best {
            None => what,
            Some(saving) => format!(
                "{what}. With {}, it needs {}",
                saving.settings.join(", "),
                bytes(saving.peak)
            ),
        })
    }

    /// Returns the number of bytes available for the run.
    fn room(&self) -> Option<f64> {
        Some(self.machine?.for_process()? as f64)
    }

    fn there(&self) -> Option<String> {
        self.room().map(bytes)
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let mut table = Table::new(["device memory", "bytes", "share"]);
        for (name, part) in self.memory.parts() {
            let share = format!("{:.0}%", 100.0 * part / self.memory.peak);
            table.row([name.to_owned(), bytes(part), share]);
        }
        table.row(["peak", &bytes(self.memory.peak), "100%"]);
        writeln!(f, "\n{}", table.to_text(width))?;
        writeln!(f, "The peak is when {}.", self.memory.when.name())?;
        match (self.machine, self.there()) {
            (Some(machine), Some(there)) => {
                let verdict = match self.fits {
                    Some(false) => "It does not fit",
                    _ => "It fits",
                };
                writeln!(f, "{verdict}: {there} are available ({}).", machine.bound())
            }
            (Some(_), None) => writeln!(f, "This system does not report its available memory."),
            (None, _) => writeln!(f, "Burn does not report how much memory this device has."),
        }
    }

    fn write_lengths(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let mut table = Table::new(["micro-batch", "positions", "activations", "peak memory"]);
        for line in &self.by_length {
            let name = match (self.from_data, line.share) {
                (_, 1.0) => "largest".to_owned(),
                (true, share) if share <= 0.5 => "median".to_owned(),
                (true, share) => format!("{:.0}th percentile", 100.0 * share),
                (false, share) => format!("{:.0}% of the length", 100.0 * share),
            };
            let positions = line.batch.positions().to_string();
            table.row([name, positions, bytes(line.activations), bytes(line.peak)]);
        }
        writeln!(f, "\n{}", table.to_text(width))?;
        if !self.longest_rows.is_empty() {
            let row = |row: &super::LongRow| format!("{} ({})", row.label, row.tokens);
            let rows: Vec<String> = self.longest_rows.iter().map(row).collect();
            writeln!(f, "\nlongest rows (tokens): {}", rows.join(", "))?;
        }
        if self.shorter_rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(["shorter rows", "rows left out", "peak memory", "saved"]);
        for line in &self.shorter_rows {
            let left_out = match self.from_data {
                true => format!("{:.1}%", 100.0 * line.left_out),
                false => "unknown".into(),
            };
            let name = format!("data.max_length={}", line.max_length);
            table.row([name, left_out, bytes(line.peak), bytes(line.saved)]);
        }
        writeln!(f, "\n{}", table.to_text(width))
    }

    fn write_savings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.savings.is_empty() {
            return Ok(());
        }
        let what = match self.fits {
            Some(false) => "settings that could make it fit",
            _ => "settings that save memory",
        };
        write!(f, "\n{what}, each on its own:")?;
        for saving in &self.savings {
            let fits = match saving.fits {
                Some(true) => ", fits",
                Some(false) => ", does not fit",
                None => "",
            };
            let (peak, saved) = (bytes(saving.peak), bytes(saving.saved));
            let settings = saving.settings.join(" ");
            write!(f, "\n  peak {peak} ({saved} less{fits}): {settings}; {}", saving.price)?;
        }
        writeln!(f)
    }
}

impl TimePlan {
    /// Returns the time in words, and the speed that it is based on.
    fn words(&self) -> String {
        let how = match self.is_measured {
            true => format!("measured: {:.0} GFLOP/s", self.flops_per_second / 1e9),
            false => format!("assumed: {:.0} GFLOP/s", self.flops_per_second / 1e9),
        };
        let step = format!("{} per step", duration(self.seconds_per_step));
        match (self.steps, self.seconds) {
            (Some(steps), Some(seconds)) => {
                format!("time: about {} for {steps} steps, {step} ({how})", duration(seconds))
            }
            _ => format!("time: about {step} ({how})"),
        }
    }
}

impl fmt::Display for Plan {
    /// Writes tables that fit the width of the format, as in `format!("{plan:80}")`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = f.width().unwrap_or(DISPLAY_WIDTH);
        writeln!(
            f,
            "student: from {}, {} parameters, {} trained, backend {}",
            self.student, self.parameters, self.trained_parameters, self.backend
        )?;
        let lengths = match self.from_data {
            true => "",
            false => " (without data; assumes rows of data.max_length tokens)",
        };
        writeln!(f, "largest micro-batch: {}{lengths}", self.batch.words())?;
        self.write_memory(f, width)?;
        self.write_lengths(f, width)?;
        self.write_savings(f)?;
        let disk = &self.disk;
        writeln!(
            f,
            "\ndisk: {} ({} checkpoints of {} each, including one that is being written; result {})",
            bytes(disk.total),
            disk.checkpoints,
            bytes(disk.checkpoint),
            bytes(disk.result),
        )?;
        write!(f, "{}", self.time.words())
    }
}
