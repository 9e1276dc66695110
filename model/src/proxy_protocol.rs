//! The header by which a balancer that only carries bytes tells for whom it connects: the PROXY protocol,
//! versions 1 and 2 (haproxy.org, `doc/proxy-protocol.txt`).
//!
//! Whose word is taken is not decided here. Nothing is guessed: what the specification does not allow is no header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longer ones are refused. The specification allows 64 KiB; what balancers send has some hundred bytes.
pub const LENGTH_MAX: usize = 4096;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A header, as far as it goes: all of these bytes belong to it, and more will.
    Unfinished,
    Header {
        /// Of the first bytes, so many.
        length: usize,
        /// `None`: the balancer speaks for itself (a health check), or does not know for whom.
        origin: Option<Origin>,
    },
}

/// Both ends of the connection that the balancer accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub client: IpAddr,
    /// The balancer's own, to which the client connected.
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the PROXY header is longer than {LENGTH_MAX} bytes")]
    TooLong,
    #[error("the PROXY header's checksum does not fit")]
    Checksum,
}

const V1_START: &[u8] = b"PROXY ";
/// With its line end.
const V1_LENGTH_MAX: usize = 107;
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The start, version and command, family, length.
const V2_FIXED: usize = V2_START.len() + 4;
/// Type and length of what may follow the addresses.
const TLV_FIXED: usize = 3;
const TLV_CRC32C: u8 = 0x03;

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Result<Parsed, InvalidHeader> {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if begins(V1_START) {
        parse_v1(bytes)
    } else if begins(V2_START) {
        parse_v2(bytes)
    } else {
        Err(InvalidHeader::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, InvalidHeader> {
    let within = &bytes[..bytes.len().min(V1_LENGTH_MAX)];
    let Some(end) = within.iter().position(|b| *b == b'\n') else {
        return if within.len() < V1_LENGTH_MAX {
            Ok(Parsed::Unfinished)
        } else {
            Err(InvalidHeader::Malformed)
        };
    };
    let line = within[..end].strip_suffix(b"\r").and_then(|line| line.strip_prefix(V1_START));
    let line = line.and_then(|line| str::from_utf8(line).ok()).ok_or(InvalidHeader::Malformed)?;
    let origin = match line.split_once(' ').unwrap_or((line, "")) {
        ("TCP4", rest) => Some(v1_addresses::<Ipv4Addr>(rest).ok_or(InvalidHeader::Malformed)?),
        ("TCP6", rest) => Some(v1_addresses::<Ipv6Addr>(rest).ok_or(InvalidHeader::Malformed)?),
        // What follows is to be ignored.
        ("UNKNOWN", _) => None,
        _ => return Err(InvalidHeader::Malformed),
    };
    Ok(Parsed::Header { length: end + 1, origin })
}

/// `SOURCE DESTINATION SOURCE_PORT DESTINATION_PORT`, one blank between them.
fn v1_addresses<A: std::str::FromStr + Into<IpAddr>>(text: &str) -> Option<Origin> {
    let mut words = text.split(' ');
    let mut address = || words.next()?.parse::<A>().ok();
    let (client, _) = (address()?, address()?);
    let mut port = || v1_port(words.next()?);
    let (_, port) = (port()?, port()?);
    words.next().is_none().then(|| Origin { client: client.into().to_canonical(), port })
}

/// As it is printed: without a sign or leading zeros.
fn v1_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, InvalidHeader> {
    let Some(fixed) = bytes.first_chunk::<V2_FIXED>() else { return Ok(Parsed::Unfinished) };
    let [.., version_command, family, high, low] = *fixed;
    let speaks_for_itself = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(InvalidHeader::Malformed),
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LENGTH_MAX {
        return Err(InvalidHeader::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Parsed::Unfinished) };
    let rest = &header[V2_FIXED..];
    let (origin, extras) = match family {
        // Whatever it says of addresses is to be ignored.
        _ if speaks_for_itself => (None, None),
        // Neither an internet family nor a stream: not known for whom.
        0x00 => (None, Some(rest)),
        0x11 => v2_addresses::<4, Ipv4Addr>(rest).ok_or(InvalidHeader::Malformed)?,
        0x21 => v2_addresses::<16, Ipv6Addr>(rest).ok_or(InvalidHeader::Malformed)?,
        0x31 => (None, Some(rest.get(UNIX_ADDRESSES..).ok_or(InvalidHeader::Malformed)?)),
        _ => return Err(InvalidHeader::Malformed),
    };
    if let Some(extras) = extras {
        check_extras(header, header.len() - extras.len())?;
    }
    Ok(Parsed::Header { length, origin })
}

/// Two paths of a unix socket.
const UNIX_ADDRESSES: usize = 2 * 108;

type WithRest<'b> = (Option<Origin>, Option<&'b [u8]>);

/// Source, destination, source port, destination port, and what follows them.
fn v2_addresses<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(bytes: &[u8]) -> Option<WithRest<'_>> {
    let (client, bytes) = bytes.split_first_chunk::<N>()?;
    let (_, bytes) = bytes.split_first_chunk::<N>()?;
    let (_, bytes) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = bytes.split_first_chunk::<2>()?;
    let client = A::from(*client).into().to_canonical();
    Some((Some(Origin { client, port: u16::from_be_bytes(*port) }), Some(rest)))
}

/// Steps over what follows the addresses; a checksum among it has to fit.
fn check_extras(header: &[u8], mut at: usize) -> Result<(), InvalidHeader> {
    while at < header.len() {
        let fixed = header[at..].first_chunk::<TLV_FIXED>().ok_or(InvalidHeader::Malformed)?;
        let value = at + TLV_FIXED;
        let next = value + usize::from(u16::from_be_bytes([fixed[1], fixed[2]]));
        let found = header.get(value..next).ok_or(InvalidHeader::Malformed)?;
        if fixed[0] == TLV_CRC32C {
            let found: [u8; 4] = found.try_into().map_err(|_| InvalidHeader::Malformed)?;
            // It is counted with its own place empty.
            let parts = [&header[..value], &[0; 4], &header[next..]];
            if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(found) {
                return Err(InvalidHeader::Checksum);
            }
        }
        at = next;
    }
    Ok(())
}

/// RFC 9260, appendix A. A header has some hundred bytes, so no table is worth it.
fn crc32c<'b>(bytes: impl Iterator<Item = &'b u8>) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(length: usize, origin: Option<(&str, u16)>) -> Result<Parsed, InvalidHeader> {
        let origin = origin.map(|(client, port)| Origin { client: client.parse().unwrap(), port });
        Ok(Parsed::Header { length, origin })
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_START, &[0x20 | command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];

    #[test]
    fn version_1() {
        use InvalidHeader::{Malformed, Missing};
        let v6 = "PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n";
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        assert_eq!(longest.len(), V1_LENGTH_MAX);
        for (text, want) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\nGET /", header(41, Some(("192.0.2.7", 443)))),
            (v6, header(v6.len(), Some(("2001:db8::7", 443)))),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 0 1\r\n", header(37, Some(("192.0.2.7", 1)))),
            ("PROXY UNKNOWN\r\n", header(15, None)),
            ("PROXY UNKNOWN ffff:: whatever 1\r\nx", header(33, None)),
            (&longest, header(V1_LENGTH_MAX, None)),
            (&longest.replace('\r', "f\r"), Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 \r\n", Err(Malformed)),
            ("PROXY TCP4  192.0.2.7 10.0.0.1 56324 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 056324 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.07 10.0.0.1 1 443\r\n", Err(Malformed)),
            ("PROXY TCP4 2001:db8::7 10.0.0.1 1 443\r\n", Err(Malformed)),
            ("PROXY TCP6 192.0.2.7 10.0.0.1 1 443\r\n", Err(Malformed)),
            ("PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n", Err(Malformed)),
            ("PROXY UNKNOWNS\r\n", Err(Malformed)),
            ("PROXY\tTCP4 192.0.2.7 10.0.0.1 1 443\r\n", Err(Missing)),
            ("proxy TCP4 192.0.2.7 10.0.0.1 1 443\r\n", Err(Missing)),
            ("GET / HTTP/1.1\r\n", Err(Missing)),
            ("PRI * HTTP/2.0\r\n", Err(Missing)),
            ("\x16\x03\x01", Err(Missing)),
            ("", Ok(Parsed::Unfinished)),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn version_2() {
        use InvalidHeader::{Malformed, TooLong};
        let unix = [b'/'; UNIX_ADDRESSES];
        let mut v6 = [0; 36];
        (v6[0], v6[1], v6[15], v6[35]) = (0x20, 0x01, 7, 80);
        let extra = |rest: &[u8]| v2(1, 0x11, &[&V4, rest].concat());
        for (bytes, want) in [
            (v2(1, 0x11, &V4), header(28, Some(("192.0.2.7", 443)))),
            (v2(1, 0x21, &v6), header(52, Some(("2001::7", 80)))),
            (extra(&[0xea, 0, 2, 1, 2, 0x04, 0, 0]), header(36, Some(("192.0.2.7", 443)))),
            (v2(0, 0x00, &[]), header(16, None)),
            (v2(0, 0x11, &V4), header(28, None)),
            (v2(0, 0x77, &[1, 2, 3]), header(19, None)),
            (v2(1, 0x00, &[]), header(16, None)),
            (v2(1, 0x31, &unix), header(16 + UNIX_ADDRESSES, None)),
            (v2(1, 0x31, &unix[1..]), Err(Malformed)),
            (v2(1, 0x11, &V4[1..]), Err(Malformed)),
            (v2(1, 0x21, &V4), Err(Malformed)),
            (v2(1, 0x12, &V4), Err(Malformed)),
            (v2(1, 0x41, &V4), Err(Malformed)),
            (v2(2, 0x11, &V4), Err(Malformed)),
            (extra(&[0xea, 0, 2, 1]), Err(Malformed)),
            (extra(&[0xea, 0]), Err(Malformed)),
            (extra(&[0x03, 0, 1, 0]), Err(Malformed)),
            (v2(0, 0x00, &[0; LENGTH_MAX - V2_FIXED]), header(LENGTH_MAX, None)),
            (v2(0, 0x00, &[0; LENGTH_MAX - V2_FIXED + 1]), Err(TooLong)),
        ] {
            assert_eq!(parse(&bytes), want, "{}", bytes.escape_ascii());
        }
        let mut old = v2(1, 0x11, &V4);
        old[12] = 0x11;
        assert_eq!(parse(&old), Err(Malformed), "version 1 in binary");
    }

    #[test]
    fn a_checksum_fits() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283, "the check value of the catalogue");
        let with = |sum: u32| {
            let [a, b, c, d] = sum.to_be_bytes();
            v2(1, 0x11, &[&V4[..], &[0x04, 0, 1, 9, TLV_CRC32C, 0, 4, a, b, c, d, 0x04, 0, 0]].concat())
        };
        let sum = crc32c(with(0).iter());
        assert_eq!(parse(&with(sum)), header(42, Some(("192.0.2.7", 443))));
        assert_eq!(parse(&with(sum ^ 1)), Err(InvalidHeader::Checksum));
        assert_eq!(parse(&with(0)), Err(InvalidHeader::Checksum));
    }

    fn headers() -> impl Strategy<Value = Vec<u8>> {
        let text = any::<([u8; 4], [u8; 4], u16, u16)>().prop_map(|(from, to, port, other)| {
            let (from, to) = (Ipv4Addr::from(from), Ipv4Addr::from(to));
            format!("PROXY TCP4 {from} {to} {port} {other}\r\n").into_bytes()
        });
        let binary = (any::<[u8; 36]>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(addresses, extra)| {
                let length = u16::try_from(extra.len()).unwrap().to_be_bytes();
                v2(1, 0x21, &[&addresses[..], &[0xee, length[0], length[1]], &extra].concat())
            },
        );
        prop_oneof![text, binary]
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), start in 0usize..3) {
            let start: &[u8] = [&b""[..], V1_START, V2_START][start];
            let bytes = [start, &bytes].concat();
            if let Ok(Parsed::Header { length, .. }) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn a_header_is_unfinished_until_it_is_whole(header in headers(), behind in any::<u8>()) {
            for end in 0..header.len() {
                prop_assert_eq!(parse(&header[..end]), Ok(Parsed::Unfinished), "{}", end);
            }
            let whole = parse(&header);
            let is_whole = matches!(whole, Ok(Parsed::Header { length, .. }) if length == header.len());
            prop_assert!(is_whole);
            prop_assert_eq!(parse(&[header, vec![behind]].concat()), whole, "what follows does not count");
        }
    }
}
