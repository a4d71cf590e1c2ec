//! `kmsgate dev`: a server to try things out with.
//!
//! Everything is in one directory: the root key, the store, the credentials, the configuration
//! (which `kmsgate serve` reads as well), and `dev.env` with what a client needs. A second start
//! finds it all again.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::auth::token;
use crate::cli::client::{dev_value, told};
use crate::cli::operate::stop_signal;
use crate::cli::{Dev, Failure, say};
use crate::config::{Config, Log, LogFormat};
use crate::crypto::root::RootKey;
use crate::domain::address::Address;
use crate::domain::key::{KeyId, KeySpec};
use crate::grpc::pb;
use crate::grpc::pb::crypto_service_client::CryptoServiceClient;
use crate::grpc::pb::encrypt_data_request::Plaintext;
use crate::server::{Listeners, Server, random};
use crate::telemetry;

/// How long it takes at most to see that a server is stopping.
const STOPPING: Duration = Duration::from_secs(1);

/// The project and the key of the documentation's example (EncryptData page, request example).
const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";
const KEY: &str = "0d0466b0-e727-4d9c-b35d-f84bb474a37f";

/// The example's plaintext.
const HELLO: &str = "hello world";

impl Dev {
    /// Makes what is missing, serves, shows that it works, and goes on serving.
    pub(super) async fn run(self) -> Result<(), Failure> {
        telemetry::log(&Log {
            filter: self.log.clone(),
            format: LogFormat::Text,
        })?;
        let stop = stop_signal()?;
        let files = Files::new(&self.data);
        let credentials = files.prepare()?;
        let config = files.config(&self);
        write(&files.path("kmsgate.toml"), &config)?;
        let mut config = Config::parse(&config)?;
        config.shutdown.lag = Duration::ZERO;
        let server = Server::build(&config)?;
        server.claim_store().await?;
        let listeners = Listeners::bind(&config).await?;

        let project = PROJECT.parse()?;
        let key =
            async |alias, spec, key_id| server.ensure_key(&project, alias, spec, key_id).await;
        let keys = Keys {
            aes: key("dev-aes", KeySpec::Aes256, Some(KEY.parse()?)).await?,
            rsa: key("dev-rsa", KeySpec::Rsa3072, None).await?,
            sm2: key("dev-sm2", KeySpec::Sm2, None).await?,
        };
        let addresses = Addresses {
            grpc: listeners.grpc.address()?,
            rest: listeners.rest.address()?,
            admin: listeners.admin.address()?,
        };
        files.write_env(&credentials, &keys, &addresses)?;

        let mut serving = std::pin::pin!(server.serve(listeners, stop));
        tokio::select! {
            // Stopped before the first words were out.
            stopped = &mut serving => return Ok(stopped?),
            shown = show(&files, &credentials, &addresses) => if let Err(failed) = shown {
                // The first call fails, too, if the server is told to stop under it.
                let stopped = tokio::time::timeout(STOPPING, &mut serving).await;
                return Ok(stopped.map_err(|_| failed)??);
            },
        }
        Ok(serving.await?)
    }
}

/// The files of a data directory.
struct Files {
    dir: PathBuf,
}

/// What a client of the dev server proves itself with.
struct Credentials {
    token: Zeroizing<String>,
    access_key: String,
    secret_key: Zeroizing<String>,
}

/// The first keys.
struct Keys {
    aes: KeyId,
    rsa: KeyId,
    sm2: KeyId,
}

/// Where the server listens.
struct Addresses {
    grpc: Address,
    rest: Address,
    admin: Address,
}

