//! A service that lets nobody through for a while: paused, so that its visitors wait, or stopped, so that they
//! see a page.
//!
//! What is in flight when it begins, and how it drains, is the daemon's business.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::canary::Overrides;
use crate::duration;
use crate::policy_patch::{bounded, invalid, parse_bypass, positive};
use crate::protocol::{PauseRequest, Problem, StopRequest};

/// What an operator ordered; in force until `resume`, restarts and deploys included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    pub kind: HaltKind,
    /// Requests that are let through all the same; visitors are not looked at.
    pub bypass: Overrides,
    /// Who began it, and when (Unix time in ms); orders that only change its settings are in the audit log.
    pub actor: String,
    pub since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HaltKind {
    Paused {
        /// How long a request waits at most, counted from its own arrival.
        max_pause: Duration,
        /// How many may wait at a time; `None`: as many as the data plane has room for.
        waiting_max: Option<NonZeroU32>,
    },
    Stopped {
        /// For the visitors: plain text.
        message: Option<String>,
    },
}

/// What becomes of a request of a halted service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A look at the health path: whoever balances over several machines must not take a pause for a failure.
    Healthy,
    /// The bypass names it.
    Through,
    Wait,
    Refuse,
}

/// The facts of a request that the verdict may use.
pub struct Arriving<'r, H, C> {
    /// GET or HEAD.
    pub is_look: bool,
    /// As the app would see it, without query.
    pub path: &'r str,
    /// The first value of a request header, by lower-case name.
    pub header: H,
    /// The value of a cookie, by name.
    pub cookie: C,
    pub client: IpAddr,
}

/// Longer than any page shows.
const MESSAGE_CHARS_MAX: usize = 2_000;

impl Halt {
    pub const MAX_PAUSE: Duration = Duration::from_secs(30);

    /// `health_path` is that of the service's gate, and may have a query.
    pub fn judge<'r, H, C>(&self, request: &Arriving<'r, H, C>, health_path: &str) -> Verdict
    where
        H: Fn(&str) -> Option<&'r [u8]>,
        C: Fn(&str) -> Option<&'r str>,
    {
        let without_query = health_path.split('?').next();
        if request.is_look && without_query == Some(request.path) {
            return Verdict::Healthy;
        }
        if self.bypass.names(&request.header, &request.cookie, request.client) {
            return Verdict::Through;
        }
        match self.kind {
            HaltKind::Paused { .. } => Verdict::Wait,
            HaltKind::Stopped { .. } => Verdict::Refuse,
        }
    }

    pub fn is_pause(&self) -> bool {
        matches!(self.kind, HaltKind::Paused { .. })
    }

    pub fn message(&self) -> Option<&str> {
        match &self.kind {
            HaltKind::Stopped { message } => message.as_deref(),
            HaltKind::Paused { .. } => None,
        }
    }

    /// Whether both order the same, whoever did.
    pub fn orders_what(&self, other: &Self) -> bool {
        (&self.kind, &self.bypass) == (&other.kind, &other.bypass)
    }

    /// `self`, ordered while `before` was in force: the same kind of halt has gone on since then.
    pub fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(before) = before.filter(|before| before.is_pause() == self.is_pause()) {
            self.actor.clone_from(&before.actor);
            self.since_ms = before.since_ms;
        }
        self
    }
}

/// An order as it was asked for: what to do, whom to let through, and how long to wait for what is in flight
/// (`None`: as long as at a deploy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub kind: HaltKind,
    pub bypass: Overrides,
    pub drain: Option<Duration>,
}

pub fn parse_pause(request: &PauseRequest) -> Result<Order, Problem> {
    let mut max_pause = Halt::MAX_PAUSE;
    positive("max_pause", request.max_pause.as_ref(), &mut max_pause)?;
    let waiting_max = parse_waiting_max(request.waiting_max)?;
    let kind = HaltKind::Paused { max_pause, waiting_max };
    Ok(Order { kind, bypass: parse_bypass(&request.bypass)?, drain: parse_drain(&request.drain_timeout)? })
}

pub fn parse_stop(request: &StopRequest) -> Result<Order, Problem> {
    let message = request.message.as_deref().map(parse_message).transpose()?.flatten();
    let kind = HaltKind::Stopped { message };
    Ok(Order { kind, bypass: parse_bypass(&request.bypass)?, drain: parse_drain(&request.drain_timeout)? })
}

fn parse_drain(text: &Option<String>) -> Result<Option<Duration>, Problem> {
    let mut drain = Duration::ZERO;
    bounded("drain_timeout", text.as_ref(), &mut drain)?;
    Ok(text.is_some().then_some(drain))
}

fn parse_waiting_max(count: Option<u32>) -> Result<Option<NonZeroU32>, Problem> {
    let Some(count) = count else { return Ok(None) };
    let Some(some) = NonZeroU32::new(count).filter(|count| count.get() <= 100_000) else {
        let message = format!("{count} is not a number from 1 to 100000");
        return Err(invalid("waiting_max", message).hint("`stop` lets nobody wait"));
    };
    Ok(Some(some))
}

