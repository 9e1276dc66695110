//! Files with a secret in them: read if they are ours alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path such as `/dev/zero` must not fill the memory.
const BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("cannot read {path}; the daemon reads it as its own user")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} can be read by others than its owner (mode {mode:04o}), and holds a secret: `chmod 600 {path}`"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("{path} is no regular file of 1 byte to 64 KiB of text")]
    NotAText { path: PathBuf },
}

/// The text without the white space around it. Nobody but the owner may have access. Blocks.
pub fn read(path: &Path) -> Result<String, SecretFileError> {
    read_if(path, |mode| mode & 0o077 == 0)
}

/// The same for a file that systemd made for us, whose mode is systemd's affair. Blocks.
pub fn read_credential(path: &Path) -> Result<String, SecretFileError> {
    read_if(path, |_| true)
}

fn read_if(path: &Path, may_have: impl FnOnce(u32) -> bool) -> Result<String, SecretFileError> {
    let path = path.to_owned();
    let failed = |source| SecretFileError::Read { path: path.clone(), source };
    // Looked at once it is open, so that it is the file that is read.
    let file = File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretFileError::NotAText { path });
    }
    let mode = metadata.mode() & 0o7777;
    if !may_have(mode) {
        return Err(SecretFileError::Open { path, mode });
    }
    let mut text = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    let is_too_long = text.len() as u64 > BYTES_MAX;
    match String::from_utf8(text).as_deref().map(str::trim) {
        Ok(text) if !text.is_empty() && !is_too_long => Ok(text.to_owned()),
        _ => Err(SecretFileError::NotAText { path }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_files_of_ours_alone_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        for (text, mode, want) in [
            ("hunter2\n", 0o600, Ok("hunter2")),
            ("hunter2", 0o400, Ok("hunter2")),
            ("hunter2", 0o640, Err("(mode 0640), and holds a secret: `chmod 600 ")),
            ("hunter2", 0o604, Err("can be read by others")),
            ("  \n", 0o600, Err("64 KiB of text")),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match (read(&path), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{mode:o}: {error}"),
                (got, want) => panic!("{mode:o}: {got:?} instead of {want:?}"),
            }
            fs::remove_file(&path).unwrap();
        }
        assert!(matches!(read(&path), Err(SecretFileError::Read { .. })));
        assert!(matches!(read(Path::new("/dev/zero")), Err(SecretFileError::NotAText { .. })));
    }
}
