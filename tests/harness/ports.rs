//! Ports on loopback for servers that have to be told one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use socket2::{Domain, Socket, Type};

/// Sockets that keep ports from being given to anybody who asks the kernel for a free one.
static KEPT: Mutex<Vec<Socket>> = Mutex::new(Vec::new());

/// An address on which nobody listens. The port stays the caller's until the tests are over: a socket that is bound to it
/// and does not listen lets a server bind it too (all servers of the stories set `SO_REUSEADDR`, as this socket does),
/// and refuses connections while there is none.
pub fn free_address() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option of every socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("loopback has free ports");
    let address = socket.local_addr().expect("a bound socket has an address");
    KEPT.lock().expect("no holder panics").push(socket);
    address.as_socket().expect("an address of IPv4")
}
