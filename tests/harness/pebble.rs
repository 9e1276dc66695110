//! Real Pebble: Let's Encrypt's test authority, with its DNS server, on loopback alone.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::forwarder::Forwarder;
use crate::ports::free_address;
use crate::wait::eventually;

/// How an authority of a story differs from a plain one.
#[derive(Clone)]
pub struct PebbleOptions {
    /// How many in a hundred good nonces are refused.
    pub nonce_reject: u8,
    /// How many in a hundred valid authorizations are used again.
    pub authorization_reuse: u8,
    /// Of its certificates.
    pub validity_seconds: u64,
    /// The name and the key, in base64url, of the one external account that may register.
    pub external_account: Option<(String, String)>,
    /// Names that it will not issue for.
    pub blocked: Vec<String>,
}

impl Default for PebbleOptions {
    fn default() -> Self {
        Self {
            nonce_reject: 5,
            authorization_reuse: 0,
            validity_seconds: 90 * 86_400,
            external_account: None,
            blocked: Vec::new(),
        }
    }
}

/// Validates at its two doors, which hand its connections on to [`Pebble::validate_at`].
pub struct Pebble {
    child: Child,
    dns: Child,
    options: PebbleOptions,
    addresses: Addresses,
    http: Forwarder,
    tls: Forwarder,
    dir: TempDir,
}

#[derive(Clone, Copy)]
struct Addresses {
    directory: SocketAddr,
    management: SocketAddr,
    dns: SocketAddr,
    dns_management: SocketAddr,
}

impl Pebble {
    pub fn start() -> Self {
        Self::with(PebbleOptions::default())
    }

    pub fn with(options: PebbleOptions) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        certify(dir.path());
        let (http, tls) = (Forwarder::start(), Forwarder::start());
        let (dns, dns_address, dns_management) = start_dns(dir.path());
        let (directory, management) = (free_address(), free_address());
        let addresses = Addresses { directory, management, dns: dns_address, dns_management };
        configure(dir.path(), addresses, &options, [&http, &tls]);
        let child = start_pebble(dir.path(), addresses, &options);
        Self { child, dns, options, addresses, http, tls, dir }
    }

    /// The URL of its directory.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.addresses.directory)
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses.directory
    }

    /// The PEM file with the root of its own HTTPS (not of what it issues).
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Where a resolver finds what it finds. Every name has the address 127.0.0.1, unless told otherwise.
    pub fn dns(&self) -> SocketAddr {
        self.addresses.dns
    }

    /// Where HTTP-01 and TLS-ALPN-01 find who answers; several take turns.
    pub fn validate_at(&self, http: &[SocketAddr], tls: &[SocketAddr]) {
        self.http.forward_to(http);
        self.tls.forward_to(tls);
    }

    /// How many connections came to validate, over HTTP and TLS.
    pub fn validations(&self) -> (usize, usize) {
        (self.http.connections(), self.tls.connections())
    }

    /// Tells its DNS server, as in `tell_dns("add-a", r#"{"host": "shop.test", "addresses": ["127.0.0.9"]}"#)`.
    #[track_caller]
    pub fn tell_dns(&self, command: &str, json: &str) {
        let answer = crate::Ask::post("localhost", &format!("/{command}"), json.to_owned())
            .at(self.addresses.dns_management);
        assert_eq!(answer.status, 200, "{command} {json}: {}", answer.text());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("pebble.log")).unwrap_or_default()
    }

    /// How many orders were ever made.
    pub fn orders(&self) -> usize {
        self.log().lines().filter(|line| line.contains("Added order ")).count()
    }

    /// How many certificates were ever issued.
    pub fn issued(&self) -> usize {
        self.log().lines().filter(|line| line.contains("Issued certificate serial ")).count()
    }

    /// The authority is down: connections are refused.
    pub fn stop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The same address again, but it remembers nothing: no account, no order.
    pub fn start_again(&mut self) {
        self.stop();
        self.child = start_pebble(self.dir.path(), self.addresses, &self.options);
    }

    /// The authority hangs: connections are accepted by the kernel, and nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal is sent; its threads may still be at work for a moment.
        eventually("Pebble stands still", || {
            let tasks = format!("/proc/{}/task", self.child.id());
            let states = std::fs::read_dir(tasks).map_err(|error| error.to_string())?.map(|task| {
                let stat = std::fs::read_to_string(task?.path().join("stat"))?;
                // Behind the name, which may hold anything but ends with the last parenthesis.
                Ok(stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()))
            });
            let states: std::io::Result<Vec<_>> = states.collect();
            match states {
                Ok(states) if states.iter().all(|state| *state == Some('T')) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let raw = i32::try_from(self.child.id()).expect("a pid fits");
        kill_process(Pid::from_raw(raw).expect("a child's pid is not zero"), signal).expect("Pebble runs");
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        let _ = self.dns.kill();
        let _ = self.dns.wait();
        if std::thread::panicking() {
            eprintln!("--- log of Pebble\n{}", self.log());
        }
    }
}

