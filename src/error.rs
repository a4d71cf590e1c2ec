//! How requests fail: one error type, one table.
//!
//! The table is the public contract. Both faces read it and decide nothing: the KMS code and HTTP
//! status are Huawei's (contract, sections 2.5, 4.3 and 4.4), the gRPC status and the name are
//! ours. A new way to fail is a new row.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use tonic::Code;

use crate::auth::AuthError;
use crate::auth::policy::Denied;
use crate::crypto::ProviderError;
use crate::domain::frame::NotAFrame;
use crate::domain::key::{InvalidAlias, InvalidDescription, InvalidKeyId, StateError};
use crate::domain::request::{InvalidAad, InvalidSequence};
use crate::store::StoreError;

/// Generates [`Kind`] and its rows from the table below it.
macro_rules! catalogue {
    ($( $(#[doc = $doc:literal])+
        $kind:ident, $name:literal, $code:literal, $grpc:ident, $http:ident, $retry:ident, $text:literal; )+) => {
        /// Every way a request can fail, as callers see it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $( $(#[doc = $doc])+ $kind, )+ }

        impl Kind {
            /// The whole catalogue, in table order.
            pub const ALL: &[Self] = &[$( Self::$kind, )+];

            /// What goes on the wire for this kind.
            pub const fn row(self) -> Row {
                match self {
                    $( Self::$kind => Row {
                        name: $name,
                        code: $code,
                        grpc: Code::$grpc,
                        http: StatusCode::$http,
                        retry: Retry::$retry,
                        text: $text,
                    }, )+
                }
            }
        }
    };
}

catalogue! {
    // kind                 name                           code          gRPC                HTTP                             retry    text
    /// A bug, or corrupt stored data.
    Internal,               "INTERNAL",                    "KMS.0101",   Internal,           INTERNAL_SERVER_ERROR,           Never,   "KMS error.";
    /// The store or a provider cannot serve now.
    Unavailable,            "UNAVAILABLE",                 "KMS.0104",   Unavailable,        SERVICE_UNAVAILABLE,             Backoff, "A system exception occurred. Contact technical support.";
    /// The body is not a JSON object of the documented shape.
    InvalidJson,            "INVALID_JSON",                "KMS.0202",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid JSON format of the request message.";
    /// The body, or the gRPC message, is over 64 KiB.
    MessageTooLong,         "MESSAGE_TOO_LONG",            "KMS.0203",   InvalidArgument,    BAD_REQUEST,                     Never,   "Request message too long.";
    /// A required field is absent or empty.
    MissingParameter,       "MISSING_PARAMETER",           "KMS.0204",   InvalidArgument,    BAD_REQUEST,                     Never,   "Parameters missing in the request message.";
    /// The text is not a key id.
    InvalidKeyId,           "INVALID_KEY_ID",              "KMS.0205",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid key ID.";
    /// The text is not a sequence.
    InvalidSequence,        "INVALID_SEQUENCE",            "KMS.0206",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid sequence number.";
    /// No such key in the caller's project.
    KeyNotFound,            "KEY_NOT_FOUND",               "KMS.0207",   NotFound,           NOT_FOUND,                       Never,   "The key does not exist.";
    /// The key is disabled.
    KeyDisabled,            "KEY_DISABLED",                "KMS.0209",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key has been disabled.";
    /// The key waits for its destruction.
    KeyPendingDeletion,     "KEY_PENDING_DELETION",        "KMS.0210",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key is in Scheduled deletion state and cannot be used.";
    /// The bytes are not a gRPC message of the method, or the request is no gRPC request.
    InvalidFormat,          "INVALID_FORMAT",              "KMS.0214",   InvalidArgument,    BAD_REQUEST,                     Never,   "The request format is invalid.";
    /// The path is known, and not with this HTTP method.
    MethodNotSupported,     "METHOD_NOT_SUPPORTED",        "KMS.0215",   Unimplemented,      METHOD_NOT_ALLOWED,              Never,   "Request method not supported.";
    /// The token is not known.
    InvalidToken,           "INVALID_TOKEN",               "KMS.0302",   Unauthenticated,    FORBIDDEN,                       Never,   "Invalid X-Auth-Token.";
    /// The token was valid once.
    ExpiredToken,           "EXPIRED_TOKEN",               "KMS.0303",   Unauthenticated,    FORBIDDEN,                       Never,   "X-Auth-Token expired.";
    /// The caller is known and may not do this.
    Denied,                 "DENIED",                      "KMS.0306",   PermissionDenied,   FORBIDDEN,                       Never,   "No access permissions.";
    /// A parameter is malformed or out of range.
    InvalidParameter,       "INVALID_PARAMETER",           "KMS.0308",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid parameter.";
    /// The RSA ciphertext does not open. Never says why: the answer is no oracle.
    RsaDecryptionFailed,    "RSA_DECRYPTION_FAILED",       "KMS.0311",   InvalidArgument,    BAD_REQUEST,                     Never,   "Failed to decrypt data using the RSA private key.";
    /// The caller's project is another one.
    ProjectMismatch,        "PROJECT_MISMATCH",            "KMS.0321",   PermissionDenied,   FORBIDDEN,                       Never,   "URIs in URL and X-Auth-Token do not match.";
    /// RSA keys have one version.
    RsaKeyNotRotatable,     "RSA_KEY_NOT_ROTATABLE",       "KMS.0324",   FailedPrecondition, BAD_REQUEST,                     Never,   "RSA keys cannot be rotated.";
    /// The operation is for symmetric keys.
    AsymmetricKey,          "ASYMMETRIC_KEY",              "KMS.0325",   FailedPrecondition, BAD_REQUEST,                     Never,   "The asymmetric key is not support this operation.";
    /// The operation is for asymmetric keys.
    SymmetricKey,           "SYMMETRIC_KEY",               "KMS.0331",   FailedPrecondition, BAD_REQUEST,                     Never,   "The symmetric key is not support this operation.";
    /// The key signs and does not encrypt.
    KeySigns,               "KEY_SIGNS",                   "KMS.0335",   FailedPrecondition, BAD_REQUEST,                     Never,   "The cmk is used to sign and verify.";
    /// The text is not an alias.
    InvalidAlias,           "INVALID_ALIAS",               "KMS.1101",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid key_alias.";
    /// The text is too long for a description.
    InvalidDescription,     "INVALID_DESCRIPTION",         "KMS.1103",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid key_description.";
    /// Another key of the project has the alias.
    DuplicateAlias,         "DUPLICATE_ALIAS",             "KMS.1104",   AlreadyExists,      BAD_REQUEST,                     Never,   "Duplicate key aliases.";
    /// The key has 4096 versions already, and gets no more.
    TooManyVersions,        "TOO_MANY_VERSIONS",           "KMS.1105",   FailedPrecondition, BAD_REQUEST,                     Never,   "Too many keys.";
    /// Only a disabled key can be enabled.
    KeyNotDisabled,         "KEY_NOT_DISABLED",            "KMS.1201",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key is not disabled.";
    /// Only an enabled key can do this.
    KeyNotEnabled,          "KEY_NOT_ENABLED",             "KMS.1301",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key is not enabled.";
    /// The wait before a deletion is out of range.
    InvalidPendingDays,     "INVALID_PENDING_DAYS",        "KMS.1401",   InvalidArgument,    BAD_REQUEST,                     Never,   "Set the pending deletion period between 7 to 1096 days.";
    /// The deletion is scheduled already.
    AlreadyPendingDeletion, "ALREADY_PENDING_DELETION",    "KMS.1402",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key is already in Pending deletion state.";
    /// There is no deletion to cancel.
    NotPendingDeletion,     "NOT_PENDING_DELETION",        "KMS.1501",   FailedPrecondition, BAD_REQUEST,                     Never,   "The key is not in Pending deletion state.";
    /// The page size is out of range.
    InvalidLimit,           "INVALID_LIMIT",               "KMS.1601",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid limit.";
    /// The start of the page is out of range.
    InvalidMarker,          "INVALID_MARKER",              "KMS.1602",   InvalidArgument,    BAD_REQUEST,                     Never,   "marker must be greater than or equals 0.";
    /// The plaintext is empty or over 4096 bytes.
    InvalidPlaintext,       "INVALID_PLAINTEXT",           "KMS.2101",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid plain_text.";
    /// A symmetric key offers SYMMETRIC_DEFAULT alone.
    SymmetricKeyAlgorithm,  "SYMMETRIC_KEY_ALGORITHM",     "KMS.2105",   InvalidArgument,    BAD_REQUEST,                     Never,   "The symmetric key not support this encryption algorithm.";
    /// An RSA key offers RSAES_OAEP_SHA_256 alone.
    RsaKeyAlgorithm,        "RSA_KEY_ALGORITHM",           "KMS.2106",   InvalidArgument,    BAD_REQUEST,                     Never,   "The rsa key not support this encryption algorithm.";
    /// An SM2 key offers SM2_ENCRYPT alone.
    Sm2KeyAlgorithm,        "SM2_KEY_ALGORITHM",           "KMS.2107",   InvalidArgument,    BAD_REQUEST,                     Never,   "The sm2 key not support this encryption algorithm.";
    /// The plaintext is over the RSA key's own limit.
    RsaPlaintextTooLong,    "RSA_PLAINTEXT_TOO_LONG",      "KMS.2108",   InvalidArgument,    BAD_REQUEST,                     Never,   "The rsa encryption plain_text is over length.";
    /// The ciphertext does not open. Never says why: the answer is no oracle.
    InvalidCiphertext,      "INVALID_CIPHERTEXT",          "KMS.2201",   InvalidArgument,    BAD_REQUEST,                     Never,   "Invalid cipher_text.";
    /// No such path, or no such gRPC method.
    UnknownPath,            "UNKNOWN_PATH",                "APIGW.0101", Unimplemented,      NOT_FOUND,                       Never,   "The API does not exist or has not been published in the environment.";
    /// The headers are over 64 KiB.
    HeadersTooLong,         "HEADERS_TOO_LONG",            "APIGW.0201", InvalidArgument,    REQUEST_HEADER_FIELDS_TOO_LARGE, Never,   "Request headers too large.";
    /// The upstream of a gateway is gone, or answered nonsense.
    BadUpstream,            "BAD_UPSTREAM",                "APIGW.0201", Unavailable,        BAD_GATEWAY,                     Backoff, "Backend unavailable.";
    /// The deadline passed, or the upstream of a gateway did not answer in time.
    DeadlineExceeded,       "DEADLINE_EXCEEDED",           "APIGW.0201", DeadlineExceeded,   GATEWAY_TIMEOUT,                 Never,   "Backend timeout.";
    /// No credential, or a signature that does not hold.
    Unauthenticated,        "UNAUTHENTICATED",             "APIGW.0301", Unauthenticated,    UNAUTHORIZED,                    Never,   "Incorrect IAM authentication information";
    /// Over a limit on requests.
    Throttled,              "THROTTLED",                   "APIGW.0308", ResourceExhausted,  TOO_MANY_REQUESTS,               Backoff, "The throttling threshold has been reached.";
    /// The IAM service does not say what a token is good for.
    IamUnavailable,         "IAM_UNAVAILABLE",             "APIGW.0613", Unavailable,        SERVICE_UNAVAILABLE,             Backoff, "The IAM service is currently unavailable.";
}

/// One row of the public error contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Stable name, unique in the catalogue; the reason in `google.rpc.ErrorInfo`.
    pub name: &'static str,
    /// Stable code; once published it never changes its meaning.
    pub code: &'static str,
    /// Status over gRPC.
    pub grpc: Code,
    /// Status over REST.
    pub http: StatusCode,
    /// Whether trying again can help.
    pub retry: Retry,
    /// What the caller reads.
    pub text: &'static str,
}

