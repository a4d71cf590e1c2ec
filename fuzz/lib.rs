//! What the targets share: fixed keys, a fixed time, files in memory.
//!
//! A target fails by panicking. What each holds its input to stands at its top.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process;
use std::sync::Arc;
use std::task::{self, Poll, Waker};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::{Root, RootKey};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{KeyPair, OpenKey, Provider, Symmetric, VersionName};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::Material;
use kmsgate::domain::time::{Clock, Timestamp};

/// The project of every key and caller.
pub const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";

/// The id of the key that a target works with.
pub const KEY_ID: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

/// An RSA_2048 key in PKCS#8.
pub const RSA_2048: &str = include_str!("../tests/vectors/rsa_2048.pem");

/// An SM2 key in PKCS#8.
pub const SM2: &str = include_str!("../tests/vectors/sm2.pem");

/// A root key that is the same in every run.
pub fn root() -> RootKey {
    let base64 = BASE64_STANDARD.encode([7; 32]);
    RootKey::parse(&format!("KMSGATE-ROOT-KEY-1:{base64}")).unwrap()
}

/// Every provider in software.
pub fn providers() -> Vec<Box<dyn Provider>> {
    let root: Arc<dyn Root> = Arc::new(root());
    vec![
        Box::new(AwsLc::new(Arc::clone(&root))),
        Box::new(RustCrypto::new(root)),
    ]
}

/// The first version of [`KEY_ID`].
pub fn name(spec: KeySpec) -> VersionName {
    VersionName {
        project: PROJECT.parse().unwrap(),
        key_id: KEY_ID.parse().unwrap(),
        version: KeyVersion::FIRST,
        spec,
    }
}

/// The AES key of the bytes 1, once for each provider.
pub fn aes() -> Vec<Box<dyn Symmetric>> {
    let keys = opened(KeySpec::Aes256, &[1; 32]).into_iter();
    let symmetric = keys.map(|key| match key {
        OpenKey::Symmetric(key) => key,
        OpenKey::Pair(_) => unreachable!("an AES key is no pair"),
    });
    symmetric.collect()
}

/// The pair of a PEM file, once for each provider that has the spec.
pub fn pairs(spec: KeySpec, pem: &str) -> Vec<Box<dyn KeyPair>> {
    let keys = opened(spec, &der(pem)).into_iter();
    let pairs = keys.map(|key| match key {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => unreachable!("a pair is no AES key"),
    });
    pairs.collect()
}

fn opened(spec: KeySpec, material: &[u8]) -> Vec<OpenKey> {
    let providers = providers();
    let having = providers.iter().filter(|one| one.supports(spec));
    let open = having.map(|provider| {
        let material = Material::new(material.to_vec());
        let sealed = provider.seal(&name(spec), &material).unwrap();
        provider.open(&name(spec), &sealed).unwrap()
    });
    open.collect()
}

/// What is inside a PEM file.
pub fn der(pem: &str) -> Vec<u8> {
    let lines = pem.lines().filter(|line| !line.starts_with('-'));
    BASE64_STANDARD.decode(lines.collect::<String>()).unwrap()
}

/// Takes the first byte off the input; 0 if there is none.
pub fn byte(data: &mut &[u8]) -> u8 {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    *data = rest;
    *first
}

/// Takes a part off the input: its length in one byte, then as much of it as there is.
pub fn part<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::from(byte(data)).min(data.len());
    let (part, rest) = data.split_at(length);
    *data = rest;
    part
}

/// A time that stands still: the moment of the contract's example of a signature, a second later.
#[derive(Debug)]
pub struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(1_573_789_016_000)
    }
}

/// A file without a name, in memory where the system has a place for that, and gone with the
/// process. Its path is that of its descriptor.
#[derive(Debug)]
pub struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    /// An empty file, which its owner alone may read.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            memory.to_owned()
        } else {
            std::env::temp_dir()
        };
        let name = folder.join(format!("kmsgate-fuzz-{}", process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let file = options.open(&name).unwrap();
        fs::remove_file(&name).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { file, path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts other content into it.
    pub fn write(&self, content: &[u8]) {
        self.file.set_len(0).unwrap();
        self.file.write_all_at(content, 0).unwrap();
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer of a future that waits for nothing.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = task::Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a future that should not wait waits"),
    }
}
