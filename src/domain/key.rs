//! Keys: their names, what they are made of, what they are for, and how they move through their
//! life.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// Names one key, for example `0d0466b0-e727-4d9c-b35d-f84bb474a37f`.
///
/// 36 characters: lowercase letters and digits in groups of 8, 4, 4, 4 and 12, joined by hyphens
/// (EncryptData page, table 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; Self::LEN]);

impl KeyId {
    /// The length of every key id, in bytes.
    pub const LEN: usize = 36;

    /// A version 4 UUID (RFC 9562, section 5.4) made of random bytes.
    pub fn from_random(mut random: [u8; 16]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        random[6] = random[6] & 0x0f | 0x40;
        random[8] = random[8] & 0x3f | 0x80;
        let mut text = [b'-'; Self::LEN];
        let places = (0..Self::LEN).filter(|at| !matches!(at, 8 | 13 | 18 | 23));
        let nibbles = random.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        for (place, nibble) in places.zip(nibbles) {
            if let (Some(to), Some(digit)) = (text.get_mut(place), HEX.get(usize::from(nibble))) {
                *to = *digit;
            }
        }
        Self(text)
    }

    /// Reads an id from its bytes.
    pub fn from_bytes(text: &[u8]) -> Result<Self, InvalidKeyId> {
        let fits = |(at, byte): (usize, &u8)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_lowercase() || byte.is_ascii_digit(),
        };
        let text: [u8; Self::LEN] = text.try_into().map_err(|_| InvalidKeyId)?;
        if !text.iter().enumerate().all(fits) {
            return Err(InvalidKeyId);
        }
        Ok(Self(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // The bytes are ASCII: `from_bytes` and `from_random` make no others.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The id as bytes, all ASCII.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        Self::from_bytes(text.as_bytes())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a key id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key id")]
pub struct InvalidKeyId;

/// Counts the versions of one key, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyVersion(NonZeroU32);

impl KeyVersion {
    /// The version that a key is made with.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The last version that a key gets: all versions of a key are one record, which every store takes up to
    /// half a mebibyte.
    pub const LAST: Self = Self(NonZeroU32::new(4096).unwrap());

    /// The version with this number; none has the number 0.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The version's number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The version after this one; none after the [last](Self::LAST).
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(number) if number.get() <= Self::LAST.get() => Some(Self(number)),
            _ => None,
        }
    }
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeySpec {
    /// 256 bits, symmetric.
    Aes256,
    /// RSA with a 2048-bit modulus.
    Rsa2048,
    /// RSA with a 3072-bit modulus.
    Rsa3072,
    /// RSA with a 4096-bit modulus.
    Rsa4096,
    /// The SM2 curve of GM/T 0003.5.
    Sm2,
}

impl KeySpec {
    /// Every spec.
    pub const ALL: &[Self] = &[
        Self::Aes256,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
        Self::Sm2,
    ];

    /// The documented name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256 => "AES_256",
            Self::Rsa2048 => "RSA_2048",
            Self::Rsa3072 => "RSA_3072",
            Self::Rsa4096 => "RSA_4096",
            Self::Sm2 => "SM2",
        }
    }

    /// The family that decides how a key refuses what it cannot do.
    pub const fn family(self) -> Family {
        match self {
            Self::Aes256 => Family::Symmetric,
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => Family::Rsa,
            Self::Sm2 => Family::Sm2,
        }
    }

    /// The length of an RSA modulus in bits; none for other specs.
    pub const fn rsa_bits(self) -> Option<usize> {
        match self {
            Self::Rsa2048 => Some(2048),
            Self::Rsa3072 => Some(3072),
            Self::Rsa4096 => Some(4096),
            Self::Aes256 | Self::Sm2 => None,
        }
    }

    /// What a key of this spec is for unless its creator says otherwise (contract, section 2.2).
    pub const fn default_usage(self) -> KeyUsage {
        match self.family() {
            Family::Symmetric => KeyUsage::EncryptDecrypt,
            Family::Rsa | Family::Sm2 => KeyUsage::SignVerify,
        }
    }