/// Who defines the names of the rows, as `google.rpc.ErrorInfo` has it.
pub const DOMAIN: &str = "kmsgate";

/// How long a caller should wait before it repeats a request that may succeed later, where nothing
/// better is known.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It will not.
    Never,
    /// It may, after a pause.
    Backoff,
}

impl Kind {
    /// The kind whose row has this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|kind| kind.row().name == name)
    }
}

/// A failed request: a row of the catalogue, and what we know beyond it.
///
/// `Display` is what the caller reads: the row's text, then the detail. The cause is for our logs
/// only; it is reachable through [`source`](StdError::source) and never shown to a caller.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    detail: Option<Cow<'static, str>>,
    field: Option<&'static str>,
    pause: Option<Duration>,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Which row.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Adds a sentence for the caller: of ours, never of the request's bytes.
    #[must_use]
    pub fn detail(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(text.into());
        self
    }

    /// The field of the request that is at fault, where it is one.
    pub const fn field(&self) -> Option<&'static str> {
        self.field
    }

    /// Names the field that is at fault.
    #[must_use]
    pub const fn of(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    /// How long to wait before the same request may succeed; none if it never will.
    pub fn pause(&self) -> Option<Duration> {
        let usual = (self.kind.row().retry == Retry::Backoff).then_some(PAUSE);
        self.pause.or(usual)
    }

    /// Says how long to wait, where that is known.
    #[must_use]
    pub const fn after(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// The cause for our logs, with its own causes, in one line.
    pub fn cause(&self) -> Option<Causes<'_>> {
        self.source().map(Causes)
    }

    /// Adds the cause for our logs.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }
}

