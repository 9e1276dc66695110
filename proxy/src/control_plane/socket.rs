//! The control socket in the file system: it appears when it answers, never wider than 0660, and never in
//! place of a living one. It belongs to the group that may read; what else a caller may do is `access`'s.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as Probe;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// `sockaddr_un` holds 108 bytes with its final NUL.
const PATH_BYTES_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "the control socket {path} answers already: another daemon runs; stop that one, or choose another path with --control"
    )]
    InUse { path: PathBuf },
    #[error("{path} is there and is no socket; move it away, or choose another path with --control")]
    NotASocket { path: PathBuf },
    #[error("the path of the control socket {path} is too long: {} bytes at most", PATH_BYTES_MAX - DETOUR_BYTES)]
    TooLong { path: PathBuf },
    #[error("cannot make the control socket {path}; its directory must be writable for the daemon")]
    Bind { path: PathBuf, source: io::Error },
}

/// `.portcullis-PID/s` instead of the last component, at the longest.
const DETOUR_BYTES: usize = 24;

/// A bound socket; its file goes with it, unless somebody else's has taken its place.
pub struct Bound {
    pub listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds in a directory of our own and moves the socket into place once its rights are set. A few
/// system calls on a local file system: short enough not to need a thread.
///
/// `group` gets the socket where the daemon may give it away.
pub fn bind(path: &Path, group: Option<u32>) -> Result<Bound, SocketError> {
    let failed = |source| SocketError::Bind { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.as_os_str().len().max(parent.as_os_str().len() + DETOUR_BYTES) > PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path: path.to_owned() });
    }
    if !parent.exists() {
        DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(failed)?;
        give_to(parent, group);
    }
    refuse_living(path)?;
    let detour = parent.join(format!(".portcullis-{}", std::process::id()));
    let _ = fs::remove_dir_all(&detour);
    DirBuilder::new().mode(0o700).create(&detour).map_err(failed)?;
    let result = bind_at(&detour.join("s"), path, group);
    let _ = fs::remove_dir_all(&detour);
    result.map_err(failed)
}

fn bind_at(detour: &Path, path: &Path, group: Option<u32>) -> io::Result<Bound> {
    let listener = UnixListener::bind(detour)?;
    fs::set_permissions(detour, Permissions::from_mode(0o660))?;
    give_to(detour, group);
    let file = fs::symlink_metadata(detour)?;
    fs::rename(detour, path)?;
    Ok(Bound { listener, path: path.to_owned(), inode: (file.dev(), file.ino()) })
}

/// Fails where the daemon is neither root nor a member of the group; then its own group has the socket.
fn give_to(path: &Path, group: Option<u32>) {
    let Some(group) = group.filter(|group| !fs::metadata(path).is_ok_and(|file| file.gid() == *group)) else {
        return;
    };
    if let Err(error) = chown(path, None, Some(group)) {
        let path = path.display();
        tracing::warn!(
            %path, group, %error,
            "cannot give the control socket to the group that may read: only root, the daemon's user and \
             members of the daemon's own group can connect; make that the daemon's group (`Group=` of its \
             unit), or the daemon a member of it"
        );
    }
}

/// A socket that nobody answers on was left by a killed daemon, and may be replaced.
fn refuse_living(path: &Path) -> Result<(), SocketError> {
    // Not followed: a symbolic link is nothing that we made.
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Bind { path: path.to_owned(), source }),
    };
    if !file.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match Probe::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_appears_with_its_rights_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("control.sock");
        let bound = bind(&path, None).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap()) & !0o750), (0o660, 0));
        assert!(matches!(bind(&path, None), Err(SocketError::InUse { .. })));
        assert!(Probe::connect(&path).is_ok(), "the one that lives is left alone");
        drop(bound);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&path, None).unwrap();
        assert!(Probe::connect(&path).is_ok());
        // Another one has taken the place: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x").unwrap();
        drop(bound);
        assert!(matches!(bind(&path, None), Err(SocketError::NotASocket { .. })));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(matches!(bind(&path, None), Err(SocketError::NotASocket { .. })));
        let long = dir.path().join("a".repeat(100));
        assert!(matches!(bind(&long, None), Err(SocketError::TooLong { .. })));
    }
}
