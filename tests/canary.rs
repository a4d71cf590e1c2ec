//! Secrets do not leak: whatever the program is asked, and however it fails, none of them is in
//! anything it writes.
//!
//! Every operation is driven on every face, well and badly, with secrets that can be recognised and
//! with every log line turned on. Then all that came out is searched: both output streams, the
//! audit, the metrics, and every answer's headers and error.

mod program;

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http_body_util::Full;
use prost::Message;
use prost_types::FileDescriptorSet;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Response, Status};

use kmsgate::audit::json_lines::JsonLines;
use kmsgate::auth::Chain;
use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::policy::Policy;
use kmsgate::auth::token::{Entry, Tokens};
use kmsgate::crypto::pool::Pool;
use kmsgate::crypto::root::{Root, RootKey};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{Provider, Providers, VersionName};
use kmsgate::domain::algorithm::EncryptionAlgorithm;
use kmsgate::domain::caller::{Actions, Caller};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::request::{Aad, RequestId};
use kmsgate::domain::secret::{MacKey, Material, Plaintext};
use kmsgate::grpc::pb;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext as Text;
use kmsgate::server::SystemClock;
use kmsgate::service::keyring::Keyring;
use kmsgate::service::limits::Limits;
use kmsgate::service::{Context, Decrypt, Decrypted, Encrypt, Kms, Listings};
use kmsgate::store::codec::Codec;
use kmsgate::store::memory::Memory;
use kmsgate::store::root_keys::RootKeys;
use kmsgate::store::sqlite::Sqlite;
use kmsgate::store::{KeyStore, Prefix, Record};

use crate::program::{
    Answer, Dev, ENTRY, Grpc, PROJECT, Program, Site, TOKEN, call, entry, fetch, run, send,
};

/// What is encrypted.
const PLAINTEXT: &str = "canary-plaintext-Zq7vWm2Kp9Xr4Tj8";
/// What is bound to it. Not secret to the caller, and yet a request byte.
const AAD: &str = "canary-aad-Hn3bVc6Ls1Yd5Gf0";
/// Stands wherever a request can hold text that is wrong.
const REQUEST: &str = "canary-request-Ju8nBw5Ex2Qo7Mi4";
/// A token that was valid once.
const EXPIRED: &str = "canary-expired-Ra6tCy1Pz9Ks3Dw8";
/// A token that nobody was ever given: as a rule a valid one, mistyped.
const UNKNOWN: &str = "canary-unknown-Fb4hNx7Ug2Ev0Lq5";
/// A token with few rights.
const NARROW: &str = "canary-narrow-Sp3kIm8Ot6Aj1Wc9";
const ACCESS_KEY: &str = "AKEXAMPLE0000000000";
const SECRET_KEY: &str = "canary-secret-Td9yGl5Vr2Bn7Xe0";

/// A key id that no key has.
const NO_KEY: &str = "00000000-0000-0000-0000-000000000000";

#[tokio::test]
async fn a_server_and_a_gateway_write_no_secret() {
    let site = site();
    let (server, at) = site.serve();
    let upstream = format!("http://{}", at.grpc);
    let free = "127.0.0.1:0";
    let (gateway, front) = Program::serve([
        "gateway",
        "--shutdown-lag",
        "0ms",
        "--upstream",
        &upstream,
        "--rest",
        free,
        "--admin",
        free,
        "--log",
        "trace",
    ]);

    let mut seen = Seen::default();
    drive_rest(&mut seen, at.rest, TOKEN).await;
    drive_rest(&mut seen, front.rest, TOKEN).await;
    drive_grpc(&mut seen, at.grpc, TOKEN).await;
    let signatures = [
        drive_credentials(&mut seen, at.rest).await,
        drive_credentials(&mut seen, front.rest).await,
    ];
    for address in [at.grpc, at.rest, at.admin, front.rest, front.admin] {
        drive_garbage(&mut seen, address).await;
    }
    drive_credential_files(&site, &server).await;
    for (name, address) in [("server", at.admin), ("gateway", front.admin)] {
        seen.add(
            &format!("metrics of the {name}"),
            fetch(address, "/metrics").await.text,
        );
    }
    seen.add_output("gateway", gateway.stop());
    seen.add_output("server", server.stop());
    let audit = std::fs::read_to_string(site.path("audit.jsonl")).unwrap();
    seen.add("audit", audit);

    let mut secrets = secrets();
    secrets.add("token", TOKEN);
    for signature in signatures {
        // Whoever has it may send the request again while its date is near.
        secrets.add("signature", signature);
    }
    secrets.add_root(&RootKey::load(&site.path("root.key")).unwrap());
    secrets.add_sealed(&site).await;
    seen.holds_none_of(&secrets);
    seen.is_of_every_method();
    seen.is_a_real_search();
    seen.has_every_line_of("server");
    seen.has_every_line_of("gateway");
}

