//! Why Portcullis answered by itself instead of the app: a closed list, for the log, the
//! `X-Portcullis-Reason` field and the metrics. Codes are API.

/// Who could have avoided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Client,
    /// The app, its target or the lack of one: a gateway error.
    Upstream,
    /// Nobody: the configuration says so (a redirect).
    Nobody,
    /// Portcullis itself.
    Us,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $fault:ident;)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status; 499 is what logs say of a client that left (nginx's number).
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            pub fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }
        }
    };
}

reasons! {
    /// Which body belongs to the request is open to doubt (RFC 9112 §6.3).
    AmbiguousFraming = "ambiguous_framing", 400, Client;
    /// The body broke off, or a chunk was malformed.
    BadBody = "bad_body", 400, Client;
    /// No host, several, or one that is no host name (RFC 9112 §3.2).
    BadHost = "bad_host", 400, Client;
    /// Not origin-form, or an absolute-form that disagrees with the host.
    BadTarget = "bad_target", 400, Client;
    UnknownHost = "unknown_host", 404, Client;
    UnknownPath = "unknown_path", 404, Client;
    MethodNotAllowed = "method_not_allowed", 405, Client;
    /// The client stopped sending the body.
    BodyTimeout = "body_timeout", 408, Client;
    BodyTooLarge = "body_too_large", 413, Client;
    ExpectationFailed = "expectation_failed", 417, Client;
    /// The host is not one of this TLS connection's certificate (RFC 9110 §15.5.20).
    Misdirected = "misdirected", 421, Client;
    TooManyFields = "too_many_fields", 431, Client;
    /// The client left before the answer.
    ClientClosed = "client_closed", 499, Client;
    UnsupportedEncoding = "unsupported_encoding", 501, Client;
    RedirectToHttps = "redirect_to_https", 308, Nobody;
    RedirectToCanonicalHost = "redirect_to_canonical_host", 308, Nobody;
    ConnectFailed = "connect_failed", 502, Upstream;
    ConnectTimeout = "connect_timeout", 504, Upstream;
    /// The target closed the connection before it answered.
    UpstreamClosed = "upstream_closed", 502, Upstream;
    /// What the target sent is not an HTTP answer, or one that nobody may pass on.
    UpstreamProtocol = "upstream_protocol", 502, Upstream;
    /// No answer within `target-timeout`.
    UpstreamTimeout = "upstream_timeout", 504, Upstream;
    /// Every target holds as many requests as it may, and as many as may wait do.
    QueueFull = "queue_full", 503, Upstream;
    /// Every target held as many requests as it may for all of `queue-timeout`.
    QueueTimeout = "queue_timeout", 503, Upstream;
    /// The release ended and the request was still running at the drain deadline.
    DrainCut = "drain_cut", 504, Upstream;
    /// A bug of ours; the log has it.
    Internal = "internal", 500, Us;
    /// The service is stopped, or was while the request waited in a pause.
    Stopped = "stopped", 503, Nobody;
    /// The pause outlasted `max-pause`.
    PauseTimeout = "pause_timeout", 504, Nobody;
    /// As many requests wait for the end of the pause as may.
    PauseFull = "pause_full", 503, Nobody;
    /// A look at the health path of a service that is paused or stopped.
    HaltedHealth = "halted_health", 200, Nobody;
    /// The daemon ends, and what the request waits for will not happen here.
    ShuttingDown = "shutting_down", 503, Us;
    /// A look at the health URL of the process.
    ProcessHealth = "process_health", 200, Nobody;
    /// The body is to be buffered, and there is room neither in memory nor on disk.
    BuffersFull = "buffers_full", 503, Us;
    /// The answer's body is longer than `max-response-body`.
    ResponseTooLarge = "response_too_large", 502, Upstream;
    /// WebSockets and event streams have all the connections that they may have.
    SocketsFull = "sockets_full", 503, Us;
    /// The authority's question whether a host is ours, answered.
    AcmeChallenge = "acme_challenge", 200, Nobody;
    /// A question of that kind that no authority would put.
    UnknownChallenge = "unknown_challenge", 404, Client;
}

impl Reason {
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_indices_dense() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert_eq!(Reason::ALL.iter().filter(|other| other.code() == reason.code()).count(), 1);
        }
    }
}
