//! One window: a load warms up, then requests and CPU time are counted over the same stretch.

use std::time::{Duration, Instant};

use crate::cells::Cell;
use crate::cpu::CpuTime;
use crate::failure::{Failure, Outcome, Tried};
use crate::peers::Peer;
use crate::world::{Load, World};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub warm_up: Duration,
    pub window: Duration,
}

/// What a proxy used in a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub requests: u64,
    pub wall: Duration,
    pub cpu: CpuTime,
    pub rss_kib: u64,
}

/// What a peer uses without any request, as a share of a core.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Idle {
    pub all: f64,
    pub control: f64,
}

impl Window {
    /// CPU time per request in µs, without what the control plane would have used anyway.
    ///
    /// Taken off is what its thread did use, at most what it uses when idle: a control plane that works more
    /// because of requests is counted.
    pub(crate) fn cost_us(&self, idle: Idle) -> f64 {
        let steady = self.cpu.control.min(self.wall.mul_f64(idle.control));
        (self.cpu.all - steady).as_secs_f64() * 1e6 / self.requests as f64
    }

    /// Share of its core that the proxy used. Below some 95 % it also paid for going to sleep.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu.all.as_secs_f64() / self.wall.as_secs_f64()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 / self.wall.as_secs_f64()
    }
}

/// Runs `cell` against `peer`, which must offer it.
pub(crate) fn measure(world: &mut World, peer: &Peer, cell: &Cell, lengths: Lengths) -> Outcome<Window> {
    let window = measure_once(world, peer, cell, lengths);
    window.tried(|| format!("measure {} with {}", cell.name, peer.kind.name()))
}

fn measure_once(world: &mut World, peer: &Peer, cell: &Cell, lengths: Lengths) -> Outcome<Window> {
    let dial = cell.dial(peer.addresses)?;
    let dial = dial.ok_or_else(|| Failure::new("it does not offer this"))?;
    let mut load = cell.closed_loop(&world.poll, &dial)?;
    world.run(load.as_mut(), lengths.warm_up)?;
    let window = count(world, peer, load.as_mut(), lengths.window)?;
    drop(load);
    // The proxy notices that its clients are gone; the next one measured does not pay for that.
    world.serve(Duration::from_millis(20))?;
    peer.check_access_log()?;
    peer.empty_access_log()?;
    Ok(window)
}

/// Counts while `load`, which runs already, goes on for `time`.
pub(crate) fn count(world: &mut World, peer: &Peer, load: &mut dyn Load, time: Duration) -> Outcome<Window> {
    let (cpu, requests, started) = (peer.processes.cpu_time()?, load.completed(), Instant::now());
    world.run(load, time)?;
    let (wall, completed) = (started.elapsed(), load.completed());
    let window = Window {
        requests: completed - requests,
        wall,
        cpu: peer.processes.cpu_time()?.since(cpu),
        rss_kib: peer.processes.rss_kib()?,
    };
    if window.requests == 0 {
        return Err(Failure::new("no request was answered"));
    }
    Ok(window)
}

/// What each peer uses while nobody asks for anything.
pub(crate) fn idle(world: &mut World, peers: &[Peer], time: Duration) -> Outcome<Vec<Idle>> {
    let times =
        |peers: &[Peer]| peers.iter().map(|peer| peer.processes.cpu_time()).collect::<Outcome<Vec<_>>>();
    let (before, started) = (times(peers)?, Instant::now());
    world.serve(time)?;
    let wall = started.elapsed().as_secs_f64();
    let used = times(peers)?.into_iter().zip(before).map(|(after, before)| after.since(before));
    let share = |time: Duration| time.as_secs_f64() / wall;
    Ok(used.map(|cpu| Idle { all: share(cpu.all), control: share(cpu.control) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_steady_cost_is_taken_off() {
        let ms = Duration::from_millis;
        let window = |control| Window {
            requests: 1000,
            wall: ms(1000),
            cpu: CpuTime { all: ms(100), control: ms(control) },
            rss_kib: 0,
        };
        let idle = Idle { all: 0.02, control: 0.02 };
        for (control, wants) in [(0, 100.0), (15, 85.0), (20, 80.0), (50, 80.0)] {
            assert!((window(control).cost_us(idle) - wants).abs() < 1e-6, "{control}");
        }
        assert!((window(50).cost_us(Idle::default()) - 100.0).abs() < 1e-6);
    }
}
