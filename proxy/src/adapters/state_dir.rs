//! The state directory: it belongs to one daemon at a time, and files in it appear whole or not at all.
//!
//! What the files say is the business of `state_file` and `fleet_key`. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
/// In the name of every file that is not finished.
const TEMPORARY: &str = ".tmp-";

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error(
        "cannot use state directory {path}; it must exist or be creatable, and be writable for the daemon"
    )]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "state directory {path} belongs to another running daemon; stop that one, or choose another directory with --state-dir"
    )]
    InUse { path: PathBuf },
}

/// Held for as long as the daemon runs.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The kernel gives the lock back when the process ends, however it ends.
    _lock: File,
}

impl StateDir {
    /// Creates the directory if need be, locks it, and removes what a killed daemon left unfinished.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |source| StateDirError::Open { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = open_lock(&path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let unfinished = [path.to_owned(), path.join(super::page_files::DIRECTORY)];
        for error in unfinished.iter().filter_map(|path| remove_unfinished(path).err()) {
            // On a disk that became read-only, what was served before is still to be served.
            tracing::warn!(path = %path.display(), %error, "cannot remove unfinished files");
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opened for reading: a file open for writing would keep its file system from becoming read-only.
fn open_lock(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    File::open(path)
}

fn remove_unfinished(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Replaces `path`, keeping what was there as `backup`. At every moment, `path` is the old or the new text.
///
/// On an error the old text is in place.
pub(super) fn replace(path: &Path, backup: &Path, text: &[u8]) -> io::Result<()> {
    replace_and(sync_parent, path, backup, text)
}

/// With its last step, which no test can make fail on a real disk.
fn replace_and(
    sync_parent: impl FnOnce(&Path) -> io::Result<()>,
    path: &Path,
    backup: &Path,
    text: &[u8],
) -> io::Result<()> {
    let fresh = write_unfinished(path, text)?;
    let result = keep_backup(path, backup).and_then(|kept| {
        fs::rename(&fresh, path)?;
        sync_parent(path).inspect_err(|_| {
            // The caller will say that nothing changed, so make it true if the disk lets us.
            let _ = if kept { hard_link_over(backup, path) } else { fs::remove_file(path) };
        })
    });
    if result.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    result
}

/// Creates `path`; fails if it exists.
pub(super) fn create(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = write_unfinished(path, text)?;
    let result = fs::hard_link(&fresh, path);
    let removed = fs::remove_file(&fresh);
    result.and(removed)?;
    sync_parent(path)
}

/// Writes `path`, whether it exists or not. At every moment, it is the old or the new text.
pub(super) fn overwrite(path: &Path, text: &[u8]) -> io::Result<()> {
    let fresh = write_unfinished(path, text)?;
    fs::rename(&fresh, path).inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    sync_parent(path)
}

fn write_unfinished(path: &Path, text: &[u8]) -> io::Result<PathBuf> {
    let fresh = unfinished(path);
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(text)?;
        file.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&fresh);
    })?;
    Ok(fresh)
}

/// A fixed name is enough: the lock keeps other daemons out, and this one writes a file once at a time.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{TEMPORARY}{}", std::process::id()));
    PathBuf::from(name)
}

/// Whether there was anything to keep.
fn keep_backup(path: &Path, backup: &Path) -> io::Result<bool> {
    match hard_link_over(path, backup) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `link` becomes a second name of `file`, in one step even if it exists.
fn hard_link_over(file: &Path, link: &Path) -> io::Result<()> {
    let fresh = unfinished(link);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(file, &fresh)?;
    // If both are one file already, rename does nothing and leaves the new name behind.
    let result = fs::rename(&fresh, link);
    let _ = fs::remove_file(&fresh);
    result
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err();
        assert!(matches!(refused, StateDirError::InUse { .. }), "{refused}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_was_left_unfinished_goes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json.tmp-7"), "half").unwrap();
        fs::write(dir.path().join("state.json"), "whole").unwrap();
        StateDir::open(dir.path()).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["lock", "state.json"]);
    }

    #[test]
    fn replacing_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let (path, backup) = (dir.path().join("f"), dir.path().join("f.bak"));
        for (text, before) in [("1", None), ("2", Some("1")), ("3", Some("2"))] {
            replace(&path, &backup, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::read_to_string(&backup).ok().as_deref(), before);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing unfinished is left");
        assert_eq!(create(&path, b"4").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_replacement_that_may_not_last_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, backup) = (dir.path().join("f"), dir.path().join("f.bak"));
        let fails = |_: &Path| Err(io::Error::other("the disk is gone"));
        replace_and(fails, &path, &backup, b"1").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "there was no file before");
        replace(&path, &backup, b"1").unwrap();
        replace_and(fails, &path, &backup, b"2").unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    }
}
