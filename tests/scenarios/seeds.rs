//! Keys that are in the store before the server starts: those that no call can make (states that
//! the service never enters by itself, ids that a document prints) or that would take long to make.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{Provider, VersionName};
use kmsgate::domain::key::{KeyDescription, KeySpec, KeyState, KeyUsage, KeyVersion, ProjectId};
use kmsgate::domain::secret::Material;
use kmsgate::domain::time::Timestamp;
use kmsgate::store::codec::Codec;
use kmsgate::store::sqlite::Sqlite;
use kmsgate::store::{AliasRecord, Change, KeyRecord, KeyStore, Record, VersionRecord};

/// The key of the documented request example (EncryptData page).
pub(crate) const DOCUMENTED: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
/// An RSA key that encrypts.
pub(crate) const RSA_2048: &str = "00000000-0000-4000-8000-000000002048";
/// An RSA key that encrypts.
pub(crate) const RSA_3072: &str = "00000000-0000-4000-8000-000000003072";
/// An RSA key that encrypts.
pub(crate) const RSA_4096: &str = "00000000-0000-4000-8000-000000004096";
/// An SM2 key that encrypts.
pub(crate) const SM2: &str = "00000000-0000-4000-8000-000000000256";
/// An RSA key that signs.
pub(crate) const RSA_SIGNER: &str = "00000000-0000-4000-8000-0000000000a1";
/// An SM2 key that signs.
pub(crate) const SM2_SIGNER: &str = "00000000-0000-4000-8000-0000000000a2";
/// An RSA key that signs and is disabled.
pub(crate) const DISABLED_SIGNER: &str = "00000000-0000-4000-8000-0000000000a3";
/// A symmetric key that waits for its activation.
pub(crate) const PENDING_ACTIVATION: &str = "00000000-0000-4000-8000-000000000001";
/// A symmetric key that waits for its material.
pub(crate) const PENDING_IMPORT: &str = "00000000-0000-4000-8000-000000000005";
/// A symmetric key that the operator suspended.
pub(crate) const FROZEN: &str = "00000000-0000-4000-8000-000000000007";
/// A symmetric key that has got its last version.
pub(crate) const WORN: &str = "00000000-0000-4000-8000-000000004001";
/// A symmetric key whose stored material is not what was stored.
pub(crate) const BROKEN: &str = "00000000-0000-4000-8000-0000000000ff";
/// An id that no key has.
pub(crate) const NOBODY: &str = "00000000-0000-4000-8000-00000000dead";

/// A key that is in the store before the server starts.
pub(crate) struct Seed {
    pub(crate) key_id: String,
    pub(crate) spec: KeySpec,
    pub(crate) usage: KeyUsage,
    pub(crate) state: KeyState,
    pub(crate) material: Material,
}

const SEEDS: [(&str, KeySpec, KeyUsage, KeyState); 13] = {
    use KeySpec::{Aes256, Rsa2048, Rsa3072, Rsa4096, Sm2 as Sm2Curve};
    use KeyState::{Disabled, Enabled, Frozen, PendingActivation, PendingImport};
    use KeyUsage::{EncryptDecrypt, SignVerify};
    [
        (DOCUMENTED, Aes256, EncryptDecrypt, Enabled),
        (RSA_2048, Rsa2048, EncryptDecrypt, Enabled),
        (RSA_3072, Rsa3072, EncryptDecrypt, Enabled),
        (RSA_4096, Rsa4096, EncryptDecrypt, Enabled),
        (SM2, Sm2Curve, EncryptDecrypt, Enabled),
        (RSA_SIGNER, Rsa2048, SignVerify, Enabled),
        (SM2_SIGNER, Sm2Curve, SignVerify, Enabled),
        (DISABLED_SIGNER, Rsa2048, SignVerify, Disabled),
        (
            PENDING_ACTIVATION,
            Aes256,
            EncryptDecrypt,
            PendingActivation,
        ),
        (PENDING_IMPORT, Aes256, EncryptDecrypt, PendingImport),
        (FROZEN, Aes256, EncryptDecrypt, Frozen),
        (WORN, Aes256, EncryptDecrypt, Enabled),
        (BROKEN, Aes256, EncryptDecrypt, Enabled),
    ]
};

/// Puts the seeds, and these too, into each of the projects.
pub(crate) async fn sow(path: &Path, root: RootKey, projects: &[&str], more: &[Seed]) {
    let store = Sqlite::open(path, Codec::new(root.mac_key())).unwrap();
    let provider = RustCrypto::new(Arc::new(root));
    let seeds = SEEDS.map(|(key_id, spec, usage, state)| Seed {
        key_id: key_id.to_owned(),
        spec,
        usage,
        state,
        material: material(spec),
    });
    let mut changes = Vec::new();
    for project in projects {
        for (number, seed) in (0..).zip(seeds.iter().chain(more)) {
            let Seed {
                ref key_id,
                spec,
                usage,
                state,
                ref material,
            } = *seed;
            let project: ProjectId = project.parse().unwrap();
            let version = if key_id == WORN {
                KeyVersion::LAST
            } else {
                KeyVersion::FIRST
            };
            let name = VersionName {
                project: project.clone(),
                key_id: key_id.parse().unwrap(),
                version,
                spec,
            };
            let mut sealed = provider.seal(&name, material).unwrap().0;
            if key_id == BROKEN {
                sealed.reverse();
            }
            let created = Timestamp(number);
            let key = KeyRecord {
                project: project.clone(),
                key_id: name.key_id,
                alias: format!("seed/{key_id}").parse().unwrap(),
                description: KeyDescription::default(),
                spec,
                usage,
                state,
                created,
                deletion: None,
                // Only the last one is opened.
                versions: (1..=version.get())
                    .map(|number| VersionRecord {
                        version: KeyVersion::new(number).unwrap(),
                        created,
                        sealed: sealed.clone(),
                    })
                    .collect(),
            };
            let alias = AliasRecord {
                project,
                alias: key.alias.clone(),
                key_id: key.key_id,
            };
            changes.push(Change::create(Record::Key(key)));
            changes.push(Change::create(Record::Alias(alias)));
        }
    }
    store.put(changes).await.unwrap();
}

/// The keys of `tests/vectors`, whose ciphertexts another implementation made.
fn material(spec: KeySpec) -> Material {
    let pem = match spec {
        KeySpec::Aes256 => return Material::new(vec![0x42; 32]),
        KeySpec::Rsa2048 => include_str!("../vectors/rsa_2048.pem"),
        KeySpec::Rsa3072 => include_str!("../vectors/rsa_3072.pem"),
        KeySpec::Rsa4096 => include_str!("../vectors/rsa_4096.pem"),
        KeySpec::Sm2 => include_str!("../vectors/sm2.pem"),
    };
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    Material::new(STANDARD.decode(base64).unwrap())
}