#[tokio::test]
async fn a_dev_server_and_the_commands_write_no_secret() {
    let dir = tempfile::TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &["--log", "trace"]);
    let mut seen = Seen::default();
    drive_rest(&mut seen, dev.at.rest, dev.token()).await;
    drive_grpc(&mut seen, dev.at.grpc, dev.token()).await;
    let data = dir.path().to_str().unwrap();
    for arguments in [
        vec!["encrypt", "--dev", data, dev.key(), "--aad", AAD],
        vec!["encrypt", "--dev", data, NO_KEY, "--aad", AAD],
        vec!["decrypt", "--dev", data, "--aad", AAD],
        vec![
            "decrypt",
            "--dev",
            data,
            "--algorithm",
            "SM2_ENCRYPT",
            dev.key(),
        ],
        vec!["key", "--dev", data, "list"],
        vec!["key", "--dev", data, "describe", REQUEST],
        vec!["token", "hash"],
    ] {
        let input = match arguments[0] {
            "decrypt" => STANDARD.encode(PLAINTEXT),
            _ => PLAINTEXT.to_owned(),
        };
        let output = run(&arguments, input.as_bytes());
        let name = arguments.join(" ").replace(AAD, "AAD");
        seen.add(&name, String::from_utf8(output.stdout).unwrap());
        seen.add(&name, String::from_utf8(output.stderr).unwrap());
    }
    // A token file that holds something else.
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, format!("{UNKNOWN}\n{UNKNOWN}")).unwrap();
    let server = format!("http://{}", dev.at.grpc);
    let wrong = wrong.to_str().unwrap();
    let list = ["key", "--server", &server, "--token-file", wrong, "list"];
    let output = run(list, b"");
    assert!(!output.status.success());
    seen.add(
        "a bad token file",
        String::from_utf8(output.stderr).unwrap(),
    );

    let mut secrets = secrets();
    secrets.add("token", dev.token());
    secrets.add("secret key of dev", &dev.env["KMSGATE_SK"]);
    seen.add("metrics", fetch(dev.at.admin, "/metrics").await.text);
    seen.add_output("dev", dev.program.stop());
    let audit = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    seen.add("audit", audit);
    let root = RootKey::load(&dir.path().join("root.key")).unwrap();
    secrets.add_root(&root);
    seen.holds_none_of(&secrets);
    seen.has_every_line_of("dev");
}

#[test]
fn no_secret_is_in_the_reason_why_a_server_does_not_start() {
    let site = site();
    let tokens = std::fs::read_to_string(site.path("tokens.toml")).unwrap();
    let keys = std::fs::read_to_string(site.path("access-keys.toml")).unwrap();
    let root = RootKey::load(&site.path("root.key")).unwrap();
    let root_text = std::fs::read_to_string(site.path("root.key")).unwrap();
    let mut secrets = secrets();
    secrets.add_root(&root);
    let mut seen = Seen::default();
    for (file, good, bad) in [
        (
            "access-keys.toml",
            &keys,
            keys.replace("secret_key", "secret_kee"),
        ),
        (
            "access-keys.toml",
            &keys,
            keys.replace(&format!("\"{SECRET_KEY}\""), SECRET_KEY),
        ),
        (
            "access-keys.toml",
            &keys,
            keys.replace(PROJECT, &format!("{SECRET_KEY}/")),
        ),
        (
            "access-keys.toml",
            &keys,
            format!("[[access_key]]\n{SECRET_KEY}\n"),
        ),
        ("tokens.toml", &tokens, format!("{tokens}\n{EXPIRED}\n")),
        (
            "tokens.toml",
            &tokens,
            tokens.replace("sha256 = \"", &format!("sha256 = \"{EXPIRED}")),
        ),
        (
            "root.key",
            &root_text,
            root_text.replace("KMSGATE-ROOT-KEY-1:", ""),
        ),
        ("root.key", &root_text, format!("{root_text}{root_text}")),
    ] {
        site.write(file, &bad);
        for command in ["serve", "check-config"] {
            let output = run([command, "--config", &site.name("kmsgate.toml")], b"");
            assert_eq!(output.status.code(), Some(1), "{bad}");
            seen.add(file, String::from_utf8(output.stdout).unwrap());
            seen.add(file, String::from_utf8(output.stderr).unwrap());
        }
        site.write(file, good);
    }
    seen.holds_none_of(&secrets);
}

