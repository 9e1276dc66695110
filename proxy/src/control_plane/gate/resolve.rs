//! From a target as the operator wrote it to where to connect.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use model::name::TargetAddress;
use tokio::time::timeout;

use crate::release::Endpoint;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("cannot look up target `{target}`")]
    Lookup { target: String, source: io::Error },
    #[error(
        "the name of target `{target}` was not looked up within 2s: check the resolver, or write an IP address"
    )]
    Timeout { target: String },
    #[error("the name of target `{target}` has no address: check the name, or write an IP address")]
    NoAddress { target: String },
    #[error(
        "target `{target}` leads to {ip}, which is {what}: name the address on which the app listens, such as `127.0.0.1:3000`"
    )]
    Forbidden { target: String, ip: IpAddr, what: &'static str },
    #[error("target `{target}` has port 0, on which nobody can listen: name the app's port, such as 3000")]
    PortZero { target: String },
}

/// Looks a name up, with a deadline of 2 s, and refuses what cannot be an app of ours.
pub async fn resolve(address: &TargetAddress) -> Result<Endpoint, ResolveError> {
    let target = address.to_string();
    let (addresses, port) = match address {
        TargetAddress::Unix(path) => return Ok(Endpoint::Unix(path.as_ref().into())),
        TargetAddress::Ip(ip, port) => (vec![*ip], *port),
        TargetAddress::Name(name, port) => (look_up(name.as_str(), *port, &target).await?, *port),
    };
    if port == 0 {
        return Err(ResolveError::PortZero { target });
    }
    // Puma's and Docker's usual binds are IPv4, and resolvers tend to name `::1` first.
    let first = addresses.iter().find(|ip| ip.is_ipv4()).or(addresses.first()).copied();
    let ip = first.ok_or_else(|| ResolveError::NoAddress { target: target.clone() })?;
    match forbidden(ip) {
        Some(what) => Err(ResolveError::Forbidden { target, ip, what }),
        None => Ok(Endpoint::Tcp(SocketAddr::new(ip, port))),
    }
}

async fn look_up(name: &str, port: u16, target: &str) -> Result<Vec<IpAddr>, ResolveError> {
    match timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, port))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(source)) => Err(ResolveError::Lookup { target: target.to_owned(), source }),
        Err(_) => Err(ResolveError::Timeout { target: target.to_owned() }),
    }
}

/// Metadata services of clouds that are not at a link-local address.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Addresses that are no single host, and those where clouds keep their metadata service, secrets included:
/// no target may open a way to it.
fn forbidden(ip: IpAddr) -> Option<&'static str> {
    let ip = unwrapped(ip);
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match ip {
        _ if ip.is_unspecified() => Some("every address of a machine and none in particular"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("the broadcast address"),
        _ if link_local => Some("link-local, where clouds keep their metadata service"),
        _ if METADATA.contains(&ip) => Some("a cloud's metadata service"),
        _ => None,
    }
}

/// The IPv4 address inside an IPv4-mapped one (RFC 4291 §2.5.5.2) or one of the well-known NAT64 prefix
/// (64:ff9b::/96, RFC 6052 §2.1), which leads to the same place.
fn unwrapped(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => match v6.octets() {
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            _ => IpAddr::V6(v6),
        },
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn targets_lead_somewhere_or_say_why_not() {
        for (text, want) in [
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("[::1]:3000", "[::1]:3000"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("0.0.0.0:3000", "every address"),
            ("[::]:3000", "every address"),
            ("[::ffff:0.0.0.0]:3000", "every address"),
            ("224.0.0.1:3000", "multicast"),
            ("[ff02::1]:3000", "multicast"),
            ("255.255.255.255:3000", "broadcast"),
            ("169.254.169.254:80", "link-local"),
            ("[::ffff:169.254.169.254]:80", "link-local"),
            ("[fe80::1]:80", "link-local"),
            ("[fd00:ec2::254]:80", "metadata"),
            ("100.100.100.200:80", "metadata"),
            ("[::ffff:100.100.100.200]:80", "metadata"),
            ("[64:ff9b::169.254.169.254]:80", "link-local"),
            ("[64:ff9b::100.100.100.200]:80", "metadata"),
            ("[64:ff9b::10.1.2.3]:80", "64:ff9b"),
            ("[64:ff9b::0.0.0.0]:80", "every address"),
        ] {
            let got = match resolve(&text.parse().unwrap()).await {
                Ok(endpoint) => endpoint.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(want), "{text}: {got}");
        }
        let zero = TargetAddress::Ip([127, 0, 0, 1].into(), 0);
        assert!(matches!(resolve(&zero).await, Err(ResolveError::PortZero { .. })));
    }

    #[tokio::test]
    async fn localhost_is_ipv4_first() {
        let endpoint = resolve(&"localhost:3000".parse().unwrap()).await.unwrap();
        assert_eq!(endpoint, Endpoint::Tcp(([127, 0, 0, 1], 3000).into()));
    }
}
