//! A request's way through the proxy: checked, routed, assigned to a cohort, sent to a target, answered.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use model::canary::{COOKIE_PLAIN, COOKIE_SECURE, Cohort, Visit};
use model::cookie_scope;
use model::readers::{self, Role};
use model::reason::Reason;
use model::route::Lookup;
use model::service::{Policy, ReaderPolicy};

use super::admission::SocketPlace;
use super::admit::{self, CUTOVERS_MAX, Entrance, InLine};
use super::answer;
use super::body::{AnswerBody, EventStream, TargetBody};
use super::buffering::requests::Intake;
use super::buffering::responses::{self, Coming};
use super::challenge;
use super::exchange::{Connection, Exchange, Facts};
use super::forwarded::{Forwarded, Trust, client_ip_header};
use super::halt::{self, Passage};
use super::headers;
use super::health;
use super::hygiene;
use super::layers::request_id::RequestId;
use super::upgrade::{Farewell, tunnel};
use super::upstream::pool::Lease;
use super::upstream::request_head::{BodyFraming, RequestHead};
use super::upstream::response_head::ResponseHead;
use super::upstream::send::{self, Route, Sent};
use super::upstream::stream::Ahead;
use super::upstream::upload::Upload;
use crate::clock;
use crate::halt::Waiter;
use crate::release::InFlight;
use crate::snapshot::{Service, Slot, Snapshot};

/// Answers one request. Never fails: what goes wrong becomes an answer with a reason.
pub async fn serve(exchange: Exchange) -> Response<AnswerBody> {
    let Exchange { body, facts } = exchange;
    let checked = hygiene::check(&mut facts.head.borrow_mut());
    if let Some(path) = &facts.connection.worker.config.health_path
        && let Some(response) = health::answer(path, checked, &facts)
    {
        return response;
    }
    if checked.is_ok()
        && let Some(response) = challenge::answer(&facts)
    {
        return response;
    }
    let answered = match checked {
        Ok(()) => route(body, &facts).await,
        Err(reason) => Err(reason),
    };
    answered.unwrap_or_else(|reason| {
        facts.note(|known| {
            known.reason = Some(reason);
            // The next one need not wait until the client has read it.
            known.going = None;
        });
        refuse(reason, &facts)
    })
}

/// Our own answer, on the page that the service has for it.
pub fn refuse(reason: Reason, facts: &Facts) -> Response<AnswerBody> {
    let (head, known) = (facts.head.borrow(), facts.known.borrow());
    let halt = known.halt.as_ref().filter(|_| reason == Reason::Stopped);
    let page = answer::Page {
        template: known.service.as_ref().and_then(|service| service.pages.as_ref()?.get(reason.status())),
        message: halt.and_then(|halt| halt.rule.message()),
        request_id: known.request_id.as_ref().map_or("", RequestId::as_str),
    };
    let accept = head.headers.get(header::ACCEPT);
    answer::refuse(reason, accept, facts.connection.worker.config.reason_header, &page)
}

/// Decides where the request goes, waits there for a seat if none is free, and sends it.
async fn route(body: Incoming, facts: &Rc<Facts>) -> Result<Response<AnswerBody>, Reason> {
    let worker = &facts.connection.worker;
    let mut body = Intake::Coming(body);
    loop {
        let (plan, entrance) = match decide(facts, &body)? {
            Decision::Redirect(location, reason) => {
                facts.note(|known| known.reason = Some(reason));
                let keep_method = !matches!(facts.head.borrow().method, Method::GET | Method::HEAD);
                return Ok(answer::redirect(&location, keep_method, reason, worker.config.reason_header));
            }
            Decision::Healthy => return Ok(halt::healthy(facts)),
            Decision::Pause(waiter) => {
                Box::pin(halt::wait(waiter, facts)).await?;
                continue;
            }
            // No seat is taken meanwhile, and the release may have changed by then. Boxed like the wait below.
            Decision::Keep(service) => {
                body = Box::pin(body.keep(&service.policy, facts)).await?;
                continue;
            }
            Decision::Forward(plan, in_flight) => (plan, Some(in_flight)),
            // Boxed, so that requests that need not wait are not larger for it.
            Decision::Wait(plan, line) => {
                let entered = Box::pin(line.wait(worker, &plan.service.policy.concurrency, facts)).await?;
                (plan, entered)
            }
        };
        // `None`: the release ended while the request stood in line, so all is decided anew.
        if let Some(in_flight) = entrance {
            return forward(body, plan, in_flight, facts).await;
        }
    }
}

