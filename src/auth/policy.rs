//! What a caller may do, with which keys.
//!
//! Default is deny. A caller may do something if its credential names the action or a rule of the
//! policy file allows it, and no rule denies it: one deny counts more than any number of allows. The
//! file is read again when it changes; a bad one leaves the last good rules in use.
//!
//! ```toml
//! [[rule]]
//! name = "billing-encrypts"                   # told by `kmsgate policy explain`; unique
//! effect = "allow"                            # or "deny"
//! callers = ["billing", "billing-*"]          # names of callers; a final * stands for any rest
//! roles = ["billing-jobs"]                    # callers, roles, or both
//! projects = ["53d1aefc533f4ce9a59c26b01667cbcf"]     # if left out, any
//! actions = ["kms:cmk:encryptData"]           # a final * stands for any rest
//! keys = ["alias:billing/*", "0d0466b0-e727-4d9c-b35d-f84bb474a37f"]  # if left out, any
//! algorithms = ["SYMMETRIC_DEFAULT"]          # if left out, any
//! ```
//!
//! A rule is about a request that fits every one of its lists, and fits a list with any one entry.
//! What there is of a key when its action is decided says which entries of `keys` can fit:
//! everything of a key that exists, the alias alone of one that is to be made, and nothing for
//! what is about no key, as ListKeys and ConfirmClock are.
//!
//! [`Rules`] are the file as it stands, to explain a decision; a server decides with an index of
//! them, which says the same.

use std::path::Path;
use std::sync::Arc;

use crate::auth::file::{FileError, Refresh, Secrecy, Watched};
use crate::auth::policy::index::Index;
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::caller::{Action, Caller};
use crate::domain::key::{KeyAlias, KeyId};

mod index;
mod rule;

pub use rule::{Effect, Rule};

/// Decides what callers may do.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// None if there is no policy file.
    rules: Option<Arc<Watched<Index>>>,
}

impl Policy {
    /// Reads the rules of a policy file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let index = |text: &str| rule::parse(text).map(|rules| Index::new(&rules));
        let rules = Watched::load(path, Secrecy::Public, index)?;
        Ok(Self {
            rules: Some(Arc::new(rules)),
        })
    }

    /// The policy file; none if there is none.
    pub fn file(&self) -> Option<Arc<dyn Refresh>> {
        let rules = self.rules.as_ref()?;
        Some(Arc::<Watched<Index>>::clone(rules))
    }

    /// Whether `caller` may do this with this key. Takes no lock and allocates nothing.
    pub fn decide(&self, caller: &Caller, operation: Operation, key: Key<'_>) -> Verdict {
        match &self.rules {
            Some(rules) => rules.current().decide(caller, operation, key),
            None if caller.actions.contains(operation.action) => Verdict::Allowed,
            None => Verdict::Denied,
        }
    }
}

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The action.
    pub action: Action,
    /// By which algorithm data is encrypted or decrypted; says nothing for other actions.
    pub algorithm: EncryptionAlgorithm,
}

impl From<Action> for Operation {
    /// The action, with the algorithm that the calls take if none is named.
    fn from(action: Action) -> Self {
        Self {
            action,
            algorithm: EncryptionAlgorithm::SymmetricDefault,
        }
    }
}

/// What is known of the key that an operation is for. A key that is to be made has no id yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Key<'a> {
    /// Its id.
    pub id: Option<KeyId>,
    /// Its alias.
    pub alias: Option<&'a KeyAlias>,
}

/// What the rules say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The caller may, whatever else becomes known of the key.
    Allowed,
    /// The caller may not, whatever else becomes known of the key.
    Denied,
    /// It depends on what is not known of the key.
    Depends,
}

impl Verdict {
    /// What follows from how far some allow, and some deny, fits.
    fn of(allow: Fit, deny: Fit) -> Self {
        match (allow, deny) {
            (_, Fit::Yes) | (Fit::No, _) => Self::Denied,
            (Fit::Yes, Fit::No) => Self::Allowed,
            (Fit::Yes | Fit::Open, _) => Self::Depends,
        }
    }
}

/// Whether something fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It does not.
    No,
    /// That depends on what is not known of the key.
    Open,
    /// It does.
    Yes,
}

/// The rules of a policy file, to say why.
#[derive(Clone, Debug, Default)]
pub struct Rules(Arc<Vec<Rule>>);

