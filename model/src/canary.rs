//! Who gets the canary: a visitor's identity, their bucket, and the overrides that come first.
//!
//! Everything here is a function of the fleet secret, the rollout and the request, so that every VM of a
//! fleet agrees without talking. BLAKE3 in its keyed mode is the key derivation, the bucket hash and the
//! cookie's MAC: one primitive with one published analysis, fast on the short inputs at hand.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::weight::Weight;

pub const BUCKETS: u16 = 10_000;

/// A secret shared by all VMs of a fleet; anyone who has it can predict cohorts and forge visitor cookies.
#[derive(Clone)]
pub struct FleetSecret([u8; 32]);

impl FleetSecret {
    /// Any text or bytes; its strength is the operator's business.
    pub fn new(material: &[u8]) -> Self {
        Self(blake3::derive_key("portcullis 2026 fleet secret", material))
    }

    fn derive(&self, purpose: &str, parts: &[&str]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in std::iter::once(&purpose).chain(parts) {
            // Lengths first: ("ab", "c") and ("a", "bc") must differ.
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

impl std::fmt::Debug for FleetSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FleetSecret(…)")
    }
}

/// Where a service finds its visitors' identity, before our own cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisitorSource {
    /// Lower-case name of a request header, such as `x-user-id`.
    pub header: Option<String>,
    /// Name of a cookie that the app sets, such as `user_id`.
    pub cookie: Option<String>,
    /// Whether visitors without identity are given our cookie while a canary runs.
    pub set_cookie: bool,
}

impl Default for VisitorSource {
    fn default() -> Self {
        Self { header: None, cookie: None, set_cookie: true }
    }
}

/// Requests that an operator assigns by hand; they come before hashing and are left out of the analysis.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Lower-case header name and exact value.
    pub headers: Vec<(String, String)>,
    /// Cookie name and exact value.
    pub cookies: Vec<(String, String)>,
    pub networks: Vec<IpNet>,
    /// Exact visitor identities, as the visitor header or cookie spells them.
    pub visitors: Vec<String>,
}

