//! What rules of a policy file give and take: to whom, for which keys, by which algorithms.

use kmsgate::domain::frame::Head;
use kmsgate::error::Kind;

use crate::decrypting::under;
use crate::face::bytes;
use crate::lifecycle::about_a_key;
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY, RSA_2048, SM2};
use crate::world::{Right, World, on_both_faces_of};
use crate::{aes_key, create, decrypt, encrypt, fresh_alias, made, on, sealed};

const RSA: &str = "RSAES_OAEP_SHA_256";

#[tokio::test]
async fn a_credential_without_actions_has_none_until_a_rule_gives_it_some() {
    for rules in [
        "",
        "[[rule]]\nname = 'others'\neffect = 'allow'\ncallers = ['Everything-of-*']\nactions = ['kms:*']\n",
    ] {
        let world = World::ruled(rules).await;
        on_both_faces_of(&world, async |face| {
            let ruled = face.with_right(Right::Ruled);
            for call in about_a_key(DOCUMENTED) {
                ruled.refused(Kind::Denied, &call).await;
            }
            ruled.refused(Kind::Denied, &Call::new("list-keys")).await;
            ruled.refused(Kind::Denied, &create("x")).await;
            face.done(&encrypt(DOCUMENTED, "x")).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_rule_gives_actions_to_a_role_or_to_a_caller() {
    for who in [
        "roles = ['ruled']",
        "callers = ['Ruled-of-*']",
        "callers = ['*']",
    ] {
        let world = World::ruled(&format!(
            "[[rule]]\nname = 'a'\neffect = 'allow'\n{who}\nactions = ['kms:cmk:encryptData', 'kms:cmk:list']\n"
        ))
        .await;
        on_both_faces_of(&world, async |face| {
            let ruled = face.with_right(Right::Ruled);
            let frame = sealed(&ruled, DOCUMENTED, "x").await;
            ruled.done(&Call::new("list-keys")).await;
            ruled.refused(Kind::Denied, &decrypt(&frame)).await;
            face.done(&decrypt(&frame)).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_deny_takes_what_a_credential_and_other_rules_give() {
    let world = World::ruled(
        "[[rule]]\nname = 'all'\neffect = 'allow'\ncallers = ['*']\nactions = ['kms:*']\n\
         [[rule]]\nname = 'no-deletion'\neffect = 'deny'\ncallers = ['*']\n\
         actions = ['kms:cmk:scheduleKeyDeletion']\n",
    )
    .await;
    on_both_faces_of(&world, async |face| {
        for caller in [face, &face.with_right(Right::Ruled)] {
            caller.done(&on("describe-key", DOCUMENTED)).await;
            for key in [DOCUMENTED, NOBODY] {
                let call = on("schedule-key-deletion", key).with("pending_days", "7");
                caller.refused(Kind::Denied, &call).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_rule_may_be_about_one_key() {
    let world = World::ruled(&format!(
        "[[rule]]\nname = 'one'\neffect = 'allow'\nroles = ['ruled']\n\
         actions = ['kms:cmk:*']\nkeys = ['{DOCUMENTED}']\n"
    ))
    .await;
    on_both_faces_of(&world, async |face| {
        let ruled = face.with_right(Right::Ruled);
        let frame = sealed(&ruled, DOCUMENTED, "x").await;
        ruled.done(&decrypt(&frame)).await;
        ruled.done(&on("describe-key", DOCUMENTED)).await;
        let other = aes_key(face).await;
        for key in [&*other, NOBODY, RSA_2048] {
            for call in about_a_key(key) {
                ruled.refused(Kind::Denied, &call).await;
            }
        }
        let frame = sealed(face, &other, "x").await;
        ruled.refused(Kind::Denied, &decrypt(&frame)).await;
        // These have no key.
        ruled.refused(Kind::Denied, &create(&fresh_alias())).await;
        ruled.refused(Kind::Denied, &Call::new("list-keys")).await;
    })
    .await;
}

#[tokio::test]
async fn a_rule_may_be_about_keys_of_some_names_and_follows_a_key_that_is_renamed() {
    let world = World::ruled(
        "[[rule]]\nname = 'team'\neffect = 'allow'\nroles = ['ruled']\n\
         actions = ['kms:cmk:*']\nkeys = ['alias:team/*']\n",
    )
    .await;
    on_both_faces_of(&world, async |face| {
        let ruled = face.with_right(Right::Ruled);
        let key = made(&ruled, &create("team/a")).await;
        let frame = sealed(&ruled, &key, "x").await;
        ruled.done(&decrypt(&frame)).await;
        ruled
            .done(&decrypt(&frame).with("key_id", key.as_str()))
            .await;

        // A name outside is neither given to a new key nor to an old one.
        ruled.refused(Kind::Denied, &create("teams/a")).await;
        let rename = |alias: &str| on("update-key-alias", &key).with("key_alias", alias);
        ruled.refused(Kind::Denied, &rename("other/a")).await;
        ruled.done(&rename("team/b")).await;

        // Whoever may, takes the key out, and it counts at once.
        face.done(&rename("other/a")).await;
        ruled.refused(Kind::Denied, &encrypt(&key, "x")).await;
        ruled.refused(Kind::Denied, &decrypt(&frame)).await;
        ruled.refused(Kind::Denied, &on("describe-key", &key)).await;
        ruled.refused(Kind::Denied, &rename("team/b")).await;
        face.done(&rename("team/b")).await;
        ruled.done(&decrypt(&frame)).await;
    })
    .await;
}

#[tokio::test]
async fn a_key_that_may_not_be_used_is_told_as_one_that_does_not_exist() {
    // By an allow of some names, and by a deny of some.
    for rules in [
        "[[rule]]\nname = 'some'\neffect = 'allow'\nroles = ['ruled']\n\
         actions = ['kms:cmk:*']\nkeys = ['alias:mine/*']\n",
        "[[rule]]\nname = 'all'\neffect = 'allow'\nroles = ['ruled']\nactions = ['kms:cmk:*']\n\
         [[rule]]\nname = 'but'\neffect = 'deny'\nroles = ['ruled']\n\
         actions = ['kms:cmk:*']\nkeys = ['alias:secret/*']\n",
    ] {
        let world = World::ruled(rules).await;
        on_both_faces_of(&world, async |face| {
            let ruled = face.with_right(Right::Ruled);
            let secret = made(face, &create("secret/a")).await;
            let frame = sealed(face, &secret, "x").await;
            for (there, not_there) in about_a_key(&secret).iter().zip(about_a_key(NOBODY)) {
                let there = ruled.refused(Kind::Denied, there).await;
                let not_there = ruled.refused(Kind::Denied, &not_there).await;
                assert_eq!(there, not_there);
            }
            let names_nobody = renamed(&frame, NOBODY);
            for frame in [&frame, &names_nobody] {
                ruled.refused(Kind::Denied, &decrypt(frame)).await;
            }
            for key in [&*secret, NOBODY] {
                let call = decrypt(&frame).with("key_id", key);
                ruled.refused(Kind::Denied, &call).await;
                ruled
                    .refused(Kind::Denied, &under(key, RSA, &[0; 256]))
                    .await;
            }
            // A name that the caller may not give is denied whether or not a key has it.
            for alias in ["secret/a", "secret/b"] {
                ruled.refused(Kind::Denied, &create(alias)).await;
            }
            // Whoever no rule is about is told.
            face.refused(Kind::KeyNotFound, &encrypt(NOBODY, "x")).await;
            face.refused(Kind::InvalidCiphertext, &decrypt(&names_nobody))
                .await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_caller_who_may_use_every_key_is_told_that_one_does_not_exist() {
    let world = World::ruled(&format!(
        "[[rule]]\nname = 'all'\neffect = 'allow'\nroles = ['ruled']\nactions = ['kms:cmk:get']\n\
         [[rule]]\nname = 'but'\neffect = 'deny'\nroles = ['ruled']\n\
         actions = ['kms:cmk:get']\nkeys = ['{DOCUMENTED}']\n"
    ))
    .await;
    on_both_faces_of(&world, async |face| {
        let ruled = face.with_right(Right::Ruled);
        ruled.done(&on("describe-key", RSA_2048)).await;
        ruled
            .refused(Kind::KeyNotFound, &on("describe-key", NOBODY))
            .await;
        ruled
            .refused(Kind::Denied, &on("describe-key", DOCUMENTED))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_rule_may_be_about_some_algorithms() {
    let world = World::ruled(&format!(
        "[[rule]]\nname = 'rsa'\neffect = 'allow'\nroles = ['ruled']\n\
         actions = ['kms:cmk:encryptData', 'kms:cmk:decryptData']\nalgorithms = ['{RSA}']\n\
         [[rule]]\nname = 'no-sm2'\neffect = 'deny'\ncallers = ['*']\n\
         actions = ['kms:cmk:decryptData']\nalgorithms = ['SM2_ENCRYPT']\n"
    ))
    .await;
    on_both_faces_of(&world, async |face| {
        let ruled = face.with_right(Right::Ruled);
        let by =
            |algorithm: &str, key: &str| encrypt(key, "x").with("encryption_algorithm", algorithm);
        let block = bytes(&ruled.done(&by(RSA, RSA_2048)).await["cipher_text"]);
        ruled.done(&under(RSA_2048, RSA, &block)).await;
        ruled.refused(Kind::Denied, &encrypt(DOCUMENTED, "x")).await;
        ruled.refused(Kind::Denied, &by("SM2_ENCRYPT", SM2)).await;
        // The right to the algorithm comes before whether the key has it.
        ruled
            .refused(Kind::Denied, &by("SM2_ENCRYPT", RSA_2048))
            .await;
        ruled
            .refused(Kind::SymmetricKeyAlgorithm, &by(RSA, DOCUMENTED))
            .await;

        let sealed = bytes(&face.done(&by("SM2_ENCRYPT", SM2)).await["cipher_text"]);
        face.refused(Kind::Denied, &under(SM2, "SM2_ENCRYPT", &sealed))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_right_to_list_is_not_touched_by_rules_about_keys() {
    let world = World::ruled(
        "[[rule]]\nname = 'none'\neffect = 'deny'\ncallers = ['*']\n\
         actions = ['kms:*']\nkeys = ['alias:*']\n",
    )
    .await;
    on_both_faces_of(&world, async |face| {
        let call = Call::new("list-keys");
        let listed = face.done(&call).await.to_string();
        assert!(listed.contains(DOCUMENTED), "{listed}");
        face.refused(Kind::Denied, &on("describe-key", DOCUMENTED))
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_refusal_by_a_rule_is_audited_with_the_key() {
    let world = World::ruled(
        "[[rule]]\nname = 'none'\neffect = 'deny'\ncallers = ['Everything-of-*']\n\
         actions = ['kms:cmk:decryptData', 'kms:cmk:rotate']\nkeys = ['alias:seed/*']\n",
    )
    .await;
    for face in [world.rest(), world.grpc()] {
        let frame = sealed(&face, DOCUMENTED, "x").await;
        let before = world.audited(&face).await.len();
        face.refused(Kind::Denied, &decrypt(&frame)).await;
        face.refused(Kind::Denied, &on("rotate-on-demand", DOCUMENTED))
            .await;
        let lines = world.audited(&face).await;
        let lines = &lines[before..lines.len() - 1];
        let told = |line: &serde_json::Value| {
            ["action", "outcome", "error_code", "key_id"]
                .map(|name| line[name].as_str().unwrap().to_owned())
        };
        let expected = ["kms:cmk:decryptData", "kms:cmk:rotate"]
            .map(|action| [action, "refused", "KMS.0306", DOCUMENTED].map(str::to_owned));
        assert_eq!(lines.iter().map(told).collect::<Vec<_>>(), expected);
    }
}

/// The same frame, as if another key had encrypted it.
fn renamed(frame: &[u8], key_id: &str) -> Vec<u8> {
    let (head, body) = Head::parse(frame).unwrap();
    let head = Head {
        key_id: key_id.parse().unwrap(),
        ..head
    };
    [&head.to_bytes()[..], body].concat()
}
