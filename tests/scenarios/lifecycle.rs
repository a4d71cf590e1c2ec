//! Making keys, telling what they are, and moving them through their life.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsgate::error::Kind;
use rsa::pkcs8::{DecodePublicKey, SubjectPublicKeyInfoRef};
use serde_json::{Value, json};

use crate::encrypting::{NO_KEY_IDS, NO_SEQUENCES};
use crate::face::{Face, Over};
use crate::schema::Call;
use crate::seeds::{
    DOCUMENTED, FROZEN, NOBODY, PENDING_ACTIVATION, PENDING_IMPORT, RSA_2048, RSA_SIGNER, SM2, WORN,
};
use crate::world::{BARE_PROJECT, World, on_both_faces};
use crate::{aes_key, create, decrypt, encrypt, made, on, sealed, text};

/// The operations that name a key, each with what else it needs.
pub(crate) fn about_a_key(key_id: &str) -> Vec<Call> {
    vec![
        encrypt(key_id, "x"),
        on("describe-key", key_id),
        on("enable-key", key_id),
        on("disable-key", key_id),
        on("schedule-key-deletion", key_id).with("pending_days", "7"),
        on("cancel-key-deletion", key_id),
        on("get-publickey", key_id),
        on("update-key-alias", key_id).with("key_alias", "new"),
        on("update-key-description", key_id).with("key_description", "new"),
        on("rotate-on-demand", key_id),
    ]
}

