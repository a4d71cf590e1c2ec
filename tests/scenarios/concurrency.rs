//! Many callers at once: writers that race, keys that stop under load, and calls that are
//! abandoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kmsgate::error::Kind;
use tokio::task::JoinSet;

use crate::decrypting::under;
use crate::face::{Answer, Face, bytes};
use crate::lifecycle::ids;
use crate::schema::Call;
use crate::seeds::RSA_4096;
use crate::world::World;
use crate::{aes_key, create, decrypt, encrypt, on, sealed};

const RSA: &str = "RSAES_OAEP_SHA_256";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_move_a_state_at_once_one_does() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let key = aes_key(&face).await;
        for (operation, refusal) in [
            ("disable-key", Kind::KeyNotEnabled),
            ("enable-key", Kind::KeyNotDisabled),
            ("disable-key", Kind::KeyNotEnabled),
        ] {
            let answers = at_once(&face, &vec![on(operation, &key); 8]).await;
            let done = answers.iter().filter(|answer| answer.outcome.is_ok());
            assert_eq!(done.count(), 1, "{operation}");
            for answer in answers.iter().filter(|answer| answer.outcome.is_err()) {
                answer.is(refusal, operation);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_take_an_alias_at_once_one_does() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let answers = at_once(&face, &vec![create("wanted"); 8]).await;
        let done = answers.iter().filter(|answer| answer.outcome.is_ok());
        assert_eq!(done.count(), 1);
        for answer in answers.iter().filter(|answer| answer.outcome.is_err()) {
            answer.is(Kind::DuplicateAlias, "create-key");
        }
        let (one, other) = (aes_key(&face).await, aes_key(&face).await);
        let rename = |key: &str| on("update-key-alias", key).with("key_alias", "also-wanted");
        let answers = at_once(&face, &[rename(&one), rename(&other)]).await;
        let done = answers.iter().filter(|answer| answer.outcome.is_ok());
        assert_eq!(done.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_at_once_each_make_a_version() {
    const WRITERS: usize = 6;
    let world = World::start().await;
    let grpc = world.grpc();
    let key = aes_key(&grpc).await;
    let answers = at_once(&grpc, &vec![on("rotate-on-demand", &key); WRITERS]).await;
    let version = |answer: &Answer| {
        let answer = answer.outcome.as_ref().unwrap();
        answer["key_version"].as_str().unwrap().parse().unwrap()
    };
    let mut versions: Vec<usize> = answers.iter().map(version).collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..=1 + WRITERS).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_rotated_and_disabled_at_once_is_disabled_and_whole() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        for _ in 0..10 {
            let key = aes_key(&face).await;
            let first = sealed(&face, &key, "x").await;
            let calls = [on("rotate-on-demand", &key), on("disable-key", &key)];
            let answers = at_once(&face, &calls).await;
            assert!(answers[1].outcome.is_ok(), "{:?}", answers[1]);
            let rotated = match &answers[0].outcome {
                Ok(_) => true,
                Err(refusal) => {
                    assert_eq!(refusal.kind, Kind::KeyDisabled);
                    false
                }
            };
            face.refused(Kind::KeyDisabled, &decrypt(&first)).await;
            face.done(&on("enable-key", &key)).await;
            face.done(&decrypt(&first)).await;
            let version = sealed(&face, &key, "x").await[7];
            assert_eq!(version, if rotated { 2 } else { 1 });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_that_begins_after_a_change_was_acknowledged_misses_it() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let key = aes_key(&face).await;
        let frame = sealed(&face, &key, "x").await;
        // Odd between the acknowledgement of a disable and the next enable.
        let phase = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(AtomicBool::new(false));
        let (worked, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut hammers = JoinSet::new();
        for number in 0..6 {
            let (face, phase, over) = (face.clone(), Arc::clone(&phase), Arc::clone(&over));
            let (worked, refused) = (Arc::clone(&worked), Arc::clone(&refused));
            let call = if number % 2 == 0 {
                encrypt(&key, "x")
            } else {
                decrypt(&frame)
            };
            hammers.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let began = phase.load(Ordering::SeqCst);
                    let outcome = face.call(&call).await.outcome;
                    let within = began == phase.load(Ordering::SeqCst);
                    match outcome {
                        Ok(_) => {
                            assert!(!within || began % 2 == 0, "a disabled key worked");
                            worked.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(refusal) => {
                            assert_eq!(refusal.kind, Kind::KeyDisabled);
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
        let reached = async |count: &AtomicUsize, number: usize| {
            let goal = count.load(Ordering::SeqCst) + number;
            while count.load(Ordering::SeqCst) < goal && !hammers.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        for _ in 0..4 {
            reached(&worked, 20).await;
            face.done(&on("disable-key", &key)).await;
            phase.fetch_add(1, Ordering::SeqCst);
            reached(&refused, 20).await;
            phase.fetch_add(1, Ordering::SeqCst);
            face.done(&on("enable-key", &key)).await;
            face.done(&encrypt(&key, "x")).await;
        }
        over.store(true, Ordering::SeqCst);
        while let Some(ended) = hammers.join_next().await {
            ended.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_that_begins_after_a_rotation_encrypts_under_the_version_before() {
    let world = World::start().await;
    let grpc = world.grpc();
    let key = aes_key(&grpc).await;
    let newest = Arc::new(AtomicUsize::new(1));
    let over = Arc::new(AtomicBool::new(false));
    let mut hammers = JoinSet::new();
    for _ in 0..4 {
        let (grpc, key) = (grpc.clone(), key.clone());
        let (newest, over) = (Arc::clone(&newest), Arc::clone(&over));
        hammers.spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let at_least = newest.load(Ordering::SeqCst);
                let frame = sealed(&grpc, &key, "x").await;
                assert!(usize::from(frame[7]) >= at_least);
                grpc.done(&decrypt(&frame)).await;
            }
        });
    }
    for version in 2..=12 {
        grpc.done(&on("rotate-on-demand", &key)).await;
        newest.store(version, Ordering::SeqCst);
    }
    over.store(true, Ordering::SeqCst);
    while let Some(ended) = hammers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_symmetric_call_does_not_wait_behind_private_rsa_operations() {
    const BUSY: usize = 200;
    let world = World::with("limits = { cpu_threads = 1 }\n").await;
    let (rest, grpc) = (world.rest(), world.grpc());
    for face in [&rest, &grpc] {
        let key = aes_key(face).await;
        let frame = sealed(face, &key, "x").await;
        let unused = aes_key(face).await;
        let slow = slow_call(face).await;
        face.done(&slow).await;
        let ended = Arc::new(AtomicUsize::new(0));
        let mut busy = JoinSet::new();
        for _ in 0..BUSY {
            let (face, slow, ended) = (face.clone(), slow.clone(), Arc::clone(&ended));
            busy.spawn(async move {
                face.done(&slow).await;
                ended.fetch_add(1, Ordering::SeqCst);
            });
        }
        // The first that ends says that the others are queued.
        busy.join_next().await.unwrap().unwrap();
        for _ in 0..5 {
            face.done(&encrypt(&key, "x")).await;
            face.done(&decrypt(&frame)).await;
        }
        // Also when a key is made, used for the first time, or changed.
        face.done(&encrypt(&unused, "x")).await;
        let new = aes_key(face).await;
        face.done(&encrypt(&new, "x")).await;
        face.done(&on("rotate-on-demand", &key)).await;
        face.done(&decrypt(&frame)).await;
        assert!(ended.load(Ordering::SeqCst) < BUSY, "the pool was idle");
        // What is abandoned is not begun.
        busy.shutdown().await;
    }
}

#[tokio::test]
async fn a_pool_that_is_full_refuses_at_once_and_recovers() {
    let world = World::with("limits = { cpu_threads = 1, cpu_queue = 1 }\n").await;
    for face in [world.rest(), world.grpc()] {
        let slow = slow_call(&face).await;
        face.done(&slow).await;
        let answers = at_once(&face, &vec![slow.clone(); 32]).await;
        let refusals = answers.iter().filter(|answer| answer.outcome.is_err());
        let mut refused = 0;
        for answer in refusals {
            answer.is(Kind::Unavailable, "a full pool");
            refused += 1;
        }
        assert!((1..32).contains(&refused), "{refused} of 32");
        face.done(&slow).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_made_at_once_are_all_listed() {
    let world = World::start().await;
    for face in [world.rest(), world.grpc()] {
        let new: Vec<Call> = (0..20).map(|_| create(&crate::fresh_alias())).collect();
        let answers = at_once(&face, &new).await;
        let made = answers.iter().map(|answer| {
            let answer = answer.outcome.as_ref().unwrap();
            answer["key_info"]["key_id"].as_str().unwrap().to_owned()
        });
        let listed = ids(&face.done(&Call::new("list-keys")).await);
        for key in made {
            assert!(listed.contains(&key));
        }
    }
}

/// A call that keeps a thread of the pool busy for a while.
pub(crate) async fn slow_call(face: &Face) -> Call {
    let call = encrypt(RSA_4096, "x").with("encryption_algorithm", RSA);
    let sealed = bytes(&face.done(&call).await["cipher_text"]);
    under(RSA_4096, RSA, &sealed)
}

/// The answers to calls that are sent at the same time, in the order of the calls.
async fn at_once(face: &Face, calls: &[Call]) -> Vec<Answer> {
    let tasks: Vec<_> = calls
        .iter()
        .map(|call| {
            let (face, call) = (face.clone(), call.clone());
            tokio::spawn(async move { face.call(&call).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}
