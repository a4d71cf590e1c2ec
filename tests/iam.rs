//! IAM tokens, asked about at a server on loopback that speaks as much of Keystone v3 as they need,
//! and misbehaves when it is told to. The real Keystone is asked in `tests/interop/`.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderValue, Method, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use kmsgate::auth::file::Refresh;
use kmsgate::auth::https::Endpoint;
use kmsgate::auth::iam::{Iam, Keystone, Rule};
use kmsgate::auth::{AuthError, Authenticator, Evidence, Peer};
use kmsgate::domain::address::Origin;
use kmsgate::domain::caller::{Action, Actions, Caller};
use kmsgate::domain::time::{Clock, Timestamp};

const NOW: i64 = 1_795_000_000_000;
const MINUTE: i64 = 60_000;
const PROJECT: &str = "53d1aefc533f4ce9a59c26b01667cbcf";

#[tokio::test]
async fn a_token_is_its_user_for_its_project_with_what_its_roles_may() {
    let world = World::new().await;
    world.token("good", &subject(60, Some(PROJECT), &["reader", "auditor"]));
    let caller = world.ask("good").await.unwrap().unwrap();
    assert_eq!(&*caller.name, "iam:5f2b");
    assert_eq!(caller.project.as_str(), PROJECT);
    let allowed = [Action::DecryptData, Action::ListKeys, Action::DescribeKey];
    for &action in Action::ALL {
        let expected = allowed.contains(&action);
        assert_eq!(caller.actions.contains(action), expected, "{action:?}");
    }
    // A rule for another project gives nothing, and no rule gives nothing.
    world.token(
        "elsewhere",
        &subject(60, Some("elsewhere"), &["reader", "auditor"]),
    );
    let caller = world.ask("elsewhere").await.unwrap().unwrap();
    assert!(!caller.actions.contains(Action::DescribeKey));
    assert!(caller.actions.contains(Action::DecryptData));
    world.token("nobody", &subject(60, Some(PROJECT), &["member"]));
    let caller = world.ask("nobody").await.unwrap().unwrap();
    assert_eq!(caller.actions, Actions::default());
}

#[tokio::test]
async fn a_token_has_as_many_roles_as_are_told_and_no_more() {
    let world = World::new().await;
    let member = ["member"; 63];
    world.token(
        "most",
        &subject(60, Some(PROJECT), &[&member[..], &["reader"]].concat()),
    );
    let caller = world.ask("most").await.unwrap().unwrap();
    assert_eq!(caller.roles.len(), 64);
    assert!(caller.actions.contains(Action::DecryptData));
    world.token(
        "more",
        &subject(
            60,
            Some(PROJECT),
            &[&member[..], &["reader", "reader"]].concat(),
        ),
    );
    let told = world.ask("more").await;
    assert!(matches!(told, Err(AuthError::InvalidToken)), "{told:?}");
}

#[tokio::test]
async fn a_token_that_ends_now_has_ended() {
    let world = World::new().await;
    world.token("ends", &subject(0, Some(PROJECT), &["reader"]));
    let told = world.ask("ends").await;
    assert!(matches!(told, Err(AuthError::ExpiredToken)), "{told:?}");
}

