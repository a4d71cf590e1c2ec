//! `kmsgate key`: lifecycle operations on a running server.

use clap::Subcommand;

use crate::cli::client::{Client, Connection, told};
use crate::cli::{Failure, say};
use crate::grpc::pb;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Makes a key and prints its id
    Create {
        /// The key's name, unique in the project
        alias: String,
        /// AES_256, RSA_2048, RSA_3072, RSA_4096 or SM2
        #[arg(long, default_value = "AES_256")]
        spec: String,
        /// ENCRYPT_DECRYPT or SIGN_VERIFY
        #[arg(long, default_value = "ENCRYPT_DECRYPT")]
        usage: String,
        /// Free text
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Lists the project's keys, oldest first
    List,
    /// Shows a key
    Describe {
        /// The key
        key_id: String,
    },
    /// Lets a disabled key work again
    Enable {
        /// The key
        key_id: String,
    },
    /// Stops a key until it is enabled again
    Disable {
        /// The key
        key_id: String,
    },
    /// Gives a symmetric key a new version; old ciphertexts still decrypt
    Rotate {
        /// The key
        key_id: String,
    },
    /// Stops a key and destroys it later
    Delete {
        /// The key
        key_id: String,
        /// In how many days, 7 to 1096
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        pending_days: i32,
    },
    /// Takes a deletion back; the key is then disabled
    CancelDeletion {
        /// The key
        key_id: String,
    },
    /// Prints the public half of an RSA or SM2 key in PEM
    PublicKey {
        /// The key
        key_id: String,
    },
    /// Confirms that the server's clock is right after it jumped forward, so that keys that are due
    /// are destroyed
    ConfirmClock,
}

