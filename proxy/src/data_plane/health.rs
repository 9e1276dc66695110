//! The health URL of the process, for load balancers that ask each VM whether it is there: answered before anything is
//! known of hosts and services, since such balancers send no host, or the VM's address.

use http::{Method, Response, header};
use model::reason::Reason;

use super::answer;
use super::body::AnswerBody;
use super::exchange::Facts;

/// The answer, if the request looks at `path`; `checked` is what hygiene says of it.
pub fn answer(path: &str, checked: Result<(), Reason>, facts: &Facts) -> Option<Response<AnswerBody>> {
    let head = facts.head.borrow();
    let is_look = matches!(head.method, Method::GET | Method::HEAD);
    if !is_look || head.uri.path() != path {
        return None;
    }
    let hosts = head.headers.get_all(header::HOST).iter().count();
    match checked {
        Ok(()) => {}
        // None, or one that is no name. Two are a request that nobody can read for sure.
        Err(Reason::BadHost) if hosts < 2 => {}
        Err(_) => return None,
    }
    let worker = &facts.connection.worker;
    let (reason, tell) = (
        if worker.is_leaving.get() { Reason::ShuttingDown } else { Reason::ProcessHealth },
        worker.config.reason_header,
    );
    facts.note(|known| known.reason = Some(reason));
    Some(match reason {
        Reason::ProcessHealth => answer::healthy(reason, tell),
        _ => answer::refuse(reason, head.headers.get(header::ACCEPT), tell, &answer::Page::default()),
    })
}
