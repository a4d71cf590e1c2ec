//! A store that many servers share: etcd, over its v3 API.
//!
//! Each record is one key, the prefix and then its address as it is written. A put is one transaction that compares
//! the revision of every record with the expected one; etcd's *mod revision* of a record is our
//! [`Revision`]. So two servers that change the same key never overwrite each other, and a transaction
//! that was put to several members is made once, however late it comes to one: each raises the revision of
//! a record, and no key's id is given twice.
//!
//! What etcd keeps is sealed and authenticated like everywhere else. Unlike in the other stores, what
//! is erased or replaced is not overwritten: it stays in etcd's history until that is compacted and
//! its file defragmented, and in its backups.
//!
//! [`follow`](KeyStore::follow) hears of the other servers' changes.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::key::{KeyId, ProjectId};
use crate::domain::time::Stopwatch;
use crate::store::codec::{Codec, Write};
use crate::store::etcd::client::{Client, Failure, Outcome};
use crate::store::etcd::rpc::compare::TargetUnion;
use crate::store::etcd::rpc::compare::{CompareResult, CompareTarget};
use crate::store::etcd::rpc::request_op::Request as Op;
use crate::store::etcd::rpc::response_op::Response as Found;
use crate::store::freshness::{Freshness, Watcher};
use crate::store::{
    Address, Change, KeyStore, Mark, Prefix, Revision, StoreError, Versioned, owner,
};

mod client;
mod follow;

pub use client::{Cluster, User};

#[allow(
    missing_docs,
    dead_code,
    unused_qualifications,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::or_fun_call,
    clippy::use_self,
    clippy::unwrap_used,
    reason = "generated"
)]
mod rpc {
    tonic::include_proto!("etcdserverpb");
}

/// The record that every transaction writes. `epoch/PROJECT` is one that every transaction writes that
/// changes a key of the project.
const EPOCH: &str = "epoch";

fn epoch_of(project: &str) -> String {
    format!("{EPOCH}/{project}")
}

/// How many records are read at once: of a usual size, they are some hundred kilobytes. Fewer, if they
/// turn out to be more than an answer may have.
const PAGE: usize = 500;

/// Keeps records in an etcd cluster.
pub struct Etcd {
    codec: Codec,
    shared: Shared,
    /// Names this server's transactions.
    writer: [u8; 16],
    /// Counts them.
    written: AtomicU64,
}

/// What reading needs.
#[derive(Clone, Debug)]
struct Shared {
    client: Arc<Client>,
    prefix: Arc<str>,
    freshness: Arc<Freshness>,
}

/// The latest transaction.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Epoch {
    /// Its revision; 0 if there was none yet.
    revision: i64,
    /// How many there were before it, and itself.
    count: i64,
    /// Whose it was, and which.
    value: Vec<u8>,
}

impl From<rpc::KeyValue> for Epoch {
    fn from(found: rpc::KeyValue) -> Self {
        Self {
            revision: found.mod_revision,
            count: found.version,
            value: found.value,
        }
    }
}

impl Etcd {
    /// A store in `cluster`, under `prefix`, whose records opened keys may be older than by
    /// `max_staleness`. No two servers may have the same `writer`. Nothing is asked before it is
    /// needed.
    pub fn new(
        cluster: Cluster,
        prefix: &str,
        max_staleness: Duration,
        writer: [u8; 16],
        clock: Arc<dyn Stopwatch>,
        codec: Codec,
    ) -> Self {
        Self {
            codec,
            shared: Shared {
                client: Arc::new(Client::new(cluster)),
                prefix: prefix.into(),
                freshness: Arc::new(Freshness::new(clock, max_staleness)),
            },
            writer,
            written: AtomicU64::new(0),
        }
    }

    /// Reaches the cluster in another way from now on: its certificates or its password changed.
    pub fn reach(&self, cluster: Cluster) {
        self.shared.client.reach(cluster);
    }

    fn key(&self, address: &str) -> Vec<u8> {
        self.shared.key(address)
    }

    fn versioned(&self, found: &rpc::KeyValue) -> Result<Versioned, StoreError> {
        let written = self.shared.written(&found.key);
        let address = written.ok_or_else(|| corrupt(&found.key))?;
        let revision = u64::try_from(found.mod_revision).map_err(|_| corrupt(&found.key))?;
        self.codec.read(address, &found.value, Revision(revision))
    }

    /// What no other transaction writes.
    fn next_epoch(&self) -> Vec<u8> {
        let count = self.written.fetch_add(1, Ordering::Relaxed);
        [&self.writer[..], &count.to_be_bytes()].concat()
    }
}