/// Everything that is decided before the first await, on one snapshot.
enum Decision {
    Redirect(String, Reason),
    Forward(Plan, InFlight),
    /// As planned, once there is a seat.
    Wait(Plan, InLine),
    /// A look at the health path of a service that is paused or stopped.
    Healthy,
    /// To be decided anew at the end of the pause.
    Pause(Waiter),
    /// The service wants the body whole; then all is decided anew.
    Keep(Arc<Service>),
}

/// Where a request goes.
struct Plan {
    service: Arc<Service>,
    cohort: Cohort,
    /// Of the path, to be removed.
    strip: usize,
    visitor_cookie: Option<String>,
    forwarded: Forwarded,
    wanted: Role,
    /// Once it is answered, the visitor's reads go to the writers for a while.
    holds_to_writers: bool,
}

fn decide(facts: &Facts, body: &Intake) -> Result<Decision, Reason> {
    let connection = &facts.connection;
    let worker = &connection.worker;
    let https = connection.tls.is_some();
    facts.note(|known| known.https = https);
    let head = facts.head.borrow();
    let host = hygiene::host(&head)?;
    let as_configured = who_asks(&head.headers, connection, None);
    note_client(facts, &as_configured);
    for _ in 0..CUTOVERS_MAX {
        let snapshot = worker.published.load();
        check_certificate(&snapshot, &host, facts)?;
        let (prefix, service) = match snapshot.routes.lookup(&host, head.uri.path()) {
            Lookup::Found { prefix, route } => (prefix, route),
            Lookup::UnknownHost => return Err(Reason::UnknownHost),
            Lookup::UnknownPath => return Err(Reason::UnknownPath),
        };
        facts.note(|known| known.service = Some(Arc::clone(service)));
        let mut forwarded = as_configured.clone();
        if service.policy.forward_headers || service.policy.client_ip_header.is_some() {
            forwarded = who_asks(&head.headers, connection, Some(&service.policy));
            note_client(facts, &forwarded);
        }
        if forwarded.host.as_ref().is_some_and(|other| !leads_to(&snapshot, other, &head, service)) {
            forwarded.host = None;
        }
        if let Some((location, reason)) = redirect(&head, service, &host, forwarded.https, worker.https_port)
        {
            return Ok(Decision::Redirect(location, reason));
        }
        let strip =
            if service.policy.strip_path_prefix && !prefix.is_root() { prefix.as_str().len() } else { 0 };
        if let Some(halt) = &service.halt {
            match halt::judge(service, halt, (&head, strip), &forwarded, facts)? {
                Passage::Through => {}
                Passage::Healthy => return Ok(Decision::Healthy),
                Passage::Wait(waiter) => return Ok(Decision::Pause(waiter)),
            }
        }
        let (slot, visitor_cookie, overridden) = choose_slot(&head.headers, service, &forwarded);
        facts.note(|known| {
            known.release = Some(Arc::clone(&slot.release.id));
            known.cohort = Some(slot.cohort);
            known.overridden = overridden;
        });
        let policy = &service.policy;
        if body.length().is_some_and(|bytes| bytes > policy.request_body_bytes_max) {
            facts.note(|known| known.unseated = Some(Arc::clone(&slot.release.unseated)));
            return Err(Reason::BodyTooLarge);
        }
        note_uncounted(policy, &head.uri.path()[strip..], facts);
        if body.is_to_be_kept(policy, &head) {
            facts.note(|known| known.unseated = Some(Arc::clone(&slot.release.unseated)));
            return Ok(Decision::Keep(Arc::clone(service)));
        }
        let (mut wanted, mut holds_to_writers) = (Role::Writer, false);
        if !slot.release.readers().is_empty() {
            wanted = choose_side(&head, body, &policy.readers, forwarded.https);
            holds_to_writers =
                !policy.readers.writer_affinity.is_zero() && readers::may_write(head.method.as_str());
        }
        let entrance = admit::enter(worker, slot, wanted, &policy.concurrency, facts)?;
        let (service, cohort) = (Arc::clone(service), slot.cohort);
        let plan = Plan { service, cohort, strip, visitor_cookie, forwarded, wanted, holds_to_writers };
        match entrance {
            Entrance::In(in_flight) => return Ok(Decision::Forward(plan, in_flight)),
            Entrance::Line(line) => return Ok(Decision::Wait(plan, line)),
            Entrance::Closed => {}
        }
    }
    Err(Reason::Internal)
}