#[tokio::test]
async fn every_call_about_a_key_checks_its_id_and_the_sequence() {
    on_both_faces(async |face| {
        for call in about_a_key(NOBODY) {
            face.refused(Kind::KeyNotFound, &call).await;
            for missing in [
                call.clone().without("key_id"),
                call.clone().with("key_id", ""),
            ] {
                face.refused(Kind::MissingParameter, &missing).await;
            }
            for key_id in NO_KEY_IDS {
                let call = call.clone().with("key_id", key_id);
                face.refused(Kind::InvalidKeyId, &call).await;
            }
            for sequence in NO_SEQUENCES {
                let call = call.clone().with("sequence", sequence);
                face.refused(Kind::InvalidSequence, &call).await;
            }
        }
        for call in [create("x"), Call::new("list-keys")] {
            let call = call.with("sequence", "x");
            face.refused(Kind::InvalidSequence, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_is_made_of_a_spec_for_a_usage() {
    // Section 2.2.
    on_both_faces(async |face| {
        for (spec, usage, spec_told, usage_told) in [
            ("", "", "AES_256", "ENCRYPT_DECRYPT"),
            ("AES_256", "", "AES_256", "ENCRYPT_DECRYPT"),
            ("AES_256", "ENCRYPT_DECRYPT", "AES_256", "ENCRYPT_DECRYPT"),
            ("SM2", "", "SM2", "SIGN_VERIFY"),
            ("SM2", "SIGN_VERIFY", "SM2", "SIGN_VERIFY"),
            ("SM2", "ENCRYPT_DECRYPT", "SM2", "ENCRYPT_DECRYPT"),
        ] {
            let new = create(&crate::fresh_alias())
                .with("key_spec", spec)
                .with("key_usage", usage)
                .with("origin", "kms")
                .with("keystore_id", "0");
            let key = made(face, &new).await;
            let told = face.done(&on("describe-key", &key)).await;
            assert_eq!(told["key_info"]["key_spec"], spec_told);
            assert_eq!(told["key_info"]["key_usage"], usage_told);
            assert_eq!(told["key_info"]["key_state"], "2");
        }
        for (field, value) in [
            ("key_spec", "AES_128"),
            ("key_spec", "aes_256"),
            ("key_spec", "SM4"),
            ("key_spec", "EC_P256"),
            ("key_spec", "HMAC_256"),
            ("key_usage", "SIGN_VERIFY"),
            ("key_usage", "GENERATE_VERIFY_MAC"),
            ("key_usage", "encrypt"),
            ("origin", "external"),
            ("origin", "KMS"),
            ("keystore_id", "x"),
            ("keystore_id", "00"),
        ] {
            let call = create("refused").with(field, value);
            face.refused(Kind::InvalidParameter, &call).await;
        }
    })
    .await;
}

/// Once, over one face: making an RSA key takes a second.
#[tokio::test]
async fn an_rsa_key_made_here_works_here() {
    let world = World::start().await;
    let grpc = world.grpc();
    let new = create("rsa")
        .with("key_spec", "RSA_2048")
        .with("key_usage", "ENCRYPT_DECRYPT");
    let key = made(&grpc, &new).await;
    let call = encrypt(&key, "hello world").with("encryption_algorithm", "RSAES_OAEP_SHA_256");
    let sealed = crate::face::bytes(&grpc.done(&call).await["cipher_text"]);
    let call = crate::decrypting::under(&key, "RSAES_OAEP_SHA_256", &sealed);
    assert_eq!(grpc.done(&call).await["plain_text"], "hello world");
}

#[tokio::test]
async fn an_alias_is_required_well_formed_and_unique() {
    on_both_faces(async |face| {
        let longest = "a".repeat(255);
        for alias in ["a", "AZaz09:/_-", &longest, "default", "alias/defaults"] {
            made(face, &create(alias)).await;
            face.refused(Kind::DuplicateAlias, &create(alias)).await;
        }
        for alias in [
            "a b",
            "é",
            "a.b",
            "a\n",
            " a",
            "kms/default",
            "/default",
            &"a".repeat(256),
        ] {
            face.refused(Kind::InvalidAlias, &create(alias)).await;
        }
        face.refused(Kind::MissingParameter, &create("")).await;
        face.refused(Kind::MissingParameter, &Call::new("create-key"))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_description_has_at_most_255_characters() {
    on_both_faces(async |face| {
        for (number, description) in ["", "x", "加密\n", &"🔑".repeat(255)].iter().enumerate() {
            let new = create(&format!("described/{number}")).with("key_description", *description);
            let key = made(face, &new).await;
            let told = face.done(&on("describe-key", &key)).await;
            assert_eq!(told["key_info"]["key_description"], *description);
        }
        for description in ["x".repeat(256), "🔑".repeat(256), "x".repeat(5000)] {
            let call = create("refused").with("key_description", &description);
            face.refused(Kind::InvalidDescription, &call).await;
            let call = on("update-key-description", DOCUMENTED);
            let call = call.with("key_description", &description);
            face.refused(Kind::InvalidDescription, &call).await;
        }
        let call = on("update-key-description", DOCUMENTED);
        face.refused(Kind::MissingParameter, &call).await;
        face.refused(Kind::MissingParameter, &call.with("key_description", ""))
            .await;
    })
    .await;
}

#[tokio::test]
async fn describe_key_tells_everything_about_a_key() {
    // Section 5.1: times are milliseconds, and every value is text.
    on_both_faces(async |face| {
        let new = create("told").with("key_description", "what it is for");
        let before = now();
        let key = made(face, &new).await;
        let after = now();
        face.done(&on("rotate-on-demand", &key)).await;
        let told = face.done(&on("describe-key", &key)).await["key_info"].clone();
        for (field, value) in [
            ("key_id", &*key),
            ("domain_id", &face.project),
            ("key_alias", "told"),
            ("realm", "local"),
            ("key_spec", "AES_256"),
            ("key_usage", "ENCRYPT_DECRYPT"),
            ("key_description", "what it is for"),
            ("scheduled_deletion_date", ""),
            ("key_state", "2"),
        ] {
            assert_eq!(told[field], value, "{field}");
        }
        let created: i64 = text(&told["creation_date"]).parse().unwrap();
        assert!((before..=after).contains(&created), "{created}");
        match face.over {
            Over::Grpc => assert_eq!(told["key_version"], "2"),
            Over::Rest => {
                for (field, value) in [
                    ("default_key_flag", "0"),
                    ("key_type", "1"),
                    ("expiration_time", ""),
                    ("origin", "kms"),
                    ("key_rotation_enabled", "false"),
                    ("sys_enterprise_project_id", "0"),
                    ("keystore_id", "0"),
                    ("partition_type", "1"),
                ] {
                    assert_eq!(told[field], value, "{field}");
                }
                assert_eq!(told.as_object().unwrap().len(), 18);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_state_moves_as_the_contract_draws_it_and_not_otherwise() {
    // Section 2.4.
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let enable = on("enable-key", &key);
        let disable = on("disable-key", &key);
        let schedule = on("schedule-key-deletion", &key).with("pending_days", "7");
        let cancel = on("cancel-key-deletion", &key);
        let wrapped = |state: &str| json!({"key_id": key, "key_state": state});

        // Enabled.
        face.refused(Kind::KeyNotDisabled, &enable).await;
        face.refused(Kind::NotPendingDeletion, &cancel).await;
        assert_eq!(face.done(&disable).await["key_info"], wrapped("3"));
        // Disabled.
        face.refused(Kind::KeyNotEnabled, &disable).await;
        face.refused(Kind::NotPendingDeletion, &cancel).await;
        assert_eq!(face.done(&enable).await["key_info"], wrapped("2"));
        face.done(&disable).await;
        assert_eq!(face.done(&schedule).await, wrapped("4"));
        // Pending deletion.
        face.refused(Kind::AlreadyPendingDeletion, &schedule).await;
        face.refused(Kind::KeyNotDisabled, &enable).await;
        face.refused(Kind::KeyNotEnabled, &disable).await;
        face.refused(Kind::KeyPendingDeletion, &on("rotate-on-demand", &key))
            .await;
        let rename = on("update-key-alias", &key).with("key_alias", "new");
        face.refused(Kind::KeyPendingDeletion, &rename).await;
        let describe = on("update-key-description", &key).with("key_description", "new");
        face.refused(Kind::KeyPendingDeletion, &describe).await;
        assert_eq!(face.done(&cancel).await, wrapped("3"));
        let told = face.done(&on("describe-key", &key)).await;
        assert_eq!(told["key_info"]["scheduled_deletion_date"], "");

        // From enabled at once, and back to disabled.
        let key = aes_key(face).await;
        let schedule = on("schedule-key-deletion", &key).with("pending_days", "8");
        let before = now();
        face.done(&schedule).await;
        let told = face.done(&on("describe-key", &key)).await;
        let due = text(&told["key_info"]["scheduled_deletion_date"]);
        let wait = due.parse::<i64>().unwrap() - 8 * 86_400_000;
        assert!((before..=now()).contains(&wait));
        face.done(&on("cancel-key-deletion", &key)).await;
        face.done(&on("enable-key", &key)).await;
    })
    .await;
}

#[tokio::test]
async fn a_state_that_the_service_does_not_enter_allows_little() {
    on_both_faces(async |face| {
        for key in [PENDING_ACTIVATION, PENDING_IMPORT, FROZEN] {
            face.refused(Kind::KeyNotDisabled, &on("enable-key", key))
                .await;
            face.refused(Kind::KeyNotEnabled, &on("disable-key", key))
                .await;
            face.refused(Kind::NotPendingDeletion, &on("cancel-key-deletion", key))
                .await;
            face.refused(Kind::KeyNotEnabled, &on("rotate-on-demand", key))
                .await;
        }
        let schedule = |key| on("schedule-key-deletion", key).with("pending_days", "7");
        face.refused(Kind::KeyNotEnabled, &schedule(PENDING_ACTIVATION))
            .await;
        for key in [PENDING_IMPORT, FROZEN] {
            face.done(&schedule(key)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_deletion_waits_7_to_1096_days() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let schedule = on("schedule-key-deletion", &key);
        for days in ["0", "6", "1097", "2147483647"] {
            let call = schedule.clone().with("pending_days", days);
            face.refused(Kind::InvalidPendingDays, &call).await;
        }
        face.refused(Kind::MissingParameter, &schedule).await;
        for days in ["7", "1096"] {
            face.done(&schedule.clone().with("pending_days", days))
                .await;
            face.done(&on("cancel-key-deletion", &key)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_decrypts_what_each_of_its_versions_encrypted() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let mut frames = Vec::new();
        for version in 1..=4_u32 {
            let plain = format!("under version {version}");
            let frame = sealed(face, &key, &plain).await;
            assert_eq!(frame[4..8], version.to_be_bytes());
            frames.push((plain, frame));
            let answer = face.done(&on("rotate-on-demand", &key)).await;
            assert_eq!(answer["key_id"], key.as_str());
        }
        for (plain, frame) in frames {
            assert_eq!(face.done(&decrypt(&frame)).await["plain_text"], plain);
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_that_cannot_be_rotated_is_not() {
    on_both_faces(async |face| {
        let rotate = |key: &str| on("rotate-on-demand", key);
        let before = sealed(face, WORN, "before").await;
        face.refused(Kind::TooManyVersions, &rotate(WORN)).await;
        assert_eq!(face.done(&decrypt(&before)).await["plain_text"], "before");
        face.refused(Kind::RsaKeyNotRotatable, &rotate(RSA_2048))
            .await;
        face.refused(Kind::RsaKeyNotRotatable, &rotate(RSA_SIGNER))
            .await;
        face.refused(Kind::AsymmetricKey, &rotate(SM2)).await;
        let key = aes_key(face).await;
        face.done(&on("disable-key", &key)).await;
        face.refused(Kind::KeyDisabled, &rotate(&key)).await;
    })
    .await;
}

#[tokio::test]
async fn the_public_key_of_a_pair_is_told_as_spki_in_pem_whatever_its_state() {
    on_both_faces(async |face| {
        for key in [RSA_2048, RSA_SIGNER, crate::seeds::DISABLED_SIGNER] {
            let pem = public_key(face, key).await;
            let read = rsa::PublicKey::from_public_key_pem(&pem).unwrap();
            assert_eq!(rsa::traits::PublicKeyParts::size(&read), 256);
        }
        let pem = public_key(face, SM2).await;
        let mut lines = pem.lines();
        assert_eq!(lines.next(), Some("-----BEGIN PUBLIC KEY-----"));
        assert_eq!(lines.next_back(), Some("-----END PUBLIC KEY-----"));
        let der = STANDARD.decode(lines.collect::<String>()).unwrap();
        let spki = SubjectPublicKeyInfoRef::try_from(&*der).unwrap();
        assert_eq!(spki.algorithm.oid.to_string(), "1.2.840.10045.2.1");
        let curve = spki.algorithm.parameters_oid().unwrap();
        assert_eq!(curve.to_string(), "1.2.156.10197.1.301");

        face.refused(Kind::SymmetricKey, &on("get-publickey", DOCUMENTED))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_renamed_key_frees_its_old_alias() {
    on_both_faces(async |face| {
        let (key, other) = (
            made(face, &create("old")).await,
            made(face, &create("taken")).await,
        );
        let rename = |key: &str, alias: &str| on("update-key-alias", key).with("key_alias", alias);
        face.refused(Kind::DuplicateAlias, &rename(&key, "taken"))
            .await;
        let answer = face.done(&rename(&key, "new")).await;
        let expected = json!({"key_info": {"key_id": key, "key_alias": "new"}});
        assert_eq!(answer, expected);
        // The same name again changes nothing.
        face.done(&rename(&key, "new")).await;
        face.done(&rename(&other, "old")).await;
        made(face, &create("taken")).await;
        face.refused(Kind::DuplicateAlias, &create("old")).await;
        for alias in ["a b", "kms/default", &"a".repeat(256)] {
            face.refused(Kind::InvalidAlias, &rename(&key, alias)).await;
        }
        face.refused(Kind::MissingParameter, &rename(&key, ""))
            .await;
        let told = face.done(&on("describe-key", &key)).await;
        assert_eq!(told["key_info"]["key_alias"], "new");
    })
    .await;
}

#[tokio::test]
async fn a_key_is_described_anew() {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let call = on("update-key-description", &key).with("key_description", "密钥");
        let expected = json!({"key_info": {"key_id": key, "key_description": "密钥"}});
        assert_eq!(face.done(&call).await, expected);
        let told = face.done(&on("describe-key", &key)).await;
        assert_eq!(told["key_info"]["key_description"], "密钥");
    })
    .await;
}

#[tokio::test]
async fn a_list_of_keys_comes_in_pages() {
    // Section 5.1.
    let world = World::start().await;
    let faces = [Over::Rest, Over::Grpc].map(|over| world.face(over, BARE_PROJECT));
    for face in &faces {
        let empty = face.done(&of_aes()).await;
        let expected = json!({
            "keys": [], "key_details": [], "next_marker": "", "truncated": "false", "total": 0,
        });
        assert_eq!(empty, expected);
    }
    let mut keys = Vec::new();
    for _ in 0..5 {
        keys.push(aes_key(&faces[0]).await);
    }
    let pair = create("pair").with("key_spec", "SM2");
    let pair = made(&faces[0], &pair).await;
    faces[0].done(&on("disable-key", &keys[3])).await;
    let sorted = |mut keys: Vec<String>| {
        keys.sort();
        keys
    };
    for face in &faces {
        let mut found = Vec::new();
        let mut marker = "0".to_owned();
        for (length, truncated, next) in [(2, "true", "2"), (2, "true", "4"), (1, "false", "")] {
            let page = of_aes().with("limit", "2").with("marker", &marker);
            let page = face.done(&page).await;
            assert_eq!(page["total"], 5);
            assert_eq!(page["truncated"], truncated);
            assert_eq!(page["next_marker"], next);
            let ids = ids(&page);
            assert_eq!(ids.len(), length);
            let details = page["key_details"].as_array().unwrap();
            let details = details.iter().map(|key| text(&key["key_id"]));
            assert_eq!(details.collect::<Vec<_>>(), ids);
            found.extend(ids);
            marker = next.to_owned();
        }
        assert_eq!(sorted(found), sorted(keys.clone()));
        let beyond = face.done(&of_aes().with("marker", "5")).await;
        assert!(ids(&beyond).is_empty() && beyond["total"] == 5);

        let disabled = face.done(&of_aes().with("key_state", "3")).await;
        assert_eq!(ids(&disabled), [keys[3].clone()]);
        let pairs = Call::new("list-keys").with("key_spec", "SM2");
        assert_eq!(ids(&face.done(&pairs).await), [&*pair]);
        let of_rsa = Call::new("list-keys").with("key_spec", "RSA_2048");
        assert!(ids(&face.done(&of_rsa).await).is_empty());
        for state in ["1", "4", "5", "7"] {
            let call = of_aes().with("key_state", state);
            assert!(ids(&face.done(&call).await).is_empty());
        }
        let told = face.done(&on("describe-key", &keys[0])).await["key_info"].clone();
        let listed = face.done(&of_aes().with("limit", "1000")).await;
        assert!(listed["key_details"].as_array().unwrap().contains(&told));
    }
    // REST lists AES_256 keys unless it is told otherwise (section 2.2); over gRPC no spec means
    // every spec.
    let default = Call::new("list-keys");
    assert_eq!(faces[0].done(&default).await["total"], 5);
    let all = default.clone().with("key_spec", "ALL");
    assert_eq!(faces[0].done(&all).await["total"], 6);
    assert_eq!(faces[1].done(&default).await["total"], 6);
}

#[tokio::test]
async fn a_list_of_more_keys_than_a_page_may_have_is_whole_and_as_new_as_the_last_change() {
    const KEYS: usize = 1003;
    let world = World::start().await;
    let faces = [Over::Rest, Over::Grpc].map(|over| world.face(over, BARE_PROJECT));
    let mut made = Vec::new();
    for _ in 0..KEYS {
        made.push(aes_key(&faces[0]).await);
    }
    made.sort();
    for face in &faces {
        let (mut found, mut dates) = (Vec::new(), Vec::new());
        for (marker, next) in [("0", "400"), ("400", "800"), ("800", "")] {
            let page = of_aes().with("limit", "400").with("marker", marker);
            let page = face.done(&page).await;
            assert_eq!(page["total"], KEYS);
            assert_eq!(page["next_marker"], next);
            found.extend(ids(&page));
            let details = page["key_details"].as_array().unwrap();
            dates.extend(details.iter().map(|key| text(&key["creation_date"])));
        }
        assert!(dates.is_sorted());
        found.sort();
        assert_eq!(found, made);

        let frozen = of_aes().with("key_state", "3");
        assert_eq!(face.done(&frozen).await["total"], 0);
        face.done(&on("disable-key", &made[7])).await;
        assert_eq!(ids(&face.done(&frozen).await), [&*made[7]]);
        face.done(&on("enable-key", &made[7])).await;
        assert_eq!(face.done(&frozen).await["total"], 0);

        let last = of_aes().with("marker", "1002");
        let last = ids(&face.done(&last).await).remove(0);
        let name = crate::fresh_alias();
        face.done(&on("update-key-alias", &last).with("key_alias", &name))
            .await;
        let page = face.done(&of_aes().with("marker", "1002")).await;
        assert_eq!(page["key_details"][0]["key_alias"], *name);
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused() {
    on_both_faces(async |face| {
        for limit in ["0", "1001", "2147483647"] {
            let call = of_aes().with("limit", limit);
            face.refused(Kind::InvalidLimit, &call).await;
        }
        let call = of_aes().with("marker", "-1");
        face.refused(Kind::InvalidMarker, &call).await;
        for (field, value) in [
            ("key_state", "6"),
            ("key_state", "8"),
            ("key_spec", "AES_128"),
        ] {
            let call = of_aes().with(field, value);
            face.refused(Kind::InvalidParameter, &call).await;
        }
    })
    .await;
}

#[tokio::test]
async fn another_projects_keys_are_neither_listed_nor_found() {
    let world = World::start().await;
    let (rest, grpc) = (world.rest(), world.grpc());
    let key = aes_key(&rest).await;
    for call in about_a_key(&key) {
        grpc.refused(Kind::KeyNotFound, &call).await;
    }
    assert!(!ids(&grpc.done(&Call::new("list-keys")).await).contains(&key));
    // An alias is unique in its project alone.
    made(&rest, &create("mine")).await;
    made(&grpc, &create("mine")).await;
}

fn of_aes() -> Call {
    Call::new("list-keys").with("key_spec", "AES_256")
}

pub(crate) fn ids(page: &Value) -> Vec<String> {
    page["keys"].as_array().unwrap().iter().map(text).collect()
}

pub(crate) async fn public_key(face: &Face, key: &str) -> String {
    let answer = face.done(&on("get-publickey", key)).await;
    assert_eq!(answer["key_id"], key);
    text(&answer["public_key"])
}

fn now() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    since.as_millis().try_into().unwrap()
}
