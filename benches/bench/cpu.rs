//! What a process has used: time on a core, and memory.

use std::fs;
use std::time::Duration;

use crate::failure::{Failure, Outcome, Tried};

/// A daemon with its worker processes.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    pids: Vec<u32>,
    /// Whose main thread does no work for requests, so that its share can be told.
    has_control_thread: bool,
}

/// Time on a core so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub all: Duration,
    /// Of that, the control plane's thread.
    pub control: Duration,
}

impl CpuTime {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { all: self.all - earlier.all, control: self.control - earlier.control }
    }
}

impl Processes {
    pub(crate) fn one(pid: u32) -> Self {
        Self { pids: vec![pid], has_control_thread: false }
    }

    pub(crate) fn with_control_thread(pid: u32) -> Self {
        Self { pids: vec![pid], has_control_thread: true }
    }

    /// A master and the workers that it has started; `None` while there are none.
    pub(crate) fn with_children(pid: u32) -> Outcome<Option<Self>> {
        let mut pids = vec![pid];
        for entry in fs::read_dir("/proc").tried(|| "list processes".to_owned())?.flatten() {
            let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that has ended meanwhile is nobody's child.
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if parent(&stat) == Some(pid) {
                pids.push(child);
            }
        }
        Ok((pids.len() > 1).then_some(Self { pids, has_control_thread: false }))
    }

    /// From the scheduler's own count, in ns: ticks are too coarse for a window of a second.
    pub(crate) fn cpu_time(&self) -> Outcome<CpuTime> {
        let mut time = CpuTime::default();
        for pid in &self.pids {
            let threads = format!("/proc/{pid}/task");
            let entries =
                fs::read_dir(&threads).tried(|| format!("read {threads}: has the process ended?"))?;
            for entry in entries.flatten() {
                // A thread that ends between the list and the look takes its time with it; none does under load.
                let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else { continue };
                let ran = ran(&text)
                    .ok_or_else(|| Failure::new("this kernel does not count threads' time (schedstat)"))?;
                time.all += ran;
                if self.has_control_thread && entry.file_name().to_str() == Some(&pid.to_string()) {
                    time.control += ran;
                }
            }
        }
        Ok(time)
    }

    /// Resident memory of all processes together, in KiB; what they share is counted for each.
    pub(crate) fn rss_kib(&self) -> Outcome<u64> {
        let mut sum = 0;
        for pid in &self.pids {
            let path = format!("/proc/{pid}/status");
            let text = fs::read_to_string(&path).tried(|| format!("read {path}: has the process ended?"))?;
            sum += rss(&text).ok_or_else(|| Failure::new(format!("{path} has no VmRSS")))?;
        }
        Ok(sum)
    }
}

fn ran(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The command's name may hold spaces and parentheses; what follows the last one does not.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(ran("1500 20 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(ran(""), None);
        assert_eq!(rss("Name:\tx\nVmRSS:\t    5120 kB\nThreads:\t1\n"), Some(5120));
        assert_eq!(rss("Name:\tx\n"), None);
        assert_eq!(parent("42 (a) b) S 7 42 42"), Some(7));
        assert_eq!(parent("42"), None);
    }

    #[test]
    fn knows_this_process() {
        let this = Processes::with_control_thread(std::process::id());
        let before = this.cpu_time().unwrap();
        let sum: u64 = (0..20_000_000u64).fold(0, |sum, n| sum ^ n.wrapping_mul(sum | 1));
        let used = this.cpu_time().unwrap().since(before);
        assert!(used.all >= used.control, "{used:?} {sum}");
        assert!(this.rss_kib().unwrap() > 0);
    }
}