    /// Whether a key of this spec may be made for `usage`.
    pub const fn allows(self, usage: KeyUsage) -> bool {
        match (self.family(), usage) {
            (_, KeyUsage::EncryptDecrypt) | (Family::Rsa | Family::Sm2, KeyUsage::SignVerify) => {
                true
            }
            (Family::Symmetric, KeyUsage::SignVerify) => false,
        }
    }
}

impl FromStr for KeySpec {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|spec| spec.name() == name).ok_or(UnknownName)
    }
}

/// Specs that behave alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One secret for both directions.
    Symmetric,
    /// RSA key pairs.
    Rsa,
    /// SM2 key pairs.
    Sm2,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyUsage {
    /// Encrypts and decrypts.
    EncryptDecrypt,
    /// Signs and verifies.
    SignVerify,
}

impl KeyUsage {
    /// Every usage.
    pub const ALL: &[Self] = &[Self::EncryptDecrypt, Self::SignVerify];

    /// The documented name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EncryptDecrypt => "ENCRYPT_DECRYPT",
            Self::SignVerify => "SIGN_VERIFY",
        }
    }
}

impl FromStr for KeyUsage {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|usage| usage.name() == name).ok_or(UnknownName)
    }
}

/// No value has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown name")]
pub struct UnknownName;

/// How far through its life a key is (contract, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Not yet usable.
    PendingActivation,
    /// Usable.
    Enabled,
    /// Not usable until it is enabled again.
    Disabled,
    /// Destroyed at its deletion date unless the deletion is cancelled.
    PendingDeletion,
    /// Waits for imported material.
    PendingImport,
    /// Suspended by the operator.
    Frozen,
}

impl KeyState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::PendingActivation,
        Self::Enabled,
        Self::Disabled,
        Self::PendingDeletion,
        Self::PendingImport,
        Self::Frozen,
    ];

    /// The documented code: 1 to 5, and 7.
    pub const fn code(self) -> u8 {
        match self {
            Self::PendingActivation => 1,
            Self::Enabled => 2,
            Self::Disabled => 3,
            Self::PendingDeletion => 4,
            Self::PendingImport => 5,
            Self::Frozen => 7,
        }
    }

    /// The state with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|state| state.code() == code)
    }

    /// Whether a key in this state encrypts and decrypts.
    pub const fn usable(self) -> Result<(), StateError> {
        match self {
            Self::Enabled => Ok(()),
            Self::Disabled => Err(StateError::Disabled),
            Self::PendingDeletion => Err(StateError::PendingDeletion),
            Self::PendingActivation | Self::PendingImport | Self::Frozen => {
                Err(StateError::NotEnabled)
            }
        }
    }

    /// The state after `enable-key` (contract, section 2.4).
    pub const fn enable(self) -> Result<Self, StateError> {
        match self {
            Self::Disabled => Ok(Self::Enabled),
            _ => Err(StateError::NotDisabled),
        }
    }

    /// The state after `disable-key`.
    pub const fn disable(self) -> Result<Self, StateError> {
        match self {
            Self::Enabled => Ok(Self::Disabled),
            _ => Err(StateError::NotEnabled),
        }
    }

    /// The state after `schedule-key-deletion`.
    pub const fn schedule_deletion(self) -> Result<Self, StateError> {
        match self {
            Self::Enabled | Self::Disabled | Self::PendingImport | Self::Frozen => {
                Ok(Self::PendingDeletion)
            }
            Self::PendingDeletion => Err(StateError::AlreadyPendingDeletion),
            Self::PendingActivation => Err(StateError::NotEnabled),
        }
    }

    /// The state after `cancel-key-deletion`.
    pub const fn cancel_deletion(self) -> Result<Self, StateError> {
        match self {
            Self::PendingDeletion => Ok(Self::Disabled),
            _ => Err(StateError::NotPendingDeletion),
        }
    }
}

