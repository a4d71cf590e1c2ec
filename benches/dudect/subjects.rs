//! What is measured: refusals that must take the same time whatever was wrong.

use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderValue, Method, Uri};
use kmsgate::auth::aksk::AccessKeys;
use kmsgate::auth::token;
use kmsgate::auth::token::Tokens;
use kmsgate::auth::{AuthError, Authenticator, Evidence, Peer};
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::{Root, RootKey};
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{KeyPair, OpenKey, Provider, ProviderError, Symmetric, VersionName};
use kmsgate::domain::frame::{HEAD, Head, Suite};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::{Material, Plaintext};
use kmsgate::domain::time::{Clock, Timestamp};
use rsa::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};
use sm2::SecretKey;
use sm2::pkcs8::EncodePrivateKey;
use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::AeadInOut;

use crate::measure::{POOL, measure};
use crate::oaep::{Block, raw_encrypt};
use crate::welch::Samples;

/// A pair of classes.
pub(crate) struct Subject {
    /// What is refused.
    pub(crate) what: &'static str,
    /// The provider that refuses; empty if none does.
    pub(crate) provider: &'static str,
    /// What is wrong in one class, and in the other.
    pub(crate) classes: [&'static str; 2],
    /// How many samples there are to be.
    pub(crate) cost: Cost,
    /// Whether this shows that the test works, rather than anything of ours.
    pub(crate) control: bool,
    /// Whether the classes are to differ.
    pub(crate) leaks: bool,
    /// Takes as many samples.
    pub(crate) measure: Box<dyn FnOnce(usize) -> Samples>,
}

/// How long one takes.
#[derive(Clone, Copy)]
pub(crate) enum Cost {
    /// Up to a fraction of a millisecond.
    Light,
    /// A private RSA operation.
    Rsa,
}

impl Subject {
    fn new(
        what: &'static str,
        provider: &'static str,
        classes: [&'static str; 2],
        measure: impl FnOnce(usize) -> Samples + 'static,
    ) -> Self {
        Self {
            what,
            provider,
            classes,
            cost: Cost::Light,
            control: false,
            leaks: false,
            measure: Box::new(measure),
        }
    }

    /// What the command line picks by.
    pub(crate) fn title(&self) -> String {
        format!("{} {} {}", self.what, self.provider, self.classes.join(" "))
    }
}

/// Everything, the controls first.
pub(crate) fn all() -> Vec<Subject> {
    let mut all = controls();
    all.extend(credentials());
    for provider in providers() {
        if provider.supports(KeySpec::Aes256) {
            all.extend(frames(&provider));
        }
        if provider.supports(KeySpec::Rsa2048) {
            all.extend(oaep(&provider));
        }
        if provider.supports(KeySpec::Sm2) {
            all.extend(sm2(&provider));
        }
    }
    all
}

fn providers() -> Vec<Arc<dyn Provider>> {
    let root: Arc<dyn Root> = Arc::new(RootKey::generate().unwrap());
    vec![
        Arc::new(AwsLc::new(Arc::clone(&root))),
        Arc::new(RustCrypto::new(root)),
    ]
}

/// A comparison that stops at the first difference, which must be found out; and one that does not, by the same measure.
fn controls() -> Vec<Subject> {
    const SECRET: [u8; 32] = [0x5a; 32];
    let make = || ((), [0, 31].map(|at| vec![flipped(&SECRET, at); POOL]));
    let classes = ["the first byte", "the last byte"];
    let leaky = Subject::new(
        "control: bytes until one differs",
        "",
        classes,
        move |count| {
            measure(count, ROUND, make, Vec::clone, |(), guess| {
                let differ = |(guess, secret): (&u8, &u8)| black_box(guess != secret);
                guess.iter().zip(&SECRET).any(differ)
            })
        },
    );
    let same = Subject::new("control: bytes, all of them", "", classes, move |count| {
        measure(count, ROUND, make, Vec::clone, |(), guess| {
            let differ = |sum, (guess, secret): (&u8, &u8)| black_box(sum | (guess ^ secret));
            guess.iter().zip(&SECRET).fold(0, differ) != 0
        })
    });
    let leaky = Subject {
        leaks: true,
        ..leaky
    };
    [leaky, same]
        .map(|subject| Subject {
            control: true,
            ..subject
        })
        .into()
}

/// How many samples are taken of the same inputs.
const ROUND: usize = 1_000;

/// The same where making inputs takes long.
const LONG_ROUND: usize = 10_000;

fn credentials() -> Vec<Subject> {
    let tokens = |at: [usize; 2]| {
        move |count| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("tokens.toml");
            // Where a hash stands in the map, and what it meets on the way, is the luck of the map's key. Each file that is
            // read has another.
            let make = || token_file(&path, at);
            let ready = |guess: &String| {
                HeaderMap::from_iter([("x-auth-token".parse().unwrap(), value(guess))])
            };
            measure(count, ROUND, make, ready, |tokens, headers| {
                refuses(tokens, headers, None)
            })
        }
    };
    let hash = "token: its hash agrees with one of the file but for";
    vec![
        Subject::new(hash, "", ["byte 0", "byte 15"], tokens([0, 15])),
        Subject::new(hash, "", ["byte 16", "byte 31"], tokens([16, 31])),
        Subject::new(
            "AK/SK signature: it is right but for",
            "",
            ["the first byte", "the last byte"],
            |count| {
                let dir = tempfile::tempdir().unwrap();
                let make = || signatures(&dir.path().join("keys.toml"));
                measure(count, ROUND, make, headers_of, |keys, (headers, body)| {
                    refuses(keys, headers, Some(body))
                })
            },
        ),
    ]
}

/// A file of tokens, and guesses whose hashes differ from those of the file in one byte.
fn token_file(path: &Path, at: [usize; 2]) -> (Tokens, [Vec<String>; 2]) {
    let mut entries = Vec::new();
    let guesses = at.map(|at| {
        let guess = |number: usize| {
            let guess = random();
            let hash = hex(&flipped(&Sha256::digest(&guess), at));
            entries.push(format!(
                "[[token]]\nsha256 = \"{hash}\"\nname = \"{at}-{number}\"\nproject = \"p\"\nactions = [\"kms:*\"]\n"
            ));
            guess
        };
        (0..POOL).map(guess).collect()
    });
    // What comes into a map late stands farther from where it is looked for. So neither class comes first: the hashes, with
    // which the entries begin, are random.
    entries.sort();
    let mut file = entries.concat();
    // The file is one that a right token opens.
    file += &token::Entry {
        name: "right",
        project: "p",
        expires: None,
        actions: &["kms:*"],
    }
    .render(b"right")
    .unwrap();
    std::fs::write(path, file).unwrap();
    let tokens = Tokens::load(path, Arc::new(Fixed)).unwrap();
    let right = HeaderMap::from_iter([("x-auth-token".parse().unwrap(), value("right"))]);
    assert!(!refuses(&tokens, &right, None));
    (tokens, guesses)
}

/// The `Authorization` header of a request, and its body.
type Signed = (String, Vec<u8>);

/// A file with an access key, and requests whose signature in layout A differs from the right one in a byte.
fn signatures(path: &Path) -> (AccessKeys, [Vec<Signed>; 2]) {
    let text = "[[access_key]]\naccess_key = \"AK\"\nsecret_key = \"SK\"\nproject = \"p\"\nactions = [\"kms:*\"]\n";
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let keys = AccessKeys::load(path, Arc::new(Fixed)).unwrap();
    let sign = |flip: &dyn Fn(&mut [u8])| {
        let body = random().into_bytes();
        let form = format!(
            "POST\n/\n\nx-sdk-date:{DATE}\n\nx-sdk-date\n{}",
            hex(&Sha256::digest(&body))
        );
        let text = format!("SDK-HMAC-SHA256\n{DATE}\n{}", hex(&Sha256::digest(form)));
        let mut mac = Hmac::<Sha256>::new_from_slice(b"SK").unwrap();
        mac.update(text.as_bytes());
        let mut signature = mac.finalize().into_bytes();
        flip(&mut signature);
        let signature = hex(&signature);
        let header =
            format!("SDK-HMAC-SHA256 Access=AK, SignedHeaders=x-sdk-date, Signature={signature}");
        (header, body)
    };
    let (headers, body) = headers_of(&sign(&|_| {}));
    assert!(
        !refuses(&keys, &headers, Some(&body)),
        "without a flip it is right"
    );
    let signed = [0, 31].map(|at| {
        (0..POOL)
            .map(|_| sign(&|bytes| bytes[at] ^= 0x5a))
            .collect()
    });
    (keys, signed)
}

fn headers_of((header, body): &Signed) -> (HeaderMap, Vec<u8>) {
    let headers = [("x-sdk-date", DATE), ("authorization", header)];
    let headers = headers.map(|(name, text)| (name.parse().unwrap(), value(text)));
    (HeaderMap::from_iter(headers), body.clone())
}

const DATE: &str = "20191115T033655Z";

/// The time of [`DATE`].
#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(1_573_789_015_000)
    }
}

