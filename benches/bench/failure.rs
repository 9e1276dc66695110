//! What went wrong, for the person who started the bench. A bench has one reader and one reaction (stop, say
//! it), so one type is enough for all of its parts.

use std::error::Error;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    message: String,
    #[source]
    cause: Option<Box<dyn Error>>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), cause: None }
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// Says what was tried when an error of the system came back.
pub(crate) trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Error + 'static> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure {
            message: format!("could not {}", what()),
            cause: Some(Box::new(error)),
        })
    }
}
