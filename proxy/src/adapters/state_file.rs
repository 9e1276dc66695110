//! The state file: what survives a restart, written whole and read back with its backup at hand.
//!
//! Its JSON lives in `document`, how files are replaced in `state_dir`. When to write is decided by the
//! registry, which acknowledges a change only after `save`. Everything here blocks.

mod document;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::name::ServiceName;
use model::service::{Declared, Policy, Service};

pub use document::DocumentError;

use super::state_dir;

const FILE: &str = "state.json";
const BACKUP: &str = "state.json.bak";

/// Everything that operators decided, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Grows by one with every accepted change.
    pub generation: u64,
    pub services: BTreeMap<ServiceName, Service>,
    /// Those that have no release yet.
    pub declared: BTreeMap<ServiceName, Declared>,
}

impl State {
    /// Every service's, whether it has a release or not.
    pub fn policies(&self) -> impl Iterator<Item = (&ServiceName, &Policy)> {
        let deployed = self.services.iter().map(|(name, service)| (name, &service.policy));
        deployed.chain(self.declared.iter().map(|(name, declared)| (name, &declared.policy)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    #[error("cannot read state file {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write state file {path}; look at its disk's free space and permissions")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot put the damaged state file {path} aside")]
    PutAside { path: PathBuf, source: io::Error },
    #[error(
        "state file {path} has version {found}, but this build reads at most {known}; start the newer build, or move the file away to begin with no services"
    )]
    TooNew { path: PathBuf, found: u32, known: u32 },
    #[error(
        "neither {path} nor its backup is a state file; restore one of them, or move both away to begin with no services"
    )]
    Damaged { path: PathBuf, source: DocumentError },
}

/// What a start found.
#[derive(Debug)]
pub struct Loaded {
    pub state: State,
    /// The state file was missing or damaged and the backup was used, which may lack the last change.
    pub recovered: Option<Recovery>,
}

#[derive(Debug)]
pub struct Recovery {
    pub cause: Option<DocumentError>,
    /// Where the damaged file is kept.
    pub put_aside: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
    backup: PathBuf,
}

impl StateFile {
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(FILE), backup: dir.join(BACKUP) }
    }

    pub fn save(&self, state: &State) -> Result<(), StateFileError> {
        let text = document::print(state);
        state_dir::replace(&self.path, &self.backup, text.as_bytes())
            .map_err(|source| StateFileError::Write { path: self.path.clone(), source })
    }

    /// No file and no backup is the empty state of a first start.
    pub fn load(&self) -> Result<Loaded, StateFileError> {
        let damage = match self.read(&self.path)? {
            Some(Ok(state)) => return Ok(Loaded { state, recovered: None }),
            Some(Err(damage)) => Some(damage),
            None => None,
        };
        match (damage, self.read(&self.backup)?) {
            (None, None) => Ok(Loaded { state: State::default(), recovered: None }),
            (cause, Some(Ok(mut state))) => {
                // The lost change had the next number and may have been told; it is not given twice.
                state.generation = state.generation.saturating_add(1);
                let put_aside = cause.is_some().then(|| self.put_aside()).transpose()?;
                Ok(Loaded { state, recovered: Some(Recovery { cause, put_aside }) })
            }
            (Some(source), _) | (None, Some(Err(source))) => {
                Err(StateFileError::Damaged { path: self.path.clone(), source })
            }
        }
    }

    /// `None`: there is no such file.
    fn read(&self, path: &Path) -> Result<Option<Result<State, DocumentError>>, StateFileError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateFileError::Read { path: path.to_owned(), source }),
        };
        match document::parse(&bytes) {
            Err(DocumentError::TooNew { found, known }) => {
                Err(StateFileError::TooNew { path: path.to_owned(), found, known })
            }
            parsed => Ok(Some(parsed)),
        }
    }

    fn put_aside(&self) -> Result<PathBuf, StateFileError> {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let aside = self.path.with_file_name(format!("{FILE}.damaged-{}", since_1970.as_millis()));
        std::fs::rename(&self.path, &aside)
            .map_err(|source| StateFileError::PutAside { path: self.path.clone(), source })?;
        Ok(aside)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use model::service::{Policy, Release};

    use super::*;

    fn state(generation: u64) -> State {
        let release = Release {
            id: "r1".parse().unwrap(),
            targets: vec!["127.0.0.1:3000".parse().unwrap()],
            created_ms: generation,
            readers: Vec::new(),
        };
        let name: ServiceName = "shop".parse().unwrap();
        let service = Service::new(name.clone(), Policy::default(), release);
        State { generation, services: BTreeMap::from([(name, service)]), ..State::default() }
    }

    #[test]
    fn a_first_start_is_empty_and_what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        assert_eq!(file.load().unwrap().state, State::default());
        file.save(&state(1)).unwrap();
        assert_eq!(file.load().unwrap().state, state(1));
        assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_its_backup_used() {
        for damage in [&b""[..], b"{", b"\0\0\0\0", b"[]", b"{\"version\":1}"] {
            let dir = tempfile::tempdir().unwrap();
            let file = StateFile::in_dir(dir.path());
            file.save(&state(1)).unwrap();
            file.save(&state(2)).unwrap();
            // A new inode, as the backup is a second name of the old one only until the next save.
            fs::write(&file.path, damage).unwrap();
            let loaded = file.load().unwrap();
            let backup = State { generation: 2, ..state(1) };
            assert_eq!(loaded.state, backup, "{damage:?}");
            let recovery = loaded.recovered.unwrap();
            assert_eq!(fs::read(recovery.put_aside.unwrap()).unwrap(), damage);

            // Until the next save, the backup still answers.
            let again = file.load().unwrap();
            assert_eq!(again.state, backup);
            assert!(again.recovered.unwrap().cause.is_none());
        }
    }

    #[test]
    fn nothing_that_parses_is_an_error_and_so_is_the_future() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        fs::write(&file.path, "{").unwrap();
        assert!(matches!(file.load(), Err(StateFileError::Damaged { .. })));
        fs::write(&file.backup, "}").unwrap();
        assert!(matches!(file.load(), Err(StateFileError::Damaged { .. })));
        assert!(file.path.exists(), "nothing is put aside when the daemon refuses to start");

        fs::write(&file.path, r#"{"version":2,"shape":"unknown"}"#).unwrap();
        let refused = file.load().unwrap_err();
        assert!(matches!(refused, StateFileError::TooNew { found: 2, known: 1, .. }), "{refused}");
    }

    #[test]
    fn no_truncated_or_flipped_text_panics_or_reads_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        file.save(&state(1)).unwrap();
        let good = fs::read(&file.path).unwrap();
        fs::write(&file.backup, &good).unwrap();
        for index in 0..good.len() {
            let mut flipped = good.clone();
            flipped[index] ^= 1 << (index % 8);
            for damaged in [&good[..index], &flipped] {
                if let Ok(parsed) = document::parse(damaged) {
                    assert_eq!(parsed.services.len(), 1, "{}", String::from_utf8_lossy(damaged));
                }
            }
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::in_dir(dir.path());
        file.save(&state(1)).unwrap();
        // Root writes everywhere, so the obstacle is a directory in the place of the unfinished file.
        let unfinished = format!("{FILE}.tmp-{}", std::process::id());
        fs::create_dir(dir.path().join(unfinished)).unwrap();
        assert!(matches!(file.save(&state(2)), Err(StateFileError::Write { .. })));
        assert_eq!(file.load().unwrap().state, state(1));
    }
}
