//! What somebody may try who has seen good credentials: cut, changed, signed anew, confused, out of
//! time, for someone else, hidden and repeated. Nobody may be let in by any of it, and it is counted.

use std::mem;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use kmsgate::error::Kind;
use serde_json::{Value, json};
use sha2::Sha256;

use crate::encrypt;
use crate::face::{Face, Over, framed};
use crate::jws::{Signer, jwks};
use crate::jwt::{Issuer, claims, encode, now};
use crate::schema::Call;
use crate::seeds::DOCUMENTED;
use crate::signature::{Layout, signed, signed_at};
use crate::world::{ACCESS_KEY, Right, token};

/// How many of each kind are tried over a face. Fewer would mean that something is no longer tried.
const TOKENS: usize = 230;
const JSON_WEB_TOKENS: usize = 470;
const SIGNATURES: usize = 320;

/// How whoever is not let in is refused. Any other refusal is of somebody who was let in, or of a
/// request that says nothing of its credential.
const NOT_LET_IN: [Kind; 3] = [
    Kind::Unauthenticated,
    Kind::InvalidToken,
    Kind::ExpiredToken,
];

#[tokio::test]
async fn of_all_that_is_tried_nothing_lets_anybody_in() {
    let issuer = Issuer::new();
    let world = issuer.world().await;
    let mut admitted = Vec::new();
    for face in [world.rest(), world.grpc()] {
        let signatures = match face.over {
            Over::Rest => SIGNATURES,
            // One of each layout shows that there are none.
            Over::Grpc => 2,
        };
        let mut tries = Tries::new(face);
        tries.tokens().await;
        tries.were_at_least(TOKENS, "tokens");
        tries.json_web_tokens(&issuer).await;
        tries.were_at_least(JSON_WEB_TOKENS, "JSON Web Tokens");
        tries.signatures().await;
        tries.were_at_least(signatures, "signatures");
        tries.good_ones_are_let_in(&issuer).await;
        admitted.extend(tries.admitted);
    }
    assert_eq!(admitted, Vec::<String>::new());
}

struct Tries {
    face: Face,
    call: Call,
    /// How many of the present kind were tried.
    tried: usize,
    /// What was let in, and should not have been.
    admitted: Vec<String>,
}

impl Tries {
    fn new(face: Face) -> Self {
        Self {
            face,
            call: encrypt(DOCUMENTED, "x"),
            tried: 0,
            admitted: Vec::new(),
        }
    }

    /// Checks how many of one kind were tried, and begins to count those of the next.
    fn were_at_least(&mut self, least: usize, what: &str) {
        let tried = mem::take(&mut self.tried);
        assert!(
            tried >= least,
            "{tried} {what} over {:?}, not {least}",
            self.face.over
        );
    }

    /// Calls as `face`, which nobody may let in.
    async fn attempt(&mut self, about: &str, face: &Face) {
        let call = self.call.clone();
        self.attempt_with(about, face, &call.to_json()).await;
    }

    /// The same with another body, where the face is REST.
    async fn attempt_with(&mut self, about: &str, face: &Face, body: &[u8]) {
        let body = match face.over {
            Over::Rest => body.to_vec(),
            Over::Grpc => framed(&self.call.to_message(Some(&face.project))),
        };
        self.tried += 1;
        let answer = face.send(self.call.operation, body).await;
        let refusal = answer.outcome.err().map(|refusal| refusal.kind);
        if refusal.is_none_or(|kind| !NOT_LET_IN.contains(&kind)) {
            self.admitted.push(format!(
                "{about}, over {:?}: {refusal:?}: {:?}",
                face.over, face.headers
            ));
        }
    }

    /// Tries a token in both headers.
    async fn token(&mut self, about: &str, token: &str) {
        for (name, value) in [
            ("x-auth-token", token.to_owned()),
            ("authorization", format!("Bearer {token}")),
        ] {
            let mut face = self.face.with_nothing();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            face.headers.insert(name, value);
            self.attempt(about, &face).await;
        }
    }

