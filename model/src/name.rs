//! Names, parsed once and valid from then on: hosts, path prefixes, services, releases.
//!
//! What a name *refers to* lives elsewhere (`route`, `service`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A host name or IP literal: lower case, no trailing dot, no port (RFC 9110 §4.2.3, RFC 1123 §2.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name: write letters, digits, `-` and `.` only, such as `shop.example.com`")]
pub struct InvalidHost(pub String);

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if is_host_name(&name) { Ok(Self(name.into())) } else { Err(InvalidHost(text.to_owned())) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` (already lower case, without a trailing dot) is a DNS name or an IP literal.
///
/// `_` is allowed inside labels: it is common in internal names, and no resolver minds.
pub fn is_host_name(name: &str) -> bool {
    if let Some(v6) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !name.is_empty() && name.len() <= 253 && name.split('.').all(is_label)
}

fn is_ip_literal(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.starts_with('[') || text.parse::<IpAddr>().is_ok()
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// What a service answers for: one name, or every name one label below a domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    Exact(HostName),
    /// `*.example.com`: exactly one label in front, so neither `example.com` nor `a.b.example.com`.
    Wildcard(HostName),
}

impl HostPattern {
    /// The name that a probe or a certificate can use: the exact name, or `www` under the wildcard.
    pub fn sample(&self) -> HostName {
        match self {
            Self::Exact(name) => name.clone(),
            Self::Wildcard(domain) => HostName(format!("www.{domain}").into()),
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = |_| InvalidHost(text.to_owned());
        match text.strip_prefix("*.") {
            // Names have labels below them, addresses have none.
            Some(address) if is_ip_literal(address) => Err(InvalidHost(text.to_owned())),
            Some(domain) => domain.parse().map(Self::Wildcard).map_err(invalid),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Wildcard(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// A path prefix on segment borders: `/` or `/admin`, never with a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a path prefix: write a path such as `/` or `/admin`, without `?`, `#` or blanks")]
pub struct InvalidPathPrefix(pub String);

impl PathPrefix {
    pub fn root() -> Self {
        Self("/".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.as_str() == "/"
    }

    /// Whether `path` is the prefix itself or lies below it.
    pub fn covers(&self, path: &str) -> bool {
        self.is_root()
            || path.strip_prefix(self.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for PathPrefix {
    type Err = InvalidPathPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPathPrefix> {
        let sane = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'\\' | b'"' | b'<' | b'>');
        let inner = text.trim_matches('/');
        if !text.bytes().all(sane) || text.is_empty() || inner.contains("//") || text.len() > 1024 {
            return Err(InvalidPathPrefix(text.to_owned()));
        }
        Ok(Self(format!("/{inner}").into()))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What operators deploy to: 1 to 64 of `a-z A-Z 0-9 - _ .`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a service name: write up to 64 letters, digits, `-`, `_` or `.`, such as `shop-web`")]
pub struct InvalidServiceName(pub String);

impl ServiceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(text: &str) -> Result<Self, InvalidServiceName> {
        if is_identifier(text, 64) { Ok(Self(text.into())) } else { Err(InvalidServiceName(text.to_owned())) }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One release of a service: the label that the deploy gave it (git sha, image digest), else `r1`, `r2`, …
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReleaseId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a release: write up to 128 letters, digits, `-`, `_`, `.`, `:` or `+`, such as a git sha"
)]
pub struct InvalidReleaseId(pub String);

impl ReleaseId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the `number`th release of a service, for deploys that bring no label.
    pub fn numbered(number: u64) -> Self {
        Self(format!("r{number}").into())
    }
}

impl FromStr for ReleaseId {
    type Err = InvalidReleaseId;

    fn from_str(text: &str) -> Result<Self, InvalidReleaseId> {
        if is_identifier(&text.replace([':', '+'], "-"), 128) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidReleaseId(text.to_owned()))
        }
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_identifier(text: &str, length_max: usize) -> bool {
    text.len() <= length_max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Where a target listens, as the operator wrote it. Looking a name up is not this type's business.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetAddress {
    /// `127.0.0.1:3000`, `[::1]:3000`
    Ip(IpAddr, u16),
    /// `app.internal:3000`
    Name(HostName, u16),
    /// `unix:/run/app.sock`
    Unix(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    #[error("`{0}` names no port: write `host:port`, such as `{0}:3000`")]
    NoPort(String),
    #[error(
        "`{0}` is not a target: write `host:port`, `[v6]:port` or `unix:/path.sock`, such as `127.0.0.1:3000`"
    )]
    Malformed(String),
    #[error(
        "`{0}` is a URL: write only `host:port`; the connection to the target is plain HTTP on this machine"
    )]
    Url(String),
}

impl FromStr for TargetAddress {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let malformed = || InvalidTarget::Malformed(text.to_owned());
        if text.contains("://") {
            return Err(InvalidTarget::Url(text.to_owned()));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            // sockaddr_un holds 108 bytes with its final NUL.
            let fits =
                path.starts_with('/') && path.len() < 108 && !path.bytes().any(|b| b.is_ascii_control());
            return if fits { Ok(Self::Unix(path.into())) } else { Err(malformed()) };
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !host.is_empty() && !port.ends_with(']') => {
                (host, port)
            }
            _ if text.parse::<HostName>().is_ok() => return Err(InvalidTarget::NoPort(text.to_owned())),
            _ => return Err(malformed()),
        };
        let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(malformed)?;
        if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return v6.parse().map(|ip| Self::Ip(IpAddr::V6(ip), port)).map_err(|_| malformed());
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Ip(IpAddr::V4(ip), port));
        }
        host.parse().map(|name| Self::Name(name, port)).map_err(|_| malformed())
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
            Self::Ip(ip, port) => write!(f, "{ip}:{port}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, want) in [
            ("shop.test", Some("shop.test")),
            ("SHOP.Test.", Some("shop.test")),
            ("a_b.test", Some("a_b.test")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("[::1]", Some("[::1]")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("-a.test", None),
            ("a b", None),
            ("user@shop.test", None),
            ("shop.test:80", None),
            ("shop,test", None),
        ] {
            assert_eq!(text.parse::<HostName>().ok().as_ref().map(HostName::as_str), want, "{text:?}");
        }
    }

    #[test]
    fn host_patterns_print_what_they_parsed() {
        for text in ["shop.test", "*.shop.test"] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), text);
        }
        for text in ["*", "*.", "a.*.test", "*.*.test", "*.[::1]", "*.1.2.3.4", "*.1.2.3.4."] {
            assert!(text.parse::<HostPattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn path_prefixes() {
        for (text, want) in [
            ("/", Some("/")),
            ("api", Some("/api")),
            ("/api/", Some("/api")),
            ("/a/b", Some("/a/b")),
            ("", None),
            ("/a//b", None),
            ("/a?b", None),
            ("/a b", None),
        ] {
            assert_eq!(text.parse::<PathPrefix>().ok().as_ref().map(PathPrefix::as_str), want, "{text:?}");
        }
        let api: PathPrefix = "/api".parse().unwrap();
        for (path, covered) in
            [("/api", true), ("/api/", true), ("/api/x", true), ("/apiary", false), ("/", false)]
        {
            assert_eq!(api.covers(path), covered, "{path:?}");
        }
    }

    #[test]
    fn targets() {
        for text in ["127.0.0.1:3000", "[::1]:3000", "app.internal:80", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<TargetAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "localhost",
            ":3000",
            "a:0",
            "a:99999",
            "a:b",
            "::1:3000",
            "unix:relative",
            "http://a:1",
            "[::1]",
            "a b:1",
        ] {
            assert!(text.parse::<TargetAddress>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_and_parses_again(text in "\\PC{0,40}") {
            if let Ok(host) = text.parse::<HostPattern>() {
                proptest::prop_assert_eq!(host.to_string().parse::<HostPattern>().unwrap(), host);
            }
            if let Ok(target) = text.parse::<TargetAddress>() {
                proptest::prop_assert_eq!(target.to_string().parse::<TargetAddress>().unwrap(), target);
            }
            if let Ok(prefix) = text.parse::<PathPrefix>() {
                proptest::prop_assert_eq!(prefix.to_string().parse::<PathPrefix>().unwrap(), prefix);
            }
            let _ = text.parse::<ServiceName>();
            let _ = text.parse::<ReleaseId>();
        }
    }
}
