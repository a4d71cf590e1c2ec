//! `kmsgate.v1.CryptoService`.

use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::algorithm::{EncryptionAlgorithm, MAX_PLAINTEXT};
use crate::domain::caller::Action;
use crate::domain::frame;
use crate::domain::request::Aad;
use crate::domain::secret::Plaintext;
use crate::error::{Error, Kind};
use crate::grpc::pb;
use crate::grpc::pb::crypto_service_server::CryptoService;
use crate::grpc::pb::encrypt_data_request::Plaintext as Given;
use crate::grpc::{Server, unknown};
use crate::service::{Context, Decrypt, Encrypt};

/// The shortest and the longest ciphertext that a request may carry, in bytes: what the documented
/// `^[0-9a-zA-Z+/=]{128,5648}$` leaves of its Base64 (contract, section 1.2).
const CIPHERTEXT: std::ops::RangeInclusive<usize> = 96..=*frame::LENGTHS.end();

#[tonic::async_trait]
impl CryptoService for Server {
    async fn encrypt_data(
        &self,
        request: Request<pb::EncryptDataRequest>,
    ) -> Result<Response<pb::EncryptDataResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let answer = self.encrypt(extensions.get(), message).await?;
        Ok(Response::new(answer))
    }

    async fn decrypt_data(
        &self,
        request: Request<pb::DecryptDataRequest>,
    ) -> Result<Response<pb::DecryptDataResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let answer = self.decrypt(extensions.get(), message).await?;
        Ok(Response::new(answer))
    }
}

impl Server {
    /// EncryptData, for a caller whom a layer has noted.
    pub(super) async fn encrypt(
        &self,
        context: Option<&Arc<Context>>,
        message: pb::EncryptDataRequest,
    ) -> Result<pb::EncryptDataResponse, Error> {
        let mut begun = self.kms.begin(context, Action::EncryptData)?;
        let call = &mut begun;
        let answer = async {
            let pb::EncryptDataRequest {
                project_id,
                key_id,
                encryption_algorithm,
                additional_authenticated_data,
                sequence,
                plaintext,
            } = message;
            let plaintext = plaintext.map(|given| match given {
                Given::PlainText(text) => Plaintext::new(text.into_bytes()),
                Given::PlainBytes(bytes) => Plaintext::new(bytes),
            });
            call.project(&project_id)?;
            call.sequence(&sequence)?;
            let key_id = call.key_id(&key_id)?;
            let plaintext = required_plaintext(plaintext)?;
            let algorithm = algorithm(encryption_algorithm)?;
            let aad = aad(additional_authenticated_data, algorithm)?;

            let encrypted = self
                .kms
                .encrypt(
                    call,
                    Encrypt {
                        key_id,
                        plaintext,
                        algorithm,
                        aad,
                    },
                )
                .await?;
            Ok(pb::EncryptDataResponse {
                key_id: encrypted.key_id.as_str().to_owned(),
                cipher_text: encrypted.ciphertext,
            })
        };
        let answer = answer.await;
        begun.end(answer)
    }

    /// DecryptData, for a caller whom a layer has noted.
    pub(super) async fn decrypt(
        &self,
        context: Option<&Arc<Context>>,
        message: pb::DecryptDataRequest,
    ) -> Result<pb::DecryptDataResponse, Error> {
        let mut begun = self.kms.begin(context, Action::DecryptData)?;
        let call = &mut begun;
        let answer = async {
            let pb::DecryptDataRequest {
                project_id,
                key_id,
                cipher_text,
                encryption_algorithm,
                additional_authenticated_data,
                sequence,
            } = message;
            call.project(&project_id)?;
            call.sequence(&sequence)?;
            let algorithm = algorithm(encryption_algorithm)?;
            let key_id = if key_id.is_empty() && algorithm.is_symmetric() {
                None
            } else {
                Some(call.key_id(&key_id)?)
            };
            let ciphertext = required_ciphertext(cipher_text)?;
            let aad = aad(additional_authenticated_data, algorithm)?;

            let decrypted = self
                .kms
                .decrypt(
                    call,
                    Decrypt {
                        key_id,
                        ciphertext,
                        algorithm,
                        aad,
                    },
                )
                .await?;
            // The contract leaves the text of other bytes open; it says that the Base64 form then
            // counts.
            let text = str::from_utf8(decrypted.plaintext.expose()).unwrap_or_default();
            Ok(pb::DecryptDataResponse {
                key_id: decrypted.key_id.as_str().to_owned(),
                plain_text: text.to_owned(),
                plain_bytes: decrypted.plaintext.into_exposed(),
            })
        };
        let answer = answer.await;
        begun.end(answer)
    }
}

fn required_plaintext(given: Option<Plaintext>) -> Result<Plaintext, Error> {
    let missing = Error::from(Kind::MissingParameter);
    let plaintext =
        given.ok_or_else(|| missing.detail("plain_text is required.").of("plain_text"))?;
    if !(1..=MAX_PLAINTEXT).contains(&plaintext.expose().len()) {
        return Err(Error::from(Kind::InvalidPlaintext)
            .detail("It must have 1 to 4096 bytes.")
            .of("plain_text"));
    }
    Ok(plaintext)
}

fn required_ciphertext(given: Vec<u8>) -> Result<Vec<u8>, Error> {
    if given.is_empty() {
        return Err(Error::from(Kind::MissingParameter)
            .detail("cipher_text is required.")
            .of("cipher_text"));
    }
    if !CIPHERTEXT.contains(&given.len()) {
        return Err(Error::from(Kind::InvalidCiphertext).of("cipher_text"));
    }
    Ok(given)
}

fn algorithm(number: i32) -> Result<EncryptionAlgorithm, Error> {
    match pb::EncryptionAlgorithm::try_from(number) {
        Ok(pb::EncryptionAlgorithm::Unspecified | pb::EncryptionAlgorithm::SymmetricDefault) => {
            Ok(EncryptionAlgorithm::SymmetricDefault)
        }
        Ok(pb::EncryptionAlgorithm::RsaesOaepSha256) => Ok(EncryptionAlgorithm::RsaesOaepSha256),
        Ok(pb::EncryptionAlgorithm::Sm2Encrypt) => Ok(EncryptionAlgorithm::Sm2Encrypt),
        Err(_) => Err(unknown("encryption_algorithm")),
    }
}

fn aad(text: String, algorithm: EncryptionAlgorithm) -> Result<Aad, Error> {
    let aad = Aad::try_from(text)?;
    if !aad.is_empty() && !algorithm.is_symmetric() {
        return Err(Error::from(Kind::InvalidParameter)
            .detail("additional_authenticated_data needs a symmetric algorithm.")
            .of("additional_authenticated_data"));
    }
    Ok(aad)
}

/// Gives messages that carry secrets a `Debug` that tells none of them.
macro_rules! unprintable {
    ($($message:path),+) => { $(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($message), " { .. }"))
            }
        }
    )+ };
}

unprintable! {
    pb::EncryptDataRequest,
    pb::encrypt_data_request::Plaintext,
    pb::DecryptDataRequest,
    pb::DecryptDataResponse
}
