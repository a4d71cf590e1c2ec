//! The root key, which seals key material at rest.
//!
//! A root key is 32 random bytes in a file of one line, `KMSGATE-ROOT-KEY-1:` and their Base64. The
//! prefix shows a wrong file for what it is, and lets scanners find a root key where none should
//! be. Everything that it does, it does with a key derived for that purpose by HKDF-SHA-256 (RFC
//! 5869) with the empty salt:
//!
//! | info | bytes | what for |
//! |---|---|---|
//! | `kmsgate root key id v1` | 8 | the root key's name in sealed keys |
//! | `kmsgate root key seal v1` | 32 | sealing, below |
//! | `kmsgate root key mac v1` | 32 | authenticating stored records |
//!
//! A sealed key:
//!
//! ```text
//! offset  size  field
//! 0       1     suite          1 = XAES-256-GCM under a root key in a file
//! 1       8     root key id
//! 9       24    nonce
//! 33      m     ciphertext     of the material
//! 33+m    16    tag
//! ```
//!
//! Its associated data names the place that it belongs to, so that it opens nowhere else:
//!
//! ```text
//! "kmsgate sealed key v1" ‖ suite (1) ‖ root key id (8) ‖ length of the project (1) ‖ project
//!     ‖ key id (36) ‖ version (4, big-endian) ‖ name of the spec
//! ```
//!
//! The project's length and the fixed sizes after it leave one way to read it.
//!
//! There may be several root keys, in files or in tokens: [`Roots`] seals under the first, and opens
//! what any of them sealed. So a root key is replaced while keys are in use: what the old one sealed is
//! sealed again, until nothing needs it.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hkdf::Hkdf;
use sha2::Sha256;
use xaes_256_gcm::aead::{AeadInOut, KeyInit};
use xaes_256_gcm::{Nonce, Tag, Xaes256Gcm};
use zeroize::Zeroizing;

use crate::crypto::{ProviderError, SealedKey, VersionName};
use crate::domain::key::RootKeyId;
use crate::domain::secret::{MacKey, Material};

/// What guards key material and records at rest: a root key, in a file or in a hardware module.
pub trait Root: fmt::Debug + Send + Sync {
    /// Seals `material` so that it opens as `name` and as nothing else.
    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError>;

    /// Opens a sealed key. Whatever is wrong with it, the answer is [`ProviderError::BadSeal`].
    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<Material, ProviderError>;

    /// Whether a sealed key is of the suite that this root key writes.
    fn seals(&self, key: &SealedKey) -> bool;

    /// The key under which stored records are authenticated.
    fn mac_key(&self) -> Result<MacKey, ProviderError>;

    /// The name of the root key that seals.
    fn id(&self) -> RootKeyId;

    /// Whether opening this key waits for a device, or sealing one.
    fn is_device(&self, _: Option<&SealedKey>) -> bool {
        false
    }

    /// Seals a key again under the root key that seals now; none if it was sealed by that one.
    ///
    /// Fails as [`open`](Self::open) and [`seal`](Self::seal) do.
    fn reseal(
        &self,
        name: &VersionName,
        key: &SealedKey,
    ) -> Result<Option<SealedKey>, ProviderError> {
        if sealer(key) == Some(self.id()) {
            return Ok(None);
        }
        let material = self.open(name, key)?;
        self.seal(name, &material).map(Some)
    }
}

/// Root keys, of which the first seals and each opens what it sealed.
#[derive(Debug)]
pub struct Roots {
    sealing: Arc<dyn Root>,
    previous: Vec<Arc<dyn Root>>,
}

impl Roots {
    /// Seals under `sealing`, and opens what `previous` ones sealed too.
    ///
    /// Fails with the name of a root key that is there twice.
    pub fn new(sealing: Arc<dyn Root>, previous: Vec<Arc<dyn Root>>) -> Result<Self, RootKeyId> {
        let roots = Self { sealing, previous };
        let mut ids = HashSet::new();
        let twice = roots.all().map(Root::id).find(|id| !ids.insert(*id));
        twice.map_or(Ok(roots), Err)
    }

