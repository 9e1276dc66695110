//! nginx as Debian packages it, with its default log format, unbuffered as it is by default.

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
    let configuration = configuration(ground, dir, plain, tls, world.origin.address()?);
    let configuration = write(dir, "nginx.conf", &configuration)?;
    // Its workers outlive a master that is killed; asked to end, it takes them along.
    let mut command = ends_with_us(&server("nginx")?, "TERM");
    command.arg("-c").arg(configuration).arg("-p").arg(dir).arg("-e").arg(dir.join("error.log"));
    let mut daemon = ground.spawn(command, &dir.join("words"), Signal::TERM)?;
    daemon.wait_for(world, "nginx", &[plain, tls])?;
    let pid = daemon.pid();
    let processes = world.until("nginx starts its worker", super::PATIENCE, || {
        let found = Processes::with_children(pid).map_err(|error| error.to_string())?;
        found.ok_or_else(|| "no child".to_owned())
    })?;
    let addresses = Addresses { plain, tls: Some(tls) };
    let access_log = Some(dir.join("access.log"));
    Ok(Peer { kind: Kind::Nginx, addresses, processes, access_log, _daemon: daemon })
}

fn configuration(
    ground: &Ground,
    dir: &Path,
    plain: SocketAddr,
    tls: SocketAddr,
    origin: SocketAddr,
) -> String {
    // Only root may say whose worker it is; everybody else's is their own, and a warning.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let dir = dir.display();
    let (chain, key) = (ground.certificate.chain.display(), ground.certificate.key.display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("  {what}_temp_path {dir}/{what};\n"))
        .concat();
    format!(
        "{user}
worker_processes 1; daemon off; worker_rlimit_nofile 20000; pid {dir}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log {dir}/access.log combined;
{temporary}  keepalive_timeout 120s; keepalive_requests 100000000; sendfile off; tcp_nodelay on;
  upstream app {{ server {origin}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen {plain}; listen {tls} ssl http2; server_name app.test;
    ssl_certificate {chain}; ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache off; ssl_session_tickets on;
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header Connection \"\";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"
    )
}
