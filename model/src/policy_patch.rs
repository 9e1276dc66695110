//! Between what crosses the socket and what the rules use: `PolicyPatch` ↔ `Policy`, `OverridesBody` ↔
//! `Overrides`.
//!
//! Text is parsed here, once; the first thing that is wrong becomes a `Problem` that names its field. Which
//! services may share a host is not decided here.

mod tls;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::canary::Overrides;
use crate::duration;
use crate::hsts::Hsts;
use crate::name::{HostName, HostPattern, PathPrefix};
use crate::protocol::{BypassBody, CertificatePair, OverridesBody, PolicyPatch, Problem, ProblemCode};
use crate::service::{CertificateFiles, Concurrency, Policy, ReaderPolicy, Recording};

/// No wait of ours may be longer: beyond it, a typo is likelier than a wish.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// `policy` with the settings that `patch` names.
pub fn apply(patch: &PolicyPatch, mut policy: Policy) -> Result<Policy, Problem> {
    apply_routes(patch, &mut policy)?;
    tls::apply(patch, &mut policy)?;
    apply_gate(patch, &mut policy)?;
    apply_timeouts(patch, &mut policy)?;
    apply_concurrency(patch, &mut policy.concurrency)?;
    apply_visitor(patch, &mut policy)?;
    apply_pages(patch, &mut policy)?;
    apply_recording(patch, &mut policy.recording)?;
    apply_client(patch, &mut policy)?;
    apply_buffering(patch, &mut policy);
    apply_readers(patch, &mut policy.readers)?;
    Ok(policy)
}

/// The patch that makes `policy` out of any other; `rise` and `fall` are not settings.
pub fn from_policy(policy: &Policy) -> PolicyPatch {
    let text = |duration: Duration| Some(duration::print(duration));
    let path = |path: &PathBuf| path.to_string_lossy().into_owned();
    let pair = |files: &CertificateFiles| CertificatePair {
        certificate: path(&files.certificate),
        private_key: path(&files.private_key),
    };
    let pairs: Vec<_> = policy.tls.iter().flat_map(|tls| &tls.files).map(pair).collect();
    // One pair is written as it was before there could be several.
    let (single, several) = match pairs.as_slice() {
        [] => (None, None),
        [single] => (Some(single.clone()), None),
        _ => (None, Some(pairs)),
    };
    let client_auth = policy.tls.as_ref().and_then(|tls| tls.client_auth.as_ref());
    let hsts = policy.tls.as_ref().and_then(|tls| tls.hsts.as_ref());
    PolicyPatch {
        hosts: Some(policy.hosts.iter().map(ToString::to_string).collect()),
        path_prefixes: Some(policy.path_prefixes.iter().map(ToString::to_string).collect()),
        strip_path_prefix: Some(policy.strip_path_prefix),
        canonical_host: Some(optional(policy.canonical_host.as_ref())),
        tls: Some(policy.tls.is_some()),
        tls_redirect: policy.tls.as_ref().map(|tls| tls.redirect),
        tls_certificate_path: single.as_ref().map(|pair| pair.certificate.clone()),
        tls_private_key_path: single.map(|pair| pair.private_key),
        health_check_path: Some(policy.gate.path.clone()),
        health_check_port: Some(policy.gate.port.unwrap_or(0)),
        health_check_host: Some(optional(policy.gate.host.as_ref())),
        health_check_interval: text(policy.gate.interval),
        health_check_timeout: text(policy.gate.timeout),
        deploy_timeout: text(policy.gate.deploy_timeout),
        drain_timeout: text(policy.timeouts.drain),
        socket_drain_timeout: text(policy.timeouts.socket_drain),
        bake: text(policy.timeouts.bake),
        connect_timeout: text(policy.timeouts.connect),
        target_timeout: text(policy.timeouts.response_head),
        body_idle_timeout: text(policy.timeouts.body_idle),
        max_in_flight: Some(policy.concurrency.max_in_flight.map_or(0, NonZeroU32::get)),
        queue_max: Some(policy.concurrency.queue_max),
        queue_timeout: text(policy.concurrency.queue_timeout),
        slow_start: text(policy.concurrency.slow_start),
        max_request_body_bytes: Some(printed(policy.request_body_bytes_max)),
        visitor_header: Some(policy.visitor.header.clone().unwrap_or_default()),
        visitor_cookie: Some(policy.visitor.cookie.clone().unwrap_or_default()),
        visitor_set_cookie: Some(policy.visitor.set_cookie),
        error_pages: Some(policy.error_pages.as_ref().map(path).unwrap_or_default()),
        scope_cookie_paths: Some(policy.scope_cookie_paths),
        log_request_headers: Some(policy.recording.request_headers.clone()),
        log_response_headers: Some(policy.recording.response_headers.clone()),
        exclude_metrics_paths: Some(policy.recording.uncounted_paths.clone()),
        forward_headers: Some(policy.forward_headers),
        client_ip_header: Some(optional(policy.client_ip_header.as_ref())),
        buffer_requests: Some(policy.buffering.requests),
        buffer_responses: Some(policy.buffering.responses),
        buffer_memory_bytes: Some(policy.buffering.memory_bytes_max),
        max_response_body_bytes: Some(printed(policy.response_body_bytes_max)),
        writer_affinity_timeout: text(policy.readers.writer_affinity),
        read_target_websockets: Some(policy.readers.websockets),
        tls_one_certificate: Some(policy.tls.as_ref().is_some_and(|tls| tls.one_certificate)),
        tls_staging: Some(policy.tls.as_ref().is_some_and(|tls| tls.staging)),
        tls_certificates: several,
        tls_client_ca_path: Some(client_auth.map(|auth| path(&auth.ca)).unwrap_or_default()),
        tls_client_auth: client_auth.map(|auth| auth.mode.as_str().to_owned()),
        hsts: Some(hsts.map(Hsts::print_max_age).unwrap_or_default()),
        hsts_subdomains: Some(hsts.is_some_and(|hsts| hsts.include_subdomains)),
        hsts_preload: Some(hsts.is_some_and(|hsts| hsts.preload)),
    }
}