impl Shared {
    fn key(&self, address: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), address.as_bytes()].concat()
    }

    /// The address in a key, as it is written; none if the key is not under the prefix or is not
    /// text.
    fn written<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(key.strip_prefix(self.prefix.as_bytes())?).ok()
    }

    /// The key that a record under `key` is, none if it is another kind of record. An error if that
    /// cannot be told.
    fn address(&self, key: &[u8]) -> Option<Result<(ProjectId, KeyId), ()>> {
        let Some(address) = self.written(key) else {
            return Some(Err(()));
        };
        let (project, key_id) = address.strip_prefix("key/")?.split_once('/')?;
        let parsed = project.parse().ok().zip(key_id.parse().ok());
        Some(parsed.ok_or(()))
    }

    fn is_epoch(&self, key: &[u8]) -> bool {
        self.written(key) == Some(EPOCH)
    }

    /// Whether this is a record of the store's own, and not one of those that were put.
    fn is_own(&self, key: &[u8]) -> bool {
        let rest = self.written(key).and_then(|key| key.strip_prefix(EPOCH));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The range of everything under the prefix.
    fn everything(&self) -> (Vec<u8>, Vec<u8>) {
        // Addresses are printable ASCII, so none reaches this end.
        (self.key(""), self.key("\x7f"))
    }

    /// The epoch as it was at a revision.
    async fn epoch_at(&self, revision: i64) -> Result<Epoch, Failure> {
        let answer = self.client.range(self.ask_epoch(revision)).await?;
        Ok(found(&answer))
    }

    /// The revision of the transaction that wrote `epoch`, if one of the records is of it that are in the
    /// answer to its repetition. Others may have written them anew since.
    async fn made_at(
        &self,
        epoch: &[u8],
        answer: &rpc::TxnResponse,
    ) -> Result<Option<i64>, Failure> {
        let found = answer
            .responses
            .iter()
            .filter_map(|it| it.response.as_ref());
        for Found::ResponseRange(found) in found {
            for record in &found.kvs {
                if self.epoch_at(record.mod_revision).await?.value == epoch {
                    return Ok(Some(record.mod_revision));
                }
            }
        }
        Ok(None)
    }

    /// The epoch as it is, from one member alone, and the revision of its answer. The member is the one
    /// that answered last, or one `after` it.
    async fn epoch(&self, after: usize) -> Result<(Epoch, i64), Failure> {
        let answer = self.client.range_once(after, self.ask_epoch(0)).await?;
        let header = answer.header.as_ref().ok_or(Failure::Nonsense)?;
        Ok((found(&answer), header.revision))
    }

    fn ask_epoch(&self, revision: i64) -> rpc::RangeRequest {
        rpc::RangeRequest {
            revision,
            ..one(self.key(EPOCH))
        }
    }
}

/// The part of a listing's range that is asked for at once.
///
/// etcd looks at every key of the range that it is asked for, however few it shall answer with: a walk of
/// pages over all that is left would cost the square of the keys. So a page goes on among the addresses that
/// begin as the last one did, and wider where these are few.
struct Part {
    /// How many characters they have in common; none if everything is asked for.
    common: usize,
    /// How many of these tell nothing: the kind of the record and its project.
    base: usize,
}

impl Part {
    /// Begins after this address, which is empty at the beginning of a listing.
    fn after(address: &str) -> Self {
        let base = address.rfind('/').map_or(0, |slash| slash + 1);
        let common = if address.starts_with("alias/") {
            // Names that are counted have some hundred of these.
            address.len().saturating_sub(2).max(base)
        } else {
            // Ids are random: of a million some four thousand begin alike.
            (base + 2).min(address.len())
        };
        Self { common, base }
    }

    /// Where the part ends in which `last` is; none at the end of everything.
    fn end(&self, last: &str) -> Option<String> {
        if self.common <= self.base {
            return None;
        }
        let mut end = last.get(..self.common)?.to_owned();
        // Addresses are printable ASCII, so the character after any of theirs is ASCII too.
        let following = u8::try_from(end.pop()?).ok()?.checked_add(1)?;
        end.push(char::from(following));
        Some(end)
    }

    /// Notes how many keys were left in a part that is at its end, of how many that are wanted.
    fn had(&mut self, found: usize, wanted: usize) {
        if found < wanted.div_ceil(8) {
            self.common = self.base + (self.common - self.base) / 2;
        }
    }
}

fn found(answer: &rpc::RangeResponse) -> Epoch {
    let first = answer.kvs.first().cloned();
    first.map(Epoch::from).unwrap_or_default()
}