impl Files {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes the directory, the root key and the credentials, where they are missing.
    fn prepare(&self) -> Result<Credentials, Failure> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)?;
        let root = self.path("root.key");
        if !root.try_exists()? {
            if self.path("keys.db").try_exists()? {
                return Err(format!(
                    "{} is gone, and without it no key in {} opens",
                    root.display(),
                    self.path("keys.db").display()
                )
                .into());
            }
            RootKey::create(&root)?;
        }
        let credentials = match self.read_credentials()? {
            Some(credentials) => credentials,
            None => Credentials {
                token: Zeroizing::new(hex(&random::<32>()?)),
                access_key: format!("DEV{}", hex(&random::<8>()?).to_uppercase()),
                secret_key: Zeroizing::new(hex(&random::<20>()?)),
            },
        };
        let caller =
            |name| format!("name = \"{name}\"\nproject = \"{PROJECT}\"\nactions = [\"kms:*\"]\n");
        let tokens = format!(
            "[[token]]\nsha256 = \"{}\"\n{}",
            token::hash(credentials.token.as_bytes()),
            caller("dev-token")
        );
        let access_keys = Zeroizing::new(format!(
            "[[access_key]]\naccess_key = \"{}\"\nsecret_key = \"{}\"\n{}",
            credentials.access_key,
            *credentials.secret_key,
            caller("dev-access-key")
        ));
        write(&self.path("tokens.toml"), &tokens)?;
        write(&self.path("access-keys.toml"), &access_keys)?;
        Ok(credentials)
    }

    /// The credentials that an earlier start wrote down; none if there was none.
    fn read_credentials(&self) -> Result<Option<Credentials>, Failure> {
        let path = self.path("dev.env");
        if !path.try_exists()? {
            return Ok(None);
        }
        let text = Zeroizing::new(fs::read_to_string(&path)?);
        let value = |name: &str| dev_value(&text, name).map(str::to_owned);
        let read = (
            value("KMSGATE_TOKEN"),
            value("KMSGATE_AK"),
            value("KMSGATE_SK"),
        );
        let (Some(token), Some(access_key), Some(secret_key)) = read else {
            return Ok(None);
        };
        Ok(Some(Credentials {
            token: Zeroizing::new(token),
            access_key,
            secret_key: Zeroizing::new(secret_key),
        }))
    }

    /// The configuration, for this server and for `kmsgate serve`.
    fn config(&self, asked: &Dev) -> String {
        let path = |name| toml::Value::from(self.path(name).display().to_string());
        format!(
            "grpc = \"{}\"\nrest = \"{}\"\nadmin = \"{}\"\nreflection = true\nroot_key_file = {}\n\
             \n[store]\nkind = \"sqlite\"\npath = {}\n\
             \n[auth]\ntoken_file = {}\naccess_key_file = {}\n\
             \n[audit]\nkind = \"file\"\npath = {}\n",
            asked.grpc,
            asked.rest,
            asked.admin,
            path("root.key"),
            path("keys.db"),
            path("tokens.toml"),
            path("access-keys.toml"),
            path("audit.jsonl"),
        )
    }

    fn write_env(
        &self,
        credentials: &Credentials,
        keys: &Keys,
        addresses: &Addresses,
    ) -> Result<(), Failure> {
        let text = Zeroizing::new(format!(
            "KMSGATE_TOKEN={}\nKMSGATE_AK={}\nKMSGATE_SK={}\nKMSGATE_PROJECT={PROJECT}\n\
             KMSGATE_AES_KEY={}\nKMSGATE_RSA_KEY={}\nKMSGATE_SM2_KEY={}\n\
             KMSGATE_GRPC={}\nKMSGATE_REST={}\nKMSGATE_ADMIN={}\n",
            *credentials.token,
            credentials.access_key,
            *credentials.secret_key,
            keys.aes,
            keys.rsa,
            keys.sm2,
            addresses.grpc,
            addresses.rest,
            addresses.admin,
        ));
        write(&self.path("dev.env"), &text)
    }

    /// `dev.env` as a shell sources it: a path with a slash in it, quoted if it needs to be.
    fn env_to_source(&self) -> String {
        let path = self.path("dev.env").display().to_string();
        let path = if path.contains('/') {
            path
        } else {
            format!("./{path}")
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        if path.chars().all(plain) {
            path
        } else {
            format!("'{}'", path.replace('\'', r"'\''"))
        }
    }
}

