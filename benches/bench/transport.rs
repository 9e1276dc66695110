//! One connection to a proxy, plain or TLS, that never blocks.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};

use crate::failure::{Failure, Outcome, Tried};
use crate::poll::{Interest, Poll, Token};
use crate::visitor::HOST;

/// How to speak to the proxy.
#[derive(Clone)]
pub(crate) struct Dial {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

/// TLS 1.3 with AES-128-GCM and X25519. Certificates are not looked at: checking them is the
/// client's work, and the client is not measured.
pub(crate) fn client_config(alpn: &[u8], resumes: bool) -> Outcome<Arc<ClientConfig>> {
    let provider = CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .tried(|| "set up TLS 1.3".to_owned())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnyone))
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

pub(crate) struct Transport {
    tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Plain bytes for which the socket had no room; empty nearly always.
    unsent: Vec<u8>,
    token: Token,
    wants_write: bool,
}

impl Transport {
    pub(crate) fn open(dial: &Dial, poll: &Poll, token: Token) -> Outcome<Self> {
        let tcp = TcpStream::connect(dial.address).tried(|| format!("connect to {}", dial.address))?;
        Self::over(tcp, dial, poll, token)
    }

    /// The same over a connection with options of its own.
    pub(crate) fn over(tcp: TcpStream, dial: &Dial, poll: &Poll, token: Token) -> Outcome<Self> {
        crate::machine::prepare(&tcp)?;
        poll.add(&tcp, token)?;
        let tls = dial.tls.as_ref().map(|config| {
            let name = ServerName::try_from(HOST).tried(|| format!("use the name {HOST}"))?;
            let connection = ClientConnection::new(Arc::clone(config), name);
            connection.map(Box::new).tried(|| "begin a TLS connection".to_owned())
        });
        Ok(Self { tcp, tls: tls.transpose()?, unsent: Vec::new(), token, wants_write: false })
    }

    /// Queues `bytes` and writes what the socket takes; the rest goes when there is room.
    pub(crate) fn send(&mut self, poll: &Poll, bytes: &[u8]) -> Outcome<()> {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes).tried(|| "encrypt a request".to_owned())?,
            None => self.unsent.extend_from_slice(bytes),
        }
        self.flush(poll)
    }

    pub(crate) fn flush(&mut self, poll: &Poll) -> Outcome<()> {
        let mut is_full = false;
        while !is_full && self.has_unsent() {
            let written = match &mut self.tls {
                Some(tls) => tls.write_tls(&mut self.tcp),
                None => self.tcp.write(&self.unsent).inspect(|n| drop(self.unsent.drain(..*n))),
            };
            match written {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => is_full = true,
                Err(error) => return Err(error).tried(|| "send to the proxy".to_owned()),
            }
        }
        if is_full != self.wants_write {
            self.wants_write = is_full;
            let interest = if is_full { Interest::Both } else { Interest::Read };
            poll.interest(&self.tcp, self.token, interest)?;
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.tls.as_ref().map_or(!self.unsent.is_empty(), |tls| tls.wants_write())
    }

    /// Reads once, as much as `scratch` takes, and hands over what came. False at the end of the connection.
    pub(crate) fn receive(
        &mut self,
        scratch: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Outcome<()>,
    ) -> Outcome<bool> {
        let n = match self.tcp.read(scratch) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error).tried(|| "read from the proxy".to_owned()),
        };
        let Some(tls) = &mut self.tls else {
            take(&scratch[..n])?;
            return Ok(true);
        };
        // rustls would read 4 KiB a call from the socket; from memory that is cheap.
        let mut records = &scratch[..n];
        while !records.is_empty() {
            tls.read_tls(&mut records).tried(|| "take TLS records".to_owned())?;
            let state = tls.process_new_packets().tried(|| "speak TLS with the proxy".to_owned())?;
            let mut left = state.plaintext_bytes_to_read();
            let mut reader = tls.reader();
            while left > 0 {
                let chunk = reader.fill_buf().tried(|| "take what was decrypted".to_owned())?;
                let length = chunk.len();
                take(chunk)?;
                reader.consume(length);
                left -= length;
            }
        }
        Ok(true)
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    pub(crate) fn has_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// From now on nothing is read: what comes stays in the kernel, then in the proxy.
    pub(crate) fn stop_reading(&self, poll: &Poll) -> Outcome<()> {
        poll.interest(&self.tcp, self.token, Interest::None)
    }

    /// What was agreed on, once the handshake is over: the version is part of what is compared.
    pub(crate) fn check_handshake(&self, alpn: &[u8]) -> Outcome<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        let seen = (tls.protocol_version(), tls.alpn_protocol());
        if seen != (Some(rustls::ProtocolVersion::TLSv1_3), Some(alpn)) {
            return Err(Failure::new(format!("the proxy agreed on {seen:?} instead of TLS 1.3")));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct TrustAnyone;

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
