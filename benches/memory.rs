//! What opened keys take of memory, by what the kernel counts to the process before and after: a version of each
//! spec, and a keyring with a million AES-256 keys.
//!
//! The keys of the keyring are made when they are asked for, by a store that keeps nothing, so that only the keyring
//! grows. Every key is opened and encrypts once.

#![allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use clap::{Parser, ValueEnum};
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::pool::Pool;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{Choice, OpenKey, Provider, Providers, VersionName};
use kmsgate::domain::caller::{Actions, Caller};
use kmsgate::domain::frame::{HEAD, Head, Suite};
use kmsgate::domain::key::{KeyDescription, KeyId, KeySpec, KeyState, KeyUsage, KeyVersion};
use kmsgate::domain::secret::Plaintext;
use kmsgate::domain::time::Timestamp;
use kmsgate::service::keyring::Keyring;
use kmsgate::store::{
    Address, Change, KeyRecord, KeyStore, Prefix, Record, Revision, StoreError, VersionRecord,
    Versioned,
};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Opens keys, fills a keyring with AES-256 keys, and prints what each takes of memory.
#[derive(Parser)]
#[command(name = "memory", bin_name = "cargo bench --bench memory --")]
struct Args {
    /// How many keys are opened.
    #[arg(long, default_value = "1000000")]
    keys: u64,

    /// Whose keys.
    #[arg(long, default_value = "aws-lc-rs")]
    provider: Name,

    /// Passed by `cargo bench`; without it nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,

    /// Passed by `cargo test`.
    #[arg(long, hide = true)]
    test: bool,
}

/// The providers that have AES-256, by their names in a configuration.
#[derive(Clone, Copy, ValueEnum)]
enum Name {
    #[value(name = "aws-lc-rs")]
    AwsLc,
    #[value(name = "rustcrypto")]
    RustCrypto,
}

