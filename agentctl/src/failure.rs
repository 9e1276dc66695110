//! Why a verb was not done: from errors to an exit code and to what, why and what to do next.
//!
//! How that looks on a terminal is `render::problem`'s business.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use model::protocol::{DiagnosisBody, Problem};

use crate::client::ClientError;

const OTHER: u8 = 1;
pub(crate) const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const DENIED: u8 = 8;
/// No failure: what runs is not what was declared.
pub(crate) const DRIFT: u8 = 10;
/// 128 + SIGINT, as shells count.
const INTERRUPTED: u8 = 130;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write the output")]
    Output(io::Error),
    #[error("cannot start")]
    Start(#[from] io::Error),
    #[error("interrupted before the operation on `{service}` ended")]
    Interrupted { service: String },
    #[error("interrupted before everything on `{service}` had drained")]
    InterruptedHalt { service: String },
    #[error("interrupted before the authority had answered for the certificate `{name}`")]
    InterruptedCertificate { name: String },
}

/// A failure as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Report {
    pub(crate) message: String,
    /// The nearest first.
    pub(crate) causes: Vec<String>,
    pub(crate) diagnosis: Option<DiagnosisBody>,
    pub(crate) hint: Option<String>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Client(problem.into())
    }
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => match error {
                ClientError::Problem(problem) => problem.code.exit_code(),
                ClientError::NoRights { .. } => DENIED,
                ClientError::TooLong { .. } | ClientError::NotUnderstood { .. } => OTHER,
                ClientError::Missing { .. }
                | ClientError::Refused { .. }
                | ClientError::Connect { .. }
                | ClientError::NoReply { .. }
                | ClientError::Silent { .. }
                | ClientError::Lost { .. }
                | ClientError::Cut { .. } => UNREACHABLE,
            },
            Self::Output(_) | Self::Start(_) => OTHER,
            Self::Interrupted { .. } | Self::InterruptedHalt { .. } | Self::InterruptedCertificate { .. } => {
                INTERRUPTED
            }
        }
    }

    pub(crate) fn report(&self) -> Report {
        if let Self::Client(ClientError::Problem(problem)) = self {
            let Problem { message, causes, hint, diagnosis, .. } = Problem::clone(problem);
            return Report { message, causes, diagnosis, hint };
        }
        let mut causes = Vec::new();
        let mut source = match self {
            // `transparent` shows the client's error as our own message; its source is the first cause.
            Self::Output(error) | Self::Start(error) => Some(error as &dyn std::error::Error),
            other => std::error::Error::source(other),
        };
        while let Some(cause) = source {
            causes.push(cause.to_string());
            source = cause.source();
        }
        causes.dedup();
        Report { message: self.to_string(), causes, diagnosis: None, hint: self.hint() }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Client(error) => return client_hint(error),
            Self::Output(_) => "the command itself may have been done: `agentctl status` shows".to_owned(),
            Self::Start(_) => return None,
            Self::Interrupted { service } => {
                format!("the agent may go on without you: `agentctl status {service}` shows what it does")
            }
            Self::InterruptedCertificate { name } => {
                format!("the agent goes on without you: `agentctl certs show {name}` shows how far it is")
            }
            Self::InterruptedHalt { service } => {
                format!("new requests are still held up: `agentctl resume {service}` lets them through")
            }
        };
        Some(hint)
    }

    /// Of a pause or stop: its visitors go on waiting, whoever watches the drain.
    pub(crate) fn of_halt(self) -> Self {
        match self {
            Self::Interrupted { service } => Self::InterruptedHalt { service },
            other => other,
        }
    }
}