/// An empty text is no message.
fn parse_message(text: &str) -> Result<Option<String>, Problem> {
    let text = text.trim();
    if text.chars().count() > MESSAGE_CHARS_MAX {
        let message = format!("the message is longer than {MESSAGE_CHARS_MAX} characters");
        return Err(invalid("message", message));
    }
    if text.chars().any(|c| c.is_control() && c != '\n') {
        let message = "the message has control characters: write plain text, with line breaks at most";
        return Err(invalid("message", message.to_owned()));
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// For people: what visitors meet.
pub fn describe(kind: &HaltKind) -> String {
    match kind {
        HaltKind::Paused { max_pause, .. } => {
            format!("new requests wait, up to {} each", duration::print(*max_pause))
        }
        HaltKind::Stopped { .. } => "new requests are answered 503".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{BypassBody, ProblemCode};

    fn halt(kind: HaltKind) -> Halt {
        let bypass = parse_bypass(&BypassBody {
            headers: vec!["X-Team=yes".into()],
            cookies: vec!["team=1".into()],
            networks: vec!["192.0.2.0/24".into()],
        });
        Halt { kind, bypass: bypass.unwrap(), actor: "ann".into(), since_ms: 7 }
    }

    fn paused() -> Halt {
        halt(HaltKind::Paused { max_pause: Halt::MAX_PAUSE, waiting_max: None })
    }

    fn stopped() -> Halt {
        halt(HaltKind::Stopped { message: Some("back at noon".into()) })
    }

    #[test]
    fn whom_a_halt_lets_through() {
        use Verdict::{Healthy, Refuse, Through, Wait};
        type Row = (bool, &'static str, &'static str, &'static str, &'static str, [Verdict; 2]);
        let rows: [Row; 9] = [
            (true, "/", "", "", "10.0.0.1", [Wait, Refuse]),
            (true, "/up", "", "", "10.0.0.1", [Healthy, Healthy]),
            (true, "/up", "yes", "", "10.0.0.1", [Healthy, Healthy]),
            (true, "/upload", "", "", "10.0.0.1", [Wait, Refuse]),
            (false, "/up", "", "", "10.0.0.1", [Wait, Refuse]),
            (true, "/", "yes", "", "10.0.0.1", [Through, Through]),
            (false, "/", "no", "", "10.0.0.1", [Wait, Refuse]),
            (false, "/", "", "1", "10.0.0.1", [Through, Through]),
            (true, "/", "", "", "192.0.2.7", [Through, Through]),
        ];
        for (is_look, path, header, cookie, client, want) in rows {
            let request = Arriving {
                is_look,
                path,
                header: |name: &str| (name == "x-team" && !header.is_empty()).then_some(header.as_bytes()),
                cookie: |name: &str| (name == "team" && !cookie.is_empty()).then_some(cookie),
                client: client.parse().unwrap(),
            };
            let seen = [paused(), stopped()].map(|halt| halt.judge(&request, "/up?full=1"));
            assert_eq!(seen, want, "{is_look} {path} {header} {cookie} {client}");
        }
    }

    #[test]
    fn a_halt_goes_on_since_it_began() {
        let later = |halt: Halt| Halt { actor: "bob".into(), since_ms: 9, ..halt };
        let longer = later(halt(HaltKind::Paused { max_pause: Duration::from_secs(60), waiting_max: None }));
        for (before, now, since) in [
            (None, later(paused()), ("bob", 9)),
            (Some(paused()), longer, ("ann", 7)),
            (Some(paused()), later(stopped()), ("bob", 9)),
            (Some(stopped()), later(stopped()), ("ann", 7)),
        ] {
            let kind = now.kind.clone();
            let now = now.after(before.as_ref());
            assert_eq!(
                (now.actor.as_str(), now.since_ms, &now.kind),
                (since.0, since.1, &kind),
                "{before:?}"
            );
        }
    }

    #[test]
    fn orders_are_parsed_or_refused() {
        let pause = |max_pause: &str, waiting_max| {
            let request = PauseRequest {
                max_pause: Some(max_pause.to_owned()).filter(|text| !text.is_empty()),
                waiting_max,
                ..PauseRequest::default()
            };
            parse_pause(&request).map(|order| order.kind).map_err(|problem| problem.message)
        };
        let paused = |seconds, waiting_max| {
            let waiting_max = NonZeroU32::new(waiting_max);
            Ok(HaltKind::Paused { max_pause: Duration::from_secs(seconds), waiting_max })
        };
        assert_eq!(pause("", None), paused(30, 0));
        assert_eq!(pause("5m", Some(7)), paused(300, 7));
        for (max_pause, waiting_max, want) in [
            ("0s", None, "max_pause: must be longer than 0s"),
            ("30", None, "max_pause: `30` is not a duration"),
            ("25h", None, "max_pause: `25h` is too long"),
            ("30s", Some(0), "waiting_max: 0 is not a number from 1 to 100000"),
            ("30s", Some(100_001), "waiting_max: 100001 is not"),
        ] {
            let refused = pause(max_pause, waiting_max).unwrap_err();
            assert!(refused.starts_with(want), "{max_pause} {waiting_max:?}: {refused}");
        }
        let stop = |message: &str| {
            let request = StopRequest { message: Some(message.to_owned()), ..StopRequest::default() };
            parse_stop(&request).map(|order| order.kind).map_err(|problem| problem.code)
        };
        let message = |text: &str| Ok(HaltKind::Stopped { message: Some(text.to_owned()) });
        assert_eq!(stop(" back at <noon>\nor so\n"), message("back at <noon>\nor so"));
        assert_eq!(stop(" "), Ok(HaltKind::Stopped { message: None }));
        assert_eq!(stop("\x1b[2J"), Err(ProblemCode::Invalid));
        assert_eq!(stop(&"x".repeat(2_001)), Err(ProblemCode::Invalid));
        let drain = |text: Option<&str>| {
            let drain_timeout = text.map(str::to_owned);
            parse_pause(&PauseRequest { drain_timeout, ..PauseRequest::default() }).map(|order| order.drain)
        };
        assert_eq!(drain(None), Ok(None));
        assert_eq!(drain(Some("0s")), Ok(Some(Duration::ZERO)));
        assert!(drain(Some("soon")).is_err());
    }
}