/// A limit of a body as settings have it: 0 is none.
fn printed(bytes_max: u64) -> u64 {
    if bytes_max == Policy::UNLIMITED { 0 } else { bytes_max }
}

fn parsed(bytes_max: u64) -> u64 {
    if bytes_max == 0 { Policy::UNLIMITED } else { bytes_max }
}

pub fn parse_overrides(body: &OverridesBody) -> Result<Overrides, Problem> {
    let OverridesBody { headers, cookies, networks, visitors } = body;
    let named = parse_named("overrides", headers, cookies, networks)?;
    Ok(Overrides { visitors: visitors.clone(), ..named })
}

/// Whom a halted service lets through: overrides without visitors.
pub fn parse_bypass(body: &BypassBody) -> Result<Overrides, Problem> {
    parse_named("bypass", &body.headers, &body.cookies, &body.networks)
}

pub fn print_bypass(bypass: &Overrides) -> BypassBody {
    let OverridesBody { headers, cookies, networks, .. } = print_overrides(bypass);
    BypassBody { headers, cookies, networks }
}

fn parse_named(
    owner: &str,
    headers: &[String],
    cookies: &[String],
    networks: &[String],
) -> Result<Overrides, Problem> {
    let pair = |list: &'static str| {
        move |text: &String| {
            let parts = text.split_once('=').filter(|(name, _)| is_token(name));
            let (name, value) = parts.ok_or_else(|| {
                let message =
                    format!("`{text}` is not an override: write `NAME=VALUE`, such as `x-canary=1`");
                invalid(&format!("{owner}.{list}"), message)
            })?;
            Ok((name.to_owned(), value.to_owned()))
        }
    };
    let headers = headers.iter().map(pair("headers"));
    let lower =
        headers.map(|row| row.map(|(name, value): (String, String)| (name.to_ascii_lowercase(), value)));
    let network = |text: &String| {
        // A bare address is a network of one.
        let parsed = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
        parsed.map_err(|_| {
            let message =
                format!("`{text}` is not a network: write an address or CIDR, such as `10.0.0.0/8`");
            invalid(&format!("{owner}.networks"), message)
        })
    };
    Ok(Overrides {
        headers: lower.collect::<Result<_, _>>()?,
        cookies: cookies.iter().map(pair("cookies")).collect::<Result<_, _>>()?,
        networks: networks.iter().map(network).collect::<Result<_, _>>()?,
        visitors: Vec::new(),
    })
}