/// What a key's state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The key must be enabled first.
    #[error("the key is disabled")]
    Disabled,
    /// Its deletion must be cancelled first.
    #[error("the key is pending deletion")]
    PendingDeletion,
    /// The key is in some state other than enabled.
    #[error("the key is not enabled")]
    NotEnabled,
    /// The key is in some state other than disabled.
    #[error("the key is not disabled")]
    NotDisabled,
    /// The deletion is scheduled already.
    #[error("the key is already pending deletion")]
    AlreadyPendingDeletion,
    /// There is no deletion to cancel.
    #[error("the key is not pending deletion")]
    NotPendingDeletion,
}

/// A key's name, unique in its project: `^[a-zA-Z0-9:/_-]{1,255}$`, not ending in `/default`, which
/// the contract keeps for service keys (section 5.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyAlias(Box<str>);

impl KeyAlias {
    /// The alias as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyAlias {
    type Err = InvalidAlias;

    fn from_str(text: &str) -> Result<Self, InvalidAlias> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
        if !(1..=255).contains(&text.len()) || !text.bytes().all(fits) || text.ends_with("/default")
        {
            return Err(InvalidAlias);
        }
        Ok(Self(text.into()))
    }
}

/// The text is not an alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key alias")]
pub struct InvalidAlias;

/// Free text about a key: at most 255 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyDescription(Box<str>);

impl KeyDescription {
    /// The description as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyDescription {
    type Err = InvalidDescription;

    fn from_str(text: &str) -> Result<Self, InvalidDescription> {
        // A character is at most four bytes, so the byte count spares counting the characters of a
        // huge text.
        if text.len() > 4 * 255 || text.chars().count() > 255 {
            return Err(InvalidDescription);
        }
        Ok(Self(text.into()))
    }
}

/// The text is too long for a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a key description")]
pub struct InvalidDescription;

/// How long a scheduled deletion waits: 7 to 1096 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingDays(u16);

impl PendingDays {
    /// The wait, if it is in range.
    pub fn new(days: i32) -> Option<Self> {
        let days = u16::try_from(days).ok()?;
        (7..=1096).contains(&days).then_some(Self(days))
    }

    /// The wait in milliseconds.
    pub fn as_millis(self) -> i64 {
        i64::from(self.0) * 86_400_000
    }
}

/// Names one project. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(std::sync::Arc<str>);

impl ProjectId {
    /// The id as text: 1 to 64 letters, digits, hyphens and underscores.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ProjectId {
    type Err = InvalidProjectId;

