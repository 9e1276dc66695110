//! What proxies write about the client that they speak for: one hop's address, the fields of RFC 7239, and fields
//! of a CDN's own. Whose word is taken is decided by the daemon (`data_plane::forwarded`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::policy_patch::is_token;

/// The address of one hop: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`.
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(text.trim_ascii()).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse().ok().map(|socket: SocketAddr| socket.ip());
    let address = text.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

/// What one proxy wrote into `Forwarded` (RFC 7239 §4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Element<'f> {
    /// Whom it speaks for: an address, `unknown`, or a name of its own making.
    pub node: Option<&'f str>,
    pub proto: Option<&'f str>,
    pub host: Option<&'f str>,
}

impl Element<'_> {
    pub fn address(&self) -> Option<IpAddr> {
        parse_address(self.node?.as_bytes())
    }
}

/// The elements of one `Forwarded` field, from left to right; `None` if it does not follow the grammar.
///
/// A quotation mark may be open where a proxy has added its word to what its client sent, so a field counts as a
/// whole or not at all. Escapes within quotes count as malformed: no address, scheme or host needs one.
pub fn parse_forwarded(field: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut rest = str::from_utf8(field).ok()?.trim_ascii_start();
    let mut elements = vec![Element::default()];
    loop {
        // An empty element, such as behind a last comma, says nothing, and so does an empty pair.
        if !rest.is_empty() && !rest.starts_with([',', ';']) {
            let (name, value, behind) = parse_pair(rest)?;
            let element = elements.last_mut()?;
            let place = match name {
                name if name.eq_ignore_ascii_case("for") => Some(&mut element.node),
                name if name.eq_ignore_ascii_case("proto") => Some(&mut element.proto),
                name if name.eq_ignore_ascii_case("host") => Some(&mut element.host),
                _ => None,
            };
            if let Some(place) = place
                && place.replace(value).is_some()
            {
                return None;
            }
            rest = behind;
        }
        let Some(separator) = rest.bytes().next() else { return Some(elements) };
        match separator {
            b',' => elements.push(Element::default()),
            b';' => {}
            _ => return None,
        }
        rest = rest[1..].trim_ascii_start();
    }
}

/// `name=value` or `name="value"`, and what is behind it.
fn parse_pair(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('=')?;
    if !is_token(name) {
        return None;
    }
    let (value, behind) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => rest.split_at(rest.find([',', ';', ' ', '\t']).unwrap_or(rest.len())),
    };
    // Addresses of version 6 come without quotes too, against the letter.
    let is_sane = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b));
    is_sane.then(|| (name, value, behind.trim_ascii_start()))
}

/// The name, in lower case, of a request field in which a proxy names the client, such as `cf-connecting-ip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIpHeader(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClientIpHeader {
    #[error("`{0}` is not a field's name: write one such as `CF-Connecting-IP`")]
    Name(String),
    #[error("`{0}` holds a chain of addresses, which is followed anyway: leave this setting out")]
    Chain(String),
    #[error("`{0}` means something else in HTTP: write a field such as `CF-Connecting-IP`")]
    Taken(String),
}