pub fn print_overrides(overrides: &Overrides) -> OverridesBody {
    let pair = |(name, value): &(String, String)| format!("{name}={value}");
    OverridesBody {
        headers: overrides.headers.iter().map(pair).collect(),
        cookies: overrides.cookies.iter().map(pair).collect(),
        networks: overrides.networks.iter().map(ToString::to_string).collect(),
        visitors: overrides.visitors.clone(),
    }
}

fn apply_routes(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    if let Some(hosts) = &patch.hosts {
        policy.hosts = parse_all::<HostPattern>("hosts", hosts)?;
    }
    if let Some(prefixes) = &patch.path_prefixes {
        policy.path_prefixes = parse_all("path_prefixes", prefixes)?;
        if policy.path_prefixes.is_empty() {
            policy.path_prefixes.push(PathPrefix::root());
        }
    }
    set(&mut policy.strip_path_prefix, patch.strip_path_prefix);
    if let Some(text) = &patch.canonical_host {
        policy.canonical_host = removable("canonical_host", text)?;
    }
    let served =
        |host: &HostName| policy.hosts.is_empty() || policy.hosts.iter().any(|pattern| covers(pattern, host));
    match &policy.canonical_host {
        Some(host) if !served(host) => Err(invalid(
            "canonical_host",
            format!("`{host}` is not one of the service's hosts, so the redirect would lead nowhere"),
        )
        .hint(format!("add `{host}` to the hosts, or leave the canonical host out"))),
        _ => Ok(()),
    }
}

fn covers(pattern: &HostPattern, host: &HostName) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Wildcard(domain) => {
            host.as_str().split_once('.').is_some_and(|(_, parent)| parent == domain.as_str())
        }
    }
}

fn absolute(field: &str, text: &str) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(text);
    if path.is_absolute() && !text.contains('\0') {
        return Ok(path);
    }
    Err(invalid(field, format!("`{text}` is not an absolute path; the daemon reads it")))
}

fn apply_gate(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    let gate = &mut policy.gate;
    if let Some(path) = &patch.health_check_path {
        if !path.starts_with('/')
            || path.len() > 1024
            || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
        {
            let message = format!("`{path}` is not a path: write one such as `/up`, without blanks");
            return Err(invalid("health_check_path", message));
        }
        gate.path.clone_from(path);
    }
    set(&mut gate.port, patch.health_check_port.map(|port| (port != 0).then_some(port)));
    if let Some(text) = &patch.health_check_host {
        gate.host = removable("health_check_host", text)?;
    }
    positive("health_check_interval", patch.health_check_interval.as_ref(), &mut gate.interval)?;
    positive("health_check_timeout", patch.health_check_timeout.as_ref(), &mut gate.timeout)?;
    positive("deploy_timeout", patch.deploy_timeout.as_ref(), &mut gate.deploy_timeout)
}

fn apply_timeouts(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    let timeouts = &mut policy.timeouts;
    bounded("drain_timeout", patch.drain_timeout.as_ref(), &mut timeouts.drain)?;
    bounded("socket_drain_timeout", patch.socket_drain_timeout.as_ref(), &mut timeouts.socket_drain)?;
    bounded("bake", patch.bake.as_ref(), &mut timeouts.bake)?;
    positive("connect_timeout", patch.connect_timeout.as_ref(), &mut timeouts.connect)?;
    positive("target_timeout", patch.target_timeout.as_ref(), &mut timeouts.response_head)?;
    positive("body_idle_timeout", patch.body_idle_timeout.as_ref(), &mut timeouts.body_idle)?;
    set(&mut policy.request_body_bytes_max, patch.max_request_body_bytes.map(parsed));
    Ok(())
}

fn apply_concurrency(patch: &PolicyPatch, concurrency: &mut Concurrency) -> Result<(), Problem> {
    let count = |field: &str, count: u32| {
        if count <= Concurrency::COUNT_MAX {
            return Ok(count);
        }
        Err(invalid(field, format!("{count} is too many: at most {}", Concurrency::COUNT_MAX)))
    };
    if let Some(max) = patch.max_in_flight {
        concurrency.max_in_flight = NonZeroU32::new(count("max_in_flight", max)?);
    }
    if let Some(max) = patch.queue_max {
        concurrency.queue_max = count("queue_max", max)?;
    }
    positive("queue_timeout", patch.queue_timeout.as_ref(), &mut concurrency.queue_timeout)
        .map_err(|problem| problem.hint("`--queue-max 0` lets nobody wait"))?;
    bounded("slow_start", patch.slow_start.as_ref(), &mut concurrency.slow_start)
}

