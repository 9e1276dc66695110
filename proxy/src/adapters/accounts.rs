//! The machine's users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! Read anew for every connection to the control socket, so that `adduser ann portcullis` works at once.
//! Users of LDAP and the like are known by their primary group only: asking NSS needs libc's resolver,
//! which loads foreign code into the daemon.

use std::io;
use std::path::Path;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: Vec<(String, u32)>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Accounts {
    /// Blocks.
    pub fn read() -> io::Result<Self> {
        let text =
            |path: &Path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self::parse(&text(Path::new("/etc/passwd"))?, &text(Path::new("/etc/group"))?))
    }

    /// Lines that are not of the right form are skipped, as libc does.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let user = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            Some((name.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        let group_of = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default().trim().split(',');
            let members = members.filter(|member| !member.is_empty()).map(str::to_owned).collect();
            Some(Group { name, gid, members })
        };
        Self {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_of).collect(),
        }
    }

    pub fn user_name(&self, uid: u32) -> Option<&str> {
        self.users.iter().find(|(_, id)| *id == uid).map(|(name, _)| name.as_str())
    }

    pub fn group_id(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|group| group.name == name).map(|group| group.gid)
    }

    /// Whether the user belongs to the group, by their process's primary group or by the group's list.
    pub fn is_member(&self, uid: u32, gid: u32, group: &str) -> bool {
        let listed = |group: &Group| {
            self.users
                .iter()
                .any(|(name, id)| *id == uid && group.members.iter().any(|member| member == name))
        };
        self.groups.iter().any(|one| one.name == group && (one.gid == gid || listed(one)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership() {
        let accounts = Accounts::parse(
            "root:x:0:0:root:/root:/bin/bash\nann:x:1001:1001::/home/ann:/bin/sh\nbob:x:1002:50::/:/bin/sh\n\nbad\n:x:7:7\n",
            "root:x:0:\nportcullis:x:50:ann,carl\nportcullis-read:x:51:\nempty::x:\nbroken\n",
        );
        assert_eq!(accounts.user_name(1001), Some("ann"));
        assert_eq!(accounts.user_name(7), None);
        for (uid, gid, group, want) in [
            (1001, 1001, "portcullis", true),
            (1002, 50, "portcullis", true),
            (1003, 1003, "portcullis", false),
            (1001, 1001, "portcullis-read", false),
            (1001, 1001, "no-such-group", false),
            (1001, 1001, "", false),
        ] {
            assert_eq!(accounts.is_member(uid, gid, group), want, "{uid} {gid} {group:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(passwd in "[a-z0-9:,\\n]{0,60}", group in "\\PC{0,60}") {
            let accounts = Accounts::parse(&passwd, &group);
            let _ = accounts.is_member(1, 1, "a");
        }
    }
}