impl Rules {
    /// Reads the rules of a policy file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let file = Watched::load(path, Secrecy::Public, rule::parse)?;
        Ok(Self(Arc::clone(&file.current())))
    }

    /// What [`Policy::decide`] says, and why: found by looking at each rule.
    pub fn explain(&self, caller: &Caller, operation: Operation, key: Key<'_>) -> Explanation<'_> {
        let own = caller.actions.contains(operation.action);
        let mut allow = if own { Fit::Yes } else { Fit::No };
        let mut deny = Fit::No;
        let mut fitting = Vec::new();
        for rule in self.0.iter() {
            let fit = rule.fit(caller, operation, key);
            match rule.effect() {
                Effect::Allow => allow = allow.max(fit),
                Effect::Deny => deny = deny.max(fit),
            }
            if fit != Fit::No {
                fitting.push((rule, fit));
            }
        }
        let verdict = Verdict::of(allow, deny);
        // An allow says nothing where a deny decides, nor one that may fit where another does.
        let decides = |rule: &Rule, fit: Fit| match (verdict, rule.effect()) {
            (Verdict::Denied, effect) => effect == Effect::Deny && fit == Fit::Yes,
            (Verdict::Allowed, effect) => effect == Effect::Allow && fit == Fit::Yes,
            (Verdict::Depends, Effect::Allow) => fit == allow,
            (Verdict::Depends, Effect::Deny) => true,
        };
        fitting.retain(|(rule, fit)| decides(rule, *fit));
        Explanation {
            verdict,
            own,
            rules: fitting,
        }
    }
}

/// A decision and its reasons.
#[derive(Clone, Debug)]
pub struct Explanation<'a> {
    /// The decision.
    pub verdict: Verdict,
    /// Whether the caller's credential names the action.
    pub own: bool,
    /// The rules that decide, in the order of the file, and whether each fits for certain.
    pub rules: Vec<(&'a Rule, Fit)>,
}

