//! `kmsgate policy explain`: which rule decides, and why.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::auth::aksk::AccessKeys;
use crate::auth::policy::{Effect, Explanation, Fit, Key, Operation, Rules, Verdict};
use crate::auth::token::Tokens;
use crate::cli::{Failure, operate, say};
use crate::config::Auth;
use crate::domain::algorithm::EncryptionAlgorithm;
use crate::domain::caller::{Action, Actions, Caller};
use crate::domain::identity::Identity;
use crate::domain::key::{KeyAlias, KeyId, ProjectId};
use crate::server::{SystemClock, identity_rules};

/// Who wants to do what, and by which configuration that is decided.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The name of a token, of an access key, or of another caller
    #[arg(long, value_name = "NAME")]
    caller: String,
    /// A role that the caller has beside those of its credential; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// The project; that of the caller's credential if it is left out
    #[arg(long, value_name = "PROJECT")]
    project: Option<ProjectId>,
    /// The action, such as kms:cmk:encryptData
    #[arg(long, value_name = "ACTION")]
    action: Action,
    /// The key's id
    #[arg(long, value_name = "ID")]
    key: Option<KeyId>,
    /// The key's alias; for a key that is to be made, the one that it shall have
    #[arg(long, value_name = "NAME")]
    alias: Option<KeyAlias>,
    /// The algorithm by which data is encrypted or decrypted
    #[arg(long, value_name = "ALGORITHM", default_value = "SYMMETRIC_DEFAULT")]
    algorithm: EncryptionAlgorithm,
}

/// The exit code if it cannot be told what is decided.
const TROUBLE: u8 = 2;

impl Explain {
    /// Prints the decision for each credential of the caller's name.
    pub(super) fn run(&self) -> ExitCode {
        match self.explain() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("kmsgate: {error}");
                TROUBLE.into()
            }
        }
    }

    /// Says whether everyone of this name may do it.
    fn explain(&self) -> Result<bool, Failure> {
        let auth = operate::read(&self.config)?.auth;
        let rules = match &auth.policy_file {
            None => Rules::default(),
            Some(path) => {
                let rules = Rules::load(path);
                rules.map_err(|error| format!("policy file {}: {error}", path.display()))?
            }
        };
        let mut all = true;
        for named in self.callers(&auth)? {
            let explanation = rules.explain(&named.caller, self.operation(), self.key());
            all &= explanation.verdict == Verdict::Allowed;
            let mut text = String::new();
            self.tell(&mut text, &named, &explanation)?;
            if auth.policy_file.is_none() {
                text += "\n  the configuration names no policy_file";
            }
            say(text)?;
        }
        Ok(all)
    }

    /// Who is called so: the holders of credentials, or else somebody without one of these.
    fn callers(&self, auth: &Auth) -> Result<Vec<Named>, Failure> {
        let mut held = Vec::new();
        if let Some(path) = &auth.token_file {
            let tokens = Tokens::load(path, Arc::new(SystemClock));
            let tokens = tokens.map_err(|error| format!("{}: {error}", path.display()))?;
            held.extend(tokens.named(&self.caller).map(|caller| ("token", caller)));
        }
        if let Some(path) = &auth.access_key_file {
            let keys = AccessKeys::load(path, Arc::new(SystemClock));
            let keys = keys.map_err(|error| format!("{}: {error}", path.display()))?;
            held.extend(
                keys.named(&self.caller)
                    .map(|caller| ("access key", caller)),
            );
        }
        let identity = match self.caller.strip_prefix("dns:") {
            Some(name) => Identity::dns(name),
            None => Identity::spiffe(&self.caller),
        };
        let rules = identity_rules(&auth.mtls);
        let certified = identity.and_then(|identity| rules.caller(&[identity]));
        held.extend(certified.map(|caller| ("certificate", caller)));
        let project = self.project.as_ref();
        held.retain(|(_, caller)| project.is_none_or(|project| caller.project == *project));
        let more = || self.roles.iter().map(|role| Arc::from(role.as_str()));
        let mut callers: Vec<Named> = Vec::new();
        for (credential, caller) in held {
            let roles = caller.roles.iter().cloned().chain(more()).collect();
            callers.push(Named {
                credential: Some(credential),
                caller: Caller {
                    roles,
                    ..Caller::clone(&caller)
                },
            });
        }
        if callers.is_empty() {
            let name = self.caller.as_str();
            let project = project.ok_or_else(|| {
                format!("no token, access key or certificate is named {name}: name its --project")
            })?;
            callers.push(Named {
                credential: None,
                caller: Caller {
                    name: name.into(),
                    project: project.clone(),
                    roles: more().collect(),
                    actions: Actions::default(),
                },
            });
        }
        Ok(callers)
    }

    fn tell(
        &self,
        text: &mut String,
        named: &Named,
        explanation: &Explanation<'_>,
    ) -> std::fmt::Result {
        let Named { credential, caller } = named;
        let decision = match explanation.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Denied => "denied",
            Verdict::Depends => "it depends on the key",
        };
        let (what, action) = (credential.unwrap_or("caller"), self.action.name());
        let Caller { name, project, .. } = caller;
        write!(
            text,
            "{decision}: {action} for the {what} {name} of project {project}"
        )?;
        for (rule, fit) in &explanation.rules {
            let does = match (rule.effect(), fit) {
                (Effect::Allow, Fit::Yes) => "allows it",
                (Effect::Deny, Fit::Yes) => "denies it, whatever allows it",
                (Effect::Allow, Fit::No | Fit::Open) => "allows it if the key fits",
                (Effect::Deny, Fit::No | Fit::Open) => "denies it if the key fits",
            };
            let reasons = rule.reasons(caller, self.operation(), self.key());
            let reasons = reasons.join(", ");
            write!(text, "\n  rule {} {does}: {reasons}", rule.name())?;
        }
        if explanation.rules.is_empty() && !explanation.own {
            write!(text, "\n  no rule allows it")?;
        }
        match (credential, explanation.own) {
            (Some(what), true) => write!(
                text,
                "\n  the {what}'s own actions allow it, with every key"
            ),
            (Some(what), false) => write!(text, "\n  the {what}'s own actions do not have it"),
            (None, _) if name.starts_with("jwt:") || name.starts_with("iam:") => write!(
                text,
                "\n  what its own token gives it is not looked at, and would count: name its roles with --role"
            ),
            (None, _) => write!(
                text,
                "\n  no token, access key or certificate of the project has this name, whose own actions would count"
            ),
        }
    }

    const fn operation(&self) -> Operation {
        Operation {
            action: self.action,
            algorithm: self.algorithm,
        }
    }

    const fn key(&self) -> Key<'_> {
        Key {
            id: self.key,
            alias: self.alias.as_ref(),
        }
    }
}

/// A caller, and the kind of the credential that has its name; none if none has.
struct Named {
    credential: Option<&'static str>,
    caller: Caller,
}
