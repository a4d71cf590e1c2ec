//! Callers: who is asking, for which project, and what they may do.

use std::str::FromStr;
use std::sync::Arc;

use crate::domain::key::{ProjectId, UnknownName};

/// Who is asking. Made by an authenticator, out of a credential that it has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name in logs and in the audit: of a token, or an access key.
    pub name: Arc<str>,
    /// The one project that the credential is for.
    pub project: ProjectId,
    /// What the caller is, for rules that name roles and not callers.
    pub roles: Arc<[Arc<str>]>,
    /// What the credential itself allows, with every key of the project.
    pub actions: Actions,
}

impl Caller {
    /// What tells callers apart: a name may stand in the files of several projects.
    pub const fn key(&self) -> (&Arc<str>, &ProjectId) {
        (&self.name, &self.project)
    }
}

/// The most roles that a credential, or a rule that makes callers, may give: each is looked up for
/// every decision.
pub const MAX_ROLES: usize = 16;

/// Whether a text is a name of a credential or a role, which logs and the audit print: 1 to 64
/// letters, digits, dots, underscores and hyphens.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

/// Generates [`Action`] from its table.
macro_rules! actions {
    ($( $(#[doc = $doc:literal])+ $action:ident = $name:literal; )+) => {
        /// Something that a caller may be allowed to do, by Huawei's name for it (contract, section
        /// 1.5).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Action { $( $(#[doc = $doc])+ $action, )+ }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$( Self::$action, )+];

            /// The documented name, such as `kms:cmk:encryptData`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$action => $name, )+ }
            }
        }
    };
}

actions! {
    /// EncryptData.
    EncryptData = "kms:cmk:encryptData";
    /// DecryptData.
    DecryptData = "kms:cmk:decryptData";
    /// CreateKey.
    CreateKey = "kms:cmk:create";
    /// DescribeKey.
    DescribeKey = "kms:cmk:get";
    /// ListKeys.
    ListKeys = "kms:cmk:list";
    /// EnableKey.
    EnableKey = "kms:cmk:enable";
    /// DisableKey.
    DisableKey = "kms:cmk:disable";
    /// ScheduleKeyDeletion.
    ScheduleKeyDeletion = "kms:cmk:scheduleKeyDeletion";
    /// CancelKeyDeletion.
    CancelKeyDeletion = "kms:cmk:cancelKeyDeletion";
    /// GetPublicKey.
    GetPublicKey = "kms:cmk:getPublicKey";
    /// UpdateKeyAlias.
    UpdateKeyAlias = "kms:cmk:updateKeyAlias";
    /// UpdateKeyDescription.
    UpdateKeyDescription = "kms:cmk:updateKeyDescription";
    /// RotateOnDemand.
    RotateOnDemand = "kms:cmk:rotate";
    /// ConfirmClock.
    ConfirmClock = "kms:system:confirmClock";
    /// RotateRootKey.
    RotateRootKey = "kms:system:rotateRootKey";
    /// BackUpStore.
    BackUpStore = "kms:system:backUpStore";
}

impl FromStr for Action {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|action| action.name() == name).ok_or(UnknownName)
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u32);

impl Actions {
    /// Every action.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether the set holds `action`.
    pub const fn contains(self, action: Action) -> bool {
        self.0 & 1 << action as u32 != 0
    }

    /// The actions that `pattern` names: one action, or all whose names begin with what stands
    /// before a final `*`. A pattern that names none is an error, because a misspelt right must not
    /// be ignored.
    pub fn matching(pattern: &str) -> Result<Self, UnknownName> {
        let named = Action::ALL.iter().copied().filter(|action| {
            pattern.strip_suffix('*').map_or_else(
                || action.name() == pattern,
                |prefix| action.name().starts_with(prefix),
            )
        });
        let set: Self = named.collect();
        if set == Self::default() {
            Err(UnknownName)
        } else {
            Ok(set)
        }
    }

    /// The actions of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<T: IntoIterator<Item = Action>>(actions: T) -> Self {
        let bits = actions
            .into_iter()
            .fold(0, |bits, action| bits | 1 << action as u32);
        Self(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_one_action_or_a_family() {
        let one = Actions::matching("kms:cmk:encryptData").unwrap();
        assert!(one.contains(Action::EncryptData) && !one.contains(Action::DecryptData));
        let family = Actions::matching("kms:cmk:*").unwrap();
        for &action in Action::ALL {
            assert_eq!(
                family.contains(action),
                !action.name().starts_with("kms:system:"),
                "{action:?}"
            );
        }
        for misspelt in [
            "",
            "kms:cmk:encrypt",
            "kms:cmk:EncryptData",
            "dew:*",
            "kms:*:create",
        ] {
            assert!(Actions::matching(misspelt).is_err(), "{misspelt:?}");
        }
    }

    #[test]
    fn what_two_sets_or_two_names_share_is_in_the_set() {
        let one = Actions::matching("kms:cmk:encryptData").unwrap();
        let family = Actions::matching("kms:cmk:*").unwrap();
        assert_eq!(one.union(family), family);
        let twice = [Action::EncryptData, Action::EncryptData];
        assert_eq!(twice.into_iter().collect::<Actions>(), one);
    }

    #[test]
    fn every_action_is_found_by_its_name() {
        for &action in Action::ALL {
            assert_eq!(action.name().parse(), Ok(action));
            assert!(Actions::ALL.contains(action));
        }
    }
}