#[tokio::test]
async fn no_secret_is_printed_for_debugging() {
    let site = site();
    let clock = Arc::new(SystemClock);
    let tokens = Tokens::load(&site.path("tokens.toml"), clock.clone()).unwrap();
    let keys = AccessKeys::load(&site.path("access-keys.toml"), clock.clone()).unwrap();
    let chain = Chain::new(vec![
        Arc::new(Tokens::load(&site.path("tokens.toml"), clock.clone()).unwrap()),
        Arc::new(AccessKeys::load(&site.path("access-keys.toml"), clock.clone()).unwrap()),
    ]);
    let root = Arc::new(RootKey::load(&site.path("root.key")).unwrap());
    let name = VersionName {
        project: PROJECT.parse().unwrap(),
        key_id: NO_KEY.parse().unwrap(),
        version: KeyVersion::FIRST,
        spec: KeySpec::Aes256,
    };
    let provider = RustCrypto::new(root.clone());
    let material = Material::new(REQUEST.into());
    let sealed = provider.generate(&name).unwrap();
    let open = provider.open(&name, &sealed).unwrap();
    let store = Memory::new(Codec::new(root.mac_key()));
    let kms = Kms {
        store: Arc::new(store),
        providers: Arc::new(Providers::from(RustCrypto::new(root.clone()))),
        root_keys: Arc::new(RootKeys::new(Root::id(&*root), Vec::new())),
        backup: None,
        keyring: Arc::new(Keyring::new(8)),
        listings: Listings::default(),
        pool: Arc::new(Pool::new(1, 1).unwrap()),
        policy: Policy::default(),
        limits: Limits::default(),
        audit: Arc::new(JsonLines::new(std::io::sink()).unwrap()),
        clock,
        new_key_id: || panic!("no key is made"),
    };
    let context = Context {
        request_id: RequestId::new(1),
        caller: Arc::new(Caller {
            name: "billing".into(),
            project: PROJECT.parse().unwrap(),
            roles: Arc::default(),
            actions: Actions::ALL,
        }),
        told: AtomicBool::new(false),
    };
    let encrypt = Encrypt {
        key_id: NO_KEY.parse().unwrap(),
        plaintext: plaintext(),
        algorithm: EncryptionAlgorithm::SymmetricDefault,
        aad: Aad::try_from(AAD.to_owned()).unwrap(),
    };
    let decrypt = Decrypt {
        key_id: None,
        ciphertext: Vec::new(),
        algorithm: EncryptionAlgorithm::SymmetricDefault,
        aad: Aad::try_from(AAD.to_owned()).unwrap(),
    };
    let decrypted = Decrypted {
        key_id: NO_KEY.parse().unwrap(),
        plaintext: plaintext(),
    };

    let mut seen = Seen::default();
    let encrypt_request = pb::EncryptDataRequest {
        plaintext: Some(Text::PlainText(PLAINTEXT.to_owned())),
        additional_authenticated_data: AAD.to_owned(),
        ..pb::EncryptDataRequest::default()
    };
    let decrypt_request = pb::DecryptDataRequest {
        additional_authenticated_data: AAD.to_owned(),
        ..pb::DecryptDataRequest::default()
    };
    let decrypt_response = pb::DecryptDataResponse {
        plain_text: PLAINTEXT.to_owned(),
        plain_bytes: PLAINTEXT.into(),
        ..pb::DecryptDataResponse::default()
    };
    let values: [(&str, &dyn Debug); 20] = [
        ("Plaintext", &plaintext()),
        ("Material", &material),
        ("MacKey", &MacKey::new(REQUEST.into())),
        ("RootKey", &root),
        ("SealedKey", &sealed),
        ("OpenKey", &open),
        ("RustCrypto", &provider),
        ("Tokens", &tokens),
        ("AccessKeys", &keys),
        ("Chain", &chain),
        ("Kms", &kms),
        ("Context", &context),
        ("Encrypt", &encrypt),
        ("Decrypt", &decrypt),
        ("Decrypted", &decrypted),
        ("Aad", &encrypt.aad),
        ("EncryptDataRequest", &encrypt_request),
        ("its plaintext", &encrypt_request.plaintext),
        ("DecryptDataRequest", &decrypt_request),
        ("DecryptDataResponse", &decrypt_response),
    ];
    for (name, value) in values {
        seen.add(name, format!("{value:?} {value:#?}"));
    }
    let mut secrets = secrets();
    secrets.add_root(&root);
    secrets.add("sealed key", &sealed.0[33..57]);
    seen.holds_none_of(&secrets);
}

#[test]
fn the_search_finds_a_secret_however_it_is_written() {
    let mut secrets = Secrets::default();
    secrets.add("secret", PLAINTEXT);
    let bytes = PLAINTEXT.as_bytes();
    let padded = |before: usize| [&b"abc"[..before], bytes, b"xyz"].concat();
    for written in [
        PLAINTEXT.to_owned(),
        format!("{:?}", &PLAINTEXT[..20]),
        PLAINTEXT[8..].to_owned(),
        STANDARD.encode(&bytes[8..]),
        hex(&bytes[8..]),
        STANDARD.encode(padded(0)),
        STANDARD.encode(padded(1)),
        URL_SAFE.encode(padded(2)),
        hex(bytes),
        hex(bytes).to_uppercase(),
        format!("{bytes:?}"),
        format!("{bytes:x?}"),
        format!("{bytes:#?}"),
        serde_json::to_string(bytes).unwrap(),
    ] {
        let text = format!("before {written} after");
        assert!(secrets.find(&text).is_some(), "{written}");
    }
    assert_eq!(secrets.find(REQUEST), None);
    let mut binary = Secrets::default();
    binary.add("binary", [0x80, b'"', b'\\', 0].repeat(8));
    let escaped = format!("{:?}", Bytes::from([0x80, b'"', b'\\', 0].repeat(9)));
    assert!(binary.find(&escaped).is_some(), "{escaped}");
    let logged = json!({ "message": escaped }).to_string();
    assert!(binary.find(&logged).is_some(), "{logged}");
}

/// A site with every kind of credential, which logs all there is to log and audits to a file.
fn site() -> Site {
    let site = Site::new("");
    let dir = site.dir.path().display();
    let config = format!(
        "{}access_key_file = \"{dir}/access-keys.toml\"\n\
         [audit]\nkind = \"file\"\npath = \"{dir}/audit.jsonl\"\n\
         [log]\nfilter = \"trace\"\n",
        site.config("root.key")
    );
    site.write("kmsgate.toml", &config);
    let expired = Entry {
        name: "expired",
        expires: Some("2020-01-01T00:00:00Z"),
        ..ENTRY
    };
    let narrow = Entry {
        name: "narrow",
        actions: &["kms:cmk:get"],
        ..ENTRY
    };
    let tokens = [
        entry(ENTRY, TOKEN),
        entry(expired, EXPIRED),
        entry(narrow, NARROW),
    ];
    site.write("tokens.toml", &tokens.concat());
    site.write(
        "access-keys.toml",
        &format!(
            "[[access_key]]\naccess_key = \"{ACCESS_KEY}\"\nsecret_key = \"{SECRET_KEY}\"\n\
             project = \"{PROJECT}\"\nactions = [\"kms:*\"]\n"
        ),
    );
    site
}

fn plaintext() -> Plaintext {
    Plaintext::new(PLAINTEXT.into())
}

