//! Every failure to decrypt under one kind of key has one answer, to the byte: status, headers, body
//! and trailers say nothing of what was wrong. Only the request's own id and the date differ.

use aes_gcm::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use http::HeaderMap;
use kmsgate::domain::frame::{Head, Suite};
use kmsgate::domain::key::KeyVersion;
use kmsgate::error::Kind;
use rsa::pkcs8::DecodePublicKey;
use sha2::Sha256;
use xaes_256_gcm::Xaes256Gcm;

use crate::decrypting::under;
use crate::face::{Face, Over, Raw, bytes, framed};
use crate::lifecycle::public_key;
use crate::oaep::{Block, raw_encrypt};
use crate::schema::Call;
use crate::seeds::{DOCUMENTED, NOBODY, RSA_2048, SM2};
use crate::world::World;
use crate::{aes_key, create, decrypt, encrypt, made, on, sealed};

const RSA: &str = "RSAES_OAEP_SHA_256";

const AAD: &str = "tenant=7";

#[tokio::test]
async fn a_frame_that_does_not_open_has_one_answer_to_the_byte() {
    let world = World::start().await;
    for (face, foreign) in [(world.rest(), world.grpc()), (world.grpc(), world.rest())] {
        let call = encrypt(DOCUMENTED, "x").with("additional_authenticated_data", AAD);
        let good = bytes(&face.done(&call).await["cipher_text"]);
        let with = |frame: &[u8]| decrypt(frame).with("additional_authenticated_data", AAD);
        face.done(&with(&frame(&padded(1)))).await;

        let (theirs, gone) = (aes_key(&foreign).await, aes_key(&foreign).await);
        let their_frame = sealed(&foreign, &theirs, "x").await;
        let their_disabled = sealed(&foreign, &gone, "x").await;
        foreign.done(&on("disable-key", &gone)).await;
        let moved = |at: usize, to: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + to.len()].copy_from_slice(to);
            frame
        };
        let flipped = |at: usize| moved(at, &[good[at] ^ 1]);
        let last = good.len() - 1;
        let other = aes_key(&face).await;
        let mut calls: Vec<Call> = [
            // The tag, the text, the nonce, the commitment, at either end.
            flipped(last),
            flipped(last - 15),
            flipped(52 + 32 + 24),
            flipped(52 + 32),
            flipped(52),
            flipped(52 + 31),
            // Another format, suite or flag, another version, and no version.
            flipped(1),
            flipped(2),
            flipped(3),
            moved(4, &2_u32.to_be_bytes()),
            moved(4, &0_u32.to_be_bytes()),
            // Another key, no key, a key that is none, an RSA key.
            moved(8, other.as_bytes()),
            moved(8, NOBODY.as_bytes()),
            moved(8, &[b'x'; 36]),
            moved(8, RSA_2048.as_bytes()),
            // Cut off and prolonged.
            good[..last].to_vec(),
            good[..good.len() - 16].to_vec(),
            good[..96].to_vec(),
            [&good[..], &[0]].concat(),
            // Behind a right tag: no padding, too much, and padding with a wrong byte.
            frame(&padded_with(0)),
            frame(&padded_with(17)),
            frame(&padded_with(255)),
            frame(&padded_with(2)),
            frame(&[16; 16]),
            frame(&[1; 17]),
            // Another project's keys.
            their_frame,
            their_disabled,
            vec![0x5a; 140],
        ]
        .iter()
        .map(|frame| with(frame))
        .collect();
        // Other additional data, and none.
        calls.push(decrypt(&good).with("additional_authenticated_data", "tenant=8"));
        calls.push(decrypt(&good));
        // Not the key that the frame names.
        calls.push(with(&good).with("key_id", other.as_str()));
        calls.push(with(&good).with("key_id", NOBODY));
        answers_alike(&face, Kind::InvalidCiphertext, &calls).await;
    }
}

#[tokio::test]
async fn an_rsa_ciphertext_that_does_not_open_has_one_answer_to_the_byte() {
    let rustcrypto = "crypto.providers = [{ kind = \"rustcrypto\" }]";
    for (world, octet) in [
        (World::start().await, true),
        (World::with(rustcrypto).await, false),
    ] {
        for face in [world.rest(), world.grpc()] {
            let call = encrypt(RSA_2048, "x").with("encryption_algorithm", RSA);
            let good = bytes(&face.done(&call).await["cipher_text"]);
            let mut bad: Vec<Vec<u8>> = [0, 1, 128, 255]
                .map(|at| {
                    let mut flipped = good.clone();
                    flipped[at] ^= 1;
                    flipped
                })
                .into();
            bad.extend([
                vec![0; 256],
                vec![0xff; 256],
                vec![0x5a; 256],
                vec![0x5a; 128],
                vec![0x5a; 512],
            ]);
            bad.extend([
                good[..255].to_vec(),
                [&good[..], &[0]].concat(),
                [&[0], &good[..]].concat(),
            ]);
            bad.extend(no_oaep(&face, octet).await);
            let calls: Vec<Call> = bad.iter().map(|bad| under(RSA_2048, RSA, bad)).collect();
            face.done(&under(RSA_2048, RSA, &good)).await;
            answers_alike(&face, Kind::RsaDecryptionFailed, &calls).await;
        }
    }
}

