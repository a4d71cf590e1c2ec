//! A ciphertext that opens under two AES-GCM keys, and why none of ours does.
//!
//! AES-GCM does not commit to its key (Grubbs, Lu and Ristenpart, "Message Franking via Committing
//! Authenticated Encryption", CRYPTO 2017; Dodis and others call such ciphertexts invisible
//! salamanders). A tag is `E(J0) ⊕ GHASH`, and GHASH is a polynomial in `H = E(0)`: linear in each
//! block of ciphertext. So whoever knows two keys can choose all blocks but one, and solve for that
//! one, so that the tags under both keys are the same:
//!
//! ```text
//! X · (H1^e ⊕ H2^e) = tag1(X = 0) ⊕ tag2(X = 0)        over GF(2^128)
//! ```
//!
//! XAES-256-GCM inherits that. Here such ciphertexts are made, and both keys open them by the
//! primitive alone. In a frame, which carries a commitment, one of them at most does.

use std::sync::Arc;

use aes_gcm::Aes256Gcm;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use hkdf::Hkdf;
use kmsgate::crypto::aws_lc::AwsLc;
use kmsgate::crypto::root::RootKey;
use kmsgate::crypto::rustcrypto::RustCrypto;
use kmsgate::crypto::{OpenKey, Provider, ProviderError, Symmetric, VersionName};
use kmsgate::domain::frame::{Head, Suite};
use kmsgate::domain::key::{KeySpec, KeyVersion};
use kmsgate::domain::secret::Material;
use sha2::Sha256;
use xaes_256_gcm::Xaes256Gcm;
use xaes_256_gcm::aead::{AeadInOut, KeyInit};

#[test]
fn multiplication_is_that_of_the_published_ghash_example() {
    // McGrew and Viega, "The Galois/Counter Mode of Operation", test case 2: GHASH of one block and
    // the block of lengths.
    let h = block("66e94bd4ef8a2c3b884cfa59ca342b2e");
    let c = block("0388dace60b6a392f328c2b971b2fe78");
    let x1 = times(c, h);
    assert_eq!(x1, block("5e2ec746917062882c85b0685353deb7"));
    assert_eq!(
        times(x1 ^ 0x80, h),
        block("f38cbb1ad69223dcc3457ae5b6b0f885")
    );
    assert_eq!(times(inverse(h), h), ONE);
}

#[test]
fn an_aes_gcm_ciphertext_opens_under_two_keys() {
    let keys = [[1; 32], [2; 32]];
    let nonce = [3; 12];
    let aad = b"the caller's data";
    let (sealed, tag) = opens_under_both(keys, nonce, aad, &[0x55; 64]);
    let opened = keys.map(|key| {
        let mut text = sealed.clone();
        Aes256Gcm::new(&key.into())
            .decrypt_inout_detached(&nonce.into(), aad, text.as_mut_slice().into(), &tag.into())
            .unwrap();
        text
    });
    assert_ne!(opened[0], opened[1]);
}

#[test]
fn no_frame_opens_under_two_keys_though_its_ciphertext_does() {
    for provider in providers() {
        let keys = [Known::new(&*provider, 1), Known::new(&*provider, 2)];
        let mut openings = Vec::new();
        for head in &keys {
            for committed in &keys {
                let frame = opens_under_both_but_for_the_commitment(&keys, head, committed);
                openings.push(keys.each_ref().map(|key| key.opens(&frame)));
            }
        }
        // Each opens under the key that it commits to, whatever key its head names, and under no
        // other.
        let expected = [[true, false], [false, true]].repeat(2);
        assert_eq!(openings, expected, "{}", provider.name());
    }
}

/// The providers that have symmetric keys.
fn providers() -> Vec<Box<dyn Provider>> {
    let root = Arc::new(RootKey::generate().unwrap());
    vec![
        Box::new(AwsLc::new(Arc::clone(&root) as _)),
        Box::new(RustCrypto::new(root)),
    ]
}

/// A key whose material is known to who makes the ciphertext.
struct Known {
    head: [u8; 52],
    /// What the material gives by docs/ciphertext.md: the key that encrypts, and the commitment.
    derived: [u8; 64],
    open: Box<dyn Symmetric>,
}

impl Known {
    fn new(provider: &dyn Provider, number: u8) -> Self {
        let id = format!("00000000-0000-4000-8000-{number:012}");
        let name = VersionName {
            project: "project".parse().unwrap(),
            key_id: id.parse().unwrap(),
            version: KeyVersion::FIRST,
            spec: KeySpec::Aes256,
        };
        let head = Head {
            suite: Suite::Xaes256Gcm,
            has_aad: true,
            version: name.version,
            key_id: name.key_id,
        };
        let mut derived = [0; 64];
        let info = [b"kmsgate frame v3\x01", id.as_bytes(), &[0, 0, 0, 1]].concat();
        Hkdf::<Sha256>::new(None, &[number; 32])
            .expand(&info, &mut derived)
            .unwrap();
        let sealed = provider.seal(&name, &Material::new(vec![number; 32]));
        let OpenKey::Symmetric(open) = provider.open(&name, &sealed.unwrap()).unwrap() else {
            panic!("a pair")
        };
        Self {
            head: head.to_bytes(),
            derived,
            open,
        }
    }

    fn key(&self) -> [u8; 32] {
        self.derived[..32].try_into().unwrap()
    }

    fn opens(&self, frame: &[u8]) -> bool {
        let (head, body) = frame.split_first_chunk().unwrap();
        match self.open.decrypt(head, body, AAD) {
            Ok(_) => true,
            Err(ProviderError::Rejected) => false,
            Err(other) => panic!("{other:?}"),
        }
    }
}

const AAD: &[u8] = b"tenant=7";