/// Whether the credential is there and bad.
fn refuses(authenticator: &dyn Authenticator, headers: &HeaderMap, body: Option<&[u8]>) -> bool {
    let request = Evidence {
        method: &Method::POST,
        uri: &Uri::from_static("/"),
        headers,
        body,
        peer: &Peer::unix(0),
    };
    let mut answer = pin!(authenticator.authenticate(&request));
    // It has nothing to wait for.
    match answer
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(Some(_))) => false,
        Poll::Ready(Err(AuthError::InvalidToken | AuthError::BadSignature(_))) => true,
        other => panic!("{other:?}"),
    }
}

/// Frames under a key whose halves are known here.
fn frames(provider: &Arc<dyn Provider>) -> Vec<Subject> {
    let key = Arc::new(FrameKey::new(&**provider));
    let subject = |what, classes, frames: fn(&FrameKey) -> [Frame; 2]| {
        let key = Arc::clone(&key);
        Subject::new(what, provider.name(), classes, move |count| {
            let make = || {
                let pairs: Vec<[Frame; 2]> = (0..POOL).map(|_| frames(&key)).collect();
                let class = |class: usize| pairs.iter().map(|pair| pair[class].clone()).collect();
                ((), [0, 1].map(class))
            };
            measure(count, ROUND, make, Vec::clone, |(), frame| {
                key.refuses(frame)
            })
        })
    };
    vec![
        subject(
            "frame: the commitment is right but for",
            ["the first byte", "the last byte"],
            |key| {
                let frame = key.frame(&padded(1));
                [flipped(&frame, HEAD), flipped(&frame, HEAD + 31)]
            },
        ),
        subject(
            "frame: the tag is right but for",
            ["the first byte", "the last byte"],
            |key| {
                let frame = key.frame(&padded(1));
                [
                    flipped(&frame, frame.len() - 16),
                    flipped(&frame, frame.len() - 1),
                ]
            },
        ),
        subject(
            "frame: what is wrong is",
            ["a byte of the text", "a byte of the tag"],
            |key| {
                let frame = key.frame(&padded(1));
                [
                    flipped(&frame, HEAD + 32 + 24),
                    flipped(&frame, frame.len() - 8),
                ]
            },
        ),
        subject(
            "frame: the tag is right, the padding",
            ["of 16 is wrong in its first byte", "is of 0 bytes"],
            |key| {
                let mut late = padded(16);
                late[TEXT - 16] ^= 1;
                let mut none = padded(1);
                none[TEXT - 1] = 0;
                [key.frame(&late), key.frame(&none)]
            },
        ),
        subject(
            "frame: the tag is right, the padding",
            [
                "of 16 is wrong in its first byte",
                "is wrong next to the last byte",
            ],
            |key| {
                let mut first = padded(16);
                first[TEXT - 16] ^= 1;
                let mut last = padded(16);
                last[TEXT - 2] ^= 1;
                [key.frame(&first), key.frame(&last)]
            },
        ),
        subject(
            "frame: the tag is right, the padding",
            ["of 2 is wrong", "of 255 is too long"],
            |key| {
                let mut short = padded(2);
                short[TEXT - 2] ^= 1;
                let mut long = padded(1);
                long[TEXT - 1] = 255;
                [key.frame(&short), key.frame(&long)]
            },
        ),
    ]
}

