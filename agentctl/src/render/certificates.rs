//! Certificates: which there are, until when they hold, and what keeps others from being issued.

use model::protocol::{CertificateState, CertificateStatus, Certificates};

use super::age::{age, span};
use super::clean;
use super::events::second;
use super::paint::{Paint, Tone};
use super::table::{Cell, table};
use super::words::{certificate_state, certificate_text, counted};

/// One row for each.
pub(crate) fn list(all: &Certificates, now_ms: u64, paint: Paint) -> String {
    let off = match &all.directory {
        Some(_) => String::new(),
        None => {
            "automatic certificates are off (`[acme] directory` in the agent's configuration)\n".to_owned()
        }
    };
    if all.certificates.is_empty() {
        return format!("{off}no certificates: no service has TLS\n");
    }
    let row = |one: &CertificateStatus| -> [Cell; 7] {
        [
            Cell::toned(Tone::Strong, &one.name),
            certificate_state(one.state),
            left(one, now_ms),
            one.renew_at_ms.map(|at| ahead(now_ms, at)).unwrap_or_default().into(),
            one.services.join(",").into(),
            clean::shorten(&source(one), 50).into(),
            clean::shorten(&remark(one, now_ms), 80).into(),
        ]
    };
    let rows: Vec<_> = all.certificates.iter().map(row).collect();
    let heads = ["NAME", "STATE", "LEFT", "RENEWAL", "SERVICES", "FROM", "REMARK"];
    table(heads, &rows, paint) + &off
}

/// One in detail.
pub(crate) fn one(one: &CertificateStatus, now_ms: u64, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.paint(Tone::Strong, &clean::line(&one.name)));
    let mut add = |name: &str, value: &str| text.push_str(&format!("  {name:<10}{}\n", clean::line(value)));
    add("state", certificate_text(one.state));
    add("hosts", &one.hosts.join(", "));
    add("services", &one.services.join(", "));
    if let Some(source) = &one.source {
        add("from", source);
    }
    if let Some(end) = one.not_after_ms {
        let left =
            if end > now_ms { format!("{} left", span(end - now_ms)) } else { "it is over".to_owned() };
        add("valid", &format!("until {}, {left}", second(end)));
    }
    if let Some(renewal) = one.renew_at_ms {
        add("renewal", &ahead(now_ms, renewal));
    }
    if let Some(other) = &one.issued_by {
        add("issued by", other);
    }
    if let Some(failure) = &one.failure {
        let count = counted(u64::from(failure.attempts), "attempt");
        add("failed", &format!("{} ago, after {count} in a row", age(now_ms, failure.at_ms)));
        add("because", &failure.message);
    }
    if let Some(next) = one.next_attempt_ms {
        add("next try", &ahead(now_ms, next));
    }
    text
}

/// One in a line, such as `shop.test valid, 89d left, renewal in 59d`.
pub(crate) fn line(one: &CertificateStatus, now_ms: u64) -> String {
    let left = match one.not_after_ms {
        Some(end) if end <= now_ms => Some("expired".to_owned()),
        Some(end) => Some(format!("{} left", span(end - now_ms))),
        None => None,
    };
    let renewal = one.renew_at_ms.map(|at| format!("renewal {}", ahead(now_ms, at)));
    let remark = Some(remark(one, now_ms)).filter(|remark| !remark.is_empty());
    let state = Some(certificate_text(one.state).to_owned());
    let parts: Vec<String> = [state, left, renewal, remark].into_iter().flatten().collect();
    format!("{} {}", one.name, parts.join(", "))
}

fn left(one: &CertificateStatus, now_ms: u64) -> Cell {
    match one.not_after_ms {
        None => "".into(),
        Some(end) if end <= now_ms => Cell::toned(Tone::Bad, "expired"),
        Some(end) => span(end - now_ms).into(),
    }
}

fn ahead(now_ms: u64, at_ms: u64) -> String {
    if at_ms <= now_ms { "now".to_owned() } else { format!("in {}", span(at_ms - now_ms)) }
}

