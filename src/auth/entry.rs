//! What the entries of credentials files have in common: whom a credential stands for, what it
//! allows, and until when. The rules of a policy file are read with the same means.
//!
//! Everything here names a line and a fixed sentence when it refuses, never the text: a secret may
//! stand anywhere in such a file, for instance where a number should be.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::value::{Datetime, Offset};

use crate::auth::date::Utc;
use crate::auth::file::Malformed;
use crate::domain::caller::{Actions, Caller, MAX_ROLES, is_name};
use crate::domain::time::Timestamp;

/// The entries of a credentials file, as their TOML says.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Malformed> {
    let at = |error: &toml::de::Error, reason| Malformed {
        line: error.span().map(|span| line(text, span.start)),
        reason,
    };
    let document =
        toml::Deserializer::parse(text).map_err(|error| at(&error, "the text is not TOML"))?;
    T::deserialize(document).map_err(|error| {
        at(
            &error,
            "a key is unknown or missing, or its value has the wrong type",
        )
    })
}

/// Says `reason` of the line in which `value` stands.
pub(super) fn refuse<T>(text: &str, value: &Spanned<T>, reason: &'static str) -> Malformed {
    Malformed {
        line: Some(line(text, value.span().start)),
        reason,
    }
}

/// The number of the line that holds the byte at `offset`.
fn line(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    1 + before.filter(|byte| *byte == b'\n').count()
}

/// What a credential grants to whoever holds it. Made when the file is read, so that a request only
/// clones the pointer.
pub(super) struct Grant {
    caller: Arc<Caller>,
    expires: Option<Timestamp>,
}

/// The keys of an entry that make a [`Grant`].
pub(super) struct Terms<'a> {
    pub(super) name: &'a str,
    pub(super) project: &'a Spanned<String>,
    pub(super) expires: Option<&'a Spanned<Datetime>>,
    pub(super) roles: Option<&'a Spanned<Vec<Spanned<String>>>>,
    pub(super) actions: Option<&'a Spanned<Vec<Spanned<String>>>>,
}

impl Grant {
    /// Checks the terms, which stand in `text`.
    pub(super) fn new(text: &str, terms: &Terms<'_>) -> Result<Self, Malformed> {
        let project = terms.project.get_ref().parse().map_err(|_| {
            let reason = "project is not 1 to 64 letters, digits, hyphens and underscores";
            refuse(text, terms.project, reason)
        })?;
        let expires = terms.expires.map(|expires| {
            timestamp(expires.get_ref()).ok_or_else(|| {
                let reason = "expires is not a date and time with an offset from UTC";
                refuse(text, expires, reason)
            })
        });
        let roles = terms.roles.map(|roles| {
            if !(1..=MAX_ROLES).contains(&roles.get_ref().len()) {
                return Err(refuse(text, roles, "roles is not a list of 1 to 16 names"));
            }
            let roles = roles.get_ref().iter();
            roles.map(|role| Ok(name(text, role)?.into())).collect()
        });
        let actions = match (terms.actions, &roles) {
            (Some(listed), _) => actions(text, listed.get_ref())?,
            // Rules may give rights to a role, so that none need stand here.
            (None, Some(_)) => Actions::default(),
            (None, None) => {
                return Err(refuse(
                    text,
                    terms.project,
                    "there are neither actions nor roles",
                ));
            }
        };
        Ok(Self {
            caller: Arc::new(Caller {
                name: terms.name.into(),
                project,
                roles: roles.transpose()?.unwrap_or_default(),
                actions,
            }),
            expires: expires.transpose()?,
        })
    }

    /// The caller, unless the grant is over.
    pub(super) fn at(&self, now: Timestamp) -> Option<&Arc<Caller>> {
        let over = self.expires.is_some_and(|expires| expires <= now);
        (!over).then_some(&self.caller)
    }

    /// The caller, be the grant over or not.
    pub(super) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }
}

/// The actions that a list of patterns names. An empty list names none: rules may give rights to who
/// has none by itself.
pub(super) fn actions(text: &str, patterns: &[Spanned<String>]) -> Result<Actions, Malformed> {
    let mut actions = Actions::default();
    for pattern in patterns {
        let named = Actions::matching(pattern.get_ref())
            .map_err(|_| refuse(text, pattern, "no such action"))?;
        actions = actions.union(named);
    }
    Ok(actions)
}

/// A name, which logs and the audit print: 1 to 64 letters, digits, dots, underscores and hyphens.
pub(super) fn name<'a>(text: &str, name: &'a Spanned<String>) -> Result<&'a str, Malformed> {
    if !is_name(name.get_ref()) {
        let reason = "name is not 1 to 64 letters, digits, dots, underscores and hyphens";
        return Err(refuse(text, name, reason));
    }
    Ok(name.get_ref())
}

/// The moment that a text names as RFC 3339 has it; none for one without an offset.
pub(super) fn moment(text: &str) -> Option<Timestamp> {
    timestamp(&text.parse().ok()?)
}

