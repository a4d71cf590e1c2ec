//! The rules of a policy file, arranged so that a decision looks at few of them.
//!
//! ```text
//! caller name, roles ─► subjects ─► in any project, in the caller's ─► with any key    ─┐
//!                                                                     with the key id ─┼─► rights
//!                                                                     with the alias  ─┘
//! ```
//!
//! Subjects, projects and patterns of keys are numbers. A name is looked up once for its exact number, and once
//! for the longest prefix that it has, from which links lead to the shorter ones. So a decision takes
//! a few look-ups for each subject that the caller is, however many rules there are.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::auth::policy::rule::{Effect, KeyPattern, Pattern, Rule, Who};
use crate::auth::policy::{Fit, Key, Operation, Verdict};
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::caller::{Action, Caller};
use crate::domain::key::{KeyId, ProjectId};

/// Rules, to decide by.
#[derive(Debug)]
pub(super) struct Index {
    callers: Names,
    roles: HashMap<Box<str>, usize>,
    subjects: Vec<Subject>,
    projects: HashMap<ProjectId, usize>,
    key_ids: HashMap<KeyId, usize>,
    aliases: Names,
}

/// What rules say of a caller pattern or of a role.
#[derive(Debug, Default)]
struct Subject {
    anywhere: Node,
    in_project: Numbered<Node>,
}

/// What rules say of a subject in a project.
#[derive(Debug, Default)]
struct Node {
    with_any_key: Rights,
    by_id: Patterns,
    by_alias: Patterns,
}

/// What rules say of keys that fit patterns of one kind.
#[derive(Debug, Default)]
struct Patterns {
    /// What they say of any of them.
    all: Rights,
    each: Numbered<Rights>,
}

