//! Portcullis with everything on: a table of many services, a running canary on the one that is asked, the JSON
//! access log to a file, metrics.
//!
//! The services come from a state file, as after a restart: a thousand deploys would take longer than the bench.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Addresses, Ground, Kind, Peer, ends_with_us};
use crate::cpu::Processes;
use crate::failure::{Failure, Outcome, Tried};
use crate::visitor::{FLEET_SECRET, HOST};
use crate::world::World;

/// Which Portcullis, and what it knows.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub binary: PathBuf,
    /// With the one that is asked.
    pub services: usize,
}

pub(super) fn start(
    ground: &Ground,
    world: &mut World,
    kind: Kind,
    build: &Build,
    dir: &Path,
) -> Outcome<Peer> {
    let state_dir = dir.join("state");
    std::fs::create_dir(&state_dir).tried(|| format!("make {}", state_dir.display()))?;
    let state = state(ground, world.origin.address()?, world.origin.canary_address()?, build.services);
    super::write(&state_dir, "state.json", &state.to_string())?;
    // All clients of a bench have one address.
    super::write(dir, "portcullis.toml", "[limits]\nconnections_per_client = 0\n")?;
    let (control, access_log) = (dir.join("control.sock"), dir.join("access.log"));

    let mut command = ends_with_us(&build.binary, "KILL");
    for (name, _) in std::env::vars_os() {
        // The operator's own settings are not those of the bench.
        if name.to_string_lossy().starts_with("PORTCULLIS_") {
            command.env_remove(name);
        }
    }
    // In the environment, for builds that do not know it as a flag. No bench asks the internet for certificates.
    command.env("PORTCULLIS_ACME_DIRECTORY", "off");
    command.args(["run", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    command.args(["--workers", "1", "--fleet-secret", FLEET_SECRET]);
    command.arg("--config").arg(dir.join("portcullis.toml"));
    command.arg("--control").arg(&control).arg("--state-dir").arg(&state_dir);
    command.arg("--access-log").arg(&access_log);
    let mut daemon = ground.spawn(command, &dir.join("words"), Signal::KILL)?;

    let status = world.until("portcullis answers on its control socket", super::PATIENCE, || {
        daemon.check()?;
        status(&control).map_err(|why| format!("{why}\n{}", daemon.words()))
    })?;
    check(&status, build.services)?;
    let addresses = Addresses { plain: listener(&status, "http")?, tls: Some(listener(&status, "https")?) };
    let processes = Processes::with_control_thread(daemon.pid());
    Ok(Peer { kind, addresses, processes, access_log: Some(access_log), _daemon: daemon })
}

/// Only what differs from the defaults, so that older and newer builds read it alike.
fn state(ground: &Ground, origin: SocketAddr, canary: SocketAddr, services: usize) -> Value {
    let release =
        |id: &str, target: SocketAddr| json!({"id": id, "targets": [target.to_string()], "created_ms": 1});
    let service = |name: &str, policy: Value, canary: Value| {
        json!({
            "name": name,
            "policy": policy,
            "stable": release("r1", origin),
            "canary": canary,
            "held": null,
            "history": [],
            "next_number": 3,
        })
    };
    let policy = json!({
        "hosts": [HOST],
        "tls": true,
        "tls_redirect": false,
        "tls_certificate_path": ground.certificate.chain,
        "tls_private_key_path": ground.certificate.key,
    });
    let canary =
        json!({"release": release("r2", canary), "weight": "5%", "rollout": "bench", "overrides": {}});
    let others = (1..services)
        .map(|n| service(&format!("other{n}"), json!({"hosts": [format!("other{n}.test")]}), Value::Null));
    let services: Vec<Value> = std::iter::once(service("app", policy, canary)).chain(others).collect();
    json!({"version": 1, "generation": 1, "services": services})
}

/// `GET /v1/status`.
fn status(control: &Path) -> Result<Value, String> {
    let say = |error: std::io::Error| error.to_string();
    let mut socket = UnixStream::connect(control).map_err(say)?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(say)?;
    // To HTTP/1.0 the answer comes in one piece, up to the connection's end.
    let request = b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n";
    socket.write_all(request).map_err(say)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).map_err(say)?;
    let head = memchr::memmem::find(&answer, b"\r\n\r\n").ok_or("no answer")?;
    serde_json::from_slice(&answer[head + 4..]).map_err(|error| error.to_string())
}

fn check(status: &Value, services: usize) -> Outcome<()> {
    let known = status["services"].as_array().map_or(&[][..], Vec::as_slice);
    let app = known.iter().find(|service| service["name"] == "app");
    if known.len() != services || app.is_none_or(|app| app["canary"]["weight"] != "5%") {
        return Err(Failure::new(format!(
            "portcullis does not hold {services} services and a canary: {status}"
        )));
    }
    Ok(())
}

fn listener(status: &Value, name: &str) -> Outcome<SocketAddr> {
    let address = status["listeners"][name].as_str().unwrap_or_default();
    address.parse().tried(|| format!("learn where portcullis listens ({name})"))
}
