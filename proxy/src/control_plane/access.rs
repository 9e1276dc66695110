//! Who may do what through the control socket.
//!
//! The kernel says who connected (`SO_PEERCRED`); nothing that the caller sends can raise their role.

use std::net::IpAddr;

use model::protocol::{Problem, ProblemCode};

use crate::adapters::accounts::Accounts;
use crate::config::Groups;

/// Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything. The control socket belongs to this role's group, so that members of the other two
    /// must be in it as well to connect.
    Read,
    /// Change services.
    Operate,
    /// Whatever touches more than one service.
    Admin,
}

/// The process at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: Option<i32>,
}

/// A peer that has been looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `ann (uid 1001)`
    pub name: String,
    pub role: Option<Role>,
}

impl Caller {
    /// `own_uid` is the daemon's: whoever can act as it can replace it anyway.
    pub fn identify(peer: &Peer, own_uid: u32, accounts: &Accounts, groups: &Groups) -> Self {
        let name = accounts.user_name(peer.uid).unwrap_or("unknown");
        let member = |group: &str| accounts.is_member(peer.uid, peer.gid, group);
        let role = if peer.uid == 0 || peer.uid == own_uid || member(&groups.admin) {
            Some(Role::Admin)
        } else if member(&groups.operate) {
            Some(Role::Operate)
        } else if member(&groups.read) {
            Some(Role::Read)
        } else {
            None
        };
        Self { name: format!("{name} (uid {})", peer.uid), role }
    }

    pub fn require(&self, needed: Role, groups: &Groups) -> Result<(), Problem> {
        if self.role.is_some_and(|role| role >= needed) {
            return Ok(());
        }
        let Groups { read, operate, admin } = groups;
        // The socket itself lets only `read` in, so the others come with it.
        let (list, what) = match needed {
            Role::Read => (read.clone(), "look at this agent"),
            Role::Operate => (format!("{read},{operate}"), "change services"),
            Role::Admin => (format!("{read},{admin}"), "change the agent itself"),
        };
        let message = format!("{} may not {what}", self.name);
        let hint = format!("use sudo, or ask root for `usermod -aG {list} USER`");
        Err(Problem::new(ProblemCode::Denied, message).hint(hint))
    }

    /// The caller as the audit log names them. `ssh_connection` is what sshd told their shell: a hint,
    /// not a proof, so only its address is taken, and only if it is one.
    pub fn actor(&self, ssh_connection: Option<&str>) -> String {
        let address = ssh_connection.and_then(|text| text.split(' ').next()?.parse::<IpAddr>().ok());
        match address {
            Some(address) => format!("{} from {address}", self.name),
            None => self.name.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Groups {
        Groups { read: "readers".into(), operate: "operators".into(), admin: "admins".into() }
    }

    #[test]
    fn roles_come_from_the_system() {
        let accounts = Accounts::parse(
            "root:x:0:0::/:\nann:x:1:1::/:\nbob:x:2:2::/:\ncarl:x:3:3::/:\nportcullis:x:9:9::/:\n",
            "readers:x:50:bob,ann\noperators:x:51:ann\nadmins:x:52:\n",
        );
        for (uid, gid, want) in [
            (0, 0, Some(Role::Admin)),
            (9, 9, Some(Role::Admin)),
            (1, 1, Some(Role::Operate)),
            (2, 2, Some(Role::Read)),
            (3, 3, None),
            (3, 52, Some(Role::Admin)),
            (65534, 65534, None),
        ] {
            let caller = Caller::identify(&Peer { uid, gid, pid: None }, 9, &accounts, &groups());
            assert_eq!(caller.role, want, "{uid} {gid}");
            for needed in [Role::Read, Role::Operate, Role::Admin] {
                let allowed = caller.require(needed, &groups()).is_ok();
                assert_eq!(allowed, want.is_some_and(|role| role >= needed), "{uid} {needed:?}");
            }
        }
    }

    #[test]
    fn actors() {
        let caller = Caller { name: "ann (uid 1)".into(), role: None };
        for (ssh, want) in [
            (None, "ann (uid 1)"),
            (Some("192.0.2.7 50022 10.0.0.1 22"), "ann (uid 1) from 192.0.2.7"),
            (Some("2001:db8::1 1 ::1 22"), "ann (uid 1) from 2001:db8::1"),
            (Some("root (uid 0)"), "ann (uid 1)"),
            (Some(""), "ann (uid 1)"),
        ] {
            assert_eq!(caller.actor(ssh), want);
        }
        let denied = caller.require(Role::Operate, &groups()).unwrap_err();
        assert_eq!(denied.code, ProblemCode::Denied);
        assert!(denied.hint.unwrap().contains("usermod -aG readers,operators USER"));
    }
}