/// Operations that are allowed, and that are denied: a bit for each.
#[derive(Clone, Copy, Debug, Default)]
struct Rights {
    allow: u64,
    deny: u64,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut who_numbers = HashMap::new();
        let mut project_numbers = HashMap::new();
        let mut key_numbers = HashMap::new();
        let mut subjects = Vec::<Subject>::new();
        for rule in rules {
            let any_project = [None];
            let any_key = [None];
            let projects: Vec<Option<&ProjectId>> = match &rule.projects {
                None => any_project.into(),
                Some(projects) => projects.iter().map(Some).collect(),
            };
            let keys: Vec<Option<&KeyPattern>> = match &rule.keys {
                None => any_key.into(),
                Some(keys) => keys.iter().map(Some).collect(),
            };
            for who in &rule.who {
                let number = number_of(&mut who_numbers, who);
                if subjects.len() <= number {
                    subjects.push(Subject::default());
                }
                let Some(subject) = subjects.get_mut(number) else {
                    continue;
                };
                for project in &projects {
                    let node = match project {
                        None => &mut subject.anywhere,
                        Some(project) => {
                            let number = number_of(&mut project_numbers, *project);
                            subject.in_project.entry(number).or_default()
                        }
                    };
                    for key in &keys {
                        let rights = Rights::of(rule, *key);
                        let patterns = match key {
                            None => {
                                node.with_any_key.add(rights);
                                continue;
                            }
                            Some(KeyPattern::Id(_)) => &mut node.by_id,
                            Some(KeyPattern::Alias(_)) => &mut node.by_alias,
                        };
                        let number = number_of(&mut key_numbers, *key);
                        patterns.all.add(rights);
                        patterns.each.entry(number).or_default().add(rights);
                    }
                }
            }
        }
        let mut index = Self {
            callers: Names::default(),
            roles: HashMap::new(),
            subjects,
            projects: HashMap::new(),
            key_ids: HashMap::new(),
            aliases: Names::default(),
        };
        for (who, number) in who_numbers {
            match who {
                Who::Caller(pattern) => index.callers.insert(pattern, number),
                Who::Role(role) => {
                    index.roles.insert(role.clone(), number);
                }
            }
        }
        for (project, number) in project_numbers {
            index.projects.insert(project.clone(), number);
        }
        for (key, number) in key_numbers {
            match key {
                Some(KeyPattern::Id(id)) => {
                    index.key_ids.insert(*id, number);
                }
                Some(KeyPattern::Alias(pattern)) => index.aliases.insert(pattern, number),
                None => {}
            }
        }
        index.callers.link();
        index.aliases.link();
        index
    }

    /// What the rules, and the caller's own actions, say.
    pub(super) fn decide(&self, caller: &Caller, operation: Operation, key: Key<'_>) -> Verdict {
        let bit = bit(operation);
        let id = LazyCell::new(|| key.id.map(|id| self.key_ids.get(&id)));
        let alias = LazyCell::new(|| key.alias.map(|alias| self.aliases.find(alias.as_str())));
        // What is known to hold, and what may hold for all that is known of the key.
        let (mut sure, mut open) = (Rights::default(), Rights::default());
        if caller.actions.contains(operation.action) {
            sure.allow = bit;
        }
        for node in self.nodes(caller) {
            sure.add(node.with_any_key);
            if node.by_id.matter(bit, sure) {
                match *id {
                    None => open.add(node.by_id.all),
                    Some(number) => sure.add(node.by_id.of(number)),
                }
            }
            if node.by_alias.matter(bit, sure) {
                match *alias {
                    None => open.add(node.by_alias.all),
                    Some(found) => {
                        let patterns = self.aliases.each(found);
                        patterns.for_each(|number| sure.add(node.by_alias.of(Some(&number))));
                    }
                }
            }
            if sure.deny & bit != 0 {
                return Verdict::Denied;
            }
        }
        let fit = |sure: u64, open: u64| match (sure & bit, open & bit) {
            (0, 0) => Fit::No,
            (0, _) => Fit::Open,
            _ => Fit::Yes,
        };
        Verdict::of(fit(sure.allow, open.allow), fit(sure.deny, open.deny))
    }

    /// Everything that is said of a caller.
    fn nodes<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a Node> {
        let roles = caller.roles.iter();
        let roles = roles.filter_map(|role| self.roles.get(&**role).copied());
        let project = self.projects.get(&caller.project);
        let found = self.callers.find(&caller.name);
        let subjects = self.callers.each(found).chain(roles);
        let subjects = subjects.filter_map(|number| self.subjects.get(number));
        subjects.flat_map(move |subject| {
            let here = project.and_then(|project| subject.in_project.get(project));
            std::iter::once(&subject.anywhere).chain(here)
        })
    }
}

impl Patterns {
    /// Whether they say something of the operation with this bit that does not hold already.
    const fn matter(&self, bit: u64, sure: Rights) -> bool {
        (self.all.deny | self.all.allow & !sure.allow) & bit != 0
    }

    fn of(&self, number: Option<&usize>) -> Rights {
        let rights = number.and_then(|number| self.each.get(number));
        rights.copied().unwrap_or_default()
    }
}

impl Rights {
    /// What a rule gives or takes, with keys of a pattern or with any.
    fn of(rule: &Rule, key: Option<&KeyPattern>) -> Self {
        let mut bits = 0;
        for &action in Action::ALL {
            for &algorithm in EncryptionAlgorithm::ALL {
                let operation = Operation { action, algorithm };
                let concerned = key.is_none_or(|key| key.concern(action));
                if concerned && rule.covers(operation) {
                    bits |= bit(operation);
                }
            }
        }
        match rule.effect {
            Effect::Allow => Self {
                allow: bits,
                deny: 0,
            },
            Effect::Deny => Self {
                allow: 0,
                deny: bits,
            },
        }
    }

    fn add(&mut self, more: Self) {
        self.allow |= more.allow;
        self.deny |= more.deny;
    }
}

/// The bit of an operation.
const fn bit(operation: Operation) -> u64 {
    let algorithm = operation.algorithm as usize;
    1 << (algorithm * Action::ALL.len() + operation.action as usize)
}

const _: () = assert!(
    EncryptionAlgorithm::ALL.len() * Action::ALL.len() <= 64,
    "each operation has a bit"
);