/// The moment that a TOML offset date-time names; none for one without an offset, which would
/// depend on where it is read.
fn timestamp(datetime: &Datetime) -> Option<Timestamp> {
    let Datetime { date, time, offset } = *datetime;
    let (date, time) = (date?, time?);
    let offset = match offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes) * 60_000,
    };
    let local = Utc {
        year: date.year,
        month: date.month,
        day: date.day,
        hour: time.hour,
        minute: time.minute,
        second: time.second.unwrap_or(0),
    };
    let millis = i64::from(time.nanosecond.unwrap_or(0) / 1_000_000);
    Some(local.timestamp()?.plus_millis(millis - offset))
}

#[cfg(test)]
mod tests {
    use crate::domain::caller::Action;

    use super::*;

    #[test]
    fn an_offset_date_time_is_one_moment_wherever_it_is_read() {
        let moment = Some(Timestamp(1_573_789_015_250));
        for text in [
            "2019-11-15T03:36:55.25Z",
            "2019-11-15 03:36:55.2509Z",
            "2019-11-15T11:36:55.250+08:00",
            "2019-11-14T22:06:55.25-05:30",
        ] {
            assert_eq!(timestamp(&text.parse().unwrap()), moment, "{text}");
        }
        for local in ["2019-11-15T03:36:55", "2019-11-15", "03:36:55"] {
            assert_eq!(timestamp(&local.parse().unwrap()), None, "{local}");
        }
    }

    #[test]
    fn a_grant_ends_when_it_expires() {
        let text = entry("\"p\"", "expires = 1970-01-01T00:00:01Z", "\"kms:cmk:get\"");
        let grant = grant(&text).unwrap();
        assert!(grant.at(Timestamp(999)).is_some());
        assert!(grant.at(Timestamp(1000)).is_none());
    }

    #[test]
    fn every_refusal_names_its_line_and_no_text_of_the_file() {
        let good = entry("\"p\"", "", "\"kms:cmk:get\"");
        assert!(grant(&good).is_ok());
        let seventeen = format!("roles = {:?}", ["r"; 17]);
        let bad = [
            (entry("\"p q\"", "", "\"kms:cmk:get\""), Some(1)),
            (entry("17", "", "\"kms:cmk:get\""), Some(1)),
            (
                entry("\"p\"", "expires = 2026-01-01", "\"kms:cmk:get\""),
                Some(2),
            ),
            (entry("\"p\"", "expires = 5", "\"kms:cmk:get\""), Some(2)),
            (entry("\"p\"", "roles = []", ""), Some(2)),
            (entry("\"p\"", "roles = [\"a\",\n\"b c\"]", ""), Some(3)),
            (entry("\"p\"", &seventeen, ""), Some(2)),
            (entry("\"p\"", "", "\"kms:cmk:gte\""), Some(3)),
            (entry("\"p\"", "", "\"kms:cmk:get\",\n 7"), Some(4)),
            (entry("\"p\"", "expire = 5", "\"kms:cmk:get\""), Some(2)),
            (entry("\"p", "", "\"kms:cmk:get\""), Some(1)),
            ("project = 'p'".to_owned(), Some(1)),
        ];
        for (text, line) in bad {
            let malformed = grant(&text).err().unwrap();
            assert_eq!(malformed.line, line, "{malformed} in {text}");
        }
    }

    #[test]
    fn a_grant_has_actions_or_roles_or_both() {
        let actions = "actions = [\"kms:cmk:get\"]";
        let roles = "roles = [\"auditor\", \"on-call\"]";
        for (terms, has_roles, may_get) in [
            (actions.to_owned(), 0, true),
            (roles.to_owned(), 2, false),
            (format!("{actions}\n{roles}"), 2, true),
            ("actions = []".to_owned(), 0, false),
        ] {
            let grant = grant(&format!("project = 'p'\n{terms}")).unwrap();
            let caller = grant.caller();
            assert_eq!(caller.roles.len(), has_roles, "{terms}");
            assert_eq!(
                caller.actions.contains(Action::DescribeKey),
                may_get,
                "{terms}"
            );
        }
        let malformed = grant("project = 'p'").err().unwrap();
        assert_eq!(malformed.reason, "there are neither actions nor roles");
    }

    #[test]
    fn a_name_is_1_to_64_printable_characters() {
        let check = |text: &str| name("", &Spanned::new(0..0, text.to_owned())).is_ok();
        let longest = "a".repeat(64);
        for good in ["a", "Billing_2.eu-west", &longest] {
            assert!(check(good), "{good:?}");
        }
        let too_long = "a".repeat(65);
        for bad in ["", "a b", "a\n", "é", &too_long] {
            assert!(!check(bad), "{bad:?}");
        }
    }

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        project: Spanned<String>,
        expires: Option<Spanned<Datetime>>,
        roles: Option<Spanned<Vec<Spanned<String>>>>,
        actions: Option<Spanned<Vec<Spanned<String>>>>,
    }

    fn entry(project: &str, expires: &str, actions: &str) -> String {
        format!("project = {project}\n{expires}\nactions = [{actions}]\n")
    }

    fn grant(text: &str) -> Result<Grant, Malformed> {
        let entry: Entry = parse(text)?;
        let terms = Terms {
            name: "n",
            project: &entry.project,
            expires: entry.expires.as_ref(),
            roles: entry.roles.as_ref(),
            actions: entry.actions.as_ref(),
        };
        Grant::new(text, &terms)
    }
}