/// The caller is known and may not do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not allowed")]
pub struct Denied;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};
    use tempfile::TempDir;

    use super::*;
    use crate::domain::caller::Actions;

    const ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";
    const OTHER: &str = "00000000-0000-4000-8000-00000000dead";
    const ENCRYPT: &str = "actions = ['kms:cmk:encryptData']";

    #[test]
    fn without_a_file_a_caller_may_do_what_its_credential_names() {
        let caller = caller("c", &[], "p", &[Action::EncryptData]);
        let policy = Policy::default();
        let decide = |action: Action| policy.decide(&caller, action.into(), Key::default());
        assert_eq!(decide(Action::EncryptData), Verdict::Allowed);
        assert_eq!(decide(Action::DecryptData), Verdict::Denied);
        assert!(policy.file().is_none());
    }

    #[test]
    fn nothing_is_allowed_unless_a_rule_or_the_credential_allows_it() {
        let rules = Case::of(&[&format!("effect = 'allow'\ncallers = ['c']\n{ENCRYPT}")]);
        let encrypt = Action::EncryptData;
        rules.expect(Verdict::Allowed, &caller("c", &[], "p", &[]), encrypt);
        rules.expect(Verdict::Denied, &caller("d", &[], "p", &[]), encrypt);
        rules.expect(
            Verdict::Allowed,
            &caller("d", &[], "p", &[encrypt]),
            encrypt,
        );
        let decrypt = Action::DecryptData;
        rules.expect(Verdict::Denied, &caller("c", &[], "p", &[]), decrypt);
        Case::of(&[]).expect(Verdict::Denied, &caller("c", &[], "p", &[]), encrypt);
    }

    #[test]
    fn a_deny_counts_more_than_every_allow() {
        let allow = format!("effect = 'allow'\ncallers = ['*']\n{ENCRYPT}");
        let deny = format!("effect = 'deny'\nroles = ['guest']\n{ENCRYPT}");
        let own = [Action::EncryptData];
        for rules in [[&*allow, &*deny], [&*deny, &*allow]] {
            let rules = Case::of(&rules);
            for own in [&own[..], &[]] {
                let guest = caller("c", &["staff", "guest"], "p", own);
                rules.expect(Verdict::Denied, &guest, Action::EncryptData);
                let staff = caller("c", &["staff"], "p", own);
                rules.expect(Verdict::Allowed, &staff, Action::EncryptData);
            }
        }
    }

    #[test]
    fn a_caller_is_named_exactly_or_by_what_its_name_begins_with() {
        for (pattern, fits, others) in [
            ("bill", &["bill"][..], &["billing", "bil", "Bill"][..]),
            ("bill*", &["bill", "billing"], &["bil", "abill"]),
            ("*", &["bill", "x"], &[]),
        ] {
            let rule = format!("effect = 'allow'\ncallers = ['{pattern}']\n{ENCRYPT}");
            let rules = Case::of(&[&rule]);
            for (names, verdict) in [(fits, Verdict::Allowed), (others, Verdict::Denied)] {
                for name in names {
                    let caller = caller(name, &[], "p", &[]);
                    rules.expect(verdict, &caller, Action::EncryptData);
                }
            }
        }
    }

    #[test]
    fn a_role_is_not_a_caller_and_a_caller_is_no_role() {
        let rules = Case::of(&[
            &format!("effect = 'allow'\nroles = ['a']\n{ENCRYPT}"),
            "effect = 'allow'\ncallers = ['b']\nactions = ['kms:cmk:get']",
        ]);
        let (role_a, called_a) = (caller("x", &["a"], "p", &[]), caller("a", &[], "p", &[]));
        rules.expect(Verdict::Allowed, &role_a, Action::EncryptData);
        rules.expect(Verdict::Denied, &called_a, Action::EncryptData);
        let role_b = caller("x", &["b"], "p", &[]);
        rules.expect(Verdict::Denied, &role_b, Action::DescribeKey);
    }

    #[test]
    fn a_rule_may_be_for_some_projects() {
        let rule = format!("effect = 'allow'\ncallers = ['*']\nprojects = ['p', 'q']\n{ENCRYPT}");
        let rules = Case::of(&[&rule]);
        for (project, verdict) in [
            ("p", Verdict::Allowed),
            ("q", Verdict::Allowed),
            ("pq", Verdict::Denied),
        ] {
            let caller = caller("c", &[], project, &[]);
            rules.expect(verdict, &caller, Action::EncryptData);
        }
    }

    #[test]
    fn a_key_is_named_by_its_id_or_by_its_alias() {
        let rule =
            |keys: &str| format!("effect = 'allow'\ncallers = ['c']\n{ENCRYPT}\nkeys = {keys}");
        let caller = caller("c", &[], "p", &[]);
        for (keys, id, alias, verdict) in [
            (&*format!("['{ID}']"), Some(ID), None, Verdict::Allowed),
            (&format!("['{ID}']"), Some(OTHER), None, Verdict::Denied),
            (&format!("['{ID}']"), None, Some("a"), Verdict::Depends),
            ("['alias:a']", Some(ID), Some("a"), Verdict::Allowed),
            ("['alias:a']", Some(ID), Some("ab"), Verdict::Denied),
            ("['alias:a']", Some(ID), None, Verdict::Depends),
            ("['alias:a*']", Some(ID), Some("ab"), Verdict::Allowed),
            (
                "['alias:a/*', 'alias:*']",
                Some(ID),
                Some("b"),
                Verdict::Allowed,
            ),
            ("['alias:a/*']", Some(ID), Some("a"), Verdict::Denied),
        ] {
            let rules = Case::of(&[&rule(keys)]);
            let key = key(id, alias);
            rules.expect_with(verdict, &caller, Action::EncryptData.into(), &key);
        }
    }

    #[test]
    fn a_denied_alias_leaves_open_whether_a_key_may_be_used() {
        let rules = Case::of(&[
            &format!("effect = 'deny'\ncallers = ['*']\n{ENCRYPT}\nkeys = ['alias:prod/*']"),
            &format!("effect = 'deny'\ncallers = ['*']\n{ENCRYPT}\nkeys = ['{OTHER}']"),
        ]);
        let caller = caller("c", &[], "p", &[Action::EncryptData, Action::DecryptData]);
        let encrypt = Action::EncryptData.into();
        for (id, alias, verdict) in [
            (Some(ID), None, Verdict::Depends),
            (Some(ID), Some("prod/a"), Verdict::Denied),
            (Some(ID), Some("test/a"), Verdict::Allowed),
            (Some(OTHER), None, Verdict::Denied),
            (None, None, Verdict::Depends),
        ] {
            rules.expect_with(verdict, &caller, encrypt, &key(id, alias));
        }
        // The rules are about another action.
        let decrypt = Action::DecryptData.into();
        rules.expect_with(Verdict::Allowed, &caller, decrypt, &key(Some(ID), None));
    }

    #[test]
    fn rules_with_keys_are_not_about_what_has_no_key() {
        let rules = Case::of(&[
            &format!(
                "effect = 'deny'\ncallers = ['*']\nactions = ['kms:*']\nkeys = ['{ID}', 'alias:*']"
            ),
            &format!(
                "effect = 'allow'\ncallers = ['x']\nactions = ['kms:*']\nkeys = ['{ID}', 'alias:*']"
            ),
        ]);
        let own = caller("c", &[], "p", Action::ALL);
        for action in [
            Action::ListKeys,
            Action::ConfirmClock,
            Action::RotateRootKey,
            Action::BackUpStore,
        ] {
            rules.expect(Verdict::Allowed, &own, action);
            rules.expect(Verdict::Denied, &caller("x", &[], "p", &[]), action);
        }
        // A key that is to be made has an alias and no id.
        let rules = Case::of(&[
            &format!("effect = 'deny'\ncallers = ['*']\nactions = ['kms:*']\nkeys = ['{ID}']"),
            "effect = 'deny'\ncallers = ['*']\nactions = ['kms:cmk:*']\nkeys = ['alias:prod/*']",
        ]);
        for (alias, verdict) in [("prod/a", Verdict::Denied), ("a", Verdict::Allowed)] {
            let create = Action::CreateKey.into();
            rules.expect_with(verdict, &own, create, &key(None, Some(alias)));
        }
    }

    #[test]
    fn a_rule_may_be_for_some_algorithms() {
        let rule = "effect = 'deny'\ncallers = ['*']\nactions = ['kms:cmk:encryptData', 'kms:cmk:decryptData']\nalgorithms = ['RSAES_OAEP_SHA_256', 'SM2_ENCRYPT']";
        let rules = Case::of(&[rule]);
        let own = caller("c", &[], "p", Action::ALL);
        for &algorithm in EncryptionAlgorithm::ALL {
            let verdict = if algorithm.is_symmetric() {
                Verdict::Allowed
            } else {
                Verdict::Denied
            };
            for action in [Action::EncryptData, Action::DecryptData] {
                let operation = Operation { action, algorithm };
                rules.expect_with(verdict, &own, operation, &key(Some(ID), Some("a")));
            }
        }
        rules.expect(Verdict::Allowed, &own, Action::DescribeKey);
    }

    #[test]
    fn an_explanation_names_the_rules_that_decide_and_what_of_them_fits() {
        let rules = Case::of(&[
            &format!(
                "effect = 'allow'\ncallers = ['x', 'c*']\nprojects = ['p']\n{ENCRYPT}\nkeys = ['alias:b', 'alias:a/*']\nalgorithms = ['SYMMETRIC_DEFAULT']"
            ),
            &format!("effect = 'deny'\nroles = ['guest']\n{ENCRYPT}\nkeys = ['alias:a/secret']"),
            &format!("effect = 'allow'\nroles = ['guest']\n{ENCRYPT}"),
        ]);
        let rules = Rules(Arc::new(rules.rules));
        let encrypt = Action::EncryptData.into();
        let told = |caller: &Caller, alias: Option<&str>| {
            let (id, alias) = key(Some(ID), alias);
            let key = Key {
                id,
                alias: alias.as_ref(),
            };
            let explanation = rules.explain(caller, encrypt, key);
            let rules = explanation.rules.iter();
            let rules = rules.map(|(rule, fit)| {
                let reasons = rule.reasons(caller, encrypt, key).join(", ");
                format!("{} {fit:?}: {reasons}", rule.name())
            });
            (explanation.verdict, rules.collect::<Vec<_>>())
        };
        let plain = caller("c7", &[], "p", &[]);
        let first = "caller c*, project p, action kms:cmk:encryptData, key alias:a/*, algorithm SYMMETRIC_DEFAULT";
        let expected = vec![format!("rule-0 Yes: {first}")];
        assert_eq!(told(&plain, Some("a/1")), (Verdict::Allowed, expected));
        assert_eq!(told(&plain, Some("c")), (Verdict::Denied, vec![]));
        let guest = caller("d", &["guest"], "p", &[]);
        let deny = "role guest, action kms:cmk:encryptData, key alias:a/secret";
        let expected = vec![format!("rule-1 Yes: {deny}")];
        assert_eq!(told(&guest, Some("a/secret")), (Verdict::Denied, expected));
        let expected = vec![
            format!("rule-1 Open: {deny}"),
            "rule-2 Yes: role guest, action kms:cmk:encryptData".to_owned(),
        ];
        assert_eq!(told(&guest, None), (Verdict::Depends, expected));
    }

    #[test]
    fn a_bad_file_keeps_the_old_rules() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("policy.toml");
        let write = |text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, PermissionsExt::from_mode(0o644)).unwrap();
            fs::rename(new, &path).unwrap();
        };
        let rule = |effect: &str| {
            format!("[[rule]]\nname = 'a'\neffect = '{effect}'\ncallers = ['c']\n{ENCRYPT}\n")
        };
        write(&rule("allow"));
        let policy = Policy::load(&path).unwrap();
        let file = policy.file().unwrap();
        assert_eq!(file.path(), path);
        let caller = caller("c", &[], "p", &[]);
        let decide = || policy.decide(&caller, Action::EncryptData.into(), Key::default());
        assert_eq!(decide(), Verdict::Allowed);

        write(&rule("permit"));
        assert!(matches!(file.refresh(), Err(FileError::Malformed(bad)) if bad.line == Some(3)));
        assert_eq!(decide(), Verdict::Allowed);
        write(&rule("deny"));
        assert!(file.refresh().unwrap());
        assert_eq!(decide(), Verdict::Denied);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(matches!(file.refresh(), Err(FileError::TooOpen(0o666))));
        assert!(matches!(
            Policy::load(&path),
            Err(FileError::TooOpen(0o666))
        ));
        assert!(matches!(Rules::load(&path), Err(FileError::TooOpen(0o666))));
    }

    /// Rules, and what a server makes of them.
    struct Case {
        rules: Vec<Rule>,
        index: Index,
    }

    impl Case {
        /// Rules with these lines, called `rule-0` and so on.
        fn of(rules: &[&str]) -> Self {
            let numbered = rules.iter().enumerate();
            let text = numbered
                .map(|(number, lines)| format!("[[rule]]\nname = 'rule-{number}'\n{lines}\n"));
            let rules = rule::parse(&text.collect::<String>()).unwrap();
            let index = Index::new(&rules);
            Self { rules, index }
        }

        fn expect(&self, verdict: Verdict, caller: &Caller, action: Action) {
            self.expect_with(verdict, caller, action.into(), &key(Some(ID), Some("a")));
        }

        fn expect_with(
            &self,
            verdict: Verdict,
            caller: &Caller,
            operation: Operation,
            (id, alias): &(Option<KeyId>, Option<KeyAlias>),
        ) {
            let key = Key {
                id: *id,
                alias: alias.as_ref(),
            };
            let decided = self.index.decide(caller, operation, key);
            assert_eq!(decided, verdict, "{caller:?} {operation:?} {key:?}");
            let rules = Rules(Arc::new(self.rules.clone()));
            let explained = rules.explain(caller, operation, key);
            assert_eq!(
                explained.verdict, verdict,
                "{caller:?} {operation:?} {key:?}"
            );
        }
    }

    fn caller(name: &str, roles: &[&str], project: &str, own: &[Action]) -> Caller {
        Caller {
            name: name.into(),
            project: project.parse().unwrap(),
            roles: roles.iter().map(|role| Arc::from(*role)).collect(),
            actions: own.iter().copied().collect(),
        }
    }

    fn key(id: Option<&str>, alias: Option<&str>) -> (Option<KeyId>, Option<KeyAlias>) {
        let id = id.map(|id| id.parse().unwrap());
        (id, alias.map(|alias| alias.parse().unwrap()))
    }

    /// Names of which many begin as others do.
    const NAMES: &[&str] = &["a", "a/", "a/b", "a/b/c", "ab", "b", "b/a"];

    fn names() -> impl Strategy<Value = String> {
        let short = prop_oneof![select(NAMES).prop_map(str::to_owned), "[ab/]{1,4}"];
        // Some begin alike for longer than the eight bytes by which the index finds most.
        (prop::bool::ANY, short).prop_map(|(long, name)| {
            let head = if long { "begins-alike/" } else { "" };
            head.to_owned() + &name
        })
    }

    fn patterns() -> impl Strategy<Value = String> {
        prop_oneof![
            names(),
            names().prop_map(|name| name + "*"),
            Just("*".to_owned())
        ]
    }

    fn ids() -> impl Strategy<Value = String> {
        (0..4).prop_map(|number| format!("00000000-0000-4000-8000-00000000000{number}"))
    }

    prop_compose! {
        /// The lines of a rule that can decide something.
        fn lines()(
            effect in select(&["allow", "deny"][..]),
            callers in proptest::collection::vec(patterns(), 0..3),
            roles in subsequence(vec!["q", "r", "s"], 0..3),
            projects in subsequence(vec!["p", "q"], 0..2),
            actions in subsequence(Action::ALL.to_vec(), 1..5),
            keys in proptest::collection::vec(
                prop_oneof![ids(), patterns().prop_map(|alias| format!("alias:{alias}"))],
                0..4,
            ),
            algorithms in subsequence(vec!["SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_256", "SM2_ENCRYPT"], 0..3),
        ) -> String {
            let mut lines = format!("effect = '{effect}'\n");
            let data = Actions::from_iter([Action::EncryptData, Action::DecryptData]);
            let actions: Vec<Action> = if algorithms.is_empty() {
                actions
            } else {
                actions.into_iter().filter(|action| data.contains(*action)).collect()
            };
            let actions: Vec<&str> = actions.into_iter().map(Action::name).collect();
            let actions = if actions.is_empty() { vec!["kms:cmk:encryptData"] } else { actions };
            lines += &format!("actions = {actions:?}\n");
            let callers = if callers.is_empty() && roles.is_empty() { vec!["*".to_owned()] } else { callers };
            for (name, listed) in [
                ("callers", callers),
                ("roles", roles.into_iter().map(str::to_owned).collect()),
                ("projects", projects.into_iter().map(str::to_owned).collect()),
                ("keys", keys),
                ("algorithms", algorithms.into_iter().map(str::to_owned).collect()),
            ] {
                if !listed.is_empty() {
                    lines += &format!("{name} = {listed:?}\n");
                }
            }
            lines
        }
    }

    prop_compose! {
        fn requests()(
            name in names(),
            roles in subsequence(vec!["q", "r", "s"], 0..3),
            project in select(&["p", "q", "r"][..]),
            own in subsequence(Action::ALL.to_vec(), 0..4),
            action in select(Action::ALL),
            algorithm in select(EncryptionAlgorithm::ALL),
            id in proptest::option::of(ids()),
            alias in proptest::option::of(names()),
        ) -> (Caller, Operation, (Option<KeyId>, Option<KeyAlias>)) {
            let key = key(id.as_deref(), alias.as_deref());
            (caller(&name, &roles, project, &own), Operation { action, algorithm }, key)
        }
    }

    proptest! {
        #[test]
        fn the_index_decides_as_the_rules_do_one_by_one(
            lines in proptest::collection::vec(lines(), 0..12),
            requests in proptest::collection::vec(requests(), 1..50),
        ) {
            // Rules that no request can fit are refused; the others stand alone as they do together.
            let single = |lines: &&String| rule::parse(&format!("[[rule]]\nname = 'r'\n{lines}")).is_ok();
            let lines: Vec<&str> = lines.iter().filter(single).map(String::as_str).collect();
            let case = Case::of(&lines);
            let rules = Rules(Arc::new(case.rules.clone()));
            for (caller, operation, (id, alias)) in &requests {
                let key = Key { id: *id, alias: alias.as_ref() };
                let decided = case.index.decide(caller, *operation, key);
                let explained = rules.explain(caller, *operation, key).verdict;
                prop_assert_eq!(decided, explained, "{:?} {:?} {:?} {:?}", lines, caller, operation, key);
            }
        }

        #[test]
        fn what_becomes_known_of_a_key_changes_no_verdict_but_an_open_one(
            lines in proptest::collection::vec(lines(), 0..12),
            (caller, operation, (id, alias)) in requests(),
            (other_id, other_alias) in (ids(), names()),
        ) {
            let single = |lines: &&String| rule::parse(&format!("[[rule]]\nname = 'r'\n{lines}")).is_ok();
            let lines: Vec<&str> = lines.iter().filter(single).map(String::as_str).collect();
            let index = Case::of(&lines).index;
            let before = index.decide(&caller, operation, Key { id, alias: alias.as_ref() });
            let more = key(Some(&other_id), Some(&other_alias));
            let (id, alias) = (id.or(more.0), alias.or(more.1));
            let after = index.decide(&caller, operation, Key { id, alias: alias.as_ref() });
            prop_assert_ne!(after, Verdict::Depends);
            if before != Verdict::Depends {
                prop_assert_eq!(after, before);
            }
        }
    }
}
