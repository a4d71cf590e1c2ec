//! `kmsgate.v1.KeyService`.

use tonic::{Request, Response, Status};

use crate::domain::caller::Action;
use crate::domain::key::{KeyAlias, KeyDescription, KeySpec, KeyState, KeyUsage, PendingDays};
use crate::error::{Error, Kind};
use crate::grpc::pb;
use crate::grpc::pb::key_service_server::KeyService;
use crate::grpc::{Server, end, finished, required, unknown};
use crate::service::{ListKeys, NewKey};
use crate::store::KeyRecord;

#[tonic::async_trait]
impl KeyService for Server {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::CreateKey)?;
            let call = &mut begun;
            let answer = async {
                let pb::CreateKeyRequest {
                    project_id,
                    key_alias,
                    key_spec,
                    key_usage,
                    key_description,
                    sequence,
                    origin,
                    keystore_id,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let new = NewKey {
                    alias: alias(key_alias)?,
                    description: description(&key_description)?,
                    spec: spec(key_spec)?.unwrap_or(KeySpec::Aes256),
                    usage: usage(key_usage)?,
                    key_id: None,
                };
                if !["", "kms"].contains(&&*origin) {
                    return Err(unknown("origin"));
                }
                if !["", "0"].contains(&&*keystore_id) {
                    return Err(unknown("keystore_id"));
                }

                let key = server.kms.create(call, new).await?;
                Ok(pb::CreateKeyResponse {
                    key_info: Some(pb::CreatedKey {
                        key_id: key.key_id.to_string(),
                        domain_id: server.domain_id(&key),
                    }),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn describe_key(
        &self,
        request: Request<pb::DescribeKeyRequest>,
    ) -> Result<Response<pb::DescribeKeyResponse>, Status> {
        let (mut begun, message) = self.begin(request, Action::DescribeKey)?;
        let call = &mut begun;
        let answer = async {
            let pb::DescribeKeyRequest {
                project_id,
                key_id,
                sequence,
            } = message;
            call.project(&project_id)?;
            call.sequence(&sequence)?;
            let key_id = call.key_id(&key_id)?;

            let key = self.kms.describe(call, key_id).await?;
            Ok(pb::DescribeKeyResponse {
                key_info: Some(self.details(&key)),
            })
        };
        let answer = answer.await;
        end(begun, answer)
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let (mut begun, message) = self.begin(request, Action::ListKeys)?;
        let call = &mut begun;
        let answer = async {
            let pb::ListKeysRequest {
                project_id,
                limit,
                marker,
                key_state,
                key_spec,
                sequence,
            } = message;
            call.project(&project_id)?;
            call.sequence(&sequence)?;
            let ask = ListKeys {
                limit: page_size(limit)?,
                marker: usize::try_from(marker).map_err(|_| Kind::InvalidMarker)?,
                state: state(key_state)?,
                spec: spec(key_spec)?,
            };

            let page = self.kms.list(call, ask).await?;
            Ok(pb::ListKeysResponse {
                keys: page.keys.iter().map(|key| key.key_id.to_string()).collect(),
                key_details: page.keys.iter().map(|key| self.details(key)).collect(),
                next_marker: page.next.map(count),
                truncated: page.next.is_some(),
                total: count(page.total),
            })
        };
        let answer = answer.await;
        end(begun, answer)
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::EnableKeyResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::EnableKey)?;
            let call = &mut begun;
            let answer = async {
                let pb::EnableKeyRequest {
                    project_id,
                    key_id,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;

                let state = server.kms.enable(call, key_id).await?;
                Ok(pb::EnableKeyResponse {
                    key_info: Some(pb::KeyStateInfo {
                        key_id: key_id.to_string(),
                        key_state: state.code().into(),
                    }),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::DisableKeyResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::DisableKey)?;
            let call = &mut begun;
            let answer = async {
                let pb::DisableKeyRequest {
                    project_id,
                    key_id,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;

                let state = server.kms.disable(call, key_id).await?;
                Ok(pb::DisableKeyResponse {
                    key_info: Some(pb::KeyStateInfo {
                        key_id: key_id.to_string(),
                        key_state: state.code().into(),
                    }),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn schedule_key_deletion(
        &self,
        request: Request<pb::ScheduleKeyDeletionRequest>,
    ) -> Result<Response<pb::ScheduleKeyDeletionResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::ScheduleKeyDeletion)?;
            let call = &mut begun;
            let answer = async {
                let pb::ScheduleKeyDeletionRequest {
                    project_id,
                    key_id,
                    pending_days,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;
                let wait = pending(pending_days)?;

                let state = server.kms.schedule_deletion(call, key_id, wait).await?;
                Ok(pb::ScheduleKeyDeletionResponse {
                    key_id: key_id.to_string(),
                    key_state: state.code().into(),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn cancel_key_deletion(
        &self,
        request: Request<pb::CancelKeyDeletionRequest>,
    ) -> Result<Response<pb::CancelKeyDeletionResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::CancelKeyDeletion)?;
            let call = &mut begun;
            let answer = async {
                let pb::CancelKeyDeletionRequest {
                    project_id,
                    key_id,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;

                let state = server.kms.cancel_deletion(call, key_id).await?;
                Ok(pb::CancelKeyDeletionResponse {
                    key_id: key_id.to_string(),
                    key_state: state.code().into(),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn get_public_key(
        &self,
        request: Request<pb::GetPublicKeyRequest>,
    ) -> Result<Response<pb::GetPublicKeyResponse>, Status> {
        let (mut begun, message) = self.begin(request, Action::GetPublicKey)?;
        let call = &mut begun;
        let answer = async {
            let pb::GetPublicKeyRequest {
                project_id,
                key_id,
                sequence,
            } = message;
            call.project(&project_id)?;
            call.sequence(&sequence)?;
            let key_id = call.key_id(&key_id)?;

            let spki = self.kms.public_key(call, key_id).await?;
            Ok(pb::GetPublicKeyResponse {
                key_id: key_id.to_string(),
                public_key: pem(&spki),
            })
        };
        let answer = answer.await;
        end(begun, answer)
    }

    async fn update_key_alias(
        &self,
        request: Request<pb::UpdateKeyAliasRequest>,
    ) -> Result<Response<pb::UpdateKeyAliasResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::UpdateKeyAlias)?;
            let call = &mut begun;
            let answer = async {
                let pb::UpdateKeyAliasRequest {
                    project_id,
                    key_id,
                    key_alias,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;
                let alias = alias(key_alias)?;

                server.kms.update_alias(call, key_id, &alias).await?;
                Ok(pb::UpdateKeyAliasResponse {
                    key_info: Some(pb::KeyAliasInfo {
                        key_id: key_id.to_string(),
                        key_alias: alias.as_str().to_owned(),
                    }),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn update_key_description(
        &self,
        request: Request<pb::UpdateKeyDescriptionRequest>,
    ) -> Result<Response<pb::UpdateKeyDescriptionResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::UpdateKeyDescription)?;
            let call = &mut begun;
            let answer = async {
                let pb::UpdateKeyDescriptionRequest {
                    project_id,
                    key_id,
                    key_description,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;
                let description = description(&required(key_description, "key_description")?)?;

                server
                    .kms
                    .update_description(call, key_id, &description)
                    .await?;
                Ok(pb::UpdateKeyDescriptionResponse {
                    key_info: Some(pb::KeyDescriptionInfo {
                        key_id: key_id.to_string(),
                        key_description: description.as_str().to_owned(),
                    }),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn rotate_on_demand(
        &self,
        request: Request<pb::RotateOnDemandRequest>,
    ) -> Result<Response<pb::RotateOnDemandResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::RotateOnDemand)?;
            let call = &mut begun;
            let answer = async {
                let pb::RotateOnDemandRequest {
                    project_id,
                    key_id,
                    sequence,
                } = message;
                call.project(&project_id)?;
                call.sequence(&sequence)?;
                let key_id = call.key_id(&key_id)?;

                let version = server.kms.rotate(call, key_id).await?;
                Ok(pb::RotateOnDemandResponse {
                    key_id: key_id.to_string(),
                    key_version: version.get(),
                })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }

    async fn confirm_clock(
        &self,
        request: Request<pb::ConfirmClockRequest>,
    ) -> Result<Response<pb::ConfirmClockResponse>, Status> {
        let server = self.clone();
        finished(async move {
            let (mut begun, message) = server.begin(request, Action::ConfirmClock)?;
            let call = &mut begun;
            let answer = async {
                let pb::ConfirmClockRequest {} = message;
                let now = server.kms.confirm_clock(call).await?;
                Ok(pb::ConfirmClockResponse { now: now.0 })
            };
            let answer = answer.await;
            end(begun, answer)
        })
        .await
    }
}

impl Server {
    fn details(&self, key: &KeyRecord) -> pb::KeyDetails {
        let newest = key.versions.last().map(|newest| newest.version.get());
        pb::KeyDetails {
            key_id: key.key_id.to_string(),
            domain_id: self.domain_id(key),
            key_alias: key.alias.as_str().to_owned(),
            realm: self.place.realm.clone(),
            key_spec: match key.spec {
                KeySpec::Aes256 => pb::KeySpec::Aes256,
                KeySpec::Rsa2048 => pb::KeySpec::Rsa2048,
                KeySpec::Rsa3072 => pb::KeySpec::Rsa3072,
                KeySpec::Rsa4096 => pb::KeySpec::Rsa4096,
                KeySpec::Sm2 => pb::KeySpec::Sm2,
            }
            .into(),
            key_usage: match key.usage {
                KeyUsage::EncryptDecrypt => pb::KeyUsage::EncryptDecrypt,
                KeyUsage::SignVerify => pb::KeyUsage::SignVerify,
            }
            .into(),
            key_description: key.description.as_str().to_owned(),
            creation_date: key.created.0,
            scheduled_deletion_date: key.deletion.map(|due| due.0),
            key_state: key.state.code().into(),
            key_version: newest.unwrap_or_default(),
        }
    }

    fn domain_id(&self, key: &KeyRecord) -> String {
        let project = || key.project.as_str().to_owned();
        self.place.domain_id.clone().unwrap_or_else(project)
    }
}

fn alias(text: String) -> Result<KeyAlias, Error> {
    let alias = required(text, "key_alias")?.parse();
    alias.map_err(|error| Error::from(error).of("key_alias"))
}

fn description(text: &str) -> Result<KeyDescription, Error> {
    let description = text.parse();
    description.map_err(|error| Error::from(error).of("key_description"))
}

fn spec(number: i32) -> Result<Option<KeySpec>, Error> {
    match pb::KeySpec::try_from(number) {
        Ok(pb::KeySpec::Unspecified) => Ok(None),
        Ok(pb::KeySpec::Aes256) => Ok(Some(KeySpec::Aes256)),
        Ok(pb::KeySpec::Rsa2048) => Ok(Some(KeySpec::Rsa2048)),
        Ok(pb::KeySpec::Rsa3072) => Ok(Some(KeySpec::Rsa3072)),
        Ok(pb::KeySpec::Rsa4096) => Ok(Some(KeySpec::Rsa4096)),
        Ok(pb::KeySpec::Sm2) => Ok(Some(KeySpec::Sm2)),
        Err(_) => Err(unknown("key_spec")),
    }
}

fn usage(number: i32) -> Result<Option<KeyUsage>, Error> {
    match pb::KeyUsage::try_from(number) {
        Ok(pb::KeyUsage::Unspecified) => Ok(None),
        Ok(pb::KeyUsage::EncryptDecrypt) => Ok(Some(KeyUsage::EncryptDecrypt)),
        Ok(pb::KeyUsage::SignVerify) => Ok(Some(KeyUsage::SignVerify)),
        Err(_) => Err(unknown("key_usage")),
    }
}

fn state(number: i32) -> Result<Option<KeyState>, Error> {
    if number == 0 {
        return Ok(None);
    }
    let state = u8::try_from(number).ok().and_then(KeyState::from_code);
    Ok(Some(state.ok_or_else(|| unknown("key_state"))?))
}

fn page_size(limit: Option<i32>) -> Result<usize, Error> {
    match limit.map(usize::try_from) {
        None => Ok(100),
        Some(Ok(limit @ 1..=1000)) => Ok(limit),
        Some(_) => Err(Error::from(Kind::InvalidLimit).of("limit")),
    }
}

fn pending(days: Option<i32>) -> Result<PendingDays, Error> {
    let missing = || {
        Error::from(Kind::MissingParameter)
            .detail("pending_days is required.")
            .of("pending_days")
    };
    let out_of_range = || Error::from(Kind::InvalidPendingDays).of("pending_days");
    PendingDays::new(days.ok_or_else(missing)?).ok_or_else(out_of_range)
}

/// A count as the schema has it. No store holds 2^31 keys of one project in memory's reach.
fn count(number: usize) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

/// DER as PEM with the label `PUBLIC KEY` (RFC 7468, section 13).
fn pem(spki: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(spki);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in lines {
        pem.push_str(&line);
        pem.push('\n');
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}