#[tokio::test]
async fn what_is_no_good_token_lets_nobody_in() {
    let world = World::new().await;
    let mut odd = subject(60, Some(PROJECT), &["reader"]);
    odd["user"]["id"] = json!("a b");
    let mut endless = subject(60, Some(PROJECT), &["reader"]);
    endless["expires_at"] = json!("never");
    for (token, subject) in [
        ("unscoped", subject(60, None, &["reader"])),
        ("odd-project", subject(60, Some("a/b"), &["reader"])),
        ("odd-user", odd),
        ("endless", endless),
    ] {
        world.token(token, &subject);
        let told = world.ask(token).await;
        assert!(
            matches!(told, Err(AuthError::InvalidToken)),
            "{token}: {told:?}"
        );
    }
    let told = world.ask("garbage").await;
    assert!(matches!(told, Err(AuthError::InvalidToken)), "{told:?}");
    world.token("over", &subject(-1, Some(PROJECT), &["reader"]));
    let told = world.ask("over").await;
    assert!(matches!(told, Err(AuthError::ExpiredToken)), "{told:?}");
    // What no IAM service can have issued is not asked about.
    let asked = world.asked();
    for odd in ["a b", "t\u{f6}ken"] {
        let told = world.ask(odd).await;
        assert!(
            matches!(told, Err(AuthError::InvalidToken)),
            "{odd}: {told:?}"
        );
    }
    assert_eq!(world.asked(), asked);
    assert!(world.ask("").await.is_err());
}

#[tokio::test]
async fn a_good_token_is_believed_for_a_while_and_never_longer_than_it_lives() {
    let world = World::new().await;
    world.token("long", &subject(600, Some(PROJECT), &["reader"]));
    world.token("short", &subject(3, Some(PROJECT), &["reader"]));
    for _ in 0..3 {
        assert!(world.ask("long").await.is_ok());
        assert!(world.ask("short").await.is_ok());
    }
    assert_eq!(world.asked(), 2);
    world.forget("long");
    world.clock.set(NOW + 3 * MINUTE - 1);
    assert!(world.ask("short").await.is_ok());
    world.clock.set(NOW + 3 * MINUTE);
    let told = world.ask("short").await;
    assert!(matches!(told, Err(AuthError::ExpiredToken)), "{told:?}");
    // Taken back, and believed for the configured five minutes.
    world.clock.set(NOW + 5 * MINUTE - 1);
    assert!(world.ask("long").await.is_ok());
    world.clock.set(NOW + 5 * MINUTE);
    let told = world.ask("long").await;
    assert!(matches!(told, Err(AuthError::InvalidToken)), "{told:?}");
    // A clock that was set back makes no memory longer.
    world.token("again", &subject(600, Some(PROJECT), &["reader"]));
    assert!(world.ask("again").await.is_ok());
    let asked = world.asked();
    world.clock.set(NOW - 1);
    assert!(world.ask("again").await.is_ok());
    assert_eq!(world.asked(), asked + 1);
}

#[tokio::test]
async fn a_bad_token_is_remembered_for_five_seconds() {
    let world = World::new().await;
    for _ in 0..3 {
        assert!(world.ask("early").await.is_err());
    }
    assert_eq!(world.asked(), 1);
    world.token("early", &subject(60, Some(PROJECT), &["reader"]));
    world.clock.set(NOW + 4_999);
    assert!(world.ask("early").await.is_err());
    world.clock.set(NOW + 5_000);
    assert!(world.ask("early").await.is_ok());
}

#[tokio::test]
async fn requests_with_the_same_token_ask_once_also_when_the_first_is_given_up() {
    let world = World::new().await;
    world.token("good", &subject(60, Some(PROJECT), &["reader"]));
    assert!(
        world.ask("first").await.is_err(),
        "the own token is there now"
    );
    let asked = world.asked();
    let gate = world.hold();
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.ask("good").await.is_ok() })
        })
        .collect();
    while world.asked() == asked {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    asking[0].abort();
    gate.add_permits(1000);
    let mut good = 0;
    for task in asking {
        good += u32::from(task.await.unwrap_or(false));
    }
    assert_eq!(good, 49);
    assert_eq!(world.asked(), asked + 1);
}