#[async_trait]
impl KeyStore for Etcd {
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
        let question = one(self.key(&address.to_string()));
        let answer = self.shared.client.range(question).await?;
        let found = answer.kvs.first();
        found.map(|found| self.versioned(found)).transpose()
    }

    async fn put(&self, changes: Vec<Change>) -> Result<Revision, StoreError> {
        let changes = self.codec.encode_changes(&changes)?;
        let mut question = rpc::TxnRequest::default();
        let mut projects = BTreeSet::new();
        let mut written = None;
        for change in changes {
            let key = self.key(&change.address);
            if !matches!(change.write, Write::Nothing)
                && let Some(project) = owner(&change.address)
            {
                projects.insert(project.to_owned());
            }
            // A record that is not there has mod revision 0. What is no revision of etcd's matches
            // nothing.
            let expected = change.expected().map_or(Some(0), |revision| {
                i64::try_from(revision)
                    .ok()
                    .filter(|revision| *revision > 0)
            });
            question.compare.push(rpc::Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(
                    expected.ok_or(StoreError::Conflict)?,
                )),
            });
            question.success.extend(match change.write {
                Write::Put(value) => {
                    written.get_or_insert_with(|| key.clone());
                    Some(op(Op::RequestPut(rpc::PutRequest { key, value })))
                }
                Write::Erase => Some(op(Op::RequestDeleteRange(rpc::DeleteRangeRequest { key }))),
                Write::Nothing => None,
            });
        }
        let epoch = self.next_epoch();
        let epochs = projects.iter().map(|project| epoch_of(project));
        // That of all last, so that a watch has told of the others when it tells of this one.
        for key in epochs.chain([EPOCH.to_owned()]) {
            question.success.push(op(Op::RequestPut(rpc::PutRequest {
                key: self.key(&key),
                value: epoch.clone(),
            })));
        }
        // What tells whether it was made, should its answer get lost. All are written at one revision, so
        // one record tells as much as each.
        for key in [self.key(EPOCH)].into_iter().chain(written) {
            question.failure.push(op(Op::RequestRange(one(key))));
        }
        let Outcome { answer, repeated } = self.shared.client.txn(question).await?;
        let revision = if answer.succeeded {
            answer.header.ok_or(Failure::Nonsense)?.revision
        } else if repeated {
            let made = self.shared.made_at(&epoch, &answer).await?;
            made.ok_or(Failure::Late)?
        } else {
            return Err(StoreError::Conflict);
        };
        let revision = u64::try_from(revision).map_err(|_| Failure::Nonsense)?;
        Ok(Revision(revision))
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Address>,
        limit: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        let (start, end) = prefix.bounds(after);
        let mut part = Part::after(after.map_or("", |_| &start));
        // The first key after that one.
        let mut first = [&self.key(&start)[..], &[0]].concat();
        let mut last = start;
        let mut listed = Vec::new();
        let mut most = PAGE;
        while listed.len() < limit {
            let page = most.min(limit - listed.len());
            let part_end = part.end(&last).filter(|part_end| *part_end < end);
            let answer = self.shared.client.range(rpc::RangeRequest {
                key: first.clone(),
                range_end: self.key(part_end.as_deref().unwrap_or(&end)),
                limit: i64::try_from(page).unwrap_or(i64::MAX),
                ..rpc::RangeRequest::default()
            });
            let answer = match answer.await {
                Err(failure) if failure.is_too_large() && page > 1 => {
                    most = page / 2;
                    continue;
                }
                answer => answer?,
            };
            let found_here = answer.kvs.len();
            for found in answer.kvs {
                if !self.shared.is_own(&found.key) {
                    listed.push(self.versioned(&found)?);
                }
                let written = self.shared.written(&found.key);
                last = written.ok_or_else(|| corrupt(&found.key))?.to_owned();
                first = [&found.key[..], &[0]].concat();
            }
            if answer.more {
                continue;
            }
            let Some(part_end) = part_end else {
                break;
            };
            first = self.key(&part_end);
            last = part_end;
            part.had(found_here, limit);
        }
        Ok(listed)
    }

    async fn mark(&self, prefix: &Prefix) -> Result<Option<Mark>, StoreError> {
        let epoch = match prefix {
            Prefix::Keys(project) => epoch_of(project.as_str()),
            Prefix::Deletions | Prefix::Everything => EPOCH.to_owned(),
        };
        let question = one(self.key(&epoch));
        let answer = self.shared.client.range(question).await?;
        // Of a store that was set back to a snapshot the epoch is the snapshot's, as the records are.
        let Epoch { count, value, .. } = found(&answer);
        Ok(Some(Mark([&count.to_be_bytes()[..], &value].concat())))
    }

    fn freshness(&self) -> Option<&Arc<Freshness>> {
        Some(&self.shared.freshness)
    }

    fn may_be_another(&self) {
        self.shared.client.any_cluster();
    }

    async fn follow(&self, watcher: &dyn Watcher) {
        follow::follow(&self.shared, watcher).await;
    }
}

/// Asks for one key.
fn one(key: Vec<u8>) -> rpc::RangeRequest {
    rpc::RangeRequest {
        key,
        ..rpc::RangeRequest::default()
    }
}

const fn op(request: Op) -> rpc::RequestOp {
    rpc::RequestOp {
        request: Some(request),
    }
}

fn corrupt(key: &[u8]) -> StoreError {
    StoreError::Corrupt(String::from_utf8_lossy(key).into_owned())
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(Box::new(failure))
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("prefix", &self.shared.prefix)
            .finish_non_exhaustive()
    }
}