/// Things by their numbers.
type Numbered<T> = HashMap<usize, T, BuildHasherDefault<NumberHasher>>;

/// Hashes one number. Nobody chooses the numbers, which are given in turn, so it need not withstand
/// chosen ones, and multiplication by an odd number spreads them: the golden ratio's 64 bits.
#[derive(Clone, Copy, Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn write_usize(&mut self, number: usize) {
        self.0 = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The number of a value: the next one if it has none yet.
fn number_of<T: Hash + Eq>(numbers: &mut HashMap<T, usize>, value: T) -> usize {
    let next = numbers.len();
    *numbers.entry(value).or_insert(next)
}

/// Patterns of names, each with a number.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, usize>,
    /// In the order of their texts.
    prefixes: Vec<Prefix>,
    /// The [`head`] of each, close together: a search seldom has to look at a text elsewhere.
    heads: Vec<u64>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    number: usize,
    /// The place of the longest prefix that is a shorter one of this.
    shorter: Option<usize>,
}

/// What fits a name.
#[derive(Clone, Copy)]
struct Found {
    exact: Option<usize>,
    /// The place of the longest prefix.
    longest: Option<usize>,
}

impl Names {
    fn insert(&mut self, pattern: &Pattern, number: usize) {
        match pattern {
            Pattern::Exact(exact) => {
                self.exact.insert(exact.clone(), number);
            }
            Pattern::Prefix(text) => self.prefixes.push(Prefix {
                text: text.clone(),
                number,
                shorter: None,
            }),
        }
    }

    /// Puts the prefixes in order, and links each to the next shorter one. In this order a prefix
    /// stands before all that begins with it, and only what begins with it stands between.
    fn link(&mut self) {
        self.prefixes.sort_by(|a, b| a.text.cmp(&b.text));
        let texts = self.prefixes.iter().map(|prefix| &prefix.text);
        self.heads = texts.map(|text| head(text)).collect();
        for at in 0..self.prefixes.len() {
            let (before, from) = self.prefixes.split_at_mut(at);
            let Some(prefix) = from.first_mut() else {
                continue;
            };
            prefix.shorter = longest(before, at.checked_sub(1), &prefix.text);
        }
    }

    fn find(&self, name: &str) -> Found {
        let own = head(name);
        let from = self.heads.partition_point(|head| *head < own);
        let like = self.heads.get(from..).unwrap_or_default();
        let to = from + like.partition_point(|head| *head == own);
        let alike = self.prefixes.get(from..to).unwrap_or_default();
        let above = from + alike.partition_point(|prefix| *prefix.text <= *name);
        Found {
            exact: self.exact.get(name).copied(),
            longest: longest(&self.prefixes, above.checked_sub(1), name),
        }
    }

    /// The numbers of everything that was found.
    fn each(&self, found: Found) -> impl Iterator<Item = usize> {
        let longest = found.longest.and_then(|at| self.prefixes.get(at));
        let shorter = |prefix: &&Prefix| self.prefixes.get(prefix.shorter?);
        let prefixes = std::iter::successors(longest, shorter);
        let prefixes = prefixes.map(|prefix| prefix.number);
        found.exact.into_iter().chain(prefixes)
    }
}

/// The first eight bytes of a text, zeros if it is shorter, as a number: in the order of the texts.
fn head(text: &str) -> u64 {
    let mut head = [0; 8];
    head.iter_mut()
        .zip(text.bytes())
        .for_each(|(to, byte)| *to = byte);
    u64::from_be_bytes(head)
}

/// The place of the longest of these prefixes that `name` begins with, if the last of them in order
/// that is not after `name` is at `place`.
fn longest(prefixes: &[Prefix], mut place: Option<usize>, name: &str) -> Option<usize> {
    while let Some(at) = place {
        let prefix = prefixes.get(at)?;
        if name.starts_with(&*prefix.text) {
            return Some(at);
        }
        place = prefix.shorter;
    }
    None
}
