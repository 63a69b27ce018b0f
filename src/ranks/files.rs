//! Sends files between ranks in pieces, so that no rank holds more than one piece in memory.

use super::{Ranks, Topic};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Bytes per piece.
const PIECE: usize = 16 << 20;

impl Ranks {
    /// Sends a file to other ranks, which must call [`Ranks::receive_file`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Ranks`].
    pub(crate) fn send_file(&self, topic: Topic, to: &[usize], path: &Path) -> Result<()> {
        let failed = |e| Error::io("read", path, e);
        let mut file = File::open(path).map_err(failed)?;
        loop {
            let mut piece = vec![];
            Read::by_ref(&mut file).take(PIECE as u64).read_to_end(&mut piece).map_err(failed)?;
            for rank in to {
                self.send(topic, *rank, piece.clone())?;
            }
            // The next piece follows when all receivers have this one.
            for rank in to {
                self.receive(topic, *rank)?;
            }
            if piece.is_empty() {
                return Ok(());
            }
        }
    }

    /// Receives a file from another rank and writes it.
    ///
    /// # Errors
    /// See [`Ranks::send_file`].
    pub(crate) fn receive_file(&self, topic: Topic, from: usize, path: &Path) -> Result<()> {
        let failed = |e| Error::io("write", path, e);
        let mut file = File::create(path).map_err(failed)?;
        loop {
            let piece = self.receive(topic, from)?;
            file.write_all(&piece).map_err(failed)?;
            self.send(topic, from, vec![])?;
            if piece.is_empty() {
                return Ok(());
            }
        }
    }

    /// Creates a temporary folder for this rank.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn scratch(&self) -> Result<tempfile::TempDir> {
        let name = format!("mixdistill-rank-{}-", self.rank());
        let made = tempfile::Builder::new().prefix(&name).tempdir();
        made.map_err(|e| Error::io("create a folder in", std::env::temp_dir(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::on_ranks;
    use super::*;

    #[test]
    fn files_arrive_whole() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, PIECE, PIECE + 5] {
            let bytes: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
            let sent = folder.path().join("sent");
            std::fs::write(&sent, &bytes).unwrap();
            let got = on_ranks(3, |ranks| {
                if ranks.is_leader() {
                    ranks.send_file(Topic::Checkpoint, &[1, 2], &sent).unwrap();
                    return std::fs::read(&sent).unwrap();
                }
                let scratch = ranks.scratch().unwrap();
                let path = scratch.path().join("got");
                ranks.receive_file(Topic::Checkpoint, 0, &path).unwrap();
                std::fs::read(path).unwrap()
            });
            assert!(got.iter().all(|got| *got == bytes), "{length}");
        }
    }
}
