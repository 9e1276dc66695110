//! How much the machine allows: the defaults of the limits are sized from it at start.

use std::path::{Path, PathBuf};

use super::Limits;

const MIB: u64 = 1024 * 1024;
/// Descriptors that connections never get: listeners and their spares, epoll, the control socket and its
/// clients, the state file, the logs, probes.
const DESCRIPTORS_KEPT: u64 = 64;
/// What an idle connection over TLS may cost, rounded up; half of the memory may go into them.
const CONNECTION_BYTES: u64 = 32 * 1024;
/// A handshake costs about this much until it is over, and processor time that no handshake gives back.
const HANDSHAKES_PER_WORKER: usize = 256;

/// What the process may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Open files, `RLIMIT_NOFILE`.
    pub(super) descriptors: u64,
    /// Bytes: of the control group if that is limited, else of the machine.
    pub(super) memory: u64,
}

impl Machine {
    pub(super) fn this_one() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self { descriptors: descriptors.unwrap_or(1 << 20), memory: memory() }
    }

    /// Half of the descriptors: each request needs one more towards its target.
    pub(super) fn connections_max(&self) -> usize {
        to_usize(self.descriptors.saturating_sub(DESCRIPTORS_KEPT) / 2).max(16)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections_max().min(to_usize(self.memory / 2 / CONNECTION_BYTES)).max(16)
    }

    /// A quarter of all: one client alone cannot shut the others out, and a company behind one address can
    /// still come.
    pub(super) fn connections_per_client(connections: usize) -> usize {
        (connections / 4).max(16)
    }

    pub(super) fn handshakes(connections: usize, workers: usize) -> usize {
        (HANDSHAKES_PER_WORKER * workers).min(connections)
    }

    pub(super) fn buffered_bytes(&self) -> u64 {
        (self.memory / 8).max(32 * MIB)
    }

    /// Of all buffered bodies together.
    pub(super) fn buffer_memory_bytes(&self) -> u64 {
        (self.memory / 8).max(32 * MIB)
    }

    /// Of the descriptors: few bodies are so long that they need a file.
    pub(super) fn buffer_files(&self) -> u64 {
        (self.descriptors / 8).max(16)
    }

    /// Whether limits written by hand fit this machine; what does not is lowered, and said.
    pub(super) fn fit(&self, limits: &mut Limits) {
        let fits = self.connections_max();
        if limits.connections > fits {
            tracing::warn!(
                wanted = limits.connections,
                descriptors = self.descriptors,
                "limits.connections is lowered to {fits}: each needs two descriptors, raise LimitNOFILE"
            );
            limits.connections = fits;
        }
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// A quarter of what is free where buffered bodies go.
pub(super) fn buffer_disk_bytes(directory: &Path) -> u64 {
    // The directory is made later.
    let stat = directory.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    let free = stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    (free / 4).max(64 * MIB)
}

fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let limited = group.and_then(|text| group_memory(Path::new("/sys/fs/cgroup"), &text));
    limited.map_or(machine, |limit| limit.min(machine))
}

/// The lowest `memory.max` or `memory.high` of the control group (version 2) and those around it.
fn group_memory(root: &Path, proc_self_cgroup: &str) -> Option<u64> {
    let group = proc_self_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group: PathBuf = root.join(group);
    let within = group.ancestors().take_while(|dir| dir.starts_with(root));
    let read = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    within.flat_map(|dir| [read(dir.join("memory.max")), read(dir.join("memory.high"))]).flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let gib = 1024 * MIB;
        for (descriptors, memory, connections, buffered) in [
            (131_072, 8 * gib, 65_504, gib),
            (131_072, 384 * MIB, 6_144, 48 * MIB),
            (1_024, 8 * gib, 480, gib),
            (20_000, 128 * MIB, 2_048, 32 * MIB),
            (64, gib, 16, 128 * MIB),
            (u64::MAX, gib, 16_384, 128 * MIB),
        ] {
            let machine = Machine { descriptors, memory };
            assert_eq!(
                (machine.connections(), machine.buffered_bytes()),
                (connections, buffered),
                "{machine:?}"
            );
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("system.slice/portcullis.service");
        std::fs::create_dir_all(&inner).unwrap();
        let text = "4:memory:/elsewhere\n0::/system.slice/portcullis.service\n";
        assert_eq!(group_memory(root.path(), text), None, "no limit");
        std::fs::write(inner.join("memory.max"), "536870912\n").unwrap();
        std::fs::write(inner.join("memory.high"), "max\n").unwrap();
        assert_eq!(group_memory(root.path(), text), Some(512 * MIB));
        std::fs::write(inner.join("memory.high"), "402653184\n").unwrap();
        assert_eq!(group_memory(root.path(), text), Some(384 * MIB));
        std::fs::write(root.path().join("system.slice/memory.max"), "1048576\n").unwrap();
        assert_eq!(group_memory(root.path(), text), Some(MIB));
        assert_eq!(group_memory(root.path(), "4:memory:/elsewhere\n"), None, "version 1");
    }
}
