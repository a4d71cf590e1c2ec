//! What happened, for someone else to keep.
//!
//! Every change of a key and every refusal becomes an [`Event`], given to a [`Sink`]. Data calls
//! that succeed are counted by metrics and are not events. An event holds no request byte but the
//! checked `sequence` and key id.

use std::fmt;

use crate::domain::caller::{Action, Caller};
use crate::domain::key::{KeyId, ProjectId};
use crate::domain::request::{RequestId, Sequence};
use crate::domain::time::Timestamp;

pub mod json_lines;

/// Keeps events.
pub trait Sink: fmt::Debug + Send + Sync {
    /// Keeps one event. Must not wait: a request is being answered.
    fn record(&self, event: &Event<'_>);
}

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// When.
    pub time: Timestamp,
    /// In which request; none for what the server does by itself.
    pub request_id: Option<RequestId>,
    /// The caller's name for the request.
    pub sequence: Option<Sequence>,
    /// Who asked; none if they could not be told.
    pub caller: Option<&'a Caller>,
    /// In which project; none if the caller could not be told.
    pub project: Option<&'a ProjectId>,
    /// What was asked for; none if the request was refused before that was known.
    pub action: Option<Action>,
    /// With which key.
    pub key_id: Option<KeyId>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused, with this code of the error catalogue.
    Refused(&'static str),
    /// The caller went away before it was answered.
    Cancelled,
    /// A key past its deletion date was destroyed.
    Destroyed,
}
