//! EncryptData: every limit of every field, and that what it answers decrypts back.

use kmsgate::error::Kind;
use tokio::task::JoinSet;

use crate::face::bytes;
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY, RSA_2048, RSA_3072, RSA_4096, SM2};
use crate::world::{World, on_both_faces};
use crate::{SEQUENCE, aes_key, decrypt, encrypt, sealed};

/// Key ids that are none (section 1.1).
pub(crate) const NO_KEY_IDS: [&str; 12] = [
    "x",
    "0d0466b0e7274d9cb35df84bb474a37f",
    "0D0466B0-e727-4d9c-b35d-f84bb474a37f",
    "0d0466b0-e727-4d9c-b35d-f84bb474a37",
    "0d0466b0-e727-4d9c-b35d-f84bb474a37ff",
    "0d0466b0_e727_4d9c_b35d_f84bb474a37f",
    "0d0466b-0e727-4d9c-b35d-f84bb474a37f",
    "0d0466b0-e727-4d9c-b35d-f84bb474a37f\n",
    " 0d0466b0-e727-4d9c-b35d-f84bb474a37f",
    "0d0466b0-e727-4d9c-b35d-f84bb474a3é",
    "alias/test",
    "../../../../../../../../../../../../",
];

/// Sequences that are none.
pub(crate) const NO_SEQUENCES: [&str; 6] = [
    "x",
    "919c82d4-8046-4722-9094-35c3c6524cf",
    "919c82d4-8046-4722-9094-35c3c6524cfff",
    "919c82d4_8046_4722_9094_35c3c6524cff",
    "919c82d4-8046-4722-9094-35c3c6524cf\n",
    "919c82d4-8046-4722-9094-35c3c6524cé",
];

#[tokio::test]
async fn a_plaintext_has_1_to_4096_bytes_of_any_text() {
    // Section 1.1, decision 12.
    let longest = "é".repeat(2048);
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        for plain_text in [
            "x",
            " ",
            "\n",
            "\r\n\t",
            "\0",
            "🔑",
            "\u{feff}",
            "\u{2028}",
            "\"\\/\u{7f}",
            "hello world",
            "加密数据",
            &"x".repeat(4096),
            &"\0".repeat(4096),
            &"🔑".repeat(1024),
            &longest,
        ] {
            let answer = face.done(&encrypt(&key, plain_text)).await;
            assert_eq!(answer["key_id"], key.as_str());
            let answer = face.done(&decrypt(&bytes(&answer["cipher_text"]))).await;
            assert_eq!(answer["key_id"], key.as_str());
            assert_eq!(answer["plain_text"], plain_text);
            assert_eq!(bytes(&answer["plain_text_base64"]), plain_text.as_bytes());
        }
        for plain_text in [
            "",
            &"x".repeat(4097),
            &(longest.clone() + "x"),
            &"é".repeat(4096),
        ] {
            let call = encrypt(&key, plain_text);
            face.refused(Kind::InvalidPlaintext, &call).await;
        }
        let call = encrypt(&key, "x").without("plain_text");
        face.refused(Kind::MissingParameter, &call).await;
    })
    .await;
}