impl KeyCommand {
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let client = connection.open().await?;
        match self {
            Self::Create {
                alias,
                spec,
                usage,
                description,
            } => create(client, alias, &spec, &usage, description).await,
            Self::List => list(client).await,
            Self::Describe { key_id } => describe(client, key_id).await,
            Self::Enable { key_id } => {
                let request = client.ask(pb::EnableKeyRequest {
                    key_id,
                    ..pb::EnableKeyRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.enable_key(request).await.map_err(told)?;
                say_state(answer.into_inner().key_info.unwrap_or_default().key_state())
            }
            Self::Disable { key_id } => {
                let request = client.ask(pb::DisableKeyRequest {
                    key_id,
                    ..pb::DisableKeyRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.disable_key(request).await.map_err(told)?;
                say_state(answer.into_inner().key_info.unwrap_or_default().key_state())
            }
            Self::Rotate { key_id } => {
                let request = client.ask(pb::RotateOnDemandRequest {
                    key_id,
                    ..pb::RotateOnDemandRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.rotate_on_demand(request).await.map_err(told)?;
                say(format!("version {}", answer.into_inner().key_version))
            }
            Self::Delete {
                key_id,
                pending_days,
            } => {
                let request = client.ask(pb::ScheduleKeyDeletionRequest {
                    key_id,
                    pending_days: Some(pending_days),
                    ..pb::ScheduleKeyDeletionRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.schedule_key_deletion(request).await.map_err(told)?;
                say_state(answer.into_inner().key_state())
            }
            Self::CancelDeletion { key_id } => {
                let request = client.ask(pb::CancelKeyDeletionRequest {
                    key_id,
                    ..pb::CancelKeyDeletionRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.cancel_key_deletion(request).await.map_err(told)?;
                say_state(answer.into_inner().key_state())
            }
            Self::PublicKey { key_id } => {
                let request = client.ask(pb::GetPublicKeyRequest {
                    key_id,
                    ..pb::GetPublicKeyRequest::default()
                });
                let mut keys = client.keys;
                let answer = keys.get_public_key(request).await.map_err(told)?;
                say(answer.into_inner().public_key.trim_end())
            }
            Self::ConfirmClock => {
                let request = client.ask(pb::ConfirmClockRequest {});
                let mut keys = client.keys;
                keys.confirm_clock(request).await.map_err(told)?;
                say("the clock is trusted")
            }
        }
    }
}

async fn create(
    client: Client,
    alias: String,
    spec: &str,
    usage: &str,
    description: String,
) -> Result<(), Failure> {
    // The first of each stands for none.
    let spec = pb::KeySpec::from_str_name(spec).filter(|spec| *spec != pb::KeySpec::Unspecified);
    let spec = spec.ok_or("--spec: no such key spec")?;
    let usage = pb::KeyUsage::from_str_name(usage);
    let usage = usage.filter(|usage| *usage != pb::KeyUsage::Unspecified);
    let usage = usage.ok_or("--usage: no such key usage")?;
    let request = client.ask(pb::CreateKeyRequest {
        key_alias: alias,
        key_spec: spec.into(),
        key_usage: usage.into(),
        key_description: description,
        ..pb::CreateKeyRequest::default()
    });
    let mut keys = client.keys;
    let answer = keys.create_key(request).await.map_err(told)?;
    say(answer.into_inner().key_info.unwrap_or_default().key_id)
}

async fn list(client: Client) -> Result<(), Failure> {
    let mut keys = client.keys.clone();
    let mut marker = 0;
    loop {
        let request = client.ask(pb::ListKeysRequest {
            marker,
            ..pb::ListKeysRequest::default()
        });
        let page = keys.list_keys(request).await.map_err(told)?.into_inner();
        // After the first answer: a refused command prints no table.
        if marker == 0 {
            say(format!(
                "{:36}  {:8}  {:15}  {:16}  ALIAS",
                "KEY ID", "SPEC", "USAGE", "STATE"
            ))?;
        }
        for key in page.key_details {
            say(format!(
                "{:36}  {:8}  {:15}  {:16}  {}",
                key.key_id,
                key.key_spec().as_str_name(),
                key.key_usage().as_str_name(),
                key.key_state().as_str_name(),
                key.key_alias
            ))?;
        }
        match page.next_marker {
            Some(next) => marker = next,
            None => return Ok(()),
        }
    }
}

async fn describe(client: Client, key_id: String) -> Result<(), Failure> {
    let request = client.ask(pb::DescribeKeyRequest {
        key_id,
        ..pb::DescribeKeyRequest::default()
    });
    let mut keys = client.keys;
    let answer = keys.describe_key(request).await.map_err(told)?;
    let key = answer.into_inner().key_info.unwrap_or_default();
    say(format!("key id       {}", key.key_id))?;
    say(format!("alias        {}", key.key_alias))?;
    say(format!("description  {}", key.key_description))?;
    say(format!("spec         {}", key.key_spec().as_str_name()))?;
    say(format!("usage        {}", key.key_usage().as_str_name()))?;
    say(format!("state        {}", key.key_state().as_str_name()))?;
    say(format!("version      {}", key.key_version))?;
    say(format!("made         {}", rfc_3339(key.creation_date)))?;
    if let Some(due) = key.scheduled_deletion_date {
        say(format!("destroyed    {}", rfc_3339(due)))?;
    }
    Ok(())
}

fn say_state(state: pb::KeyState) -> Result<(), Failure> {
    say(state.as_str_name())
}

/// Milliseconds since 1970 as a date and a time of day in UTC (RFC 3339), to the second.
fn rfc_3339(millis: i64) -> String {
    /// The Gregorian calendar repeats after so many days, which are 400 years.
    const CYCLE: i64 = 146_097;
    /// From 1 March of the year 0 to 1 January 1970.
    const BEFORE_1970: i64 = 719_468;

    let seconds = millis.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March have their leap day at the end, where it shifts no month.
    let days = days + BEFORE_1970;
    let (cycle, day) = (days.div_euclid(CYCLE), days.rem_euclid(CYCLE));
    let year = (day - day / 1460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, every five months have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = 400 * cycle + year + next;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_as_date_1_writes_it() {
        // `date -u -d @SECONDS +%FT%TZ`, GNU coreutils.
        for (millis, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (946_684_799_999, "1999-12-31T23:59:59Z"),
            (951_825_600_000, "2000-02-29T12:00:00Z"),
            (951_868_800_000, "2000-03-01T00:00:00Z"),
            (1_795_416_808_124, "2026-11-23T06:53:28Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc_3339(millis), date, "{millis}");
        }
    }
}