/// The secrets that every test has.
fn secrets() -> Secrets {
    let mut secrets = Secrets::default();
    for (name, secret) in [
        ("plaintext", PLAINTEXT),
        ("additional data", AAD),
        ("request text", REQUEST),
        ("expired token", EXPIRED),
        ("unknown token", UNKNOWN),
        ("narrow token", NARROW),
        ("secret key", SECRET_KEY),
    ] {
        secrets.add(name, secret);
    }
    secrets
}

/// Secrets in all the spellings in which they might be written.
#[derive(Default)]
struct Secrets {
    spellings: Vec<(String, String)>,
}

impl Secrets {
    fn add(&mut self, name: &str, secret: impl AsRef<[u8]>) {
        let secret = secret.as_ref();
        // Enough to be no accident, for a secret may be cut short at either end.
        let part = secret.len().min(16);
        self.add_part(name, &secret[..part]);
        self.add_part(name, &secret[secret.len() - part..]);
    }

    fn add_part(&mut self, name: &str, part: &[u8]) {
        let listed = |list: String| list.trim_matches(['[', ']']).to_owned();
        let quoted = format!("{:?}", Bytes::copy_from_slice(part));
        let quoted = quoted[2..quoted.len() - 1].to_owned();
        let logged = json!(quoted).to_string();
        let mut spellings = vec![
            part.escape_ascii().to_string(),
            logged[1..logged.len() - 1].to_owned(),
            quoted,
            hex(part),
            hex(part).to_uppercase(),
            listed(format!("{part:?}")),
            listed(format!("{part:x?}")),
            listed(serde_json::to_string(part).unwrap()),
            listed(format!("{part:#?}")).trim().replace('\n', "\\n"),
            listed(format!("{part:#?}")).trim().to_owned(),
        ];
        for before in 0..3 {
            // Inside a longer text the same bytes have one of three spellings in Base64, after as
            // many characters as the bytes before them reach into.
            let text = [&[0; 2][..before], part].concat();
            let whole = text.len() / 3 * 4;
            let skipped = before * 4_usize.div_ceil(3);
            spellings.push(STANDARD.encode(&text)[skipped..whole].to_owned());
            spellings.push(URL_SAFE.encode(&text)[skipped..whole].to_owned());
        }
        self.spellings
            .extend(spellings.into_iter().map(|text| (name.to_owned(), text)));
    }

    /// Adds a root key and what is derived of it.
    fn add_root(&mut self, root: &RootKey) {
        let text = root.to_text();
        let (_, base64) = text.trim().split_once(':').unwrap();
        self.add("root key as text", base64);
        self.add("root key", STANDARD.decode(base64).unwrap());
        self.add("key of the record authentication", root.mac_key().expose());
    }

    /// Adds the sealed material of every key of the site's store.
    async fn add_sealed(&mut self, site: &Site) {
        let root = RootKey::load(&site.path("root.key")).unwrap();
        let store = Sqlite::open(&site.path("keys.db"), Codec::new(root.mac_key())).unwrap();
        let keys = Prefix::Keys(PROJECT.parse().unwrap());
        let found = store.list(&keys, None, 1000).await.unwrap();
        assert!(!found.is_empty());
        for record in found {
            let Record::Key(key) = record.record else {
                panic!("{record:?}")
            };
            for version in key.versions {
                // Behind the root key's name and the nonce.
                self.add("sealed material", &version.sealed[33..57]);
            }
        }
    }

    /// The name and the place of a secret that `text` holds.
    fn find<'a>(&self, text: &'a str) -> Option<(&str, &'a str)> {
        self.spellings.iter().find_map(|(name, spelling)| {
            let at = text.find(spelling.as_str())?;
            let from = text[..at].rfind('\n').map_or(0, |line| line + 1);
            let to = text[at..].find('\n').map_or(text.len(), |line| at + line);
            Some((name.as_str(), &text[from..to]))
        })
    }
}

/// All that came out, and out of where.
#[derive(Default)]
struct Seen {
    texts: Vec<(String, String)>,
}

impl Seen {
    fn add(&mut self, place: &str, text: String) {
        self.texts.push((place.to_owned(), text));
    }

    fn add_output(&mut self, name: &str, (stdout, stderr): (String, String)) {
        self.add(&format!("standard output of the {name}"), stdout);
        self.add(&format!("standard error of the {name}"), stderr);
    }

    /// Notes an answer; the body of a success too, unless it is to hold the plaintext.
    fn add_answer(&mut self, operation: &str, answer: &Answer) {
        let mut text = String::new();
        for (name, value) in &answer.headers {
            writeln!(text, "{name}: {}", value.as_bytes().escape_ascii()).unwrap();
        }
        if !(answer.status.is_success() && operation == "decrypt-data") {
            text.push_str(&answer.text);
        }
        self.add(&format!("answer to {operation}"), text);
    }

    /// Notes how a gRPC call ended.
    fn add_status<T>(&mut self, method: &str, ended: &Result<Response<T>, Status>) {
        let text = match ended {
            Ok(response) => format!("{:?}", response.metadata()),
            Err(status) => format!("{status:?} {}", status.details().escape_ascii()),
        };
        self.add(&format!("answer to {method}"), text);
    }

    fn holds_none_of(&self, secrets: &Secrets) {
        let found: Vec<_> = self
            .texts
            .iter()
            .filter_map(|(place, text)| Some((place, secrets.find(text)?)))
            .collect();
        assert!(found.is_empty(), "{found:#?}");
    }

