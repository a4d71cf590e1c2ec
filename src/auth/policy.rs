//! What a caller may do.

use crate::domain::caller::{Action, Caller};

/// Decides what callers may do. Default is deny: a caller may do what its credential names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy;

impl Policy {
    /// Whether `caller` may do `action`. Asked before any key is looked up, so that a denied caller
    /// learns nothing of which keys exist.
    pub fn may(&self, caller: &Caller, action: Action) -> Result<(), Denied> {
        if caller.actions.contains(action) {
            Ok(())
        } else {
            Err(Denied)
        }
    }
}

/// The caller is known and may not do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not allowed")]
pub struct Denied;