/// An authority for the authority's own HTTPS.
fn certify(dir: &Path) {
    let issuer_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "root of Pebble's HTTPS");
    let root = params.self_signed(&issuer_key).expect("a root");
    let issuer = rcgen::Issuer::new(params, issuer_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = rcgen::CertificateParams::new(names).expect("names");
    let server = server.signed_by(&key, &issuer).expect("a certificate");
    for (file, text) in [("ca.pem", root.pem()), ("api.pem", server.pem()), ("api.key", key.serialize_pem())]
    {
        std::fs::write(dir.join(file), text).expect("a fresh directory can be written");
    }
}

fn configure(dir: &Path, addresses: Addresses, options: &PebbleOptions, [http, tls]: [&Forwarder; 2]) {
    let keys = options.external_account.iter().map(|(name, key)| (name.clone(), key.clone().into()));
    let config = serde_json::json!({"pebble": {
        "listenAddress": addresses.directory.to_string(),
        "managementListenAddress": addresses.management.to_string(),
        "certificate": "api.pem",
        "privateKey": "api.key",
        "httpPort": http.address().port(),
        "tlsPort": tls.address().port(),
        "ocspResponderURL": "",
        "externalAccountBindingRequired": options.external_account.is_some(),
        "externalAccountMACKeys": keys.collect::<serde_json::Map<_, _>>(),
        "certificateValidityPeriod": options.validity_seconds,
        "domainBlocklist": options.blocked,
    }});
    std::fs::write(dir.join("pebble.json"), config.to_string()).expect("a fresh directory can be written");
}

/// It, and where it answers and is told what to answer.
fn start_dns(dir: &Path) -> (Child, SocketAddr, SocketAddr) {
    // Nobody can keep a port of UDP for it, and somebody else may have the one of that number.
    for _ in 0..5 {
        let (address, management) = (free_address(), free_address());
        let mut command = command(dir, "pebble-challtestsrv", "dns.log");
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]);
        command.args(["-dns01", &address.to_string(), "-management", &management.to_string()]);
        if let Some(child) = listens(command, management) {
            return (child, address, management);
        }
    }
    panic!("five ports of UDP in a row were taken");
}

fn start_pebble(dir: &Path, addresses: Addresses, options: &PebbleOptions) -> Child {
    let mut command = command(dir, "pebble", "pebble.log");
    command.args(["-config", "pebble.json", "-strict", "-dnsserver", &addresses.dns.to_string()]);
    command.env("PEBBLE_VA_NOSLEEP", "1");
    command.env("PEBBLE_WFE_NONCEREJECT", options.nonce_reject.to_string());
    command.env("PEBBLE_AUTHZREUSE", options.authorization_reuse.to_string());
    listens(command, addresses.directory).expect("its ports are kept for it")
}

fn command(dir: &Path, program: &str, log: &str) -> Command {
    let log = File::options().create(true).append(true).open(dir.join(log));
    let log = log.expect("a fresh directory can be written");
    // It dies with the thread that started it, even when that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).current_dir(dir).stdin(Stdio::null());
    command.stderr(log.try_clone().expect("a second handle on the log")).stdout(log);
    command
}

/// The child, once it listens; `None` if it ended instead.
fn listens(mut command: Command, address: SocketAddr) -> Option<Child> {
    let mut child = command.spawn().expect("Pebble is installed (bin/test installs it)");
    let listens = eventually("Pebble listens", || match child.try_wait() {
        Ok(Some(_)) => Ok(false),
        _ => std::net::TcpStream::connect(address).map(|_| true).map_err(|error| error.to_string()),
    });
    listens.then_some(child)
}
