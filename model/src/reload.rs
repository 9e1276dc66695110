//! When files that have changed are taken: once they are whole and hold still, and what is wrong with them is said once.
//!
//! Files of one purpose are seldom replaced in one step: a certificate is there before its key, and a file is half written
//! for a moment. What was read before serves on meanwhile.

use std::time::Duration;

/// While files change, the next look comes after this.
pub const SETTLE: Duration = Duration::from_millis(200);

/// How long files may be wrong before anybody is told: whoever writes them may not be done.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What one look at the files found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// What is in use.
    Same,
    /// Something else. `content` tells contents apart; `flaw` is why they cannot be used.
    Other { content: u64, flaw: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do until the next ordinary look.
    Rest,
    /// The same again after `SETTLE`.
    LookAgain,
    /// Use what was found.
    Take,
    /// What was found is of no use; say so.
    Report(String),
    /// What was reported is over: the files hold again what is in use.
    Recovered,
}

/// What is known of files that differ from what is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    pending: Option<Pending>,
    reported: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pending {
    content: u64,
    /// Since when the process runs, at the first look that found something else than what is in use.
    since: Duration,
}

impl Watched {
    /// `now` is any clock that never goes back.
    pub fn step(&mut self, look: Look, now: Duration) -> Verdict {
        let Look::Other { content, flaw } = look else {
            self.pending = None;
            return if self.reported.take().is_some() { Verdict::Recovered } else { Verdict::Rest };
        };
        let held_still = self.pending.as_ref().is_some_and(|pending| pending.content == content);
        let since = self.pending.as_ref().map_or(now, |pending| pending.since);
        self.pending = Some(Pending { content, since });
        match flaw {
            _ if !held_still => Verdict::LookAgain,
            None => {
                *self = Self::default();
                Verdict::Take
            }
            Some(flaw) if self.reported.as_ref() == Some(&flaw) => Verdict::Rest,
            Some(_) if now.saturating_sub(since) < PATIENCE => Verdict::LookAgain,
            Some(flaw) => {
                self.reported = Some(flaw.clone());
                Verdict::Report(flaw)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(content: u64) -> Look {
        Look::Other { content, flaw: None }
    }

    fn bad(content: u64, flaw: &str) -> Look {
        Look::Other { content, flaw: Some(flaw.to_owned()) }
    }

    #[test]
    fn files_are_taken_when_they_are_whole_and_hold_still() {
        use Verdict::{LookAgain, Recovered, Rest, Take};
        let report = |flaw: &str| Verdict::Report(flaw.to_owned());
        // Looks at a second, and what comes of each.
        for (label, looks) in [
            ("nothing changes", vec![(0, Look::Same, Rest), (10, Look::Same, Rest)]),
            ("renewed", vec![(0, good(1), LookAgain), (1, good(1), Take), (2, Look::Same, Rest)]),
            (
                "written slowly",
                vec![
                    (0, good(1), LookAgain),
                    (1, good(2), LookAgain),
                    (2, good(3), LookAgain),
                    (3, good(3), Take),
                ],
            ),
            (
                "the key comes late",
                vec![
                    (0, bad(1, "mismatch"), LookAgain),
                    (1, bad(1, "mismatch"), LookAgain),
                    (3, good(2), LookAgain),
                    (4, good(2), Take),
                ],
            ),
            (
                "the key never comes",
                vec![
                    (0, bad(1, "mismatch"), LookAgain),
                    (5, bad(1, "mismatch"), report("mismatch")),
                    (15, bad(1, "mismatch"), Rest),
                    (25, bad(1, "mismatch"), Rest),
                    (35, good(2), LookAgain),
                    (36, good(2), Take),
                    (37, Look::Same, Rest),
                ],
            ),
            (
                "wrong in another way",
                vec![
                    (0, bad(1, "mismatch"), LookAgain),
                    (5, bad(1, "mismatch"), report("mismatch")),
                    (15, bad(2, "no PEM"), LookAgain),
                    (16, bad(2, "no PEM"), report("no PEM")),
                    (26, bad(3, "no PEM"), LookAgain),
                    (27, bad(3, "no PEM"), Rest),
                ],
            ),
            (
                "put back",
                vec![
                    (0, bad(1, "no PEM"), LookAgain),
                    (5, bad(1, "no PEM"), report("no PEM")),
                    (9, Look::Same, Recovered),
                    (19, Look::Same, Rest),
                ],
            ),
            (
                "valid from later on",
                vec![
                    (0, bad(1, "early"), LookAgain),
                    (5, bad(1, "early"), report("early")),
                    (15, good(1), Take),
                ],
            ),
        ] {
            let mut watched = Watched::default();
            for (second, look, want) in looks {
                let verdict = watched.step(look.clone(), Duration::from_secs(second));
                assert_eq!(verdict, want, "{label}, second {second}: {look:?}");
            }
        }
    }
}