    fn from_str(text: &str) -> Result<Self, InvalidProjectId> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !(1..=64).contains(&text.len()) || !text.bytes().all(fits) {
            return Err(InvalidProjectId);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not a project id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a project id")]
pub struct InvalidProjectId;

/// Names a root key, and tells nothing else of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootKeyId(pub [u8; 8]);

impl fmt::Display for RootKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for RootKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKeyId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_is_36_lowercase_characters_in_five_groups() {
        for good in [
            "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
            "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz",
        ] {
            let id: KeyId = good.parse().unwrap();
            assert_eq!(id.as_str(), good);
        }
        for bad in [
            "",
            "0D0466B0-e727-4d9c-b35d-f84bb474a37f",
            "0d0466b0-e727-4d9c-b35d-f84bb474a37",
            "0d0466b0-e727-4d9c-b35d-f84bb474a37f0",
            "0d0466b0_e727-4d9c-b35d-f84bb474a37f",
            "0d0466b0-e727-4d9c-b35d-f84bb474a37\n",
            "0d0466b0-e727-4d9c-b35d-f84bb474a3é",
        ] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_random_key_id_is_a_version_4_uuid() {
        let id = KeyId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn names_are_printed_as_they_are() {
        let text = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
        let id: KeyId = text.parse().unwrap();
        assert_eq!(
            (format!("{id}"), format!("{id:?}")),
            (text.into(), text.into())
        );
        let project: ProjectId = "p-1".parse().unwrap();
        let printed = (format!("{project}"), format!("{project:?}"));
        assert_eq!(printed, ("p-1".into(), "p-1".into()));
        let alias: KeyAlias = "obs/backup".parse().unwrap();
        let description: KeyDescription = "of 2026".parse().unwrap();
        assert_eq!(
            (alias.as_str(), description.as_str()),
            ("obs/backup", "of 2026")
        );
    }

    #[test]
    fn versions_are_counted_to_the_last_number() {
        assert_eq!(KeyVersion::FIRST.next(), KeyVersion::new(2));
        assert_eq!(
            KeyVersion::new(4095).unwrap().next(),
            Some(KeyVersion::LAST)
        );
        assert_eq!(KeyVersion::LAST.next(), None);
        assert_eq!(KeyVersion::new(u32::MAX).unwrap().next(), None);
    }

    #[test]
    fn specs_and_usages_have_the_documented_names() {
        let specs = ["AES_256", "RSA_2048", "RSA_3072", "RSA_4096", "SM2"];
        assert!(KeySpec::ALL.iter().map(|spec| spec.name()).eq(specs));
        for &spec in KeySpec::ALL {
            assert_eq!(spec.name().parse(), Ok(spec));
        }
        let usages = ["ENCRYPT_DECRYPT", "SIGN_VERIFY"];
        assert!(KeyUsage::ALL.iter().map(|usage| usage.name()).eq(usages));
        for &usage in KeyUsage::ALL {
            assert_eq!(usage.name().parse(), Ok(usage));
        }
    }

    #[test]
    fn every_key_may_encrypt_and_all_but_aes_may_sign() {
        for &spec in KeySpec::ALL {
            assert!(spec.allows(KeyUsage::EncryptDecrypt), "{spec:?}");
            let signs = spec != KeySpec::Aes256;
            assert_eq!(spec.allows(KeyUsage::SignVerify), signs, "{spec:?}");
        }
    }

    #[test]
    fn every_state_moves_as_the_contract_says() {
        use KeyState::*;
        for &state in KeyState::ALL {
            assert_eq!(state.enable().is_ok(), state == Disabled, "{state:?}");
            assert_eq!(state.disable().is_ok(), state == Enabled, "{state:?}");
            assert_eq!(state.usable().is_ok(), state == Enabled, "{state:?}");
            let schedules = matches!(state, Enabled | Disabled | PendingImport | Frozen);
            assert_eq!(state.schedule_deletion().is_ok(), schedules, "{state:?}");
            assert_eq!(state.cancel_deletion().is_ok(), state == PendingDeletion);
            assert_eq!(KeyState::from_code(state.code()), Some(state));
        }
        assert_eq!(PendingDeletion.cancel_deletion(), Ok(Disabled));
        assert_eq!(
            PendingDeletion.schedule_deletion(),
            Err(StateError::AlreadyPendingDeletion)
        );
    }

    #[test]
    fn an_alias_has_1_to_255_documented_characters() {
        let longest = "a".repeat(255);
        for good in ["a", "A:/_-9", longest.as_str(), "default", "x/defaults"] {
            assert!(good.parse::<KeyAlias>().is_ok(), "{good:?}");
        }
        let too_long = "a".repeat(256);
        for bad in ["", "a b", "ä", too_long.as_str(), "obs/default", "a\n"] {
            assert!(bad.parse::<KeyAlias>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_description_is_counted_in_characters() {
        assert!("密".repeat(255).parse::<KeyDescription>().is_ok());
        assert!("密".repeat(256).parse::<KeyDescription>().is_err());
        // Four bytes each.
        assert!("𝄞".repeat(255).parse::<KeyDescription>().is_ok());
        assert!("𝄞".repeat(256).parse::<KeyDescription>().is_err());
        assert!("".parse::<KeyDescription>().is_ok());
    }

    #[test]
    fn pending_days_run_from_7_to_1096() {
        let fits = |days| PendingDays::new(days).is_some();
        assert!(fits(7) && fits(1096));
        assert_eq!(PendingDays::new(7).unwrap().as_millis(), 604_800_000);
        assert!(!fits(6) && !fits(1097) && !fits(-7) && !fits(i32::MAX) && !fits(65_543));
    }
}