    /// Every method of the compiled schema was called over gRPC, and every operation over REST, which
    /// has none for what an operator does.
    fn is_of_every_method(&self) {
        let schema = FileDescriptorSet::decode(kmsgate::grpc::DESCRIPTORS).unwrap();
        let ours = schema
            .file
            .iter()
            .filter(|file| file.package() == "kmsgate.v1");
        let services = ours.flat_map(|file| &file.service);
        let methods: Vec<_> = services.flat_map(|service| &service.method).collect();
        assert_eq!(methods.len(), OPERATIONS.len() + 3);
        for method in methods {
            let mut snake = String::new();
            for (at, letter) in method.name().char_indices() {
                if letter.is_uppercase() && at > 0 {
                    snake.push('_');
                }
                snake.extend(letter.to_lowercase());
            }
            let place = format!("answer to {snake}");
            assert!(self.texts.iter().any(|(name, _)| *name == place), "{place}");
        }
        for operation in OPERATIONS {
            let place = format!("answer to {operation}");
            assert!(self.texts.iter().any(|(name, _)| *name == place), "{place}");
        }
    }

    /// The server wrote about its work, so there was something to search.
    fn is_a_real_search(&self) {
        let written = |place: &str, words: &str| {
            let mut texts = self.texts.iter().filter(|(name, _)| name.contains(place));
            assert!(texts.any(|(_, text)| text.contains(words)), "{place}");
        };
        written("error of the server", "refused");
        written("error of the server", "done");
        written("audit", "kms:cmk:create");
        written("audit", ACCESS_KEY);
        written("metrics of the server", "KMS.2201");
        written("metrics of the gateway", "KMS.2201");
        written("answer to garbage", "HTTP/1.1 400 ");
    }

    /// A program wrote lines of its own at the lowest level at which it has any: all were turned on.
    fn has_every_line_of(&self, program: &str) {
        let place = format!("standard error of the {program}");
        let lowest = |line: &str| line.contains("DEBUG") && line.contains("kmsgate::");
        let mut texts = self.texts.iter().filter(|(name, _)| *name == place);
        assert!(texts.any(|(_, text)| text.lines().any(lowest)), "{place}");
    }
}

/// The operations of REST.
const OPERATIONS: [&str; 13] = [
    "encrypt-data",
    "decrypt-data",
    "create-key",
    "describe-key",
    "list-keys",
    "enable-key",
    "disable-key",
    "schedule-key-deletion",
    "cancel-key-deletion",
    "get-publickey",
    "update-key-alias",
    "update-key-description",
    "rotate-on-demand",
];

/// Calls every operation over REST, so that it succeeds and so that it fails.
async fn drive_rest(seen: &mut Seen, rest: SocketAddr, token: &str) {
    macro_rules! ask {
        ($operation:expr, $body:expr) => {{
            let answer = call(rest, token, $operation, &$body).await;
            seen.add_answer($operation, &answer);
            answer
        }};
    }
    let alias = |name: &str| format!("{name}-{}", rest.port());
    let aes = json!({ "key_alias": alias("aes") });
    let aes = ask!("create-key", aes).json()["key_info"]["key_id"].clone();
    let sm2 =
        json!({ "key_alias": alias("sm2"), "key_spec": "SM2", "key_usage": "ENCRYPT_DECRYPT" });
    let sm2 = ask!("create-key", sm2).json()["key_info"]["key_id"].clone();

    let plain =
        json!({ "key_id": aes, "plain_text": PLAINTEXT, "additional_authenticated_data": AAD });
    let sealed = ask!("encrypt-data", plain).json()["cipher_text"].clone();
    let right = json!({ "cipher_text": sealed, "additional_authenticated_data": AAD });
    let opened = ask!("decrypt-data", right).json();
    assert_eq!(opened["plain_text"], PLAINTEXT);
    let wrong = json!({ "cipher_text": sealed, "additional_authenticated_data": REQUEST });
    assert_eq!(ask!("decrypt-data", wrong).code(), "KMS.2201");
    let plain =
        json!({ "key_id": sm2, "plain_text": PLAINTEXT, "encryption_algorithm": "SM2_ENCRYPT" });
    let sealed = ask!("encrypt-data", plain).json()["cipher_text"].clone();
    let right =
        json!({ "key_id": sm2, "cipher_text": sealed, "encryption_algorithm": "SM2_ENCRYPT" });
    let opened = ask!("decrypt-data", right).json();
    assert_eq!(opened["plain_text"], PLAINTEXT);

    for operation in &OPERATIONS[3..] {
        let key = if *operation == "get-publickey" {
            &sm2
        } else {
            &aes
        };
        let mut body = json!({ "key_id": key, "pending_days": "7" });
        body["key_alias"] = alias("again").into();
        body["key_description"] = "again".into();
        if *operation == "enable-key" {
            ask!("disable-key", json!({ "key_id": key }));
        }
        if *operation == "update-key-alias" {
            ask!("enable-key", json!({ "key_id": key }));
        }
        if *operation == "list-keys" {
            body = json!({});
        }
        if *operation == "schedule-key-deletion" {
            ask!("enable-key", json!({ "key_id": key }));
        }
        let answer = ask!(operation, body);
        assert_eq!(answer.status, 200, "{operation}: {}", answer.text);
    }

    let base64 = STANDARD.encode(PLAINTEXT);
    for operation in OPERATIONS {
        for body in [
            json!({ "key_id": NO_KEY, "plain_text": PLAINTEXT, "cipher_text": base64 }),
            json!({ "key_id": aes, "plain_text_base64": PLAINTEXT, "cipher_text": PLAINTEXT }),
            json!({ "key_id": aes, "plain_text": PLAINTEXT.repeat(200), "cipher_text": base64 }),
            json!({ "key_id": aes, "plain_text": { PLAINTEXT: AAD }, "cipher_text": [PLAINTEXT] }),
            json!({ "key_id": aes, "plain_text": PLAINTEXT, "additional_authenticated_data": AAD.repeat(9),
                    "cipher_text": base64 }),
            json!({ "key_id": aes, "plain_text": PLAINTEXT, "encryption_algorithm": REQUEST, "cipher_text": base64 }),
            json!({ "key_id": sm2, "plain_text": PLAINTEXT, "encryption_algorithm": "SM2_ENCRYPT",
                    "cipher_text": base64 }),
            json!({ "key_id": REQUEST, "sequence": REQUEST, REQUEST: REQUEST }),
            json!({ "key_id": aes, "sequence": REQUEST, "key_alias": "again", "pending_days": "7" }),
            json!({ "key_id": aes, "key_alias": format!("{REQUEST}!"), "key_description": REQUEST.repeat(20),
                    "key_spec": REQUEST, "key_usage": REQUEST, "origin": REQUEST, "pending_days": REQUEST,
                    "key_state": REQUEST, "limit": REQUEST, "marker": REQUEST }),
            json!({ "limit": { REQUEST: 1 }, "key_id": [REQUEST], "key_alias": 7 }),
            json!([PLAINTEXT]),
        ] {
            ask!(operation, body);
        }
        let post = || {
            let url = format!("http://{rest}/v1.0/{PROJECT}/kms/{operation}?{REQUEST}={REQUEST}");
            Request::post(url).header("x-auth-token", token)
        };
        for body in [
            format!("{{\"plain_text\":\"{PLAINTEXT}"),
            format!("{{\"plain_text\":{PLAINTEXT}}}"),
            format!("{{\"plain_text\":\"{PLAINTEXT}\",\"plain_text\":\"{PLAINTEXT}\"}}"),
            PLAINTEXT.to_owned(),
            PLAINTEXT.repeat(3000),
        ] {
            let request = post().header(REQUEST, REQUEST).body(Full::from(body));
            seen.add_answer(operation, &send(request.unwrap()).await);
        }
        let mut other = post().body(Full::from(PLAINTEXT)).unwrap();
        *other.method_mut() = http::Method::PUT;
        seen.add_answer(operation, &send(other).await);
    }
    for path in [
        format!("/{REQUEST}"),
        format!("/v1.0/{REQUEST}/kms/encrypt-data"),
        format!("/v1.0/{PROJECT}/kms/{REQUEST}"),
    ] {
        let request = Request::post(format!("http://{rest}{path}")).header("x-auth-token", token);
        let request = request.body(Full::from(PLAINTEXT)).unwrap();
        seen.add_answer(&path.replace(REQUEST, "…"), &send(request).await);
    }
}

