//! Certificates that operators bring: which of several a name is shown, and which are refused.
//!
//! How files are read is the daemon's affair; when they are taken anew is decided in `reload`.

use crate::name::HostPattern;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// All that a client may look for: DNS names, wildcards and addresses.
    pub names: Vec<HostPattern>,
    pub key: KeyKind,
    /// Unix time in ms, as is `not_after_ms`.
    pub not_before_ms: u64,
    pub not_after_ms: u64,
}

/// In the order in which clients get them: ECDSA costs both sides the least, few clients know Ed25519, all know RSA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    Ecdsa,
    Ed25519,
    Rsa,
}

impl KeyKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ecdsa => "ECDSA",
            Self::Ed25519 => "Ed25519",
            Self::Rsa => "RSA",
        }
    }
}

/// What clients of one name are shown, as places in the list of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    pub first: usize,
    /// An RSA certificate for clients that cannot have the first.
    pub rsa: Option<usize>,
}

/// Why certificates are refused; by their places in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    Expired(usize),
    NotYetValid(usize),
    /// It names none of the hosts.
    Foreign(usize),
    /// No certificate names these.
    Uncovered(Vec<HostPattern>),
}

impl Facts {
    /// How well the certificate names `host`: 0 is best.
    fn rank(&self, host: &HostPattern) -> Option<u8> {
        if self.names.contains(host) {
            return Some(0);
        }
        self.names.iter().any(|name| stands_for(name, host)).then_some(1)
    }

    fn names(&self, host: &HostPattern) -> bool {
        self.rank(host).is_some()
    }

    pub fn has_expired(&self, now_ms: u64) -> bool {
        self.not_after_ms < now_ms
    }

    /// Whether it is time to be worried: two weeks before the end, or a quarter of a short life.
    pub fn expires_soon(&self, now_ms: u64) -> bool {
        let life_ms = self.not_after_ms.saturating_sub(self.not_before_ms);
        now_ms.saturating_add((14 * DAY_MS).min(life_ms / 4)) > self.not_after_ms
    }
}

/// What clients of `host` are shown; `None` as a host is one that nothing is known of. Where no certificate names it,
/// the first one says at least whose it is.
///
/// Among certificates with keys of one kind, an exact name comes before a wildcard, and then the earlier in the list.
pub fn choose(certificates: &[&Facts], host: Option<&HostPattern>) -> Option<Choice> {
    let first = certificates.first()?;
    let host = host.or(first.names.first());
    let best = |is_wanted: fn(KeyKind) -> bool| {
        let ranked = certificates.iter().enumerate().filter(|(_, one)| is_wanted(one.key));
        let ranked = ranked.filter_map(|(index, one)| Some((one.key, one.rank(host?)?, index)));
        ranked.min().map(|(_, _, index)| index)
    };
    let rsa = best(|key| key == KeyKind::Rsa);
    match best(|key| key != KeyKind::Rsa) {
        Some(first) => Some(Choice { first, rsa }),
        None => Some(Choice { first: rsa.unwrap_or(0), rsa: None }),
    }
}

/// The names that have a choice of their own: the hosts (`None` is any), and what a certificate names among those that
/// a host stands for.
pub fn shown_names(certificates: &[&Facts], hosts: &[HostPattern]) -> Vec<Option<HostPattern>> {
    let mut shown: Vec<_> = hosts.iter().cloned().map(Some).collect();
    if hosts.is_empty() {
        shown.push(None);
    }
    let is_meant = |name: &HostPattern| hosts.is_empty() || hosts.iter().any(|host| stands_for(host, name));
    for name in certificates.iter().flat_map(|one| &one.names).filter(|name| is_meant(name)) {
        if !shown.iter().any(|known| known.as_ref() == Some(name)) {
            shown.push(Some(name.clone()));
        }
    }
    shown
}

/// Refuses certificates that would not do for a service of these hosts; the first thing that is wrong.
pub fn check(certificates: &[&Facts], hosts: &[HostPattern], now_ms: u64) -> Result<(), Flaw> {
    for (index, one) in certificates.iter().enumerate() {
        check_dates(one, index, now_ms)?;
    }
    if let Some(index) = certificates.iter().position(|one| is_foreign(one, hosts)) {
        return Err(Flaw::Foreign(index));
    }
    match uncovered(certificates, hosts) {
        _ if certificates.is_empty() => Ok(()),
        uncovered if uncovered.is_empty() => Ok(()),
        uncovered => Err(Flaw::Uncovered(uncovered)),
    }
}

