//! What is at rest is sealed: AES-256-GCM under the store key, bound to the key's name in the store.
//!
//! `magic | key id | nonce | ciphertext and tag`. The key id tells another key from damage. Nonces are random: it would take
//! billions of values under one key for two to meet.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;

use crate::adapters::state_dir;
use crate::config::KeySource;
use crate::config::secret_file::{self, SecretFileError};

/// Of a VM that was given no key; in the state directory.
const FILE: &str = "store.key";
const KEY_BYTES: usize = 32;
/// The format, and its version.
const MAGIC: &[u8; 4] = b"PCS1";
const ID_BYTES: usize = 8;
const HEAD: usize = MAGIC.len() + ID_BYTES + NONCE_LEN;
const MAKE_ONE: &str = "`openssl rand -hex 32` makes one";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error(
        "it was sealed under another store key than this VM's; give this VM the key that it was sealed under (the same on every VM: `key_file` in [store], or the systemd credential `portcullis-store-key`; alone on its VM: store.key in the state directory). If that key is lost, remove `account` and `certificates` from the store and from `certs` in the state directory: a new account and new certificates are ordered then"
    )]
    OtherKey,
    #[error(
        "its bytes were changed, or belong to another key of the store; restore it, or remove it to have it made anew"
    )]
    Damaged,
    #[error(
        "it is no sealed value of this version of Portcullis; start the newer one, or remove it to have it made anew"
    )]
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreKeyError {
    #[error(transparent)]
    File(#[from] SecretFileError),
    #[error("the store key in {path} is not 64 hexadecimal digits: {MAKE_ONE}")]
    NotAKey { path: PathBuf },
    #[error("cannot make the store key {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("the system gives no random bytes")]
    Random,
}

/// What values are sealed with, and opened.
pub struct StoreKey {
    key: LessSafeKey,
    id: [u8; ID_BYTES],
}

impl StoreKey {
    /// Whether it was made just now comes too. Blocks.
    pub fn load(source: &KeySource) -> Result<(Self, bool), StoreKeyError> {
        let (path, text) = match source {
            KeySource::File(path) => (path.clone(), secret_file::read(path)?),
            KeySource::Credential(path) => (path.clone(), secret_file::read_credential(path)?),
            KeySource::OwnOf(state_dir) => return Self::load_or_make(&state_dir.join(FILE)),
        };
        Ok((Self::parse(&path, &text)?, false))
    }

    fn load_or_make(path: &Path) -> Result<(Self, bool), StoreKeyError> {
        match secret_file::read(path) {
            Err(SecretFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            text => return Ok((Self::parse(path, &text?)?, false)),
        }
        let mut bytes = [0; KEY_BYTES];
        rand::fill(&mut bytes).map_err(|_| StoreKeyError::Random)?;
        let text = format!("{}\n", to_hex(&bytes));
        state_dir::create(path, text.as_bytes())
            .map_err(|source| StoreKeyError::Make { path: path.to_owned(), source })?;
        Ok((Self::new(&bytes), true))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, StoreKeyError> {
        from_hex(text)
            .map(|bytes| Self::new(&bytes))
            .ok_or_else(|| StoreKeyError::NotAKey { path: path.to_owned() })
    }

    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("AES-256 takes 32 bytes");
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&blake3::derive_key("portcullis 2026 store key id", bytes)[..ID_BYTES]);
        Self { key: LessSafeKey::new(key), id }
    }

    /// `name` has to be given again to open it.
    pub fn seal(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, StoreKeyError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| StoreKeyError::Random)?;
        let mut sealed = bytes.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound_to(name), &mut sealed)
            .map_err(|_| StoreKeyError::Random)?;
        let mut whole = Vec::with_capacity(HEAD + sealed.len());
        for part in [&MAGIC[..], &self.id, &nonce, &sealed] {
            whole.extend_from_slice(part);
        }
        Ok(whole)
    }

    pub fn open(&self, name: &str, whole: &[u8]) -> Result<Vec<u8>, SealError> {
        let sealed = whole.strip_prefix(MAGIC).ok_or(SealError::Unknown)?;
        let (id, sealed) = sealed.split_at_checked(ID_BYTES).ok_or(SealError::Damaged)?;
        if id != self.id {
            return Err(SealError::OtherKey);
        }
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
        let mut bytes = sealed.to_vec();
        let length =
            self.key.open_in_place(nonce, bound_to(name), &mut bytes).map_err(|_| SealError::Damaged)?.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}

fn bound_to(name: &str) -> Aad<Vec<u8>> {
    Aad::from([MAGIC, name.as_bytes()].concat())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; KEY_BYTES]> {
    let mut bytes = [0; KEY_BYTES];
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_and_name_alone() {
        let (key, other) = (StoreKey::new(&[1; 32]), StoreKey::new(&[2; 32]));
        let sealed = key.seal("certificates/shop.test", b"BEGIN PRIVATE KEY").unwrap();
        assert_eq!(key.open("certificates/shop.test", &sealed).unwrap(), b"BEGIN PRIVATE KEY");
        assert_eq!(key.open("certificates/blog.test", &sealed), Err(SealError::Damaged));
        assert_eq!(other.open("certificates/shop.test", &sealed), Err(SealError::OtherKey));
        assert!(!sealed.windows(7).any(|part| part == b"PRIVATE"));
        assert_ne!(key.seal("certificates/shop.test", b"BEGIN PRIVATE KEY").unwrap(), sealed, "a new nonce");
        assert_eq!(key.open("account", &key.seal("account", b"").unwrap()).unwrap(), b"");
    }

    #[test]
    fn no_flipped_or_cut_byte_goes_unseen() {
        let key = StoreKey::new(&[1; 32]);
        let sealed = key.seal("account", b"some text").unwrap();
        for index in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[index] ^= 1 << (index % 8);
            assert!(key.open("account", &flipped).is_err(), "byte {index} flipped");
            assert!(key.open("account", &sealed[..index]).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn a_key_is_made_once_where_nobody_else_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let source = KeySource::OwnOf(dir.path().to_owned());
        let (made, is_new) = StoreKey::load(&source).unwrap();
        let (loaded, is_new_again) = StoreKey::load(&source).unwrap();
        assert_eq!((is_new, is_new_again), (true, false));
        assert_eq!(loaded.open("a", &made.seal("a", b"x").unwrap()).unwrap(), b"x");
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(format!("{loaded:?}"), "StoreKey(…)");
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let good = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        for (text, mode, want) in [
            (good, 0o600, ""),
            (good, 0o644, "chmod 600"),
            (&good[1..], 0o600, "openssl rand -hex 32"),
            (&good.replace('0', "g"), 0o600, "64 hexadecimal digits"),
            ("", 0o600, "64 KiB of text"),
        ] {
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match StoreKey::load(&KeySource::File(path.clone())) {
                Ok(_) => assert_eq!(want, ""),
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        !want.is_empty() && error.contains(want) && !error.contains(&good[..8]),
                        "{error}"
                    );
                }
            }
        }
        fs::write(&path, good).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        StoreKey::load(&KeySource::Credential(path)).unwrap();
    }
}
