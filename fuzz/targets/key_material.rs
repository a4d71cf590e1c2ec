//! Key material from elsewhere, and sealed keys as a store returns them. Material that a provider
//! seals is a key that works in every provider that has its spec; bytes that nobody sealed do not
//! open.
#![no_main]

use std::sync::LazyLock;

use kmsgate::crypto::{OpenKey, Provider, ProviderError, SealedKey};
use kmsgate::domain::frame::{HEAD, Head};
use kmsgate::domain::key::KeySpec;
use kmsgate::domain::secret::{Material, Plaintext};
use kmsgate_fuzz::{byte, name, providers};
use libfuzzer_sys::fuzz_target;

static PROVIDERS: LazyLock<Vec<Box<dyn Provider>>> = LazyLock::new(providers);

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let kind = usize::from(byte(&mut rest));
    let spec = KeySpec::ALL[kind / 2 % KeySpec::ALL.len()];
    let having = || PROVIDERS.iter().filter(|one| one.supports(spec));
    for provider in having() {
        if kind % 2 == 1 {
            let refused = provider.open(&name(spec), &SealedKey(rest.to_vec()));
            assert!(matches!(refused, Err(ProviderError::BadSeal)));
            continue;
        }
        match provider.seal(&name(spec), &Material::new(rest.to_vec())) {
            Ok(sealed) => having().for_each(|other| works(&**other, spec, &sealed)),
            Err(error) => assert!(matches!(error, ProviderError::Unsupported), "{error}"),
        }
    }
});

fn works(provider: &dyn Provider, spec: KeySpec, sealed: &SealedKey) {
    let secret = Plaintext::new(b"attack at dawn".to_vec());
    let opened = match provider.open(&name(spec), sealed).unwrap() {
        OpenKey::Symmetric(key) => {
            let mut frame = vec![0; HEAD];
            key.encrypt(&mut frame, &secret, b"").unwrap();
            let (head, body) = frame.split_first_chunk::<HEAD>().unwrap();
            assert!(Head::parse(&frame).is_err(), "a head of zeros is none");
            key.decrypt(head, body, b"").unwrap()
        }
        OpenKey::Pair(pair) => pair.decrypt(&pair.encrypt(&secret).unwrap()).unwrap(),
    };
    assert_eq!(opened.expose(), secret.expose());
}
