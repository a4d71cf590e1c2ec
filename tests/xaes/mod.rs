//! The accumulated randomized tests of <https://c2sp.org/XAES-256-GCM>: keys, nonces, plaintexts
//! and associated data are drawn from SHAKE128 of nothing, and the hash is over all ciphertexts.

use shake::Shake128;
use shake::digest::{ExtendableOutput, Update, XofReader};

/// The published hashes, each after as many ciphertexts.
pub(crate) const PUBLISHED: [(u32, &str); 2] = [
    (
        10_000,
        "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939",
    ),
    (
        1_000_000,
        "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15",
    ),
];

/// The hash of `count` ciphertexts, each what `seal` makes of key, nonce, plaintext and associated
/// data, with its tag.
pub(crate) fn accumulate(
    count: u32,
    mut seal: impl FnMut(&[u8; 32], &[u8; 24], &[u8], &[u8]) -> Vec<u8>,
) -> String {
    let mut drawn = Shake128::default().finalize_xof();
    let mut all = Shake128::default();
    for _ in 0..count {
        let key: [u8; 32] = draw(&mut drawn);
        let nonce: [u8; 24] = draw(&mut drawn);
        let plaintext = draw_some(&mut drawn);
        let aad = draw_some(&mut drawn);
        all.update(&seal(&key, &nonce, &plaintext, &aad));
    }
    let hash: [u8; 32] = draw(&mut all.finalize_xof());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn draw<const N: usize>(from: &mut impl XofReader) -> [u8; N] {
    let mut bytes = [0; N];
    from.read(&mut bytes);
    bytes
}

/// As many bytes as the next one says.
fn draw_some(from: &mut impl XofReader) -> Vec<u8> {
    let [length] = draw(from);
    let mut bytes = vec![0; length.into()];
    from.read(&mut bytes);
    bytes
}
