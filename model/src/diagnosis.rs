//! Why a target did not pass the gate: a row of probe outcomes goes in, a verdict with its hint comes out.
//!
//! What the verdicts are is data, in `signatures`; what a single probe can see is in `probe`.

use std::time::Duration;

use crate::duration;
use crate::probe;
pub use crate::probe::{Answer, ProbeOutcome, Protocol};
use crate::protocol::DiagnosisBody;
use crate::service::GatePolicy;
use crate::signatures::{NEVER_PROBED, SIGNATURES};

/// So many different outcomes are remembered of one target: the first and the latest.
const SEEN_MAX: usize = 32;

/// What a cause looks like from outside.
#[derive(Debug, Clone, Copy)]
pub struct Signature {
    /// API, like a problem's code; two ways to look may share one.
    pub id: &'static str,
    pub pattern: Pattern,
    pub verdict: &'static str,
    pub hint: &'static str,
    /// The same for so long, and waiting longer is pointless. `None`: it may still come right.
    pub hopeless_after: Option<Patience>,
}

/// How often in a row and how long the same must have been seen; both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub probes: u32,
    pub lasting: Duration,
}

#[derive(Debug, Clone, Copy)]
pub enum Pattern {
    /// Nothing ended yet.
    Never,
    /// It answered, and now nothing listens.
    WentAway,
    /// Most of the time nothing spoke; by the end something passed, or began to work on its first answer.
    StartedLate,
    Refused,
    Reset,
    Closed,
    ConnectTimeout,
    Silent,
    Tls,
    Http2,
    NotHttp,
    Unreachable,
    Answer {
        /// From, to; both included.
        status: (u16, u16),
        location: Location,
        body: Body,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Location {
    Any,
    /// The URL that was asked for, with `https`.
    SameOverHttps,
}

#[derive(Debug, Clone, Copy)]
pub enum Body {
    Any,
    Empty,
    /// One of these.
    Has(&'static [&'static str]),
}

/// What was probed, and how.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub target: &'a str,
    /// The probe's `Host`.
    pub host: &'a str,
    pub gate: &'a GatePolicy,
}

/// What the probes of one target saw, oldest first, repeats folded.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    seen: Vec<Seen>,
    /// Probes that fell out of the middle.
    forgotten: u32,
    probes: u32,
    silent: u32,
    answered: bool,
}

#[derive(Debug, Clone)]
struct Seen {
    outcome: ProbeOutcome,
    summary: String,
    count: u32,
    first_at: Duration,
    last_at: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    pub id: &'static str,
    pub target: String,
    pub verdict: String,
    pub hint: String,
    /// More probes will not help.
    pub hopeless: bool,
    pub timeline: Vec<String>,
    pub excerpt: Option<String>,
}

impl Timeline {
    /// `at`: when the probe ended, since any fixed moment.
    pub fn record(&mut self, outcome: ProbeOutcome, at: Duration) {
        self.probes = self.probes.saturating_add(1);
        self.silent = self.silent.saturating_add(u32::from(outcome.is_silence_of_a_boot()));
        self.answered |= matches!(&outcome, ProbeOutcome::Answer(answer) if answer.status != 503);
        let summary = outcome.summary();
        match self.seen.last_mut() {
            Some(last) if last.summary == summary => {
                last.outcome = outcome;
                last.count = last.count.saturating_add(1);
                last.last_at = at;
            }
            _ => self.seen.push(Seen { outcome, summary, count: 1, first_at: at, last_at: at }),
        }
        if self.seen.len() > SEEN_MAX {
            self.forgotten = self.forgotten.saturating_add(self.seen.remove(1).count);
        }
    }

    pub fn last(&self) -> Option<&ProbeOutcome> {
        self.seen.last().map(|seen| &seen.outcome)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.seen.iter().map(Seen::line).collect();
        if self.forgotten > 0 {
            lines.insert(1, format!("… ×{}", self.forgotten));
        }
        lines
    }

    /// The cause, and whether its time is up.
    fn signature(&self, subject: &Subject<'_>) -> (&'static Signature, bool) {
        let Some(last) = self.seen.last() else { return (&NEVER_PROBED, false) };
        let found =
            SIGNATURES.iter().find(|signature| self.matches(signature.pattern, &last.outcome, subject));
        let signature = found.unwrap_or(&NEVER_PROBED);
        let lasted = last.last_at.saturating_sub(last.first_at);
        let is_over = |patience: Patience| last.count >= patience.probes && lasted >= patience.lasting;
        (signature, signature.hopeless_after.is_some_and(is_over))
    }

