//! AK/SK signatures as clients make them (contract, sections 6.3 and 6.4), written from there and
//! not from the service.

use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::face::Face;
use crate::world::ACCESS_KEY;

/// The two layouts of the `Authorization` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `Access=`: all current SDKs.
    A,
    /// `Credential=`: golangsdk, go-kms-wrapping, Terraform.
    B,
}

/// The face with the headers that sign a POST of `body` to `path` with this secret key.
pub(crate) fn signed(
    face: &Face,
    layout: Layout,
    secret_key: &str,
    path: &str,
    body: &[u8],
) -> Face {
    let now = SystemTime::now();
    signed_at(face, layout, secret_key, ("POST", path), body, now)
}

/// The same for another method, or another time.
pub(crate) fn signed_at(
    face: &Face,
    layout: Layout,
    secret_key: &str,
    (method, path): (&str, &str),
    body: &[u8],
    time: SystemTime,
) -> Face {
    let (access_key, _) = ACCESS_KEY;
    let date = date(time);
    let canonical = format!(
        "{method}\n{path}/\n\ncontent-type:application/json\nhost:{}\nx-sdk-date:{date}\n\n{HEADERS}\n{}",
        face.address,
        hex(&Sha256::digest(body)),
    );
    let canonical = hex(&Sha256::digest(canonical));
    let (who, signature) = match layout {
        Layout::A => {
            let text = format!("SDK-HMAC-SHA256\n{date}\n{canonical}");
            (
                format!("Access={access_key}"),
                hmac(secret_key.as_bytes(), &text),
            )
        }
        Layout::B => {
            let scope = format!("{}///sdk_request", &date[..8]);
            let key = hmac(format!("SDK{secret_key}").as_bytes(), &date[..8]);
            let key = hmac(&hmac(&hmac(&key, ""), ""), "sdk_request");
            let text = format!("SDK-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
            (
                format!("Credential={access_key}/{scope}"),
                hmac(&key, &text),
            )
        }
    };
    let authorization = format!(
        "SDK-HMAC-SHA256 {who}, SignedHeaders={HEADERS}, Signature={}",
        hex(&signature)
    );
    face.with_nothing()
        .with_header("x-sdk-date", &date)
        .with_header("authorization", &authorization)
}

const HEADERS: &str = "content-type;host;x-sdk-date";

/// A time as `20191115T033655Z`.
fn date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year:04}{month:02}{:02}T{:02}{:02}{:02}Z",
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
