//! Who set what a service's policy says: the last `apply`, and what was changed by hand since.
//!
//! Kept small: a change names its settings, and a newer change takes them over.

use crate::declared;

/// Who changed something, when, and by which command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// As the audit log names them.
    pub actor: String,
    /// Unix time in ms.
    pub at_ms: u64,
    /// `apply`, `deploy`, `canary set`, …
    pub by: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The last `apply`; `None`: nobody ever declared the service.
    pub applied: Option<Mark>,
    /// Since then, the newest first; no setting is in two of them, and none is empty.
    pub by_hand: Vec<HandMade>,
}

/// One change by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandMade {
    pub mark: Mark,
    /// Settings of the policy, and things that no file declares (`declared::undeclared`), by name.
    pub settings: Vec<String>,
}

impl Provenance {
    /// `settings` were changed by hand.
    pub fn note(&mut self, mark: Mark, settings: Vec<String>) {
        self.forget(|setting| settings.iter().any(|newer| newer == setting));
        if !settings.is_empty() {
            self.by_hand.insert(0, HandMade { mark, settings });
        }
    }

    /// The whole policy was declared. What no file declares stays a hand's.
    pub fn declare(&mut self, mark: Mark) {
        let declarable = declared::names();
        self.applied = Some(mark);
        self.forget(|setting| declarable.iter().any(|name| name == setting));
    }

    /// Whoever set what `is_over` names is of no interest any more.
    pub fn forget(&mut self, is_over: impl Fn(&str) -> bool) {
        for change in &mut self.by_hand {
            change.settings.retain(|setting| !is_over(setting));
        }
        self.by_hand.retain(|change| !change.settings.is_empty());
    }

    /// Who changed `setting` by hand since the last `apply`, if anybody did.
    pub fn hand_of(&self, setting: &str) -> Option<&Mark> {
        let change = self.by_hand.iter().find(|change| change.settings.iter().any(|one| one == setting));
        change.map(|change| &change.mark)
    }

    /// Whether an `apply` has said all there is to say of the policy.
    pub fn is_declared(&self) -> bool {
        let declarable = declared::names();
        let mut by_hand = self.by_hand.iter().flat_map(|change| &change.settings);
        self.applied.is_some() && !by_hand.any(|setting| declarable.contains(setting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(by: &str) -> Mark {
        Mark { actor: format!("{by}er"), at_ms: 7, by: by.to_owned() }
    }

    fn settings(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// Such as `bake=deploy drain_timeout=deploy`, the newest first.
    fn picture(provenance: &Provenance) -> String {
        let one = |change: &HandMade| {
            change.settings.iter().map(|name| format!("{name}={}", change.mark.by)).collect::<Vec<_>>()
        };
        provenance.by_hand.iter().flat_map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_last_hand_counts_until_the_next_apply() {
        let mut provenance = Provenance::default();
        assert!(!provenance.is_declared(), "nobody declared it");
        for (by, names, want) in [
            ("deploy", &["bake", "tls"][..], "bake=deploy tls=deploy"),
            ("canary start", &["canary"], "canary=canary start bake=deploy tls=deploy"),
            ("redeploy", &["bake"], "bake=redeploy canary=canary start tls=deploy"),
            ("rollback", &[], "bake=redeploy canary=canary start tls=deploy"),
            ("canary set", &["canary"], "canary=canary set bake=redeploy tls=deploy"),
            ("restart", &["tls"], "tls=restart canary=canary set bake=redeploy"),
        ] {
            provenance.note(mark(by), settings(names));
            assert_eq!(picture(&provenance), want, "{by}");
        }
        assert_eq!(provenance.hand_of("tls"), Some(&mark("restart")));
        assert_eq!(provenance.hand_of("hosts"), None);

        provenance.declare(mark("apply"));
        assert_eq!(picture(&provenance), "canary=canary set", "no file can declare it");
        assert_eq!((provenance.hand_of("tls"), provenance.is_declared()), (None, true));
        provenance.note(mark("deploy"), settings(&["bake"]));
        assert!(!provenance.is_declared());
        provenance.forget(|setting| setting == "canary");
        assert_eq!(picture(&provenance), "bake=deploy");
    }
}