    fn matches(&self, pattern: Pattern, last: &ProbeOutcome, subject: &Subject<'_>) -> bool {
        let mostly_silent = self.silent * 2 >= self.probes;
        match (pattern, last) {
            (Pattern::WentAway, ProbeOutcome::Refused) => self.answered,
            (Pattern::StartedLate, ProbeOutcome::Timeout { .. }) => self.silent > 0 && mostly_silent,
            // One that passed and is diagnosed all the same ran out of time.
            (Pattern::StartedLate, outcome) => outcome.passed(),
            (Pattern::Refused, ProbeOutcome::Refused)
            | (Pattern::Reset, ProbeOutcome::Reset)
            | (Pattern::Closed, ProbeOutcome::Closed)
            | (Pattern::ConnectTimeout, ProbeOutcome::ConnectTimeout)
            | (Pattern::Silent, ProbeOutcome::Timeout { .. })
            | (Pattern::Tls, ProbeOutcome::Tls)
            | (Pattern::Http2, ProbeOutcome::NotHttp(Protocol::Http2))
            | (Pattern::NotHttp, ProbeOutcome::NotHttp(_))
            | (Pattern::Unreachable, ProbeOutcome::Unreachable(_)) => true,
            (Pattern::Answer { status: (from, to), location, body }, ProbeOutcome::Answer(answer)) => {
                (from..=to).contains(&answer.status)
                    && location.matches(answer, subject)
                    && body.matches(&answer.body_head)
            }
            _ => false,
        }
    }
}

impl Seen {
    fn line(&self) -> String {
        if self.count == 1 { self.summary.clone() } else { format!("{} ×{}", self.summary, self.count) }
    }
}

impl Location {
    fn matches(self, answer: &Answer, subject: &Subject<'_>) -> bool {
        let Self::SameOverHttps = self else { return true };
        let url = answer.location.as_deref().and_then(|location| location.strip_prefix("https://"));
        url.is_some_and(|url| {
            let (authority, path) = url.split_at(url.find('/').unwrap_or(url.len()));
            let asked = subject.gate.path.split('?').next();
            host_name(authority).eq_ignore_ascii_case(host_name(subject.host))
                && path.split('?').next() == asked
        })
    }
}

impl Body {
    fn matches(self, head: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Empty => head.trim().is_empty(),
            Self::Has(texts) => texts.iter().any(|text| head.contains(text)),
        }
    }
}

/// Without its port; an IPv6 literal keeps its brackets.
fn host_name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

/// What is wrong with a target that has not passed, as far as its probes tell.
pub fn diagnose(timeline: &Timeline, subject: &Subject<'_>) -> Diagnosis {
    let (signature, hopeless) = timeline.signature(subject);
    let values = Values { timeline, subject };
    let last_answer = timeline.seen.iter().rev().find_map(|seen| match &seen.outcome {
        ProbeOutcome::Answer(answer) => Some(probe::words(&answer.body_head)),
        _ => None,
    });
    Diagnosis {
        id: signature.id,
        target: subject.target.to_owned(),
        verdict: values.fill(signature.verdict),
        hint: values.fill(signature.hint),
        hopeless,
        timeline: timeline.lines(),
        excerpt: last_answer.filter(|words| !words.is_empty()),
    }
}

/// Whether the same hopeless outcome has come often and long enough to end the wait.
pub fn is_hopeless(timeline: &Timeline, subject: &Subject<'_>) -> bool {
    timeline.signature(subject).1
}

impl From<Diagnosis> for DiagnosisBody {
    fn from(diagnosis: Diagnosis) -> Self {
        let Diagnosis { id, target, verdict, hint, timeline, excerpt, .. } = diagnosis;
        Self { id: id.to_owned(), target, verdict, hint, timeline, excerpt }
    }
}

/// Where the `{names}` of a signature get their values.
struct Values<'a> {
    timeline: &'a Timeline,
    subject: &'a Subject<'a>,
}