fn apply_visitor(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    let token = |field: &str, text: &String| match text.as_str() {
        "" => Ok(None),
        name if is_token(name) => Ok(Some(name.to_owned())),
        _ => Err(invalid(field, format!("`{text}` is not a name: write one such as `x-user-id`"))),
    };
    if let Some(text) = &patch.visitor_header {
        policy.visitor.header = token("visitor_header", text)?.map(|name| name.to_ascii_lowercase());
    }
    if let Some(text) = &patch.visitor_cookie {
        policy.visitor.cookie = token("visitor_cookie", text)?;
    }
    set(&mut policy.visitor.set_cookie, patch.visitor_set_cookie);
    Ok(())
}

fn apply_pages(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    match patch.error_pages.as_deref() {
        None => {}
        Some("") => policy.error_pages = None,
        Some(text) => policy.error_pages = Some(absolute("error_pages", text)?),
    }
    set(&mut policy.scope_cookie_paths, patch.scope_cookie_paths);
    Ok(())
}

/// Longer lists are a mistake, and each entry costs every request.
const RECORDED_MAX: usize = 32;

fn apply_recording(patch: &PolicyPatch, recording: &mut Recording) -> Result<(), Problem> {
    let headers = |field: &str, texts: &[String]| -> Result<Vec<String>, Problem> {
        let wrong = |text: &String| {
            invalid(field, format!("`{text}` is not the name of a header: write one such as `user-agent`"))
        };
        let name =
            |text: &String| is_token(text).then(|| text.to_ascii_lowercase()).ok_or_else(|| wrong(text));
        each_once(field, texts.iter().map(name))
    };
    let path = |text: &String| {
        let is_path =
            text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'));
        let message = || format!("`{text}` is not a path: write one such as `/up`, without a query");
        is_path.then(|| text.clone()).ok_or_else(|| invalid("exclude_metrics_paths", message()))
    };
    if let Some(texts) = &patch.log_request_headers {
        recording.request_headers = headers("log_request_headers", texts)?;
    }
    if let Some(texts) = &patch.log_response_headers {
        recording.response_headers = headers("log_response_headers", texts)?;
    }
    if let Some(texts) = &patch.exclude_metrics_paths {
        recording.uncounted_paths = each_once("exclude_metrics_paths", texts.iter().map(path))?;
    }
    Ok(())
}

fn apply_client(patch: &PolicyPatch, policy: &mut Policy) -> Result<(), Problem> {
    set(&mut policy.forward_headers, patch.forward_headers);
    if let Some(text) = &patch.client_ip_header {
        policy.client_ip_header = removable("client_ip_header", text)?;
    }
    Ok(())
}

fn each_once(
    field: &str,
    values: impl Iterator<Item = Result<String, Problem>>,
) -> Result<Vec<String>, Problem> {
    let mut kept: Vec<String> = Vec::new();
    for value in values {
        let value = value?;
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    if kept.len() > RECORDED_MAX {
        return Err(invalid(field, format!("{} are too many: at most {RECORDED_MAX}", kept.len())));
    }
    Ok(kept)
}

fn apply_buffering(patch: &PolicyPatch, policy: &mut Policy) {
    let buffering = &mut policy.buffering;
    set(&mut buffering.requests, patch.buffer_requests);
    set(&mut buffering.responses, patch.buffer_responses);
    set(&mut buffering.memory_bytes_max, patch.buffer_memory_bytes);
    set(&mut policy.response_body_bytes_max, patch.max_response_body_bytes.map(parsed));
}

fn apply_readers(patch: &PolicyPatch, readers: &mut ReaderPolicy) -> Result<(), Problem> {
    set(&mut readers.websockets, patch.read_target_websockets);
    bounded("writer_affinity_timeout", patch.writer_affinity_timeout.as_ref(), &mut readers.writer_affinity)
}

/// A token of RFC 9110 §5.6.2: the name of a header or cookie.
pub(crate) fn is_token(name: &str) -> bool {
    let mark = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || mark(b))
}

pub(crate) fn positive(field: &str, text: Option<&String>, into: &mut Duration) -> Result<(), Problem> {
    let mut parsed = *into;
    bounded(field, text, &mut parsed)?;
    if text.is_some() && parsed.is_zero() {
        return Err(invalid(field, "must be longer than 0s, such as `1s`".to_owned()));
    }
    *into = parsed;
    Ok(())
}