    /// The names of those that do not seal any more.
    pub fn previous_ids(&self) -> Vec<RootKeyId> {
        self.previous.iter().map(|root| root.id()).collect()
    }

    /// The keys under which records were authenticated that those wrote.
    pub fn previous_mac_keys(&self) -> Result<Vec<MacKey>, ProviderError> {
        self.previous.iter().map(|root| root.mac_key()).collect()
    }

    /// The one that sealed a key.
    fn sealer(&self, key: &SealedKey) -> Option<&dyn Root> {
        let id = sealer(key)?;
        let mut all = self.all();
        all.find(|root| root.id() == id && root.seals(key))
    }

    fn all(&self) -> impl Iterator<Item = &dyn Root> {
        let all = [&self.sealing].into_iter().chain(&self.previous);
        all.map(|root| &**root)
    }
}

impl Root for Roots {
    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        self.sealing.seal(name, material)
    }

    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<Material, ProviderError> {
        let root = self.sealer(key).ok_or(ProviderError::BadSeal)?;
        root.open(name, key)
    }

    fn seals(&self, key: &SealedKey) -> bool {
        self.all().any(|root| root.seals(key))
    }

    fn mac_key(&self) -> Result<MacKey, ProviderError> {
        self.sealing.mac_key()
    }

    fn id(&self) -> RootKeyId {
        self.sealing.id()
    }

    fn is_device(&self, key: Option<&SealedKey>) -> bool {
        match key {
            None => self.sealing.is_device(None),
            Some(key) => self
                .sealer(key)
                .is_some_and(|root| root.is_device(Some(key))),
        }
    }
}

/// The root key that a sealed key names. Every suite has it at the same place.
fn sealer(key: &SealedKey) -> Option<RootKeyId> {
    let (_, rest) = key.0.split_first()?;
    let (id, _) = rest.split_first_chunk()?;
    Some(RootKeyId(*id))
}

/// A root key in a file.
pub struct RootKey {
    key: Zeroizing<[u8; 32]>,
    mac_key: Zeroizing<[u8; 32]>,
    id: [u8; 8],
    cipher: Xaes256Gcm,
}