/// Ciphertexts of blocks that are wrong (RFC 8017, section 7.1.2, step 3.g).
async fn no_oaep(face: &Face, octet: bool) -> Vec<Vec<u8>> {
    let key = rsa::PublicKey::from_public_key_pem(&public_key(face, RSA_2048).await).unwrap();
    let spoilt = |spoil: fn(&mut Block)| {
        let mut block = Block::new();
        spoil(&mut block);
        raw_encrypt(&key, &block.encode())
    };
    face.done(&under(RSA_2048, RSA, &spoilt(|_| {}))).await;
    let mut bad = vec![
        spoilt(|block| (block.first, block.data[31]) = (1, 0)),
        spoilt(|block| block.data[0] ^= 1),
        spoilt(|block| block.data[31] ^= 0x80),
        // Between the hash and the separator there are zeros alone.
        spoilt(|block| block.data[32] = 2),
        spoilt(|block| block.data[189] = 0xff),
        spoilt(|block| block.data[190] = 2),
        spoilt(|block| block.data[190..].fill(0)),
    ];
    if octet {
        bad.push(spoilt(|block| block.first = 1));
        bad.push(spoilt(|block| block.first = 0x7f));
    } else {
        // docs/ciphertext.md: `rustcrypto` does not look at it.
        let opened = spoilt(|block| block.first = 1);
        face.done(&under(RSA_2048, RSA, &opened)).await;
    }
    bad
}

#[tokio::test]
async fn an_sm2_ciphertext_that_does_not_open_has_one_answer_to_the_byte() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let call = encrypt(SM2, &"x".repeat(40)).with("encryption_algorithm", "SM2_ENCRYPT");
        let good = bytes(&face.done(&call).await["cipher_text"]);
        let new = create("alike")
            .with("key_spec", "SM2")
            .with("key_usage", "ENCRYPT_DECRYPT");
        let other = made(&face, &new).await;
        // Tags, lengths, both coordinates, C3, C2: whichever byte it is.
        let mut calls: Vec<Call> = (0..good.len())
            .map(|at| {
                let mut flipped = good.clone();
                flipped[at] ^= 1;
                under(SM2, "SM2_ENCRYPT", &flipped)
            })
            .collect();
        calls.push(under(SM2, "SM2_ENCRYPT", &good[..good.len() - 1]));
        calls.push(under(SM2, "SM2_ENCRYPT", &[&good[..], &[0]].concat()));
        calls.push(under(SM2, "SM2_ENCRYPT", &[0x5a; 140]));
        calls.push(under(&other, "SM2_ENCRYPT", &good));
        face.done(&under(SM2, "SM2_ENCRYPT", &good)).await;
        answers_alike(&face, Kind::InvalidCiphertext, &calls).await;
    }
}

/// Makes the calls, which must all be refused with this row and not a word more, and compares
/// everything that comes back.
async fn answers_alike(face: &Face, kind: Kind, calls: &[Call]) {
    let mut first = None;
    for (number, call) in calls.iter().enumerate() {
        let body = match face.over {
            Over::Rest => call.to_json(),
            Over::Grpc => framed(&call.to_message(Some(&face.project))),
        };
        let raw = face.post(&face.path("decrypt-data"), body).await;
        let read = face.read("decrypt-data", &raw);
        let about = format!("call {number} over {:?}", face.over);
        read.is(kind, &about);
        assert_eq!(read.refusal().message, kind.row().text, "{about}");
        let answer = without_what_is_the_requests_own(raw);
        let first = first.get_or_insert_with(|| answer.clone());
        assert_eq!(&answer, first, "{about}");
    }
}

fn without_what_is_the_requests_own(raw: Raw) -> (u16, HeaderMap, Vec<u8>, HeaderMap) {
    let Raw {
        status,
        mut headers,
        body,
        trailers,
    } = raw;
    headers.remove("x-request-id").expect("an id");
    headers.remove("date");
    (status.as_u16(), headers, body.to_vec(), trailers)
}

/// A frame of the documented key's, whose material is known, as docs/ciphertext.md says; but around
/// whatever text.
fn frame(text: &[u8]) -> Vec<u8> {
    let info = [
        &b"kmsgate frame v3\x01"[..],
        DOCUMENTED.as_bytes(),
        &[0, 0, 0, 1],
    ]
    .concat();
    let mut derived = [0; 64];
    Hkdf::<Sha256>::new(None, &[0x42; 32])
        .expand(&info, &mut derived)
        .unwrap();
    let (key, commitment) = derived.split_first_chunk::<32>().unwrap();
    let nonce = [9; 24];
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: true,
        version: KeyVersion::FIRST,
        key_id: DOCUMENTED.parse().unwrap(),
    };
    let bound = [&head.to_bytes()[..], commitment, &nonce].concat();
    let mut sealed = text.to_vec();
    let tag = Xaes256Gcm::new(key.into())
        .encrypt_inout_detached(
            &nonce.into(),
            &[&bound[..], AAD.as_bytes()].concat(),
            sealed.as_mut_slice().into(),
        )
        .unwrap();
    [&bound[..], &sealed, &tag].concat()
}

/// 16 bytes that end in a padding of this many.
fn padded(padding: u8) -> [u8; 16] {
    let mut text = [b'x'; 16];
    text[16 - usize::from(padding)..].fill(padding);
    text
}

/// 16 bytes of which only the last is padding, and says this.
fn padded_with(last: u8) -> [u8; 16] {
    let mut text = [b'x'; 16];
    text[15] = last;
    text
}
