//! What the server has acknowledged survives `kill -9`, whenever it comes.
//!
//! Clients make keys, rotate them and encrypt, and note each answer. The server is killed at a
//! random moment and started again on the same directory. Then every key is there, at the version
//! that was acknowledged or a later one, and every ciphertext decrypts.

mod program;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::Status;

use kmsgate::grpc::pb;
use kmsgate::grpc::pb::encrypt_data_request::Plaintext;

use crate::program::{Addresses, Grpc, Site, TOKEN};

const KILLS: u64 = 25;
const CLIENTS: u64 = 4;

/// The longest that a server works before it is killed, in milliseconds.
const LONGEST: u64 = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill() {
    let site = Site::new("");
    let acknowledged = Acknowledged::default();
    for round in 0..KILLS {
        let (server, at) = site.serve();
        acknowledged.check(at).await;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| tokio::spawn(work(at, acknowledged.clone(), round * CLIENTS + client)))
            .collect();
        let random: [u8; 8] = kmsgate::server::random().unwrap();
        let delay = u64::from_le_bytes(random) % (LONGEST + 1);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        server.kill();
        for client in clients {
            // It ends because the server is gone, and for no other reason.
            let status = client.await.unwrap();
            let lost = matches!(
                status.code(),
                tonic::Code::Unavailable | tonic::Code::Unknown
            );
            assert!(lost, "{status:?}");
        }
    }
    let (server, at) = site.serve();
    acknowledged.check(at).await;
    server.stop();
    let keys = acknowledged.0.lock().unwrap();
    let rotated = keys.values().filter(|key| key.version > 1).count();
    // The clients were in the middle of work.
    assert!(
        keys.len() > 25 && rotated > 10,
        "{} keys, {rotated} rotated",
        keys.len()
    );
}

/// Makes a key, encrypts and rotates it, and begins again, until a call fails.
async fn work(at: Addresses, acknowledged: Acknowledged, client: u64) -> Status {
    let Some(mut grpc) = Grpc::try_connect(at.grpc, TOKEN).await else {
        return Status::unavailable("killed before a client was there");
    };
    for number in 0.. {
        let request = grpc.ask(pb::CreateKeyRequest {
            key_alias: format!("k-{client}-{number}"),
            ..pb::CreateKeyRequest::default()
        });
        let made = match grpc.keys.create_key(request).await {
            Ok(made) => made.into_inner().key_info.unwrap().key_id,
            Err(status) => return status,
        };
        acknowledged.note(&made, 1);
        for _ in 0..3 {
            let request = grpc.ask(pb::EncryptDataRequest {
                key_id: made.clone(),
                plaintext: Some(Plaintext::PlainText(made.clone())),
                ..pb::EncryptDataRequest::default()
            });
            match grpc.crypto.encrypt_data(request).await {
                Ok(sealed) => acknowledged.keep(&made, sealed.into_inner().cipher_text),
                Err(status) => return status,
            }
            let request = grpc.ask(pb::RotateOnDemandRequest {
                key_id: made.clone(),
                ..pb::RotateOnDemandRequest::default()
            });
            match grpc.keys.rotate_on_demand(request).await {
                Ok(rotated) => acknowledged.note(&made, rotated.into_inner().key_version),
                Err(status) => return status,
            }
        }
    }
    unreachable!("the numbers do not end")
}

/// What the clients were told.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<BTreeMap<String, Key>>>);

#[derive(Clone, Default)]
struct Key {
    version: u32,
    ciphertexts: Vec<Vec<u8>>,
}

impl Acknowledged {
    fn note(&self, key: &str, version: u32) {
        let mut keys = self.0.lock().unwrap();
        let key = keys.entry(key.to_owned()).or_default();
        assert!(version > key.version);
        key.version = version;
    }

    fn keep(&self, key: &str, ciphertext: Vec<u8>) {
        let mut keys = self.0.lock().unwrap();
        keys.get_mut(key).unwrap().ciphertexts.push(ciphertext);
    }

    /// Asks a server for all of it.
    async fn check(&self, at: Addresses) {
        let mut grpc = Grpc::try_connect(at.grpc, TOKEN).await.unwrap();
        let keys = self.0.lock().unwrap().clone();
        for (id, key) in keys {
            let request = grpc.ask(pb::DescribeKeyRequest {
                key_id: id.clone(),
                ..pb::DescribeKeyRequest::default()
            });
            let described = grpc.keys.describe_key(request).await.unwrap().into_inner();
            let version = described.key_info.unwrap().key_version;
            assert!(version >= key.version, "{id}: {version} < {}", key.version);
            for cipher_text in key.ciphertexts {
                let request = grpc.ask(pb::DecryptDataRequest {
                    cipher_text,
                    ..pb::DecryptDataRequest::default()
                });
                let opened = grpc.crypto.decrypt_data(request).await.unwrap();
                assert_eq!(opened.into_inner().plain_text, id);
            }
        }
    }
}