/// Chains, and what holds a port that cannot be told from an address of version 6; its proxy writes a chain as well.
const CHAINS: [&str; 3] = ["forwarded", "x-forwarded-for", "cloudfront-viewer-address"];
const TAKEN: [&str; 17] = [
    "accept",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "keep-alive",
    "origin",
    "proxy",
    "referer",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

impl ClientIpHeader {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a Rack app takes `name`, in lower case, for this field: dashes and underscores are one there.
    pub fn is_spelled(&self, name: &str) -> bool {
        let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-') || (a == b'-' && b == b'_');
        self.0.len() == name.len() && name.bytes().zip(self.0.bytes()).all(same)
    }
}

impl FromStr for ClientIpHeader {
    type Err = InvalidClientIpHeader;

    fn from_str(text: &str) -> Result<Self, InvalidClientIpHeader> {
        let name = text.to_ascii_lowercase();
        let is_taken = || {
            let families = ["x-forwarded-", "sec-websocket-"];
            TAKEN.contains(&name.as_str()) || families.iter().any(|family| name.starts_with(family))
        };
        if !is_token(text) {
            Err(InvalidClientIpHeader::Name(text.to_owned()))
        } else if CHAINS.contains(&name.as_str()) {
            Err(InvalidClientIpHeader::Chain(text.to_owned()))
        } else if is_taken() {
            Err(InvalidClientIpHeader::Taken(text.to_owned()))
        } else {
            Ok(Self(name))
        }
    }
}

impl fmt::Display for ClientIpHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("192.0.2.1", Some("192.0.2.1")),
            (" \t192.0.2.1 ", Some("192.0.2.1")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:4711", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("[::ffff:192.0.2.1]:1", Some("192.0.2.1")),
            ("", None),
            ("unknown", None),
            ("_hidden", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:99999", None),
            ("192.0.2.01", None),
            ("192.0.2", None),
            ("3221225985", None),
            ("0xc0.0.2.1", None),
            ("192.0.2.1 evil", None),
            ("[192.0.2.1]", None),
            ("[2001:db8::1]evil", None),
            ("[2001:db8::1", None),
            ("fe80::1%eth0", None),
            ("192.0.2.1\0", None),
        ] {
            let want = want.map(|text| text.parse().unwrap());
            assert_eq!(parse_address(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn forwarded_fields() {
        let one = |node, proto, host| Element { node, proto, host };
        let node = |node| one(Some(node), None, None);
        for (text, want) in [
            ("for=192.0.2.1", Some(vec![node("192.0.2.1")])),
            (
                "For=\"[2001:db8::1]:4711\";proto=https ; HOST=shop.test",
                Some(vec![one(Some("[2001:db8::1]:4711"), Some("https"), Some("shop.test"))]),
            ),
            ("for=192.0.2.1, for=10.0.0.1;by=_x", Some(vec![node("192.0.2.1"), node("10.0.0.1")])),
            ("for=unknown,for=_hidden", Some(vec![node("unknown"), node("_hidden")])),
            ("for=2001:db8::1", Some(vec![node("2001:db8::1")])),
            (
                "proto=http,,",
                Some(vec![one(None, Some("http"), None), Element::default(), Element::default()]),
            ),
            ("for=\"a, b;c\"", None),
            ("", Some(vec![Element::default()])),
            ("for=\"192.0.2.1", None),
            ("for=\"192.0.2.1, for=10.0.0.1", None),
            ("for=6.6.6.6;x=\", for=\"[2001:db8::1]:80\"", None),
            ("for=\"192.0.2.1\"evil", None),
            ("for=\"192\\.0.2.1\"", None),
            ("for=192.0.2.1;for=6.6.6.6", None),
            ("for", None),
            ("for=", None),
            ("for =192.0.2.1", None),
            ("for= 192.0.2.1", None),
            ("=192.0.2.1", None),
            ("for=192.0.2.1 for=6.6.6.6", None),
        ] {
            assert_eq!(parse_forwarded(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn client_ip_headers() {
        for (text, want) in
            [("CF-Connecting-IP", "cf-connecting-ip"), ("X-Real-IP", "x-real-ip"), ("ip", "ip")]
        {
            assert_eq!(text.parse::<ClientIpHeader>().unwrap().as_str(), want);
        }
        for (bad, wants) in [
            ("", "not a field's name"),
            ("a b", "not a field's name"),
            ("X-Forwarded-For", "chain"),
            ("CloudFront-Viewer-Address", "chain"),
            ("Host", "something else"),
            ("X-Forwarded-Proto", "something else"),
            ("Sec-WebSocket-Key", "something else"),
        ] {
            let error = bad.parse::<ClientIpHeader>().unwrap_err().to_string();
            assert!(error.contains(wants), "{bad}: {error}");
        }
        let header: ClientIpHeader = "CF-Connecting-IP".parse().unwrap();
        for (name, is) in [("cf-connecting-ip", true), ("cf_connecting_ip", true), ("cf-connecting_ip", true)]
        {
            assert_eq!(header.is_spelled(name), is, "{name}");
        }
        assert!(!header.is_spelled("cf-connecting-ipv6"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "[for=\";, :.0-9\\[\\]\\\\a-f]{0,60}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = parse_address(bytes);
                let _ = parse_forwarded(bytes).map(|all| all.iter().map(Element::address).count());
            }
            let _ = text.parse::<ClientIpHeader>();
        }

        #[test]
        fn what_a_client_sends_cannot_change_what_is_behind_it(client in "[for=\";, \\\\:.\\[\\]0-9]{0,40}", last in any::<[u8; 4]>()) {
            // Whatever stands in front: the last proxy's word is read as it is, or the field is not read at all.
            let last = IpAddr::from(last);
            let field = format!("{client}, for=\"{last}\";proto=http");
            if let Some(elements) = parse_forwarded(field.as_bytes()) {
                let element = elements.last().unwrap();
                prop_assert_eq!((element.address(), element.proto), (Some(last), Some("http")), "{}", field);
            }
        }

        #[test]
        fn addresses_are_read_as_they_are_printed(bits in any::<u128>(), short in any::<[u8; 4]>(), port in any::<u16>()) {
            for address in [IpAddr::from(std::net::Ipv6Addr::from_bits(bits)), IpAddr::from(short)] {
                let socket = SocketAddr::new(address, port);
                for text in [address.to_string(), socket.to_string()] {
                    prop_assert_eq!(parse_address(text.as_bytes()), Some(address.to_canonical()), "{}", text);
                }
            }
        }
    }
}
