//! Bad ciphertexts: cut off, altered, moved to another key or version. All that is wrong with one
//! kind of key is told by one code in the same words, nothing changes, and the server goes on.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kmsgate::error::Kind;
use rsa::pkcs8::DecodePublicKey;
use rsa::traits::PublicKeyParts;
use tokio::task::JoinSet;

use crate::decrypting::under;
use crate::face::{Face, bytes};
use crate::schema::Call;
use crate::seeds::{RSA_2048, RSA_3072, RSA_4096, SM2};
use crate::world::{World, on_both_faces};
use crate::{aes_key, create, decrypt, encrypt, made, on, sealed, text};

const RSA: &str = "RSAES_OAEP_SHA_256";

/// The shortest frame has 140 bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_with_any_bit_flipped_does_not_open() {
    let world = World::start().await;
    let grpc = world.grpc();
    let key = aes_key(&grpc).await;
    let frame = sealed(&grpc, &key, "x").await;
    let aad = encrypt(&key, "x").with("additional_authenticated_data", "tenant=7");
    let with_aad = bytes(&grpc.done(&aad).await["cipher_text"]);
    assert_eq!((frame.len(), with_aad.len()), (140, 140));
    let mut tasks = JoinSet::new();
    for at in 0..140 {
        let (grpc, frame, with_aad) = (grpc.clone(), frame.clone(), with_aad.clone());
        tasks.spawn(async move {
            for bit in 0..8 {
                let mut flipped = frame.clone();
                flipped[at] ^= 1 << bit;
                // Only the first two bytes say where a frame was made.
                let elsewhere = flipped.starts_with(&[2, 0]);
                assert_eq!(told(&grpc, &decrypt(&flipped)).await.is_empty(), !elsewhere);
            }
            let mut flipped = with_aad;
            flipped[at] ^= 1;
            let call = decrypt(&flipped).with("additional_authenticated_data", "tenant=7");
            told(&grpc, &call).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(grpc.done(&decrypt(&frame)).await["plain_text"], "x");
}

#[tokio::test]
async fn a_frame_cut_off_or_prolonged_does_not_open() {
    unchanged(async |face, key| {
        let frame = sealed(face, key, "hello world").await;
        for end in 1..frame.len() {
            assert_eq!(told(face, &decrypt(&frame[..end])).await, "");
        }
        for length in [1, 15, 16, 17, 100] {
            let mut longer = frame.clone();
            longer.resize(frame.len() + length, 0);
            assert_eq!(told(face, &decrypt(&longer)).await, "");
        }
        assert_eq!(told(face, &decrypt(&frame[1..])).await, "");
        face.done(&decrypt(&frame)).await;
    })
    .await;
}

#[tokio::test]
async fn a_frame_opens_under_its_own_key_and_version_alone() {
    unchanged(async |face, key| {
        let other = aes_key(face).await;
        let first = sealed(face, key, "x").await;
        face.done(&on("rotate-on-demand", key)).await;
        let second = sealed(face, key, "x").await;
        assert_eq!((first[7], second[7]), (1, 2));
        for (frame, version) in [(&first, 2_u32), (&second, 1), (&first, 0), (&first, 3)] {
            let mut moved = frame.clone();
            moved[4..8].copy_from_slice(&version.to_be_bytes());
            assert_eq!(told(face, &decrypt(&moved)).await, "");
        }
        let mut moved = first.clone();
        moved[4..8].fill(0xff);
        assert_eq!(told(face, &decrypt(&moved)).await, "");
        let mut moved = first.clone();
        moved[8..44].copy_from_slice(other.as_bytes());
        assert_eq!(told(face, &decrypt(&moved)).await, "");
        // Half of one frame and half of another.
        for cut in [52, 84, 108, 124] {
            let joined = [&first[..cut], &second[cut..]].concat();
            assert_eq!(told(face, &decrypt(&joined)).await, "");
        }
    })
    .await;
}

#[tokio::test]
async fn a_ciphertext_of_one_algorithm_does_not_open_by_another() {
    unchanged(async |face, key| {
        let frame = sealed(face, key, "x").await;
        let of = async |key: &str, algorithm: &str| {
            let call = encrypt(key, "x").with("encryption_algorithm", algorithm);
            bytes(&face.done(&call).await["cipher_text"])
        };
        let (rsa, sm2) = (of(RSA_2048, RSA).await, of(SM2, "SM2_ENCRYPT").await);
        assert_eq!(told(face, &decrypt(&rsa)).await, "");
        assert_eq!(told(face, &decrypt(&sm2)).await, "");
        for other in [&frame, &sm2] {
            refused_rsa(face, RSA_2048, other).await;
        }
        for other in [&frame, &rsa] {
            assert_eq!(told(face, &under(SM2, "SM2_ENCRYPT", other)).await, "");
        }
        refused_rsa(face, RSA_3072, &rsa).await;
    })
    .await;
}

#[tokio::test]
async fn every_bad_rsa_ciphertext_is_told_alike() {
    // Decision 8.
    unchanged(async |face, _| {
        let call = encrypt(RSA_2048, "x").with("encryption_algorithm", RSA);
        let good = bytes(&face.done(&call).await["cipher_text"]);
        for length in [96, 128, 255, 257, 384, 512, 4236] {
            let mut resized = good.clone();
            resized.resize(length, 0);
            refused_rsa(face, RSA_2048, &resized).await;
        }
        let with_zero = [&[0], &good[..]].concat();
        refused_rsa(face, RSA_2048, &with_zero).await;
        for at in [0, 1, 127, 254, 255] {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            refused_rsa(face, RSA_2048, &flipped).await;
        }
        let pem = face.done(&on("get-publickey", RSA_2048)).await;
        let key = rsa::PublicKey::from_public_key_pem(&text(&pem["public_key"])).unwrap();
        let n = key.n().to_be_bytes();
        let mut n_less_one = n.to_vec();
        *n_less_one.last_mut().unwrap() -= 1;
        let (zero, one) = (vec![0; 256], [vec![0; 255], vec![1]].concat());
        for number in [&zero, &one, &n_less_one, &n.to_vec(), &vec![0xff; 256]] {
            assert_eq!(number.len(), 256);
            refused_rsa(face, RSA_2048, number).await;
        }
        // Modulo n the second is the same number as the first, and so would open if it were reduced.
        let (good, beyond) = loop {
            let good = bytes(&face.done(&call).await["cipher_text"]);
            if let Some(beyond) = sum(&good, &n) {
                break (good, beyond);
            }
        };
        let opened = face.done(&under(RSA_2048, RSA, &good)).await;
        assert_eq!(opened["plain_text"], "x");
        refused_rsa(face, RSA_2048, &beyond).await;
        for (key, length) in [(RSA_3072, 384), (RSA_4096, 512)] {
            for length in [length - 1, length, length + 1] {
                refused_rsa(face, key, &vec![0x5a; length]).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn every_bad_sm2_ciphertext_is_told_alike() {
    // Decision 2: DER, strict on input.
    unchanged(async |face, _| {
        let call = encrypt(SM2, &"x".repeat(40)).with("encryption_algorithm", "SM2_ENCRYPT");
        let good = bytes(&face.done(&call).await["cipher_text"]);
        let read = Der::read(&good);
        assert_eq!(read.write(), good, "the test writes what it reads");
        let mut all: Vec<Vec<u8>> = Vec::new();
        all.extend((96..good.len()).map(|end| good[..end].to_vec()));
        all.extend((0..good.len()).map(|at| {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            flipped
        }));
        all.push([&good[..], &[0]].concat());
        all.push([&[4], &good[1..]].concat());
        for bad in [
            // Trailing bytes inside the sequence.
            Der {
                rest: vec![5, 0],
                ..read.clone()
            },
            // Negative, and longer than need be.
            Der {
                x: negative(&read.x),
                ..read.clone()
            },
            Der {
                x: [&[0], &read.x[..]].concat(),
                ..read.clone()
            },
            Der {
                y: [&[0, 0], &read.y[..]].concat(),
                ..read.clone()
            },
            // Over the field, absent, and the coordinates that no point has.
            Der {
                x: [&[0], &[0xff; 32][..]].concat(),
                ..read.clone()
            },
            Der {
                x: vec![1; 40],
                ..read.clone()
            },
            Der {
                x: vec![],
                ..read.clone()
            },
            Der {
                x: vec![0],
                y: vec![0],
                ..read.clone()
            },
            // Off the curve: the other coordinate of another point, or swapped.
            Der {
                x: read.y.clone(),
                y: read.x.clone(),
                ..read.clone()
            },
            Der {
                y: vec![1],
                ..read.clone()
            },
            // off the curve.
            Der {
                c3: vec![0; 31],
                ..read.clone()
            },
            Der {
                c3: vec![0; 33],
                ..read.clone()
            },
            Der {
                c2: vec![],
                ..read.clone()
            },
            // The order C1 C2 C3 of older implementations.
            Der {
                c3: read.c2.clone(),
                c2: read.c3.clone(),
                ..read.clone()
            },
        ] {
            let mut bytes = bad.write();
            // Short ones are refused for their length.
            bytes.truncate(4236);
            all.push(bytes);
        }
        // A length in more bytes than need be.
        let body = &good[if good[1] == 0x81 { 3 } else { 2 }..];
        all.push([&[0x30, 0x82, 0, u8::try_from(body.len()).unwrap()], body].concat());
        // Bare C1 C3 C2 with the uncompressed point's 04.
        all.push([&[4][..], &[7; 64], &read.c3, &read.c2].concat());
        for bad in all {
            assert_eq!(
                told(face, &under(SM2, "SM2_ENCRYPT", &bad)).await,
                "",
                "{bad:02x?}"
            );
        }
        let opened = face.done(&under(SM2, "SM2_ENCRYPT", &good)).await;
        assert_eq!(opened["plain_text"], "x".repeat(40));
        // Another SM2 key.
        let new = create("other-pair")
            .with("key_spec", "SM2")
            .with("key_usage", "ENCRYPT_DECRYPT");
        let other = made(face, &new).await;
        assert_eq!(told(face, &under(&other, "SM2_ENCRYPT", &good)).await, "");
    })
    .await;
}

#[tokio::test]
async fn arbitrary_bytes_do_not_open() {
    unchanged(async |face, key| {
        let ours = STANDARD.encode(sealed(face, key, "x").await);
        for length in [96, 139, 140, 141, 156, 188, 256, 4236] {
            for byte in [0, 2, 3, 0x30, 0xff] {
                let bad = vec![byte; length];
                assert_eq!(told(face, &decrypt(&bad)).await, "");
                refused_rsa(face, RSA_2048, &bad).await;
                assert_eq!(told(face, &under(SM2, "SM2_ENCRYPT", &bad)).await, "");
            }
        }
        // Base64 of Base64.
        assert_eq!(told(face, &decrypt(ours.as_bytes())).await, "");
    })
    .await;
}

/// Runs a story with a key over both faces, after which the key is as it was and works.
async fn unchanged(story: impl AsyncFn(&Face, &str)) {
    on_both_faces(async |face| {
        let key = aes_key(face).await;
        let frame = sealed(face, &key, "still here").await;
        let before = face.done(&on("describe-key", &key)).await["key_info"].clone();
        story(face, &key).await;
        let after = face.done(&on("describe-key", &key)).await["key_info"].clone();
        assert_eq!(before["key_state"], after["key_state"]);
        assert_eq!(before["key_alias"], after["key_alias"]);
        let opened = face.done(&decrypt(&frame)).await;
        assert_eq!(opened["plain_text"], "still here");
    })
    .await;
}

/// What a refused ciphertext is told beyond the row's own words.
async fn told(face: &Face, call: &Call) -> String {
    let refusal = face.refused(Kind::InvalidCiphertext, call).await;
    let text = Kind::InvalidCiphertext.row().text;
    refusal.message.strip_prefix(text).unwrap().to_owned()
}

async fn refused_rsa(face: &Face, key: &str, ciphertext: &[u8]) {
    let call = under(key, RSA, ciphertext);
    let refusal = face.refused(Kind::RsaDecryptionFailed, &call).await;
    assert_eq!(refusal.message, Kind::RsaDecryptionFailed.row().text);
}

/// The sum of two numbers of one length, the highest byte first, if it has that length too.
fn sum(one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    assert_eq!(one.len(), other.len());
    let mut sum = vec![0; one.len()];
    let mut carry = 0;
    for (digit, (one, other)) in sum.iter_mut().zip(one.iter().zip(other)).rev() {
        let [high, low] = (u16::from(*one) + u16::from(*other) + carry).to_be_bytes();
        *digit = low;
        carry = u16::from(high);
    }
    (carry == 0).then_some(sum)
}

/// `SEQUENCE { x INTEGER, y INTEGER, C3 OCTET STRING, C2 OCTET STRING }`, and what may wrongly
/// follow in it: the contents as they stand.
#[derive(Clone, Debug)]
struct Der {
    x: Vec<u8>,
    y: Vec<u8>,
    c3: Vec<u8>,
    c2: Vec<u8>,
    rest: Vec<u8>,
}

impl Der {
    fn read(der: &[u8]) -> Self {
        let (body, _) = element(der);
        let (x, next) = element(body);
        let (y, next) = element(next);
        let (c3, next) = element(next);
        let (c2, rest) = element(next);
        Self {
            x: x.to_vec(),
            y: y.to_vec(),
            c3: c3.to_vec(),
            c2: c2.to_vec(),
            rest: rest.to_vec(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let elements = [
            wrap(2, &self.x),
            wrap(2, &self.y),
            wrap(4, &self.c3),
            wrap(4, &self.c2),
            self.rest.clone(),
        ];
        wrap(0x30, &elements.concat())
    }
}

/// The contents of the first element, and what follows it.
fn element(der: &[u8]) -> (&[u8], &[u8]) {
    match der[1] {
        0x81 => der[3..].split_at(der[2].into()),
        length => der[2..].split_at(length.into()),
    }
}

fn wrap(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u8::try_from(contents.len()).unwrap();
    match length {
        0..=0x7f => [&[tag, length], contents].concat(),
        _ => [&[tag, 0x81, length], contents].concat(),
    }
}

/// An integer's contents with the sign bit set.
fn negative(contents: &[u8]) -> Vec<u8> {
    let mut magnitude = contents.strip_prefix(&[0]).unwrap_or(contents).to_vec();
    magnitude[0] |= 0x80;
    magnitude
}
