//! One connection to Redis or Valkey, wherever it is: a server, what Sentinels say is the master, or a cluster.
//!
//! It is opened when it is needed, shared by all who ask, and opened anew when it breaks. Every call ends by its deadline, and
//! while nobody answers, calls fail at once instead of each waiting for itself. What is said over it is not known here.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::{ConnectionLike, MultiplexedConnection, PubSubSink, PubSubStream};
use ::redis::cluster::{ClusterClient, ClusterClientBuilder};
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, ScriptInvocation, TlsCertificates,
    TlsMode, Value,
};
use tokio::time::{Instant, timeout};

use crate::config::{Login, RedisConfig, Topology};

/// After a failure, doubled with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum RedisFailure {
    #[error("{redis} cannot be reached")]
    Unreachable { redis: String, source: Arc<RedisError> },
    #[error("{redis} refused: {hint}")]
    Refused { redis: String, hint: &'static str, source: Arc<RedisError> },
    #[error("{redis} did not answer within {deadline:?}")]
    Slow { redis: String, deadline: Duration },
    #[error("{redis} did not answer a moment ago, and is not asked again yet")]
    NotYet { redis: String },
}

pub struct Redis {
    /// For messages: where it is, without secrets.
    name: String,
    client: RedisClient,
    deadline: Duration,
    /// Held while a connection is opened, so that one opens it for all.
    opening: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

enum RedisClient {
    Single(Box<Client>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
    /// With a client of each member, for notices.
    Cluster(Box<ClusterClient>, Vec<Client>),
}

#[derive(Default)]
struct State {
    current: Option<Numbered>,
    opened: u64,
    failures: u32,
    not_before: Option<Instant>,
}

/// Tells a broken connection from the one that has taken its place.
#[derive(Clone)]
struct Numbered {
    number: u64,
    connection: Connection,
}

/// Cheap to clone; all clones share one socket.
#[derive(Clone)]
pub enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// What can be asked.
#[derive(Clone, Copy)]
pub enum Ask<'a> {
    Command(&'a Cmd),
    Script(&'a ScriptInvocation<'a>),
}

impl Ask<'_> {
    async fn over<T: FromRedisValue>(&self, connection: &mut Connection) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Script(script) => script.invoke_async(connection).await,
        }
    }
}

impl Redis {
    /// Nothing is connected yet. Fails if the library does not take the configuration, such as a damaged certificate.
    pub fn new(config: &RedisConfig, deadline: Duration) -> Result<Self, RedisFailure> {
        let name = name(config);
        match RedisClient::new(config, deadline) {
            Ok(client) => Ok(Self {
                name,
                client,
                deadline,
                opening: tokio::sync::Mutex::default(),
                state: Mutex::default(),
            }),
            Err(source) => Err(RedisFailure::Unreachable { redis: name, source: Arc::new(source) }),
        }
    }

    /// Asks over the connection, within the deadline; again if the connection turns out to have been broken. So it may be
    /// executed twice.
    pub async fn ask<T: FromRedisValue>(&self, ask: Ask<'_>) -> Result<T, RedisFailure> {
        let working = async {
            let mut is_repeated = false;
            loop {
                let Numbered { number, mut connection } = self.connection().await?;
                match ask.over(&mut connection).await {
                    Ok(done) => return Ok(done),
                    Err(error) => {
                        let is_broken = is_broken(&error);
                        if is_broken {
                            self.forget(number);
                        }
                        if !is_broken || is_repeated {
                            return Err(self.failure(error));
                        }
                        is_repeated = true;
                    }
                }
            }
        };
        match timeout(self.deadline, working).await {
            Ok(done) => done,
            Err(_) => {
                // It may wait for a machine that is gone without a word.
                self.lock().current = None;
                Err(self.too_slow())
            }
        }
    }

