//! RSA and SM2 over gRPC, beside what the RPC and the primitive together allow.
//!
//! A call cannot be answered faster than an echo's, plus the time that the primitive takes on the same core. Both are
//! measured right beside the call: the echo with a message of the same kind, the primitive in a process of its own on the
//! servers' core, RSA straight from aws-lc-rs and SM2 from the provider.

use std::env;
use std::io::Read;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{OpenKey, Provider, VersionName};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::Plaintext;
use kmsgate::grpc::pb;
use kmsgate::grpc::pb::crypto_service_client::CryptoServiceClient;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext as Given;
use kmsgate::grpc::pb::key_service_client::KeyServiceClient;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::Outcome;
use crate::load::{self, Face, Prepared, Window};
use crate::machine::Cores;
use crate::server::Server;

/// The first argument that makes this program a primitive in a loop instead of a benchmark.
pub(crate) const ROLE: &str = "primitive";

/// Enough to keep the pool busy.
pub(crate) const IN_FLIGHT: u16 = 16;

/// The bytes of the plaintext: a data key.
const PLAINTEXT: usize = 32;

/// The specs with two halves.
pub(crate) const SPECS: [KeySpec; 4] = [
    KeySpec::Rsa2048,
    KeySpec::Rsa3072,
    KeySpec::Rsa4096,
    KeySpec::Sm2,
];

/// Which half of a key works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Encrypt, Self::Decrypt];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut both = Self::BOTH.into_iter();
        let found = both.find(|direction| direction.name() == text);
        found.ok_or_else(|| format!("no direction: {text}"))
    }
}

/// One row: calls, echoes and primitives per second, as often as there are pairs.
pub(crate) struct Row {
    pub(crate) spec: KeySpec,
    pub(crate) direction: Direction,
    pub(crate) rates: Vec<Rates>,
}

/// Measured one right after the other, per second.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) call: f64,
    pub(crate) echo: f64,
    pub(crate) primitive: f64,
}

impl Rates {
    /// What one core could do that made an echo and the primitive for each call, and nothing else.
    pub(crate) fn allowed(self) -> f64 {
        1.0 / (1.0 / self.echo + 1.0 / self.primitive)
    }
}

/// Measures `turns` times each way of each spec.
pub(crate) async fn rows(
    echo: &Server,
    subject: &Server,
    cores: &Cores,
    turns: u16,
    window: Window,
) -> Outcome<Vec<Row>> {
    let client = Client::connect(subject).await?;
    let mut rows = Vec::new();
    for spec in SPECS {
        let key_id = client.create(spec).await?;
        for direction in Direction::BOTH {
            let call = client.prepare(spec, direction, &key_id).await?;
            let floor = Prepared::new(echo, Face::Grpc, PLAINTEXT as u16).await?;
            let mut rates = Vec::new();
            for _ in 0..turns {
                rates.push(Rates {
                    echo: load::closed(&floor, IN_FLIGHT, window).await?.rate,
                    call: load::closed(&call, IN_FLIGHT, window).await?.rate,
                    primitive: primitive(cores, spec, direction, window.length)?,
                });
            }
            rows.push(Row {
                spec,
                direction,
                rates,
            });
        }
    }
    Ok(rows)
}

/// Makes an AES_256 key, and an RSA_4096 key, and says their ids.
pub(crate) async fn keys(server: &Server) -> Outcome<(String, String)> {
    let client = Client::connect(server).await?;
    let aes = client.create(KeySpec::Aes256).await?;
    Ok((aes, client.create(KeySpec::Rsa4096).await?))
}

/// DecryptData calls under this RSA_4096 key.
pub(crate) async fn decryptions(server: &Server, key_id: &str) -> Outcome<Prepared> {
    let client = Client::connect(server).await?;
    let decrypt = Direction::Decrypt;
    client.prepare(KeySpec::Rsa4096, decrypt, key_id).await
}

/// DecryptData calls under an RSA_4096 key of `server`, which keep the pool busy with the longest work that it has.
pub(crate) async fn longest(server: &Server) -> Outcome<Prepared> {
    let client = Client::connect(server).await?;
    let key_id = client.create(KeySpec::Rsa4096).await?;
    decryptions(server, &key_id).await
}

/// A caller of the subject.
struct Client<'a> {
    server: &'a Server,
    channel: Channel,
    token: MetadataValue<Ascii>,
}

impl<'a> Client<'a> {
    async fn connect(server: &'a Server) -> Outcome<Self> {
        let address = format!("http://{}", server.grpc);
        Ok(Self {
            server,
            channel: Endpoint::from_shared(address)?.connect().await?,
            token: server.token.parse()?,
        })
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let token = self.token.clone();
        request.metadata_mut().insert("x-auth-token", token);
        request
    }

    async fn create(&self, spec: KeySpec) -> Outcome<String> {
        let wanted = match spec {
            KeySpec::Rsa2048 => pb::KeySpec::Rsa2048,
            KeySpec::Rsa3072 => pb::KeySpec::Rsa3072,
            KeySpec::Rsa4096 => pb::KeySpec::Rsa4096,
            KeySpec::Sm2 => pb::KeySpec::Sm2,
            KeySpec::Aes256 => pb::KeySpec::Aes256,
        };
        let request = self.request(pb::CreateKeyRequest {
            project_id: self.server.project.clone(),
            key_alias: format!("bench-{}", spec.name()),
            key_spec: wanted.into(),
            key_usage: pb::KeyUsage::EncryptDecrypt.into(),
            ..pb::CreateKeyRequest::default()
        });
        let mut keys = KeyServiceClient::new(self.channel.clone());
        let made = keys.create_key(request).await?.into_inner();
        Ok(made.key_info.ok_or("no key_info")?.key_id)
    }

