//! Addresses at which no target may be, because this agent itself is there.
//!
//! What a target's text leads to, and which addresses no app can have, is known to `gate::resolve`.

use std::net::SocketAddr;

use model::name::TargetAddress;
use model::protocol::{Listeners, Problem, ProblemCode};

use crate::release::Endpoint;

/// Refuses an endpoint that leads back to one of our listeners.
pub fn refuse_ours(target: &TargetAddress, endpoint: &Endpoint, ours: &Listeners) -> Result<(), Problem> {
    let leads_back = match endpoint {
        Endpoint::Unix(path) => path.to_str().is_some_and(|path| ours.control.as_deref() == Some(path)),
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
    // A wildcard listener has every address of this machine; only loopback is known for one without asking.
    listener.port() == address.port() && (bound == ip || (bound.is_unspecified() && ip.is_loopback()))
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
}
