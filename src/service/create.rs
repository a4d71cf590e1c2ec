//! CreateKey.

use std::sync::Arc;

use crate::crypto::pool::{Share, briefly};
use crate::crypto::{Place, VersionName};
use crate::domain::cost::{READ, WRITE, Work};
use crate::domain::key::{
    Family, KeyAlias, KeyDescription, KeyId, KeySpec, KeyState, KeyUsage, KeyVersion,
};
use crate::error::{Error, Kind};
use crate::service::{Call, Kms};
use crate::store::{Address, AliasRecord, Change, KeyRecord, Record, StoreError, VersionRecord};

/// What key to make.
#[derive(Debug)]
pub struct NewKey {
    /// Its name.
    pub alias: KeyAlias,
    /// Free text.
    pub description: KeyDescription,
    /// What it is made of.
    pub spec: KeySpec,
    /// What it is for; the spec's default if absent.
    pub usage: Option<KeyUsage>,
    /// Its id; a random one if absent. No face lets a caller choose it.
    pub key_id: Option<KeyId>,
}

impl Kms {
    /// Makes a key. It is enabled at once.
    pub async fn create(&self, call: &mut Call<'_>, new: NewKey) -> Result<KeyRecord, Error> {
        call.allowed_to_make(&new.alias)?;
        let project = call.caller_project().clone();
        let usage = new.usage.unwrap_or_else(|| new.spec.default_usage());
        if !new.spec.allows(usage) {
            return Err(Error::from(Kind::InvalidParameter)
                .detail("A key of this key_spec cannot have this key_usage."));
        }
        let owner = Address::Alias(project.clone(), new.alias.clone());
        if self.store.get(&owner).await?.is_some() {
            return Err(Kind::DuplicateAlias.into());
        }

        let key_id = new.key_id.map_or_else(self.new_key_id, Ok)?;
        call.key_id = Some(key_id);
        let name = VersionName {
            project: project.clone(),
            key_id,
            version: KeyVersion::FIRST,
            spec: new.spec,
        };
        call.charge(READ + WRITE + name.spec.micros(Work::Make))?;
        let sealed = self.generate(call.pool(), name).await?;
        let created = self.clock.now();
        let key = KeyRecord {
            project: project.clone(),
            key_id,
            alias: new.alias.clone(),
            description: new.description,
            spec: new.spec,
            usage,
            state: KeyState::Enabled,
            created,
            deletion: None,
            versions: vec![VersionRecord {
                version: KeyVersion::FIRST,
                created,
                sealed,
            }],
        };
        let alias = AliasRecord {
            project,
            alias: new.alias,
            key_id,
        };
        let changes = vec![
            Change::create(Record::Key(key.clone())),
            Change::create(Record::Alias(alias)),
        ];
        match self.root_keys.put(&*self.store, changes).await {
            Ok(_) => Ok(key),
            Err(StoreError::Conflict) => Err(Kind::DuplicateAlias.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the sealed material of one key version.
    pub(super) async fn generate(
        &self,
        pool: Share<'_>,
        name: VersionName,
    ) -> Result<Vec<u8>, Error> {
        let providers = Arc::clone(&self.providers);
        let spec = name.spec;
        let place = providers.maker(spec)?.place(None);
        let generate = move || providers.maker(name.spec)?.generate(&name);
        let sealed = match (place, spec.family()) {
            (Place::Pool, Family::Symmetric) => briefly(generate).await?,
            _ => pool.run(place, spec.micros(Work::Make), generate).await?,
        };
        Ok(sealed?.0)
    }
}
