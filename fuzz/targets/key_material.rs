//! Key material from elsewhere, and sealed keys that a store did not return as they were. Material
//! that one provider seals, every one does that has its spec, and there it is one key: what one
//! encrypts, each decrypts. A sealed key opens exactly if neither it nor its name was changed.
#![no_main]

use std::sync::LazyLock;

use kmsgate::crypto::{OpenKey, Provider, ProviderError, SealedKey, VersionName};
use kmsgate::domain::frame::{HEAD, Head};
use kmsgate::domain::key::{KeyId, KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use kmsgate_fuzz::{RSA_2048, SM2, byte, der, name, part, providers};
use libfuzzer_sys::fuzz_target;

static PROVIDERS: LazyLock<Vec<Box<dyn Provider>>> = LazyLock::new(providers);

/// A key of each spec, sealed by each provider that has it.
static SEALED: LazyLock<Vec<Vec<SealedKey>>> = LazyLock::new(|| {
    let keys = KeySpec::ALL.iter().map(|spec| {
        let material = Material::new(fixed(*spec));
        let sealed = having(*spec).map(|one| one.seal(&name(*spec), &material).unwrap());
        sealed.collect::<Vec<_>>()
    });
    keys.collect()
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let kind = usize::from(byte(&mut rest));
    let number = kind / 2 % KeySpec::ALL.len();
    let spec = KeySpec::ALL[number];
    if kind % 2 == 0 {
        is_one_key_or_none(spec, rest);
        return;
    }
    let sealed = &SEALED[number];
    let who = usize::from(byte(&mut rest));
    let sealed = &sealed[who % sealed.len()];
    let opener = having(spec).nth(who / 2 % having(spec).count()).unwrap();
    let (mut key, mut place) = (sealed.clone(), name(spec));
    while !rest.is_empty() {
        change(&mut rest, &mut key.0, &mut place);
    }
    let opened = opener.open(&place, &key);
    if key == *sealed && place == name(spec) {
        opened.unwrap();
    } else {
        assert!(matches!(opened, Err(ProviderError::BadSeal)));
    }
});

fn having(spec: KeySpec) -> impl Iterator<Item = &'static dyn Provider> {
    let all = PROVIDERS.iter().map(|one| &**one);
    all.filter(move |one| one.supports(spec))
}

fn is_one_key_or_none(spec: KeySpec, material: &[u8]) {
    let material = Material::new(material.to_vec());
    let mut sealed = Vec::new();
    for provider in having(spec) {
        match provider.seal(&name(spec), &material) {
            Ok(key) => sealed.push(key),
            Err(error) => assert!(matches!(error, ProviderError::Unsupported), "{error}"),
        }
    }
    let all = having(spec).count();
    assert!([0, all].contains(&sealed.len()), "not every provider does");
    if spec == KeySpec::Aes256 {
        assert_eq!(!sealed.is_empty(), material.expose().len() == 32);
    }
    for sealed in &sealed {
        let opened = having(spec).map(|one| one.open(&name(spec), sealed).unwrap());
        let opened: Vec<_> = opened.collect();
        for one in &opened {
            opened.iter().for_each(|other| are_one_key(one, other));
        }
    }
}

fn are_one_key(one: &OpenKey, other: &OpenKey) {
    let secret = Plaintext::new(b"attack at dawn".to_vec());
    let opened = match (one, other) {
        (OpenKey::Symmetric(one), OpenKey::Symmetric(other)) => {
            let mut frame = vec![0; HEAD];
            one.encrypt(&mut frame, &secret, b"").unwrap();
            let (head, body) = frame.split_first_chunk::<HEAD>().unwrap();
            assert!(Head::parse(&frame).is_err(), "a head of zeros is none");
            other.decrypt(head, body, b"").unwrap()
        }
        (OpenKey::Pair(one), OpenKey::Pair(other)) => {
            assert_eq!(one.public_key(), other.public_key());
            other.decrypt(&one.encrypt(&secret).unwrap()).unwrap()
        }
        _ => panic!("a key is a pair or none"),
    };
    assert_eq!(opened.expose(), secret.expose());
}

/// One change of a sealed key or of its name, which may be one that changes nothing.
fn change(data: &mut &[u8], key: &mut Vec<u8>, place: &mut VersionName) {
    match byte(data) % 7 {
        0 => {
            let at = number(data) % key.len().max(1);
            let with = byte(data);
            if let Some(byte) = key.get_mut(at) {
                *byte ^= with;
            }
        }
        1 => key.truncate(key.len().saturating_sub(number(data))),
        2 => key.extend(part(data)),
        3 => {
            let project = String::from_utf8_lossy(part(data));
            if let Ok(project) = project.parse() {
                place.project = project;
            }
        }
        4 => {
            let mut id = *place.key_id.as_bytes();
            let at = usize::from(byte(data)) % KeyId::LEN;
            id[at] = byte(data);
            place.key_id = KeyId::from_bytes(&id).unwrap_or(place.key_id);
        }
        5 => {
            let version = u32::try_from(number(data)).unwrap();
            place.version = KeyVersion::new(version).unwrap_or(place.version);
        }
        _ => place.spec = KeySpec::ALL[usize::from(byte(data)) % KeySpec::ALL.len()],
    }
}

/// Takes a number off the input.
fn number(data: &mut &[u8]) -> usize {
    usize::from(u16::from_be_bytes([byte(data), byte(data)]))
}

/// Material of the spec.
fn fixed(spec: KeySpec) -> Vec<u8> {
    match spec {
        KeySpec::Aes256 => vec![1; 32],
        KeySpec::Rsa2048 => der(RSA_2048),
        KeySpec::Rsa3072 => der(include_str!("../../tests/vectors/rsa_3072.pem")),
        KeySpec::Rsa4096 => der(include_str!("../../tests/vectors/rsa_4096.pem")),
        KeySpec::Sm2 => der(SM2),
    }
}