impl RootKey {
    /// Makes a fresh root key.
    pub fn generate() -> Result<Self, RootKeyError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).map_err(|error| RootKeyError::Random(error.into()))?;
        Self::new(key)
    }

    /// Reads a root key's text form; one line break may end it.
    pub fn parse(text: &str) -> Result<Self, RootKeyError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let base64 = line.strip_prefix(PREFIX).ok_or(RootKeyError::Malformed)?;
        // The decoder wants room for whole groups of three bytes.
        let mut bytes = Zeroizing::new([0; 33]);
        let decoded = BASE64_STANDARD.decode_slice(base64, bytes.as_mut_slice());
        match (decoded, bytes.first_chunk::<32>()) {
            (Ok(32), Some(key)) => Self::new(Zeroizing::new(*key)),
            _ => Err(RootKeyError::Malformed),
        }
    }

    /// The text form, with its line break. It is the key itself: keep it where only the service can
    /// read it.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = String::with_capacity(PREFIX.len() + 45);
        text.push_str(PREFIX);
        BASE64_STANDARD.encode_string(self.key.as_slice(), &mut text);
        text.push('\n');
        Zeroizing::new(text)
    }

    /// Makes a fresh root key and writes it to a new file, which its owner alone may read. No file
    /// is ever replaced.
    pub fn create(path: &Path) -> Result<Self, RootKeyError> {
        let root = Self::generate()?;
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let written = file
            .write_all(root.to_text().as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_directory_of(path));
        if let Err(error) = written {
            // Half a root key is of no use, and would be in the way of the next attempt.
            let _ = fs::remove_file(path);
            return Err(error.into());
        }
        Ok(root)
    }

    /// Reads a root key from a file that neither "others" may read nor write. Follows symbolic
    /// links: mounted secrets are such.
    pub fn load(path: &Path) -> Result<Self, RootKeyError> {
        let file = File::open(path)?;
        // The open file is asked, not the path, which may have come to mean another file.
        if file.metadata()?.permissions().mode() & 0o007 != 0 {
            return Err(RootKeyError::TooOpen);
        }
        // Twice the room that a root key takes, so that the buffer never grows and leaves a copy
        // behind.
        let mut text = Zeroizing::new(Vec::with_capacity(2 * MAX_FILE));
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut text)?;
        if text.len() > MAX_FILE {
            return Err(RootKeyError::Malformed);
        }
        Self::parse(str::from_utf8(&text).map_err(|_| RootKeyError::Malformed)?)
    }

    /// The root key's name: says which one sealed a key, and nothing else of it.
    pub const fn id(&self) -> [u8; 8] {
        self.id
    }

    /// The key under which stored records are authenticated.
    pub fn mac_key(&self) -> MacKey {
        MacKey::new(self.mac_key.to_vec())
    }

    fn new(key: Zeroizing<[u8; 32]>) -> Result<Self, RootKeyError> {
        let seal_key = derive::<32>(&key, b"kmsgate root key seal v1")?;
        Ok(Self {
            mac_key: derive(&key, b"kmsgate root key mac v1")?,
            id: *derive(&key, b"kmsgate root key id v1")?,
            cipher: Xaes256Gcm::new((&*seal_key).into()),
            key,
        })
    }
}

