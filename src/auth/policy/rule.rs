//! The rules of a policy file, as they stand there.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

use crate::auth::entry;
use crate::auth::file::Malformed;
use crate::auth::policy::{Fit, Key, Operation};
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::caller::{Action, Actions, Caller};
use crate::domain::key::{KeyAlias, KeyId, ProjectId};

/// The most rules of a file.
const MAX_RULES: usize = 20_000;

/// The most combinations of a caller or role, a project and a key that the rules of a file may name:
/// the index has an entry for each, of some hundreds of bytes.
const MAX_COMBINATIONS: usize = 1_000_000;

/// The most characters of a caller's name.
const MAX_CALLER: usize = 2048;

/// One rule: what it does, and the requests that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub(super) name: Box<str>,
    pub(super) effect: Effect,
    pub(super) who: Vec<Who>,
    /// None for any.
    pub(super) projects: Option<Vec<ProjectId>>,
    pub(super) actions: Actions,
    /// None for any, and for what is about no key.
    pub(super) keys: Option<Vec<KeyPattern>>,
    /// None for any.
    pub(super) algorithms: Option<Vec<EncryptionAlgorithm>>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies.
    Deny,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// Callers whose name fits.
    Caller(Pattern),
    /// Callers that have this role.
    Role(Box<str>),
}

/// Which key a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum KeyPattern {
    /// The key with this id.
    Id(KeyId),
    /// Keys whose alias fits.
    Alias(Pattern),
}

/// A text, or what texts begin with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pattern {
    /// This text.
    Exact(Box<str>),
    /// Texts that begin so.
    Prefix(Box<str>),
}

impl Rule {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it does.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// Whether the rule is about this request.
    pub fn fit(&self, caller: &Caller, operation: Operation, key: Key<'_>) -> Fit {
        let project = self.projects.as_ref();
        let fits = self.who.iter().any(|who| who.fits(caller))
            && project.is_none_or(|listed| listed.contains(&caller.project))
            && self.covers(operation);
        match &self.keys {
            _ if !fits => Fit::No,
            None => Fit::Yes,
            Some(keys) => {
                let keys = keys.iter().filter(|keys| keys.concern(operation.action));
                keys.map(|keys| keys.fit(key)).max().unwrap_or(Fit::No)
            }
        }
    }

    /// Which entries of the rule fit a request that the rule is about, one of each list.
    pub fn reasons(&self, caller: &Caller, operation: Operation, key: Key<'_>) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(who) = self.who.iter().find(|who| who.fits(caller)) {
            reasons.push(who.to_string());
        }
        if self.projects.is_some() {
            reasons.push(format!("project {}", caller.project));
        }
        reasons.push(format!("action {}", operation.action.name()));
        let keys = self.keys.iter().flatten();
        let keys = keys.filter(|keys| keys.concern(operation.action));
        if let Some(best) = keys.max_by_key(|keys| keys.fit(key)) {
            reasons.push(format!("key {best}"));
        }
        if self.algorithms.is_some() {
            reasons.push(format!("algorithm {}", operation.algorithm.name()));
        }
        reasons
    }

    /// Whether the rule is about this operation, with some key.
    pub(super) fn covers(&self, operation: Operation) -> bool {
        let algorithms = self.algorithms.as_ref();
        self.actions.contains(operation.action)
            && algorithms.is_none_or(|listed| listed.contains(&operation.algorithm))
    }
}

impl Who {
    fn fits(&self, caller: &Caller) -> bool {
        match self {
            Self::Caller(pattern) => pattern.fits(&caller.name),
            Self::Role(role) => caller.roles.iter().any(|has| **has == **role),
        }
    }
}

impl KeyPattern {
    /// Whether what the pattern names of a key is there when `action` is decided.
    pub(super) fn concern(&self, action: Action) -> bool {
        match action {
            Action::ListKeys
            | Action::ConfirmClock
            | Action::RotateRootKey
            | Action::BackUpStore => false,
            Action::CreateKey => matches!(self, Self::Alias(_)),
            Action::EncryptData
            | Action::DecryptData
            | Action::DescribeKey
            | Action::EnableKey
            | Action::DisableKey
            | Action::ScheduleKeyDeletion
            | Action::CancelKeyDeletion
            | Action::GetPublicKey
            | Action::UpdateKeyAlias
            | Action::UpdateKeyDescription
            | Action::RotateOnDemand => true,
        }
    }