/// The authority's host, since directories are long.
fn source(one: &CertificateStatus) -> String {
    let source = one.source.as_deref().unwrap_or_default();
    let host = source.strip_prefix("https://").and_then(|rest| rest.split('/').next());
    host.unwrap_or(source).to_owned()
}

fn remark(one: &CertificateStatus, now_ms: u64) -> String {
    match (&one.failure, &one.issued_by) {
        (Some(failure), _) => {
            let next = one.next_attempt_ms.map(|next| format!("next try {}: ", ahead(now_ms, next)));
            format!("{}{}", next.unwrap_or_default(), failure.message)
        }
        (None, Some(other)) => format!("{other} is issuing it"),
        (None, None) if one.state == CertificateState::Placeholder => "browsers will warn".to_owned(),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use model::protocol::CertificateFailure;

    use super::*;
    use crate::render::samples::NOW_MS;

    const DAY_MS: u64 = 86_400_000;

    fn certificate(name: &str, state: CertificateState) -> CertificateStatus {
        CertificateStatus {
            state,
            ..CertificateStatus::placeholder(name.into(), vec![name.into()], vec!["shop".into()])
        }
    }

    fn valid() -> CertificateStatus {
        CertificateStatus {
            source: Some("https://acme-v02.api.letsencrypt.org/directory".into()),
            not_before_ms: Some(NOW_MS - DAY_MS),
            not_after_ms: Some(NOW_MS + 89 * DAY_MS),
            renew_at_ms: Some(NOW_MS + 59 * DAY_MS),
            ..certificate("shop.test", CertificateState::Valid)
        }
    }

    fn failing() -> CertificateStatus {
        let message = "DNS problem: NXDOMAIN looking up A for new.test".into();
        CertificateStatus {
            failure: Some(CertificateFailure { at_ms: NOW_MS - 5_000, message, attempts: 2 }),
            next_attempt_ms: Some(NOW_MS + 120_000),
            ..certificate("new.test", CertificateState::Failing)
        }
    }

    #[test]
    fn all_of_them() {
        let own = CertificateStatus {
            source: Some("/etc/ssl/own.pem".into()),
            not_after_ms: Some(NOW_MS - 1),
            ..certificate("own.test", CertificateState::Own)
        };
        let elsewhere = CertificateStatus {
            issued_by: Some("vm2".into()),
            ..certificate("b.test", CertificateState::Issuing)
        };
        let placeholder = certificate("c.test", CertificateState::Placeholder);
        let certificates = vec![elsewhere, placeholder, failing(), own, valid()];
        let mut all = Certificates { directory: Some("https://ca.test/".into()), certificates };
        insta::assert_snapshot!(list(&all, NOW_MS, Paint::new(false)), @r"
        NAME       STATE        LEFT     RENEWAL  SERVICES  FROM                          REMARK
        b.test     issuing      -        -        shop      -                             vm2 is issuing it
        c.test     placeholder  -        -        shop      -                             browsers will warn
        new.test   failing      -        -        shop      -                             next try in 2m: DNS problem: NXDOMAIN looking up A for new.test
        own.test   own          expired  -        shop      /etc/ssl/own.pem              -
        shop.test  valid        89d      in 59d   shop      acme-v02.api.letsencrypt.org  -
        ");
        all.directory = None;
        all.certificates.clear();
        insta::assert_snapshot!(list(&all, NOW_MS, Paint::new(false)), @r"
        automatic certificates are off (`[acme] directory` in the agent's configuration)
        no certificates: no service has TLS
        ");
    }

    #[test]
    fn one_in_detail() {
        insta::assert_snapshot!(one(&valid(), NOW_MS, Paint::new(false)), @r"
        shop.test
          state     valid
          hosts     shop.test
          services  shop
          from      https://acme-v02.api.letsencrypt.org/directory
          valid     until 2027-02-15T11:06:40Z, 89d left
          renewal   in 59d
        ");
        insta::assert_snapshot!(one(&failing(), NOW_MS, Paint::new(false)), @r"
        new.test
          state     failing
          hosts     new.test
          services  shop
          failed    5s ago, after 2 attempts in a row
          because   DNS problem: NXDOMAIN looking up A for new.test
          next try  in 2m
        ");
    }
}
