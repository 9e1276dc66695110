//! The limits of the process on buffered bodies, and where they go that do not fit into memory.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ConfigError;
use super::sizing::{self, Machine};

/// Less would not do for a few bodies at a time.
const MEMORY_BYTES_MIN: u64 = 1 << 20;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawBuffers {
    directory: Option<PathBuf>,
    memory_bytes: Option<u64>,
    disk_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferLimits {
    pub directory: PathBuf,
    /// The directory is the operator's wish, and not the place where it is if nobody says anything.
    pub directory_is_named: bool,
    /// Of all bodies together.
    pub memory_bytes: u64,
    /// 0: nothing goes to disk.
    pub disk_bytes: u64,
    /// Each takes a descriptor.
    pub files: u64,
}

pub(super) fn resolve(
    raw: RawBuffers,
    state_dir: &Path,
    machine: &Machine,
) -> Result<BufferLimits, ConfigError> {
    let memory_bytes = raw.memory_bytes.unwrap_or_else(|| machine.buffer_memory_bytes());
    if memory_bytes < MEMORY_BYTES_MIN {
        let message = format!("it must be at least {MEMORY_BYTES_MIN} (1 MiB)");
        return Err(ConfigError::Value { key: "buffers.memory_bytes", message });
    }
    let directory_is_named = raw.directory.is_some();
    let directory = raw.directory.unwrap_or_else(|| state_dir.join("buffers"));
    if directory_is_named && !directory.is_absolute() {
        let message = format!("`{}` is not an absolute path", directory.display());
        return Err(ConfigError::Value { key: "buffers.directory", message });
    }
    Ok(BufferLimits {
        disk_bytes: raw.disk_bytes.unwrap_or_else(|| sizing::buffer_disk_bytes(&directory)),
        directory,
        directory_is_named,
        memory_bytes,
        files: machine.buffer_files(),
    })
}