/// Calls every method over gRPC, so that it succeeds and so that it fails.
async fn drive_grpc(seen: &mut Seen, address: SocketAddr, token: &str) {
    let mut grpc = Grpc::connect(address, token).await;
    macro_rules! ask {
        ($service:ident.$method:ident($message:expr)) => {{
            let message = $message;
            let request = grpc.ask(message);
            let ended = grpc.$service.$method(request).await;
            seen.add_status(stringify!($method), &ended);
            ended
        }};
    }
    let create = |alias: &str, spec: pb::KeySpec| pb::CreateKeyRequest {
        key_alias: format!("{alias}-{}", address.port()),
        key_spec: spec.into(),
        key_usage: pb::KeyUsage::EncryptDecrypt.into(),
        ..pb::CreateKeyRequest::default()
    };
    let made = ask!(keys.create_key(create("grpc", pb::KeySpec::Aes256))).unwrap();
    let key = made.into_inner().key_info.unwrap().key_id;
    let made = ask!(keys.create_key(create("grpc-rsa", pb::KeySpec::Rsa2048))).unwrap();
    let rsa = made.into_inner().key_info.unwrap().key_id;
    let aes = pb::EncryptionAlgorithm::SymmetricDefault;
    let oaep = pb::EncryptionAlgorithm::RsaesOaepSha256;
    for (key_id, algorithm, aad) in [(&key, aes, AAD), (&rsa, oaep, "")] {
        let plain = pb::EncryptDataRequest {
            key_id: key_id.clone(),
            plaintext: Some(Text::PlainText(PLAINTEXT.to_owned())),
            encryption_algorithm: algorithm.into(),
            additional_authenticated_data: aad.to_owned(),
            ..pb::EncryptDataRequest::default()
        };
        let sealed = ask!(crypto.encrypt_data(plain)).unwrap().into_inner();
        let right = pb::DecryptDataRequest {
            key_id: key_id.clone(),
            cipher_text: sealed.cipher_text.clone(),
            encryption_algorithm: algorithm.into(),
            additional_authenticated_data: aad.to_owned(),
            ..pb::DecryptDataRequest::default()
        };
        let wrong = pb::DecryptDataRequest {
            cipher_text: sealed.cipher_text.iter().map(|byte| byte ^ 1).collect(),
            ..right.clone()
        };
        let opened = ask!(crypto.decrypt_data(right)).unwrap().into_inner();
        assert_eq!(opened.plain_text, PLAINTEXT);
        ask!(crypto.decrypt_data(wrong)).err().unwrap();
    }
    macro_rules! succeed {
        ($($method:ident($request:ident { $($field:ident: $value:expr),* });)+) => { $(
            ask!(keys.$method(pb::$request {
                $($field: $value,)*
                ..pb::$request::default()
            }))
            .unwrap();
        )+ };
    }
    let again = format!("grpc-again-{}", address.port());
    succeed! {
        describe_key(DescribeKeyRequest { key_id: key.clone() });
        disable_key(DisableKeyRequest { key_id: key.clone() });
        enable_key(EnableKeyRequest { key_id: key.clone() });
        rotate_on_demand(RotateOnDemandRequest { key_id: key.clone() });
        get_public_key(GetPublicKeyRequest { key_id: rsa.clone() });
        update_key_alias(UpdateKeyAliasRequest { key_id: key.clone(), key_alias: again });
        update_key_description(UpdateKeyDescriptionRequest { key_id: key.clone(), key_description: "again".to_owned() });
        schedule_key_deletion(ScheduleKeyDeletionRequest { key_id: key.clone(), pending_days: Some(7) });
        cancel_key_deletion(CancelKeyDeletionRequest { key_id: key.clone() });
        enable_key(EnableKeyRequest { key_id: key.clone() });
        list_keys(ListKeysRequest { limit: Some(1000) });
    }
    ask!(keys.confirm_clock(pb::ConfirmClockRequest {})).unwrap();
    for (key_id, sequence) in [
        (key.as_str(), ""),
        (NO_KEY, ""),
        (REQUEST, ""),
        (key.as_str(), REQUEST),
        ("", REQUEST),
    ] {
        let plain = |plaintext: Vec<u8>| pb::EncryptDataRequest {
            project_id: sequence.to_owned(),
            key_id: key_id.to_owned(),
            plaintext: Some(Text::PlainBytes(plaintext)),
            encryption_algorithm: 99,
            additional_authenticated_data: AAD.repeat(9),
            sequence: sequence.to_owned(),
        };
        let _ = ask!(crypto.encrypt_data(plain(PLAINTEXT.into())));
        let _ = ask!(crypto.encrypt_data(plain(PLAINTEXT.repeat(200).into())));
        let _ = ask!(crypto.encrypt_data(plain(PLAINTEXT.repeat(3000).into())));
        macro_rules! name_the_key {
            ($($method:ident($request:ident { $($more:tt)* });)+) => { $(
                let _ = ask!(keys.$method(pb::$request {
                    key_id: key_id.to_owned(),
                    sequence: sequence.to_owned(),
                    $($more)*
                    ..pb::$request::default()
                }));
            )+ };
        }
        name_the_key! {
            describe_key(DescribeKeyRequest {});
            disable_key(DisableKeyRequest {});
            enable_key(EnableKeyRequest {});
            rotate_on_demand(RotateOnDemandRequest {});
            get_public_key(GetPublicKeyRequest {});
            update_key_alias(UpdateKeyAliasRequest { key_alias: format!("{REQUEST}!"), });
            update_key_description(UpdateKeyDescriptionRequest { key_description: REQUEST.repeat(20), });
            schedule_key_deletion(ScheduleKeyDeletionRequest { pending_days: Some(7), });
            cancel_key_deletion(CancelKeyDeletionRequest {});
            enable_key(EnableKeyRequest {});
        }
    }
    let _ = ask!(keys.list_keys(pb::ListKeysRequest {
        sequence: REQUEST.to_owned(),
        ..Default::default()
    }));
    let told = ask!(operator.rotate_root_key(pb::RotateRootKeyRequest {})).unwrap();
    let mut told = told.into_inner();
    while let Some(message) = told.message().await.unwrap() {
        seen.add("answer to rotate_root_key", format!("{message:?}"));
    }
    // What it sends is the store, and so what is sealed too. It is searched for in the logs.
    let sent = ask!(operator.back_up_store(pb::BackUpStoreRequest {})).unwrap();
    let mut sent = sent.into_inner();
    while sent.message().await.unwrap().is_some() {}

    for token in [EXPIRED, UNKNOWN, NARROW] {
        grpc = Grpc::connect(address, token).await;
        let plain = pb::EncryptDataRequest {
            key_id: key.clone(),
            plaintext: Some(Text::PlainText(PLAINTEXT.to_owned())),
            ..pb::EncryptDataRequest::default()
        };
        ask!(crypto.encrypt_data(plain.clone())).unwrap_err();
        let mut request = grpc.ask(plain);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        metadata.insert("grpc-timeout", REQUEST.parse().unwrap());
        metadata.insert_bin(
            "canary-bin",
            tonic::metadata::BinaryMetadataValue::from_bytes(REQUEST.as_bytes()),
        );
        let ended = grpc.crypto.encrypt_data(request).await;
        seen.add_status("encrypt_data", &ended);
    }
}