/// An error and its causes, in one line.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            detail: None,
            field: None,
            pause: None,
            cause: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.kind.row().text;
        match &self.detail {
            // Huawei's gateway joins its details to its one text with a colon (contract, section
            // 4.4).
            Some(detail) if self.kind == Kind::Unauthenticated => write!(f, "{text}: {detail}"),
            Some(detail) => write!(f, "{text} {detail}"),
            None => f.write_str(text),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// One of the two faces, as a layer that refuses a request for it sees it.
pub trait Face: fmt::Debug + Send + Sync {
    /// The answer that tells `error` to a caller of this face.
    fn refuse(&self, error: &Error) -> http::Response<axum::body::Body>;
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => {
                Self::from(Kind::Unauthenticated).detail("x-auth-token not found")
            }
            AuthError::BadSignature(what) | AuthError::BadCertificate(what) => {
                Self::from(Kind::Unauthenticated).detail(what)
            }
            AuthError::InvalidToken => Kind::InvalidToken.into(),
            AuthError::ExpiredToken => Kind::ExpiredToken.into(),
            AuthError::Unavailable => Kind::Unavailable.into(),
            AuthError::IamUnavailable => Kind::IamUnavailable.into(),
            AuthError::Throttled => Kind::Throttled.into(),
        }
    }
}

