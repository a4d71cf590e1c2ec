//! Rules: which claims make which caller.

use std::sync::Arc;

use serde_json::Value;

use crate::domain::caller::Actions;
use crate::domain::key::ProjectId;

/// What a token must claim, and what its caller may then do.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it must claim: all of it.
    pub claims: Vec<Claim>,
    /// The one project that its caller is for.
    pub project: ProjectId,
    /// What its caller is, for rules that name roles.
    pub roles: Arc<[Arc<str>]>,
    /// What its caller may do with every key of the project.
    pub actions: Actions,
}

impl Rule {
    /// Whether the claims of a token are those of the rule.
    pub(super) fn fits(&self, claims: &Value) -> bool {
        self.claims.iter().all(|claim| claim.fits(claims))
    }
}

/// What one claim must say.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which claim: its name, or a JSON Pointer (RFC 6901) to one inside another, as
    /// `/kubernetes.io/namespace`.
    pub path: String,
    /// Its text. A final `*` stands for any rest. Of a list of texts, one must be so.
    pub text: String,
}

impl Claim {
    fn fits(&self, claims: &Value) -> bool {
        let claim = if self.path.starts_with('/') {
            claims.pointer(&self.path)
        } else {
            claims.get(&self.path)
        };
        match claim {
            Some(Value::String(text)) => self.says(text),
            Some(Value::Array(list)) => {
                let mut texts = list.iter().filter_map(Value::as_str);
                texts.any(|text| self.says(text))
            }
            _ => false,
        }
    }

    fn says(&self, text: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(prefix) => text.starts_with(prefix),
            None => text == self.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_found_by_its_name_or_by_a_pointer_into_it() {
        let claims = json!({
            "sub": "system:serviceaccount:shop:billing",
            "kubernetes.io": { "namespace": "shop", "pod": { "name": "billing-7" } },
            "https://example.com/teams": ["red", "blue"],
            "mixed": [7, "seven", ["blue"]],
            "number": 7,
            "/odd": "x",
        });
        let fits = |path: &str, text: &str| {
            let (path, text) = (path.to_owned(), text.to_owned());
            Claim { path, text }.fits(&claims)
        };
        for (path, text) in [
            ("sub", "system:serviceaccount:shop:billing"),
            ("sub", "system:serviceaccount:shop:*"),
            ("sub", "*"),
            ("/sub", "system:*"),
            ("/kubernetes.io/namespace", "shop"),
            ("/kubernetes.io/pod/name", "billing-*"),
            ("https://example.com/teams", "blue"),
            ("/https:~1~1example.com~1teams", "red"),
            ("/https:~1~1example.com~1teams/1", "blue"),
            ("mixed", "seven"),
            ("/~1odd", "x"),
        ] {
            assert!(fits(path, text), "{path} {text}");
        }
        for (path, text) in [
            ("sub", "system:serviceaccount:shop:billin"),
            ("sub", "system:serviceaccount:shop:billing2"),
            ("sub", "System:*"),
            ("sub", "*billing"),
            ("sub", ""),
            ("kubernetes.io.namespace", "shop"),
            ("kubernetes.io", "*"),
            ("/kubernetes.io/namespace", "sho"),
            ("https://example.com/teams", "b"),
            ("mixed", "7"),
            ("mixed", "blue"),
            ("number", "7"),
            ("number", "*"),
            ("missing", "*"),
            ("missing", ""),
            ("/odd", "x"),
            ("", "*"),
        ] {
            assert!(!fits(path, text), "{path} {text}");
        }
    }

    #[test]
    fn every_claim_of_a_rule_must_fit() {
        let rule = Rule {
            claims: [("a", "1"), ("b", "2")]
                .map(|(path, text)| Claim {
                    path: path.to_owned(),
                    text: text.to_owned(),
                })
                .to_vec(),
            project: "p".parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        };
        assert!(rule.fits(&json!({ "a": "1", "b": "2", "c": "3" })));
        assert!(!rule.fits(&json!({ "a": "1" })));
        assert!(!rule.fits(&json!({ "a": "1", "b": "3" })));
    }
}
