//! Handshakes: what the client asks for is read first, and decides with which certificate it goes on.
//!
//! Almost always that is the snapshot's, and nothing is waited for. A CA that looks for its challenge and a name that
//! is to be had on demand have to ask the control plane; a name that nobody serves gets its alert at once.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::name::HostName;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::{certificate, lower_case, server_config};
use crate::certificate_asks::{AskKind, CertificateAsks};
use crate::data_plane::exchange::Tls;
use crate::snapshot::{Published, Snapshot};

/// A protocol for one purpose: to show a CA that whoever serves a name has what it asked for (RFC 8737).
const ACME_TLS: &[u8] = b"acme-tls/1";

/// A record with the fatal alert `unrecognized_name` (RFC 8446 §6.2). rustls would say `access_denied`.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What the handshakes of a worker share.
pub struct Handshakes {
    published: Published,
    asks: CertificateAsks,
    config: Arc<ServerConfig>,
    /// How long a client may take.
    timeout: Duration,
}

/// A connection that is open for requests.
pub struct Open<S> {
    pub stream: TlsStream<S>,
    pub tls: Tls,
}

/// What a client that has said hello is to get.
enum Choice {
    Snapshot,
    /// A certificate that the snapshot does not hold.
    Ask(AskKind, HostName),
    Nothing,
}

impl Handshakes {
    pub fn new(published: Published, asks: CertificateAsks, timeout: Duration) -> Self {
        Self { config: server_config(published.clone()), published, asks, timeout }
    }

    /// `None`: a CA has seen the certificate of its challenge, and nothing else is said on that connection.
    ///
    /// Ends in time. What an ask takes is not counted: it is not the client's fault, and has a time of its own.
    pub async fn shake<S>(&self, stream: S, client: IpAddr) -> io::Result<Option<Open<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let deadline = Instant::now() + self.timeout;
        let mut start = timeout_at(deadline, LazyConfigAcceptor::new(Acceptor::default(), stream)).await??;
        let choice = choose(&self.published.load(), &start.client_hello());
        match choice {
            Choice::Snapshot => {
                let stream = timeout_at(deadline, start.into_stream(Arc::clone(&self.config))).await??;
                let server_name = stream.get_ref().1.server_name().map(str::to_ascii_lowercase);
                // The one that was shown, unless it was replaced in these milliseconds; then its successor.
                let shown = certificate(&self.published.load().certificates, server_name.as_deref());
                let certificate = shown.ok_or(io::ErrorKind::NotFound)?;
                Ok(Some(Open { stream, tls: Tls { certificate, server_name } }))
            }
            // Boxed: rare, and the others should not be larger for it.
            Choice::Ask(kind, name) => Box::pin(self.ask(start, kind, name, client)).await,
            Choice::Nothing => refuse(&mut start.io).await,
        }
    }

    async fn ask<S>(
        &self,
        mut start: StartHandshake<S>,
        kind: AskKind,
        name: HostName,
        client: IpAddr,
    ) -> io::Result<Option<Open<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let asked = self.asks.ask(kind, name.clone(), client).await;
        let Some(certificate) = asked else { return refuse(&mut start.io).await };
        let deadline = Instant::now() + self.timeout;
        let config = Arc::new(showing(&self.config, kind, &certificate));
        let mut stream = timeout_at(deadline, start.into_stream(config)).await??;
        if kind == AskKind::Challenge {
            // Whoever does not hear it has gone, and that is what it says.
            let _ = timeout_at(deadline, stream.shutdown()).await;
            return Ok(None);
        }
        let server_name = Some(name.as_str().to_owned());
        Ok(Some(Open { stream, tls: Tls { certificate, server_name } }))
    }
}

fn choose(snapshot: &Snapshot, hello: &ClientHello<'_>) -> Choice {
    let name = hello.server_name().map(lower_case);
    let has_certificate = certificate(&snapshot.certificates, name.as_deref()).is_some();
    let is_on_demand = || snapshot.on_demand.best(name.as_deref().unwrap_or_default()) == Some(&true);
    let kind = match is_challenge(hello) {
        true if has_certificate || is_on_demand() => AskKind::Challenge,
        true => return Choice::Nothing,
        false if has_certificate => return Choice::Snapshot,
        false if is_on_demand() => AskKind::OnDemand,
        false => return Choice::Nothing,
    };
    // An address is no server name, and nobody can ask for an empty one.
    let name = name.and_then(|name| name.parse().ok());
    name.map_or(Choice::Nothing, |name| Choice::Ask(kind, name))
}

