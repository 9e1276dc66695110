//! `[store]`: where certificates live, what they are sealed with, and how long anybody waits for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::redis::{self, RawRedis, RedisConfig};
use super::{ConfigError, duration, secret_file};

/// In the directory of the credentials that systemd hands to the unit.
const CREDENTIAL: &str = "portcullis-store-key";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawStore {
    dir: Option<PathBuf>,
    redis: Option<RawRedis>,
    key_file: Option<PathBuf>,
    poll: Option<String>,
    timeout: Option<String>,
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// What all VMs share; `None`: this VM's own directory is the store.
    pub shared: Option<SharedStore>,
    pub key: KeySource,
    /// When the store is looked at without a notice.
    pub poll: Duration,
    /// Of each call.
    pub timeout: Duration,
}

#[derive(Debug, Clone)]
pub enum SharedStore {
    Dir(PathBuf),
    Redis(RedisConfig),
}

/// Where the store key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    /// systemd's, decrypted for us.
    Credential(PathBuf),
    /// Made at the first start, for a VM that shares nothing.
    OwnOf(PathBuf),
}

/// Where systemd puts what `LoadCredential=` and `LoadCredentialEncrypted=` name.
pub(super) fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

pub(super) fn resolve(
    raw: RawStore,
    state_dir: &Path,
    credentials: Option<PathBuf>,
) -> Result<StoreConfig, ConfigError> {
    let shared = match (raw.dir, raw.redis) {
        (None, None) => None,
        (Some(path), None) => {
            absolute("store.dir", &path)?;
            Some(SharedStore::Dir(path))
        }
        (None, Some(redis)) => Some(SharedStore::Redis(redis::resolve("store.redis", redis)?)),
        (Some(_), Some(_)) => {
            let message = "there is one store: either `dir` or `redis`".to_owned();
            return Err(ConfigError::Value { key: "store", message });
        }
    };
    let credential = credentials.map(|dir| dir.join(CREDENTIAL)).filter(|path| path.exists());
    let key = match (raw.key_file, credential) {
        (Some(path), _) => {
            absolute("store.key_file", &path)?;
            KeySource::File(path)
        }
        (None, Some(path)) => KeySource::Credential(path),
        (None, None) if shared.is_none() => KeySource::OwnOf(state_dir.to_owned()),
        (None, None) => {
            let message = format!(
                "several VMs share it, so each of them needs the same key to seal private keys with: `openssl rand \
                 -hex 32` makes one; name its file (mode 0600) as `key_file` in [store], or give it as the systemd \
                 credential `{CREDENTIAL}`"
            );
            return Err(ConfigError::Value { key: "store", message });
        }
    };
    Ok(StoreConfig {
        shared,
        key,
        poll: duration("store.poll", raw.poll.as_ref(), 60)?,
        timeout: duration("store.timeout", raw.timeout.as_ref(), 5)?,
    })
}

/// A secret that the configuration names by its file.
pub(super) fn secret(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    absolute(key, path)?;
    secret_file::read(path).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        ConfigError::Value { key, message: format!("{error}{cause}") }
    })
}

fn absolute(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(ConfigError::Value { key, message: format!("`{}` is not an absolute path", path.display()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_comes_from_the_file_then_systemd_then_ourselves() {
        let dir = tempfile::tempdir().unwrap();
        let credential = dir.path().join(CREDENTIAL);
        let state_dir = Path::new("/state");
        let key = |text: &str, credentials: Option<&Path>| {
            let raw = toml::from_str(text).unwrap();
            resolve(raw, state_dir, credentials.map(Path::to_owned)).map(|config| config.key)
        };
        let systemd = Some(dir.path());
        assert_eq!(key("", systemd).unwrap(), KeySource::OwnOf(state_dir.into()), "other credentials");
        assert!(key("dir = \"/a\"", systemd).is_err());
        std::fs::write(&credential, "x").unwrap();
        for text in ["", "dir = \"/a\""] {
            assert_eq!(key(text, systemd).unwrap(), KeySource::Credential(credential.clone()));
        }
        assert_eq!(key("key_file = \"/k\"", systemd).unwrap(), KeySource::File("/k".into()));
        assert!(key("key_file = \"k\"", None).is_err());
    }
}