#[tokio::test]
async fn a_plaintext_may_be_given_as_bytes() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let call = |bytes: &[u8]| {
            let call = Call::new("encrypt-data").with("key_id", &key);
            call.with("plain_text_base64", bytes)
        };
        for plain in [&b"x"[..], &[0], &[0xff; 4096], "加密".as_bytes()] {
            let answer = face.done(&call(plain)).await;
            let answer = face.done(&decrypt(&bytes(&answer["cipher_text"]))).await;
            assert_eq!(bytes(&answer["plain_text_base64"]), plain);
            // The last row of the decisions.
            let text = str::from_utf8(plain).unwrap_or_default();
            assert_eq!(answer["plain_text"], text);
        }
        face.refused(Kind::InvalidPlaintext, &call(b"")).await;
        face.refused(Kind::InvalidPlaintext, &call(&[0; 4097]))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_key_id_is_required_well_formed_and_that_of_a_key() {
    on_both_faces(async |face| {
        let call = encrypt(DOCUMENTED, "x").without("key_id");
        face.refused(Kind::MissingParameter, &call).await;
        face.refused(Kind::MissingParameter, &encrypt("", "x"))
            .await;
        for key_id in NO_KEY_IDS {
            face.refused(Kind::InvalidKeyId, &encrypt(key_id, "x"))
                .await;
        }
        face.refused(Kind::KeyNotFound, &encrypt(NOBODY, "x")).await;
        // 36 letters are an id, though none that the service makes.
        let letters = "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz";
        face.refused(Kind::KeyNotFound, &encrypt(letters, "x"))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_key_offers_the_one_algorithm_of_its_spec() {
    // Section 2.5, decisions 7 and 9.
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let by = |key: &str, algorithm: &str| {
            encrypt(key, "hello world").with("encryption_algorithm", algorithm)
        };
        for (key, algorithm) in [
            (&*key, "SYMMETRIC_DEFAULT"),
            (&key, ""),
            (RSA_2048, "RSAES_OAEP_SHA_256"),
            (SM2, "SM2_ENCRYPT"),
        ] {
            let answer = face.done(&by(key, algorithm)).await;
            let call = decrypt(&bytes(&answer["cipher_text"]))
                .with("key_id", key)
                .with("encryption_algorithm", algorithm);
            assert_eq!(face.done(&call).await["plain_text"], "hello world");
        }
        for (kind, key, algorithm) in [
            (Kind::SymmetricKeyAlgorithm, &*key, "RSAES_OAEP_SHA_256"),
            (Kind::SymmetricKeyAlgorithm, &key, "SM2_ENCRYPT"),
            (Kind::RsaKeyAlgorithm, RSA_2048, ""),
            (Kind::RsaKeyAlgorithm, RSA_2048, "SYMMETRIC_DEFAULT"),
            (Kind::RsaKeyAlgorithm, RSA_2048, "SM2_ENCRYPT"),
            (Kind::Sm2KeyAlgorithm, SM2, ""),
            (Kind::Sm2KeyAlgorithm, SM2, "SYMMETRIC_DEFAULT"),
            (Kind::Sm2KeyAlgorithm, SM2, "RSAES_OAEP_SHA_256"),
            (Kind::InvalidParameter, &key, "RSAES_OAEP_SHA_1"),
            (Kind::InvalidParameter, &key, "symmetric_default"),
            (Kind::InvalidParameter, &key, "AES_256"),
            (Kind::InvalidParameter, RSA_2048, "RSAES_OAEP_SHA_512"),
        ] {
            face.refused(kind, &by(key, algorithm)).await;
        }
        let call = encrypt(RSA_2048, "x");
        face.refused(Kind::RsaKeyAlgorithm, &call).await;
    })
    .await;
}

#[tokio::test]
async fn an_rsa_key_takes_what_oaep_leaves_of_its_modulus() {
    // Section 2.1: 190, 318 and 446 bytes.
    on_both_faces(async |face| {
        for (key, most) in [(RSA_2048, 190), (RSA_3072, 318), (RSA_4096, 446)] {
            let call = |length: usize| {
                encrypt(key, &"x".repeat(length)).with("encryption_algorithm", "RSAES_OAEP_SHA_256")
            };
            let answer = face.done(&call(most)).await;
            assert_eq!(bytes(&answer["cipher_text"]).len(), most + 66);
            face.refused(Kind::RsaPlaintextTooLong, &call(most + 1))
                .await;
            face.refused(Kind::RsaPlaintextTooLong, &call(4096)).await;
            face.refused(Kind::InvalidPlaintext, &call(4097)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_sm2_key_takes_4096_bytes() {
    on_both_faces(async |face| {
        let call = |length: usize| {
            encrypt(SM2, &"x".repeat(length)).with("encryption_algorithm", "SM2_ENCRYPT")
        };
        for length in [1, 190, 191, 4096] {
            let answer = face.done(&call(length)).await;
            let call = decrypt(&bytes(&answer["cipher_text"]))
                .with("key_id", SM2)
                .with("encryption_algorithm", "SM2_ENCRYPT");
            assert_eq!(face.done(&call).await["plain_text"], "x".repeat(length));
        }
        face.refused(Kind::InvalidPlaintext, &call(4097)).await;
    })
    .await;
}

#[tokio::test]
async fn a_sequence_is_36_letters_digits_and_hyphens_or_absent() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let call = encrypt(&key, "x");
        for sequence in [SEQUENCE, "", &"A".repeat(36), &"-".repeat(36)] {
            face.done(&call.clone().with("sequence", sequence)).await;
        }
        for sequence in NO_SEQUENCES {
            let call = call.clone().with("sequence", sequence);
            face.refused(Kind::InvalidSequence, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn additional_data_has_at_most_128_bytes_and_none_is_the_same_as_empty() {
    // Decisions 3 and 4.
    const AAD: &str = "additional_authenticated_data";
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        for aad in ["tenant=7", &"x".repeat(128), &"é".repeat(64), "\0"] {
            let answer = face.done(&encrypt(&key, "x").with(AAD, aad)).await;
            let sealed = bytes(&answer["cipher_text"]);
            let answer = face.done(&decrypt(&sealed).with(AAD, aad)).await;
            assert_eq!(answer["plain_text"], "x");
            for other in ["", "tenant=8", "tenant=7 ", "Tenant=7"] {
                let call = decrypt(&sealed).with(AAD, other);
                face.refused(Kind::InvalidCiphertext, &call).await;
            }
            face.refused(Kind::InvalidCiphertext, &decrypt(&sealed))
                .await;
        }
        for aad in ["x".repeat(129), "é".repeat(65)] {
            let call = encrypt(&key, "x").with(AAD, &aad);
            face.refused(Kind::InvalidParameter, &call).await;
            let call = decrypt(&[3; 140]).with(AAD, &aad);
            face.refused(Kind::InvalidParameter, &call).await;
        }

        let with_empty = face.done(&encrypt(&key, "x").with(AAD, "")).await;
        let with_empty = bytes(&with_empty["cipher_text"]);
        assert_eq!(face.done(&decrypt(&with_empty)).await["plain_text"], "x");
        let without = sealed(face, &key, "x").await;
        let answer = face.done(&decrypt(&without).with(AAD, "")).await;
        assert_eq!(answer["plain_text"], "x");
        let call = decrypt(&without).with(AAD, "tenant=7");
        face.refused(Kind::InvalidCiphertext, &call).await;

        for (key, algorithm) in [(RSA_2048, "RSAES_OAEP_SHA_256"), (SM2, "SM2_ENCRYPT")] {
            let call = encrypt(key, "x").with("encryption_algorithm", algorithm);
            face.refused(Kind::InvalidParameter, &call.clone().with(AAD, "x"))
                .await;
            let answer = face.done(&call.with(AAD, "")).await;
            let call = decrypt(&bytes(&answer["cipher_text"]))
                .with("key_id", key)
                .with("encryption_algorithm", algorithm);
            face.refused(Kind::InvalidParameter, &call.clone().with(AAD, "x"))
                .await;
            face.done(&call.with(AAD, "")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_two_ciphertexts_are_the_same() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let first = sealed(face, &key, "x").await;
        assert_ne!(first, sealed(face, &key, "x").await);
    })
    .await;
}

#[tokio::test]
async fn what_one_face_encrypts_the_other_decrypts() {
    let world = World::start().await;
    let rest = world.rest();
    let grpc = world.face(crate::face::Over::Grpc, &rest.project);
    let key = aes_key(&rest).await;
    for (from, to) in [(&rest, &grpc), (&grpc, &rest)] {
        let sealed = sealed(from, &key, "hello world").await;
        let answer = to.done(&decrypt(&sealed)).await;
        assert_eq!(answer["plain_text"], "hello world");
    }
}

/// Section 1.6: 124 + (n/16 + 1)·16 bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_length_of_plaintext_has_the_documented_length_of_ciphertext_and_decrypts_back() {
    const TASKS: usize = 16;
    let world = World::start().await;
    let grpc = world.grpc();
    let key = aes_key(&grpc).await;
    let mut tasks = JoinSet::new();
    for first in 1..=TASKS {
        let (grpc, key) = (grpc.clone(), key.clone());
        tasks.spawn(async move {
            for length in (first..=4096).step_by(TASKS) {
                let plain: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
                let call = Call::new("encrypt-data")
                    .with("key_id", &key)
                    .with("plain_text_base64", &plain);
                let sealed = bytes(&grpc.done(&call).await["cipher_text"]);
                assert_eq!(sealed.len(), 124 + (length / 16 + 1) * 16, "{length}");
                let opened = grpc.done(&decrypt(&sealed)).await;
                assert!(bytes(&opened["plain_text_base64"]) == plain, "{length}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}
