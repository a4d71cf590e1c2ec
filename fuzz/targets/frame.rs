//! Symmetric ciphertexts. A head that parses is written again as it was; what opens has the length
//! that the format gives its plaintext; what was encrypted comes back, and with any byte changed
//! does not.
#![no_main]

use std::sync::LazyLock;

use kmsgate::crypto::{ProviderError, Symmetric};
use kmsgate::domain::frame::{HEAD, Head, OVERHEAD, Suite};
use kmsgate::domain::key::KeyVersion;
use kmsgate::domain::secret::Plaintext;
use kmsgate_fuzz::{KEY_ID, aes, byte, part};
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<Vec<Box<dyn Symmetric>>> = LazyLock::new(aes);

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    match byte(&mut rest) {
        0 => read(rest, b""),
        place => written(place, part(&mut rest), rest),
    }
});

fn read(frame: &[u8], aad: &[u8]) {
    let Ok((head, body)) = Head::parse(frame) else {
        return;
    };
    assert_eq!([&head.to_bytes()[..], body].concat(), frame);
    for key in &*KEYS {
        match key.decrypt(&head.to_bytes(), body, aad) {
            Ok(plaintext) => {
                let blocks = plaintext.expose().len() / 16 + 1;
                assert_eq!(frame.len(), OVERHEAD + 16 * blocks);
            }
            Err(error) => assert!(matches!(error, ProviderError::Rejected), "{error}"),
        }
    }
}

fn written(place: u8, aad: &[u8], plaintext: &[u8]) {
    let head = Head {
        suite: Suite::Xaes256Gcm,
        has_aad: !aad.is_empty(),
        version: KeyVersion::FIRST,
        key_id: KEY_ID.parse().unwrap(),
    };
    for one in &*KEYS {
        let mut frame = head.to_bytes().to_vec();
        let secret = Plaintext::new(plaintext.to_vec());
        let encrypted = one.encrypt(&mut frame, &secret, aad);
        let fits = (1..=4096).contains(&plaintext.len());
        assert_eq!(encrypted.is_ok(), fits, "{} bytes", plaintext.len());
        if !fits {
            return;
        }
        let (read, body) = Head::parse(&frame).unwrap();
        assert_eq!(read, head);
        for other in &*KEYS {
            let opened = other.decrypt(&head.to_bytes(), body, aad).unwrap();
            assert_eq!(opened.expose(), plaintext);
            let mut changed = frame.clone();
            let at = usize::from(place) * frame.len() / 256;
            changed[at] ^= place;
            let (head, body) = changed.split_first_chunk::<HEAD>().unwrap();
            let refused = other.decrypt(head, body, aad);
            assert!(matches!(refused, Err(ProviderError::Rejected)), "byte {at}");
        }
    }
}