fn client_hint(error: &ClientError) -> Option<String> {
    let hint = match error {
        ClientError::Missing { .. } | ClientError::Refused { .. } => {
            "is portcullis running? `systemctl status portcullis` shows; \
             if its socket is elsewhere, give `--control PATH` or set PORTCULLIS_CONTROL"
        }
        ClientError::NoRights { path } => return Some(rights_hint(path)),
        ClientError::Connect { .. } => {
            "check that `--control` (or PORTCULLIS_CONTROL) names the agent's socket: a unix socket, \
             by default /run/portcullis/control.sock"
        }
        ClientError::NoReply { .. } | ClientError::Lost { .. } => {
            "`systemctl status portcullis` and `journalctl -u portcullis` show what it does"
        }
        ClientError::Silent { .. } => {
            "the operation may go on: `agentctl status` shows what was done, as soon as the agent answers; \
             `systemctl status portcullis` and `journalctl -u portcullis` show what it does"
        }
        ClientError::Cut { .. } => {
            "`agentctl status` shows what was done once the agent is back; \
             `journalctl -u portcullis` shows why it stopped"
        }
        ClientError::TooLong { .. } | ClientError::NotUnderstood { .. } => {
            "are agentctl and portcullis of the same version (`agentctl --version`, `portcullis --version`), \
             and is `--control` the socket of portcullis?"
        }
        ClientError::Problem(problem) => return problem.hint.clone(),
    };
    Some(hint.to_owned())
}

fn rights_hint(socket: &Path) -> String {
    match owning_group(socket) {
        Some(group) if group != "root" => format!(
            "run it with `sudo`, or join the socket's group: `sudo usermod -aG {group} \"$USER\"`, then log in again"
        ),
        _ => "run it with `sudo`, or join the group that owns the socket and log in again".to_owned(),
    }
}

/// The group of the socket, or of the nearest folder above it that we may look at.
fn owning_group(socket: &Path) -> Option<String> {
    let gid = socket.ancestors().find_map(|path| std::fs::metadata(path).ok())?.gid();
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    group_name(&groups, gid)
}

/// `name:password:gid:members`, one group per line.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    };
    groups.lines().find_map(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::protocol::ProblemCode;

    fn at(kind: io::ErrorKind) -> ClientError {
        ClientError::Connect { path: "/x.sock".into(), source: kind.into() }
    }

    #[test]
    fn exit_codes() {
        let path = || "/x.sock".into();
        for (failure, code) in [
            (Failure::from(Problem::new(ProblemCode::Internal, "m")), 1),
            (Problem::new(ProblemCode::Invalid, "m").into(), 2),
            (Problem::new(ProblemCode::Conflict, "m").into(), 4),
            (Problem::new(ProblemCode::GateFailed, "m").into(), 5),
            (Problem::new(ProblemCode::Reverted, "m").into(), 6),
            (Problem::new(ProblemCode::Denied, "m").into(), 8),
            (ClientError::Missing { path: path() }.into(), 3),
            (ClientError::Refused { path: path() }.into(), 3),
            (ClientError::NoRights { path: path() }.into(), 8),
            (at(io::ErrorKind::Other).into(), 3),
            (ClientError::Cut { source: None }.into(), 3),
            (ClientError::Silent { after: std::time::Duration::from_secs(60) }.into(), 3),
            (ClientError::TooLong { bytes_max: 1 }.into(), 1),
            (Failure::Output(io::ErrorKind::StorageFull.into()), 1),
            (Failure::Interrupted { service: "shop".into() }, 130),
            (Failure::Interrupted { service: "shop".into() }.of_halt(), 130),
            (Failure::InterruptedCertificate { name: "shop.test".into() }, 130),
            (Problem::new(ProblemCode::CertificatePending, "m").into(), 7),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
            assert!(!failure.report().message.is_empty(), "{failure:?}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let report = Failure::from(at(io::ErrorKind::NotADirectory)).report();
        assert_eq!(report.message, "cannot connect to the agent's control socket `/x.sock`");
        assert_eq!(report.causes, ["not a directory"]);
        let report = Failure::Output(io::ErrorKind::StorageFull.into()).report();
        assert_eq!((report.message.as_str(), report.causes.len()), ("cannot write the output", 1));
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nadm:x:4:a,b\nbroken\nportcullis:x:990:\n";
        assert_eq!(group_name(groups, 990).as_deref(), Some("portcullis"));
        assert_eq!(group_name(groups, 7), None);
    }
}