    /// Hears what is published on `channel`, over a connection of its own.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, RedisFailure> {
        let subscribing = async {
            let mut pubsub = self.client.get_pubsub().await?;
            pubsub.subscribe(channel).await?;
            let (sink, messages) = pubsub.split();
            Ok(Subscription { sink, messages })
        };
        match timeout(self.deadline, subscribing).await {
            Ok(subscribed) => subscribed.map_err(|error| self.failure(error)),
            Err(_) => Err(self.too_slow()),
        }
    }

    async fn connection(&self) -> Result<Numbered, RedisFailure> {
        if let Some(current) = &self.lock().current {
            return Ok(current.clone());
        }
        let _opening = self.opening.lock().await;
        {
            // Another one may have opened it meanwhile, or tried in vain.
            let state = self.lock();
            if let Some(current) = &state.current {
                return Ok(current.clone());
            }
            if state.not_before.is_some_and(|moment| Instant::now() < moment) {
                return Err(RedisFailure::NotYet { redis: self.name.clone() });
            }
        }
        // The deadline may end it; the state then says that it failed.
        let mut attempt = Attempt { redis: self, opened: None };
        let connection =
            self.client.get_connection(self.deadline).await.map_err(|error| self.failure(error))?;
        Ok(attempt.succeeded(connection))
    }

    fn forget(&self, number: u64) {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|current| current.number == number) {
            state.current = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, source: RedisError) -> RedisFailure {
        let (redis, hint) = (self.name.clone(), hint(&source));
        let source = Arc::new(source);
        match hint {
            Some(hint) => RedisFailure::Refused { redis, hint, source },
            None => RedisFailure::Unreachable { redis, source },
        }
    }

    fn too_slow(&self) -> RedisFailure {
        RedisFailure::Slow { redis: self.name.clone(), deadline: self.deadline }
    }
}

/// Counts as failed unless it succeeds, also when it is dropped.
struct Attempt<'r> {
    redis: &'r Redis,
    opened: Option<u64>,
}

impl Attempt<'_> {
    fn succeeded(&mut self, connection: Connection) -> Numbered {
        let mut state = self.redis.lock();
        state.opened += 1;
        let numbered = Numbered { number: state.opened, connection };
        *state =
            State { current: Some(numbered.clone()), opened: state.opened, failures: 0, not_before: None };
        self.opened = Some(numbered.number);
        numbered
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.opened.is_none() {
            let mut state = self.redis.lock();
            let wait = BACK_OFF_MIN.saturating_mul(1 << state.failures.min(6)).min(BACK_OFF_MAX);
            state.failures += 1;
            // All VMs lose it at one moment, and need not come back at one.
            state.not_before = Some(Instant::now() + wait.mul_f64(0.5 + fastrand::f64() / 2.0));
        }
    }
}

impl RedisClient {
    fn new(config: &RedisConfig, deadline: Duration) -> RedisResult<Self> {
        let certificates =
            config.tls.then(|| TlsCertificates { client_tls: None, root_cert: config.ca.clone() });
        match &config.topology {
            Topology::Single => {
                Ok(Self::Single(Box::new(client(config, &config.nodes[0], certificates.as_ref())?)))
            }
            Topology::Cluster => {
                let clients = config.nodes.iter().map(|node| client(config, node, certificates.as_ref()));
                let infos = config.nodes.iter().map(|node| info(config, node));
                let mut builder = ClusterClientBuilder::new(infos.collect::<RedisResult<Vec<_>>>()?)
                    .connection_timeout(deadline)
                    .response_timeout(deadline)
                    .retries(4);
                if let Some(certificates) = certificates.clone() {
                    builder = builder.tls(TlsMode::Secure).certs(certificates);
                }
                Ok(Self::Cluster(Box::new(builder.build()?), clients.collect::<RedisResult<_>>()?))
            }
            Topology::Sentinel { master, login } => {
                let sentinels = config.nodes.iter().map(|node| address(config, node));
                let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
                    .set_client_to_redis_db(config.database);
                if let Some(username) = &config.login.username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = &config.login.password {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(username) = &login.username {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if let Some(password) = &login.password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                if let Some(certificates) = certificates {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates);
                }
                Ok(Self::Sentinel(Box::new(tokio::sync::Mutex::new(builder.build()?))))
            }
        }
    }

    async fn get_connection(&self, deadline: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(deadline))
            .set_response_timeout(Some(deadline));
        let server = |client: Client| async move {
            client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Server)
        };
        match self {
            Self::Single(client) => server(client.as_ref().clone()).await,
            // Asked anew each time, for it may be another one by now.
            Self::Sentinel(sentinels) => server(sentinels.lock().await.async_get_client().await?).await,
            Self::Cluster(cluster, _) => cluster.get_async_connection().await.map(Connection::Cluster),
        }
    }

    async fn get_pubsub(&self) -> RedisResult<::redis::aio::PubSub> {
        match self {
            Self::Single(client) => client.get_async_pubsub().await,
            Self::Sentinel(sentinels) => {
                sentinels.lock().await.async_get_client().await?.get_async_pubsub().await
            }
            // Members pass on to each other what is published.
            Self::Cluster(_, members) => {
                let mut last = None;
                for member in members {
                    match member.get_async_pubsub().await {
                        Ok(pubsub) => return Ok(pubsub),
                        Err(error) => last = Some(error),
                    }
                }
                Err(last.expect("a configuration has at least one node"))
            }
        }
    }
}

