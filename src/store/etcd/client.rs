//! A client of an etcd cluster: which member to ask, what to do when it does not answer, and who
//! asks.
//!
//! Every question may go to any member, because reads are linearizable. One that fails or takes long is
//! put to the next member, a transaction too: what a leader was told that died is not done, and etcd
//! takes seven seconds to say so. It may then have been made already; that is told with its answer.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Response, Status};
use zeroize::Zeroizing;

use crate::store::etcd::rpc;
use crate::store::etcd::rpc::auth_client::AuthClient;
use crate::store::etcd::rpc::kv_client::KvClient;
use crate::store::etcd::rpc::watch_client::WatchClient;

/// How long one member has.
const EACH: Duration = Duration::from_secs(1);

/// How long it has alone, before another is asked too. Of three members the old leader and one that
/// still trusted it may be asked first, and a second after an election all must be as before.
const ALONE: Duration = Duration::from_millis(400);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(500);

/// How long a read is put to one member after the other: as long as an ordinary election takes.
const READS: Duration = Duration::from_secs(3);

/// How long a transaction is: the time that etcd itself gives it at its usual settings.
const WRITES: Duration = Duration::from_secs(7);

/// The time after which all members are asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a connection is tried on which something is waited for. etcd closes those that are tried more
/// often than each five seconds, or with nothing under way.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The most bytes of an answer: a page of keys, each with many versions. etcd's own bound of one
/// record is 1.5 MiB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// How a cluster is reached.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    user: Option<User>,
    /// What stands for the user, until etcd no longer takes it.
    token: ArcSwapOption<MetadataValue<Ascii>>,
    /// One logs in at a time: etcd makes it costly.
    turn: Semaphore,
}

#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    channel: ArcSwap<Channel>,
}

impl Member {
    fn new(endpoint: Endpoint) -> Self {
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true);
        Self {
            channel: ArcSwap::from_pointee(endpoint.connect_lazy()),
            endpoint,
        }
    }

    fn channel(&self) -> Channel {
        Channel::clone(&self.channel.load())
    }

    /// Makes a new connection for questions from now on. One that does not answer may be cut, and then
    /// TCP would try it again ever more seldom, also when the network is whole again.
    fn reconnect(&self) {
        self.channel.store(Arc::new(self.endpoint.connect_lazy()));
    }
}

/// Who asks, where the cluster wants to know.
#[derive(Clone)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("User").field(&self.name).finish()
    }
}

impl Cluster {
    /// Members at these endpoints, at least one. No connection is made before the first question.
    pub fn new(endpoints: Vec<Endpoint>, user: Option<User>) -> Self {
        Self {
            members: endpoints.into_iter().map(Member::new).collect(),
            user,
            token: ArcSwapOption::empty(),
            turn: Semaphore::new(1),
        }
    }

    fn member(&self, at: usize) -> Result<&Member, Failure> {
        let place = at.checked_rem(self.members.len()).unwrap_or_default();
        self.members.get(place).ok_or(Failure::NoMember)
    }

    /// A request as the cluster wants it: with the user's token, and only for members that know of a
    /// leader. One that is cut off from the others refuses at once instead of waiting.
    fn request<Q>(&self, question: Q) -> Request<Q> {
        let mut request = Request::new(question);
        let metadata = request.metadata_mut();
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &*self.token.load() {
            metadata.insert("token", MetadataValue::clone(token));
        }
        request
    }

