//! RSA keys that never leave a token.
//!
//! The token makes the pair and decrypts (`CKM_RSA_PKCS_OAEP` with SHA-256, MGF1-SHA-256 and the
//! empty label). Encrypting takes the public half alone and is done here, so it goes on while the
//! token is away. What is stored is a reference:
//!
//! ```text
//! offset  size  field
//! 0       1     suite          3 = a reference to a pair in a token
//! 1       m     reference      sealed by the root key as if it were material:
//!                              the pair's CKA_ID (16 bytes) ‖ SubjectPublicKeyInfo in DER
//! ```
//!
//! So whoever can write the store can neither have another pair of the token used in a key's place,
//! nor a public half that is not the pair's.

use std::sync::Arc;

use cryptoki::error::Error;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use getrandom::SysRng;
use rsa::pkcs8::{DecodePublicKey, EncodePublicKey, PrivateKeyInfoRef};
use rsa::sha2::Sha256;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, PublicKey, pkcs1};
use zeroize::Zeroize;

use crate::crypto::pkcs11::session::decrypt;
use crate::crypto::pkcs11::{Fault, Module, ModuleError};
use crate::crypto::root::Root;
use crate::crypto::rsa::read;
use crate::crypto::{KeyPair, OpenKey, Place, Provider, ProviderError, SealedKey, VersionName};
use crate::domain::key::KeySpec;
use crate::domain::secret::{Material, Plaintext};

/// RSA keys in a token, whose references are sealed under a root key.
#[derive(Debug)]
pub struct TokenRsa {
    module: Arc<Module>,
    root: Arc<dyn Root>,
}

impl TokenRsa {
    /// A provider of keys in the module's token, if that decrypts OAEP with SHA-256: not every
    /// module does, and a raw private operation with the padding taken off here would be a second
    /// implementation of what must not leak.
    pub fn new(module: Arc<Module>, root: Arc<dyn Root>) -> Result<Self, ModuleError> {
        let provider = Self { module, root };
        provider.tries_oaep()?;
        Ok(provider)
    }

    /// Decrypts with a passing pair, in the session alone.
    fn tries_oaep(&self) -> Result<(), ModuleError> {
        let lacks = || ModuleError::Lacks("RSA-OAEP with SHA-256");
        let decrypted = self.module.run(|session| {
            let (public, private) = session.generate_key_pair(
                &Mechanism::RsaPkcsKeyPairGen,
                &[
                    Attribute::Token(false),
                    Attribute::ModulusBits(Ulong::new(2048)),
                    Attribute::PublicExponent(EXPONENT.to_vec()),
                ],
                &[Attribute::Token(false), Attribute::Decrypt(true)],
            )?;
            let public = read_public(session, public)?;
            let encrypted = public.oaep_encrypt_with_rng::<Sha256, _>(&mut SysRng, b"self-test");
            let encrypted = encrypted.map_err(|_| Error::InvalidValue)?;
            session.decrypt(&oaep(), private, &encrypted)
        });
        match decrypted {
            Ok(text) if text == b"self-test" => Ok(()),
            Ok(_) | Err(Fault::Refused(_)) => Err(lacks()),
            Err(fault) => Err(fault.into()),
        }
    }

    fn refer(
        &self,
        name: &VersionName,
        id: &[u8; ID],
        public: &PublicKey,
    ) -> Result<SealedKey, ProviderError> {
        let public = public.to_public_key_der();
        let public = public.map_err(|error| ProviderError::Unavailable(error.into()))?;
        let reference = Material::new([id, public.as_bytes()].concat());
        let sealed = self.root.seal(name, &reference)?;
        Ok(SealedKey([&[SUITE], &sealed.0[..]].concat()))
    }

