//! How long a decision takes, by how many rules there are.
//!
//! `cargo bench --bench policy`. A "usual" caller has a rule of its own, and some deny everyone some
//! keys. An "entangled" one is named exactly, by two prefixes and by two roles, in its project and in any;
//! of each of these ten, allows name the key's id, its alias and three prefixes of that, and denies name
//! other keys, so that nothing can be passed over. Callers and keys change from one decision to the next,
//! so that a decision does not find everything in the nearest cache.

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kmsgate::auth::policy::{Key, Operation, Policy, Verdict};
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::key::{KeyAlias, KeyId};

criterion_group!(benches, decide);
criterion_main!(benches);

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for rules in [10, 1_000, 10_000] {
        let usual = policy(&usual_rules(rules));
        let asked: Vec<Asked> = (0..rules.min(1_000))
            .map(|number| usual_caller(rules, number))
            .collect();
        measure(&mut group, BenchmarkId::new("usual", rules), &usual, &asked);
    }
    for rules in [1_000, 10_000] {
        let entangled = policy(&entangled_rules(rules));
        let asked: Vec<Asked> = (0..rules / 100).map(entangled_caller).collect();
        measure(
            &mut group,
            BenchmarkId::new("entangled", rules),
            &entangled,
            &asked,
        );
    }
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn measure(group: &mut Group<'_>, name: BenchmarkId, policy: &Policy, asked: &[Asked]) {
    for asked in asked {
        assert_eq!(asked.decide(policy), Verdict::Allowed);
    }
    let mut next = asked.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.iter(|| next.next().map(|asked| asked.decide(black_box(policy))));
    });
}

/// Something to decide.
struct Asked {
    caller: Caller,
    id: KeyId,
    alias: KeyAlias,
}

impl Asked {
    fn decide(&self, policy: &Policy) -> Verdict {
        let key = Key {
            id: Some(self.id),
            alias: Some(&self.alias),
        };
        policy.decide(&self.caller, Operation::from(Action::EncryptData), key)
    }
}

/// Rules of which each caller, and each role, has one; and each tenth is a deny for everyone.
fn usual_rules(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        let (effect, who, keys) = match number % 10 {
            0..=3 => (
                "allow",
                format!("callers = ['job-{number}']"),
                format!("alias:team-{number}/*"),
            ),
            4..=6 => (
                "allow",
                format!("callers = ['job-{number}-*']"),
                id(number).to_string(),
            ),
            7..=8 => (
                "allow",
                format!("roles = ['role-{number}']"),
                format!("alias:team-{number}/*"),
            ),
            _ => (
                "deny",
                "callers = ['*']".to_owned(),
                format!("alias:secret-{number}/*"),
            ),
        };
        rule(
            &mut text,
            number,
            effect,
            &who,
            &format!("keys = ['{keys}']"),
        );
    }
    text
}

/// A caller whom rule `number`, or the one before a deny, lets do it.
fn usual_caller(count: usize, number: usize) -> Asked {
    // Spread over the rules, and over their kinds.
    let number = number * 7 % count;
    let number = if number % 10 == 9 { number - 1 } else { number };
    let (name, role) = match number % 10 {
        0..=3 => (format!("job-{number}"), "none".to_owned()),
        4..=6 => (format!("job-{number}-a"), "none".to_owned()),
        _ => ("somebody".to_owned(), format!("role-{number}")),
    };
    asked(
        &name,
        &[role, "staff".to_owned()],
        number,
        &format!("team-{number}/orders"),
    )
}

const PARTS: [&str; 2] = ["shop-", "billing-"];

/// A key that no caller asks for.
const NO_KEY: usize = 999_999;

/// Rules that all concern each of a few callers: a hundred rules for each.
fn entangled_rules(count: usize) -> String {
    let mut text = String::new();
    let mut number = 0;
    for group in 0..count / 100 {
        let name = format!("{}{group}", PARTS.concat());
        let mut who = vec![format!("callers = ['{name}']")];
        for length in 1..=PARTS.len() {
            who.push(format!("callers = ['{}*']", PARTS[..length].concat()));
        }
        who.extend((0..2).map(|role| format!("roles = ['role-{group}-{role}']")));
        let mut keys = vec![id(group).to_string(), format!("alias:a/b/{group}")];
        keys.extend(["a/", "a/b/", ""].map(|prefix| format!("alias:{prefix}*")));
        let before = number;
        for who in &who {
            for project in ["", "projects = ['project']\n"] {
                let mut add = |effect, keys: &str| {
                    let more = format!("{project}keys = [{keys}]");
                    rule(&mut text, number, effect, who, &more);
                    number += 1;
                };
                keys.iter()
                    .for_each(|key| add("allow", &format!("'{key}'")));
                add("deny", &format!("'{}', 'alias:secret/*'", id(NO_KEY)));
            }
        }
        let inside = number - before;
        for _ in inside..100 {
            let deny = format!("keys = ['alias:secret-{number}/*']");
            rule(&mut text, number, "deny", "callers = ['*']", &deny);
            number += 1;
        }
    }
    text
}

fn entangled_caller(group: usize) -> Asked {
    let roles: Vec<String> = (0..2).map(|role| format!("role-{group}-{role}")).collect();
    asked(
        &format!("{}{group}", PARTS.concat()),
        &roles,
        group,
        &format!("a/b/{group}"),
    )
}

fn asked(name: &str, roles: &[String], number: usize, alias: &str) -> Asked {
    Asked {
        caller: Caller {
            name: name.into(),
            project: "project".parse().unwrap(),
            roles: roles.iter().map(|role| Arc::from(role.as_str())).collect(),
            actions: Actions::default(),
        },
        id: id(number),
        alias: alias.parse().unwrap(),
    }
}

fn id(number: usize) -> KeyId {
    format!("00000000-0000-4000-8000-{number:012}")
        .parse()
        .unwrap()
}

fn rule(text: &mut String, number: usize, effect: &str, who: &str, more: &str) {
    writeln!(
        text,
        "[[rule]]\nname = 'rule-{number}'\neffect = '{effect}'\n{who}\n\
         actions = ['kms:cmk:encryptData', 'kms:cmk:decryptData']\n{more}"
    )
    .unwrap();
}

fn policy(rules: &str) -> Policy {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, rules.as_bytes()).unwrap();
    Policy::load(file.path()).unwrap()
}