/// Writes a file that its owner alone can read, in one step: a reader sees the old text or the new.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("new");
    // A file that was left over by a crash may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    Ok(())
}

/// Sends one EncryptData over each face and shows both as a person would like to read them.
async fn show(
    files: &Files,
    credentials: &Credentials,
    addresses: &Addresses,
) -> Result<(), Failure> {
    let Addresses { grpc, rest, admin } = addresses;
    let path = format!("/v1.0/{PROJECT}/kms/encrypt-data");
    let body = example();
    let request = Request::post(format!("http://{rest}{path}"))
        .header("x-auth-token", credentials.token.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.clone())))?;
    let client = HttpClient::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await?;
    let status = answer.status();
    let answered = answer.into_body().collect().await?.to_bytes();
    let answered: RestAnswer = serde_json::from_slice(&answered).map_err(|_| {
        format!(
            "REST answered {status}: {}",
            String::from_utf8_lossy(&answered)
        )
    })?;

    let mut client = CryptoServiceClient::connect(format!("http://{grpc}")).await?;
    let mut request = tonic::Request::new(pb::EncryptDataRequest {
        key_id: KEY.to_owned(),
        plaintext: Some(Plaintext::PlainText(HELLO.to_owned())),
        ..pb::EncryptDataRequest::default()
    });
    request
        .metadata_mut()
        .insert("x-auth-token", credentials.token.parse()?);
    let encrypted = client
        .encrypt_data(request)
        .await
        .map_err(told)?
        .into_inner();
    let cipher_text = STANDARD.encode(encrypted.cipher_text);
    let compact = format!(r#"{{"key_id":"{KEY}","plain_text":"{HELLO}"}}"#);

    let env = files.env_to_source();
    say(format!(
        "kmsgate dev is serving. Stop it with Ctrl-C; delete {dir} to start anew.

  gRPC   {grpc}
  REST   http://{rest}
  admin  http://{admin}   /livez /readyz /metrics
  data   {dir}   dev.env has the credentials and the keys

EncryptData over REST

  POST {path}
{body}
  {status}
{answered}

EncryptData over gRPC

  kmsgate.v1.CryptoService/EncryptData
{asked_grpc}
  OK
{answered_grpc}

Paste into another terminal:

  . {env} && curl -s -X POST -H \"X-Auth-Token: $KMSGATE_TOKEN\" -d '{compact}' http://{rest}{path}

  . {env} && grpcurl -plaintext -H \"x-auth-token: $KMSGATE_TOKEN\" -d '{compact}' {grpc} kmsgate.v1.CryptoService/EncryptData
",
        dir = files.dir.display(),
        body = indented(&body),
        answered = indented(&pair(&answered.key_id, "cipher_text", &answered.cipher_text)),
        asked_grpc = indented(&pair(KEY, "plain_text", HELLO)),
        answered_grpc = indented(&pair(&encrypted.key_id, "cipher_text", &cipher_text)),
    ))
}

/// What REST answers.
#[derive(Deserialize)]
struct RestAnswer {
    key_id: String,
    cipher_text: String,
}

/// The documentation's request example.
fn example() -> String {
    format!(
        "{{\n  \"key_id\" : \"{KEY}\",\n  \"plain_text\" : \"{HELLO}\",\n  \
         \"encryption_algorithm\" : \"SYMMETRIC_DEFAULT\"\n}}"
    )
}

/// An object with a key id and one more member, as the documentation prints it.
fn pair(key_id: &str, name: &str, value: &str) -> String {
    format!("{{\n  \"key_id\" : \"{key_id}\",\n  \"{name}\" : \"{value}\"\n}}")
}

/// Text with each line moved to the right.
fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
