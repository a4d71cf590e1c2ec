//! The policy file as an operator meets it: checked, explained, and changed under a running server.

mod program;

use std::time::{Duration, Instant};

use kmsgate::auth::policy::{Key, Policy, Rules, Verdict};
use kmsgate::auth::token::Entry;
use kmsgate::domain::caller::{Action, Actions, Caller};
use serde_json::json;

use crate::program::{
    ENTRY, PATIENCE, PROJECT, Site, TOKEN, call, done, entry, fetch, refused, run,
};

const KEY: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

const RULES: &str = r#"
[[rule]]
name = "operators-list"
effect = "allow"
callers = ["operator*"]
actions = ["kms:cmk:list"]

[[rule]]
name = "auditors-read"
effect = "allow"
roles = ["auditor"]
actions = ["kms:cmk:get", "kms:cmk:list"]

[[rule]]
name = "no-secrets"
effect = "deny"
roles = ["auditor"]
actions = ["kms:cmk:get"]
keys = ["alias:secret/*"]

[[rule]]
name = "no-rsa"
effect = "deny"
callers = ["*"]
actions = ["kms:cmk:decryptData"]
algorithms = ["RSAES_OAEP_SHA_256"]
"#;

#[tokio::test]
async fn a_changed_policy_file_is_read_again_and_a_bad_one_is_not_used() {
    let site = site();
    let denies = |action: &str| {
        format!("[[rule]]\nname = 'a'\neffect = 'deny'\ncallers = ['*']\nactions = ['{action}']\n")
    };
    site.write("policy.toml", &denies("kms:cmk:create"));
    let (program, at) = site.serve();
    let list = async || call(at.rest, TOKEN, "list-keys", &json!({})).await;
    let until = async |status: u16| {
        let deadline = Instant::now() + PATIENCE;
        while list().await.status != status {
            assert!(Instant::now() < deadline, "never {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(list().await.status, 200);
    let create = json!({ "key_alias": "a" });
    let answer = call(at.rest, TOKEN, "create-key", &create).await;
    assert_eq!(answer.code(), "KMS.0306");

    site.write("policy.toml", &denies("kms:cmk:list"));
    until(403).await;
    let answer = call(at.rest, TOKEN, "create-key", &create).await;
    assert_eq!(answer.status, 200, "{}", answer.text);

    site.write("policy.toml", &denies("kms:cmk:lists"));
    let told = |log: &str| log.contains("policy.toml") && log.contains("line 5: no such action");
    program.stderr.wait_for(told);
    assert_eq!(list().await.code(), "KMS.0306", "the old rules stay");
    let stale = async || {
        let metrics = fetch(at.admin, "/metrics").await.text;
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix("kmsgate_stale_credential_files "));
        line.unwrap().to_owned()
    };
    let deadline = Instant::now() + PATIENCE;
    while stale().await != "1" {
        assert!(Instant::now() < deadline, "never stale");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    site.write("policy.toml", "");
    until(200).await;
    while stale().await != "0" {
        assert!(Instant::now() < deadline, "still stale");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_bad_policy_file_stops_a_start_and_check_config_says_so() {
    let site = site();
    let config = site.name("kmsgate.toml");
    site.write("policy.toml", RULES);
    done(["check-config", "--config", &config], b"");
    site.write("policy.toml", &RULES.replace("alias:", ""));
    for command in ["serve", "check-config"] {
        let reason = refused([command, "--config", &config], b"");
        assert!(
            reason.contains("policy file ") && reason.contains("policy.toml: line 19: a key is"),
            "{reason}"
        );
    }
}

#[test]
fn explain_says_which_rule_decides_and_why() {
    let site = site();
    site.write("policy.toml", RULES);
    let auditor = entry(
        Entry {
            name: "auditor-1",
            actions: &[],
            ..ENTRY
        },
        "another token",
    ) + "roles = [\"auditor\"]\n";
    let narrow = entry(
        Entry {
            actions: &["kms:cmk:decryptData"],
            ..ENTRY
        },
        TOKEN,
    );
    site.write("tokens.toml", &format!("{narrow}{auditor}"));
    let get = "kms:cmk:get";
    let decrypt = "kms:cmk:decryptData";
    let of = format!("of project {PROJECT}");
    for (arguments, code, expected) in [
        (
            &["--caller", "operator", "--action", "kms:cmk:list"][..],
            0,
            format!(
                "allowed: kms:cmk:list for the token operator {of}\n  \
                 rule operators-list allows it: caller operator*, action kms:cmk:list\n  \
                 the token's own actions do not have it\n"
            ),
        ),
        (
            &["--caller", "operator", "--action", decrypt],
            0,
            format!(
                "allowed: {decrypt} for the token operator {of}\n  \
                 the token's own actions allow it, with every key\n"
            ),
        ),
        (
            &[
                "--caller",
                "operator",
                "--action",
                decrypt,
                "--algorithm",
                "RSAES_OAEP_SHA_256",
            ],
            1,
            format!(
                "denied: {decrypt} for the token operator {of}\n  \
                 rule no-rsa denies it, whatever allows it: caller *, action {decrypt}, \
                 algorithm RSAES_OAEP_SHA_256\n  \
                 the token's own actions allow it, with every key\n"
            ),
        ),
        (
            &["--caller", "operator", "--action", get, "--key", KEY],
            1,
            format!(
                "denied: {get} for the token operator {of}\n  no rule allows it\n  \
                 the token's own actions do not have it\n"
            ),
        ),
        (
            &["--caller", "auditor-1", "--action", get, "--key", KEY],
            1,
            format!(
                "it depends on the key: {get} for the token auditor-1 {of}\n  \
                 rule auditors-read allows it: role auditor, action {get}\n  \
                 rule no-secrets denies it if the key fits: role auditor, action {get}, \
                 key alias:secret/*\n  \
                 the token's own actions do not have it\n"
            ),
        ),
        (
            &[
                "--caller",
                "auditor-1",
                "--action",
                get,
                "--key",
                KEY,
                "--alias",
                "shop",
            ],
            0,
            format!(
                "allowed: {get} for the token auditor-1 {of}\n  \
                 rule auditors-read allows it: role auditor, action {get}\n  \
                 the token's own actions do not have it\n"
            ),
        ),
        (
            &[
                "--caller",
                "x",
                "--role",
                "auditor",
                "--project",
                "p",
                "--action",
                get,
                "--alias",
                "secret/a",
            ],
            1,
            format!(
                "denied: {get} for the caller x of project p\n  \
                 rule no-secrets denies it, whatever allows it: role auditor, action {get}, \
                 key alias:secret/*\n  \
                 no token, access key or certificate of the project has this name, whose own actions would count\n"
            ),
        ),
    ] {
        let config = site.name("kmsgate.toml");
        let command = ["policy", "explain", "--config", &config];
        let output = run([&command[..], arguments].concat(), b"");
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(told, expected, "{arguments:?}");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(output.stderr, b"");
    }
}

#[test]
fn explain_tells_a_denial_from_what_it_cannot_tell() {
    let site = site();
    site.write("policy.toml", RULES);
    let config = site.name("kmsgate.toml");
    let list = ["--action", "kms:cmk:list"];
    for (arguments, reason) in [
        (
            &[&list[..], &["--caller", "x"]].concat(),
            "name its --project",
        ),
        (
            &vec!["--caller", "x", "--action", "kms:cmk:lists"],
            "kms:cmk:lists",
        ),
        (
            &[&list[..], &["--caller", "x", "--key", "k"]].concat(),
            "not a key id",
        ),
    ] {
        let command = ["policy", "explain", "--config", &config];
        let output = run([&command[..], arguments].concat(), b"");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(reason) && output.stdout.is_empty(), "{told}");
    }
    site.write("policy.toml", "[[rule]]");
    let command = [
        "policy", "explain", "--config", &config, "--caller", "operator",
    ];
    let output = run([&command[..], &list].concat(), b"");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1"));
}

#[test]
fn the_rules_in_the_documentation_load() {
    let readme = include_str!("../README.md");
    let site = site();
    let mut blocks = readme.split("> policy.toml <<'EOF'\n").skip(1).peekable();
    assert!(blocks.peek().is_some());
    for block in blocks {
        let (block, _) = block.split_once("\nEOF\n").unwrap();
        site.write("policy.toml", block);
        let rules = Rules::load(&site.path("policy.toml"));
        assert!(rules.is_ok(), "{rules:?}: {block}");
    }
}

#[test]
fn a_decision_allocates_nothing() {
    let site = site();
    let mut rules = RULES.to_owned();
    for (number, keys) in [KEY, "alias:shop/*", "alias:s*", "alias:shop/orders"]
        .iter()
        .enumerate()
    {
        for (kind, projects) in [
            ("any", String::new()),
            ("one", format!("projects = ['{PROJECT}']")),
        ] {
            rules += &format!(
                "[[rule]]\nname = 'more-{kind}-{number}'\neffect = 'allow'\ncallers = ['o*', '*']\n\
                 roles = ['auditor']\nactions = ['kms:cmk:encryptData']\nkeys = ['{keys}']\n{projects}\n"
            );
        }
    }
    site.write("policy.toml", &rules);
    let policy = Policy::load(&site.path("policy.toml")).unwrap();
    let caller = Caller {
        name: "operator".into(),
        project: PROJECT.parse().unwrap(),
        roles: ["auditor".into(), "another".into()].into(),
        actions: Actions::default(),
    };
    let alias = "shop/orders".parse().unwrap();
    let key = Key {
        id: Some(KEY.parse().unwrap()),
        alias: Some(&alias),
    };
    let decide = || {
        let verdict = policy.decide(&caller, Action::EncryptData.into(), key);
        assert_eq!(verdict, Verdict::Allowed);
    };
    // What a thread does once, it does here.
    decide();
    assert_eq!(allocation_counter::measure(decide).count_total, 0);
}

/// A site whose configuration names `policy.toml`.
fn site() -> Site {
    let site = Site::new("");
    let policy = format!("policy_file = {:?}\n", site.name("policy.toml"));
    site.write("kmsgate.toml", &(site.config("root.key") + &policy));
    site
}