    /// Gets a token for the user from one member, in the place of one that was refused.
    async fn log_in(&self, member: &Member, refused: Option<&Token>) -> Result<(), Failure> {
        let user = self.user.as_ref().ok_or(Failure::NoUser)?;
        let _turn = self.turn.acquire().await.map_err(|_| Failure::NoUser)?;
        if let Some(token) = &*self.token.load()
            && refused.is_none_or(|refused| !Arc::ptr_eq(token, refused))
        {
            return Ok(());
        }
        let question = rpc::AuthenticateRequest {
            name: user.name.clone(),
            password: user.password.to_string(),
        };
        let mut client = AuthClient::new(member.channel());
        let Ok(answer) = timeout(EACH, client.authenticate(Request::new(question))).await else {
            member.reconnect();
            return Err(Failure::LogIn(Box::new(Failure::Late)));
        };
        let token = match answer {
            Ok(answer) => Some(answer.into_inner().token),
            Err(status) if status.message() == AUTH_OFF => None,
            Err(status) => return Err(Failure::LogIn(Box::new(status.into()))),
        };
        let token = token.map(|token| MetadataValue::from_str(&token).map(Arc::new));
        let token = token.transpose().map_err(|_| Failure::Nonsense)?;
        self.token.store(token);
        Ok(())
    }
}

type Token = Arc<MetadataValue<Ascii>>;

/// What etcd says to who logs in where there is nothing to log in to.
const AUTH_OFF: &str = "etcdserver: authentication is not enabled";

/// What it says when it has used up its quota.
const FULL: &str = "etcdserver: mvcc: database space exceeded";

/// A client that finds a member that answers.
#[derive(Debug)]
pub(super) struct Client {
    cluster: ArcSwap<Cluster>,
    /// The member to ask: the one that answered last.
    current: AtomicUsize,
    /// The id of the cluster, from its first answer; 0 before.
    id: AtomicU64,
}

/// An answer to a transaction.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) answer: rpc::TxnResponse,
    /// Whether another member may have heard the same transaction, whose answer is not known. Then this
    /// one may have failed because that one was made.
    pub(super) repeated: bool,
}