#[tokio::test]
async fn so_many_requests_of_a_peer_wait_for_an_answer_and_others_have_places_left() {
    const EACH: usize = 4096;
    let world = World::new().await;
    world.token("good", &subject(60, Some(PROJECT), &["reader"]));
    let gate = world.hold();
    let ask = |from: &'static str| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.ask_as(&peer(from), "good").await })
    };
    let waiting: Vec<_> = (0..EACH).map(|_| ask("203.0.113.9:1")).collect();
    while world.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let told = ask("203.0.113.9:2").await.unwrap();
    assert!(matches!(told, Err(AuthError::Throttled)), "{told:?}");
    let other = ask("203.0.113.10:1");
    tokio::task::yield_now().await;
    gate.add_permits(1000);
    for asked in waiting.into_iter().chain([other]) {
        assert!(asked.await.unwrap().is_ok());
    }
    assert!(ask("203.0.113.9:1").await.unwrap().is_ok());
}

#[tokio::test]
async fn a_peer_whose_tokens_are_bad_is_not_asked_for_and_others_are() {
    let world = World::new().await;
    world.token("good", &subject(60, Some(PROJECT), &["reader"]));
    let flood = peer("203.0.113.9:1");
    for number in 0..50 {
        let told = world.ask_as(&flood, &format!("garbage-{number}")).await;
        assert!(
            matches!(told, Err(AuthError::InvalidToken)),
            "{number}: {told:?}"
        );
    }
    let asked = world.asked();
    for number in 50..200 {
        let told = world.ask_as(&flood, &format!("garbage-{number}")).await;
        assert!(
            matches!(told, Err(AuthError::Throttled)),
            "{number}: {told:?}"
        );
    }
    assert_eq!(world.asked(), asked, "the service is left alone");
    let told = world.ask_as(&peer("203.0.113.10:1"), "good").await;
    assert!(told.is_ok(), "{told:?}");
    // Whoever has been let in goes on, and with time the peer may try again.
    assert!(world.ask_as(&flood, "good").await.is_ok());
    world.clock.set(NOW + 100);
    let told = world.ask_as(&flood, "garbage").await;
    assert!(matches!(told, Err(AuthError::InvalidToken)), "{told:?}");
    // All addresses of an IPv6 network are one peer.
    for number in 0..60_u32 {
        let from = peer(&format!("[2001:db8:0:1::{number:x}]:1"));
        let told = world.ask_as(&from, &format!("v6-{number}")).await;
        let throttled = matches!(told, Err(AuthError::Throttled));
        assert_eq!(throttled, number >= 50, "{number}: {told:?}");
    }
}

#[tokio::test]
async fn a_flood_of_one_peer_is_bounded_however_much_comes_at_once_and_is_given_up() {
    let world = World::new().await;
    assert!(
        world.ask("first").await.is_err(),
        "the own token is there now"
    );
    let asked = world.asked();
    let mut floods = Vec::new();
    for number in 0..600 {
        let world = Arc::clone(&world);
        floods.push(tokio::spawn(async move {
            let from = peer("203.0.113.9:1");
            let token = format!("garbage-{number}");
            let asking = world.ask_as(&from, &token);
            // Half of them do not wait for the answer.
            if number % 2 == 0 {
                let _ = tokio::time::timeout(Duration::from_micros(1), asking).await;
            } else {
                assert!(asking.await.is_err());
            }
        }));
    }
    for flood in floods {
        flood.await.unwrap();
    }
    // The questions go on without those who gave them up.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.asked() - asked, 50);
    world.token("good", &subject(60, Some(PROJECT), &["reader"]));
    assert!(world.ask_as(&peer("203.0.113.10:1"), "good").await.is_ok());
}

