//! `kmsgate encrypt` and `kmsgate decrypt`.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use zeroize::Zeroizing;

use crate::cli::client::{Connection, told};
use crate::cli::{Failure, say};
use crate::grpc::pb;
use crate::grpc::pb::encrypt_data_request::Plaintext;

/// What to encrypt, and how.
#[derive(Debug, Args)]
pub(super) struct Encrypt {
    #[command(flatten)]
    connection: Connection,
    /// The key to encrypt under
    key_id: String,
    #[command(flatten)]
    how: How,
}

/// What to decrypt, and how.
#[derive(Debug, Args)]
pub(super) struct Decrypt {
    #[command(flatten)]
    connection: Connection,
    /// The key that encrypted; a symmetric ciphertext names its own
    key_id: Option<String>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_256 or SM2_ENCRYPT
    #[arg(long, default_value = "SYMMETRIC_DEFAULT")]
    algorithm: String,
    /// Additional authenticated data, the same in both directions; at most 128 bytes, not secret
    #[arg(long, value_name = "TEXT", default_value = "")]
    aad: String,
}

/// More than any message may have: the server says so, with its own sentence.
const MOST: u64 = 32 * 1024;

impl Encrypt {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let algorithm = self.how.algorithm()?;
        let mut plaintext = Zeroizing::new(Vec::new());
        std::io::stdin()
            .lock()
            .take(MOST)
            .read_to_end(&mut plaintext)?;
        let mut client = self.connection.open().await?;
        let request = client.ask(pb::EncryptDataRequest {
            key_id: self.key_id,
            plaintext: Some(Plaintext::PlainBytes(std::mem::take(&mut plaintext))),
            encryption_algorithm: algorithm.into(),
            additional_authenticated_data: self.how.aad,
            ..pb::EncryptDataRequest::default()
        });
        let answer = client.crypto.encrypt_data(request).await.map_err(told)?;
        say(STANDARD.encode(answer.into_inner().cipher_text))
    }
}

impl Decrypt {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let algorithm = self.how.algorithm()?;
        let mut text = String::new();
        std::io::stdin()
            .lock()
            .take(MOST)
            .read_to_string(&mut text)?;
        let cipher_text = STANDARD
            .decode(text.trim())
            .map_err(|_| "expected Base64 on standard input")?;
        let mut client = self.connection.open().await?;
        let request = client.ask(pb::DecryptDataRequest {
            key_id: self.key_id.unwrap_or_default(),
            cipher_text,
            encryption_algorithm: algorithm.into(),
            additional_authenticated_data: self.how.aad,
            ..pb::DecryptDataRequest::default()
        });
        let answer = client.crypto.decrypt_data(request).await.map_err(told)?;
        let plaintext = Zeroizing::new(answer.into_inner().plain_bytes);
        std::io::stdout().write_all(&plaintext)?;
        Ok(())
    }
}

impl How {
    fn algorithm(&self) -> Result<pb::EncryptionAlgorithm, Failure> {
        let named = pb::EncryptionAlgorithm::from_str_name(&self.algorithm);
        let named = named.filter(|named| *named != pb::EncryptionAlgorithm::Unspecified);
        named.ok_or_else(|| "--algorithm: no such algorithm".into())
    }
}