/// Sends every kind of credential, good and bad. Gives a good signature.
async fn drive_credentials(seen: &mut Seen, rest: SocketAddr) -> String {
    let body = json!({ "key_id": NO_KEY, "plain_text": PLAINTEXT }).to_string();
    let path = format!("/v1.0/{PROJECT}/kms/encrypt-data");
    let signed = |secret: &str, date: SystemTime| {
        let host = rest.to_string();
        let (date, authorization) = sign(&path, &host, &body, secret, date);
        HashMap::from([("x-sdk-date", date), ("authorization", authorization)])
    };
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let mut both = signed(SECRET_KEY, now);
    let (_, signature) = both["authorization"].rsplit_once('=').unwrap();
    let signature = signature.to_owned();
    both.insert("x-auth-token", TOKEN.to_owned());
    let header = |name, value: &str| HashMap::from([(name, value.to_owned())]);
    for headers in [
        HashMap::new(),
        header("x-auth-token", EXPIRED),
        header("x-auth-token", UNKNOWN),
        header("x-auth-token", NARROW),
        header("authorization", &format!("Bearer {TOKEN}")),
        header("authorization", &format!("Bearer {UNKNOWN}")),
        header(
            "authorization",
            &format!("Basic {}", STANDARD.encode(UNKNOWN)),
        ),
        header("authorization", &format!("SDK-HMAC-SHA256 {UNKNOWN}")),
        header(
            "authorization",
            &format!("SDK-HMAC-SHA256 Access={UNKNOWN}"),
        ),
        signed(SECRET_KEY, now),
        signed(UNKNOWN, now),
        signed(SECRET_KEY, now - hour),
        both,
    ] {
        let mut request = Request::post(format!("http://{rest}{path}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(body.clone())).unwrap();
        seen.add_answer("encrypt-data", &send(request).await);
    }
    signature
}

/// Sends what is no HTTP, HTTP that stops in the middle, and HTTP/2 that is malformed above its
/// frames. Of the answers over HTTP/2 only what is not compressed can be searched.
async fn drive_garbage(seen: &mut Seen, address: SocketAddr) {
    let token = ("x-auth-token", UNKNOWN);
    let mut garbage = vec![
        format!("{REQUEST}\r\n\r\n").into_bytes(),
        format!("GET /{REQUEST} HTTP/9.9\r\n\r\n").into_bytes(),
        format!("POST / HTTP/1.1\r\nx-auth-token: {UNKNOWN}\r\n{REQUEST}\r\n\r\n").into_bytes(),
        format!("POST /\u{e9}{REQUEST} HTTP/1.1\r\nx-auth-token: {UNKNOWN}\r\n\r\n").into_bytes(),
        format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {REQUEST}\r\n\r\n").into_bytes(),
        format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 900\r\n\r\n{PLAINTEXT}")
            .into_bytes(),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{REQUEST}{REQUEST}{REQUEST}").into_bytes(),
    ];
    let spoilt = format!("/{REQUEST} ^");
    for headers in [
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", &spoilt),
            token,
        ],
        vec![
            (":method", "POST"),
            (":scheme", &spoilt),
            (":path", "/"),
            token,
        ],
        vec![
            (":method", &spoilt),
            (":scheme", "http"),
            (":path", "/"),
            token,
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", &spoilt),
            token,
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            (":status", REQUEST),
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            ("connection", REQUEST),
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            ("te", REQUEST),
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            ("X-UPPER", REQUEST),
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            ("content-length", REQUEST),
        ],
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            token,
            ("a", "\u{1}canary-request-"),
        ],
        vec![(":method", "POST"), (":scheme", "http"), token],
        vec![token],
    ] {
        garbage.push(http2(&headers));
    }
    for bytes in garbage {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        // Until the server has had enough of it too.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        seen.add("answer to garbage", answer.into_owned());
    }
}