    /// Tokens of the file, almost.
    async fn tokens(&mut self) {
        let good = token(&self.face.project, Right::Everything);
        for end in 0..good.len() {
            self.token("a token that is cut off", &good[..end]).await;
        }
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            // What is no letter has no other case, and a header cannot carry it with that bit
            // changed.
            bytes[at] ^= if bytes[at].is_ascii_alphabetic() {
                0x20
            } else {
                1
            };
            let other = String::from_utf8(bytes).unwrap();
            self.token("a token in other letters", &other).await;
        }
        for other in look_alikes(&good) {
            self.token("a token that looks alike", &other).await;
        }
        for (before, after) in [
            ("", "\u{200b}"),
            ("\u{feff}", ""),
            ("", "%00"),
            ("", ","),
            ("\"", "\""),
            ("Bearer ", ""),
            ("", "."),
            ("", &"x".repeat(40_000)[..]),
        ] {
            let other = format!("{before}{good}{after}");
            // `Bearer` before a token is no part of it in its own header.
            if before == "Bearer " {
                let face = self.face.with_token(&other);
                self.attempt("a scheme in the other header", &face).await;
            } else {
                self.token("a token with more around it", &other).await;
            }
        }
        let percent: String = good.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.token("a token in percent signs", &percent).await;
        self.token(
            "an expired token",
            &token(&self.face.project, Right::Expired),
        )
        .await;
        for second in [&good[..], "garbage", ""] {
            for twice in ["x-auth-token", "authorization"] {
                let mut face = self.face.with_token(&good);
                let value = HeaderValue::from_str(second).unwrap();
                face.headers.append(twice, value);
                self.attempt("two credentials", &face).await;
            }
        }
        for name in [
            "x-auth-tokens",
            "x_auth_token",
            "auth-token",
            "x-subject-token",
        ] {
            let face = self.face.with_nothing().with_header(name, &good);
            self.attempt("a header that is not the one", &face).await;
        }
    }

    /// JSON Web Tokens, almost.
    async fn json_web_tokens(&mut self, issuer: &Issuer) {
        let mine = claims(&self.face.project, "billing");
        let good = issuer.signer.sign(&mine);
        for end in (0..good.len()).step_by(9) {
            self.token("a JWT that is cut off", &good[..end]).await;
        }
        for at in (0..good.len()).step_by(5).chain(good.len() - 3..good.len()) {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(bytes).unwrap();
            self.token("a JWT with another letter", &other).await;
        }
        let parts: Vec<&str> = good.split('.').collect();
        let [header, body, signature] = parts[..] else {
            panic!("{good}");
        };
        for text in [
            "none", "None", "NONE", "nOnE", "", "HS256", "RS256", "ES384", "EdDSA",
        ] {
            let header = encode(&json!({ "alg": text, "kid": "k" }).to_string());
            for signature in ["", signature] {
                let other = format!("{header}.{body}.{signature}");
                self.token("another algorithm", &other).await;
            }
        }
        // The public key as the secret of an HMAC.
        let public = [
            jwks(&[&issuer.signer]),
            issuer.signer.jwk().to_string(),
            issuer.signer.jwk()["x"].as_str().unwrap().to_owned(),
            String::new(),
        ];
        for secret in public {
            let header = encode(r#"{"alg":"HS256","kid":"k"}"#);
            let signed = format!("{header}.{body}");
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
            mac.update(signed.as_bytes());
            let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
            self.token("a public key as a secret", &format!("{signed}.{signature}"))
                .await;
        }
        let stranger = Signer::p256("k");
        let names_itself = json!({ "alg": "ES256", "kid": "k", "jwk": stranger.jwk() });
        for other in [
            stranger.sign(&mine),
            stranger.sign_with(&names_itself, &mine),
            stranger.sign_with(&json!({ "alg": "ES256" }), &mine),
        ] {
            self.token("signed by a stranger", &other).await;
        }
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("kid", json!("../k")),
            ("kid", json!(["k"])),
            ("kid", json!(1)),
            ("kid", json!("K")),
        ] {
            let mut header = json!({ "alg": "ES256", "kid": "k" });
            header[name] = value;
            let other = issuer.signer.sign_with(&header, &mine);
            let about = format!("a header with {name}");
            self.token(&about, &other).await;
        }
        let subject = mine["sub"].as_str().unwrap().to_owned();
        let look_alike = look_alikes(&subject)
            .into_iter()
            .map(|sub| ("sub", json!(sub)));
        for (name, value) in [
            ("exp", json!(now() - 3600)),
            ("exp", json!(now() - 61)),
            ("exp", json!(0)),
            ("exp", json!("9999999999")),
            ("exp", Value::Null),
            ("nbf", json!(now() + 3600)),
            ("nbf", json!("0")),
            ("iat", json!(now() + 3600)),
            ("aud", json!(["vault"])),
            ("aud", json!([])),
            ("aud", json!("KMS")),
            ("aud", json!("kms ")),
            ("aud", json!([["kms"]])),
            ("aud", Value::Null),
            (
                "iss",
                json!("https://kubernetes.default.svc.cluster.local/"),
            ),
            ("iss", json!("HTTPS://kubernetes.default.svc.cluster.local")),
            (
                "iss",
                json!(["https://kubernetes.default.svc.cluster.local"]),
            ),
            ("sub", json!("system:serviceaccount:kube-system:billing")),
            ("sub", json!(format!("{subject} "))),
            ("sub", json!(subject.to_uppercase())),
            ("sub", json!([subject])),
            ("sub", json!("*")),
        ]
        .into_iter()
        .chain(look_alike)
        {
            let mut other = mine.clone();
            other[name] = value;
            let about = format!("another {name}");
            self.token(&about, &issuer.signer.sign(&other)).await;
        }
        let plain = r#"{"alg":"ES256","kid":"k"}"#;
        let text = mine.to_string();
        let stranger = "system:serviceaccount:x:y";
        for twice in [
            text.replacen('{', &format!("{{\"sub\":{stranger:?},"), 1),
            format!("{},\"sub\":{stranger:?}}}", text.trim_end_matches('}')),
            format!("{text}{text}"),
            format!("[{text}]"),
            format!("\u{feff}{text}"),
        ] {
            let other = issuer.signer.sign_texts(plain, &twice, "ES256");
            self.token("claims that say two things", &other).await;
        }
        for other in [
            format!("{header}=.{body}.{signature}"),
            format!("{header}.{body}.{signature}="),
            format!("{header}.{body}.{signature}.{signature}"),
            format!("{header}..{signature}"),
            format!("{header}.{body}\u{2024}{signature}"),
        ] {
            self.token("parts that are not three", &other).await;
        }
    }

    /// AK/SK signatures, almost; over gRPC there are none at all.
    async fn signatures(&mut self) {
        let (access_key, secret_key) = ACCESS_KEY;
        let body = self.call.to_json();
        // A signature is for REST, wherever it is sent.
        let (operation, project) = (self.call.operation, self.face.project.clone());
        let path = format!("/v1.0/{project}/kms/{operation}");
        for layout in [Layout::A, Layout::B] {
            let good = signed(&self.face, layout, secret_key, &path, &body);
            if self.face.over == Over::Grpc {
                self.attempt("a signature over gRPC", &good).await;
                continue;
            }
            let sign = |face: &Face, secret: &str, what: (&str, &str), body: &[u8], time| {
                signed_at(face, layout, secret, what, body, time)
            };
            let now = SystemTime::now();
            let face = self.face.clone();
            let minutes = |count: u64| Duration::from_secs(60 * count);
            for (about, other) in [
                (
                    "too old",
                    sign(&face, secret_key, ("POST", &path), &body, now - minutes(16)),
                ),
                (
                    "too old",
                    sign(
                        &face,
                        secret_key,
                        ("POST", &path),
                        &body,
                        now - minutes(1440),
                    ),
                ),
                (
                    "too new",
                    sign(&face, secret_key, ("POST", &path), &body, now + minutes(16)),
                ),
                (
                    "another method",
                    sign(&face, secret_key, ("GET", &path), &body, now),
                ),
                (
                    "another method",
                    sign(&face, secret_key, ("PUT", &path), &body, now),
                ),
                (
                    "another path",
                    sign(
                        &face,
                        secret_key,
                        ("POST", &face.path("decrypt-data")),
                        &body,
                        now,
                    ),
                ),
                (
                    "another project",
                    sign(
                        &face,
                        secret_key,
                        ("POST", &face.naming("bare").path(operation)),
                        &body,
                        now,
                    ),
                ),
                (
                    "another body",
                    sign(&face, secret_key, ("POST", &path), b"{}", now),
                ),
                (
                    "another secret",
                    sign(&face, "another", ("POST", &path), &body, now),
                ),
                ("no secret", sign(&face, "", ("POST", &path), &body, now)),
            ] {
                self.attempt(about, &other).await;
            }
            self.attempt_with("a changed body", &good, &[&body[..], b" "].concat())
                .await;
            self.attempt("in another project", &good.naming("bare"))
                .await;

            let authorization = good.headers["authorization"].to_str().unwrap().to_owned();
            let (before, signature) = authorization.rsplit_once('=').unwrap();
            let changed = |value: &str| {
                let mut face = good.clone();
                let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
                face.headers.insert("authorization", value);
                face
            };
            for end in 0..signature.len() {
                let other = changed(&format!("{before}={}", &signature[..end]));
                self.attempt("a signature that is cut off", &other).await;
                let mut digits = signature.to_owned().into_bytes();
                digits[end] = if digits[end] == b'0' { b'1' } else { b'0' };
                let digits = String::from_utf8(digits).unwrap();
                let other = changed(&format!("{before}={digits}"));
                self.attempt("a signature with another digit", &other).await;
            }
            for (from, to) in [
                ("SDK-HMAC-SHA256", "SDK-HMAC-SHA1"),
                ("SDK-HMAC-SHA256", "SDK-HMAC-SM3"),
                ("SDK-HMAC-SHA256", "SDK-ECDSA-P256-SHA256"),
                ("content-type;host;x-sdk-date", "content-type;host"),
                ("content-type;host;x-sdk-date", "x-sdk-date"),
                ("content-type;host;x-sdk-date", ""),
                (
                    "content-type;host;x-sdk-date",
                    "content-type;host;x-sdk-date;x-other",
                ),
                (access_key, "AKEXAMPLE0000000001"),
                (access_key, "AKEXАMPLE0000000000"),
                (access_key, ""),
                ("Signature=", "Signature=,Signature="),
                ("Signature=", "signature="),
            ] {
                assert!(authorization.contains(from));
                let other = changed(&authorization.replace(from, to));
                self.attempt("another header of a signature", &other).await;
            }
            for (name, value) in [
                ("x-sdk-date", "20191115T033655Z"),
                ("x-sdk-date", ""),
                ("content-type", "text/plain"),
            ] {
                let mut other = good.clone();
                other.headers.insert(name, HeaderValue::from_static(value));
                self.attempt("a signed header that is changed", &other)
                    .await;
            }
            let mut without = good.clone();
            without.headers.remove("x-sdk-date");
            self.attempt("without its date", &without).await;
            for name in ["x-sdk-date", "authorization"] {
                let mut twice = good.clone();
                let value = twice.headers[name].clone();
                twice.headers.append(name, value);
                self.attempt("a header that is there twice", &twice).await;
            }
            let with_token = good.with_header("x-auth-token", "garbage");
            self.attempt("beside a token", &with_token).await;
            let with_security_token = good.with_header("x-security-token", "garbage");
            self.attempt(
                "with a security token that the key has not",
                &with_security_token,
            )
            .await;
        }
    }

    /// Without this nothing would be shown: what was changed above lets its caller in when it is not.
    async fn good_ones_are_let_in(&self, issuer: &Issuer) {
        let project = &self.face.project;
        for token in [
            token(project, Right::Everything),
            issuer.signer.sign(&claims(project, "billing")),
        ] {
            self.face.with_token(&token).done(&self.call).await;
            let bearer = format!("Bearer {token}");
            let face = self.face.with_nothing();
            let face = face.with_header("authorization", &bearer);
            face.done(&self.call).await;
        }
        if self.face.over == Over::Rest {
            let (_, secret_key) = ACCESS_KEY;
            let body = self.call.to_json();
            let path = self.face.path(self.call.operation);
            for layout in [Layout::A, Layout::B] {
                let good = signed(&self.face, layout, secret_key, &path, &body);
                let answer = good.send(self.call.operation, body.clone()).await;
                assert!(answer.outcome.is_ok(), "{:?}", answer.outcome);
            }
        }
    }
}

/// The same text to the eye, with one letter of another script each.
fn look_alikes(text: &str) -> Vec<String> {
    let letters = [
        ('a', 'а'),
        ('c', 'с'),
        ('e', 'е'),
        ('i', 'і'),
        ('o', 'о'),
        ('p', 'р'),
        ('s', 'ѕ'),
        ('x', 'х'),
        ('y', 'у'),
        ('E', 'Е'),
        ('-', '\u{2010}'),
        (':', '\u{a789}'),
        ('0', '\u{ff10}'),
        ('1', '\u{ff11}'),
    ];
    let changed = letters.map(|(from, to)| text.replacen(from, &to.to_string(), 1));
    changed.into_iter().filter(|other| other != text).collect()
}