type Frame = Vec<u8>;

/// How many bytes are encrypted, with their padding.
const TEXT: usize = 64;

/// Random bytes that end in a padding of this many.
fn padded(padding: u8) -> [u8; TEXT] {
    let mut text = [0; TEXT];
    getrandom::fill(&mut text).unwrap();
    text[TEXT - usize::from(padding)..].fill(padding);
    text
}

/// A key of which docs/ciphertext.md is followed here, so that frames can be made that nobody else could.
struct FrameKey {
    head: [u8; HEAD],
    cipher: Xaes256Gcm,
    commitment: [u8; 32],
    open: Box<dyn Symmetric>,
}

impl FrameKey {
    fn new(provider: &dyn Provider) -> Self {
        let name = name(KeySpec::Aes256);
        let head = Head {
            suite: Suite::Xaes256Gcm,
            has_aad: true,
            version: name.version,
            key_id: name.key_id,
        };
        let info = [
            &b"kmsgate frame v3\x01"[..],
            name.key_id.as_bytes(),
            &[0, 0, 0, 1],
        ]
        .concat();
        let mut derived = [0; 64];
        Hkdf::<Sha256>::new(None, &[7; 32])
            .expand(&info, &mut derived)
            .unwrap();
        let (key, commitment) = derived.split_first_chunk::<32>().unwrap();
        let sealed = provider.seal(&name, &Material::new(vec![7; 32])).unwrap();
        let OpenKey::Symmetric(open) = provider.open(&name, &sealed).unwrap() else {
            panic!("a pair")
        };
        let key = Self {
            head: head.to_bytes(),
            cipher: Xaes256Gcm::new(key.into()),
            commitment: commitment.try_into().unwrap(),
            open,
        };
        assert!(
            !key.refuses(&key.frame(&padded(3))),
            "a frame made here opens there"
        );
        key
    }