/// What is published on one channel, for as long as the connection lasts.
pub struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
}

impl Subscription {
    /// Whether there was a message; the connection is gone otherwise. Nothing is lost when the future is dropped.
    pub async fn message(&mut self) -> bool {
        use futures_util::StreamExt;
        self.messages.next().await.is_some()
    }

    pub async fn answers(&mut self, deadline: Duration) -> bool {
        matches!(timeout(deadline, self.sink.ping::<Value>()).await, Ok(Ok(_)))
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

fn address(config: &RedisConfig, (host, port): &(String, u16)) -> ConnectionAddr {
    match config.tls {
        true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host.clone(), *port),
    }
}

fn info(config: &RedisConfig, node: &(String, u16)) -> RedisResult<ConnectionInfo> {
    let Login { username, password } = &config.login;
    let mut settings = RedisConnectionInfo::default().set_db(config.database).set_skip_set_lib_name();
    if let Some(username) = username {
        settings = settings.set_username(username);
    }
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    Ok(address(config, node).into_connection_info()?.set_redis_settings(settings))
}

fn client(
    config: &RedisConfig,
    node: &(String, u16),
    certificates: Option<&TlsCertificates>,
) -> RedisResult<Client> {
    let info = info(config, node)?;
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        None => Client::open(info),
    }
}

fn name(config: &RedisConfig) -> String {
    let nodes: Vec<String> = config.nodes.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let nodes = nodes.join(", ");
    match &config.topology {
        Topology::Single => format!("Redis at {nodes}"),
        Topology::Sentinel { master, .. } => format!("Redis `{master}` of the Sentinels at {nodes}"),
        Topology::Cluster => format!("the Redis cluster at {nodes}"),
    }
}

/// Whether another connection may do better: it broke, or it leads to a server that is the master no longer.
fn is_broken(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || error.is_io_error()
        || matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "LOADING"))
}

/// What the operator has to do, where it is not waiting.
fn hint(error: &RedisError) -> Option<&'static str> {
    if error.kind() == ::redis::ErrorKind::AuthenticationFailed {
        return Some("the user or the password is wrong, or one is missing: `username` and `password_file`");
    }
    Some(match error.code()? {
        "NOAUTH" | "WRONGPASS" => {
            "the user or the password is wrong, or one is missing: `username` and `password_file`"
        }
        "NOPERM" => "the user may not do this: docs/operations.md has the ACL that it needs",
        "READONLY" => "it is a replica: name its master, or its Sentinels with `sentinel_master`",
        "MOVED" | "CROSSSLOT" => "it is a member of a cluster: `cluster = true`",
        "OOM" => "its memory is full: raise `maxmemory`",
        "MISCONF" => "it cannot save to its disk, and takes no writes until it can",
        _ => return None,
    })
}

impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("name", &self.name).finish_non_exhaustive()
    }
}
