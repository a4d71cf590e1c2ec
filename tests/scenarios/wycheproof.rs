//! Wycheproof's cases of RSAES-OAEP, through `decrypt-data` itself: its keys are sealed and lie in
//! the store, and its ciphertexts come over both faces, to each provider.
//!
//! What a case is counted as depends on the case alone and is asserted, so that nothing is skipped
//! unseen:
//!
//! * One with a label cannot give its plaintext, because our label is always empty. It is skipped as
//!   a case of its own, and yet sent: under the empty label it must be refused.
//! * One with an empty ciphertext never gets as far as a key. It is sent, and refused as a field
//!   that is missing.
//! * Keys of other sizes and other hashes are not sent.
//! * A first octet that is not zero is refused by RFC 8017, section 7.1.2, step 3.g. AWS-LC does so.
//!   The crate `rsa` does not look at it, so that it cannot betray it. Only who made a ciphertext can make another
//!   one for the same plaintext that way.

use std::collections::BTreeMap;

use ::wycheproof::rsa_oaep::{Test, TestGroup, TestName, TestSet};
use ::wycheproof::{HashFunction, TestResult};
use kmsgate::domain::key::{KeySpec, KeyState, KeyUsage};
use kmsgate::domain::secret::Material;
use kmsgate::error::Kind;

use crate::decrypting::under;
use crate::face::{Face, bytes};
use crate::seeds::Seed;
use crate::world::World;

const RSA: &str = "RSAES_OAEP_SHA_256";

/// The providers that do RSA in software: the lines of the configuration that choose one, and
/// whether it looks at the first octet.
const PROVIDERS: [(&str, &str, bool); 2] = [
    (
        "rustcrypto",
        "[[crypto.providers]]\nkind = \"rustcrypto\"",
        false,
    ),
    (
        "aws-lc-rs",
        "[[crypto.providers]]\nkind = \"aws-lc-rs\"\n\
         [[crypto.providers]]\nkind = \"rustcrypto\"\nkey_specs = [\"SM2\"]",
        true,
    ),
];

const SETS: [TestName; 4] = [
    TestName::Rsa2048Sha256Mgf1Sha256,
    TestName::Rsa3072Sha256Mgf1Sha256,
    TestName::Rsa4096Sha256Mgf1Sha256,
    TestName::RsaMisc,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_provider_agrees_with_wycheproof_on_oaep() {
    let (groups, others) = groups();
    let keys: Vec<_> = groups
        .iter()
        .map(|group| &group.key)
        .map(Key::seed)
        .collect();
    for (provider, lines, looks_at_first_octet) in PROVIDERS {
        let world = World::holding(&keys, lines).await;
        let mut counts = Vec::new();
        for face in [world.rest(), world.grpc()] {
            let mut count = others.clone();
            for Group { key, tests } in &groups {
                for test in tests {
                    let what = run(&face, key, test, looks_at_first_octet).await;
                    *count.entry(what).or_insert(0) += 1;
                }
            }
            eprintln!("{provider} over {:?}: {count:?}", face.over);
            counts.push(count);
        }
        let expected = BTreeMap::from([
            ("opens", 39),
            ("is refused", 51),
            ("is refused before a key is looked for: empty", 3),
            ("differs in the first octet alone", 3),
            ("skipped, and refused: has a label", 24),
            ("skipped: another size", 185),
            ("skipped: another hash", 201),
        ]);
        assert_eq!(counts, [expected.clone(), expected], "{provider}");
    }
}

/// Sends a case, checks the answer, and says what it counts as.
async fn run(face: &Face, key: &Key, test: &Test, looks_at_first_octet: bool) -> &'static str {
    let call = under(&key.id, RSA, &test.ct);
    let about = format!("{:?} {}: {}", key.spec, test.tc_id, test.comment);
    let refused = async || {
        let refusal = face.refused(Kind::RsaDecryptionFailed, &call).await;
        assert_eq!(
            refusal.message,
            Kind::RsaDecryptionFailed.row().text,
            "{about}"
        );
    };
    let opens = async || {
        let opened = face.done(&call).await;
        assert_eq!(bytes(&opened["plain_text_base64"]), &test.pt[..], "{about}");
    };
    if test.ct.is_empty() {
        assert_eq!(test.result, TestResult::Invalid);
        face.refused(Kind::MissingParameter, &call).await;
        return "is refused before a key is looked for: empty";
    }
    if !test.label.is_empty() {
        refused().await;
        return "skipped, and refused: has a label";
    }
    if test.comment == "First byte is 1" {
        assert_eq!(test.result, TestResult::Invalid);
        if looks_at_first_octet {
            refused().await;
        } else {
            opens().await;
        }
        return "differs in the first octet alone";
    }
    match test.result {
        TestResult::Valid => {
            opens().await;
            "opens"
        }
        TestResult::Invalid => {
            refused().await;
            "is refused"
        }
        TestResult::Acceptable => panic!("{about}: neither"),
    }
}

/// A key, and the cases that it is for.
struct Group {
    key: Key,
    tests: Vec<Test>,
}

struct Key {
    id: String,
    spec: KeySpec,
    pkcs8: Vec<u8>,
}

impl Key {
    fn seed(&self) -> Seed {
        Seed {
            key_id: self.id.clone(),
            spec: self.spec,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            material: Material::new(self.pkcs8.clone()),
        }
    }
}

/// The cases that there are keys for here, and the count of the others by what keeps them away.
fn groups() -> (Vec<Group>, BTreeMap<&'static str, i32>) {
    let (mut groups, mut others) = (Vec::new(), BTreeMap::new());
    let all = SETS.map(|set| TestSet::load(set).unwrap().test_groups);
    for (number, group) in all.into_iter().flatten().enumerate() {
        let spec = match spec(&group) {
            Ok(spec) => spec,
            Err(why) => {
                *others.entry(why).or_insert(0) += i32::try_from(group.tests.len()).unwrap();
                continue;
            }
        };
        groups.push(Group {
            key: Key {
                id: format!("00000000-0000-4000-8001-{number:012}"),
                spec,
                pkcs8: group.pkcs8.to_vec(),
            },
            tests: group.tests,
        });
    }
    (groups, others)
}

fn spec(group: &TestGroup) -> Result<KeySpec, &'static str> {
    let spec = match group.key_size {
        2048 => KeySpec::Rsa2048,
        3072 => KeySpec::Rsa3072,
        4096 => KeySpec::Rsa4096,
        _ => return Err("skipped: another size"),
    };
    match (group.hash, group.mgf_hash) {
        (HashFunction::Sha2_256, HashFunction::Sha2_256) => Ok(spec),
        _ => Err("skipped: another hash"),
    }
}