/// An HTTP/2 connection with one request (RFC 9113; the headers in literal form, RFC 7541, section
/// 6.2.2).
fn http2(headers: &[(&str, &str)]) -> Vec<u8> {
    let short = |length: usize| u8::try_from(length).unwrap();
    let mut block = Vec::new();
    for (name, value) in headers {
        block.extend([0, short(name.len())]);
        block.extend_from_slice(name.as_bytes());
        block.push(short(value.len()));
        block.extend_from_slice(value.as_bytes());
    }
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // The stream and the list of headers both end here.
    let head = [0, 0, short(block.len()), 1, 5, 0, 0, 0, 1];
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &settings[..],
        &head,
        &block,
    ]
    .concat()
}

/// Puts secrets in the wrong places of the credential files of a running server.
async fn drive_credential_files(site: &Site, server: &Program) {
    let keys = std::fs::read_to_string(site.path("access-keys.toml")).unwrap();
    let tokens = std::fs::read_to_string(site.path("tokens.toml")).unwrap();
    let told = |log: &str, file: &str| {
        log.contains("cannot use a credential or policy file") && log.contains(file)
    };
    site.write("access-keys.toml", &format!("{keys}\n{SECRET_KEY}\n"));
    site.write("tokens.toml", &format!("{tokens}\n{EXPIRED}\n"));
    server.stderr.wait_for(|log| {
        let mut lines = log.lines();
        lines.clone().any(|line| told(line, "access-keys.toml"))
            && lines.any(|line| told(line, "tokens.toml"))
    });
}

/// Signs a POST in layout A (contract, section 6.3): the date and the `Authorization` header.
fn sign(path: &str, host: &str, body: &str, secret: &str, date: SystemTime) -> (String, String) {
    let date = compact(date);
    let body = hex(&Sha256::digest(body));
    let form =
        format!("POST\n{path}/\n\nhost:{host}\nx-sdk-date:{date}\n\nhost;x-sdk-date\n{body}");
    let text = format!("SDK-HMAC-SHA256\n{date}\n{}", hex(&Sha256::digest(form)));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    let signature = hex(&mac.finalize().into_bytes());
    let header = format!(
        "SDK-HMAC-SHA256 Access={ACCESS_KEY}, SignedHeaders=host;x-sdk-date, Signature={signature}"
    );
    (date, header)
}

/// A time as `x-sdk-date` writes it: `20191115T033655Z`.
fn compact(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut day) = (1970, seconds / 86_400);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let second = seconds % 86_400;
    format!(
        "{year}{month:02}{:02}T{:02}{:02}{:02}Z",
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