/// Refuses `next` in the place `index` of those in use, where it would be worse than what is there; what is wrong with
/// the others is not its fault. `None`: nothing is in use in that place.
pub fn check_next(
    in_use: &[Option<&Facts>],
    index: usize,
    next: &Facts,
    hosts: &[HostPattern],
    now_ms: u64,
) -> Result<(), Flaw> {
    check_dates(next, index, now_ms)?;
    let current = in_use.get(index).copied().flatten();
    if is_foreign(next, hosts) && current.is_none_or(|current| !is_foreign(current, hosts)) {
        return Err(Flaw::Foreign(index));
    }
    let before: Vec<_> = in_use.iter().copied().flatten().collect();
    let others = in_use.iter().enumerate().filter(|(place, _)| *place != index);
    let after: Vec<_> = others.filter_map(|(_, one)| *one).chain([next]).collect();
    let known = uncovered(&before, hosts);
    let new: Vec<_> = uncovered(&after, hosts).into_iter().filter(|host| !known.contains(host)).collect();
    if new.is_empty() { Ok(()) } else { Err(Flaw::Uncovered(new)) }
}

fn check_dates(one: &Facts, index: usize, now_ms: u64) -> Result<(), Flaw> {
    match one {
        _ if one.has_expired(now_ms) => Err(Flaw::Expired(index)),
        _ if one.not_before_ms > now_ms => Err(Flaw::NotYetValid(index)),
        _ => Ok(()),
    }
}

/// Whether the certificate is for none of the hosts, nor for a name that one of them stands for.
fn is_foreign(one: &Facts, hosts: &[HostPattern]) -> bool {
    let names_one_below = |host: &HostPattern| one.names.iter().any(|name| stands_for(host, name));
    !hosts.is_empty() && !hosts.iter().any(|host| one.names(host) || names_one_below(host))
}

/// The hosts that no certificate names.
pub fn uncovered(certificates: &[&Facts], hosts: &[HostPattern]) -> Vec<HostPattern> {
    hosts.iter().filter(|host| !certificates.iter().any(|one| one.names(host))).cloned().collect()
}

