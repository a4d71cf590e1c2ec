//! GetPublicKey.

use crate::domain::cost::READ;
use crate::domain::key::{Family, KeyId};
use crate::error::{Error, Kind};
use crate::service::encrypt::pair;
use crate::service::keyring::Held;
use crate::service::{Call, Kms};

impl Kms {
    /// The public half of an asymmetric key, whatever its state, as SubjectPublicKeyInfo in DER.
    pub async fn public_key(&self, call: &Call<'_>, key_id: KeyId) -> Result<Vec<u8>, Error> {
        let access = call.access(key_id)?;
        let found = self.find(&access, |_| true).await?;
        access.to(found.as_deref().map(Held::record))?;
        let held = found.ok_or(Kind::KeyNotFound)?;
        if held.record().spec.family() == Family::Symmetric {
            return Err(Kind::SymmetricKey.into());
        }
        call.charge(READ + held.opening(held.newest_version()?))?;
        let (_, key) = held.newest(&self.providers, call.pool()).await?;
        Ok(pair(key)?.public_key().to_vec())
    }
}