    fn fit(&self, key: Key<'_>) -> Fit {
        let fits = match self {
            Self::Id(id) => key.id.map(|known| known == *id),
            Self::Alias(pattern) => key.alias.map(|known| pattern.fits(known.as_str())),
        };
        match fits {
            None => Fit::Open,
            Some(false) => Fit::No,
            Some(true) => Fit::Yes,
        }
    }
}

impl Pattern {
    /// Reads a text, or a prefix with a final `*`, whose characters may be these. A `*` elsewhere is
    /// refused, because it would look like more than it does.
    fn parse(text: &str, allowed: impl Fn(u8) -> bool) -> Option<Self> {
        let (fixed, pattern): (_, fn(Box<str>) -> Self) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, Self::Prefix),
            None if text.is_empty() => return None,
            None => (text, Self::Exact),
        };
        let fits = fixed.bytes().all(|byte| byte != b'*' && allowed(byte));
        fits.then(|| pattern(fixed.into()))
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
        }
    }
}

impl FromStr for KeyPattern {
    type Err = InvalidKeyPattern;

    fn from_str(text: &str) -> Result<Self, InvalidKeyPattern> {
        let Some(alias) = text.strip_prefix("alias:") else {
            return Ok(Self::Id(text.parse().map_err(|_| InvalidKeyPattern)?));
        };
        let pattern = Pattern::parse(alias, |_| true).ok_or(InvalidKeyPattern)?;
        let some: Result<KeyAlias, _> = match &pattern {
            Pattern::Exact(exact) => exact.parse(),
            // Some alias begins so exactly if this is one.
            Pattern::Prefix(prefix) => format!("{prefix}x").parse(),
        };
        some.map_err(|_| InvalidKeyPattern)?;
        Ok(Self::Alias(pattern))
    }
}

/// The text is neither a key id nor a pattern of aliases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidKeyPattern;

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(pattern) => write!(f, "caller {pattern}"),
            Self::Role(role) => write!(f, "role {role}"),
        }
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Alias(pattern) => write!(f, "alias:{pattern}"),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Reads the rules of a policy file. What could never decide anything is refused, because whoever
/// wrote it meant something.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, Malformed> {
    let file: File = entry::parse(text)?;
    if let Some(excess) = file.rule.get(MAX_RULES) {
        let reason = "there are more than 20000 rules";
        return Err(entry::refuse(text, &excess.name, reason));
    }
    let mut names = HashSet::new();
    let mut combinations = 0_usize;
    let mut rules = Vec::with_capacity(file.rule.len());
    for listed in &file.rule {
        let rule = listed.rule(text)?;
        if !names.insert(listed.name.get_ref()) {
            return Err(entry::refuse(text, &listed.name, "the name is not unique"));
        }
        let projects = rule.projects.as_ref().map_or(1, Vec::len);
        let keys = rule.keys.as_ref().map_or(1, Vec::len);
        let more = rule.who.len().saturating_mul(projects).saturating_mul(keys);
        combinations = combinations.saturating_add(more);
        if combinations > MAX_COMBINATIONS {
            let reason = "the rules up to here name more than 1000000 combinations of callers, projects and keys";
            return Err(entry::refuse(text, &listed.name, reason));
        }
        rules.push(rule);
    }
    Ok(rules)
}

/// The file as its TOML says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: Spanned<String>,
    effect: Spanned<String>,
    callers: Option<Texts>,
    roles: Option<Texts>,
    projects: Option<Texts>,
    actions: Texts,
    keys: Option<Texts>,
    algorithms: Option<Texts>,
}

type Texts = Spanned<Vec<Spanned<String>>>;