    /// A frame around text that need not be well padded.
    fn frame(&self, text: &[u8]) -> Frame {
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).unwrap();
        let bound = [&self.head[..], &self.commitment, &nonce].concat();
        let mut sealed = text.to_vec();
        let aad = [&bound[..], AAD].concat();
        let tag =
            self.cipher
                .encrypt_inout_detached(&nonce.into(), &aad, sealed.as_mut_slice().into());
        [&bound[..], &sealed, &tag.unwrap()].concat()
    }

    fn refuses(&self, frame: &[u8]) -> bool {
        let (head, body) = frame.split_first_chunk().unwrap();
        rejected(self.open.decrypt(head, body, AAD))
    }
}

const AAD: &[u8] = b"tenant=7";

/// Blocks that are no OAEP (RFC 8017, section 7.1.2, step 3.g), encrypted under the public key.
fn oaep(provider: &Arc<dyn Provider>) -> Vec<Subject> {
    let subject = |classes, blocks: [fn(&mut Block); 2]| {
        let provider = Arc::clone(provider);
        let subject = Subject::new(
            "RSA_2048: of the OAEP block is wrong",
            provider.name(),
            classes,
            move |count| {
                let pair = pair(
                    &*provider,
                    KeySpec::Rsa2048,
                    &pem(include_str!("../../tests/vectors/rsa_2048.pem")),
                );
                let public = rsa::PublicKey::from_public_key_der(pair.public_key()).unwrap();
                assert!(
                    !rejected(pair.decrypt(&raw_encrypt(&public, &Block::new().encode()))),
                    "unspoilt, it opens"
                );
                let ciphertext = |spoil: fn(&mut Block)| {
                    let mut block = Block::new();
                    spoil(&mut block);
                    raw_encrypt(&public, &block.encode())
                };
                let class = |spoil| (0..POOL).map(|_| ciphertext(spoil)).collect();
                let make = || ((), blocks.map(class));
                measure(count, ROUND, make, Vec::clone, |(), ciphertext| {
                    rejected(pair.decrypt(ciphertext))
                })
            },
        );
        Subject {
            cost: Cost::Rsa,
            ..subject
        }
    };
    let label: fn(&mut Block) = |block| block.data[0] ^= 1;
    vec![
        // Manger's oracle: the hash is wrong too, since not every provider refuses for the octet alone.
        subject(
            ["the hash of the label", "that and the first octet"],
            [label, |block| {
                block.data[0] ^= 1;
                block.first = 1;
            }],
        ),
        subject(
            ["the first byte of the hash", "its last byte"],
            [label, |block| block.data[31] ^= 1],
        ),
        subject(
            ["the hash of the label", "the separator, which is missing"],
            [label, |block| block.data[32..].fill(0)],
        ),
    ]
}

