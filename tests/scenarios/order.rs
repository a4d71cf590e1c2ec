//! The order of checks (decision 14): a request that is wrong in two ways is told of the earlier
//! one.
//!
//! Body limit, credentials, project, JSON and fields, right to the action, key, state, usage,
//! algorithm, size, cryptography. Each scenario is one pair of neighbours.

use kmsgate::error::Kind;

use crate::decrypting::under;
use crate::encrypting::NO_KEY_IDS;
use crate::face::{Over, framed};
use crate::schema::Call;
use crate::seeds::{DISABLED_SIGNER, DOCUMENTED, NOBODY, RSA_2048, RSA_SIGNER};
use crate::world::{Right, World, on_both_faces};
use crate::{aes_key, encrypt, on, sealed};

#[tokio::test]
async fn the_body_limit_comes_before_credentials() {
    let world = World::start().await;
    let body = vec![b' '; 64 * 1024 + 1];
    let nobody = world.rest().with_nothing();
    let answer = nobody.send("encrypt-data", body.clone()).await;
    answer.is(Kind::MessageTooLong, "REST");
    // Over gRPC a message is read by its method, after its caller is known.
    let nobody = world.grpc().with_nothing();
    let answer = nobody.send("encrypt-data", framed(&body)).await;
    answer.is(Kind::Unauthenticated, "gRPC");
}

#[tokio::test]
async fn credentials_come_before_the_project() {
    on_both_faces(async |face| {
        let call = encrypt(DOCUMENTED, "x");
        let other = face.naming("bare");
        for (kind, caller) in [
            (Kind::Unauthenticated, other.with_nothing()),
            (Kind::InvalidToken, other.with_token("x")),
            (
                Kind::ExpiredToken,
                face.with_right(Right::Expired).naming("bare"),
            ),
        ] {
            caller.refused(kind, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_project_comes_before_fields() {
    on_both_faces(async |face| {
        let other = face.naming("bare");
        for call in [
            Call::new("encrypt-data"),
            Call::new("create-key"),
            encrypt("x", "").with("sequence", "x"),
            Call::new("list-keys").with("limit", "0"),
        ] {
            other.refused(Kind::ProjectMismatch, &call).await;
        }
        if face.over == Over::Rest {
            let answer = other.send("encrypt-data", "{").await;
            answer.is(Kind::ProjectMismatch, "JSON");
        }
    })
    .await;
}

#[tokio::test]
async fn a_field_comes_before_the_ones_after_it() {
    // In the order of the schema: sequence after the project, then the fields from the top.
    on_both_faces(async |face| {
        let call = encrypt(DOCUMENTED, "x");
        let bad_aad = |call: Call| call.with("additional_authenticated_data", "x".repeat(129));
        let bad_algorithm = |call: Call| bad_aad(call).with("encryption_algorithm", "x");
        let bad_text = |call: Call| bad_algorithm(call).with("plain_text", "");
        let bad_key = |call: Call| bad_text(call).with("key_id", "x");
        let bad_sequence = |call: Call| bad_key(call).with("sequence", "x");
        face.refused(Kind::InvalidSequence, &bad_sequence(call.clone()))
            .await;
        face.refused(Kind::InvalidKeyId, &bad_key(call.clone()))
            .await;
        face.refused(Kind::InvalidPlaintext, &bad_text(call.clone()))
            .await;
        let refusal = face
            .refused(Kind::InvalidParameter, &bad_algorithm(call.clone()))
            .await;
        assert!(refusal.message.contains("encryption_algorithm"));
        let refusal = face.refused(Kind::InvalidParameter, &bad_aad(call)).await;
        assert!(refusal.message.contains("additional_authenticated_data"));
    })
    .await;
}

#[tokio::test]
async fn fields_come_before_the_right_to_the_action() {
    on_both_faces(async |face| {
        let lister = face.with_right(Right::Listing);
        lister
            .refused(Kind::MissingParameter, &Call::new("encrypt-data"))
            .await;
        lister
            .refused(Kind::InvalidPlaintext, &encrypt(NOBODY, ""))
            .await;
        let call = on("schedule-key-deletion", NOBODY).with("pending_days", "6");
        lister.refused(Kind::InvalidPendingDays, &call).await;
        for key_id in NO_KEY_IDS {
            lister
                .refused(Kind::InvalidKeyId, &on("describe-key", key_id))
                .await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_right_to_the_action_comes_before_the_key() {
    on_both_faces(async |face| {
        let lister = face.with_right(Right::Listing);
        for call in [
            encrypt(NOBODY, "x"),
            on("describe-key", NOBODY),
            under(NOBODY, "SM2_ENCRYPT", &[0; 140]),
        ] {
            lister.refused(Kind::Denied, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_key_comes_before_the_algorithm() {
    on_both_faces(async |face| {
        let call = encrypt(NOBODY, "x").with("encryption_algorithm", "SM2_ENCRYPT");
        face.refused(Kind::KeyNotFound, &call).await;
        let call = on("rotate-on-demand", NOBODY);
        face.refused(Kind::KeyNotFound, &call).await;
    })
    .await;
}

#[tokio::test]
async fn the_state_comes_before_the_usage() {
    on_both_faces(async |face| {
        for algorithm in ["", "RSAES_OAEP_SHA_256", "SM2_ENCRYPT"] {
            let call = encrypt(DISABLED_SIGNER, "x").with("encryption_algorithm", algorithm);
            face.refused(Kind::KeyDisabled, &call).await;
            let call = under(DISABLED_SIGNER, algorithm, &[0; 256]);
            face.refused(Kind::KeyDisabled, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_state_comes_before_the_family_when_a_key_is_rotated() {
    on_both_faces(async |face| {
        let call = on("rotate-on-demand", DISABLED_SIGNER);
        face.refused(Kind::KeyDisabled, &call).await;
    })
    .await;
}

#[tokio::test]
async fn the_usage_comes_before_the_algorithm() {
    on_both_faces(async |face| {
        for algorithm in ["", "SM2_ENCRYPT"] {
            let call = encrypt(RSA_SIGNER, "x").with("encryption_algorithm", algorithm);
            face.refused(Kind::KeySigns, &call).await;
            let call = under(RSA_SIGNER, algorithm, &[0; 256]);
            face.refused(Kind::KeySigns, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_algorithm_comes_before_the_size() {
    on_both_faces(async |face| {
        let long = "x".repeat(191);
        for algorithm in ["", "SM2_ENCRYPT"] {
            let call = encrypt(RSA_2048, &long).with("encryption_algorithm", algorithm);
            face.refused(Kind::RsaKeyAlgorithm, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_state_comes_before_the_cryptography() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let mut frame = sealed(face, &key, "x").await;
        frame[139] ^= 1;
        face.refused(Kind::InvalidCiphertext, &crate::decrypt(&frame))
            .await;
        face.done(&on("disable-key", &key)).await;
        face.refused(Kind::KeyDisabled, &crate::decrypt(&frame))
            .await;
    })
    .await;
}