impl Listed {
    fn rule(&self, text: &str) -> Result<Rule, Malformed> {
        let name = entry::name(text, &self.name)?;
        let effect = match self.effect.get_ref().as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            _ => {
                let reason = "effect is not allow or deny";
                return Err(entry::refuse(text, &self.effect, reason));
            }
        };
        let actions = entry::actions(text, filled(text, &self.actions)?)?;
        Ok(Rule {
            name: name.into(),
            effect,
            who: self.who(text)?,
            projects: each(text, self.projects.as_ref(), |project| {
                project.parse().map_err(
                    |_| "a project is not 1 to 64 letters, digits, hyphens and underscores",
                )
            })?,
            actions,
            keys: each(text, self.keys.as_ref(), |key| keys(key, actions))?,
            algorithms: self.algorithms(text, actions)?,
        })
    }

    fn who(&self, text: &str) -> Result<Vec<Who>, Malformed> {
        let callers = each(text, self.callers.as_ref(), |caller| {
            let fits = caller.len() <= MAX_CALLER;
            let pattern = Pattern::parse(caller, |byte| byte.is_ascii_graphic());
            // DNS names are told in lower case, so another could never fit.
            let lower =
                !caller.starts_with("dns:") || !caller.bytes().any(|c| c.is_ascii_uppercase());
            let pattern = pattern.filter(|_| fits && lower);
            pattern.map(Who::Caller).ok_or(
                "a caller is not 1 to 2048 printable characters, of which the last alone may be *, and a DNS name in lower case",
            )
        })?;
        let mut who = callers.unwrap_or_default();
        if let Some(roles) = &self.roles {
            for role in filled(text, roles)? {
                who.push(Who::Role(entry::name(text, role)?.into()));
            }
        }
        if who.is_empty() {
            return Err(entry::refuse(
                text,
                &self.name,
                "the rule names neither callers nor roles",
            ));
        }
        Ok(who)
    }

    /// The algorithms. A rule with algorithms and other actions could be read in two ways.
    fn algorithms(
        &self,
        text: &str,
        actions: Actions,
    ) -> Result<Option<Vec<EncryptionAlgorithm>>, Malformed> {
        let data = Actions::from_iter([Action::EncryptData, Action::DecryptData]);
        if let Some(listed) = &self.algorithms
            && data.union(actions) != data
        {
            let reason = "algorithms is for kms:cmk:encryptData and kms:cmk:decryptData alone";
            return Err(entry::refuse(text, listed, reason));
        }
        each(text, self.algorithms.as_ref(), |name| {
            name.parse().map_err(|_| "no such algorithm")
        })
    }
}

/// Reads one entry of `keys`, which must be able to fit with one of the actions.
fn keys(pattern: &str, actions: Actions) -> Result<KeyPattern, &'static str> {
    let pattern: KeyPattern = pattern.parse().map_err(|InvalidKeyPattern| {
        "a key is neither a key id nor alias: and an alias, whose last character alone may be *"
    })?;
    let mut named = Action::ALL.iter().filter(|one| actions.contains(**one));
    if named.any(|action| pattern.concern(*action)) {
        Ok(pattern)
    } else {
        Err("the rule's actions are not about such a key")
    }
}

