//! The fleet secret of a VM that was given none: made once, kept in the state directory.

use std::io;
use std::path::PathBuf;

use model::canary::FleetSecret;

use super::state_dir::{self, StateDir};

const FILE: &str = "fleet.key";
const BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum FleetKeyError {
    #[error("cannot read or create the fleet secret {path}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the fleet secret {path} holds {found} bytes instead of {BYTES}; remove it to have a new one made (visitors of a running canary are then picked anew)"
    )]
    Length { path: PathBuf, found: usize },
    #[error("the system gives no random bytes")]
    Random,
}

/// Reads `fleet.key`, or makes it at the first start. Blocks.
pub fn load_or_create(dir: &StateDir) -> Result<FleetSecret, FleetKeyError> {
    let path = dir.path().join(FILE);
    let file = |source| FleetKeyError::File { path: path.clone(), source };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut bytes = vec![0; BYTES];
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            provider.secure_random.fill(&mut bytes).map_err(|_| FleetKeyError::Random)?;
            state_dir::create(&path, &bytes).map_err(file)?;
            bytes
        }
        Err(error) => return Err(file(error)),
    };
    if bytes.len() != BYTES {
        return Err(FleetKeyError::Length { path, found: bytes.len() });
    }
    Ok(FleetSecret::new(&bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_and_only_for_us() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(temp.path()).unwrap();
        let path = temp.path().join(FILE);
        load_or_create(&dir).unwrap();
        let first = std::fs::read(&path).unwrap();
        load_or_create(&dir).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(first, vec![0; BYTES]);

        std::fs::write(&path, "short").unwrap();
        assert!(matches!(load_or_create(&dir), Err(FleetKeyError::Length { found: 5, .. })));
    }
}
