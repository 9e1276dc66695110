//! A real Redis server, as the thing that stands on the wrong port.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::puma::free_address;
use crate::wait::eventually;

pub struct Redis {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Between asking for a port and binding it, somebody else may take it.
        for _ in 0..5 {
            let address = free_address();
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
            let child = command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let mut child = child.expect("redis-server is installed (bin/test installs it)");
            let listens = eventually("Redis listens", || match child.try_wait() {
                Ok(Some(_)) => Ok(false),
                _ => std::net::TcpStream::connect(address).map(|_| true).map_err(|error| error.to_string()),
            });
            if listens {
                return Self { child, address, _dir: dir };
            }
        }
        panic!("five ports in a row were taken before Redis could bind them");
    }

    pub fn target(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