/// Reads the entries of a list that may be left out.
fn each<T>(
    text: &str,
    listed: Option<&Texts>,
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Result<Option<Vec<T>>, Malformed> {
    let Some(listed) = listed else {
        return Ok(None);
    };
    let listed = filled(text, listed)?.iter();
    let read =
        listed.map(|one| read(one.get_ref()).map_err(|reason| entry::refuse(text, one, reason)));
    read.collect::<Result<_, _>>().map(Some)
}

/// The entries of a list. An empty one is refused: it could mean none, or any.
fn filled<'a>(text: &str, listed: &'a Texts) -> Result<&'a [Spanned<String>], Malformed> {
    if listed.get_ref().is_empty() {
        return Err(entry::refuse(text, listed, "the list is empty"));
    }
    Ok(listed.get_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_what_it_says() {
        let rules = parse(
            r#"
            [[rule]]
            name = "all"
            effect = "deny"
            callers = ["spiffe://example.org/ns/shop/*", "*"]
            roles = ["on-call"]
            projects = ["p", "q"]
            actions = ["kms:cmk:encryptData", "kms:cmk:decrypt*"]
            keys = ["0d0466b0-e727-4d9c-b35d-f84bb474a37f", "alias:a", "alias:a/*", "alias:*"]
            algorithms = ["SM2_ENCRYPT"]
            [[rule]]
            name = "least"
            effect = "allow"
            callers = ["a"]
            actions = ["kms:*"]
            "#,
        );
        let rules = rules.unwrap();
        let shown = |who: &[Who]| who.iter().map(Who::to_string).collect::<Vec<_>>();
        let all = &rules[0];
        assert_eq!((all.name(), all.effect()), ("all", Effect::Deny));
        assert_eq!(
            shown(&all.who),
            [
                "caller spiffe://example.org/ns/shop/*",
                "caller *",
                "role on-call"
            ]
        );
        assert_eq!(all.projects.as_ref().map(Vec::len), Some(2));
        let keys = all.keys.iter().flatten().map(KeyPattern::to_string);
        assert_eq!(
            keys.collect::<Vec<_>>(),
            [
                "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
                "alias:a",
                "alias:a/*",
                "alias:*"
            ]
        );
        assert!(all.actions.contains(Action::DecryptData));
        assert_eq!(all.algorithms, Some(vec![EncryptionAlgorithm::Sm2Encrypt]));
        let least = &rules[1];
        assert_eq!((least.name(), least.effect()), ("least", Effect::Allow));
        assert_eq!((&least.projects, &least.keys), (&None, &None));
        assert_eq!(least.algorithms, None);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_no_text_of_the_file() {
        let good = "[[rule]]\nname = \"a\"\neffect = \"allow\"\ncallers = [\"c\"]\nroles = [\"r\"]\n\
                    projects = [\"p\"]\nactions = [\"kms:cmk:encryptData\"]\nkeys = [\"alias:k\"]\n\
                    algorithms = [\"SM2_ENCRYPT\"]\n";
        assert_eq!(parse(good).unwrap().len(), 1);
        assert_eq!(parse("").unwrap(), []);
        let caller = parse(&good.replace("\"c\"", "\"dns:Backup.svc\"")).unwrap_err();
        assert!(caller.to_string().contains("in lower case"), "{caller}");
        let id = "00000000-0000-4000-8000-000000000001";
        for (from, to, reason) in [
            ("[[rule]]", "[[rules]]", "line 1: a key is unknown"),
            ("\"a\"", "\"a", "line 2: the text is not TOML"),
            ("\"a\"", "\"a b\"", "line 2: name is not"),
            ("\"allow\"", "\"Allow\"", "line 3: effect is not"),
            ("callers", "caller", "line 4: a key is unknown"),
            ("\"c\"", "", "line 4: the list is empty"),
            ("\"c\"", "\"\"", "line 4: a caller is not"),
            ("\"c\"", "\"c\",\n\"c d\"", "line 5: a caller is not"),
            ("\"c\"", "\"c*d\"", "line 4: a caller is not"),
            ("\"c\"", "\"c**\"", "line 4: a caller is not"),
            ("\"r\"", "\"r*\"", "line 5: name is not"),
            ("\"r\"", "", "line 5: the list is empty"),
            ("\"p\"", "\"p*\"", "line 6: a project is not"),
            ("\"p\"", "", "line 6: the list is empty"),
            ("encryptData", "encrypt", "line 7: no such action"),
            ("\"kms:cmk:encryptData\"", "", "line 7: the list is empty"),
            ("\"alias:k\"", "", "line 8: the list is empty"),
            ("alias:k", "k", "line 8: a key is neither"),
            ("alias:k", "alias:", "line 8: a key is neither"),
            ("alias:k", "alias:k*k", "line 8: a key is neither"),
            ("alias:k", "alias:k.*", "line 8: a key is neither"),
            ("alias:k", "alias:k/default", "line 8: a key is neither"),
            ("SM2_ENCRYPT", "SM2", "line 9: no such algorithm"),
            ("\"SM2_ENCRYPT\"", "", "line 9: the list is empty"),
            // What could never decide anything.
            (
                "callers = [\"c\"]\nroles = [\"r\"]\n",
                "",
                "line 2: the rule names neither callers nor roles",
            ),
            (
                "encryptData\"",
                "list\"",
                "line 8: the rule's actions are not about such a key",
            ),
            (
                "encryptData\"]\nkeys = [\"alias:k",
                &format!("create\"]\nkeys = [\"{id}"),
                "line 8: the rule's actions are not about such a key",
            ),
            (
                "encryptData\"]",
                "encryptData\", \"kms:cmk:get\"]",
                "line 9: algorithms is for",
            ),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}: {bad}");
        }
        let error = parse(&good.repeat(2)).unwrap_err();
        assert_eq!(error.to_string(), "line 11: the name is not unique");
    }

    #[test]
    fn a_file_has_a_bounded_number_of_rules_and_of_what_they_name() {
        let rule = |name: &str, callers: usize, keys: usize| {
            let callers: Vec<_> = (0..callers).map(|number| format!("c{number}")).collect();
            let keys: Vec<_> = (0..keys).map(|number| format!("alias:{number}")).collect();
            format!(
                "[[rule]]\nname = {name:?}\neffect = \"deny\"\ncallers = {callers:?}\n\
                 actions = [\"kms:cmk:get\"]\nkeys = {keys:?}\n"
            )
        };
        let many = |count: usize| {
            let rules = (0..count).map(|number| rule(&format!("r{number}"), 1, 1));
            parse(&rules.collect::<String>())
        };
        assert_eq!(many(20_000).unwrap().len(), 20_000);
        let error = many(20_001).unwrap_err().to_string();
        assert!(error.starts_with("line 120002: there are more"), "{error}");
        let text = rule("a", 1000, 1000);
        assert_eq!(parse(&text).unwrap().len(), 1);
        let error = parse(&(text + &rule("b", 1, 1))).unwrap_err().to_string();
        assert!(error.starts_with("line 8: the rules up to here"), "{error}");
    }
}
