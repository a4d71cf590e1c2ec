//! What work costs, so that those who wait for it are served fairly, and nobody takes more than is
//! granted.

use crate::domain::caller::Action;
use crate::domain::key::KeySpec;

/// Something that is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Encrypting.
    Encrypt,
    /// Decrypting.
    Decrypt,
    /// Unsealing a version and readying it.
    Open,
    /// Making a version.
    Make,
}

impl KeySpec {
    /// About how long the work has one core, in microseconds.
    ///
    /// Measured on an AMD EPYC (family 25 model 17) in November 2026 with the providers that have
    /// these specs by default; `cargo bench --bench crypto` and `--bench service` measure them anew.
    /// Only how they stand to each other matters, and only roughly. How long making an RSA key takes
    /// is chance; these are averages.
    pub const fn micros(self, work: Work) -> u32 {
        let [encrypt, decrypt, open, make] = match self {
            Self::Aes256 => [1, 1, 3, 3],
            Self::Rsa2048 => [16, 250, 200, 90_000],
            Self::Rsa3072 => [34, 700, 370, 400_000],
            Self::Rsa4096 => [58, 1500, 560, 1_500_000],
            Self::Sm2 => [53, 133, 190, 250],
        };
        match work {
            Work::Encrypt => encrypt,
            Work::Decrypt => decrypt,
            Work::Open => open,
            Work::Make => make,
        }
    }

    /// About how much memory an opened version takes, in bytes, the more of its providers in software. An SM2 key that
    /// has encrypted has a table.
    ///
    /// Measured by `cargo bench --bench memory`.
    pub const fn opened_bytes(self) -> usize {
        match self {
            Self::Aes256 => 590,
            Self::Rsa2048 => 4_400,
            Self::Rsa3072 => 6_400,
            Self::Rsa4096 => 8_300,
            Self::Sm2 => 52_300,
        }
    }
}

/// About how long reading a record from the store has one core, and checking it, in microseconds.
pub const READ: u32 = 10;

/// The same of changing records.
pub const WRITE: u32 = 100;

impl Action {
    /// About how long the action has one core at least, in microseconds, besides any [`Work`].
    pub const fn micros(self) -> u32 {
        match self {
            // Charged at once when it is known what is to be done: what is charged before would be
            // owed then, and work that costs more than a burst is done for who owes nothing.
            Self::EncryptData
            | Self::DecryptData
            | Self::GetPublicKey
            | Self::CreateKey
            | Self::RotateOnDemand => 0,
            Self::DescribeKey | Self::ListKeys => READ,
            Self::EnableKey
            | Self::DisableKey
            | Self::ScheduleKeyDeletion
            | Self::CancelKeyDeletion
            | Self::UpdateKeyAlias
            | Self::UpdateKeyDescription
            | Self::ConfirmClock
            | Self::RotateRootKey
            | Self::BackUpStore => WRITE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_rsa_keys_cost_more_and_their_private_halves_more_than_their_public_ones() {
        let rsa = [KeySpec::Rsa2048, KeySpec::Rsa3072, KeySpec::Rsa4096];
        for work in [Work::Encrypt, Work::Decrypt, Work::Open, Work::Make] {
            assert!(rsa.is_sorted_by(|a, b| a.micros(work) < b.micros(work)));
        }
        for spec in rsa {
            assert!(spec.micros(Work::Encrypt) < spec.micros(Work::Decrypt));
        }
    }
}
