//! The configured root keys, and what is made of them.

use std::path::Path;
use std::sync::Arc;

use crate::config::Config;
use crate::crypto::root::Root;
use crate::crypto::root::RootKey;
use crate::crypto::root::Roots;
use crate::server::StartError;
use crate::server::shown;
use crate::server::token::Token;
use crate::store::codec::Codec;
use crate::store::root_keys::RootKeys;

/// Reads the root keys: the one that seals, then the previous ones.
pub(super) fn load(config: &Config, token: Option<&Token>) -> Result<Arc<Roots>, StartError> {
    let in_token = |label: &str| token.ok_or(StartError::NoToken)?.root_key(label);
    let labels = config.pkcs11.as_ref();
    let sealing = match &config.root_key_file {
        Some(path) => in_file(path)?,
        None => {
            let label = labels.and_then(|pkcs11| pkcs11.root_key.as_deref());
            in_token(label.ok_or(StartError::NoToken)?)?
        }
    };
    let files = config.previous_root_key_files.iter();
    let files = files.map(|path| in_file(path));
    let tokens = labels.iter().flat_map(|pkcs11| &pkcs11.previous_root_keys);
    let tokens = tokens.map(|label| in_token(label));
    let previous: Result<_, StartError> = files.chain(tokens).collect();
    let roots = Roots::new(sealing, previous?).map_err(StartError::RootKeyTwice)?;
    Ok(Arc::new(roots))
}

/// Writes records under the root key that seals, and reads them under each.
pub(super) fn codec(roots: &Roots) -> Result<Codec, StartError> {
    let mac_key = roots.mac_key().map_err(StartError::NoMacKey)?;
    let previous = roots.previous_mac_keys().map_err(StartError::NoMacKey)?;
    Ok(Codec::new(mac_key).reading(previous))
}

/// The names of the root keys, by which writes go.
pub(super) fn names(roots: &Roots) -> RootKeys {
    RootKeys::new(roots.id(), roots.previous_ids())
}

fn in_file(path: &Path) -> Result<Arc<dyn Root>, StartError> {
    let root = RootKey::load(path);
    let root = root.map_err(|error| StartError::RootKey(shown(path), error))?;
    Ok(Arc::new(root))
}