pub(crate) fn bounded(field: &str, text: Option<&String>, into: &mut Duration) -> Result<(), Problem> {
    let Some(text) = text else { return Ok(()) };
    let parsed = duration::parse(text).map_err(|error| invalid(field, error.to_string()))?;
    if parsed > DURATION_MAX {
        return Err(invalid(field, format!("`{text}` is too long: at most 24h")));
    }
    *into = parsed;
    Ok(())
}

fn removable<T: FromStr<Err: ToString>>(field: &str, text: &str) -> Result<Option<T>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: T::Err| invalid(field, error.to_string()))
}

/// In the order given, each once.
fn parse_all<T: FromStr<Err: ToString> + PartialEq>(
    field: &str,
    texts: &[String],
) -> Result<Vec<T>, Problem> {
    let mut parsed = Vec::with_capacity(texts.len());
    for text in texts {
        let one: T = text.parse().map_err(|error: T::Err| invalid(field, error.to_string()))?;
        if !parsed.contains(&one) {
            parsed.push(one);
        }
    }
    Ok(parsed)
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

pub(crate) fn invalid(field: &str, message: String) -> Problem {
    Problem::new(ProblemCode::Invalid, format!("{field}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{ClientAuthMode, TlsPolicy};
    use proptest::prelude::*;

    type Set = fn(&mut PolicyPatch);

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        let rows: &[(Set, &str)] = &[
            (|p| p.hosts = Some(vec!["shop test".into()]), "hosts"),
            (|p| p.path_prefixes = Some(vec!["/a b".into()]), "path_prefixes"),
            (|p| p.canonical_host = Some("other.test".into()), "canonical_host"),
            (|p| p.tls_redirect = Some(true), "tls_redirect"),
            (|p| p.tls_one_certificate = Some(true), "tls_one_certificate"),
            (|p| p.tls_staging = Some(true), "tls_staging"),
            (|p| p.tls_client_ca_path = Some("/ca.pem".into()), "tls_client_ca_path"),
            (|p| p.tls_client_auth = Some("optional".into()), "tls_client_auth"),
            (|p| p.hsts = Some("1y".into()), "hsts"),
            (|p| p.hsts_subdomains = Some(true), "hsts_subdomains"),
            (|p| p.hsts_preload = Some(true), "hsts_preload"),
            (|p| (p.tls, p.tls_client_ca_path) = (Some(true), Some("ca.pem".into())), "tls_client_ca_path"),
            (|p| (p.tls, p.tls_client_auth) = (Some(true), Some("required".into())), "tls_client_auth"),
            (
                |p| {
                    (p.tls, p.tls_client_ca_path, p.tls_client_auth) =
                        (Some(true), Some("/ca.pem".into()), Some("on".into()))
                },
                "tls_client_auth",
            ),
            (|p| (p.tls, p.hsts) = (Some(true), Some("long".into())), "hsts"),
            (|p| (p.tls, p.hsts_subdomains) = (Some(true), Some(true)), "hsts_subdomains"),
            (
                |p| (p.tls, p.hsts, p.hsts_preload) = (Some(true), Some("1y".into()), Some(true)),
                "hsts_preload",
            ),
            (|p| p.tls_certificate_path = Some("/c.pem".into()), "tls_certificate_path"),
            (|p| p.tls_private_key_path = Some("/k.pem".into()), "tls_private_key_path"),
            (|p| p.tls_certificates = Some(vec![pair("/c.pem", "/k.pem")]), "tls_certificates"),
            (|p| p.health_check_path = Some("up".into()), "health_check_path"),
            (|p| p.health_check_host = Some("a b".into()), "health_check_host"),
            (|p| p.health_check_interval = Some("0s".into()), "health_check_interval"),
            (|p| p.health_check_timeout = Some("0".into()), "health_check_timeout"),
            (|p| p.deploy_timeout = Some("0s".into()), "deploy_timeout"),
            (|p| p.deploy_timeout = Some("30".into()), "deploy_timeout"),
            (|p| p.drain_timeout = Some("25h".into()), "drain_timeout"),
            (|p| p.bake = Some("long".into()), "bake"),
            (|p| p.connect_timeout = Some("0s".into()), "connect_timeout"),
            (|p| p.max_in_flight = Some(100_001), "max_in_flight"),
            (|p| p.queue_max = Some(u32::MAX), "queue_max"),
            (|p| p.queue_timeout = Some("0s".into()), "queue_timeout"),
            (|p| p.slow_start = Some("soon".into()), "slow_start"),
            (|p| p.visitor_header = Some("x user".into()), "visitor_header"),
            (|p| p.visitor_cookie = Some("a=b".into()), "visitor_cookie"),
            (|p| p.error_pages = Some("pages".into()), "error_pages"),
            (|p| p.log_request_headers = Some(vec!["user agent".into()]), "log_request_headers"),
            (|p| p.log_response_headers = Some(vec![String::new()]), "log_response_headers"),
            (|p| p.exclude_metrics_paths = Some(vec!["/up?x".into()]), "exclude_metrics_paths"),
            (
                |p| p.exclude_metrics_paths = Some((0..40).map(|n| format!("/{n}")).collect()),
                "exclude_metrics_paths",
            ),
            (|p| p.client_ip_header = Some("X-Forwarded-For".into()), "client_ip_header"),
            (|p| p.writer_affinity_timeout = Some("25h".into()), "writer_affinity_timeout"),
        ];
        for (set, field) in rows {
            let mut patch = PolicyPatch { hosts: Some(vec!["shop.test".into()]), ..PolicyPatch::default() };
            set(&mut patch);
            let problem = apply(&patch, Policy::default()).unwrap_err();
            assert_eq!(problem.code, ProblemCode::Invalid, "{field}");
            assert!(problem.message.starts_with(&format!("{field}: ")), "{field}: {}", problem.message);
        }
    }

    fn pair(certificate: &str, private_key: &str) -> CertificatePair {
        CertificatePair { certificate: certificate.into(), private_key: private_key.into() }
    }

    #[test]
    fn pairs_of_files() {
        let many: Vec<_> = (0..101).map(|n| pair(&format!("/{n}"), "/k")).collect();
        // What `tls_certificate_path`, `tls_private_key_path` and `tls_certificates` say; what comes of it.
        for (certificate, key, pairs, want) in [
            (None, None, None, Ok("/old")),
            (Some("/a"), Some("/k"), None, Ok("/a")),
            (Some(""), Some(""), None, Ok("")),
            (None, None, Some(vec![]), Ok("")),
            (None, None, Some(vec![pair("/b", "/k"), pair("/c", "/k")]), Ok("/b /c")),
            (Some("/a"), Some("/k"), Some(vec![pair("/b", "/k")]), Ok("/a /b")),
            (Some("/a"), None, None, Err("tls_certificate_path: `tls_private_key_path` is missing")),
            (None, Some("/k"), None, Err("tls_private_key_path: `tls_certificate_path` is missing")),
            (Some("a"), Some("/k"), None, Err("tls_certificate_path: `a` is not an absolute path")),
            (
                None,
                None,
                Some(vec![pair("/a", "")]),
                Err("tls_certificates: certificate: `private_key` is missing"),
            ),
            (
                None,
                None,
                Some(vec![pair("/a", "k")]),
                Err("tls_certificates: private_key: `k` is not an absolute"),
            ),
            (
                None,
                None,
                Some(vec![pair("/a", "/k"), pair("/a", "/l")]),
                Err("tls_certificates: `/a` is named twice"),
            ),
            (None, None, Some(many), Err("tls_certificates: 101 pairs are too many")),
        ] {
            let old = CertificateFiles { certificate: "/old".into(), private_key: "/old".into() };
            let tls = Some(TlsPolicy { files: vec![old], ..TlsPolicy::default() });
            let patch = PolicyPatch {
                tls_certificate_path: certificate.map(str::to_owned),
                tls_private_key_path: key.map(str::to_owned),
                tls_certificates: pairs,
                ..PolicyPatch::default()
            };
            match (apply(&patch, Policy { tls, ..Policy::default() }), want) {
                (Ok(policy), Ok(want)) => {
                    let files = policy.tls.iter().flat_map(|tls| &tls.files);
                    let paths: Vec<_> = files.map(|pair| pair.certificate.to_string_lossy()).collect();
                    assert_eq!(paths.join(" "), want, "{patch:?}");
                    assert_eq!(apply(&from_policy(&policy), Policy::default()), Ok(policy));
                }
                (Err(problem), Err(want)) => {
                    assert!(problem.message.starts_with(want), "{}", problem.message)
                }
                (got, want) => panic!("{got:?} is not {want:?}"),
            }
        }
    }

    #[test]
    fn what_a_patch_leaves_out_stays() {
        let first = PolicyPatch {
            hosts: Some(vec!["Shop.test".into(), "shop.test.".into()]),
            tls: Some(true),
            bake: Some("0s".into()),
            ..PolicyPatch::default()
        };
        let policy = apply(&first, Policy::default()).unwrap();
        assert_eq!(policy.hosts.len(), 1, "one host, spelled twice");
        assert_eq!(policy.tls, Some(TlsPolicy::default()));
        assert_eq!(apply(&PolicyPatch::default(), policy.clone()), Ok(policy.clone()));

        let second = PolicyPatch { hosts: Some(vec![]), tls: Some(false), ..PolicyPatch::default() };
        let changed = apply(&second, policy).unwrap();
        assert_eq!((changed.hosts.len(), changed.tls, changed.timeouts.bake), (0, None, Duration::ZERO));
    }

    #[test]
    fn what_goes_with_tls_stays_goes_and_comes_back() {
        let all = PolicyPatch {
            tls: Some(true),
            tls_client_ca_path: Some("/ca.pem".into()),
            hsts: Some("1y".into()),
            hsts_subdomains: Some(true),
            ..PolicyPatch::default()
        };
        let policy = apply(&all, Policy::default()).unwrap();
        let tls = policy.tls.clone().unwrap();
        assert_eq!(
            tls.client_auth.as_ref().map(|auth| auth.mode),
            Some(ClientAuthMode::Required),
            "at first"
        );
        for (patch, mode, hsts) in [
            (PolicyPatch::default(), Some("required"), Some("max-age=31536000; includeSubDomains")),
            (
                PolicyPatch { tls_client_auth: Some("optional".into()), ..PolicyPatch::default() },
                Some("optional"),
                Some("max-age=31536000; includeSubDomains"),
            ),
            (
                PolicyPatch {
                    hsts: Some("1d".into()),
                    hsts_subdomains: Some(false),
                    ..PolicyPatch::default()
                },
                Some("required"),
                Some("max-age=86400"),
            ),
            (PolicyPatch { hsts: Some(String::new()), ..PolicyPatch::default() }, Some("required"), None),
            (
                PolicyPatch { tls_client_ca_path: Some(String::new()), ..PolicyPatch::default() },
                None,
                Some("max-age=31536000; includeSubDomains"),
            ),
            (PolicyPatch { tls: Some(false), ..PolicyPatch::default() }, None, None),
        ] {
            let tls = apply(&patch, policy.clone()).unwrap().tls;
            let tls = tls.as_ref();
            let auth = tls.and_then(|tls| tls.client_auth.as_ref()).map(|auth| auth.mode.as_str());
            let told = tls.and_then(|tls| tls.hsts.as_ref()).map(Hsts::to_string);
            assert_eq!((auth, told.as_deref()), (mode, hsts), "{patch:?}");
        }
    }

    #[test]
    fn overrides_print_what_they_parsed() {
        let body = OverridesBody {
            headers: vec!["x-canary=a=b".into()],
            cookies: vec!["Canary=".into()],
            networks: vec!["10.0.0.0/8".into(), "2001:db8::/32".into()],
            visitors: vec!["ann@example.com".into()],
        };
        assert_eq!(print_overrides(&parse_overrides(&body).unwrap()), body);
        for bad in [
            OverridesBody { headers: vec!["x-canary".into()], ..OverridesBody::default() },
            OverridesBody { cookies: vec!["=1".into()], ..OverridesBody::default() },
            OverridesBody { networks: vec!["10.0.0.0/33".into()], ..OverridesBody::default() },
        ] {
            assert_eq!(parse_overrides(&bad).unwrap_err().code, ProblemCode::Invalid);
        }
    }

    prop_compose! {
        fn durations()(millis in proptest::array::uniform11(1u64..86_400_000)) -> [Option<String>; 11] {
            millis.map(|millis| Some(duration::print(Duration::from_millis(millis))))
        }
    }

    prop_compose! {
        fn patches()(
            hosts in proptest::collection::vec("(\\*\\.)?[a-z]{1,8}\\.test", 0..4),
            prefixes in proptest::collection::vec("/[a-z]{1,8}", 0..3),
            flags in proptest::array::uniform6(any::<bool>()),
            durations in durations(),
            files in proptest::option::of("/[a-z]{1,8}"),
            further in proptest::option::of(proptest::collection::vec("/further/[a-z]{8}", 0..2)),
            token in "[a-z-]{0,8}",
            number in any::<u16>(),
        ) -> PolicyPatch {
            let [interval, timeout, deploy, drain, socket_drain, bake, connect, head, idle, queue, start] = durations;
            let files_or_none = Some(files.clone().unwrap_or_default());
            let files = files.filter(|_| flags[1]);
            let further: Option<Vec<_>> = further.map(|paths| paths.iter().enumerate().map(|(n, path)| {
                pair(&format!("{path}{n}"), path)
            }).collect());
            let client_ca = files.clone().filter(|_| flags[3]);
            PolicyPatch {
                hosts: Some(hosts),
                path_prefixes: Some(prefixes),
                strip_path_prefix: Some(flags[0]),
                canonical_host: None,
                tls: Some(flags[1]),
                tls_redirect: Some(flags[1] && flags[2]),
                tls_certificate_path: files.clone(),
                tls_private_key_path: files,
                health_check_path: Some("/up?full=1".into()),
                health_check_port: Some(number),
                health_check_host: Some(if flags[2] { "probe.test".into() } else { String::new() }),
                health_check_interval: interval,
                health_check_timeout: timeout,
                deploy_timeout: deploy,
                drain_timeout: drain,
                socket_drain_timeout: socket_drain,
                bake,
                connect_timeout: connect,
                target_timeout: head,
                body_idle_timeout: idle,
                max_in_flight: Some(u32::from(number)),
                queue_max: Some(u32::from(number) / 2),
                queue_timeout: queue,
                slow_start: start,
                max_request_body_bytes: Some(u64::from(number)),
                visitor_header: Some(token.clone()),
                visitor_cookie: Some(token),
                visitor_set_cookie: Some(flags[3]),
                error_pages: files_or_none,
                scope_cookie_paths: Some(flags[0]),
                log_request_headers: Some(vec!["User-Agent".into(), "user-agent".into()]),
                log_response_headers: Some(if flags[1] { vec!["x-runtime".into()] } else { Vec::new() }),
                exclude_metrics_paths: Some(vec!["/up".into()]),
                forward_headers: Some(flags[0] != flags[2]),
                client_ip_header: Some(if flags[3] { "CF-Connecting-IP".into() } else { String::new() }),
                buffer_requests: Some(flags[4]),
                buffer_responses: Some(flags[5]),
                buffer_memory_bytes: Some(u64::from(number) * 2),
                max_response_body_bytes: Some(u64::from(number) * 3),
                writer_affinity_timeout: Some(format!("{number}ms")),
                read_target_websockets: Some(flags[0] && flags[5]),
                tls_one_certificate: Some(flags[1] && flags[3]),
                tls_staging: Some(flags[1] && flags[4]),
                tls_certificates: further.filter(|_| flags[1]),
                tls_client_ca_path: Some(client_ca.clone().unwrap_or_default()),
                tls_client_auth: client_ca.map(|_| if flags[2] { "optional" } else { "required" }.to_owned()),
                hsts: Some(if flags[1] && flags[5] { format!("{}d", number % 3650) } else { String::new() }),
                hsts_subdomains: Some(flags[1] && flags[5] && flags[0]),
                hsts_preload: Some(flags[1] && flags[5] && flags[0] && number % 3650 >= 365),
            }
        }
    }

    proptest! {
        #[test]
        fn a_policy_becomes_text_and_the_same_policy_again(patch in patches()) {
            let policy = apply(&patch, Policy::default()).unwrap();
            prop_assert_eq!(apply(&crate::declared::shortest(&policy), Policy::default()), Ok(policy.clone()));
            prop_assert_eq!(apply(&from_policy(&policy), Policy::default()), Ok(policy));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            for field in ["hosts", "path_prefixes"] {
                let json = serde_json::json!({ field: [text.clone()] });
                let _ = apply(&serde_json::from_value(json).unwrap(), Policy::default());
            }
            for field in ["canonical_host", "health_check_path", "health_check_host", "bake", "visitor_header"] {
                let json = serde_json::json!({ field: text.clone() });
                let _ = apply(&serde_json::from_value(json).unwrap(), Policy::default());
            }
        }
    }
}
