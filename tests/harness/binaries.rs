//! Where the two binaries are; builds them once per test process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

pub(crate) fn binary(name: &str) -> PathBuf {
    BINARIES.join(name)
}

/// `PORTCULLIS_BIN_DIR` names a folder with binaries that are ready; without it they are built.
static BINARIES: LazyLock<PathBuf> = LazyLock::new(|| match std::env::var_os("PORTCULLIS_BIN_DIR") {
    Some(dir) => {
        let dir = workspace_root().join(dir);
        for name in ["portcullis", "agentctl"] {
            assert!(dir.join(name).is_file(), "PORTCULLIS_BIN_DIR: there is no {name} in {}", dir.display());
        }
        dir
    }
    None => build(),
});

fn build() -> PathBuf {
    // A test runs from <target>/<profile>/deps; what it tests belongs beside it, in the same profile.
    let test = std::env::current_exe().expect("a running test knows its own path");
    let dir = test.ancestors().nth(2).expect("<profile>/deps/<test>").to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "portcullis", "-p", "agentctl", "--bins", "--target-dir"]);
    cargo.arg(dir.parent().expect("<target>/<profile>")).current_dir(workspace_root());
    if dir.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs, for it runs this test");
    assert!(status.success(), "the binaries under test do not build: see above");
    dir
}

/// A copy that any user may run: the build directory may lie in a home directory that is closed to others.
pub fn binary_for_everybody(name: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(name);
    std::fs::copy(binary(name), &copy).expect("the temp directory can be written");
    copy
}

/// The folder of both binaries.
pub fn binaries_dir() -> &'static Path {
    &BINARIES
}
