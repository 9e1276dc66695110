//! The store as a directory: of this VM alone, or of a folder that several VMs mount, such as NFS.
//!
//! A key is a directory, its value the file with the highest number in it. A new value is written beside it, under a name
//! nobody reads, and then linked as the next number: a link is made whole or not at all, and by one VM only, on NFS too.
//! So there is no lock that a dead VM could leave behind, and no moment at which a value is half there.

mod files;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use self::files::{Files, Replaced};
use super::conditional::{BYTES_MAX, Conditional};
use super::lease::Sightings;
use super::{StoreError, Stored, Version};

/// A server of files that hangs takes so many threads and no more.
const THREADS: usize = 4;
/// How often a shared folder is looked at for a notice.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Dir {
    files: Arc<Files>,
    timing: Timing,
    threads: Arc<Semaphore>,
    sightings: Sightings,
}

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Of each call.
    pub deadline: Duration,
    /// After which a watch ends without a notice.
    pub poll: Duration,
}

impl Dir {
    /// A directory of this process alone, made when something is written. Nothing is looked at yet.
    pub fn private(root: &Path, timing: Timing) -> Self {
        Self::new(Files::private(root), timing)
    }

    /// A directory that other VMs use too. It has to exist: where it does not, its file system is not mounted, and what
    /// was written would be on this VM alone.
    pub fn shared(root: &Path, timing: Timing) -> Self {
        Self::new(Files::shared(root), timing)
    }

    fn new(files: Files, timing: Timing) -> Self {
        let threads = Arc::new(Semaphore::new(THREADS));
        Self { files: Arc::new(files), timing, threads, sightings: Sightings::default() }
    }

    pub(super) async fn notify(&self) -> Result<(), StoreError> {
        if self.is_private() {
            return Ok(());
        }
        self.run("leave a notice", Files::notify).await
    }

    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { dir: self, seen: None }
    }

    /// Does `work` on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let working = async {
            let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
            let files = Arc::clone(&self.files);
            // What has begun goes on without us if it takes too long, and keeps its place meanwhile.
            let worked = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work(&files)
            });
            worked.await.map_err(io::Error::other)?
        };
        let deadline = self.timing.deadline;
        match timeout(deadline, working).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(source)) => {
                Err(StoreError::Unavailable { store: self.to_string(), what, source: source.into() })
            }
            Err(_) => Err(StoreError::Slow { store: self.to_string(), what, deadline }),
        }
    }
}

impl Conditional for Dir {
    fn name(&self) -> String {
        self.to_string()
    }

    async fn read(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let name = key.to_owned();
        let read = self.run("read a value", move |files| files.read(&name, BYTES_MAX)).await?;
        Ok(read.map(|value| Stored { version: Version(value.version()), bytes: value.bytes }))
    }

    async fn replace(
        &self,
        key: &str,
        bytes: Vec<u8>,
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let (name, expected) = (key.to_owned(), expected.map(|version| version.0.clone()));
        let replace = move |files: &Files| files.replace(&name, bytes, expected.as_deref(), BYTES_MAX);
        match self.run("write a value", replace).await? {
            Replaced::By(version) => Ok(Version(version)),
            Replaced::NotAny => Err(StoreError::Conflict { key: key.to_owned() }),
        }
    }

    async fn remove(&self, key: &str) -> Result<(), StoreError> {
        let name = key.to_owned();
        self.run("delete a value", move |files| files.remove(&name)).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let prefix = prefix.to_owned();
        self.run("list keys", move |files| files.keys(&prefix)).await
    }

    fn is_private(&self) -> bool {
        self.files.is_private()
    }

    fn sightings(&self) -> &Sightings {
        &self.sightings
    }
}

impl fmt::Display for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store in {}", self.files.root().display())
    }
}

/// Looks for notices now and then.
#[derive(Debug)]
pub struct Watch<'d> {
    dir: &'d Dir,
    /// The notice that was there at the last look; `None` before the first.
    seen: Option<Vec<u8>>,
}

impl Watch<'_> {
    pub(super) async fn changed(&mut self) {
        let until = Instant::now() + self.dir.timing.poll;
        if self.dir.is_private() {
            // Nobody else changes anything.
            if self.seen.replace(Vec::new()).is_some() {
                sleep_until(until).await;
            }
            return;
        }
        loop {
            // An outage is no change, and its end will be one if there was any.
            if let Ok(found) = self.dir.run("look for a notice", Files::notice).await {
                let before = self.seen.replace(found.clone());
                if before.is_none_or(|before| before != found) {
                    return;
                }
            }
            let next = (Instant::now() + LOOK).min(until);
            sleep_until(next).await;
            if next == until {
                return;
            }
        }
    }
}