impl Root for RootKey {
    fn seal(&self, name: &VersionName, material: &Material) -> Result<SealedKey, ProviderError> {
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).map_err(|error| ProviderError::Unavailable(error.into()))?;
        let length = HEAD + NONCE + material.expose().len() + TAG;
        let mut sealed = Vec::with_capacity(length);
        sealed.push(SUITE);
        sealed.extend(self.id);
        sealed.extend(nonce);
        sealed.extend_from_slice(material.expose());
        let (_, body) = sealed
            .split_at_mut_checked(HEAD + NONCE)
            .ok_or(ProviderError::Unsupported)?;
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce, &associated_data(SUITE, &self.id, name), body.into())
            .map_err(|_| ProviderError::Unsupported)?;
        sealed.extend(tag);
        Ok(SealedKey(sealed))
    }

    fn open(&self, name: &VersionName, key: &SealedKey) -> Result<Material, ProviderError> {
        let bad = || ProviderError::BadSeal;
        let (&[suite], rest) = key.0.split_first_chunk::<1>().ok_or_else(bad)?;
        let (&id, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
        let (&nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or_else(bad)?;
        let (ciphertext, &tag) = rest.split_last_chunk::<TAG>().ok_or_else(bad)?;
        if suite != SUITE || id != self.id {
            return Err(bad());
        }
        let mut material = Zeroizing::new(ciphertext.to_vec());
        self.cipher
            .decrypt_inout_detached(
                &Nonce::from(nonce),
                &associated_data(SUITE, &self.id, name),
                material.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .map_err(|_| bad())?;
        Ok(Material::new(std::mem::take(&mut *material)))
    }

    fn seals(&self, key: &SealedKey) -> bool {
        key.0.first() == Some(&SUITE)
    }

    fn mac_key(&self) -> Result<MacKey, ProviderError> {
        Ok(Self::mac_key(self))
    }

    fn id(&self) -> RootKeyId {
        RootKeyId(self.id)
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey({:016x})", u64::from_be_bytes(self.id))
    }
}

/// Why there is no root key.
#[derive(Debug, thiserror::Error)]
pub enum RootKeyError {
    /// No such file.
    #[error("the root key file does not exist")]
    NotFound,
    /// A file that would have to be replaced.
    #[error("the root key file exists already, and is never replaced")]
    Exists,
    /// "Others" may read or write the file.
    #[error("the root key file is open to others: take their rights away with chmod o-rwx")]
    TooOpen,
    /// The text is not a root key.
    #[error("not a root key: expected one line, {PREFIX} and 44 characters of Base64")]
    Malformed,
    /// The file could not be read or written.
    #[error("the root key file cannot be used")]
    Io(#[source] io::Error),
    /// The system's random source failed.
    #[error("the system's random source cannot serve")]
    Random(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for RootKeyError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::AlreadyExists => Self::Exists,
            _ => Self::Io(error),
        }
    }
}

const PREFIX: &str = "KMSGATE-ROOT-KEY-1:";

/// More than any root key file holds.
const MAX_FILE: usize = 128;

/// XAES-256-GCM under a root key in a file.
const SUITE: u8 = 1;

const HEAD: usize = 9;
const NONCE: usize = 24;
const TAG: usize = 16;

/// HKDF-SHA-256 fails only for outputs over 8160 bytes.
fn derive<const N: usize>(key: &[u8; 32], info: &[u8]) -> Result<Zeroizing<[u8; N]>, RootKeyError> {
    let mut derived = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(None, key)
        .expand(info, derived.as_mut_slice())
        .map_err(|_| RootKeyError::Malformed)?;
    Ok(derived)
}

/// What a sealed key is bound to.
pub(super) fn associated_data(suite: u8, id: &[u8; 8], name: &VersionName) -> Vec<u8> {
    let project = name.project.as_str().as_bytes();
    // A project id has at most 64 bytes.
    let length = u8::try_from(project.len()).unwrap_or(u8::MAX);
    [
        b"kmsgate sealed key v1",
        &[suite][..],
        id,
        &[length],
        project,
        name.key_id.as_bytes(),
        &name.version.get().to_be_bytes(),
        name.spec.name().as_bytes(),
    ]
    .concat()
}

/// A new file's name survives a crash only once its directory has been synced too.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::domain::key::{KeySpec, KeyVersion};

    #[test]
    fn the_text_form_reads_back() {
        let root = root();
        let text = root.to_text();
        assert_eq!(
            *text,
            "KMSGATE-ROOT-KEY-1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n"
        );
        for text in [&*text, text.trim_end(), &text.replace('\n', "\r\n")] {
            assert_eq!(RootKey::parse(text).unwrap().id(), root.id());
        }
    }

    #[test]
    fn what_waits_for_a_device_is_what_its_root_key_sealed() {
        let device: Arc<dyn Root> = Arc::new(InADevice(RootKey::generate().unwrap()));
        let file: Arc<dyn Root> = root();
        let material = Material::new(vec![5; 32]);
        let by = |root: &Arc<dyn Root>| root.seal(&name(), &material).unwrap();
        let (theirs, ours) = (by(&device), by(&file));
        let left = Roots::new(Arc::clone(&file), vec![Arc::clone(&device)]).unwrap();
        let entered = Roots::new(device, vec![file]).unwrap();
        for (roots, makes) in [(left, false), (entered, true)] {
            assert_eq!(roots.is_device(None), makes);
            assert!(roots.is_device(Some(&theirs)));
            assert!(!roots.is_device(Some(&ours)));
        }
    }

    #[derive(Debug)]
    struct InADevice(RootKey);

    impl Root for InADevice {
        fn seal(&self, name: &VersionName, key: &Material) -> Result<SealedKey, ProviderError> {
            self.0.seal(name, key)
        }

        fn open(&self, name: &VersionName, key: &SealedKey) -> Result<Material, ProviderError> {
            self.0.open(name, key)
        }

        fn seals(&self, key: &SealedKey) -> bool {
            self.0.seals(key)
        }

        fn mac_key(&self) -> Result<MacKey, ProviderError> {
            Root::mac_key(&self.0)
        }

        fn id(&self) -> RootKeyId {
            Root::id(&self.0)
        }

        fn is_device(&self, _: Option<&SealedKey>) -> bool {
            true
        }
    }

    #[test]
    fn what_is_not_a_root_key_is_refused() {
        let text = root().to_text();
        let base64 = text.trim_end().strip_prefix(PREFIX).unwrap();
        for bad in [
            "",
            "\n",
            PREFIX,
            base64,
            &text[..text.len() - 2],
            &format!(" {}", *text),
            &format!("{}\n", *text),
            &format!("{}x", *text),
            &format!("{PREFIX}{}", BASE64_STANDARD.encode([7; 31])),
            &format!("{PREFIX}{}", BASE64_STANDARD.encode([7; 33])),
            &format!("{PREFIX}{}", BASE64_STANDARD.encode([7; 64])),
            &text.replace("-1:", "-2:"),
        ] {
            let refused = matches!(RootKey::parse(bad), Err(RootKeyError::Malformed));
            assert!(refused, "{bad:?}");
        }
    }

    /// Computed with HKDF of the Python package `cryptography`: `HKDF(SHA256(), length, b"",
    /// info).derive(bytes([7] * 32))`.
    #[test]
    fn derived_keys_are_as_documented() {
        let root = root();
        assert_eq!(hex(&root.id()), "ef3382ebbeca9ab5");
        assert_eq!(
            hex(root.mac_key().expose()),
            "f96dbf944c1de54eb9e9e53cd0f59f5cc0422fcb6eddfdb7b8733e5a1f2d0f04"
        );
    }

    #[test]
    fn printing_shows_the_name_alone() {
        let printed = format!("{:?}", root());
        assert_eq!(printed, format!("RootKey({})", hex(&root().id())));
    }

    #[test]
    fn a_created_file_is_private_and_loads_and_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        let created = RootKey::create(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(RootKey::load(&path).unwrap().id(), created.id());

        let again = RootKey::create(&path);
        assert!(matches!(again, Err(RootKeyError::Exists)));
        assert_eq!(RootKey::load(&path).unwrap().id(), created.id());
    }

    #[test]
    fn a_file_that_others_may_read_or_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        RootKey::create(&path).unwrap();
        for (mode, loads) in [
            (0o400, true),
            (0o440, true),
            (0o660, true),
            (0o604, false),
            (0o602, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let loaded = RootKey::load(&path);
            assert_eq!(loaded.is_ok(), loads, "{mode:o}: {loaded:?}");
            assert!(loads || matches!(loaded, Err(RootKeyError::TooOpen)));
        }
    }

    #[test]
    fn a_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("key"), directory.path().join("link"));
        let created = RootKey::create(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(RootKey::load(&link).unwrap().id(), created.id());
    }

    #[test]
    fn a_missing_a_long_and_a_binary_file_are_told_apart_from_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.key");
        assert!(matches!(RootKey::load(&path), Err(RootKeyError::NotFound)));
        assert!(matches!(
            RootKey::load(directory.path()),
            Err(RootKeyError::TooOpen | RootKeyError::Io(_))
        ));
        for content in [vec![b'x'; 1 << 20], vec![0xff; 64]] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(RootKey::load(&path), Err(RootKeyError::Malformed)));
        }
    }

    #[test]
    fn a_sealed_key_is_laid_out_as_drawn() {
        let root = root();
        let sealed = root.seal(&name(), &Material::new(vec![1; 32])).unwrap();
        assert_eq!(sealed.0.len(), 1 + 8 + 24 + 32 + 16);
        assert_eq!(sealed.0[0], 1);
        assert_eq!(sealed.0[1..9], root.id());
        assert_eq!(
            root.open(&name(), &sealed).unwrap().expose(),
            vec![1; 32],
            "opens"
        );
    }

    #[test]
    fn a_sealed_key_opens_under_its_own_root_key_alone() {
        let sealed = root().seal(&name(), &Material::new(vec![1; 32])).unwrap();
        let other = RootKey::generate().unwrap();
        let answer = other.open(&name(), &sealed);
        assert!(matches!(answer, Err(ProviderError::BadSeal)));
        // Nor when it claims to be the other's.
        let mut renamed = sealed;
        renamed.0[1..9].copy_from_slice(&other.id());
        let answer = other.open(&name(), &renamed);
        assert!(matches!(answer, Err(ProviderError::BadSeal)));
    }

    #[test]
    fn of_several_root_keys_the_first_seals_and_all_open() {
        let (old, new) = (root(), other());
        let sealed_by_old = old.seal(&name(), &Material::new(vec![1; 32])).unwrap();
        let roots = Roots::new(new, vec![old.clone()]).unwrap();
        let sealed = roots.seal(&name(), &Material::new(vec![2; 32])).unwrap();
        assert!(roots.seals(&sealed) && roots.seals(&sealed_by_old));
        assert_eq!(roots.open(&name(), &sealed).unwrap().expose(), vec![2; 32]);
        let opened = roots.open(&name(), &sealed_by_old).unwrap();
        assert_eq!(opened.expose(), vec![1; 32]);
        let answer = old.open(&name(), &sealed);
        assert!(matches!(answer, Err(ProviderError::BadSeal)), "the first");
        assert_eq!(
            Root::mac_key(&roots).unwrap().expose(),
            other().mac_key().expose()
        );
        assert_eq!(roots.previous_ids(), [Root::id(&*old)]);
    }

    #[test]
    fn a_key_that_is_sealed_again_opens_without_the_old_root_key() {
        let (old, new) = (root(), other());
        let sealed = old.seal(&name(), &Material::new(vec![1; 32])).unwrap();
        let roots = Roots::new(new.clone(), vec![old]).unwrap();
        let again = roots.reseal(&name(), &sealed).unwrap().unwrap();
        assert_eq!(new.open(&name(), &again).unwrap().expose(), vec![1; 32]);
        assert_eq!(roots.reseal(&name(), &again).unwrap(), None, "it is done");

        let mut moved = name();
        moved.version = KeyVersion::new(2).unwrap();
        let answer = roots.reseal(&moved, &sealed);
        assert!(matches!(answer, Err(ProviderError::BadSeal)), "its place");
        let answer = new.reseal(&name(), &sealed);
        assert!(matches!(answer, Err(ProviderError::BadSeal)), "no old one");
    }

    #[test]
    fn a_root_key_that_is_there_twice_is_refused() {
        let twice = Roots::new(root(), vec![other(), root()]);
        assert_eq!(twice.unwrap_err(), Root::id(&*root()));
    }

    #[test]
    fn no_two_names_have_the_same_associated_data() {
        let root = root();
        let mut seen = HashSet::new();
        for project in ["p", "pp", "p0d0466b0"] {
            for id in [ID, "1d0466b0-e727-4d9c-b35d-f84bb474a37f"] {
                for version in [1, 2, 256] {
                    for spec in KeySpec::ALL {
                        let name = VersionName {
                            project: project.parse().unwrap(),
                            key_id: id.parse().unwrap(),
                            version: KeyVersion::new(version).unwrap(),
                            spec: *spec,
                        };
                        assert!(
                            seen.insert(associated_data(SUITE, &root.id, &name)),
                            "{name:?}"
                        );
                    }
                }
            }
        }
    }

    const ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

    fn root() -> Arc<RootKey> {
        RootKey::new(Zeroizing::new([7; 32])).unwrap().into()
    }

    fn other() -> Arc<RootKey> {
        RootKey::new(Zeroizing::new([8; 32])).unwrap().into()
    }

    fn name() -> VersionName {
        VersionName {
            project: "project".parse().unwrap(),
            key_id: ID.parse().unwrap(),
            version: KeyVersion::FIRST,
            spec: KeySpec::Aes256,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