/// A frame with the head of one key and the commitment of one, whose ciphertext opens by the
/// primitive alone under both keys, with the frame's own associated data and to a text that is well
/// padded under either.
fn opens_under_both_but_for_the_commitment(
    keys: &[Known; 2],
    head: &Known,
    committed: &Known,
) -> Vec<u8> {
    // The last byte of the text must be 1 under both keys, so their streams must have the same byte
    // there: one nonce in 256.
    for counter in 0_u32.. {
        let mut nonce = [0; 24];
        nonce[..4].copy_from_slice(&counter.to_be_bytes());
        let gcm = keys.each_ref().map(|key| message_key(&key.key(), &nonce));
        let short: [u8; 12] = nonce[12..].try_into().unwrap();
        let streams = gcm.map(|key| stream(&key, &short, 4));
        if streams[0][63] != streams[1][63] {
            continue;
        }
        let mut blocks = [0x55; 64];
        blocks[63] = streams[0][63] ^ 1;
        let bound = [&head.head[..], &committed.derived[32..], &nonce].concat();
        let aad = [&bound[..], AAD].concat();
        let (sealed, tag) = opens_under_both(gcm, short, &aad, &blocks);
        for key in keys {
            let mut text = sealed.clone();
            Xaes256Gcm::new(&key.key().into())
                .decrypt_inout_detached(
                    &nonce.into(),
                    &aad,
                    text.as_mut_slice().into(),
                    &tag.into(),
                )
                .unwrap();
            assert_eq!(text.last(), Some(&1));
        }
        return [&bound[..], &sealed, &tag].concat();
    }
    unreachable!("there is such a nonce");
}

/// A ciphertext and its tag that are right under both AES-256-GCM keys: these blocks, the first of
/// which is replaced.
fn opens_under_both(
    keys: [[u8; 32]; 2],
    nonce: [u8; 12],
    aad: &[u8],
    blocks: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut sealed = blocks.to_vec();
    sealed[..16].fill(0);
    let tags = keys.map(|key| tag(&key, &nonce, aad, &sealed));
    // The first block is multiplied once for itself, for each that follows, and for the lengths.
    let factors = keys.map(|key| {
        let h = encrypt_block(&key, 0);
        (0..blocks.len() / 16).fold(h, |power, _| times(power, h))
    });
    let first = times(tags[0] ^ tags[1], inverse(factors[0] ^ factors[1]));
    sealed[..16].copy_from_slice(&first.to_be_bytes());
    let tags = keys.map(|key| tag(&key, &nonce, aad, &sealed));
    assert_eq!(tags[0], tags[1]);
    (sealed, tags[0].to_be_bytes())
}

/// The tag of AES-256-GCM (NIST SP 800-38D, section 7.1).
fn tag(key: &[u8; 32], nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> u128 {
    let h = encrypt_block(key, 0);
    let mut sum = 0;
    for part in [aad, sealed] {
        for chunk in part.chunks(16) {
            let mut block = [0; 16];
            block[..chunk.len()].copy_from_slice(chunk);
            sum = times(sum ^ u128::from_be_bytes(block), h);
        }
    }
    let lengths = ((aad.len() as u128 * 8) << 64) | (sealed.len() as u128 * 8);
    times(sum ^ lengths, h) ^ encrypt_block(key, counter(nonce, 1))
}

/// The bytes that AES-256-GCM adds to as many blocks of text.
fn stream(key: &[u8; 32], nonce: &[u8; 12], blocks: u32) -> Vec<u8> {
    let numbers = 2..2 + blocks;
    let blocks = numbers.map(|number| encrypt_block(key, counter(nonce, number)).to_be_bytes());
    blocks.flatten().collect()
}

fn counter(nonce: &[u8; 12], number: u32) -> u128 {
    let mut block = [0; 16];
    block[..12].copy_from_slice(nonce);
    block[12..].copy_from_slice(&number.to_be_bytes());
    u128::from_be_bytes(block)
}

/// The AES-256-GCM key that XAES-256-GCM takes for a message (<https://c2sp.org/XAES-256-GCM>); its
/// nonce is the second half.
fn message_key(key: &[u8; 32], nonce: &[u8; 24]) -> [u8; 32] {
    let l = encrypt_block(key, 0);
    let k1 = (l << 1) ^ ((l >> 127) * 0x87);
    let mut derived = [0; 32];
    for (number, half) in (1..).zip(derived.chunks_mut(16)) {
        let mut block = [0, number, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        block[4..].copy_from_slice(&nonce[..12]);
        let block = encrypt_block(key, u128::from_be_bytes(block) ^ k1);
        half.copy_from_slice(&block.to_be_bytes());
    }
    derived
}

fn encrypt_block(key: &[u8; 32], block: u128) -> u128 {
    let mut block = block.to_be_bytes().into();
    Aes256::new(&(*key).into()).encrypt_block(&mut block);
    u128::from_be_bytes(block.into())
}

/// One, in the order of bits of GCM: the first bit is the coefficient of x^0.
const ONE: u128 = 1 << 127;

/// The product in GF(2^128) (NIST SP 800-38D, section 6.3).
fn times(x: u128, y: u128) -> u128 {
    let (mut product, mut v) = (0, y);
    for bit in (0..128).rev() {
        product ^= v * ((x >> bit) & 1);
        v = (v >> 1) ^ ((v & 1) * (0xe1 << 120));
    }
    product
}

/// The inverse: x^(2^128 - 2).
fn inverse(x: u128) -> u128 {
    let mut square = x;
    (1..128).fold(ONE, |product, _| {
        square = times(square, square);
        times(product, square)
    })
}

fn block(hex: &str) -> u128 {
    u128::from_str_radix(hex, 16).unwrap()
}