/// Whoever offers another protocol too is no CA (RFC 8737 §3).
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    let Some(mut offered) = hello.alpn() else { return false };
    offered.next() == Some(ACME_TLS) && offered.next().is_none()
}

/// `config` with this certificate instead of the snapshot's.
fn showing(config: &ServerConfig, kind: AskKind, certificate: &Arc<CertifiedKey>) -> ServerConfig {
    let mut config = config.clone();
    config.cert_resolver = Arc::new(Only(Arc::clone(certificate)));
    if kind == AskKind::Challenge {
        config.alpn_protocols = vec![ACME_TLS.to_vec()];
        config.send_tls13_tickets = 0;
    }
    config
}

#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

async fn refuse<S, T>(stream: &mut S) -> io::Result<T>
where
    S: AsyncWrite + Unpin,
{
    // A fresh connection has room for it; whoever has gone needs none.
    let _ = stream.write(&UNRECOGNIZED_NAME).await;
    let _ = stream.shutdown().await;
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use model::name::HostPattern;
    use rustls::client::ClientConnection;
    use rustls::{AlertDescription, ClientConfig, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::adapters::certificate::self_signed;
    use crate::certificate_asks::Asked;

    fn certified(name: &str) -> Arc<CertifiedKey> {
        self_signed(&[name.parse().unwrap()]).unwrap()
    }

    struct World {
        handshakes: Handshakes,
        asked: Asked,
        own: Arc<CertifiedKey>,
    }

    impl World {
        /// `shop.test` has its certificate, names below `demand.test` are to be had on demand.
        fn new() -> Self {
            let own = certified("shop.test");
            let mut snapshot = Snapshot::default();
            let pattern = |name: &str| Some(name.parse::<HostPattern>().unwrap());
            *snapshot.certificates.bound_mut(pattern("shop.test").as_ref()) = Some(Arc::clone(&own));
            *snapshot.on_demand.bound_mut(pattern("*.demand.test").as_ref()) = true;
            let published = Published::default();
            published.publish(snapshot);
            let (asks, asked) = CertificateAsks::new();
            Self { handshakes: Handshakes::new(published, asks, Duration::from_secs(10)), asked, own }
        }

        /// Shakes hands as `client` would; what both sides had of it, with what else the client was told.
        async fn shake(&self, client: Client<'_>) -> (io::Result<Option<Open<DuplexStream>>>, Seen) {
            let (ours, theirs) = duplex(64 * 1024);
            let server = async {
                let mut shaken = self.handshakes.shake(ours, [192, 0, 2, 7].into()).await;
                if let Ok(Some(Open { stream, .. })) = &mut shaken {
                    stream.shutdown().await.unwrap();
                }
                shaken
            };
            tokio::join!(server, client.connect(theirs))
        }
    }

    struct Client<'c> {
        name: &'c str,
        alpn: &'c [&'c str],
        trusts: &'c CertifiedKey,
    }

    #[derive(Debug, PartialEq)]
    enum Seen {
        Alpn(Option<String>),
        Alert(AlertDescription),
        Other(String),
    }

    impl Client<'_> {
        async fn connect(self, stream: DuplexStream) -> Seen {
            let mut roots = RootCertStore::empty();
            roots.add(self.trusts.cert[0].clone()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
            let name = ServerName::try_from(self.name.to_owned()).unwrap();
            match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
                Ok(mut stream) => {
                    // To its end: nothing was said on it.
                    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0);
                    let session: &ClientConnection = stream.get_ref().1;
                    Seen::Alpn(session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()))
                }
                Err(error) => match error.get_ref().and_then(|cause| cause.downcast_ref()) {
                    Some(rustls::Error::AlertReceived(alert)) => Seen::Alert(*alert),
                    _ => Seen::Other(error.to_string()),
                },
            }
        }
    }

    fn alpn(name: &str) -> Seen {
        Seen::Alpn(Some(name.to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_snapshot_holds_is_shown_without_a_question() {
        let mut world = World::new();
        let own = Arc::clone(&world.own);
        for offered in [&["h2", "http/1.1"][..], &["h2", "acme-tls/1"], &["acme-tls/1", "h2"]] {
            for name in ["shop.test", "SHOP.test"] {
                let client = Client { name, alpn: offered, trusts: &own };
                let (shaken, seen) = world.shake(client).await;
                let Ok(Some(Open { tls: Tls { certificate, server_name }, .. })) = shaken else {
                    panic!("{offered:?}")
                };
                assert!(Arc::ptr_eq(&certificate, &own));
                assert_eq!((server_name.as_deref(), seen), (Some("shop.test"), alpn("h2")), "{offered:?}");
            }
        }
        assert!(world.asked.challenges.try_recv().is_err() && world.asked.on_demand.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_nobody_serves_get_their_alert_and_ask_nobody() {
        let mut world = World::new();
        let own = Arc::clone(&world.own);
        for name in ["other.test", "a.shop.test", "demand.test", "192.0.2.1"] {
            for alpn in [&["h2"][..], &["acme-tls/1"]] {
                let (shaken, seen) = world.shake(Client { name, alpn, trusts: &own }).await;
                assert_eq!(seen, Seen::Alert(AlertDescription::UnrecognisedName), "{name} {alpn:?}");
                assert!(shaken.is_err(), "{name} {alpn:?}");
            }
        }
        assert!(world.asked.challenges.try_recv().is_err() && world.asked.on_demand.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_is_shown_to_whoever_speaks_of_nothing_else() {
        let mut world = World::new();
        // A CA looks at the one that is made for it; that it is another one than visitors see is all that matters here.
        let proof = certified("shop.test");
        let mut challenges = std::mem::replace(&mut world.asked.challenges, tokio::sync::mpsc::channel(1).1);
        let answer = async {
            let ask = challenges.recv().await.unwrap();
            assert_eq!((ask.kind, ask.name.as_str()), (AskKind::Challenge, "shop.test"));
            ask.answer.send(Some(Arc::clone(&proof))).unwrap();
        };
        let client = Client { name: "Shop.test", alpn: &["acme-tls/1"], trusts: &proof };
        let ((shaken, seen), ()) = tokio::join!(world.shake(client), answer);
        assert_eq!(seen, alpn("acme-tls/1"));
        assert!(matches!(shaken, Ok(None)));

        // No order is under way.
        let deny = async { challenges.recv().await.unwrap().answer.send(None).unwrap() };
        let client = Client { name: "shop.test", alpn: &["acme-tls/1"], trusts: &proof };
        let ((shaken, seen), ()) = tokio::join!(world.shake(client), deny);
        assert_eq!(seen, Seen::Alert(AlertDescription::UnrecognisedName));
        assert!(shaken.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_waits_for_a_certificate_on_demand() {
        let mut world = World::new();
        let issued = certified("a.demand.test");
        let mut on_demand = std::mem::replace(&mut world.asked.on_demand, tokio::sync::mpsc::channel(1).1);
        let answer = async {
            let ask = on_demand.recv().await.unwrap();
            // Nearly as long as it may; the client's own time is not used up by it.
            tokio::time::sleep(AskKind::OnDemand.wait() - Duration::from_millis(10)).await;
            ask.answer.send(Some(Arc::clone(&issued))).unwrap();
        };
        let client = Client { name: "a.demand.test", alpn: &["h2"], trusts: &issued };
        let ((shaken, seen), ()) = tokio::join!(world.shake(client), answer);
        assert_eq!(seen, alpn("h2"));
        let Ok(Some(Open { tls: Tls { certificate, server_name }, .. })) = shaken else { panic!() };
        assert!(Arc::ptr_eq(&certificate, &issued));
        assert_eq!(server_name.as_deref(), Some("a.demand.test"));

        // Nobody answers in time.
        let client = Client { name: "b.demand.test", alpn: &["h2"], trusts: &issued };
        let (shaken, seen) = world.shake(client).await;
        assert_eq!(seen, Seen::Alert(AlertDescription::UnrecognisedName));
        assert!(shaken.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_trickles_end_in_time() {
        let world = World::new();
        for first in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
            let (ours, mut theirs) = duplex(1024);
            let before = Instant::now();
            theirs.write_all(first).await.unwrap();
            let trickle = async {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if !first.is_empty() {
                        theirs.write_all(&[0]).await.unwrap();
                    }
                }
            };
            let shaken = tokio::select! {
                shaken = world.handshakes.shake(ours, [192, 0, 2, 7].into()) => shaken,
                () = trickle => unreachable!("it goes on for ever"),
            };
            assert!(shaken.is_err());
            assert_eq!(before.elapsed().as_secs(), 10);
        }
    }
}