impl Overrides {
    /// Whether a header, a cookie or the client's network is among them. Who the visitor is takes more to tell.
    pub fn names<'r>(
        &self,
        header: impl Fn(&str) -> Option<&'r [u8]>,
        cookie: impl Fn(&str) -> Option<&'r str>,
        client: IpAddr,
    ) -> bool {
        self.headers.iter().any(|(name, value)| header(name) == Some(value.as_bytes()))
            || self.cookies.iter().any(|(name, value)| cookie(name) == Some(value))
            || self.networks.iter().any(|network| network.contains(&client))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cohort {
    Stable,
    Canary,
}

impl Cohort {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// The facts of one request that assignment may use. Borrowed: nothing is copied to decide.
pub struct Visit<'r, H, C> {
    /// The first value of a request header, by lower-case name.
    pub header: H,
    /// The value of a cookie, by name.
    pub cookie: C,
    pub client: IpAddr,
    /// Days since 1970 in UTC; the fingerprint of a visitor without cookie holds for one day.
    pub day: u64,
    pub user_agent: &'r [u8],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    pub cohort: Cohort,
    /// By an override, not by weight.
    pub overridden: bool,
    /// The value of our cookie, to be set on the response.
    pub set_cookie: Option<String>,
}

/// Names of our cookie: over HTTPS with the `__Host-` prefix (RFC 6265bis §4.1.3.2), which plain HTTP forbids.
pub const COOKIE_SECURE: &str = "__Host-portcullis";
pub const COOKIE_PLAIN: &str = "portcullis-visitor";

/// A rollout's keys, derived once when it begins.
#[derive(Clone)]
pub struct Assignment {
    pub weight: Weight,
    pub source: VisitorSource,
    pub overrides: Overrides,
    seed: [u8; 32],
    cookie_key: [u8; 32],
}

impl Assignment {
    pub fn new(
        secret: &FleetSecret,
        service: &str,
        rollout: &str,
        weight: Weight,
        source: VisitorSource,
        overrides: Overrides,
    ) -> Self {
        let seed = secret.derive("bucket", &[service, rollout]);
        // Not bound to a service or rollout: a visitor keeps one cookie for all of them.
        let cookie_key = secret.derive("cookie", &[]);
        Self { weight, source, overrides, seed, cookie_key }
    }

    pub fn assign<'r, H, C>(&self, visit: &Visit<'r, H, C>, secure: bool) -> Assigned
    where
        H: Fn(&str) -> Option<&'r [u8]>,
        C: Fn(&str) -> Option<&'r str>,
    {
        if self.is_overridden(visit) {
            return Assigned { cohort: Cohort::Canary, overridden: true, set_cookie: None };
        }
        let (bucket, set_cookie) = self.bucket_of(visit, secure);
        let cohort = if self.weight.admits(bucket) { Cohort::Canary } else { Cohort::Stable };
        Assigned { cohort, overridden: false, set_cookie }
    }

    /// 0 ..= 9 999 for a visitor identity, evenly spread.
    pub fn bucket(&self, identity: &[u8]) -> u16 {
        let hash = blake3::keyed_hash(&self.seed, identity);
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        // Multiply-shift maps 64 bits to the buckets with a bias below 2^-50.
        ((u128::from(u64::from_le_bytes(head)) * u128::from(BUCKETS)) >> 64) as u16
    }

    fn is_overridden<'r, H, C>(&self, visit: &Visit<'r, H, C>) -> bool
    where
        H: Fn(&str) -> Option<&'r [u8]>,
        C: Fn(&str) -> Option<&'r str>,
    {
        let overrides = &self.overrides;
        overrides.names(&visit.header, &visit.cookie, visit.client)
            || (!overrides.visitors.is_empty()
                && self.named(visit).is_some_and(|id| overrides.visitors.iter().any(|v| v.as_bytes() == id)))
    }

    /// The identity that the app itself gives: the configured header, then the configured cookie.
    fn named<'r, H, C>(&self, visit: &Visit<'r, H, C>) -> Option<&'r [u8]>
    where
        H: Fn(&str) -> Option<&'r [u8]>,
        C: Fn(&str) -> Option<&'r str>,
    {
        let header = self.source.header.as_deref().and_then(|name| (visit.header)(name));
        let cookie =
            || self.source.cookie.as_deref().and_then(|name| (visit.cookie)(name)).map(str::as_bytes);
        header.or_else(cookie).filter(|id| !id.is_empty())
    }

    fn bucket_of<'r, H, C>(&self, visit: &Visit<'r, H, C>, secure: bool) -> (u16, Option<String>)
    where
        H: Fn(&str) -> Option<&'r [u8]>,
        C: Fn(&str) -> Option<&'r str>,
    {
        if let Some(identity) = self.named(visit) {
            return (self.bucket(identity), None);
        }
        let cookie_name = if secure { COOKIE_SECURE } else { COOKIE_PLAIN };
        if let Some(id) = (visit.cookie)(cookie_name).and_then(|value| self.read_cookie(value)) {
            return (self.bucket(&id), None);
        }
        if let Some(credentials) = (visit.header)("authorization") {
            return (self.bucket(credentials), None);
        }
        // A new cookie's id is derived, not random: the first requests of a page run in parallel and
        // without a cookie, and must agree with each other and with the cookie that they bring home.
        let id = self.fingerprint(visit.client, visit.day, visit.user_agent);
        let set_cookie = self.source.set_cookie.then(|| self.write_cookie(&id));
        (self.bucket(&id), set_cookie)
    }

    fn fingerprint(&self, client: IpAddr, day: u64, user_agent: &[u8]) -> [u8; 12] {
        let mut hasher = blake3::Hasher::new_keyed(&self.cookie_key);
        hasher.update(b"id").update(&client_prefix(client)).update(&day.to_le_bytes()).update(user_agent);
        let mut id = [0; 12];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..12]);
        id
    }

    fn mac(&self, id: &[u8]) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_keyed(&self.cookie_key);
        hasher.update(b"mac").update(id);
        let mut mac = [0; 8];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        mac
    }

    /// `1.` + 40 hex digits: version, a 96-bit id, a 64-bit MAC.
    fn write_cookie(&self, id: &[u8; 12]) -> String {
        let mut value = String::with_capacity(42);
        value.push_str("1.");
        for byte in id.iter().chain(&self.mac(id)) {
            value.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            value.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        value
    }

    fn read_cookie(&self, value: &str) -> Option<[u8; 12]> {
        let digits = value.strip_prefix("1.").filter(|digits| digits.len() == 40)?.as_bytes();
        let mut bytes = [0u8; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        let mut id = [0; 12];
        id.copy_from_slice(&bytes[..12]);
        // A timing leak would let someone forge a visitor id, which gains them nothing but a cohort.
        (self.mac(&id) == bytes[12..]).then_some(id)
    }
}

/// /24 of an IPv4 address, /64 of an IPv6 one: what a household or phone keeps for a day.
fn client_prefix(client: IpAddr) -> [u8; 8] {
    let mut prefix = [0; 8];
    match client.to_canonical() {
        IpAddr::V4(v4) => prefix[..3].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => prefix.copy_from_slice(&v6.octets()[..8]),
    }
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(secret: &str, rollout: &str, weight: &str) -> Assignment {
        Assignment::new(
            &FleetSecret::new(secret.as_bytes()),
            "shop",
            rollout,
            weight.parse().unwrap(),
            VisitorSource::default(),
            Overrides::default(),
        )
    }

    type Row = (&'static str, fn(u32) -> String);
    const IDENTITIES: [Row; 3] = [
        ("ids", |n| n.to_string()),
        ("uuids", |n| {
            let h = blake3::hash(&n.to_le_bytes()).to_hex();
            format!("{}-{}-4{}-a{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
        }),
        ("e-mails", |n| format!("customer{n}@example.com")),
    ];

    #[test]
    fn shares_are_within_three_sigma() {
        let people = 10_000;
        for (kind, identity) in IDENTITIES {
            for percent in [1, 5, 25] {
                let assignment = assignment("s3cret", "rollout-1", &format!("{percent}%"));
                let canary = (1..=people)
                    .filter(|n| assignment.weight.admits(assignment.bucket(identity(*n).as_bytes())))
                    .count() as f64;
                let p = f64::from(percent) / 100.0;
                let (mean, sigma) = (f64::from(people) * p, (f64::from(people) * p * (1.0 - p)).sqrt());
                assert!((canary - mean).abs() <= 3.0 * sigma, "{kind} at {percent}%: {canary} of {people}");
            }
        }
    }

    #[test]
    fn raising_the_weight_moves_nobody_back() {
        let assignment = assignment("s3cret", "rollout-1", "0%");
        for n in 1..=10_000 {
            let bucket = assignment.bucket(n.to_string().as_bytes());
            let mut was_canary = false;
            for basis_points in 50..=10_000 {
                let is_canary = Weight::from_basis_points(basis_points).unwrap().admits(bucket);
                assert!(is_canary || !was_canary, "visitor {n} at {basis_points}");
                was_canary = is_canary;
            }
            assert!(was_canary);
        }
    }

    #[test]
    fn rollouts_pick_new_people_and_secrets_differ() {
        let [a, b, c] = [("s", "one"), ("s", "two"), ("t", "one")]
            .map(|(secret, rollout)| assignment(secret, rollout, "10%"));
        let chosen = |x: &Assignment| -> Vec<u32> {
            (0..10_000u32).filter(|n| x.weight.admits(x.bucket(&n.to_le_bytes()))).collect()
        };
        let common = |x: &[u32], y: &[u32]| x.iter().filter(|n| y.contains(n)).count();
        let (a, b, c) = (chosen(&a), chosen(&b), chosen(&c));
        assert!(common(&a, &b) < 150 && common(&a, &c) < 150, "a tenth of a tenth is 100");
    }

    fn assign(
        assignment: &Assignment,
        headers: &[(&str, &'static str)],
        cookies: &[(&str, &'static str)],
        client: &str,
    ) -> Assigned {
        let find = |rows: &[(&str, &'static str)], name: &str| {
            rows.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
        };
        let visit = Visit {
            header: |name: &str| find(headers, name).map(str::as_bytes),
            cookie: |name: &str| find(cookies, name),
            client: client.parse().unwrap(),
            day: 20_000,
            user_agent: b"test",
        };
        assignment.assign(&visit, true)
    }

    #[test]
    fn a_cookie_keeps_its_visitor_where_the_first_request_put_them() {
        let half = assignment("s", "r", "50%");
        for n in 0..=255 {
            let client = format!("10.0.{n}.1");
            let first = assign(&half, &[], &[], &client);
            let value: &'static str = first.set_cookie.clone().unwrap().leak();
            // The cookie decides from now on, wherever the visitor comes from.
            let second = assign(&half, &[], &[(COOKIE_SECURE, value)], "192.0.2.1");
            assert_eq!((second.cohort, second.set_cookie), (first.cohort, None), "{client}");
        }
    }

    #[test]
    fn forged_cookies_are_not_read() {
        let half = assignment("s", "r", "50%");
        let good = assign(&half, &[], &[], "10.0.0.1").set_cookie.unwrap();
        let forged = good.replace(&good[2..4], if &good[2..4] == "00" { "01" } else { "00" });
        for value in [forged.as_str(), "", "1.", "2.abc", &good[..41], &format!("{good}0")] {
            assert_eq!(half.read_cookie(value), None, "{value:?}");
        }
        assert!(half.read_cookie(&good).is_some());
    }

    #[test]
    fn identities_come_in_order() {
        let mut half = assignment("s", "r", "50%");
        half.source =
            VisitorSource { header: Some("x-user".into()), cookie: Some("uid".into()), set_cookie: true };
        let expect = |id: &str| {
            if half.weight.admits(half.bucket(id.as_bytes())) { Cohort::Canary } else { Cohort::Stable }
        };
        let all: &[(&str, &'static str)] = &[("x-user", "7"), ("authorization", "Bearer 9")];
        for (headers, cookies, id) in [
            (all, &[("uid", "8")][..], "7"),
            (&all[1..], &[("uid", "8")][..], "8"),
            (&all[1..], &[][..], "Bearer 9"),
        ] {
            let assigned = assign(&half, headers, cookies, "10.0.0.1");
            assert_eq!((assigned.cohort, assigned.set_cookie), (expect(id), None), "{id}");
        }
    }

    #[test]
    fn overrides_come_before_the_weight() {
        let mut none = assignment("s", "r", "0%");
        none.source.header = Some("x-user".into());
        none.overrides = Overrides {
            headers: vec![("x-canary".into(), "yes".into())],
            cookies: vec![("canary".into(), "1".into())],
            networks: vec!["192.0.2.0/24".parse().unwrap()],
            visitors: vec!["ann@example.com".into()],
        };
        for (headers, cookies, client, canary) in [
            (&[("x-canary", "yes")][..], &[][..], "10.0.0.1", true),
            (&[("x-canary", "no")][..], &[][..], "10.0.0.1", false),
            (&[][..], &[("canary", "1")][..], "10.0.0.1", true),
            (&[][..], &[][..], "192.0.2.9", true),
            (&[("x-user", "ann@example.com")][..], &[][..], "10.0.0.1", true),
            (&[("x-user", "bob@example.com")][..], &[][..], "10.0.0.1", false),
        ] {
            let assigned = assign(&none, headers, cookies, client);
            assert_eq!(assigned.overridden, canary, "{headers:?} {cookies:?} {client}");
            assert_eq!(assigned.cohort == Cohort::Canary, canary);
        }
    }
}
