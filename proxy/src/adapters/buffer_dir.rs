//! The directory of buffered bodies: files without a name, which are gone when the process is, however it ends.
//!
//! Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How the files are called for the moment in which they have a name, where the file system wants one.
const PREFIX: &str = "portcullis-body-";

#[derive(Debug, thiserror::Error)]
#[error("cannot write temporary files in {path}, where buffered bodies go that do not fit into memory")]
pub struct BufferDirError {
    pub path: PathBuf,
    pub source: io::Error,
}

#[derive(Debug, Clone)]
pub struct BufferDir {
    path: PathBuf,
}

impl BufferDir {
    pub const HINT: &str = "the daemon's user must be able to create files there (under systemd, `ReadWritePaths=` names \
                            directories beside the state directory): see `[buffers] directory` in the configuration";

    /// Nothing is looked at yet.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory if need be, removes what a killed daemon may have left, and writes a file.
    pub fn prepare(&self) -> Result<(), BufferDirError> {
        self.sweep().and_then(|()| self.check()).map_err(|source| self.failed(source))
    }

    /// Whether bodies can be written now.
    pub fn test(&self) -> Result<(), BufferDirError> {
        self.check().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> BufferDirError {
        BufferDirError { path: self.path.clone(), source }
    }

    fn check(&self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        self.file()?.write_all_at(b"x", 0)
    }

    fn sweep(&self) -> io::Result<()> {
        self.create()?;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// A new file for reading and writing.
    pub fn file(&self) -> io::Result<File> {
        match self.unnamed() {
            // Somebody tidied up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create()?;
                self.unnamed()
            }
            file => file,
        }
    }

    fn unnamed(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(file.into()),
            // Not every file system has files without a name.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.named_for_a_moment(),
            Err(error) => Err(error.into()),
        }
    }

    fn named_for_a_moment(&self) -> io::Result<File> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.path.join(format!("{PREFIX}{}-{number}", std::process::id()));
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        match fs::remove_file(&path) {
            // Another daemon that starts on the same directory tidies up too.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(file),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn files_have_no_name_and_what_had_one_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = BufferDir::at(&root.path().join("a/buffers"));
        dir.prepare().unwrap();
        fs::write(dir.path().join(format!("{PREFIX}123-0")), "left over").unwrap();
        fs::write(dir.path().join("somebody else's"), "").unwrap();
        dir.prepare().unwrap();
        for file in [dir.file().unwrap(), dir.named_for_a_moment().unwrap()] {
            file.write_all_at(b"body", 0).unwrap();
            let mut read = [0; 4];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!((&read, names(dir.path())), (b"body", vec!["somebody else's".to_owned()]));
        }
    }

    #[test]
    fn a_directory_that_is_gone_is_made_again_and_a_file_is_none() {
        let root = tempfile::tempdir().unwrap();
        let dir = BufferDir::at(&root.path().join("buffers"));
        dir.prepare().unwrap();
        fs::remove_dir(dir.path()).unwrap();
        dir.test().unwrap();
        fs::remove_dir(dir.path()).unwrap();
        fs::write(dir.path(), "").unwrap();
        let error = dir.prepare().unwrap_err();
        assert!(error.to_string().contains("cannot write temporary files"), "{error}");
    }
}