impl From<Denied> for Error {
    fn from(Denied: Denied) -> Self {
        Kind::Denied.into()
    }
}

impl From<ProviderError> for Error {
    fn from(error: ProviderError) -> Self {
        let kind = match error {
            ProviderError::Rejected => Kind::InvalidCiphertext,
            ProviderError::TooLong => Kind::RsaPlaintextTooLong,
            ProviderError::BadSeal => Kind::Internal,
            ProviderError::Unsupported => Kind::InvalidParameter,
            ProviderError::Unavailable(_) => Kind::Unavailable,
        };
        Self::from(kind).caused_by(error)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            // The use cases read again and decide again; a conflict that outlasts that is load.
            StoreError::Conflict | StoreError::Unavailable(_) => Kind::Unavailable,
            StoreError::Corrupt(_) => Kind::Internal,
        };
        Self::from(kind).caused_by(error)
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        let kind = match error {
            StateError::Disabled => Kind::KeyDisabled,
            StateError::PendingDeletion => Kind::KeyPendingDeletion,
            StateError::NotEnabled => Kind::KeyNotEnabled,
            StateError::NotDisabled => Kind::KeyNotDisabled,
            StateError::AlreadyPendingDeletion => Kind::AlreadyPendingDeletion,
            StateError::NotPendingDeletion => Kind::NotPendingDeletion,
        };
        kind.into()
    }
}

impl From<NotAFrame> for Error {
    fn from(error: NotAFrame) -> Self {
        match error {
            NotAFrame::MadeElsewhere => Self::from(Kind::InvalidCiphertext)
                .detail("It was made by another service and cannot be decrypted here."),
            NotAFrame::Malformed => Kind::InvalidCiphertext.into(),
        }
    }
}

/// Maps an error without content to its row.
macro_rules! plain {
    ($( $error:ident => $kind:ident; )+) => {
        $( impl From<$error> for Error {
            fn from($error: $error) -> Self {
                Kind::$kind.into()
            }
        } )+
    };
}

plain! {
    InvalidKeyId => InvalidKeyId;
    InvalidSequence => InvalidSequence;
    InvalidAlias => InvalidAlias;
    InvalidDescription => InvalidDescription;
}

impl From<InvalidAad> for Error {
    fn from(InvalidAad: InvalidAad) -> Self {
        Self::from(Kind::InvalidParameter)
            .detail("additional_authenticated_data has more than 128 bytes.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_fault_is_a_server_fault_on_both_faces() {
        for kind in Kind::ALL {
            let Row { grpc, http, .. } = kind.row();
            let server_side = matches!(
                grpc,
                Code::Internal | Code::Unavailable | Code::DeadlineExceeded
            );
            assert_eq!(http.is_server_error(), server_side, "{kind:?}");
        }
    }

    #[test]
    fn a_row_is_found_by_its_name_alone() {
        for &kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.row().name), Some(kind));
        }
    }

    #[test]
    fn a_pause_is_told_where_a_repeat_can_help_and_as_long_as_it_is_known_to_be() {
        assert_eq!(Error::from(Kind::Denied).pause(), None);
        let throttled = Error::from(Kind::Throttled);
        assert_eq!(throttled.pause(), Some(PAUSE));
        let known = Duration::from_millis(20);
        assert_eq!(throttled.after(known).pause(), Some(known));
    }

    #[test]
    fn a_cause_is_not_shown_to_the_caller() {
        let error = Error::from(StoreError::Corrupt("key/p/k".to_owned()));
        assert_eq!(error.to_string(), "KMS error.");
        assert!(error.source().is_some());
    }

    #[test]
    fn a_missing_token_reads_as_the_real_gateway_words_it() {
        assert_eq!(
            Error::from(AuthError::Missing).to_string(),
            "Incorrect IAM authentication information: x-auth-token not found"
        );
    }
}
