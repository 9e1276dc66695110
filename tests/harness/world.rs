//! A daemon, its operator and its Pumas: where most stories begin.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::agentctl::{Agentctl, Ran};
use crate::daemon::{Daemon, DaemonOptions};
use crate::exchange::{Answer, Ask};
use crate::load::{Load, LoadPlan};

pub struct World {
    // Dropped in this order: the daemon before its directory.
    pub daemon: Daemon,
    dir: TempDir,
}

impl World {
    pub fn start() -> Self {
        Self::with(DaemonOptions::default())
    }

    /// A daemon with further arguments of `portcullis run`.
    pub fn with_args<const N: usize>(args: [&str; N]) -> Self {
        Self::with(DaemonOptions { args: args.map(Into::into).to_vec(), ..DaemonOptions::default() })
    }

    pub fn with(options: DaemonOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("pc").tempdir().expect("a temporary directory");
        Self { daemon: Daemon::start(dir.path(), options), dir }
    }

    /// A daemon with this section `[limits]` in its configuration.
    pub fn with_limits(limits: &str, mut options: DaemonOptions) -> Self {
        let dir = tempfile::Builder::new().prefix("pc").tempdir().expect("a temporary directory");
        let file = dir.path().join("portcullis.toml");
        std::fs::write(&file, format!("[limits]\n{limits}\n")).expect("a fresh directory can be written");
        options.args.extend(["--config".into(), file.into()]);
        Self { daemon: Daemon::start(dir.path(), options), dir }
    }

    /// A daemon with this configuration file.
    pub fn with_config(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("pc").tempdir().expect("a temporary directory");
        let file = dir.path().join("portcullis.toml");
        std::fs::write(&file, config).expect("a fresh directory can be written");
        let args = vec!["--config".into(), file.into()];
        let options = DaemonOptions { args, ..DaemonOptions::default() };
        Self { daemon: Daemon::start(dir.path(), options), dir }
    }

    /// A daemon for which `hosts` is `/etc/hosts`; `None` where that takes rights that the tests do not have.
    pub fn with_hosts(hosts: &Path) -> Option<Self> {
        let can_mount = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success());
        if !can_mount {
            // Loud: this promise went unchecked on this machine.
            eprintln!("SKIPPED: needs a mount namespace (run the tests as root)");
            return None;
        }
        let script = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
        let command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
        let wrapper = command.map(Into::into).into_iter().chain([hosts.into()]).collect();
        Some(Self::with(DaemonOptions { wrapper, ..DaemonOptions::default() }))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn http(&self) -> SocketAddr {
        self.daemon.http()
    }

    pub fn operator(&self) -> Agentctl {
        Agentctl::new(&self.daemon.control())
    }

    /// `agentctl` with these arguments.
    pub fn agentctl<const N: usize>(&self, args: [&str; N]) -> Ran {
        self.operator().run(args)
    }

    /// Deploys `target` to the service `shop` at `shop.test`, without bake.
    #[track_caller]
    pub fn deploy(&self, target: &str) -> Ran {
        let host = ["--host", "shop.test", "--bake", "0s"];
        self.operator().run(["deploy", "shop", "--target", target].into_iter().chain(host)).succeeds()
    }

    /// The same with `--json`, for its events.
    #[track_caller]
    pub fn deploy_with(&self, target: &str, more: &[&str]) -> Ran {
        let args = ["deploy", "shop", "--target", target, "--host", "shop.test", "--bake", "0s"];
        self.operator().run(args.iter().chain(more)).succeeds()
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        Ask::get("shop.test", path).at(self.http())
    }

    /// Steady load on `shop.test`: a few connections of each protocol.
    pub fn load(&self, path: &str) -> Load {
        Load::start(self.http(), LoadPlan { path: path.to_owned(), ..LoadPlan::default() })
    }

    /// The same over TLS.
    pub fn load_over_tls(&self, path: &str) -> Load {
        let plan = LoadPlan { path: path.to_owned(), tls: true, ..LoadPlan::default() };
        Load::start(self.daemon.https(), plan)
    }
}