/// How many ask at a time.
const CALLERS: u64 = 8;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.test || !args.bench {
        return ExitCode::SUCCESS;
    }
    match versions().and_then(|()| measure(args.keys, args.provider)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Opens one key of each spec over and over, and encrypts with each once.
fn versions() -> Outcome<()> {
    let root = Arc::new(RootKey::generate()?);
    let aws_lc: Arc<dyn Provider> = Arc::new(AwsLc::new(Arc::<RootKey>::clone(&root)));
    let rustcrypto: Arc<dyn Provider> = Arc::new(RustCrypto::new(root));
    println!("| spec | provider | opened | bytes for a version |\n|---|---|--:|--:|");
    for &spec in KeySpec::ALL {
        for provider in [&aws_lc, &rustcrypto] {
            if !provider.supports(spec) {
                continue;
            }
            let opened = match spec {
                KeySpec::Aes256 => 100_000,
                _ => 5_000,
            };
            let bytes = version(spec, &**provider, opened)?;
            println!(
                "| {} | {} | {opened} | {bytes} |",
                spec.name(),
                provider.name()
            );
        }
    }
    println!();
    Ok(())
}

fn version(spec: KeySpec, provider: &dyn Provider, opened: usize) -> Outcome<u64> {
    let name = VersionName {
        project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
        key_id: KeyId::from_random([7; 16]),
        version: KeyVersion::FIRST,
        spec,
    };
    let sealed = provider.generate(&name)?;
    let use_once = || {
        let key = provider.open(&name, &sealed)?;
        let text = Plaintext::new(vec![b'a'; 32]);
        match &key {
            OpenKey::Symmetric(key) => {
                let mut frame = vec![0; HEAD];
                key.encrypt(&mut frame, &text, &[])?;
            }
            OpenKey::Pair(key) => drop(key.encrypt(&text)?),
        }
        Outcome::Ok(key)
    };
    let mut keys = Vec::with_capacity(opened);
    keys.extend((0..opened / 100).map(|_| use_once()));
    let (before, first) = (resident()?, keys.len());
    keys.extend((first..opened).map(|_| use_once()));
    let taken = resident()? - before;
    for key in keys {
        // What is freed would be taken again by the next, and not counted to it.
        std::mem::forget(key?);
    }
    Ok(taken / (opened - first) as u64)
}

fn measure(keys: u64, name: Name) -> Outcome<()> {
    let root = Arc::new(RootKey::generate()?);
    let sm2 = Arc::new(RustCrypto::new(Arc::<RootKey>::clone(&root)));
    let provider: Arc<dyn Provider> = match name {
        Name::AwsLc => Arc::new(AwsLc::new(root)),
        Name::RustCrypto => Arc::<RustCrypto>::clone(&sm2),
    };
    let ring = Ring {
        store: Made(Arc::clone(&provider)),
        // A cache in shards is full before each shard is, so that a little more is asked for.
        keyring: Keyring::new(usize::try_from(keys + keys / 8 + 1024)?),
        providers: Arc::new(Providers::new(vec![
            Choice {
                provider,
                specs: None,
            },
            Choice {
                provider: sm2,
                specs: None,
            },
        ])?),
        pool: Pool::new(1, 1)?,
        caller: Caller {
            name: "memory".into(),
            project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
            roles: Arc::default(),
            actions: Actions::default(),
        },
    };
    let ring = Arc::new(ring);
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    // The threads, and what the first use of everything leaves behind.
    runtime.block_on(use_all(&ring, keys, keys + 1000))?;
    let before = resident()?;
    runtime.block_on(use_all(&ring, 0, keys))?;
    let after = resident()?;
    let held = ring.keyring.len() as u64;
    if held < keys {
        return Err(format!("only {held} of {keys} keys are held").into());
    }
    println!("| keys | resident before, MiB | after, MiB | bytes for a key |\n|--:|--:|--:|--:|");
    println!(
        "| {keys} | {} | {} | **{}** |",
        before >> 20,
        after >> 20,
        (after - before) / keys
    );
    Ok(())
}

/// A keyring and what it needs.
struct Ring {
    store: Made,
    keyring: Keyring,
    providers: Arc<Providers>,
    pool: Pool,
    caller: Caller,
}

/// Encrypts once under each of these keys.
async fn use_all(ring: &Arc<Ring>, first: u64, end: u64) -> Outcome<()> {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let ring = Arc::clone(ring);
        callers.spawn(async move {
            for number in (first + caller..end).step_by(CALLERS as usize) {
                ring.use_one(KeyId::from_random(u128::from(number).to_be_bytes()))
                    .await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

impl Ring {
    async fn use_one(&self, key_id: KeyId) -> Outcome<()> {
        let found = self
            .keyring
            .find(&self.store, &self.caller.project, key_id)
            .await?;
        let held = found.ok_or("no key")?;
        let (version, key) = held
            .newest(&self.providers, self.pool.share(&self.caller))
            .await?;
        let OpenKey::Symmetric(key) = &**key else {
            return Err("not symmetric".into());
        };
        let head = Head {
            suite: Suite::Xaes256Gcm,
            has_aad: false,
            version,
            key_id,
        };
        let mut frame = head.to_bytes().to_vec();
        key.encrypt(&mut frame, &Plaintext::new(vec![b'a'; 32]), &[])?;
        Ok(())
    }
}

/// Has every key that is asked for, as CreateKey would have made it, and keeps none.
#[derive(Debug)]
struct Made(Arc<dyn Provider>);

#[async_trait]
impl KeyStore for Made {
    async fn get(&self, address: &Address) -> Result<Option<Versioned>, StoreError> {
        let Address::Key(project, key_id) = address else {
            return Ok(None);
        };
        let name = VersionName {
            project: project.as_str().parse().map_err(unavailable)?,
            key_id: *key_id,
            version: KeyVersion::FIRST,
            spec: KeySpec::Aes256,
        };
        let sealed = self.0.generate(&name).map_err(unavailable)?;
        let record = Record::Key(KeyRecord {
            alias: format!("a-name-of-some-length/{key_id}")
                .parse()
                .map_err(unavailable)?,
            description: KeyDescription::default(),
            spec: name.spec,
            usage: KeyUsage::EncryptDecrypt,
            state: KeyState::Enabled,
            created: Timestamp(0),
            deletion: None,
            versions: vec![VersionRecord {
                version: name.version,
                created: Timestamp(0),
                sealed: sealed.0,
            }],
            project: name.project,
            key_id: name.key_id,
        });
        let revision = Revision(1);
        Ok(Some(Versioned {
            record,
            revision,
            current: true,
        }))
    }

    async fn put(&self, _: Vec<Change>) -> Result<Revision, StoreError> {
        Err(unavailable("nothing is kept here"))
    }

    async fn list(
        &self,
        _: &Prefix,
        _: Option<&Address>,
        _: usize,
    ) -> Result<Vec<Versioned>, StoreError> {
        Ok(Vec::new())
    }
}

fn unavailable(error: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Unavailable(error.into())
}

/// The memory of this process that lies in RAM, in bytes.
fn resident() -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let value = lines.find_map(|line| line.strip_prefix("VmRSS:"));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    Ok(value.ok_or("no VmRSS")?.parse::<u64>()? * 1024)
}
