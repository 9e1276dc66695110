//! The floor: a relay that does nothing but read and write. It looks at no byte, keeps one connection to the origin
//! for each client, and logs nothing, so what it needs is what the kernel takes for moving the messages.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::{Addresses, Ground, Kind, Peer, ends_with_us};
use crate::cpu::Processes;
use crate::failure::{Failure, Outcome, Tried};
use crate::poll::{Interest, Owner, Poll, Ready, Token};
use crate::world::World;

/// Starts this program again, as the relay.
pub(super) fn start(ground: &Ground, world: &World) -> Outcome<Peer> {
    let this = std::env::current_exe().tried(|| "find this program".to_owned())?;
    let mut command: Command = ends_with_us(&this, "KILL");
    command.arg("floor").arg(world.origin.address()?.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut daemon = ground.spawn_quiet(command, std::path::Path::new("/dev/null"), Signal::KILL)?;
    let stdout = daemon.child.stdout.take().ok_or_else(|| Failure::new("the floor has no output"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).tried(|| "hear from the floor".to_owned())?;
    let plain = line.trim().parse().tried(|| format!("learn where the floor listens from {line:?}"))?;
    let processes = Processes::one(daemon.pid());
    let addresses = Addresses { plain, tls: None };
    Ok(Peer { kind: Kind::Floor, addresses, processes, access_log: None, _daemon: daemon })
}

/// The relay itself; ends only by a signal.
pub(crate) fn serve(origin: SocketAddr) -> Outcome<()> {
    let poll = Poll::new()?;
    let listener = crate::machine::listen()?;
    poll.add(&listener, Token::new(Owner::OriginListener, 0))?;
    println!("{}", listener.local_addr().tried(|| "learn the floor's address".to_owned())?);
    let mut relay = Relay { poll, listener, origin, pairs: Vec::new(), scratch: vec![0; 256 * 1024] };
    let mut ready = Ready::new();
    loop {
        relay.poll.wait(&mut ready, Duration::from_secs(3600))?;
        for token in ready.take() {
            match token.owner {
                Owner::OriginListener => relay.accept()?,
                Owner::Origin => relay.on_event(token.index as usize, ORIGIN)?,
                _ => relay.on_event(token.index as usize, CLIENT)?,
            }
        }
    }
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    origin: SocketAddr,
    /// Never used again: windows are short, and a floor lives as long as one bench.
    pairs: Vec<Option<[Side; 2]>>,
    scratch: Vec<u8>,
}

const CLIENT: usize = 0;
const ORIGIN: usize = 1;

struct Side {
    tcp: TcpStream,
    token: Token,
    /// For which its socket had no room; while there is any, the other side is not read.
    unsent: Vec<u8>,
}

impl Relay {
    fn accept(&mut self) -> Outcome<()> {
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).tried(|| "accept a connection at the floor".to_owned()),
            };
            let origin = TcpStream::connect(self.origin).tried(|| "reach the origin".to_owned())?;
            let index = self.pairs.len();
            let side = |tcp: TcpStream, owner| {
                let token = Token::new(owner, index);
                crate::machine::prepare(&tcp)?;
                self.poll.add(&tcp, token)?;
                Ok(Side { tcp, token, unsent: Vec::new() })
            };
            let pair = [side(client, Owner::Load)?, side(origin, Owner::Origin)?];
            self.pairs.push(Some(pair));
        }
    }

    fn on_event(&mut self, index: usize, at: usize) -> Outcome<()> {
        let Some(pair) = &mut self.pairs[index] else { return Ok(()) };
        let [client, origin] = pair;
        let (from, to) = if at == CLIENT { (client, origin) } else { (origin, client) };
        let moved = if from.unsent.is_empty() {
            move_once(&self.poll, from, to, &mut self.scratch)?
        } else {
            from.go_on_writing(&self.poll, to)?
        };
        if moved == Moved::Ended {
            self.pairs[index] = None;
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq)]
enum Moved {
    Some,
    Ended,
}

fn move_once(poll: &Poll, from: &mut Side, to: &mut Side, scratch: &mut [u8]) -> Outcome<Moved> {
    let n = match from.tcp.read(scratch) {
        Ok(0) => return Ok(Moved::Ended),
        Ok(n) => n,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Moved::Some),
        Err(_) => return Ok(Moved::Ended),
    };
    let written = match to.tcp.write(&scratch[..n]) {
        Ok(written) => written,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(_) => return Ok(Moved::Ended),
    };
    if written < n {
        to.unsent.extend_from_slice(&scratch[written..n]);
        poll.interest(&to.tcp, to.token, Interest::Write)?;
        poll.interest(&from.tcp, from.token, Interest::None)?;
    }
    Ok(Moved::Some)
}

impl Side {
    /// There is room again; when all is written, `from` is read again.
    fn go_on_writing(&mut self, poll: &Poll, from: &Side) -> Outcome<Moved> {
        match self.tcp.write(&self.unsent) {
            Ok(n) => drop(self.unsent.drain(..n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Ok(Moved::Ended),
        }
        if self.unsent.is_empty() {
            poll.interest(&self.tcp, self.token, Interest::Read)?;
            poll.interest(&from.tcp, from.token, Interest::Read)?;
        }
        Ok(Moved::Some)
    }
}
