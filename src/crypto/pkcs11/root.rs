//! A root key that never leaves a token.
//!
//! It is a pair of secret keys with one label and one `CKA_ID` of 8 bytes, which names it in what it
//! seals. Both were made by the token, are sensitive, and cannot be extracted:
//!
//! | key | mechanism | what for |
//! |---|---|---|
//! | AES, 32 bytes | `CKM_AES_GCM` | sealing, below |
//! | generic secret, 32 bytes | `CKM_SHA256_HMAC` | deriving the key that authenticates stored records |
//!
//! The second is there so that no key serves two algorithms. The record key is its HMAC-SHA-256 of
//! `kmsgate root key mac v1`: the same at every start, and of no help in finding either of the two.
//!
//! A sealed key:
//!
//! ```text
//! offset  size  field
//! 0       1     suite          2 = CKM_AES_GCM under a root key in a token
//! 1       8     root key id
//! 9       12    nonce
//! 21      m     ciphertext     of the material
//! 21+m    16    tag
//! ```
//!
//! Its associated data is [that of a root key in a file](crate::crypto::root), with this suite and id.
//! The nonce is random, and the token's own if it insists on one: SECURITY.md says how many seals
//! that is good for.

use std::fmt;
use std::sync::Arc;

use cryptoki::error::Error;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;

use crate::crypto::pkcs11::session::decrypt;
use crate::crypto::pkcs11::{Fault, Module, ModuleError};
use crate::crypto::root::{Root, associated_data};
use crate::crypto::{ProviderError, SealedKey, VersionName};
use crate::domain::key::{KeyId, KeySpec, KeyVersion, RootKeyId};
use crate::domain::secret::{MacKey, Material};

/// A root key in a token.
pub struct TokenRoot {
    module: Arc<Module>,
    label: String,
    id: [u8; 8],
}

impl TokenRoot {
    /// Finds the root key and tries it out.
    pub fn load(module: Arc<Module>, label: &str) -> Result<Self, ModuleError> {
        let unfit = |why| ModuleError::UnfitRootKey(label.to_owned(), why);
        let kinds = [KeyType::AES, KeyType::GENERIC_SECRET];
        let mut ids = Vec::new();
        for kind in kinds {
            let template = template(label, kind);
            let (found, good, id) = module.run(|session| {
                let objects = session.find_objects(&template)?;
                let Some(key) = objects.first() else {
                    return Ok((0, false, None));
                };
                let wanted = [Attribute::Sensitive(true), Attribute::Extractable(false)];
                let good = wanted.iter().all(|attribute| has(session, *key, attribute));
                let id = session.get_attributes(*key, &[AttributeType::Id])?;
                Ok((objects.len(), good, id.into_iter().next()))
            })?;
            match found {
                0 => return Err(ModuleError::NoRootKey(label.to_owned())),
                1 => {}
                _ => return Err(unfit("is there more than once")),
            }
            if !good {
                return Err(unfit("is not sensitive, or can be extracted"));
            }
            let id = match id {
                Some(Attribute::Id(id)) => <[u8; 8]>::try_from(id).ok(),
                _ => None,
            };
            ids.push(id.ok_or_else(|| unfit("has no CKA_ID of 8 bytes"))?);
        }
        let [id, mac_id] = *ids else {
            return Err(ModuleError::NoRootKey(label.to_owned()));
        };
        if id != mac_id {
            return Err(unfit("consists of two keys with different CKA_IDs"));
        }
        let root = Self {
            module,
            label: label.to_owned(),
            id,
        };
        root.works()?;
        Ok(root)
    }