impl Client {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self {
            cluster: ArcSwap::from_pointee(cluster),
            current: AtomicUsize::new(0),
            id: AtomicU64::new(0),
        }
    }

    /// Reaches the cluster in another way from now on. The same user keeps its token, which is good until etcd too has
    /// the password that is new here.
    pub(super) fn reach(&self, cluster: Cluster) {
        let before = self.cluster.load();
        let name = |cluster: &Cluster| cluster.user.as_ref().map(|user| user.name.clone());
        if name(&before) == name(&cluster) {
            cluster.token.store(before.token.load_full());
        }
        self.cluster.store(Arc::new(cluster));
    }

    pub(super) async fn range(
        &self,
        question: rpc::RangeRequest,
    ) -> Result<rpc::RangeResponse, Failure> {
        let (answer, _) = self.ask(question, READS, range).await?;
        self.same_cluster(answer.header.as_ref())?;
        Ok(answer)
    }

    /// The same, of one member alone: an answer is as old as the question.
    /// It is the member that answered last, or one that stands so far `after` it.
    pub(super) async fn range_once(
        &self,
        after: usize,
        question: rpc::RangeRequest,
    ) -> Result<rpc::RangeResponse, Failure> {
        let cluster = self.cluster.load_full();
        let at = self.current.load(Ordering::Relaxed).wrapping_add(after);
        let answer = self.ask_one(&cluster, at, question, &range).await?;
        self.same_cluster(answer.header.as_ref())?;
        Ok(answer)
    }

    /// Makes a transaction. Of one that may be made twice, each making but the first must fail.
    pub(super) async fn txn(&self, question: rpc::TxnRequest) -> Result<Outcome, Failure> {
        let ask = async |member: Channel, request| KvClient::new(member).txn(request).await;
        let (answer, repeated) = self.ask(question, WRITES, ask).await?;
        self.same_cluster(answer.header.as_ref())?;
        Ok(Outcome { answer, repeated })
    }

    /// Opens a stream of watches at the member `at`. The questions end with the stream.
    pub(super) async fn watch(
        &self,
        at: usize,
        questions: impl tokio_stream::Stream<Item = rpc::WatchRequest> + Send + 'static,
    ) -> Result<tonic::Streaming<rpc::WatchResponse>, Failure> {
        let cluster = self.cluster.load_full();
        let member = cluster.member(at)?;
        let mut client = WatchClient::new(member.channel()).max_decoding_message_size(MAX_ANSWER);
        let asked = client.watch(cluster.request(questions));
        let Ok(answer) = timeout(EACH, asked).await else {
            member.reconnect();
            return Err(Failure::Late);
        };
        Ok(answer?.into_inner())
    }

    /// Refuses an answer of another cluster than the first.
    pub(super) fn same_cluster(&self, header: Option<&rpc::ResponseHeader>) -> Result<(), Failure> {
        let id = header.map_or(0, |header| header.cluster_id);
        let (order, same) = (Ordering::AcqRel, Ordering::Acquire);
        match self.id.compare_exchange(0, id, order, same) {
            Ok(_) => Ok(()),
            Err(known) if known == id => Ok(()),
            Err(_) => Err(Failure::OtherCluster),
        }
    }

    /// Has the user log in before the next question.
    pub(super) fn log_in_again(&self) {
        self.cluster.load().token.store(None);
    }

    /// Forgets which cluster answered: what was read from it is forgotten too.
    pub(super) fn any_cluster(&self) {
        self.id.store(0, Ordering::Release);
    }

    /// Asks one member after the other until one answers, and tells whether another one may have heard
    /// the question too. `all` is the time that they have together.
    async fn ask<Q: Clone, A>(
        &self,
        question: Q,
        all: Duration,
        ask: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<(A, bool), Failure> {
        let cluster = self.cluster.load_full();
        let asking = async {
            let mut at = self.current.load(Ordering::Relaxed);
            let (mut asked, mut heard) = (0_usize, false);
            let mut under_way = FuturesUnordered::new();
            let members = cluster.members.len();
            // Who is asked now, and how often nobody answered in time: a member that is slow has one question at a
            // time, and when all are, they are asked half as often.
            let (mut busy, mut late) = (BTreeSet::new(), 0_usize);
            loop {
                let free =
                    (at..at.saturating_add(members)).find(|at| !busy.contains(&(at % members)));
                if let Some(free) = free {
                    let asking = self.ask_one(&cluster, free, question.clone(), &ask);
                    under_way.push(asking.map(move |answer| (free, answer)));
                    busy.insert(free % members);
                    at = free.wrapping_add(1);
                    asked = asked.wrapping_add(1);
                }
                let alone = if late < members { ALONE } else { 2 * ALONE };
                match timeout(alone, under_way.next()).await {
                    Ok(Some((_, Ok(answer)))) => return Ok((answer, heard)),
                    Ok(Some((_, Err(failure)))) if !failure.is_passing() => return Err(failure),
                    Ok(Some((member, Err(failure)))) => {
                        busy.remove(&(member % members));
                        heard |= !failure.is_unheard();
                    }
                    Ok(None) | Err(_) => {
                        late += 1;
                        heard = true;
                    }
                }
                if free.is_some() && asked.is_multiple_of(members) {
                    sleep(PAUSE).await;
                }
            }
        };
        timeout(all, asking).await.unwrap_or(Err(Failure::Late))
    }

    /// Asks one member. If it answers, it is asked from then on, and if not, the next one.
    async fn ask_one<Q: Clone, A>(
        &self,
        cluster: &Cluster,
        at: usize,
        question: Q,
        ask: &impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Failure> {
        let member = cluster.member(at)?;
        let once = async || {
            let request = cluster.request(question.clone());
            match timeout(EACH, ask(member.channel(), request)).await {
                Ok(answer) => answer.map(Response::into_inner).map_err(Failure::from),
                Err(_) => {
                    member.reconnect();
                    Err(Failure::Late)
                }
            }
        };
        let has_user = cluster.user.is_some();
        let token = cluster.token.load_full();
        let log_in_and_ask = async || {
            cluster.log_in(member, token.as_ref()).await?;
            once().await
        };
        let answer = if has_user && token.is_none() {
            log_in_and_ask().await
        } else {
            match once().await {
                Err(failure) if has_user && failure.wants_token() => log_in_and_ask().await,
                answer => answer,
            }
        };
        match &answer {
            Ok(_) => self.current.store(at, Ordering::Relaxed),
            Err(failure) if failure.is_passing() => {
                let (next, order) = (at.wrapping_add(1), Ordering::Relaxed);
                // Unless another question has found out already.
                let _ = self.current.compare_exchange(at, next, order, order);
            }
            Err(_) => {}
        }
        answer
    }
}

async fn range(
    member: Channel,
    request: Request<rpc::RangeRequest>,
) -> Result<Response<rpc::RangeResponse>, Status> {
    let mut client = KvClient::new(member).max_decoding_message_size(MAX_ANSWER);
    client.range(request).await
}

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A member refused, or could not be reached.
    #[error("etcd: {}{}", .0.message(), reason(.0))]
    Refused(Box<Status>),
    /// A member did not answer in time.
    #[error("etcd did not answer in time")]
    Late,
    /// An answer was none that etcd gives.
    #[error("etcd's answer makes no sense")]
    Nonsense,
    /// Another cluster answered than the one that was asked first.
    #[error("another etcd cluster answered than before")]
    OtherCluster,
    /// The cluster wants a user, and none is configured.
    #[error("etcd wants a user and a password")]
    NoUser,
    /// The user could not log in, so nothing was asked.
    #[error("cannot log in: {0}")]
    LogIn(#[source] Box<Self>),
    /// It ended a watch.
    #[error("etcd ended the watch: {0}")]
    Cancelled(String),
    /// There is nobody to ask.
    #[error("there is no etcd endpoint")]
    NoMember,
}

/// What stands behind a status that says only that the transport failed.
fn reason(status: &Status) -> String {
    let mut reason = String::new();
    let mut next = status.source();
    while let Some(cause) = next {
        reason.push_str(": ");
        reason.push_str(&cause.to_string());
        next = cause.source();
    }
    reason
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Failure {
    /// Whether the history that was asked for is gone, or has never been.
    pub(super) fn is_out_of_history(&self) -> bool {
        let gone = |status: &Status| {
            let message = status.message();
            message.starts_with("etcdserver: mvcc: required revision")
        };
        matches!(self, Self::Refused(status) if gone(status))
    }

    /// Whether an answer was larger than we take.
    pub(super) fn is_too_large(&self) -> bool {
        let is_large = |status: &Status| status.code() == Code::OutOfRange;
        matches!(self, Self::Refused(status) if is_large(status)) && !self.is_out_of_history()
    }

    /// Whether another member, or the same one later, may answer.
    fn is_passing(&self) -> bool {
        match self {
            Self::Late => true,
            Self::LogIn(why) => why.is_passing(),
            // No member takes anything before somebody makes room.
            Self::Refused(status) if status.message() == FULL => false,
            // Also how a connection ends that breaks under a question.
            Self::Refused(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Cancelled
                    | Code::Unknown
                    | Code::Internal
                    | Code::ResourceExhausted
            ),
            _ => false,
        }
    }

    /// Whether the question was certainly not heard.
    fn is_unheard(&self) -> bool {
        let status = match self {
            Self::LogIn(why) => return why.is_passing(),
            Self::Refused(status) => status,
            _ => return false,
        };
        let mut next = status.source();
        while let Some(cause) = next {
            if cause.is::<ConnectError>() {
                return true;
            }
            next = cause.source();
        }
        // Members refuse these before they propose anything.
        matches!(
            status.message(),
            "etcdserver: no leader" | "etcdserver: too many requests"
        )
    }

    /// Whether the user has to log in, or to do it again.
    fn wants_token(&self) -> bool {
        let Self::Refused(status) = self else {
            return false;
        };
        match status.code() {
            Code::Unauthenticated => true,
            Code::InvalidArgument => matches!(
                status.message(),
                "etcdserver: user name is empty" | "etcdserver: revision of auth store is old"
            ),
            _ => false,
        }
    }
}
