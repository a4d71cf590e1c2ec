//! DecryptData: which key, which algorithm, which state, and that every failure of one kind of key
//! is told alike.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsgate::domain::frame::{Head, Suite};
use kmsgate::domain::key::KeyVersion;
use kmsgate::error::Kind;
use serde_json::Value;

use crate::encrypting::NO_KEY_IDS;
use crate::face::{Over, bytes};
use crate::schema::Call;
use crate::seeds::{
    BROKEN, DISABLED_SIGNER, DOCUMENTED, FROZEN, NOBODY, PENDING_ACTIVATION, PENDING_IMPORT,
    RSA_2048, RSA_3072, RSA_4096, RSA_SIGNER, SM2, SM2_SIGNER,
};
use crate::world::{World, on_both_faces};
use crate::{aes_key, create, decrypt, encrypt, made, on, sealed};

const RSA: &str = "RSAES_OAEP_SHA_256";

/// Section 1.6, sample A: a ciphertext of Huawei's own service.
const HUAWEIS: &str = concat!(
    "AgBoADOno72EHR/JjaUrSX7IKbS11ARcP0ZvqR/izGq+eSMqGlfN8QT3om5xbgoeJ4nfeC5n8bxo2XGoAIpcJaiYzj9lOTY2",
    "YTMwMC0wYzM0LTRhMzEtODZlMS1lNjdkMTNlNjQyNmEAAAAAoufe9kr8XlgVUSamOMOtsOIpw0Shy1pF1GnL2Wreobo=",
);

