//! The real binary in front of a socket that its user may not use.
//!
//! Alone in its file: root may use every socket, so the binary is copied to where nobody can run it, and a
//! test that forks meanwhile would inherit the copy open for writing, which makes it "busy".

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

const NOBODY: u32 = 65_534;

#[test]
fn a_socket_without_rights_is_exit_8() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let binary = folder.path().join("agentctl");
    std::fs::copy(env!("CARGO_BIN_EXE_agentctl"), &binary).unwrap();
    let socket = folder.path().join("control.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o000)).unwrap();

    let mut command = Command::new(&binary);
    command.arg("--control").arg(&socket).arg("status").env_remove("GITHUB_ACTIONS");
    if std::fs::metadata(&socket).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(8), 0), "{stderr}");
    assert!(stderr.contains("you may not use the agent's control socket"), "{stderr}");
    assert!(stderr.contains("hint:  run it with `sudo`, or join"), "{stderr}");
}
