//! RotateOnDemand.

use crate::crypto::VersionName;
use crate::domain::cost::{READ, WRITE, Work};
use crate::domain::key::{Family, KeyId, KeyVersion};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms, Tries};
use crate::store::VersionRecord;

impl Kms {
    /// Gives a symmetric key a new version, which encrypts from now on.
    pub async fn rotate(&self, call: &Call<'_>, key_id: KeyId) -> Result<KeyVersion, Error> {
        let access = call.access(key_id)?;
        let mut tries = Tries::default();
        loop {
            let (mut key, revision) = self.read(&access).await?;
            key.state.usable()?;
            match key.spec.family() {
                Family::Symmetric => {}
                Family::Rsa => return Err(Kind::RsaKeyNotRotatable.into()),
                Family::Sm2 => return Err(Kind::AsymmetricKey.into()),
            }
            let newest = key.versions.last().map(|newest| newest.version);
            let version = newest.ok_or(Kind::Internal)?.next().ok_or_else(|| {
                let most = KeyVersion::LAST.get();
                Error::from(Kind::TooManyVersions)
                    .detail(format!("A key has {most} versions at most."))
            })?;
            let name = VersionName {
                project: key.project.clone(),
                key_id,
                version,
                spec: key.spec,
            };
            call.charge(READ + WRITE + name.spec.micros(Work::Make))?;
            let sealed = self.generate(call.pool(), name).await?;
            key.versions.push(VersionRecord {
                version,
                created: self.clock.now(),
                sealed,
            });
            if self.replace(key, revision, Vec::new(), &mut tries).await? {
                return Ok(version);
            }
        }
    }
}