    /// Has the token make a root key.
    pub fn create(module: Arc<Module>, label: &str) -> Result<Self, ModuleError> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(|error| ProviderError::Unavailable(error.into()))
            .map_err(ModuleError::Provider)?;
        let exists = module.run(|session| {
            let label = Attribute::Label(label.as_bytes().to_vec());
            let secret = Attribute::Class(ObjectClass::SECRET_KEY);
            Ok(!session.find_objects(&[secret, label])?.is_empty())
        })?;
        if exists {
            return Err(ModuleError::RootKeyExists(label.to_owned()));
        }
        module.write(|session| {
            let keys = [
                (Mechanism::AesKeyGen, KeyType::AES, true),
                (
                    Mechanism::GenericSecretKeyGen,
                    KeyType::GENERIC_SECRET,
                    false,
                ),
            ];
            for (mechanism, kind, encrypts) in keys {
                let mut template = template(label, kind);
                template.extend([
                    Attribute::Id(id.to_vec()),
                    Attribute::ValueLen(Ulong::new(32)),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Encrypt(encrypts),
                    Attribute::Decrypt(encrypts),
                    Attribute::Sign(!encrypts),
                    Attribute::Verify(!encrypts),
                ]);
                session.generate_key(&mechanism, &template)?;
            }
            Ok(())
        })?;
        Self::load(module, label)
    }

    /// The root key's name, its `CKA_ID`.
    pub const fn id(&self) -> [u8; 8] {
        self.id
    }

    /// Seals and opens something, so that a module without the mechanisms is found at the start.
    fn works(&self) -> Result<(), ModuleError> {
        let project = "self-test".parse();
        let name = VersionName {
            project: project.map_err(|_| ModuleError::Lacks("self-tests"))?,
            key_id: KeyId::from_random([0; 16]),
            version: KeyVersion::FIRST,
            spec: KeySpec::Aes256,
        };
        let material = Material::new(vec![0; 32]);
        let sealed = self.seal(&name, &material)?;
        match self.open(&name, &sealed) {
            Ok(opened) if opened.expose() == material.expose() => {}
            Err(ProviderError::Unavailable(error)) => {
                return Err(ProviderError::Unavailable(error).into());
            }
            _ => return Err(ModuleError::Lacks("AES-GCM")),
        }
        self.mac_key()?;
        Ok(())
    }

    /// Does `job` with one of the two keys.
    fn with<T>(
        &self,
        kind: KeyType,
        job: impl Fn(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let mut template = template(&self.label, kind);
        template.push(Attribute::Id(self.id.to_vec()));
        self.module.run_with(&template, job)
    }
}

impl Root for TokenRoot {
    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        let mut random = [0; NONCE];
        getrandom::fill(&mut random).map_err(|error| ProviderError::Unavailable(error.into()))?;
        let data = associated_data(SUITE, &self.id, name);
        let (nonce, ciphertext) = self.with(KeyType::AES, |session, key| {
            let mut nonce = random;
            let parameters = GcmParams::new(&mut nonce, &data, TAG_BITS)?;
            let mechanism = Mechanism::AesGcm(parameters);
            let ciphertext = session.encrypt(&mechanism, key, material.expose())?;
            Ok((nonce, ciphertext))
        })?;
        if ciphertext.len() != material.expose().len() + TAG {
            return Err(ProviderError::Unavailable(
                "a ciphertext of another size".into(),
            ));
        }
        Ok(SealedKey(
            [&[SUITE][..], &self.id, &nonce, &ciphertext].concat(),
        ))
    }

    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<Material, ProviderError> {
        let bad = || ProviderError::BadSeal;
        let (&[suite], rest) = key.0.split_first_chunk::<1>().ok_or_else(bad)?;
        let (&id, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
        let (&nonce, ciphertext) = rest.split_first_chunk::<NONCE>().ok_or_else(bad)?;
        if suite != SUITE || id != self.id || ciphertext.len() < TAG {
            return Err(bad());
        }
        let data = associated_data(SUITE, &self.id, name);
        let opened = self.with(KeyType::AES, |session, key| {
            let mut nonce = nonce;
            let parameters = GcmParams::new(&mut nonce, &data, TAG_BITS)?;
            decrypt(session, &Mechanism::AesGcm(parameters), key, ciphertext)
        });
        match opened {
            Ok(material) => Ok(Material::new(material)),
            Err(fault) => Err(fault.of_decryption(bad())),
        }
    }

    fn seals(&self, key: &SealedKey) -> bool {
        key.0.first() == Some(&SUITE)
    }

    fn mac_key(&self) -> Result<MacKey, ProviderError> {
        let key = self.with(KeyType::GENERIC_SECRET, |session, key| {
            session.sign(&Mechanism::Sha256Hmac, key, b"kmsgate root key mac v1")
        })?;
        if key.len() != 32 {
            return Err(ProviderError::Unavailable("an HMAC of another size".into()));
        }
        Ok(MacKey::new(key))
    }

    fn id(&self) -> RootKeyId {
        RootKeyId(self.id)
    }

    fn is_device(&self, _: Option<&SealedKey>) -> bool {
        true
    }
}

impl fmt::Debug for TokenRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenRoot({:016x})", u64::from_be_bytes(self.id))
    }
}

/// `CKM_AES_GCM` under a root key in a token.
const SUITE: u8 = 2;

const NONCE: usize = 12;
const TAG: usize = 16;
const TAG_BITS: Ulong = Ulong::new(128);

/// What finds one of the two keys.
fn template(label: &str, kind: KeyType) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(kind),
        Attribute::Token(true),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

fn has(session: &Session, key: ObjectHandle, wanted: &Attribute) -> bool {
    let found = session.get_attributes(key, &[wanted.attribute_type()]);
    found.is_ok_and(|found| found.first() == Some(wanted))
}