#[tokio::test]
async fn good_tokens_cost_their_peer_nothing_and_a_refusal_of_both_is_a_bad_token() {
    let world = World::new().await;
    let proxy = peer("203.0.113.9:1");
    for number in 0..200 {
        let token = format!("good-{number}");
        world.token(&token, &subject(60, Some(PROJECT), &["reader"]));
        assert!(world.ask_as(&proxy, &token).await.is_ok(), "{number}");
    }
    // Headers that are too long for the service, and words that could mean our own token.
    for status in [
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        StatusCode::UNAUTHORIZED,
    ] {
        world.fail_next(status, 2);
        let told = world.ask_as(&proxy, status.as_str()).await;
        assert!(
            matches!(told, Err(AuthError::InvalidToken)),
            "{status}: {told:?}"
        );
        world.fail_next(StatusCode::OK, 0);
    }
    assert_eq!(world.keystone.failed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_is_asked_again_and_then_left_alone() {
    let world = World::new().await;
    world.token("good", &subject(600, Some(PROJECT), &["reader"]));
    world.token("late", &subject(600, Some(PROJECT), &["reader"]));
    assert!(world.ask("good").await.is_ok());
    // Twice is not for ever.
    world.fail_next(StatusCode::SERVICE_UNAVAILABLE, 2);
    assert!(world.ask("late").await.is_ok());
    assert_eq!(world.keystone.failed(), 0, "it was answered after all");
    assert!(!world.keystone.rests());

    world.fail_next(StatusCode::INTERNAL_SERVER_ERROR, 1000);
    for number in 0..10 {
        world.ask_in_vain(&format!("new-{number}")).await;
    }
    assert!(world.keystone.rests());
    let asked = world.asked();
    world.ask_in_vain("another").await;
    assert_eq!(world.asked(), asked, "it is left alone");
    assert!(world.ask("good").await.is_ok(), "who is known goes on");
    // Nothing of this counts against anybody.
    world.fail_next(StatusCode::OK, 0);
    world.clock.set(NOW + 5_000);
    assert!(world.ask("new-1").await.is_err());
    assert!(!world.keystone.rests());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_is_one_that_is_not_there() {
    let world = World::new().await;
    world.token("good", &subject(600, Some(PROJECT), &["reader"]));
    world.token("late", &subject(600, Some(PROJECT), &["reader"]));
    assert!(world.ask("good").await.is_ok());
    let gate = world.hold();
    let begun = tokio::time::Instant::now();
    world.ask_in_vain("late").await;
    // By default a request may take ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert!(world.ask("good").await.is_ok(), "who is known goes on");
    gate.add_permits(100);
    assert!(world.ask("late").await.is_ok());
}

#[tokio::test]
async fn what_one_token_makes_a_service_answer_closes_it_to_no_other() {
    let world = World::new().await;
    world.token("good", &subject(600, Some(PROJECT), &["reader"]));
    world.fail_next(StatusCode::TOO_MANY_REQUESTS, 20);
    for number in 0..20 {
        world.ask_in_vain(&format!("many-{number}")).await;
    }
    for answer in ["{}".to_owned(), "x".repeat(300 * 1024)] {
        world.state.lock().unwrap().answer = Some(answer);
        for number in 0..10 {
            world.ask_in_vain(&format!("odd-{number}")).await;
        }
    }
    world.state.lock().unwrap().answer = None;
    assert!(!world.keystone.rests());
    assert!(world.ask("good").await.is_ok());
}

#[tokio::test]
async fn a_peer_that_is_not_answered_hears_that_and_not_that_it_asks_too_often() {
    let world = World::new().await;
    for status in [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS] {
        let good = format!("good-{status}").replace(' ', "-");
        world.token(&good, &subject(600, Some(PROJECT), &["reader"]));
        world.fail_next(status, 1000);
        let asked = world.asked();
        for _ in 0..200 {
            world.ask_in_vain(&good).await;
        }
        assert_eq!(world.asked() - asked, 50, "it is not asked more for that");
        world.fail_next(StatusCode::OK, 0);
        world.clock.add(100);
        assert!(world.ask(&good).await.is_ok());
        // Whatever the peer owes is forgotten by then.
        world.clock.add(5_000);
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_a_service_fails_over_close_it_to_no_other() {
    let world = World::new().await;
    world.token("good", &subject(600, Some(PROJECT), &["reader"]));
    world.state.lock().unwrap().fails_over = "long-";
    for number in 0..12 {
        world.ask_in_vain(&format!("long-{number}")).await;
    }
    assert!(!world.keystone.rests());
    assert!(world.ask("good").await.is_ok());
}

#[tokio::test]
async fn garbage_does_not_make_a_service_look_ill() {
    let world = World::new().await;
    for number in 0..40 {
        assert!(world.ask(&format!("garbage-{number}")).await.is_err());
    }
    assert_eq!(world.keystone.failed(), 0);
    assert!(!world.keystone.rests());
}

#[tokio::test(start_paused = true)]
async fn the_own_token_is_renewed_before_it_ends_and_after_it_was_taken_back() {
    let world = World::new().await;
    let ask = async |number: i64| {
        let token = format!("t{number}");
        world.token(&token, &subject(6000, Some(PROJECT), &["reader"]));
        world.ask(&token).await.is_ok()
    };
    assert!(ask(0).await && ask(1).await);
    assert_eq!(world.logins(), 1);
    // It lives for an hour.
    world.clock.set(NOW + 48 * MINUTE - 1);
    assert!(ask(2).await);
    assert_eq!(world.logins(), 1);
    world.clock.set(NOW + 48 * MINUTE);
    assert!(ask(3).await);
    assert_eq!(world.logins(), 2);
    world.clock.add(5_000);
    world.take_back_own();
    assert!(ask(4).await);
    assert_eq!(world.logins(), 3);
    // While no other is to be had, the old one is used.
    world.clock.set(NOW + (48 + 50) * MINUTE);
    world.refuse_logins(true);
    assert!(ask(5).await);
    world.clock.set(NOW + (48 + 61) * MINUTE);
    assert!(!ask(6).await);
    // A corrected credential is used at once.
    world.refuse_logins(false);
    world.write_credential("another");
    world.clock.add(50);
    world.keystone.refresh().unwrap();
    assert!(ask(7).await);
    assert_eq!(world.state.lock().unwrap().user, "another");
}

#[tokio::test]
async fn a_service_that_says_unauthorized_of_a_bad_token_is_not_logged_in_at_for_each() {
    let world = World::new().await;
    world.state.lock().unwrap().unknown = StatusCode::UNAUTHORIZED;
    world.token("good", &subject(600, Some(PROJECT), &["reader"]));
    assert!(world.ask("good").await.is_ok());
    world.clock.add(5_000);
    for number in 0..20 {
        let told = world.ask(&format!("garbage-{number}")).await;
        assert!(
            matches!(told, Err(AuthError::InvalidToken)),
            "{number}: {told:?}"
        );
    }
    assert_eq!(world.logins(), 2, "once, as the own token could be meant");
    // It is meant later.
    world.clock.add(5_000);
    world.take_back_own();
    world.token("late", &subject(600, Some(PROJECT), &["reader"]));
    assert!(world.ask("late").await.is_ok());
    assert_eq!(world.logins(), 3);
}

#[tokio::test]
async fn answers_that_are_none_let_nobody_in() {
    let world = World::new().await;
    assert!(world.ask("first").await.is_err());
    for (name, answer) in [
        ("not JSON", "<html>".to_owned()),
        ("no token", "{}".to_owned()),
        (
            "no user",
            json!({ "token": { "expires_at": "2030-01-01T00:00:00Z" } }).to_string(),
        ),
        ("long", "x".repeat(300 * 1024)),
    ] {
        world.state.lock().unwrap().answer = Some(answer);
        world.clock.add(10_000);
        let told = world.ask(name.split(' ').next().unwrap()).await;
        assert!(
            matches!(told, Err(AuthError::IamUnavailable)),
            "{name}: {told:?}"
        );
    }
}

/// What a service says of a token that lives for so many minutes.
fn subject(minutes: i64, project: Option<&str>, roles: &[&str]) -> Value {
    let roles: Vec<_> = roles
        .iter()
        .map(|name| json!({ "id": "1", "name": name }))
        .collect();
    let mut subject = json!({
        "expires_at": moment(NOW + minutes * MINUTE),
        "issued_at": "2026-01-01T00:00:00.000000Z",
        "methods": ["password"],
        "user": { "id": "5f2b", "name": "alice", "domain": { "id": "default" } },
        "roles": roles,
    });
    if let Some(id) = project {
        subject["project"] = json!({ "id": id, "name": "p", "domain": { "id": "default" } });
    }
    subject
}

/// RFC 3339, as Keystone writes it. Times here are within one day of [`NOW`].
fn moment(millis: i64) -> String {
    // 1795000000 is 2026-11-18T11:06:40Z.
    let seconds = millis / 1000 - (NOW / 1000 - (11 * 3600 + 6 * 60 + 40));
    let (day, second) = (18 + seconds.div_euclid(86400), seconds.rem_euclid(86400));
    format!(
        "2026-11-{day:02}T{:02}:{:02}:{:02}.000000Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

fn peer(address: &str) -> Peer {
    Peer {
        origin: Origin::Tcp(address.parse().unwrap()),
        certificate: None,
    }
}

/// A service, and the authenticator that asks it.
struct World {
    state: Arc<Mutex<Service>>,
    clock: Arc<TestClock>,
    keystone: Arc<Keystone>,
    iam: Iam,
    credential: PathBuf,
    _dir: TempDir,
}

/// What the service has and does.
struct Service {
    tokens: HashMap<String, Value>,
    own: String,
    user: String,
    logins: u32,
    refuses_logins: bool,
    failing: (StatusCode, u32),
    gate: Option<Arc<Semaphore>>,
    answer: Option<String>,
    /// What it says of a token that it does not know.
    unknown: StatusCode,
    /// The beginning of the tokens that it fails over.
    fails_over: &'static str,
    asked: Arc<AtomicU32>,
    clock: Arc<TestClock>,
}

impl World {
    async fn new() -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(NOW)));
        let state = Arc::new(Mutex::new(Service {
            tokens: HashMap::new(),
            own: String::new(),
            user: String::new(),
            logins: 0,
            refuses_logins: false,
            failing: (StatusCode::OK, 0),
            gate: None,
            answer: None,
            unknown: StatusCode::NOT_FOUND,
            fails_over: "no token",
            asked: Arc::default(),
            clock: Arc::clone(&clock),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let routes = get(validate).post(authenticate);
        let router = Router::new()
            .route("/identity/v3/auth/tokens", routes)
            .with_state(Arc::clone(&state));
        tokio::spawn(axum::serve(listener, router).into_future());
        let endpoint: Uri = format!("http://{address}/identity/").parse().unwrap();
        let endpoint = Endpoint::new(endpoint, None).unwrap();
        let credential = dir.path().join("iam.toml");
        write(&credential, "kmsgate");
        let clocked = Arc::clone(&clock) as Arc<dyn Clock>;
        let keystone = Keystone::new(endpoint, &credential, Arc::clone(&clocked));
        let keystone = Arc::new(keystone.unwrap());
        let rule = |role: &str, project: Option<&str>, actions: &[Action]| Rule {
            role: role.to_owned(),
            project: project.map(|project| project.parse().unwrap()),
            actions: actions.iter().copied().collect(),
        };
        let rules = vec![
            rule("reader", None, &[Action::DecryptData]),
            rule("auditor", None, &[Action::ListKeys]),
            rule("auditor", Some(PROJECT), &[Action::DescribeKey]),
        ];
        let memory = Duration::from_secs(300);
        let iam = Iam::new(Arc::clone(&keystone), rules, memory, clocked);
        Arc::new(Self {
            state,
            clock,
            keystone,
            iam,
            credential,
            _dir: dir,
        })
    }

    async fn ask(&self, token: &str) -> Result<Option<Arc<Caller>>, AuthError> {
        self.ask_as(&Peer::unix(0), token).await
    }

    /// Asks when the service does not say what a token is good for.
    async fn ask_in_vain(&self, token: &str) {
        let told = self.ask(token).await;
        assert!(matches!(told, Err(AuthError::IamUnavailable)), "{told:?}");
    }

    async fn ask_as(&self, peer: &Peer, token: &str) -> Result<Option<Arc<Caller>>, AuthError> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(token.as_bytes()).unwrap();
        headers.insert("x-auth-token", value);
        let evidence = Evidence {
            method: &Method::POST,
            uri: &Uri::from_static("/"),
            headers: &headers,
            body: None,
            peer,
        };
        self.iam.authenticate(&evidence).await
    }

    fn token(&self, token: &str, subject: &Value) {
        let mut state = self.state.lock().unwrap();
        state.tokens.insert(token.to_owned(), subject.clone());
    }

    fn forget(&self, token: &str) {
        self.state.lock().unwrap().tokens.remove(token);
    }

    /// How many tokens were asked about.
    fn asked(&self) -> u32 {
        self.state.lock().unwrap().asked.load(Ordering::Relaxed)
    }

    fn logins(&self) -> u32 {
        self.state.lock().unwrap().logins
    }

    fn fail_next(&self, status: StatusCode, times: u32) {
        self.state.lock().unwrap().failing = (status, times);
    }

    fn refuse_logins(&self, refuse: bool) {
        self.state.lock().unwrap().refuses_logins = refuse;
    }

    fn take_back_own(&self) {
        "taken back".clone_into(&mut self.state.lock().unwrap().own);
    }

    /// Lets no question be answered before there is a permit for it.
    fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state.lock().unwrap().gate = Some(Arc::clone(&gate));
        gate
    }

    fn write_credential(&self, user: &str) {
        write(&self.credential, user);
    }
}

fn write(path: &PathBuf, user: &str) {
    let new = path.with_extension("new");
    let text = format!("user = '{user}'\npassword = 's3cret'\nproject = 'service'\n");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

async fn authenticate(State(state): State<Arc<Mutex<Service>>>, body: String) -> Response {
    let mut state = state.lock().unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    let user = &body["auth"]["identity"]["password"]["user"];
    let scope = &body["auth"]["scope"]["project"];
    assert_eq!(user["domain"]["name"], "Default");
    assert_eq!(
        (&scope["name"], &scope["domain"]["name"]),
        (&json!("service"), &json!("Default"))
    );
    if state.refuses_logins || user["password"] != "s3cret" {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    user["name"].as_str().unwrap().clone_into(&mut state.user);
    state.logins += 1;
    state.own = format!("own-{}", state.logins);
    let answer = json!({ "token": { "expires_at": moment(state.clock.now().0 + 60 * MINUTE) } });
    let headers = [("x-subject-token", state.own.clone())];
    (StatusCode::CREATED, headers, answer.to_string()).into_response()
}

async fn validate(State(state): State<Arc<Mutex<Service>>>, headers: HeaderMap) -> Response {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let gate = {
        let mut state = state.lock().unwrap();
        if header("x-auth-token") != state.own {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        state.asked.fetch_add(1, Ordering::Relaxed);
        let (status, left) = &mut state.failing;
        if *left > 0 {
            *left -= 1;
            return status.into_response();
        }
        if header("x-subject-token").starts_with(state.fails_over) {
            return StatusCode::BAD_GATEWAY.into_response();
        }
        state.gate.clone()
    };
    if let Some(gate) = gate {
        gate.acquire().await.unwrap().forget();
    }
    let state = state.lock().unwrap();
    if let Some(answer) = &state.answer {
        return answer.clone().into_response();
    }
    match state.tokens.get(&header("x-subject-token")) {
        Some(subject) => json!({ "token": subject }).to_string().into_response(),
        None => state.unknown.into_response(),
    }
}

#[derive(Debug)]
struct TestClock(AtomicI64);

impl TestClock {
    fn set(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }

    fn add(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}