/// `path`: as the app sees it.
fn note_uncounted(policy: &Policy, path: &str, facts: &Facts) {
    let paths = &policy.recording.uncounted_paths;
    if !paths.is_empty() {
        let path = if path.is_empty() { "/" } else { path };
        facts.note(|known| known.uncounted = paths.iter().any(|uncounted| uncounted == path));
    }
}

/// Who asks, by the process's settings or by those of a service, if it has its own.
fn who_asks(fields: &HeaderMap, connection: &Connection, policy: Option<&Policy>) -> Forwarded {
    let https = connection.tls.is_some();
    let private = policy.is_some_and(|policy| policy.forward_headers);
    if !connection.is_trusted && !private {
        return Forwarded::direct(connection.peer, https);
    }
    let config = &connection.worker.config;
    let trust = Trust {
        proxies: &config.trusted_proxies,
        private,
        headers: config.proxy_headers,
        client_ip_header: client_ip_header(config, policy),
    };
    Forwarded::read(fields, connection.peer, https, &trust)
}

fn note_client(facts: &Facts, forwarded: &Forwarded) {
    facts.note(|known| (known.client, known.https) = (Some(forwarded.client), forwarded.https));
}

/// Whether a request for `host` would have come to `service` as well. Many proxies pass X-Forwarded-Host on as their
/// client sent it; so it may say no more than the client could have said in `Host`.
fn leads_to(snapshot: &Snapshot, host: &HeaderValue, head: &Parts, service: &Arc<Service>) -> bool {
    let host = host.to_str().ok().and_then(hygiene::parse_host);
    let found = host.map(|host| snapshot.routes.lookup(&host, head.uri.path()));
    matches!(found, Some(Lookup::Found { route, .. }) if Arc::ptr_eq(route, service))
}

/// A TLS connection serves the hosts of the certificate that it showed (RFC 9110 §7.4).
fn check_certificate(snapshot: &Snapshot, host: &str, facts: &Facts) -> Result<(), Reason> {
    let Some(tls) = &facts.connection.tls else { return Ok(()) };
    let certificate = snapshot.certificates.best(host).and_then(Option::as_ref);
    let same_name = tls.server_name.as_deref() == Some(host);
    match certificate {
        Some(certificate) if same_name || Arc::ptr_eq(certificate, &tls.certificate) => Ok(()),
        // Issued for this very handshake, and not published yet.
        None if same_name && snapshot.on_demand.best(host) == Some(&true) => Ok(()),
        _ => Err(Reason::Misdirected),
    }
}

/// One hop to the right scheme and host, if either is wrong.
fn redirect(
    head: &Parts,
    service: &Service,
    host: &str,
    https: bool,
    https_port: Option<u16>,
) -> Option<(String, Reason)> {
    let canonical = service.policy.canonical_host.as_ref().map(|name| name.as_str());
    let wrong_host = canonical.is_some_and(|name| name != host);
    let wrong_scheme = service.redirect_to_https && !https;
    let reason = match (wrong_scheme, wrong_host) {
        (false, false) => return None,
        (true, _) => Reason::RedirectToHttps,
        (false, true) => Reason::RedirectToCanonicalHost,
    };
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let name = canonical.unwrap_or(host);
    let location = if https || wrong_scheme {
        match https_port {
            Some(port) if port != 443 => format!("https://{name}:{port}{target}"),
            _ => format!("https://{name}{target}"),
        }
    } else {
        let sent = head.headers.get(header::HOST).and_then(|value| value.to_str().ok());
        let port =
            sent.and_then(|sent| sent.rsplit_once(':')).map(|(_, port)| port).filter(|p| !p.ends_with(']'));
        match port {
            Some(port) => format!("http://{name}:{port}{target}"),
            None => format!("http://{name}{target}"),
        }
    };
    Some((location, reason))
}

/// Stable or canary, with the cookie that keeps the visitor there and whether an override decided.
fn choose_slot<'s>(
    fields: &HeaderMap,
    service: &'s Service,
    forwarded: &Forwarded,
) -> (&'s Slot, Option<String>, bool) {
    let Some(canary) = &service.canary else { return (&service.stable, None, false) };
    let visit = Visit {
        header: |name: &str| fields.get(name).map(HeaderValue::as_bytes),
        cookie: |name: &str| headers::cookie(fields, name),
        client: forwarded.client,
        day: clock::unix_time().as_secs() / 86_400,
        user_agent: fields.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes),
    };
    let assigned = canary.assignment.assign(&visit, forwarded.https);
    let slot = if assigned.cohort == Cohort::Canary { &canary.slot } else { &service.stable };
    (slot, assigned.set_cookie, assigned.overridden)
}