#[tokio::test]
async fn what_was_encrypted_elsewhere_under_a_public_key_is_decrypted() {
    // Section 1.3: an officially supported flow. `tests/vectors/openssl.json` says who made the
    // ciphertexts.
    let vectors: Value = serde_json::from_str(include_str!("../vectors/openssl.json")).unwrap();
    on_both_faces(async |face| {
        for vector in vectors["keys"].as_array().unwrap() {
            let (key, algorithm) = match vector["spec"].as_str().unwrap() {
                "RSA_2048" => (RSA_2048, RSA),
                "RSA_3072" => (RSA_3072, RSA),
                "RSA_4096" => (RSA_4096, RSA),
                _ => (SM2, "SM2_ENCRYPT"),
            };
            for made in vector["ciphertexts"].as_array().unwrap() {
                let call = under(key, algorithm, &bytes(&made["ciphertext"]));
                let answer = face.done(&call).await;
                assert_eq!(answer["key_id"], key);
                assert_eq!(answer["plain_text_base64"], made["plaintext"]);
                let plain = bytes(&made["plaintext"]);
                let text = str::from_utf8(&plain).unwrap_or_default();
                assert_eq!(answer["plain_text"], text);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_symmetric_ciphertext_needs_no_key_id_and_accepts_its_own_alone() {
    // Decision 5. SOPS and signatrust always send the key id and the default algorithm (section 7).
    on_both_faces(async |face| {
        let (key, other) = (aes_key(face).await, aes_key(face).await);
        let sealed = sealed(face, &key, "hello world").await;
        for call in [
            decrypt(&sealed),
            decrypt(&sealed).with("key_id", ""),
            decrypt(&sealed).with("encryption_algorithm", "SYMMETRIC_DEFAULT"),
            under(&key, "SYMMETRIC_DEFAULT", &sealed),
            under(&key, "", &sealed),
        ] {
            let answer = face.done(&call).await;
            assert_eq!(answer["key_id"], key.as_str());
            assert_eq!(answer["plain_text"], "hello world");
        }
        for not_its in [&*other, NOBODY, FROZEN] {
            let call = under(not_its, "", &sealed);
            face.refused(Kind::InvalidCiphertext, &call).await;
        }
        for key_id in NO_KEY_IDS {
            face.refused(Kind::InvalidKeyId, &under(key_id, "", &sealed))
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_asymmetric_ciphertext_needs_the_key_id_and_the_algorithm() {
    on_both_faces(async |face| {
        for algorithm in [RSA, "SM2_ENCRYPT"] {
            let call = decrypt(&[1; 256]).with("encryption_algorithm", algorithm);
            face.refused(Kind::MissingParameter, &call).await;
            face.refused(Kind::MissingParameter, &call.clone().with("key_id", ""))
                .await;
            face.refused(Kind::KeyNotFound, &call.with("key_id", NOBODY))
                .await;
        }
        let call = decrypt(&[1; 256]).with("encryption_algorithm", "RSAES_OAEP_SHA_1");
        face.refused(Kind::InvalidParameter, &call).await;
    })
    .await;
}

#[tokio::test]
async fn the_wrong_algorithm_is_told_before_the_ciphertext_is_looked_at() {
    // Section 2.5, decision 5.
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let frame = sealed(face, &key, "x").await;
        for ciphertext in [&frame[..], &[0; 96], &[0xff; 256], &[0x30; 140], &[3; 4236]] {
            for (kind, key, algorithm) in [
                (Kind::SymmetricKeyAlgorithm, &*key, RSA),
                (Kind::SymmetricKeyAlgorithm, &key, "SM2_ENCRYPT"),
                (Kind::RsaKeyAlgorithm, RSA_2048, ""),
                (Kind::RsaKeyAlgorithm, RSA_2048, "SYMMETRIC_DEFAULT"),
                (Kind::RsaKeyAlgorithm, RSA_2048, "SM2_ENCRYPT"),
                (Kind::Sm2KeyAlgorithm, SM2, ""),
                (Kind::Sm2KeyAlgorithm, SM2, "SYMMETRIC_DEFAULT"),
                (Kind::Sm2KeyAlgorithm, SM2, RSA),
            ] {
                face.refused(kind, &under(key, algorithm, ciphertext)).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_that_signs_neither_encrypts_nor_decrypts() {
    // Section 2.5.
    on_both_faces(async |face| {
        for (key, algorithm) in [(RSA_SIGNER, RSA), (SM2_SIGNER, "SM2_ENCRYPT")] {
            let call = encrypt(key, "x").with("encryption_algorithm", algorithm);
            face.refused(Kind::KeySigns, &call).await;
            let call = under(key, algorithm, &[0; 256]);
            face.refused(Kind::KeySigns, &call).await;
        }
        // The default usage of an asymmetric key is signing (section 2.2).
        let signer = made(face, &create("signer").with("key_spec", "SM2")).await;
        let call = encrypt(&signer, "x").with("encryption_algorithm", "SM2_ENCRYPT");
        face.refused(Kind::KeySigns, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_not_enabled_does_no_work() {
    // Section 2.5, decision 6.
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let frame = sealed(face, &key, "hello world").await;
        face.done(&on("disable-key", &key)).await;
        for call in [encrypt(&key, "x"), decrypt(&frame), under(&key, "", &frame)] {
            face.refused(Kind::KeyDisabled, &call).await;
        }
        let schedule = on("schedule-key-deletion", &key).with("pending_days", "7");
        face.done(&schedule).await;
        for call in [encrypt(&key, "x"), decrypt(&frame)] {
            face.refused(Kind::KeyPendingDeletion, &call).await;
        }
        face.done(&on("cancel-key-deletion", &key)).await;
        face.refused(Kind::KeyDisabled, &decrypt(&frame)).await;
        face.done(&on("enable-key", &key)).await;
        assert_eq!(
            face.done(&decrypt(&frame)).await["plain_text"],
            "hello world"
        );

        for key in [PENDING_ACTIVATION, PENDING_IMPORT, FROZEN] {
            face.refused(Kind::KeyNotEnabled, &encrypt(key, "x")).await;
            let call = decrypt(&forged(key));
            face.refused(Kind::KeyNotEnabled, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_disabled_asymmetric_key_does_no_work() {
    on_both_faces(async |face| {
        let new = create("pair")
            .with("key_spec", "SM2")
            .with("key_usage", "ENCRYPT_DECRYPT");
        let key = made(face, &new).await;
        let call = encrypt(&key, "x").with("encryption_algorithm", "SM2_ENCRYPT");
        let sealed = bytes(&face.done(&call).await["cipher_text"]);
        face.done(&on("disable-key", &key)).await;
        face.refused(Kind::KeyDisabled, &call).await;
        let call = under(&key, "SM2_ENCRYPT", &sealed);
        face.refused(Kind::KeyDisabled, &call).await;
        face.refused(Kind::KeyDisabled, &under(&key, "", &sealed))
            .await;
        let call = under(DISABLED_SIGNER, "", &sealed);
        face.refused(Kind::KeyDisabled, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_is_not_of_this_project_opens_nothing_and_tells_nothing() {
    // Decision 5: no state of another project's key is told.
    let world = World::start().await;
    for (face, foreign) in [(world.rest(), world.grpc()), (world.grpc(), world.rest())] {
        let mine = aes_key(&face).await;
        let (theirs, their_disabled) = (aes_key(&foreign).await, aes_key(&foreign).await);
        let their_frame = sealed(&foreign, &theirs, "x").await;
        let their_disabled_frame = sealed(&foreign, &their_disabled, "x").await;
        foreign.done(&on("disable-key", &their_disabled)).await;
        let mut of_nobody = sealed(&face, &mine, "x").await;
        of_nobody[8..44].copy_from_slice(NOBODY.as_bytes());
        let mut of_an_rsa_key = of_nobody.clone();
        of_an_rsa_key[8..44].copy_from_slice(RSA_2048.as_bytes());
        let mut told = Vec::new();
        for frame in [
            &their_frame,
            &their_disabled_frame,
            &of_nobody,
            &of_an_rsa_key,
        ] {
            let refusal = face.refused(Kind::InvalidCiphertext, &decrypt(frame)).await;
            told.push(refusal.message);
        }
        let call = under(&theirs, "", &their_frame);
        let refusal = face.refused(Kind::InvalidCiphertext, &call).await;
        told.push(refusal.message);
        told.dedup();
        assert_eq!(told, [Kind::InvalidCiphertext.row().text]);
        // The frames are whole where they belong.
        foreign.done(&decrypt(&their_frame)).await;
    }
}

#[tokio::test]
async fn a_seeded_key_of_the_same_id_in_another_project_is_another_key() {
    let world = World::start().await;
    let (rest, grpc) = (world.rest(), world.grpc());
    let frame = sealed(&rest, DOCUMENTED, "x").await;
    // Both projects hold the same material under the same id: what tells them apart is not in the
    // frame.
    grpc.done(&decrypt(&frame)).await;
    let elsewhere = world.face(Over::Rest, crate::world::BARE_PROJECT);
    let refusal = elsewhere
        .refused(Kind::InvalidCiphertext, &decrypt(&frame))
        .await;
    assert_eq!(refusal.message, Kind::InvalidCiphertext.row().text);
}

#[tokio::test]
async fn a_frame_of_huaweis_own_service_is_told_as_made_elsewhere() {
    on_both_faces(async |face| {
        let mut frame = STANDARD.decode(HUAWEIS).unwrap();
        let message =
            "Invalid cipher_text. It was made by another service and cannot be decrypted here.";
        for _ in 0..2 {
            let refusal = face
                .refused(Kind::InvalidCiphertext, &decrypt(&frame))
                .await;
            assert_eq!(refusal.message, message);
            frame.resize(268, 0);
        }
        // Under a key that it does not name, it is made elsewhere all the same.
        let refusal = face
            .refused(Kind::InvalidCiphertext, &under(DOCUMENTED, "", &frame))
            .await;
        assert_eq!(refusal.message, message);
    })
    .await;
}

#[tokio::test]
async fn a_ciphertext_has_96_to_4236_bytes() {
    // Section 1.2: `^[0-9a-zA-Z+/=]{128,5648}$`. Its length is told before its key is looked for.
    on_both_faces(async |face| {
        face.refused(Kind::MissingParameter, &Call::new("decrypt-data"))
            .await;
        face.refused(Kind::MissingParameter, &decrypt(b"")).await;
        for length in [1, 16, 95, 4237, 5000] {
            let ciphertext = vec![3; length];
            face.refused(Kind::InvalidCiphertext, &decrypt(&ciphertext))
                .await;
            let call = under(NOBODY, RSA, &ciphertext);
            face.refused(Kind::InvalidCiphertext, &call).await;
        }
        for length in [96, 4236] {
            let call = under(NOBODY, RSA, &vec![3; length]);
            face.refused(Kind::KeyNotFound, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_that_is_damaged_in_the_store_is_our_fault_and_hurts_no_other() {
    on_both_faces(async |face| {
        for call in [encrypt(BROKEN, "x"), decrypt(&forged(BROKEN))] {
            let refusal = face.refused(Kind::Internal, &call).await;
            assert_eq!(refusal.message, "KMS error.");
        }
        face.done(&on("describe-key", BROKEN)).await;
        sealed(face, DOCUMENTED, "x").await;
    })
    .await;
}

#[tokio::test]
async fn a_missing_ciphertext_is_missing_whatever_the_algorithm() {
    on_both_faces(async |face| {
        for (key, algorithm) in [(RSA_2048, RSA), (SM2, "SM2_ENCRYPT"), (DOCUMENTED, "")] {
            let call = under(key, algorithm, b"");
            face.refused(Kind::MissingParameter, &call).await;
        }
    })
    .await;
}

/// A call to decrypt by an algorithm under a key.
pub(crate) fn under(key_id: &str, algorithm: &str, ciphertext: &[u8]) -> Call {
    decrypt(ciphertext)
        .with("key_id", key_id)
        .with("encryption_algorithm", algorithm)
}

/// A frame that names a key and that no key made.
fn forged(key_id: &str) -> Vec<u8> {
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: false,
        version: KeyVersion::FIRST,
        key_id: key_id.parse().unwrap(),
    };
    let mut frame = head.to_bytes().to_vec();
    frame.resize(140, 0x5a);
    frame
}
