//! Addresses at which no target may be, because this agent itself is there.
//!
//! What a target's text leads to, and which addresses no app can have, is known to `gate::resolve`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use model::name::TargetAddress;
use model::protocol::{Listeners, Problem, ProblemCode};

use crate::release::Endpoint;

/// Refuses an endpoint that leads back to one of our listeners, under whatever name. Asks the kernel, which
/// answers at once.
pub fn refuse_ours(target: &TargetAddress, endpoint: &Endpoint, ours: &Listeners) -> Result<(), Problem> {
    let leads_back = match endpoint {
        Endpoint::Unix(path) => ours.control.as_deref().is_some_and(|own| is_same(Path::new(own), path)),
        Endpoint::Tcp(address) => {
            let own = [&ours.http, &ours.https, &ours.metrics].into_iter().flatten();
            own.filter_map(|own| own.parse().ok()).any(|own| is_at(own, *address))
        }
    };
    if !leads_back {
        return Ok(());
    }
    let message = format!(
        "`{target}` cannot be a target: this agent itself listens there, and requests would go in circles"
    );
    Err(Problem::new(ProblemCode::Invalid, message).hint("name the address on which the app listens"))
}

fn is_at(listener: SocketAddr, address: SocketAddr) -> bool {
    let (bound, ip) = (listener.ip().to_canonical(), address.ip().to_canonical());
    listener.port() == address.port() && (bound == ip || (bound.is_unspecified() && is_local(ip)))
}

/// Whether a wildcard listener has this address: only those of this machine can be bound to.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

/// By the file, not by its spelling: `/run//x` and a symbolic link lead to the same socket.
fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    one == other || file(one).is_some_and(|one| Some(one) == file(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles() {
        let ours = Listeners {
            http: Some("0.0.0.0:80".into()),
            https: Some("[::]:443".into()),
            metrics: Some("127.0.0.1:9100".into()),
            control: Some("/run/portcullis/control.sock".into()),
        };
        let tcp = |text: &str| Endpoint::Tcp(text.parse().unwrap());
        for (endpoint, allowed) in [
            (tcp("127.0.0.1:3000"), true),
            (tcp("127.0.0.2:9100"), true),
            (tcp("127.0.0.1:80"), false),
            (tcp("[::ffff:127.0.0.1]:80"), false),
            (tcp("[::1]:443"), false),
            (tcp("127.0.0.1:9100"), false),
            (Endpoint::Unix("/run/app.sock".into()), true),
            (Endpoint::Unix("/run/portcullis/control.sock".into()), false),
        ] {
            let target = "app:80".parse().unwrap();
            assert_eq!(refuse_ours(&target, &endpoint, &ours).is_ok(), allowed, "{endpoint}");
        }
    }

    #[test]
    fn the_control_socket_is_known_under_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _control = std::os::unix::net::UnixListener::bind(path("c.sock")).unwrap();
        let _app = std::os::unix::net::UnixListener::bind(path("app.sock")).unwrap();
        std::os::unix::fs::symlink("c.sock", path("link")).unwrap();
        std::fs::create_dir(path("d")).unwrap();
        let ours = Listeners { control: Some(path("c.sock").display().to_string()), ..Listeners::default() };
        for (name, allowed) in [
            ("c.sock", false),
            ("d/../c.sock", false),
            (".//c.sock", false),
            ("link", false),
            ("app.sock", true),
            ("missing", true),
        ] {
            let target = "unix:/x".parse().unwrap();
            assert_eq!(refuse_ours(&target, &Endpoint::Unix(path(name)), &ours).is_ok(), allowed, "{name}");
        }
    }

    #[test]
    fn a_wildcard_listener_has_every_address_of_the_machine() {
        // Sends nothing; it only lets the kernel choose the address towards others.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
        let own = own.map_or(IpAddr::from([127, 0, 0, 1]), |own| own.ip());
        for (listener, address, leads_back) in [
            ("0.0.0.0:80", SocketAddr::new(own, 80), true),
            ("[::]:80", SocketAddr::new(own, 80), true),
            ("0.0.0.0:80", SocketAddr::new(own, 81), false),
            ("0.0.0.0:80", "203.0.113.9:80".parse().unwrap(), false),
            ("127.0.0.9:80", SocketAddr::new(own, 80), false),
        ] {
            assert_eq!(is_at(listener.parse().unwrap(), address), leads_back, "{listener} {address}");
        }
    }
}