/// Whom the request wants, where there are readers.
fn choose_side(head: &Parts, body: &Intake, policy: &ReaderPolicy, https: bool) -> Role {
    let is_websocket = || headers::is_websocket(head, body.is_something());
    let has_written = || {
        let cookie = headers::cookie(&head.headers, readers::cookie_name(https));
        cookie.is_some_and(|cookie| readers::has_written(cookie, now_ms(), policy.writer_affinity))
    };
    readers::wanted(head.method.as_str(), policy, is_websocket, has_written)
}

fn now_ms() -> u64 {
    clock::unix_time().as_millis() as u64
}

async fn forward(
    body: Intake,
    plan: Plan,
    in_flight: InFlight,
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let worker = &facts.connection.worker;
    let policy = &plan.service.policy;
    let client_upgrade = match client_upgrade(&mut facts.head.borrow_mut(), &body) {
        Some(upgrade) => Some((upgrade, socket_place(facts)?)),
        None => None,
    };
    let upload = upload(body, &plan, facts, client_upgrade.is_some());

    facts.set_waiting_for_app(true);
    let route = Route { service: &plan.service, cohort: plan.cohort, wanted: plan.wanted };
    let sent = send::send(worker, upload, &route, in_flight, facts).await;
    facts.set_waiting_for_app(false);
    let Sent { head, mut lease, in_flight } = sent?;
    facts.note(|known| {
        known.first_byte = Some(clock::now() - facts.arrived);
        known.going = None;
    });

    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let client = client_upgrade.ok_or(Reason::UpstreamProtocol)?;
        return switch_protocols(head, client, (lease, in_flight), facts);
    }
    let ResponseHead { status, mut fields, framing, keep_alive, wrote_nothing } = head;
    let bytes_max = policy.response_body_bytes_max;
    if framing.length().is_some_and(|bytes| bytes > bytes_max) {
        return Err(Reason::ResponseTooLarge);
    }
    let body = match lease.take_whole(&framing) {
        // The target has done its part: its seat and its connection are free while the client reads.
        Some(whole) => {
            if keep_alive {
                lease.give_back();
            }
            AnswerBody::Whole(Full::new(whole))
        }
        None if policy.buffering.responses && may_be_kept(&fields) => {
            lease.hold(in_flight);
            let coming = Coming::new(lease, framing, keep_alive, policy);
            facts.set_waiting_for_app(true);
            let kept = Box::pin(responses::keep(coming, policy, facts)).await;
            facts.set_waiting_for_app(false);
            kept?
        }
        None => {
            let is_events = is_event_stream(&fields);
            let event_stream = match is_events {
                true => {
                    let farewell = Farewell::new(in_flight.release(), worker);
                    Some(EventStream::new(farewell, socket_place(facts)?, &facts.connection.activity))
                }
                false => None,
            };
            let (held, idle) = ((lease, in_flight), policy.timeouts.body_idle);
            // Nobody can say how long a stream of events is.
            let bytes_max = if is_events { Policy::UNLIMITED } else { bytes_max };
            let body = TargetBody::new(framing, keep_alive, idle, held, event_stream, bytes_max, facts);
            AnswerBody::Target(Box::new(body))
        }
    };
    if policy.scope_cookie_paths && plan.strip > 0 {
        scope_cookies(&mut fields, plan.strip, facts);
    }
    if let Some(id) = &plan.visitor_cookie {
        set_visitor_cookie(&mut fields, id, plan.forwarded.https);
    }
    if plan.holds_to_writers && !wrote_nothing {
        let affinity = policy.readers.writer_affinity;
        set_cookie(&mut fields, &readers::set_cookie(now_ms(), affinity, plan.forwarded.https));
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    Ok(response)
}

fn socket_place(facts: &Facts) -> Result<SocketPlace, Reason> {
    facts.connection.place.for_socket().ok_or(Reason::SocketsFull)
}

/// The client's side of a WebSocket, if that is what it asks for.
fn client_upgrade(head: &mut Parts, body: &Intake) -> Option<OnUpgrade> {
    // hyper puts it there for whatever asks for an upgrade; for others it has no effect.
    let upgrade = head.extensions.remove::<OnUpgrade>()?;
    headers::is_websocket(head, body.is_something()).then_some(upgrade)
}

