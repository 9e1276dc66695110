//! haproxy as Debian packages it, one thread, its log in the format that its manual calls the HTTP one.
//!
//! It writes no file itself. A ring that it drains to a syslog server over TCP is its cheapest way to log and
//! loses nothing, so that is what Portcullis is compared with.

use std::net::SocketAddr;
use std::path::Path;

use rustix::process::Signal;

use super::{Addresses, Ground, Kind, Peer, ends_with_us, server, write};
use crate::cpu::Processes;
use crate::failure::Outcome;
use crate::machine::free_port;
use crate::world::World;

pub(super) fn start(ground: &Ground, world: &mut World, dir: &Path) -> Outcome<Peer> {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let (plain, tls) = (loopback(free_port()?), loopback(free_port()?));
    let (origin, log) = (world.origin.address()?, world.log.address()?);
    let certificate = ground.certificate.both.display();
    let configuration = write(
        dir,
        "haproxy.cfg",
        &format!(
            "global
  nbthread 1
  maxconn 8000
  log ring@access local0
  tune.ssl.cachesize 0
  ssl-default-bind-options ssl-min-ver TLSv1.2
ring access
  format rfc3164
  maxlen 2000
  size 4194304
  timeout connect 5s
  timeout server 10s
  server reader {log}
defaults
  mode http
  log global
  option httplog
  timeout client 120s
  timeout server 60s
  timeout connect 5s
  timeout http-keep-alive 120s
  timeout http-request 30s
  option forwardfor
  http-reuse always
frontend f
  bind {plain}
  bind {tls} ssl crt {certificate} alpn h2,http/1.1
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
  default_backend b
backend b
  server s {origin} pool-max-conn 256 maxconn 1000
"
        ),
    )?;
    let mut command = ends_with_us(&server("haproxy")?, "KILL");
    command.arg("-f").arg(configuration).arg("-db");
    let mut daemon = ground.spawn(command, &dir.join("words"), Signal::KILL)?;
    daemon.wait_for(world, "haproxy", &[plain, tls])?;
    let processes = Processes::one(daemon.pid());
    let addresses = Addresses { plain, tls: Some(tls) };
    Ok(Peer { kind: Kind::Haproxy, addresses, processes, access_log: None, _daemon: daemon })
}