/// Whether `name` is one of those that the wildcard `host` stands for.
fn stands_for(host: &HostPattern, name: &HostPattern) -> bool {
    match (host, name) {
        (HostPattern::Wildcard(domain), HostPattern::Exact(name)) => {
            name.as_str().split_once('.').is_some_and(|(_, parent)| parent == domain.as_str())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1000 * DAY_MS;

    fn hosts(text: &str) -> Vec<HostPattern> {
        text.split_whitespace().map(|host| host.parse().unwrap()).collect()
    }

    fn facts(key: KeyKind, names: &str) -> Facts {
        let (not_before_ms, not_after_ms) = (NOW - DAY_MS, NOW + 89 * DAY_MS);
        Facts { names: hosts(names), key, not_before_ms, not_after_ms }
    }

    fn ecdsa(names: &str) -> Facts {
        facts(KeyKind::Ecdsa, names)
    }

    fn rsa(names: &str) -> Facts {
        facts(KeyKind::Rsa, names)
    }

    fn refs(certificates: &[Facts]) -> Vec<&Facts> {
        certificates.iter().collect()
    }

    #[test]
    fn what_a_name_is_shown() {
        let ed = |names| facts(KeyKind::Ed25519, names);
        for (certificates, host, want) in [
            (vec![ecdsa("a.test")], "a.test", (0, None)),
            (vec![rsa("a.test")], "a.test", (0, None)),
            (vec![ecdsa("a.test"), ecdsa("b.test")], "b.test", (1, None)),
            // Exact before wildcard, whatever the order; then the order.
            (vec![ecdsa("*.a.test"), ecdsa("w.a.test")], "w.a.test", (1, None)),
            (vec![ecdsa("*.a.test"), ecdsa("w.a.test")], "x.a.test", (0, None)),
            (vec![ecdsa("*.a.test"), ecdsa("w.a.test")], "*.a.test", (0, None)),
            (vec![ecdsa("a.test"), ecdsa("a.test")], "a.test", (0, None)),
            // One of each kind.
            (vec![rsa("a.test"), ecdsa("a.test")], "a.test", (1, Some(0))),
            (vec![rsa("*.a.test"), ecdsa("w.a.test")], "w.a.test", (1, Some(0))),
            (vec![rsa("w.a.test"), ecdsa("*.a.test")], "w.a.test", (1, Some(0))),
            (vec![rsa("a.test"), ecdsa("b.test")], "a.test", (0, None)),
            (vec![ed("a.test"), rsa("a.test"), ecdsa("a.test")], "a.test", (2, Some(1))),
            (vec![rsa("a.test"), ed("a.test")], "a.test", (1, Some(0))),
            // A wildcard stands for one label.
            (vec![ecdsa("*.a.test"), ecdsa("b.test")], "x.y.a.test", (0, None)),
            (vec![ecdsa("b.test"), ecdsa("*.a.test")], "a.test", (0, None)),
            // Nothing is known, or nothing fits.
            (vec![ecdsa("a.test"), rsa("a.test")], "", (0, Some(1))),
            (vec![rsa("a.test"), ecdsa("b.test")], "", (0, None)),
            (vec![rsa("a.test"), ecdsa("b.test")], "c.test", (0, None)),
            (vec![ecdsa("[::1] 127.0.0.1")], "127.0.0.1", (0, None)),
        ] {
            let choice = choose(&refs(&certificates), hosts(host).first()).unwrap();
            assert_eq!((choice.first, choice.rsa), want, "{host} of {certificates:?}");
        }
        assert_eq!(choose(&[], None), None);
    }

    #[test]
    fn names_with_a_choice_of_their_own() {
        for (certificates, of, want) in [
            (vec![ecdsa("a.test b.test")], "a.test", "a.test"),
            (vec![ecdsa("*.a.test w.a.test b.test w.x.a.test")], "*.a.test", "*.a.test w.a.test"),
            (
                vec![ecdsa("*.a.test"), rsa("w.a.test"), ecdsa("w.a.test")],
                "*.a.test a.test",
                "*.a.test a.test w.a.test",
            ),
            (vec![ecdsa("*.a.test w.a.test")], "", "any *.a.test w.a.test"),
        ] {
            let text = |name: Option<HostPattern>| name.map_or("any".to_owned(), |name| name.to_string());
            let shown: Vec<_> = shown_names(&refs(&certificates), &hosts(of)).into_iter().map(text).collect();
            assert_eq!(shown.join(" "), want, "{of}");
        }
    }

    #[test]
    fn what_will_not_do() {
        let dated = |from: i64, until: i64| Facts {
            not_before_ms: NOW.saturating_add_signed(from),
            not_after_ms: NOW.saturating_add_signed(until),
            ..ecdsa("a.test")
        };
        for (certificates, of, want) in [
            (vec![], "a.test", Ok(())),
            (vec![ecdsa("a.test")], "a.test", Ok(())),
            (vec![ecdsa("*.a.test")], "w.a.test x.a.test", Ok(())),
            (vec![ecdsa("a.test")], "", Ok(())),
            (vec![ecdsa("a.test"), rsa("b.test")], "b.test a.test", Ok(())),
            // It is there for one of the names that the wildcard stands for.
            (vec![ecdsa("*.a.test"), ecdsa("w.a.test")], "*.a.test", Ok(())),
            (vec![dated(0, 0)], "a.test", Ok(())),
            (vec![dated(-9, -1)], "a.test", Err(Flaw::Expired(0))),
            (vec![dated(1, 9)], "a.test", Err(Flaw::NotYetValid(0))),
            (vec![ecdsa("a.test"), dated(-9, -1)], "", Err(Flaw::Expired(1))),
            (vec![ecdsa("a.test")], "b.test", Err(Flaw::Foreign(0))),
            (vec![ecdsa("")], "b.test", Err(Flaw::Foreign(0))),
            (vec![ecdsa("a.test"), ecdsa("*.a.test")], "a.test", Err(Flaw::Foreign(1))),
            (vec![ecdsa("a.test")], "b.test a.test *.a.test", Err(Flaw::Uncovered(hosts("b.test *.a.test")))),
            (vec![ecdsa("w.a.test")], "*.a.test", Err(Flaw::Uncovered(hosts("*.a.test")))),
        ] {
            assert_eq!(check(&refs(&certificates), &hosts(of), NOW), want, "{of:?} of {certificates:?}");
        }
    }

    #[test]
    fn what_may_take_the_place_of_another() {
        let expired = Facts { not_before_ms: 0, not_after_ms: NOW - 1, ..ecdsa("a.test") };
        let (a, b, both) = (ecdsa("a.test"), ecdsa("b.test"), ecdsa("a.test b.test"));
        for (in_use, index, next, want) in [
            (vec![Some(&a)], 0, &a, Ok(())),
            (vec![None], 0, &a, Ok(())),
            (vec![Some(&a)], 0, &expired, Err(Flaw::Expired(0))),
            (vec![Some(&expired), Some(&b)], 1, &both, Ok(())),
            (vec![Some(&both), Some(&b)], 0, &a, Ok(())),
            (vec![Some(&both)], 0, &a, Err(Flaw::Uncovered(hosts("b.test")))),
            (vec![Some(&a)], 0, &rsa("c.test"), Err(Flaw::Foreign(0))),
            // Nobody who starts with less is kept from it.
            (vec![Some(&a)], 0, &rsa("a.test"), Ok(())),
            (vec![Some(&ecdsa("c.test"))], 0, &rsa("c.test"), Ok(())),
        ] {
            let of = hosts("a.test b.test");
            assert_eq!(check_next(&in_use, index, next, &of, NOW), want, "{in_use:?} {index} {next:?}");
        }
    }

    #[test]
    fn when_to_be_worried() {
        for (life_days, left_days, want) in [
            (90, 15, false),
            (90, 13, true),
            (45, 12, false),
            (45, 11, true),
            (6, 2, false),
            (6, 1, true),
            (90, -1, true),
        ] {
            let not_after_ms = NOW.saturating_add_signed(left_days * DAY_MS as i64);
            let one =
                Facts { not_before_ms: not_after_ms - life_days * DAY_MS, not_after_ms, ..ecdsa("a.test") };
            assert_eq!(one.expires_soon(NOW), want, "{left_days} of {life_days} days");
        }
    }
}