fn sm2(provider: &Arc<dyn Provider>) -> Vec<Subject> {
    let hash = {
        let provider = Arc::clone(provider);
        move |count| {
            let make = || {
                let key = sm2_pair(&*provider, &random_scalar());
                let class = |at: usize| (0..POOL).map(|_| flipped_hash(&*key, at)).collect();
                let classes = [0, 31].map(class);
                (key, classes)
            };
            measure(count, LONG_ROUND, make, Vec::clone, |key, ciphertext| {
                rejected(key.decrypt(ciphertext))
            })
        }
    };
    let scalar = {
        let provider = Arc::clone(provider);
        move |count| {
            // The smallest scalars have the fewest bits, and are given as many places in memory as the random ones.
            let few = [&[0; 31][..], &[2]].concat();
            let make = || {
                let keys = |scalar: &dyn Fn() -> Vec<u8>| {
                    (0..POOL).map(|_| sm2_pair(&*provider, &scalar())).collect()
                };
                let classes: [Vec<Arc<dyn KeyPair>>; 2] =
                    [keys(&|| few.clone()), keys(&random_scalar)];
                (flipped_hash(&*classes[1][0], 0), classes)
            };
            measure(count, LONG_ROUND, make, Arc::clone, |ciphertext, key| {
                rejected(key.decrypt(ciphertext))
            })
        }
    };
    vec![
        Subject::new(
            "SM2: C3 is right but for",
            provider.name(),
            ["the first byte", "the last byte"],
            hash,
        ),
        Subject::new(
            "SM2: refused under a private key that is",
            provider.name(),
            ["2", "random"],
            scalar,
        ),
    ]
}

/// A ciphertext with a bit of C3 flipped. Which bytes of the DER that is depends on how long the coordinates are, so a
/// ciphertext is looked for with both of 33 bytes: then C3 is in the same place in each.
fn flipped_hash(key: &dyn KeyPair, at: usize) -> Vec<u8> {
    loop {
        let ciphertext = key.encrypt(&Plaintext::new(vec![0x55; 32])).unwrap();
        if let [0x30, 0x81, _, 2, 33, ..] = ciphertext[..]
            && ciphertext[38..40] == [2, 33]
        {
            assert_eq!(ciphertext[73..75], [4, 32]);
            return flipped(&ciphertext, 75 + at);
        }
    }
}

fn sm2_pair(provider: &dyn Provider, scalar: &[u8]) -> Arc<dyn KeyPair> {
    let key = SecretKey::from_slice(scalar).unwrap();
    Arc::from(pair(
        provider,
        KeySpec::Sm2,
        key.to_pkcs8_der().unwrap().as_bytes(),
    ))
}

fn random_scalar() -> Vec<u8> {
    let mut scalar = vec![0; 32];
    getrandom::fill(&mut scalar).unwrap();
    // Less than the order, which begins with ff ff ff fe.
    scalar[0] &= 0x7f;
    scalar
}

fn pair(provider: &dyn Provider, spec: KeySpec, material: &[u8]) -> Box<dyn KeyPair> {
    let name = name(spec);
    let sealed = provider
        .seal(&name, &Material::new(material.to_vec()))
        .unwrap();
    match provider.open(&name, &sealed).unwrap() {
        OpenKey::Pair(pair) => pair,
        OpenKey::Symmetric(_) => panic!("not a pair"),
    }
}

fn rejected(answer: Result<Plaintext, ProviderError>) -> bool {
    match answer {
        Ok(_) => false,
        Err(ProviderError::Rejected) => true,
        Err(other) => panic!("{other:?}"),
    }
}

fn name(spec: KeySpec) -> VersionName {
    VersionName {
        project: "project".parse().unwrap(),
        key_id: "0d0466b0-e727-4d9c-b35d-f84bb474a37f".parse().unwrap(),
        version: KeyVersion::FIRST,
        spec,
    }
}

fn pem(text: &str) -> Vec<u8> {
    let base64: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    BASE64_STANDARD.decode(base64).unwrap()
}

/// 32 random digits.
fn random() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    hex(&bytes)
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x5a;
    bytes
}

fn value(text: &str) -> HeaderValue {
    text.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
