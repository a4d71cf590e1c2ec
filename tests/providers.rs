//! Every provider passes the same battery.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::{Root, RootKey, Roots};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{
    Choice, InvalidProviders, KeyPair, OpenKey, Place, Provider, ProviderError, Providers,
    SealedKey, Symmetric, VersionName,
};
use kmsgate::domain::frame::{HEAD, Head, Suite};
use kmsgate::domain::key::{Family, KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rsa::pkcs1::RsaPrivateKeyRef;
use rsa::pkcs8::PrivateKeyInfoRef;
use serde::Deserialize;

/// One line here puts a provider through every case.
macro_rules! battery {
    ($provider:ident, $new:expr) => {
        mod $provider {
            use super::*;
            cases!($new;
                says_what_it_supports
                makes_keys_that_work
                works_where_it_should
                sealed_material_opens_and_works
                round_trips_at_every_length
                never_repeats_a_ciphertext
                refuses_every_flipped_bit_and_every_cut_of_a_frame
                refuses_every_flipped_bit_and_every_cut_of_a_pairs_ciphertext
                binds_the_head_and_the_callers_data
                opens_no_frame_of_another_key
                opens_no_frame_with_another_keys_commitment
                refuses_a_plaintext_over_the_limit
                encrypts_no_nothing
                a_damaged_sealed_key_does_not_open
                a_sealed_key_opens_as_itself_alone
                seals_only_what_is_a_key_of_the_spec
                seals_no_rsa_key_with_a_wrong_number
                prints_no_secret
                rsa_takes_numbers_below_the_modulus_alone
                sm2_takes_one_encoding_and_points_of_the_curve_alone
                shows_the_public_key_that_openssl_shows
                decrypts_what_openssl_encrypted
            );
        }
    };
}

macro_rules! cases {
    ($new:expr; $($case:ident)+) => {
        $( #[test] fn $case() { super::$case(&$new); } )+
    };
}

battery!(aws_lc, AwsLc::new(root()));
battery!(rustcrypto, RustCrypto::new(root()));

/// What needs a token. `tests/interop/pkcs11.sh` makes one, and runs these.
#[cfg(feature = "pkcs11")]
#[path = "interop/pkcs11.rs"]
mod token;
#[cfg(feature = "pkcs11")]
battery!(under_a_root_key_in_a_token, token::under_its_root_key());
#[cfg(feature = "pkcs11")]
battery!(rsa_in_a_token, token::rsa());

#[test]
fn what_one_software_provider_makes_the_other_opens() {
    let (mine, theirs) = (RustCrypto::new(root()), AwsLc::new(root()));
    for (maker, other) in [
        (&mine as &dyn Provider, &theirs as &dyn Provider),
        (&theirs, &mine),
    ] {
        for spec in [KeySpec::Aes256, KeySpec::Rsa2048] {
            let sealed = maker.generate(&name(spec)).unwrap();
            assert!(other.opens(&sealed), "{spec:?}");
            let keys = [maker, other].map(|of| of.open(&name(spec), &sealed).unwrap());
            crosses(&keys, spec);
        }
        // A large RSA key takes seconds to make, so for those OpenSSL's are sealed by each.
        for spec in [KeySpec::Rsa3072, KeySpec::Rsa4096] {
            let sealed = maker.seal(&name(spec), &material(spec)).unwrap();
            let keys = [maker, other].map(|of| of.open(&name(spec), &sealed).unwrap());
            crosses(&keys, spec);
        }
    }
}

#[test]
fn what_is_sealed_again_needs_the_new_root_key_alone_and_is_the_same_key() {
    let new: Arc<dyn Root> = Arc::new(RootKey::generate().unwrap());
    let both = || -> Arc<dyn Root> { Arc::new(Roots::new(new.clone(), vec![root()]).unwrap()) };
    let before: [&dyn Provider; 2] = [&RustCrypto::new(root()), &AwsLc::new(root())];
    let during: [&dyn Provider; 2] = [&RustCrypto::new(both()), &AwsLc::new(both())];
    let after: [&dyn Provider; 2] = [&RustCrypto::new(new.clone()), &AwsLc::new(new.clone())];
    for at in 0..2 {
        for spec in supported(before[at]) {
            let name = name(spec);
            let sealed = before[at].seal(&name, &material(spec)).unwrap();
            assert!(during[at].opens(&sealed));
            let again = during[at].reseal(&name, &sealed).unwrap().unwrap();
            let keys = [(during[at], &sealed), (after[at], &again)]
                .map(|(provider, key)| provider.open(&name, key).unwrap());
            crosses(&keys, spec);
            assert_eq!(during[at].reseal(&name, &again).unwrap(), None);
            does_not_open(after[at], &name, &sealed, &spec);
            does_not_open(before[at], &name, &again, &spec);
        }
    }
}

#[test]
fn a_software_provider_has_its_configured_name_and_knows_its_kind_of_seal() {
    for (provider, configured) in software() {
        assert_eq!(provider.name(), configured);
        assert_eq!(provider.place(None), Place::Pool);
        let sealed = provider.generate(&name(KeySpec::Aes256)).unwrap();
        assert!(provider.opens(&sealed), "{configured}");
        let mut other_kind = sealed;
        other_kind.0[0] ^= 1;
        for not_ours in [other_kind, SealedKey(Vec::new())] {
            assert!(!provider.opens(&not_ours), "{configured}: {not_ours:?}");
        }
    }
}

/// Were a frame or a sealed key to grow while it is made, it would leave what it is to protect behind.
#[test]
fn secrets_never_move_while_they_are_encrypted() {
    for (provider, configured) in software() {
        let sealed = provider.seal(&name(KeySpec::Aes256), &material(KeySpec::Aes256));
        let sealed = sealed.unwrap().0;
        assert_eq!(sealed.capacity(), sealed.len(), "{configured}");
        let key = only_symmetric(open(&*provider, KeySpec::Aes256));
        for length in [1, 15, 16, 4096] {
            let mut frame = Vec::with_capacity(HEAD);
            frame.extend_from_slice(&head());
            key.encrypt(&mut frame, &secret(&vec![7; length]), b"")
                .unwrap();
            assert_eq!(
                frame.capacity(),
                frame.len(),
                "{configured}, {length} bytes"
            );
        }
    }
}

/// Both software providers, and their names in a configuration.
fn software() -> [(Box<dyn Provider>, &'static str); 2] {
    [
        (Box::new(AwsLc::new(root())), "aws-lc-rs"),
        (Box::new(RustCrypto::new(root())), "rustcrypto"),
    ]
}

/// What is encrypted under one of two openings of a key opens under the other, and both show the
/// same public key.
fn crosses(keys: &[OpenKey; 2], spec: KeySpec) {
    for length in [1, 16, 100, spec.max_plaintext()] {
        for (from, to) in [(0, 1), (1, 0)] {
            let text = vec![7; length];
            let opened = match (&keys[from], &keys[to]) {
                (OpenKey::Symmetric(from), OpenKey::Symmetric(to)) => {
                    decrypt(&**to, &encrypt(&**from, &text, b"tenant=7"), b"tenant=7")
                }
                (OpenKey::Pair(from), OpenKey::Pair(to)) => {
                    assert_eq!(from.public_key(), to.public_key(), "{spec:?}");
                    to.decrypt(&from.encrypt(&secret(&text)).unwrap())
                }
                _ => panic!("{spec:?} is two things"),
            };
            assert_eq!(opened.unwrap().expose(), text, "{spec:?}, {length} bytes");
        }
    }
}

#[test]
fn each_key_spec_needs_a_provider() {
    let choice = |specs: &[KeySpec]| Choice {
        provider: Arc::new(RustCrypto::new(root())),
        specs: Some(specs.to_vec()),
    };
    let (sm2, others) = ([KeySpec::Sm2], &KeySpec::ALL[..4]);
    assert!(Providers::new(vec![choice(&sm2), choice(others)]).is_ok());
    for (choices, missing) in [(vec![], "AES_256"), (vec![choice(others)], "SM2")] {
        let error = Providers::new(choices).unwrap_err();
        assert_eq!(error, InvalidProviders::Missing(missing));
    }
}

fn says_what_it_supports(provider: &dyn Provider) {
    for &spec in KeySpec::ALL {
        let sealed = provider.seal(&name(spec), &material(spec));
        assert_eq!(sealed.is_ok(), provider.supports(spec), "{spec:?}");
        if !provider.supports(spec) {
            let made = provider.generate(&name(spec));
            assert!(matches!(made, Err(ProviderError::Unsupported)), "{spec:?}");
        }
    }
}

/// A large RSA key takes seconds to make, so the smallest stands for them.
fn makes_keys_that_work(provider: &dyn Provider) {
    for spec in [KeySpec::Aes256, KeySpec::Rsa2048, KeySpec::Sm2] {
        if !provider.supports(spec) {
            continue;
        }
        let sealed = provider.generate(&name(spec)).unwrap();
        let again = provider.generate(&name(spec)).unwrap();
        assert_ne!(sealed, again, "{spec:?}");
        round_trip(&provider.open(&name(spec), &sealed).unwrap(), 100);
    }
}

fn works_where_it_should(provider: &dyn Provider) {
    // What the token has, it decrypts with.
    let decrypts = match provider.name() {
        "pkcs11" => Place::Device,
        _ => Place::Pool,
    };
    for (spec, pair) in pairs(provider) {
        let places = || (pair.encrypts(), pair.decrypts());
        // The first SM2 encryption also computes a table.
        let inline = spec.family() == Family::Rsa;
        let first = if inline { Place::Inline } else { Place::Pool };
        assert_eq!(places(), (first, decrypts), "{spec:?}");
        pair.encrypt(&Plaintext::new(vec![1])).unwrap();
        assert_eq!(places(), (Place::Inline, decrypts), "{spec:?}");
    }
}

fn sealed_material_opens_and_works(provider: &dyn Provider) {
    for spec in supported(provider) {
        let key = open(provider, spec);
        for length in [1, 15, 16, 17, 31, 32, 33, spec.max_plaintext()] {
            round_trip(&key, length);
        }
    }
}

/// A private RSA operation is slow, so for RSA a few lengths are tried above instead.
fn round_trips_at_every_length(provider: &dyn Provider) {
    for (spec, step) in [(KeySpec::Aes256, 1), (KeySpec::Sm2, 61)] {
        if provider.supports(spec) {
            let key = open(provider, spec);
            for length in (1..=spec.max_plaintext()).step_by(step) {
                round_trip(&key, length);
            }
        }
    }
}

fn never_repeats_a_ciphertext(provider: &dyn Provider) {
    if let Some(key) = symmetric(provider) {
        let mut nonces = HashSet::new();
        for _ in 0..1000 {
            let frame = encrypt(&*key, b"attack at dawn", b"");
            assert!(nonces.insert(frame[HEAD + 32..HEAD + 32 + 24].to_vec()));
        }
    }
    for (spec, pair) in pairs(provider) {
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let ciphertext = pair.encrypt(&secret(b"attack at dawn")).unwrap();
            assert!(seen.insert(ciphertext), "{spec:?}");
        }
    }
}

fn refuses_every_flipped_bit_and_every_cut_of_a_frame(provider: &dyn Provider) {
    let Some(key) = symmetric(provider) else {
        return;
    };
    let frame = encrypt(&*key, b"attack at dawn", b"tenant=7");
    for bit in 0..frame.len() * 8 {
        let mut altered = frame.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        refused(decrypt(&*key, &altered, b"tenant=7"), &bit);
    }
    for cut in HEAD..frame.len() {
        refused(decrypt(&*key, &frame[..cut], b"tenant=7"), &cut);
    }
    for more in [1, 16] {
        let longer = [&frame[..], &vec![0; more]].concat();
        refused(decrypt(&*key, &longer, b"tenant=7"), &more);
    }
}

fn refuses_every_flipped_bit_and_every_cut_of_a_pairs_ciphertext(provider: &dyn Provider) {
    for (spec, pair) in pairs(provider) {
        // A private RSA operation is slow: one bit of every eighth byte, and a few cuts.
        let (bits, cuts) = match spec {
            KeySpec::Sm2 => (1, 1),
            _ => (67, 100),
        };
        let ciphertext = pair.encrypt(&secret(b"attack at dawn")).unwrap();
        for bit in (0..ciphertext.len() * 8).step_by(bits) {
            let mut altered = ciphertext.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            refused(pair.decrypt(&altered), &(spec, bit));
        }
        for cut in (0..ciphertext.len()).step_by(cuts) {
            refused(pair.decrypt(&ciphertext[..cut]), &(spec, cut));
            refused(pair.decrypt(&ciphertext[cut + 1..]), &(spec, cut));
        }
        refused(pair.decrypt(&longer(&ciphertext)), &spec);
        refused(pair.decrypt(&[&[0], &ciphertext[..]].concat()), &spec);
    }
}

/// Bytes may not wander between the head and the caller's data either: few byte values, so that
/// they would fit together.
fn binds_the_head_and_the_callers_data(provider: &dyn Provider) {
    let Some(key) = symmetric(provider) else {
        return;
    };
    let head = || proptest::collection::vec(0u8..2, HEAD);
    let data = || proptest::collection::vec(0u8..2, 0..4);
    let all = (head(), proptest::option::of(head()), data(), data());
    TestRunner::default()
        .run(&all, |(head, other_head, aad, other_aad)| {
            let other_head = other_head.unwrap_or_else(|| head.clone());
            let mut frame = head.clone();
            key.encrypt(&mut frame, &secret(b"x"), &aad).unwrap();
            prop_assert!(decrypt(&*key, &frame, &aad).is_ok());
            let same = (&head, &aad) == (&other_head, &other_aad);
            frame[..HEAD].copy_from_slice(&other_head);
            prop_assert_eq!(decrypt(&*key, &frame, &other_aad).is_ok(), same);
            Ok(())
        })
        .unwrap();
}

fn opens_no_frame_of_another_key(provider: &dyn Provider) {
    let Some(key) = symmetric(provider) else {
        return;
    };
    let frame = encrypt(&*key, b"attack at dawn", b"");
    for (name, why) in [
        (second(name(KeySpec::Aes256)), "version"),
        (other(name(KeySpec::Aes256)), "id"),
    ] {
        // Even with the same material: the key of a frame depends on both.
        let key = opened(provider, &name, &material(KeySpec::Aes256));
        refused(decrypt(&*only_symmetric(key), &frame, b""), &why);
    }
    let material = Material::new(vec![8; 32]);
    let key = opened(provider, &name(KeySpec::Aes256), &material);
    refused(decrypt(&*only_symmetric(key), &frame, b""), &"material");
}

/// A commitment is no secret: whoever has one frame of a key can put it in another.
fn opens_no_frame_with_another_keys_commitment(provider: &dyn Provider) {
    let Some(mine) = symmetric(provider) else {
        return;
    };
    let other = Material::new(vec![8; 32]);
    let other = only_symmetric(opened(provider, &name(KeySpec::Aes256), &other));
    let mut frame = encrypt(&*other, b"attack at dawn", b"");
    let commitment = HEAD..HEAD + 32;
    frame[commitment.clone()].copy_from_slice(&encrypt(&*mine, b"attack at dawn", b"")[commitment]);
    refused(decrypt(&*mine, &frame, b""), &"mine");
    refused(decrypt(&*other, &frame, b""), &"other");
}

fn refuses_a_plaintext_over_the_limit(provider: &dyn Provider) {
    for spec in supported(provider) {
        let long = Plaintext::new(vec![1; spec.max_plaintext() + 1]);
        let answer = match open(provider, spec) {
            OpenKey::Symmetric(key) => key.encrypt(&mut head(), &long, b""),
            OpenKey::Pair(pair) => pair.encrypt(&long).map(drop),
        };
        assert!(matches!(answer, Err(ProviderError::TooLong)), "{spec:?}");
    }
}

/// The formats of AES and SM2 have no place for an empty plaintext, and OAEP has.
fn encrypts_no_nothing(provider: &dyn Provider) {
    let nothing = Plaintext::new(Vec::new());
    if let Some(key) = symmetric(provider) {
        assert!(key.encrypt(&mut head(), &nothing, b"").is_err());
    }
    for (spec, pair) in pairs(provider) {
        let answer = pair.encrypt(&nothing);
        assert_eq!(answer.is_err(), spec == KeySpec::Sm2, "{spec:?}");
    }
}

fn a_damaged_sealed_key_does_not_open(provider: &dyn Provider) {
    for spec in quick(provider) {
        let sealed = provider.seal(&name(spec), &material(spec)).unwrap();
        for bit in 0..sealed.0.len() * 8 {
            let mut altered = sealed.clone();
            altered.0[bit / 8] ^= 1 << (bit % 8);
            does_not_open(provider, &name(spec), &altered, &bit);
        }
        for cut in 0..sealed.0.len() {
            let short = SealedKey(sealed.0[..cut].to_vec());
            does_not_open(provider, &name(spec), &short, &cut);
        }
        let longer = SealedKey(longer(&sealed.0));
        does_not_open(provider, &name(spec), &longer, &"longer");
    }
}

fn a_sealed_key_opens_as_itself_alone(provider: &dyn Provider) {
    let mine = name(quick(provider)[0]);
    let sealed = provider.seal(&mine, &material(mine.spec)).unwrap();
    assert!(provider.open(&mine, &sealed).is_ok());
    for name in [
        other(mine.clone()),
        second(mine.clone()),
        VersionName {
            project: "another".parse().unwrap(),
            ..mine.clone()
        },
        name(KeySpec::Sm2),
        name(KeySpec::Rsa3072),
    ] {
        does_not_open(provider, &name, &sealed, &name);
    }
}

fn seals_only_what_is_a_key_of_the_spec(provider: &dyn Provider) {
    let rsa = material(KeySpec::Rsa2048).expose().to_vec();
    let long_rsa = material(KeySpec::Rsa3072).expose().to_vec();
    let sm2 = material(KeySpec::Sm2).expose().to_vec();
    // The same key as any other writes it: version, algorithm, and a scalar without its public key.
    let scalar = |hex: &str| {
        let key = tlv(0x30, &[&[2, 1, 1][..], &tlv(4, &bytes(hex))].concat());
        tlv(0x30, &[&sm2[3..27], &tlv(4, &key)].concat())
    };
    let one = format!("{:064x}", 1);
    for (spec, material, is_key, why) in [
        (KeySpec::Aes256, vec![1; 32], true, "32 bytes"),
        (KeySpec::Aes256, vec![1; 31], false, "31 bytes"),
        (KeySpec::Aes256, vec![1; 33], false, "33 bytes"),
        (KeySpec::Aes256, vec![], false, "nothing"),
        (KeySpec::Rsa2048, rsa.clone(), true, "RSA"),
        (KeySpec::Rsa3072, rsa.clone(), false, "too short"),
        (KeySpec::Rsa2048, long_rsa, false, "too long"),
        (KeySpec::Rsa2048, vec![], false, "nothing"),
        (KeySpec::Rsa2048, rsa[26..].to_vec(), false, "PKCS#1"),
        (KeySpec::Rsa2048, longer(&rsa), false, "a trailing byte"),
        (KeySpec::Rsa2048, changed(&rsa, 400), false, "another d"),
        (KeySpec::Rsa2048, sm2.clone(), false, "SM2"),
        (KeySpec::Sm2, sm2.clone(), true, "SM2"),
        (KeySpec::Sm2, rsa.clone(), false, "RSA"),
        (KeySpec::Sm2, vec![], false, "nothing"),
        (KeySpec::Sm2, longer(&sm2), false, "a trailing byte"),
        (KeySpec::Sm2, changed(&sm2, 26), false, "another curve"),
        (KeySpec::Sm2, changed(&sm2, 40), false, "another d"),
        (KeySpec::Sm2, scalar(&one), true, "d = 1"),
        (KeySpec::Sm2, scalar(&"00".repeat(32)), false, "d = 0"),
        (KeySpec::Sm2, scalar(SM2_N), false, "d = n"),
        (KeySpec::Sm2, scalar(SM2_N_MINUS_1), false, "d = n - 1"),
    ] {
        if !provider.supports(spec) {
            continue;
        }
        let sealed = provider.seal(&name(spec), &Material::new(material));
        assert_eq!(sealed.is_ok(), is_key, "{spec:?}: {why}");
        let unsupported = matches!(sealed, Err(ProviderError::Unsupported));
        assert!(is_key || unsupported, "{spec:?}: {why}");
    }
}

/// Every provider must refuse the same keys: what one seals, others open.
fn seals_no_rsa_key_with_a_wrong_number(provider: &dyn Provider) {
    for spec in supported(provider).filter(|spec| spec.family() == Family::Rsa) {
        let rsa = material(spec).expose().to_vec();
        let info = PrivateKeyInfoRef::try_from(&rsa[..]).unwrap();
        let key = RsaPrivateKeyRef::try_from(info.private_key.as_bytes()).unwrap();
        for (number, why) in [
            (&key.modulus, "n"),
            (&key.public_exponent, "e"),
            (&key.private_exponent, "d"),
            (&key.prime1, "p"),
            (&key.prime2, "q"),
            (&key.exponent1, "dP"),
            (&key.exponent2, "dQ"),
            (&key.coefficient, "qInv"),
        ] {
            let number = number.as_bytes();
            let at = rsa.windows(number.len()).position(|part| part == number);
            // Neither the first octet, so that the number stays in its range, nor the last, so that
            // it stays odd.
            let wrong = changed(&rsa, at.unwrap() + number.len() / 2);
            let sealed = provider.seal(&name(spec), &Material::new(wrong));
            let unsupported = matches!(sealed, Err(ProviderError::Unsupported));
            assert!(unsupported, "{spec:?}: {why}");
        }
    }
}

fn prints_no_secret(provider: &dyn Provider) {
    for spec in supported(provider) {
        let material = material(spec);
        let sealed = provider.seal(&name(spec), &material).unwrap();
        let key = provider.open(&name(spec), &sealed).unwrap();
        let printed = format!("{provider:?} {sealed:?} {key:?} {material:?}");
        assert!(printed.len() < 200, "{printed}");
        assert!(!printed.contains('['), "{printed}");
        for told in ["SealedKey(", "OpenKey::"] {
            assert!(printed.contains(told), "{printed}");
        }
    }
}

fn rsa_takes_numbers_below_the_modulus_alone(provider: &dyn Provider) {
    for (spec, pair) in pairs(provider) {
        let Some(bits) = spec.rsa_bits() else {
            continue;
        };
        let length = bits / 8;
        // SubjectPublicKeyInfo ends with the modulus and the five bytes of the exponent.
        let end = pair.public_key().len() - 5;
        let modulus = &pair.public_key()[end - length..end];
        let mut above = modulus.to_vec();
        above[length - 1] += 1;
        for (number, why) in [
            (modulus.to_vec(), "n"),
            (above, "n + 1"),
            (vec![0xff; length], "the largest"),
            (vec![0; length], "zero"),
            (vec![1; length - 1], "a byte short"),
            (vec![1; length + 1], "a byte long"),
            (vec![], "nothing"),
        ] {
            refused(pair.decrypt(&number), &(spec, why));
        }
        // Modulo n the second is the same number as the first, and so would open if it were reduced.
        let mut all = std::iter::repeat_with(|| pair.encrypt(&secret(b"x")).unwrap());
        let (good, beyond) = all
            .find_map(|good| sum(&good, modulus).map(|beyond| (good, beyond)))
            .unwrap();
        assert_eq!(good.len(), length);
        assert_eq!(pair.decrypt(&good).unwrap().expose(), b"x");
        refused(pair.decrypt(&beyond), &(spec, "c + n"));
        // The same number with a zero before it is not the same ciphertext.
        refused(pair.decrypt(&[&[0], &good[..]].concat()), &spec);
    }
}

fn sm2_takes_one_encoding_and_points_of_the_curve_alone(provider: &dyn Provider) {
    if !provider.supports(KeySpec::Sm2) {
        return;
    }
    let pair = only_pair(open(provider, KeySpec::Sm2));
    // Until both coordinates have their first bit clear, so that each takes 32 bytes.
    let good = std::iter::repeat_with(|| pair.encrypt(&secret(b"attack at dawn")).unwrap())
        .find(|der| der[3] == 32 && der[37] == 32)
        .unwrap();
    let (x, y) = (&good[4..36], &good[38..70]);
    let tail = &good[70..];
    let with = |x: &[u8], y: &[u8]| tlv(0x30, &[&tlv(2, x), &tlv(2, y), tail].concat());
    assert!(pair.decrypt(&with(x, y)).is_ok());

    let p = bytes(SM2_P);
    let zero_before = |number: &[u8]| [&[0], number].concat();
    for (bad, why) in [
        (longer(&good), "a trailing byte"),
        (tlv(0x30, &[&good[2..], &[5, 0]].concat()), "one more part"),
        (with(&zero_before(x), y), "a needless zero"),
        (with(x, &zero_before(y)), "a needless zero"),
        (with(&changed(x, 0), y), "off the curve"),
        (with(&[0xff; 32], y), "negative"),
        (with(&zero_before(&[0xff; 32]), y), "not below p"),
        (with(&zero_before(&p), y), "p for zero"),
        (with(&[&[1], x].concat(), y), "33 digits"),
        (with(&changed(x, 31), y), "off the curve"),
        (with(x, &changed(y, 31)), "off the curve"),
        (with(y, x), "off the curve"),
        (with(&[0], &[0]), "a stand-in for infinity"),
        (with(&[], &[]), "no digits"),
        (
            [&[0x30, 0x81, good[1]], &good[2..]].concat(),
            "a length that takes more bytes than it must",
        ),
        (
            [&[0x30, 0x80], &good[2..], &[0, 0]].concat(),
            "an indefinite length",
        ),
        (
            [&[4], x, y, &tail[2..34], &tail[36..]].concat(),
            "C1 ‖ C3 ‖ C2",
        ),
    ] {
        refused(pair.decrypt(&bad), &why);
    }
}

fn shows_the_public_key_that_openssl_shows(provider: &dyn Provider) {
    for (spec, pair) in pairs(provider) {
        let shown = BASE64_STANDARD.encode(pair.public_key());
        assert_eq!(shown, openssl(spec).public_key, "{spec:?}");
    }
}

fn decrypts_what_openssl_encrypted(provider: &dyn Provider) {
    for (spec, pair) in pairs(provider) {
        let made = &openssl(spec).ciphertexts;
        assert_eq!(made.len(), 6, "{spec:?}");
        for Made {
            plaintext,
            ciphertext,
        } in made
        {
            let plaintext = BASE64_STANDARD.decode(plaintext).unwrap();
            let ciphertext = BASE64_STANDARD.decode(ciphertext).unwrap();
            let decrypted = pair.decrypt(&ciphertext).unwrap();
            assert_eq!(decrypted.expose(), plaintext, "{spec:?}");
        }
    }
}

const ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
const OTHER_ID: &str = "1d0466b0-e727-4d9c-b35d-f84bb474a37f";

/// The order of the curve and the prime of its field (GM/T 0003.5).
const SM2_N: &str = "fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54123";
const SM2_N_MINUS_1: &str = "fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54122";
const SM2_P: &str = "fffffffeffffffffffffffffffffffffffffffff00000000ffffffffffffffff";

/// A key of OpenSSL's, and what OpenSSL encrypted under it. `make_openssl_vectors.py` beside the
/// file says how.
#[derive(Deserialize)]
struct Openssl {
    spec: String,
    public_key: String,
    ciphertexts: Vec<Made>,
}

#[derive(Deserialize)]
struct Made {
    plaintext: String,
    ciphertext: String,
}

fn openssl(spec: KeySpec) -> Openssl {
    #[derive(Deserialize)]
    struct File {
        keys: Vec<Openssl>,
    }
    let file: File = serde_json::from_str(include_str!("vectors/openssl.json")).unwrap();
    let mut keys = file.keys.into_iter();
    keys.find(|key| key.spec == spec.name()).unwrap()
}

/// A fixed key of the spec, made by OpenSSL: making one for every test would take too long.
fn material(spec: KeySpec) -> Material {
    let pem = match spec {
        KeySpec::Aes256 => return Material::new(vec![7; 32]),
        KeySpec::Rsa2048 => include_str!("vectors/rsa_2048.pem"),
        KeySpec::Rsa3072 => include_str!("vectors/rsa_3072.pem"),
        KeySpec::Rsa4096 => include_str!("vectors/rsa_4096.pem"),
        KeySpec::Sm2 => include_str!("vectors/sm2.pem"),
    };
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    Material::new(BASE64_STANDARD.decode(base64).unwrap())
}

fn root() -> Arc<RootKey> {
    let text = format!("KMSGATE-ROOT-KEY-1:{}", BASE64_STANDARD.encode([9; 32]));
    Arc::new(RootKey::parse(&text).unwrap())
}

fn name(spec: KeySpec) -> VersionName {
    VersionName {
        project: "project".parse().unwrap(),
        key_id: ID.parse().unwrap(),
        version: KeyVersion::FIRST,
        spec,
    }
}

/// The same for the second version.
fn second(mut name: VersionName) -> VersionName {
    name.version = KeyVersion::new(2).unwrap();
    name
}

/// The same for another key.
fn other(mut name: VersionName) -> VersionName {
    name.key_id = OTHER_ID.parse().unwrap();
    name
}

fn supported(provider: &dyn Provider) -> impl Iterator<Item = KeySpec> {
    let all = KeySpec::ALL.iter().copied();
    all.filter(|spec| provider.supports(*spec))
}

/// The specs whose keys open in no time, or else one that stands for all.
fn quick(provider: &dyn Provider) -> Vec<KeySpec> {
    let mut specs: Vec<KeySpec> = supported(provider).collect();
    specs.retain(|spec| spec.family() != Family::Rsa);
    if specs.is_empty() {
        specs.extend(supported(provider).take(1));
    }
    specs
}

fn opened(provider: &dyn Provider, name: &VersionName, material: &Material) -> OpenKey {
    let sealed = provider.seal(name, material).unwrap();
    provider.open(name, &sealed).unwrap()
}

fn open(provider: &dyn Provider, spec: KeySpec) -> OpenKey {
    opened(provider, &name(spec), &material(spec))
}

fn only_symmetric(key: OpenKey) -> Box<dyn Symmetric> {
    match key {
        OpenKey::Symmetric(key) => key,
        OpenKey::Pair(_) => panic!("a pair"),
    }
}

fn only_pair(key: OpenKey) -> Box<dyn KeyPair> {
    match key {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => panic!("not a pair"),
    }
}

fn symmetric(provider: &dyn Provider) -> Option<Box<dyn Symmetric>> {
    let key = provider.supports(KeySpec::Aes256);
    key.then(|| only_symmetric(open(provider, KeySpec::Aes256)))
}

fn pairs(provider: &dyn Provider) -> impl Iterator<Item = (KeySpec, Box<dyn KeyPair>)> {
    supported(provider)
        .filter(|spec| spec.family() != Family::Symmetric)
        .map(move |spec| (spec, only_pair(open(provider, spec))))
}

fn secret(text: &[u8]) -> Plaintext {
    Plaintext::new(text.to_vec())
}

fn head() -> Vec<u8> {
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: true,
        version: KeyVersion::FIRST,
        key_id: ID.parse().unwrap(),
    };
    head.to_bytes().to_vec()
}

fn encrypt(key: &dyn Symmetric, text: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut frame = head();
    key.encrypt(&mut frame, &secret(text), aad).unwrap();
    frame
}

fn decrypt(key: &dyn Symmetric, frame: &[u8], aad: &[u8]) -> Result<Plaintext, ProviderError> {
    let (head, body) = frame.split_first_chunk().unwrap();
    key.decrypt(head, body, aad)
}

fn round_trip(key: &OpenKey, length: usize) {
    let text: Vec<u8> = (0..=255).cycle().take(length).collect();
    let decrypted = match key {
        OpenKey::Symmetric(key) => {
            let frame = encrypt(&**key, &text, b"tenant=7");
            assert_eq!(frame.len(), 124 + (length / 16 + 1) * 16);
            decrypt(&**key, &frame, b"tenant=7")
        }
        OpenKey::Pair(pair) => pair.decrypt(&pair.encrypt(&secret(&text)).unwrap()),
    };
    assert_eq!(decrypted.unwrap().expose(), text, "{length} bytes");
}

fn refused(answer: Result<Plaintext, ProviderError>, case: &dyn Debug) {
    match answer {
        Err(ProviderError::Rejected) => {}
        other => panic!("{case:?}: {other:?}"),
    }
}

fn does_not_open(provider: &dyn Provider, name: &VersionName, key: &SealedKey, case: &dyn Debug) {
    let answer = provider.open(name, key);
    assert!(matches!(answer, Err(ProviderError::BadSeal)), "{case:?}");
}

fn changed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[at] ^= 1;
    changed
}

/// The sum of two numbers of one length, the highest byte first, if it has that length too.
fn sum(one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    assert_eq!(one.len(), other.len());
    let mut sum = vec![0; one.len()];
    let mut carry = 0;
    for (digit, (one, other)) in sum.iter_mut().zip(one.iter().zip(other)).rev() {
        let [high, low] = (u16::from(*one) + u16::from(*other) + carry).to_be_bytes();
        *digit = low;
        carry = u16::from(high);
    }
    (carry == 0).then_some(sum)
}

fn longer(bytes: &[u8]) -> Vec<u8> {
    [bytes, &[0]].concat()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = (0..hex.len()).step_by(2);
    digits
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// A DER element of fewer than 128 bytes.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 0x80);
    [&[tag, length], content].concat()
}