    /// The pair that a sealed key refers to.
    fn read(
        &self,
        name: &VersionName,
        key: &SealedKey,
    ) -> Result<([u8; ID], PublicKey, Vec<u8>), ProviderError> {
        let bad = || ProviderError::BadSeal;
        let bits = bits(name.spec).ok_or_else(bad)?;
        let (&SUITE, sealed) = key.0.split_first().ok_or_else(bad)? else {
            return Err(bad());
        };
        let reference = self.root.open(name, &SealedKey(sealed.to_vec()))?;
        let (id, der) = reference.expose().split_first_chunk().ok_or_else(bad)?;
        let public = PublicKey::from_public_key_der(der).map_err(|_| bad())?;
        if !is_fit(&public, bits) {
            return Err(bad());
        }
        Ok((*id, public, der.to_vec()))
    }
}

impl Provider for TokenRsa {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn supports(&self, spec: KeySpec) -> bool {
        bits(spec).is_some()
    }

    fn opens(&self, key: &SealedKey) -> bool {
        key.0.first() == Some(&SUITE)
    }

    fn generate(&self, name: &VersionName) -> Result<SealedKey, ProviderError> {
        let bits = bits(name.spec).ok_or(ProviderError::Unsupported)?;
        let id = new_id()?;
        let public = self.module.write(|session| {
            let mut public = objects(name, &id);
            public.extend([
                Attribute::ModulusBits(Ulong::new(u64::from(bits))),
                Attribute::PublicExponent(EXPONENT.to_vec()),
            ]);
            let mut private = objects(name, &id);
            private.extend(guarded());
            let (public, _) =
                session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
            read_public(session, public)
        })?;
        if !is_fit(&public, bits) {
            return Err(ProviderError::Unavailable("a key of another kind".into()));
        }
        self.refer(name, &id, &public)
    }

    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        let unsupported = || ProviderError::Unsupported;
        let bits = bits(name.spec).ok_or_else(unsupported)?;
        let info = PrivateKeyInfoRef::try_from(material.expose()).map_err(|_| unsupported())?;
        let parts = pkcs1::RsaPrivateKeyRef::try_from(info.private_key.as_bytes());
        let parts = parts.map_err(|_| unsupported())?;
        // Modules need not check that the numbers belong together.
        let key = read(bits, material).ok_or_else(unsupported)?;
        let public = key.as_public_key();
        let id = new_id()?;
        self.module.write(|session| {
            let mut template = objects(name, &id);
            template.extend(guarded());
            template.extend([
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::KeyType(KeyType::RSA),
                Attribute::Modulus(parts.modulus.as_bytes().to_vec()),
                Attribute::PublicExponent(parts.public_exponent.as_bytes().to_vec()),
                Attribute::PrivateExponent(parts.private_exponent.as_bytes().to_vec()),
                Attribute::Prime1(parts.prime1.as_bytes().to_vec()),
                Attribute::Prime2(parts.prime2.as_bytes().to_vec()),
                Attribute::Exponent1(parts.exponent1.as_bytes().to_vec()),
                Attribute::Exponent2(parts.exponent2.as_bytes().to_vec()),
                Attribute::Coefficient(parts.coefficient.as_bytes().to_vec()),
            ]);
            let made = session.create_object(&template);
            template.iter_mut().for_each(wipe);
            made
        })?;
        self.refer(name, &id, public)
    }

    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<OpenKey, ProviderError> {
        let (id, public, public_key) = self.read(name, key)?;
        Ok(OpenKey::Pair(Box::new(Pair {
            module: Arc::clone(&self.module),
            id,
            modulus: public.n_bytes(),
            public,
            public_key,
        })))
    }

    fn place(&self, key: Option<&SealedKey>) -> Place {
        // A pair is made in the token. What is sealed only names it.
        if key.is_none() || self.root.is_device(key) {
            Place::Device
        } else {
            Place::Pool
        }
    }

    fn reseal(
        &self,
        name: &VersionName,
        key: &SealedKey,
    ) -> Result<Option<SealedKey>, ProviderError> {
        let Some((&SUITE, sealed)) = key.0.split_first() else {
            return Err(ProviderError::BadSeal);
        };
        let again = self.root.reseal(name, &SealedKey(sealed.to_vec()))?;
        Ok(again.map(|sealed| SealedKey([&[SUITE], &sealed.0[..]].concat())))
    }
}

