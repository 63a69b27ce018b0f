//! Mounts whose locks are local to one machine, as far as the system reports it.

use std::path::{Path, PathBuf};

/// Returns why locks in a folder do not hold between machines, if the system reports it.
pub(crate) fn locks_of_one_machine(folder: &Path) -> Option<String> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    local_locks(&String::from_utf8_lossy(&mounts), &folder.canonicalize().ok()?)
}

/// Like [`locks_of_one_machine`], given the text of `/proc/self/mountinfo`:
///
/// ```text
/// 36 35 98:0 / /mnt/a rw,noatime shared:1 - nfs host:/a rw,vers=3,nolock,local_lock=all
/// ```
fn local_locks(mounts: &str, folder: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (mount, of_system) = line.split_once(" - ")?;
        let place = PathBuf::from(unescaped(mount.split(' ').nth(4)?));
        folder.starts_with(&place).then_some((place, of_system))
    });
    // The deepest mount, and the last of several at one path.
    let (place, of_system) = mounts.max_by_key(|(place, _)| place.components().count())?;
    let mut fields = of_system.split(' ');
    let (kind, options) = (fields.next()?, fields.nth(1).unwrap_or_default());
    let has = |wanted: &[&str]| options.split(',').find(|option| wanted.contains(option));
    let option = match kind {
        "nfs" | "nfs4" => has(&["nolock", "local_lock=all", "local_lock=flock"]).map(Some),
        "lustre" => has(&["localflock"]).map(Some),
        "fuse.sshfs" => Some(None),
        _ => None,
    }?;
    let place = place.display();
    Some(match option {
        Some(option) => format!("{place} is mounted with {option} ({kind})"),
        None => format!("{place} is mounted with {kind}"),
    })
}

/// Decodes a path in which spaces and other characters are written as `\040`.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            _ => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_with_locks_of_one_machine_are_known() {
        let mounts = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            36 27 0:1 / /nfs rw,noatime shared:1 master:2 - nfs4 host:/a rw,vers=4.2,local_lock=none\n\
            37 36 0:2 / /nfs/old\\040one rw - nfs host:/b rw,vers=3,nolock,local_lock=all\n\
            38 27 0:3 / /flock rw - nfs host:/c rw,vers=3,local_lock=flock\n\
            39 27 0:4 / /lustre rw - lustre a@tcp:/fs rw,flock,lazystatfs\n\
            40 27 0:5 / /lustre-local rw - lustre a@tcp:/fs rw,localflock\n\
            41 27 0:6 / /ssh rw - fuse.sshfs me@host: rw,user_id=0\n\
            42 27 0:7 / /over rw - fuse.sshfs me@host: rw\n\
            43 42 0:8 / /over rw - tmpfs tmpfs rw\n\
            broken\n";
        let of = |folder: &str| local_locks(mounts, Path::new(folder));
        for folder in ["/home/me", "/nfs/study", "/nfs/older", "/lustre/a", "/over/a", "/sshd"] {
            assert_eq!(of(folder), None, "{folder}");
        }
        for (folder, expected) in [
            ("/nfs/old one/study", "/nfs/old one is mounted with nolock (nfs)"),
            ("/flock", "/flock is mounted with local_lock=flock (nfs)"),
            ("/lustre-local/a/b", "/lustre-local is mounted with localflock (lustre)"),
            ("/ssh/a", "/ssh is mounted with fuse.sshfs"),
        ] {
            assert_eq!(of(folder).as_deref(), Some(expected));
        }
        assert_eq!(local_locks("", Path::new("/")), None);
    }
}
