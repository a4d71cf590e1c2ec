//! The module, its token, and the sessions in which the token works.
//!
//! A session is used by one thread at a time, so there is a bounded pool of them, opened when first
//! needed. Whoever finds that the token is gone says so; then a thread, the keeper, waits until all
//! sessions are given back, and starts the module anew (`C_Finalize`, `C_Initialize`, log in) until
//! that works. Modules differ in what a lost token leaves behind, and this way alone is good for all
//! of them. Meanwhile calls fail at once.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::crypto::pkcs11::{Fault, ModuleError};

/// Where the token is, and how to log in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The module, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The file with the user's PIN on one line.
    pub pin_file: PathBuf,
    /// How many sessions work at a time.
    pub sessions: usize,
}

/// How long a call waits for one of the sessions, and for the token to come back; and the end of the
/// program for the module.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the keeper rests between two attempts to find the token.
const REST: Duration = Duration::from_secs(1);

/// More than any PIN.
const MAX_PIN: usize = 1024;

/// A token, logged in to.
pub struct Module {
    shared: Arc<Shared>,
    /// The keeper, until the module is dropped.
    keeper: Option<JoinHandle<()>>,
}

struct Shared {
    settings: Settings,
    library: Pkcs11,
    state: Mutex<State>,
    /// Told of every change that somebody may wait for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The token's slot, while the token answers.
    slot: Option<Slot>,
    /// The session that was logged in, in which nothing else is done: all others are logged in for
    /// as long as it is open.
    login: Option<Session>,
    /// Sessions that nobody uses.
    idle: Vec<Session>,
    /// How many sessions are in use.
    used: usize,
    /// How often the keeper has looked for the token.
    attempts: u64,
    /// The PIN that the token refused.
    refused: Option<Pin>,
    closing: bool,
    /// The keeper has ended the module for good.
    closed: bool,
}

impl Module {
    /// Loads the module, finds the token and logs in.
    pub fn open(settings: Settings) -> Result<Self, ModuleError> {
        let library = Pkcs11::new(&settings.module)?;
        // Libraries that have once run seldom survive being unloaded, so this one stays.
        std::mem::forget(library.clone());
        let shared = Arc::new(Shared {
            settings,
            library,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        shared.connect()?;
        let keeper = Arc::clone(&shared);
        let keeper = thread::Builder::new()
            .name("pkcs11".to_owned())
            .spawn(move || keeper.keep())
            .map_err(ModuleError::Thread)?;
        Ok(Self {
            shared,
            keeper: Some(keeper),
        })
    }

    /// Whether the token answered when it was last asked.
    pub fn is_connected(&self) -> bool {
        self.shared.lock().slot.is_some()
    }

    /// Does `job` in a session that reads. It may be done a second time if the token was lost and
    /// came back.
    pub(super) fn run<T>(&self, job: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Fault> {
        self.patiently(false, job)
    }

    /// Does `job` with the one object that `template` finds. If the token has none, or more than one,
    /// that is so for this object alone: nobody else loses the token.
    pub(super) fn run_with<T>(
        &self,
        template: &[Attribute],
        job: impl Fn(&Session, ObjectHandle) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let done = self.run(|session| match find(session, template)? {
            Some(object) => job(session, object).map(Some),
            None => Ok(None),
        })?;
        done.ok_or_else(|| Fault::Unavailable("the token has not one such key".into()))
    }

    /// The same as `run` in a session that makes or destroys objects of the token. It is not begun a second time:
    /// a token that was lost in the middle may have made what it was asked for.
    pub(super) fn write<T>(&self, job: impl Fn(&Session) -> Result<T, Error>) -> Result<T, Fault> {
        self.patiently(true, job)
    }

    fn patiently<T>(
        &self,
        writes: bool,
        job: impl Fn(&Session) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let (error, attempts) = match self.once(writes, &job) {
            Err(Attempt::Lost {
                error,
                attempts,
                begun,
            }) if !(writes && begun) => (error, attempts),
            other => return other.map_err(Attempt::into_fault),
        };
        if self.shared.await_attempt(attempts) {
            return self.once(writes, &job).map_err(Attempt::into_fault);
        }
        Err(Fault::Unavailable(error.into()))
    }

    fn once<T>(
        &self,
        writes: bool,
        job: &impl Fn(&Session) -> Result<T, Error>,
    ) -> Result<T, Attempt> {
        let (place, session) = self.shared.lease(writes)?;
        match job(&session) {
            Ok(done) => {
                if !writes {
                    place.give_back(session);
                }
                Ok(done)
            }
            Err(error) if is_lost(&error, &session) => {
                let lost = self.shared.lose(error, true);
                drop(session);
                drop(place);
                Err(lost)
            }
            // A failed operation may have left the session amid something: it is closed.
            Err(error) if is_passing(&error) => {
                Err(Attempt::Failed(Fault::Unavailable(error.into())))
            }
            Err(error) => Err(Attempt::Failed(Fault::Refused(error))),
        }
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({:?})", self.shared.settings.token)
    }
}

/// Waits for the module's end: a process that exits takes the library's globals down, and whoever is
/// in the library then crashes. A module that hangs is left to itself, and so is a job that outlives the
/// server which gave it up: it holds the module.
impl Drop for Module {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        let open = |state: &mut State| !state.closed;
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), PATIENCE, open);
        let closed = waited.unwrap_or_else(PoisonError::into_inner).0.closed;
        if let Some(keeper) = self.keeper.take().filter(|_| closed) {
            // It has nothing left to do.
            let _ended = keeper.join();
        }
    }
}