impl Values<'_> {
    /// In one pass, so that nothing inside a value is taken for a name. Unknown names stay as they are: `{{`
    /// belongs to commands that a hint quotes.
    fn fill(&self, template: &str) -> String {
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        while let Some(open) = rest.find('{') {
            text.push_str(&rest[..open]);
            rest = &rest[open..];
            let name = rest.find('}').map(|close| &rest[1..close]);
            match name.and_then(|name| self.value(name)) {
                Some(value) => {
                    text.push_str(&value);
                    rest = &rest[name.map_or(0, str::len) + 2..];
                }
                None => {
                    text.push('{');
                    rest = &rest[1..];
                }
            }
        }
        text.push_str(rest);
        text
    }

    fn value(&self, name: &str) -> Option<String> {
        let gate = self.subject.gate;
        let text = match name {
            "target" => self.subject.target.to_owned(),
            "port" => match gate.port {
                Some(port) => port.to_string(),
                None => self.subject.target.rsplit_once(':').map_or("3000", |(_, port)| port).to_owned(),
            },
            "host" => self.subject.host.to_owned(),
            "host_name" => host_name(self.subject.host).to_owned(),
            "path" => gate.path.clone(),
            "deploy_timeout" => duration::print(gate.deploy_timeout),
            "longer_timeout" => duration::print((gate.deploy_timeout * 2).max(Duration::from_secs(60))),
            _ => return self.seen_value(name),
        };
        Some(probe::printable(&text, 300))
    }

    fn seen_value(&self, name: &str) -> Option<String> {
        let text = match (name, self.timeline.last()) {
            ("waited", Some(ProbeOutcome::Timeout { after })) => probe::print_rounded(*after),
            ("protocol", Some(ProbeOutcome::NotHttp(protocol))) => protocol.to_string(),
            ("detail", Some(ProbeOutcome::Unreachable(text))) => text.clone(),
            ("status", Some(ProbeOutcome::Answer(answer))) => answer.status.to_string(),
            ("location", Some(ProbeOutcome::Answer(answer))) => {
                answer.location.clone().unwrap_or_else(|| "nowhere (no `Location`)".to_owned())
            }
            ("headline", Some(ProbeOutcome::Answer(answer))) => {
                probe::headline(&answer.body_head).unwrap_or_else(|| "an empty page".to_owned())
            }
            _ => return None,
        };
        Some(probe::printable(&text, 300))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "shop.test";

    fn gate() -> GatePolicy {
        GatePolicy { deploy_timeout: Duration::from_secs(30), ..GatePolicy::default() }
    }

    /// Of probes so far apart.
    fn diagnosed_every(interval: Duration, outcomes: &[ProbeOutcome]) -> Diagnosis {
        let gate = gate();
        let mut timeline = Timeline::default();
        for (outcome, nth) in outcomes.iter().zip(0u32..) {
            timeline.record(outcome.clone(), interval * nth);
        }
        diagnose(&timeline, &Subject { target: "127.0.0.1:3000", host: HOST, gate: &gate })
    }

    /// Slow enough that only the number of probes decides.
    fn diagnosed(outcomes: &[ProbeOutcome]) -> Diagnosis {
        diagnosed_every(Duration::from_secs(4), outcomes)
    }

    fn answer(status: u16, body: &str) -> ProbeOutcome {
        let body_head = probe::body_head(body.as_bytes());
        ProbeOutcome::Answer(Answer { status, body_head, ..Answer::default() })
    }

    fn redirect(location: &str) -> ProbeOutcome {
        ProbeOutcome::Answer(Answer { status: 301, location: Some(location.to_owned()), ..Answer::default() })
    }

    fn silent() -> ProbeOutcome {
        ProbeOutcome::Timeout { after: Duration::from_secs(2) }
    }

    #[test]
    fn every_cause_has_its_verdict() {
        let refused = || vec![ProbeOutcome::Refused; 12];
        let then = |mut first: Vec<ProbeOutcome>, last: ProbeOutcome| {
            first.push(last);
            first
        };
        let pending =
            "<h1>ActiveRecord::PendingMigrationError</h1><div>Migrations are pending. Run bin/rails</div>";
        let three = |outcome: ProbeOutcome| vec![outcome; 3];
        for (outcomes, id, hopeless, says) in [
            (vec![], "never_probed", false, "30s"),
            (refused(), "refused", false, "nothing listens on 127.0.0.1:3000"),
            (vec![ProbeOutcome::Reset; 9], "reset", false, "resets"),
            (vec![ProbeOutcome::Closed; 9], "closed", false, "closes"),
            (vec![ProbeOutcome::ConnectTimeout], "connect_timeout", false, "did not take a connection"),
            (vec![silent(); 9], "no_answer", false, "no answer within 2s"),
            (
                vec![ProbeOutcome::Unreachable("permission denied".into())],
                "unreachable",
                false,
                "permission denied",
            ),
            (three(ProbeOutcome::Tls), "tls_on_port", true, "speaks TLS"),
            (three(ProbeOutcome::NotHttp(Protocol::Http2)), "http2_only", true, "HTTP/2"),
            (three(ProbeOutcome::NotHttp(Protocol::Named("SSH"))), "wrong_protocol", true, "but SSH"),
            (three(redirect("https://shop.test/up")), "redirect_to_https", true, "to https://shop.test/up"),
            (three(redirect("https://SHOP.test:443/up?x=1")), "redirect_to_https", true, "https"),
            (three(redirect("https://www.shop.test/up")), "redirect", true, "www.shop.test"),
            (three(redirect("https://shop.test/login")), "redirect", true, "/login"),
            (three(redirect("/users/sign_in")), "redirect", true, "/users/sign_in"),
            (three(answer(302, "")), "redirect", true, "nowhere"),
            (
                three(answer(403, "<h1>Blocked host: shop.test</h1>")),
                "blocked_host",
                true,
                "`Host: shop.test`",
            ),
            (three(answer(403, "")), "blocked_host", true, "empty 403"),
            (three(answer(403, "<h1>Members only</h1>")), "auth_required", true, "Members only"),
            (three(answer(401, "HTTP Basic: Access denied.")), "auth_required", true, "401"),
            (three(answer(404, "<h1>Routing Error</h1>")), "not_found", true, "404"),
            (vec![answer(500, pending); 4], "pending_migration", false, "PendingMigrationError"),
            (vec![answer(500, pending); 5], "pending_migration", true, "PendingMigrationError"),
            (
                vec![answer(500, "<title>We're sorry (500)</title>"); 99],
                "server_error",
                false,
                "We're sorry (500)",
            ),
            (vec![answer(500, "")], "server_error", false, "an empty page"),
            (vec![answer(502, "")], "inner_proxy", false, "Thruster"),
            (vec![answer(503, "booting"); 99], "slow_boot", false, "still answered 503"),
            (vec![answer(418, "")], "unexpected_status", false, "418"),
            (then(refused(), answer(200, "")), "slow_boot", false, "shortly before"),
            (then(refused(), silent()), "slow_boot", false, "shortly before"),
            (then(vec![answer(503, ""); 9], silent()), "slow_boot", false, "shortly before"),
            (then(refused(), answer(404, "")), "not_found", false, "404"),
            (then(vec![silent(); 5], ProbeOutcome::Refused), "refused", false, "nothing listens"),
            (vec![answer(200, ""), ProbeOutcome::Refused], "crashed", false, "stopped listening"),
            (
                vec![answer(404, ""), answer(404, ""), ProbeOutcome::Refused, answer(404, "")],
                "not_found",
                false,
                "404",
            ),
        ] {
            let got = diagnosed(&outcomes);
            assert_eq!((got.id, got.hopeless), (id, hopeless), "{outcomes:?}");
            assert!(got.verdict.contains(says), "{says:?} is not in {:?}", got.verdict);
        }
    }

    #[test]
    fn what_a_boot_may_mend_gets_time() {
        let pending = answer(500, "Migrations are pending");
        for (outcome, seconds) in [
            (ProbeOutcome::Tls, 1),
            (ProbeOutcome::NotHttp(Protocol::Http2), 1),
            (ProbeOutcome::NotHttp(Protocol::Named("SSH")), 1),
            (answer(404, ""), 5),
            (answer(403, ""), 5),
            (answer(401, ""), 5),
            (redirect("https://shop.test/up"), 5),
            (redirect("/login"), 5),
            (pending, 15),
        ] {
            // Ten a second; the first one stands at zero.
            let hopeless =
                |probes| diagnosed_every(Duration::from_millis(100), &vec![outcome.clone(); probes]).hopeless;
            assert_eq!((hopeless(seconds * 10), hopeless(seconds * 10 + 1)), (false, true), "{outcome:?}");
        }
    }

    #[test]
    fn hints_are_ready_to_be_typed() {
        for (outcome, says) in [
            (ProbeOutcome::Refused, "bind \"tcp://0.0.0.0:3000\""),
            (redirect("https://shop.test/up"), "config.assume_ssl = true"),
            (redirect("https://shop.test/up"), "exclude: ->(request) { request.path == \"/up\" } } }`"),
            (answer(403, ""), "config.hosts << \"shop.test\""),
            (answer(403, ""), "--health-check-host"),
            (answer(404, ""), "get \"up\" => \"rails/health#show\""),
            (answer(404, ""), "get \"up\", to: ->(_env) { [200, {}, [\"up\"]] }"),
            (answer(503, ""), "--deploy-timeout 1m"),
            (answer(500, "PendingMigration Migrations are pending"), "bin/rails db:migrate"),
        ] {
            let hint = diagnosed(std::slice::from_ref(&outcome)).hint;
            assert!(hint.contains(says), "{says:?} is not in {hint:?}");
        }
    }

    #[test]
    fn every_place_of_every_signature_is_filled() {
        const NAMES: [&str; 13] = [
            "target",
            "port",
            "host",
            "host_name",
            "path",
            "deploy_timeout",
            "longer_timeout",
            "waited",
            "protocol",
            "detail",
            "status",
            "location",
            "headline",
        ];
        for signature in SIGNATURES.iter().chain([&NEVER_PROBED]) {
            for text in [signature.verdict, signature.hint] {
                for (at, _) in text.match_indices('{') {
                    let name = text[at + 1..].split('}').next().unwrap_or("");
                    let looks_like_a_name =
                        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                    assert!(!looks_like_a_name || NAMES.contains(&name), "{}: {{{name}}}", signature.id);
                }
            }
        }
    }

    #[test]
    fn timelines_fold_and_stay_short() {
        let mut outcomes = vec![ProbeOutcome::Refused; 12];
        outcomes.extend([silent(), answer(503, ""), answer(503, "")]);
        assert_eq!(diagnosed(&outcomes).timeline, ["connection refused ×12", "no answer", "503 ×2"]);
        let flapping: Vec<_> =
            (0..100).map(|i| if i % 2 == 0 { ProbeOutcome::Refused } else { silent() }).collect();
        let lines = diagnosed(&flapping).timeline;
        assert_eq!((lines.len(), lines[1].as_str()), (SEEN_MAX + 1, "… ×68"));
    }

    #[test]
    fn what_a_target_sends_is_not_taken_for_a_template() {
        let got = diagnosed(&[answer(500, "<h1>{target} {hint} {</h1>")]);
        assert!(got.verdict.ends_with("answered 500: {target} {hint} {"), "{}", got.verdict);
    }

    fn any_outcome() -> impl Strategy<Value = ProbeOutcome> {
        let text = || "(\\PC|\u{1b}|\n){0,80}";
        prop_oneof![
            Just(ProbeOutcome::Refused),
            Just(ProbeOutcome::Closed),
            Just(ProbeOutcome::Tls),
            text().prop_map(ProbeOutcome::Unreachable),
            text().prop_map(|first| ProbeOutcome::NotHttp(Protocol::Unknown(first))),
            (any::<u64>()).prop_map(|ms| ProbeOutcome::Timeout { after: Duration::from_millis(ms) }),
            (0u16..1000, proptest::option::of(text()), proptest::collection::vec(any::<u8>(), 0..4000))
                .prop_map(|(status, location, body)| {
                    let body_head = String::from_utf8_lossy(&body).into_owned();
                    ProbeOutcome::Answer(Answer { status, location, body_head, ..Answer::default() })
                }),
        ]
    }

    proptest! {
        #[test]
        fn no_outcome_panics_and_nothing_unprintable_is_shown(
            outcomes in proptest::collection::vec(any_outcome(), 0..8),
        ) {
            let got = diagnosed(&outcomes);
            let lines = got.timeline.iter().chain([&got.verdict, &got.hint]);
            for line in lines {
                prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            }
            let excerpt = got.excerpt.unwrap_or_default();
            prop_assert!(excerpt.len() <= probe::BODY_HEAD_BYTES_MAX);
            prop_assert!(!excerpt.chars().any(|c| c.is_control() && c != '\n'), "{excerpt:?}");
        }
    }
}