/// A pair in the token.
struct Pair {
    module: Arc<Module>,
    id: [u8; ID],
    public: PublicKey,
    modulus: Box<[u8]>,
    public_key: Vec<u8>,
}

impl KeyPair for Pair {
    fn encrypt(&self, plaintext: &Plaintext) -> Result<Vec<u8>, ProviderError> {
        self.public
            .oaep_encrypt_with_rng::<Sha256, _>(&mut SysRng, plaintext.expose())
            .map_err(|error| match error {
                rsa::Error::MessageTooLong => ProviderError::TooLong,
                other => ProviderError::Unavailable(other.into()),
            })
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Result<Plaintext, ProviderError> {
        // Modules do not agree on these, so they are told apart here; both are public.
        if ciphertext.len() != self.modulus.len() || *ciphertext >= *self.modulus {
            return Err(ProviderError::Rejected);
        }
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Id(self.id.to_vec()),
        ];
        let decrypted = self.module.run_with(&template, |session, key| {
            decrypt(session, &oaep(), key, ciphertext)
        });
        match decrypted {
            Ok(plaintext) => Ok(Plaintext::new(plaintext)),
            Err(fault) => Err(fault.of_decryption(ProviderError::Rejected)),
        }
    }

    fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    fn encrypts(&self) -> Place {
        Place::Inline
    }

    fn decrypts(&self) -> Place {
        Place::Device
    }
}

/// A reference to a pair in a token.
const SUITE: u8 = 3;

/// The bytes of a pair's `CKA_ID`.
const ID: usize = 16;

/// 65537.
const EXPONENT: [u8; 3] = [1, 0, 1];

fn bits(spec: KeySpec) -> Option<u32> {
    spec.rsa_bits().and_then(|bits| u32::try_from(bits).ok())
}

fn is_fit(public: &PublicKey, bits: u32) -> bool {
    public.n().bit_width() == bits && *public.e() == BoxedUint::from(65537u32)
}

fn oaep() -> Mechanism<'static> {
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
        MechanismType::SHA256,
        PkcsMgfType::MGF1_SHA256,
        PkcsOaepSource::empty(),
    ))
}

fn new_id() -> Result<[u8; ID], ProviderError> {
    let mut id = [0; ID];
    getrandom::fill(&mut id).map_err(|error| ProviderError::Unavailable(error.into()))?;
    Ok(id)
}

/// What both halves of a pair have: a place in the token, and for whoever looks there, a label.
fn objects(name: &VersionName, id: &[u8; ID]) -> Vec<Attribute> {
    let label = format!(
        "kmsgate {}/{}/{}",
        name.project.as_str(),
        name.key_id,
        name.version.get()
    );
    vec![
        Attribute::Token(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(label.into_bytes()),
    ]
}

/// What a private half may do, and what nobody may do with it.
fn guarded() -> [Attribute; 5] {
    [
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(true),
        Attribute::Sign(false),
    ]
}

fn read_public(session: &Session, key: ObjectHandle) -> Result<PublicKey, Error> {
    let wanted = [AttributeType::Modulus, AttributeType::PublicExponent];
    let (mut modulus, mut exponent) = (None, None);
    for attribute in session.get_attributes(key, &wanted)? {
        match attribute {
            Attribute::Modulus(bytes) => modulus = Some(bytes),
            Attribute::PublicExponent(bytes) => exponent = Some(bytes),
            _ => {}
        }
    }
    let number = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.ok_or(Error::InvalidValue)?;
        Ok::<_, Error>(BoxedUint::from_be_slice_vartime(&bytes))
    };
    PublicKey::new(number(modulus)?, number(exponent)?).map_err(|_| Error::InvalidValue)
}

/// Wipes the secret numbers of a private key.
fn wipe(attribute: &mut Attribute) {
    match attribute {
        Attribute::PrivateExponent(number)
        | Attribute::Prime1(number)
        | Attribute::Prime2(number)
        | Attribute::Exponent1(number)
        | Attribute::Exponent2(number)
        | Attribute::Coefficient(number) => number.zeroize(),
        _ => {}
    }
}