/// How one attempt at a job failed.
enum Attempt {
    /// The token is gone.
    Lost {
        error: Error,
        /// How often the keeper had looked for it by then.
        attempts: u64,
        /// Whether the job had been begun.
        begun: bool,
    },
    Failed(Fault),
}

impl Attempt {
    fn into_fault(self) -> Fault {
        match self {
            Self::Lost { error, .. } => Fault::Unavailable(error.into()),
            Self::Failed(fault) => fault,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if it did, the state would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session, or waits for one.
    fn lease(&self, writes: bool) -> Result<(Place<'_>, Session), Attempt> {
        let busy = |state: &mut State| state.slot.is_some() && state.used >= self.settings.sessions;
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, busy);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = state.slot else {
            return Err(unavailable("the token is not there"));
        };
        if waited.timed_out() {
            return Err(unavailable("all sessions of the token are in use"));
        }
        state.used += 1;
        let idle = if writes { None } else { state.idle.pop() };
        drop(state);
        let place = Place(self);
        let mut opened = idle.map_or_else(|| self.open_session(slot, writes), Ok);
        if opened.as_ref().is_err_and(is_passing) {
            // The token may have no more of them than are kept here.
            let idle = std::mem::take(&mut self.lock().idle);
            if !idle.is_empty() {
                drop(idle);
                opened = self.open_session(slot, writes);
            }
        }
        match opened {
            Ok(session) => Ok((place, session)),
            Err(error) if is_passing(&error) => {
                Err(Attempt::Failed(Fault::Unavailable(error.into())))
            }
            // Where no session can be opened for another reason, there is no token.
            Err(error) => Err(self.lose(error, false)),
        }
    }

    fn open_session(&self, slot: Slot, writes: bool) -> Result<Session, Error> {
        if writes {
            self.library.open_rw_session(slot)
        } else {
            self.library.open_ro_session(slot)
        }
    }

    /// Notes that the token is gone. Whoever says so has a place still: without one, the keeper may have
    /// brought the token back meanwhile.
    fn lose(&self, error: Error, begun: bool) -> Attempt {
        let mut state = self.lock();
        if state.slot.take().is_some() {
            tracing::warn!(%error, "the pkcs11 token is lost");
        }
        let attempts = state.attempts;
        drop(state);
        self.changed.notify_all();
        Attempt::Lost {
            error,
            attempts,
            begun,
        }
    }

    /// Waits until the keeper has looked for the token again. Says whether it is there.
    fn await_attempt(&self, attempts: u64) -> bool {
        let waiting = |state: &mut State| state.attempts == attempts && !state.closing;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.slot.is_some()
    }

    /// Brings a lost token back, until the module is dropped.
    fn keep(&self) {
        let mut told = None;
        loop {
            let well = |state: &mut State| state.slot.is_some() && !state.closing || state.used > 0;
            let waited = self.changed.wait_while(self.lock(), well);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            // Nobody has a session now, and nobody gets one without a slot.
            state.slot = None;
            let sessions = (state.login.take(), std::mem::take(&mut state.idle));
            let closing = state.closing;
            drop(state);
            drop(sessions);
            if let Err(error) = self.library.clone().finalize() {
                tracing::debug!(%error, "the pkcs11 module does not end");
            }
            if closing {
                self.lock().closed = true;
                self.changed.notify_all();
                return;
            }
            let found = self.connect();
            let mut state = self.lock();
            state.attempts += 1;
            self.changed.notify_all();
            match found {
                Ok(()) => {
                    tracing::info!("the pkcs11 token is back");
                    told = None;
                }
                Err(error) => {
                    // What stays as it is is told once.
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "cannot reach the pkcs11 token");
                        told = Some(error);
                    }
                    let closing = |state: &mut State| !state.closing;
                    drop(self.changed.wait_timeout_while(state, REST, closing));
                }
            }
        }
    }

    /// Starts the module, finds the token and logs in.
    fn connect(&self) -> Result<(), ModuleError> {
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        match self.library.initialize(arguments) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        let slot = self.find_token()?;
        let session = self.library.open_ro_session(slot)?;
        self.log_in(slot, &session)?;
        let mut state = self.lock();
        state.slot = Some(slot);
        state.login = Some(session);
        Ok(())
    }

    fn find_token(&self) -> Result<Slot, ModuleError> {
        let label = &self.settings.token;
        let slots = self.library.get_slots_with_token()?;
        let mut found = slots.into_iter().filter(|slot| {
            let info = self.library.get_token_info(*slot);
            info.is_ok_and(|info| info.token_initialized() && info.label() == label)
        });
        let slot = found.next();
        let slot = slot.ok_or_else(|| ModuleError::NoToken(label.clone()))?;
        match found.next() {
            Some(_) => Err(ModuleError::TokenTwice(label.clone())),
            None => Ok(slot),
        }
    }

    fn log_in(&self, slot: Slot, session: &Session) -> Result<(), ModuleError> {
        let pin = read_pin(&self.settings.pin_file)?;
        if self.lock().refused.as_ref() == Some(&pin) {
            return Err(ModuleError::PinRefused);
        }
        if self.library.get_token_info(slot)?.user_pin_final_try() {
            return Err(ModuleError::LastTry);
        }
        let secret = AuthPin::new(pin.text.as_str().into());
        match session.login(UserType::User, Some(&secret)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                self.lock().refused = Some(pin);
                Err(ModuleError::PinRefused)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn unavailable(why: &'static str) -> Attempt {
    Attempt::Failed(Fault::Unavailable(why.into()))
}

/// The right to have one session.
struct Place<'a>(&'a Shared);

impl Place<'_> {
    /// Keeps the session for the next call, unless the token was lost meanwhile.
    fn give_back(self, session: Session) {
        let mut state = self.0.lock();
        if state.slot.is_some() {
            state.idle.push(session);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().used -= 1;
        self.0.changed.notify_all();
    }
}

/// Whether `error` means that the token is gone.
fn is_lost(error: &Error, session: &Session) -> bool {
    let Error::Pkcs11(code, _) = error else {
        return false;
    };
    match code {
        RvError::CryptokiNotInitialized
        | RvError::DeviceRemoved
        | RvError::LibraryLoadFailed
        | RvError::SessionClosed
        | RvError::SessionHandleInvalid
        | RvError::SlotIdInvalid
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::UserNotLoggedIn => true,
        // Modules say these both of bytes that do not decrypt and of a token that is gone, so the
        // token is asked something that does not depend on the bytes.
        RvError::DeviceError
        | RvError::FunctionFailed
        | RvError::GeneralError
        | RvError::KeyHandleInvalid
        | RvError::ObjectHandleInvalid => !answers(session),
        _ => false,
    }
}

/// Whether `error` says nothing of what was asked: the module is short of something, and may not be
/// the next time.
const fn is_passing(error: &Error) -> bool {
    matches!(
        error,
        Error::Pkcs11(
            RvError::CantLock
                | RvError::DeviceMemory
                | RvError::FunctionCanceled
                | RvError::HostMemory
                | RvError::PinExpired
                | RvError::SessionCount,
            _,
        )
    )
}

fn answers(session: &Session) -> bool {
    let objects = session.iter_objects(&[Attribute::Token(true)]);
    objects.is_ok_and(|mut objects| matches!(objects.next(), Some(Ok(_))))
}

/// The one object that `template` finds; more than one is as good as none.
///
/// A search is no failure where a session is logged in no more, and where some modules' token was
/// taken away: it finds nothing. So the session is asked whether what was not found can be believed.
fn find(session: &Session, template: &[Attribute]) -> Result<Option<ObjectHandle>, Error> {
    if let [object] = *session.find_objects(template)? {
        return Ok(Some(object));
    }
    let state = session.get_session_info().map(|info| info.session_state());
    let logged_in = matches!(state, Ok(SessionState::RoUser | SessionState::RwUser));
    if logged_in && answers(session) {
        Ok(None)
    } else {
        Err(Error::Pkcs11(
            RvError::TokenNotRecognized,
            Function::FindObjects,
        ))
    }
}

/// Decrypts bytes from elsewhere.
///
/// Codes with which modules refuse bytes are those of faults that pass, too, so what is refused is tried
/// once more; and whatever the code is, or the time would tell the codes apart.
pub(super) fn decrypt(
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    ciphertext: &[u8],
) -> Result<Vec<u8>, Error> {
    let first = match session.decrypt(mechanism, key, ciphertext) {
        Err(error @ Error::Pkcs11(_, Function::Decrypt)) => error,
        other => return other,
    };
    match session.decrypt(mechanism, key, ciphertext) {
        // The module did not end what it refused, so it cannot be asked again here.
        Err(Error::Pkcs11(RvError::OperationActive, Function::DecryptInit)) => Err(first),
        again => again,
    }
}

/// A PIN, and what tells its file from one that was written since: whoever had the token take the same
/// PIN again writes it anew, and it is tried again.
#[derive(PartialEq)]
struct Pin {
    text: Zeroizing<String>,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Reads the PIN from a file that neither "others" may read nor write, like a root key's.
fn read_pin(path: &Path) -> Result<Pin, ModuleError> {
    let shown = || path.display().to_string();
    let failed = |error: io::Error| ModuleError::PinFile(shown(), error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o007 != 0 {
        return Err(ModuleError::PinTooOpen(shown()));
    }
    // Room enough that the buffer never grows and leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * MAX_PIN));
    let read = file.take(MAX_PIN as u64 + 1).read_to_string(&mut text);
    read.map_err(failed)?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.contains('\n') || text.len() > MAX_PIN {
        return Err(ModuleError::PinMalformed(shown()));
    }
    Ok(Pin {
        text: Zeroizing::new(line.to_owned()),
        inode: metadata.ino(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_pin_that_is_written_anew_is_another_try() {
        let dir = TempDir::new().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "4321\n").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        };
        let path = write("pin");
        let pin = read_pin(&path).unwrap();
        assert!(pin == read_pin(&path).unwrap());
        fs::rename(write("new"), &path).unwrap();
        let again = read_pin(&path).unwrap();
        assert_eq!(*again.text, *pin.text);
        assert!(pin != again);
    }
}