/// The request as the target gets it, with the client's body behind its head.
fn upload(body: Intake, plan: &Plan, facts: &Rc<Facts>, websocket: bool) -> Upload {
    let framing = if websocket { BodyFraming::AsSent } else { body.framing() };
    let mut out = facts.connection.worker.pool.buffer();
    let (known, head) = (facts.known.borrow(), facts.head.borrow());
    RequestHead {
        method: &head.method,
        uri: &head.uri,
        fields: &head.headers,
        forwarded: &plan.forwarded,
        peer: &facts.connection.peer_text,
        port: facts.connection.port,
        strip: plan.strip,
        request_id: known.request_id.as_ref().map_or(&b""[..], RequestId::as_bytes),
        // Time in line is queue time too, for whoever scales by it.
        now_ms: clock::unix_time().saturating_sub(known.queue.unwrap_or_default()).as_millis() as u64,
        body: framing,
        websocket,
        client_ip_header: client_ip_header(&facts.connection.worker.config, Some(&plan.service.policy)),
    }
    .write(&mut out);
    let policy = &plan.service.policy;
    Upload::new(out, body.into_body(policy, facts), framing)
}

fn is_event_stream(fields: &HeaderMap) -> bool {
    let content_type = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    content_type.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

/// Cookies are bound to the first `strip` bytes of the path, which the app does not know of.
fn scope_cookies(fields: &mut HeaderMap, strip: usize, facts: &Facts) {
    let head = facts.head.borrow();
    let (prefix, Ok(host)) = (&head.uri.path()[..strip], hygiene::host(&head)) else { return };
    let http::header::Entry::Occupied(mut cookies) = fields.entry(header::SET_COOKIE) else { return };
    for cookie in cookies.iter_mut() {
        // What is not text is left as the app wrote it.
        let scoped = cookie.to_str().ok().and_then(|text| cookie_scope::scope(text, prefix, &host));
        if let Some(scoped) = scoped.and_then(|text| HeaderValue::from_str(&text).ok()) {
            *cookie = scoped;
        }
    }
}

fn may_be_kept(fields: &HeaderMap) -> bool {
    !is_event_stream(fields) && !responses::is_unwanted_for(fields)
}

fn set_visitor_cookie(fields: &mut HeaderMap, id: &str, secure: bool) {
    let (name, secure) = if secure { (COOKIE_SECURE, "; Secure") } else { (COOKIE_PLAIN, "") };
    set_cookie(fields, &format!("{name}={id}; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax{secure}"));
}

fn set_cookie(fields: &mut HeaderMap, cookie: &str) {
    let public = headers::lists(fields, header::CACHE_CONTROL, "public");
    if public {
        // A shared cache would hand one visitor's cookie to everybody; the next answer will do.
        return;
    }
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        fields.append(header::SET_COOKIE, cookie);
    }
}

/// Answers 101 and connects both ends once the client has switched.
fn switch_protocols(
    head: ResponseHead,
    (client, place): (OnUpgrade, SocketPlace),
    (lease, in_flight): (Lease, InFlight),
    facts: &Rc<Facts>,
) -> Result<Response<AnswerBody>, Reason> {
    let farewell = Farewell::new(in_flight.release(), &facts.connection.worker);
    let held = (in_flight.into_tunnel(), place, Rc::clone(facts));
    let (target, ahead) = lease.into_stream().ok_or(Reason::UpstreamProtocol)?;
    facts.connection.worker.tasks.spawn_local(async move {
        let Ok(client) = client.await else { return };
        let target = Ahead::new(ahead, target);
        let carried = tunnel(hyper_util::rt::TokioIo::new(client), target, farewell).await;
        let (_in_flight, _place, facts) = held;
        facts.request_body.bytes.set(carried.from_client);
        facts.response_body_bytes.set(carried.to_client);
    });
    let mut response = Response::new(AnswerBody::empty());
    *response.headers_mut() = head.fields;
    if facts.connection.activity.is_http2() {
        // On a stream success is 200, and there is no key to accept (RFC 8441 §5).
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    } else {
        facts.connection.activity.begin_tunnel();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_streams() {
        for (content_type, is) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("text/html", false),
            ("", false),
        ] {
            let fields =
                HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            assert_eq!(is_event_stream(&fields), is, "{content_type}");
        }
    }
}