    /// The call of a row, with one answer already looked into.
    async fn prepare(
        &self,
        spec: KeySpec,
        direction: Direction,
        key_id: &str,
    ) -> Outcome<Prepared> {
        let algorithm = match spec {
            KeySpec::Sm2 => pb::EncryptionAlgorithm::Sm2Encrypt,
            _ => pb::EncryptionAlgorithm::RsaesOaepSha256,
        };
        let encrypt = pb::EncryptDataRequest {
            project_id: self.server.project.clone(),
            key_id: key_id.to_owned(),
            plaintext: Some(Given::PlainBytes(vec![b'a'; PLAINTEXT])),
            encryption_algorithm: algorithm.into(),
            ..pb::EncryptDataRequest::default()
        };
        if direction == Direction::Encrypt {
            let answer = pb::EncryptDataResponse {
                key_id: key_id.to_owned(),
                cipher_text: Vec::new(),
            };
            return Prepared::unary(self.server, "EncryptData", &encrypt, &answer).await;
        }
        let mut crypto = CryptoServiceClient::new(self.channel.clone());
        let encrypted = crypto.encrypt_data(self.request(encrypt)).await?;
        let decrypt = pb::DecryptDataRequest {
            project_id: self.server.project.clone(),
            key_id: key_id.to_owned(),
            cipher_text: encrypted.into_inner().cipher_text,
            encryption_algorithm: algorithm.into(),
            ..pb::DecryptDataRequest::default()
        };
        let answer = pb::DecryptDataResponse {
            key_id: key_id.to_owned(),
            plain_text: "a".repeat(PLAINTEXT),
            plain_bytes: vec![b'a'; PLAINTEXT],
        };
        Prepared::unary(self.server, "DecryptData", &decrypt, &answer).await
    }
}

/// How often a process on the servers' core can do the primitive in a second.
fn primitive(cores: &Cores, spec: KeySpec, direction: Direction, length: Duration) -> Outcome<f64> {
    let program = env::current_exe()?;
    let program = program.to_str().ok_or("a path that is not UTF-8")?;
    let mut child = cores
        .command(program)
        .args([ROLE, spec.name(), direction.name()])
        .arg(length.as_secs_f64().to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut rate = String::new();
    let mut printed = child.stdout.take().ok_or("no standard output")?;
    printed.read_to_string(&mut rate)?;
    if !child.wait()?.success() {
        return Err("a primitive failed".into());
    }
    Ok(rate.trim_end().parse()?)
}

/// Does one primitive for a while, and prints how often in a second: `SPEC DIRECTION SECONDS`.
pub(crate) fn repeat(mut words: impl Iterator<Item = String>) -> Outcome<()> {
    let mut word = || words.next().ok_or("SPEC DIRECTION SECONDS");
    let name = word()?;
    let mut specs = SPECS.into_iter();
    let spec = specs.find(|spec| spec.name() == name).ok_or("no spec")?;
    let direction = word()?.parse()?;
    let length = Duration::from_secs_f64(word()?.parse()?);
    let mut work = match spec {
        KeySpec::Rsa2048 => rsa(KeySize::Rsa2048, direction)?,
        KeySpec::Rsa3072 => rsa(KeySize::Rsa3072, direction)?,
        KeySpec::Rsa4096 => rsa(KeySize::Rsa4096, direction)?,
        spec => provided(spec, direction)?,
    };
    work()?;
    let began = Instant::now();
    let mut done = 0_u32;
    while began.elapsed() < length {
        work()?;
        done += 1;
    }
    println!("{}", f64::from(done) / began.elapsed().as_secs_f64());
    Ok(())
}

type Work = Box<dyn FnMut() -> Outcome<()>>;

/// RSAES-OAEP as the fastest library does it.
fn rsa(size: KeySize, direction: Direction) -> Outcome<Work> {
    let private = PrivateDecryptingKey::generate(size)?;
    let public = OaepPublicEncryptingKey::new(private.public_key())?;
    let private = OaepPrivateDecryptingKey::new(private)?;
    let plaintext = [b'a'; PLAINTEXT];
    let mut ciphertext = vec![0; public.ciphertext_size()];
    public.encrypt(&OAEP_SHA256_MGF1SHA256, &plaintext, &mut ciphertext, None)?;
    let mut buffer = vec![0; ciphertext.len()];
    Ok(match direction {
        Direction::Encrypt => Box::new(move || {
            public.encrypt(&OAEP_SHA256_MGF1SHA256, &plaintext, &mut buffer, None)?;
            Ok(())
        }),
        Direction::Decrypt => Box::new(move || {
            private.decrypt(&OAEP_SHA256_MGF1SHA256, &ciphertext, &mut buffer, None)?;
            Ok(())
        }),
    })
}

/// A pair of the provider's.
fn provided(spec: KeySpec, direction: Direction) -> Outcome<Work> {
    let provider = RustCrypto::new(Arc::new(RootKey::generate()?));
    let name = VersionName {
        project: "53d1aefc533f4ce9a59c26b01667cbcf".parse()?,
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse()?,
        version: KeyVersion::FIRST,
        spec,
    };
    let sealed = provider.generate(&name)?;
    let OpenKey::Pair(pair) = provider.open(&name, &sealed)? else {
        return Err("not a pair".into());
    };
    let plaintext = Plaintext::new(vec![b'a'; PLAINTEXT]);
    let ciphertext = pair.encrypt(&plaintext)?;
    Ok(match direction {
        Direction::Encrypt => Box::new(move || {
            pair.encrypt(&plaintext)?;
            Ok(())
        }),
        Direction::Decrypt => Box::new(move || {
            pair.decrypt(&ciphertext)?;
            Ok(())
        }),
    })
}
