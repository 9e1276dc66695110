//! The files of a directory that is a store. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime};

/// What is not finished yet. Here and not beside the values, because names of hosts may be as long as a file's may be.
const UNFINISHED: &str = ".unfinished";
const NOTICE: &str = ".notice";
/// Begins the file of a value; no name in a key does.
const VALUE: char = '@';
/// Others are at work in a shared folder, but none for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// A value that is replaced while it is read is read again.
const ATTEMPTS: usize = 16;

#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    is_private: bool,
    swept: Once,
}

/// What a key holds.
pub(super) struct Value {
    number: u64,
    pub bytes: Vec<u8>,
}

impl Value {
    /// A key that was deleted and made again has the same numbers, so they alone would not do.
    pub(super) fn version(&self) -> String {
        version(self.number, &self.bytes)
    }
}

pub(super) enum Replaced {
    By(String),
    /// The key holds something else than was expected.
    NotAny,
}

impl Files {
    pub(super) fn private(root: &Path) -> Self {
        Self { root: root.to_owned(), is_private: true, swept: Once::new() }
    }

    pub(super) fn shared(root: &Path) -> Self {
        Self { is_private: false, ..Self::private(root) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn is_private(&self) -> bool {
        self.is_private
    }

    pub(super) fn read(&self, key: &str, bytes_max: usize) -> io::Result<Option<Value>> {
        self.check_root()?;
        let dir = self.root.join(key);
        let mut is_empty = !dir.is_dir();
        for _ in 0..ATTEMPTS {
            let Some(number) = numbers(&dir)?.into_iter().max() else {
                // A list may miss the new file and the old one, if one comes and the other goes meanwhile.
                if is_empty {
                    return Ok(None);
                }
                is_empty = true;
                continue;
            };
            match read(&value_path(&dir, number), bytes_max) {
                Err(error) if is_gone(&error) => {}
                bytes => return bytes.map(|bytes| Some(Value { number, bytes })),
            }
        }
        Err(io::Error::other("it changes faster than it can be read"))
    }

    pub(super) fn replace(
        &self,
        key: &str,
        bytes: Vec<u8>,
        expected: Option<&str>,
        bytes_max: usize,
    ) -> io::Result<Replaced> {
        let current = self.read(key, bytes_max)?;
        if current.as_ref().map(Value::version).as_deref() != expected {
            return Ok(Replaced::NotAny);
        }
        let number = current.map_or(0, |value| value.number) + 1;
        let dir = self.root.join(key);
        let unfinished = self.write_unfinished(&bytes)?;
        let result = self.link(&unfinished, &dir, number);
        let _ = fs::remove_file(&unfinished);
        if !result? {
            return Ok(Replaced::NotAny);
        }
        let others = numbers(&dir)?;
        if others.iter().any(|other| *other > number) {
            // The value that was read had been replaced twice when its next number was taken.
            remove(&value_path(&dir, number))?;
            return Ok(Replaced::NotAny);
        }
        for older in others.into_iter().filter(|other| *other < number) {
            remove(&value_path(&dir, older))?;
        }
        Ok(Replaced::By(version(number, &bytes)))
    }

    pub(super) fn remove(&self, key: &str) -> io::Result<()> {
        self.check_root()?;
        let dir = self.root.join(key);
        let mut found = numbers(&dir)?;
        if found.is_empty() {
            return Ok(());
        }
        // The value last: what it replaced must not come to light again.
        found.sort_unstable();
        for number in found {
            remove(&value_path(&dir, number))?;
        }
        File::open(&dir)?.sync_all()?;
        // Other keys may be in it, or a new value by now.
        let _ = fs::remove_dir(&dir);
        Ok(())
    }

    pub(super) fn keys(&self, prefix: &str) -> io::Result<Vec<String>> {
        self.check_root()?;
        let mut keys = Vec::new();
        let mut unseen = vec![prefix.trim_end_matches('/').to_owned()];
        while let Some(key) = unseen.pop() {
            let names = names(&self.root.join(&key))?;
            if names.iter().any(|name| number(name).is_some()) && key.len() > prefix.len() {
                keys.push(key.clone());
            }
            let names = names.into_iter().filter(|name| !name.starts_with([VALUE, '.']));
            unseen.extend(names.map(|name| format!("{key}/{name}")));
        }
        Ok(keys)
    }

    /// Leaves a text that differs from all before it.
    pub(super) fn notify(&self) -> io::Result<()> {
        let text = format!("{:032x}\n", fastrand::u128(..));
        let unfinished = self.write_unfinished(text.as_bytes())?;
        fs::rename(&unfinished, self.root.join(NOTICE)).inspect_err(|_| {
            let _ = fs::remove_file(&unfinished);
        })
    }

    pub(super) fn notice(&self) -> io::Result<Vec<u8>> {
        self.check_root()?;
        match read(&self.root.join(NOTICE), 64) {
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            text => text,
        }
    }

    /// Makes `unfinished` the value with this number, unless another VM has one already.
    fn link(&self, unfinished: &Path, dir: &Path, number: u64) -> io::Result<bool> {
        let path = value_path(dir, number);
        for _ in 0..ATTEMPTS {
            self.create_dir(dir)?;
            match fs::hard_link(unfinished, &path) {
                // The key was deleted, and its directory with it.
                Err(error) if is_gone(&error) => {}
                // NFS says so too if the answer to the first try was lost; the file knows its names.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Ok(fs::metadata(unfinished)?.nlink() > 1);
                }
                done => {
                    done?;
                    File::open(dir)?.sync_all()?;
                    return Ok(true);
                }
            }
        }
        Err(io::Error::other("its directory is removed again and again"))
    }

    /// On disk before it has a name that anybody reads.
    fn write_unfinished(&self, bytes: &[u8]) -> io::Result<PathBuf> {
        self.check_root()?;
        let dir = self.root.join(UNFINISHED);
        self.create_dir(&dir)?;
        self.swept.call_once(|| self.sweep(&dir));
        let path = dir.join(format!("{:032x}", fastrand::u128(..)));
        let write = || {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        Ok(path)
    }

    /// Removes what killed processes left.
    fn sweep(&self, dir: &Path) {
        for name in names(dir).unwrap_or_default() {
            let path = dir.join(name);
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            let age = |modified| SystemTime::now().duration_since(modified).unwrap_or_default();
            if self.is_private || modified.is_ok_and(|modified| age(modified) > ABANDONED_AFTER) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// With all above it, up to the root.
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let make = |dir: &Path, recursive| DirBuilder::new().recursive(recursive).mode(0o700).create(dir);
        match make(dir, false) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) if is_gone(&error) => {}
            made => {
                made?;
                return sync_parent(dir);
            }
        }
        match dir.parent() {
            Some(parent) if dir != self.root => {
                self.create_dir(parent)?;
                self.create_dir(dir)
            }
            _ => make(dir, true),
        }
    }

    fn check_root(&self) -> io::Result<()> {
        // Where it is ours alone it is made when it is needed.
        if self.is_private || self.root.is_dir() {
            return Ok(());
        }
        let message = format!("there is no directory {}: is its file system mounted?", self.root.display());
        Err(io::Error::new(io::ErrorKind::NotFound, message))
    }
}

fn version(number: u64, bytes: &[u8]) -> String {
    format!("{number}-{}", &blake3::hash(bytes).to_hex()[..16])
}

fn value_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{VALUE}{number}"))
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix(VALUE)?.parse().ok()
}

fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    Ok(names(dir)?.iter().filter_map(|name| number(name)).collect())
}

/// None, if there is no such directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::NotADirectory => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(io::Result::transpose).collect()
}

fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        let message = format!("{} is larger than {bytes_max} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if is_gone(&error) => Ok(()),
        removed => removed,
    }
}

/// NFS has its own word for a file that another VM removed while it was open.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
