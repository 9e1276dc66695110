//! Error pages on disk: the operator's directory, and our copy of what was read from it.
//!
//! The copy is there because deploy tools delete the directory of a release that is gone, and a restart must still find
//! the pages of the one that serves. Everything here blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use model::name::ServiceName;
use model::page::{Pages, TemplateError};
use serde::{Deserialize, Serialize};

use super::state_dir;

/// A page is for reading; all of them stay in memory.
const PAGE_BYTES_MAX: u64 = 512 * 1024;
pub(super) const DIRECTORY: &str = "pages";
/// The one that serves, the one to go back to, and one of a deploy that was refused.
const COPIES_MAX: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error("cannot read the error pages in {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the error page {path} is larger than {PAGE_BYTES_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("the error page {path} is not UTF-8")]
    NotText { path: PathBuf },
    #[error("the error page {path} cannot be used")]
    Template { path: PathBuf, source: TemplateError },
    #[error("there is no error page in {path}: name them like `503.html`, `404.html` or `5xx.html`")]
    Empty { path: PathBuf },
    #[error("cannot keep a copy of the error pages in {path}")]
    Keep { path: PathBuf, source: io::Error },
}

/// What was read, as text, by file name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageTexts {
    directory: PathBuf,
    texts: BTreeMap<String, String>,
}

impl PageTexts {
    /// All pages of a directory; other files in it are left alone.
    pub fn read(directory: &Path) -> Result<Self, PageError> {
        let failed = |source| PageError::Read { path: directory.to_owned(), source };
        let mut texts = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(name) = entry.file_name().to_str().filter(|name| Pages::is_page(name)) {
                texts.insert(name.to_owned(), read_page(&entry.path())?);
            }
        }
        if texts.is_empty() {
            return Err(PageError::Empty { path: directory.to_owned() });
        }
        Ok(Self { directory: directory.to_owned(), texts })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn parse(&self) -> Result<Pages, PageError> {
        let mut pages = Pages::default();
        for (name, text) in &self.texts {
            let failed = |source| PageError::Template { path: self.directory.join(name), source };
            pages.add(name, text).map_err(failed)?;
        }
        Ok(pages)
    }

    /// Keeps a copy for `service`, beside those of directories that it had before: a deploy may yet be refused or taken
    /// back.
    pub fn keep(&self, state_dir: &Path, service: &ServiceName) -> Result<(), PageError> {
        let path = copy_of(state_dir, service, &self.directory);
        let failed = |source| PageError::Keep { path: path.clone(), source };
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        if fs::read(&path).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        fs::create_dir_all(state_dir.join(DIRECTORY)).map_err(failed)?;
        state_dir::overwrite(&path, &text).map_err(failed)?;
        let mut copies = copies(state_dir, service);
        copies
            .sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).and_then(|kept| kept.modified()).ok()));
        copies.into_iter().filter(|copy| *copy != path).skip(COPIES_MAX - 1).for_each(|copy| remove(&copy));
        Ok(())
    }

    /// The copy for `service`, if it was made of `directory`.
    pub fn kept(state_dir: &Path, service: &ServiceName, directory: &Path) -> Option<Self> {
        let bytes = fs::read(copy_of(state_dir, service, directory)).ok()?;
        serde_json::from_slice(&bytes).ok().filter(|kept: &Self| kept.directory == directory)
    }
}

/// Forgets the copies for a service that is gone.
pub fn forget(state_dir: &Path, service: &ServiceName) {
    copies(state_dir, service).iter().for_each(|copy| remove(copy));
}

fn remove(copy: &Path) {
    // What stays on a broken disk does no harm.
    let _ = fs::remove_file(copy);
}

/// `@` is in no name of a service.
fn copy_of(state_dir: &Path, service: &ServiceName, directory: &Path) -> PathBuf {
    let digest = blake3::hash(directory.as_os_str().as_encoded_bytes()).to_hex();
    state_dir.join(DIRECTORY).join(format!("{service}@{}.json", &digest[..16]))
}

fn copies(state_dir: &Path, service: &ServiceName) -> Vec<PathBuf> {
    let prefix = format!("{service}@");
    let entries = fs::read_dir(state_dir.join(DIRECTORY)).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

fn read_page(path: &Path) -> Result<String, PageError> {
    let failed = |source| PageError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // A pipe of this name would keep us waiting for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    let file = fs::File::open(path).map_err(failed)?;
    file.take(PAGE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PAGE_BYTES_MAX {
        return Err(PageError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| PageError::NotText { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (pages, state) = (dir.path().join("v1"), dir.path().join("state"));
        let shop: ServiceName = "shop".parse().unwrap();
        fs::create_dir(&pages).unwrap();
        fs::create_dir(&state).unwrap();
        let said = |result: Result<PageTexts, PageError>| {
            let error = result.and_then(|texts| texts.parse()).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        assert!(said(PageTexts::read(&pages)).contains("there is no error page"));
        assert!(said(PageTexts::read(&dir.path().join("none"))).contains("cannot read"));
        fs::write(pages.join("notes.txt"), "x").unwrap();
        for (text, want) in [
            (&b"<p>{{ .Mesage }}</p>"[..], "503.html cannot be used: line 1"),
            (b"\xff", "503.html is not UTF-8"),
            (&vec![b'x'; 600_000], "503.html is larger than 524288 bytes"),
        ] {
            fs::write(pages.join("503.html"), text).unwrap();
            let said = said(PageTexts::read(&pages));
            assert!(said.contains(want), "{said}");
        }
        fs::write(pages.join("503.html"), "<p>{{ .Message }}</p>").unwrap();
        let texts = PageTexts::read(&pages).unwrap();
        assert!(texts.parse().unwrap().get(503).is_some());
        texts.keep(&state, &shop).unwrap();
        texts.keep(&state, &shop).unwrap();
        for other in ["v2", "v3", "v4"] {
            let texts = PageTexts { directory: dir.path().join(other), ..texts.clone() };
            texts.keep(&state, &shop).unwrap();
            assert_eq!(PageTexts::kept(&state, &shop, &texts.directory).as_ref(), Some(&texts));
        }
        assert_eq!(copies(&state, &shop).len(), COPIES_MAX);
        texts.keep(&state, &shop).unwrap();
        fs::remove_dir_all(&pages).unwrap();
        assert_eq!(PageTexts::kept(&state, &shop, &pages), Some(texts));
        assert_eq!(PageTexts::kept(&state, &shop, dir.path()), None, "of another directory");
        forget(&state, &shop);
        assert_eq!(PageTexts::kept(&state, &shop, &pages), None);
    }
}
