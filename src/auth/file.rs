//! Files that are read again when they change.
//!
//! A [`Watched`] file, or several that belong together, is parsed when it is loaded and lent without
//! a lock. Whoever owns the process
//! calls [`refresh`](Watched::refresh) on a ticker, off the async threads because it reads a disk.
//! A change that does not parse changes nothing: the last good content stays until the file is
//! repaired.
//!
//! Replace such a file by renaming another over it. Whoever writes into it in place lets half a
//! file be read, which may parse.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use zeroize::Zeroizing;

/// The most bytes a watched file may have.
pub const MAX: usize = 4 * 1024 * 1024;

/// Something that follows a file.
pub trait Refresh: Send + Sync {
    /// Reads the file if it changed; says whether it did. An error leaves the last good content in
    /// use, and comes again at every call until the file is repaired. Blocks on the disk.
    fn refresh(&self) -> Result<bool, FileError>;

    /// The file.
    fn path(&self) -> &Path;
}

/// Files that belong together, at least one, and what they say.
pub struct Watched<T> {
    first: PathBuf,
    others: Vec<(PathBuf, Secrecy)>,
    secrecy: Secrecy,
    parse: Box<Parse<T>>,
    current: ArcSwap<T>,
    /// What the files looked like when `current` was read from them. The lock also makes refreshes
    /// take turns.
    seen: Mutex<Vec<Stamp>>,
}

/// Makes the content out of the texts of the files.
type Parse<T> = dyn Fn(&[Zeroizing<String>]) -> Result<T, Malformed> + Send + Sync;

/// Who may touch a file, besides its owner and its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Others may read it and not write it: it decides who is let in.
    Public,
    /// Others may do nothing with it: it holds secrets.
    Secret,
}

impl Secrecy {
    /// The permission bits that the file must not have.
    const fn forbidden(self) -> u32 {
        match self {
            Self::Public => 0o002,
            Self::Secret => 0o007,
        }
    }
}

impl<T: 'static> Watched<T> {
    /// Reads and parses a file.
    pub fn load(
        path: &Path,
        secrecy: Secrecy,
        parse: fn(&str) -> Result<T, Malformed>,
    ) -> Result<Self, FileError> {
        let only = move |texts: &[Zeroizing<String>]| match texts {
            [text] => parse(text),
            _ => parse(""),
        };
        Self::load_all(path, secrecy, Vec::new(), only)
    }

    /// Reads several files and parses them together. A change of one is a change of all: they are
    /// read again until they fit each other.
    pub fn load_all(
        first: &Path,
        secrecy: Secrecy,
        others: Vec<(PathBuf, Secrecy)>,
        parse: impl Fn(&[Zeroizing<String>]) -> Result<T, Malformed> + Send + Sync + 'static,
    ) -> Result<Self, FileError> {
        let files = files(first, secrecy, &others);
        let (stamps, texts) = read_all(files)?;
        Ok(Self {
            first: first.to_owned(),
            secrecy,
            current: ArcSwap::from_pointee(parse(&texts)?),
            parse: Box::new(parse),
            seen: Mutex::new(stamps),
            others,
        })
    }

    /// The last good content.
    pub fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    fn files(&self) -> impl Iterator<Item = (&Path, Secrecy)> {
        files(&self.first, self.secrecy, &self.others)
    }
}

fn files<'a>(
    first: &'a Path,
    secrecy: Secrecy,
    others: &'a [(PathBuf, Secrecy)],
) -> impl Iterator<Item = (&'a Path, Secrecy)> {
    let others = others.iter().map(|(path, secrecy)| (&**path, *secrecy));
    std::iter::once((first, secrecy)).chain(others)
}

/// The texts of `files`, and the stamps of the very files that were read.
fn read_all<'a>(
    files: impl Iterator<Item = (&'a Path, Secrecy)>,
) -> Result<(Vec<Stamp>, Vec<Zeroizing<String>>), FileError> {
    let read = files.enumerate().map(|(index, (path, secrecy))| {
        read(path, secrecy).map_err(|error| match index {
            0 => error,
            _ => FileError::Beside(path.to_owned(), Box::new(error)),
        })
    });
    let read: Result<Vec<_>, _> = read.collect();
    Ok(read?.into_iter().unzip())
}

impl<T: Send + Sync + 'static> Refresh for Watched<T> {
    fn refresh(&self) -> Result<bool, FileError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self
            .files()
            .map(|(path, _)| path.metadata().map(|metadata| Stamp::of(&metadata)));
        let now: Result<Vec<_>, _> = now.collect();
        if now? == *seen {
            return Ok(false);
        }
        let (stamps, texts) = read_all(self.files())?;
        self.current.store(Arc::new((self.parse)(&texts)?));
        *seen = stamps;
        Ok(true)
    }

    fn path(&self) -> &Path {
        &self.first
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.first).finish()
    }
}

/// Why a file cannot be used. Holds nothing of what the file says.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Others than its owner and its group may touch it.
    #[error("is open to others: mode {0:03o}")]
    TooOpen(u32),
    /// It has more than [`MAX`] bytes.
    #[error("has more than {MAX} bytes")]
    TooLong,
    /// Its text is not what it should be.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// Another file that belongs to it cannot be used.
    #[error("with {0}: {1}")]
    Beside(PathBuf, #[source] Box<Self>),
}

/// What is wrong with a file's text, and where. The sentence is ours and is fixed when the program
/// is built, so it cannot repeat a secret that stands in the wrong place; a parser's own messages
/// do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1, if it is known.
    pub line: Option<usize>,
    /// What is wrong there.
    pub reason: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(self.reason),
        }
    }
}

impl std::error::Error for Malformed {}

/// What tells one state of a file from another. Links are followed, because Kubernetes swaps a link
/// to publish a new version of a mounted file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    modified: (i64, i64),
    /// Unlike `modified`, nobody can set it back.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            mode: metadata.mode(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The file's text, and the stamp of the very file that was read.
fn read(path: &Path, secrecy: Secrecy) -> Result<(Stamp, Zeroizing<String>), FileError> {
    // Opening a pipe would wait for whoever writes into it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o777;
    if mode & secrecy.forbidden() != 0 {
        return Err(FileError::TooOpen(mode));
    }
    // Room for the whole file at once: a buffer that grows leaves copies behind that nobody wipes.
    let size = usize::try_from(metadata.size()).unwrap_or(MAX).min(MAX);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
    file.take(MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX {
        return Err(FileError::TooLong);
    }
    let text = str::from_utf8(&bytes).map_err(|_| Malformed {
        line: None,
        reason: "not UTF-8",
    })?;
    Ok((Stamp::of(&metadata), Zeroizing::new(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let dir = TempDir::new().unwrap();
        let file = watch(&write(&dir, "numbers", "1\n2\n"));
        assert_eq!(**file.current(), [1, 2]);
        assert!(!file.refresh().unwrap());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, "numbers", "1");
        let file = watch(&path);
        let held = file.current();
        fs::rename(write(&dir, "new", "2"), &path).unwrap();
        assert!(file.refresh().unwrap());
        assert_eq!(**file.current(), [2]);
        assert_eq!(**held, [1], "a request under way keeps what it began with");
    }

    #[test]
    fn a_swapped_link_is_followed() {
        // ConfigMap and Secret volumes: FILE -> ..data/FILE, ..data -> a directory per version.
        let dir = TempDir::new().unwrap();
        for (version, text) in [("v1", "1"), ("v2", "2")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            write(&dir, &format!("{version}/numbers"), text);
        }
        let at = |name: &str| dir.path().join(name);
        symlink("v1", at("..data")).unwrap();
        symlink("..data/numbers", at("numbers")).unwrap();
        let file = watch(&at("numbers"));
        assert_eq!(**file.current(), [1]);

        symlink("v2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(file.refresh().unwrap());
        assert_eq!(**file.current(), [2]);
    }

    #[test]
    fn a_bad_file_keeps_the_last_good_content_and_is_reported_until_repaired() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, "numbers", "1");
        let file = watch(&path);
        fs::rename(write(&dir, "new", "2\nx"), &path).unwrap();
        for _ in 0..2 {
            let error = file.refresh().unwrap_err();
            assert_eq!(error.to_string(), "line 2: not a number");
            assert_eq!(**file.current(), [1]);
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(file.refresh(), Err(FileError::Io(_))));
        assert_eq!(**file.current(), [1]);
        write(&dir, "numbers", "33");
        assert!(file.refresh().unwrap());
        assert_eq!(**file.current(), [33]);
    }

    #[test]
    fn a_file_open_to_others_is_refused() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, "numbers", "1");
        let load = |mode, secrecy| {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Watched::load(&path, secrecy, numbers).map(|_| ())
        };
        for mode in [0o400, 0o600, 0o640] {
            assert!(load(mode, Secrecy::Secret).is_ok(), "{mode:o}");
        }
        for mode in [0o644, 0o602, 0o601] {
            let result = load(mode, Secrecy::Secret);
            assert!(
                matches!(result, Err(FileError::TooOpen(m)) if m == mode),
                "{mode:o}"
            );
        }
        assert!(load(0o644, Secrecy::Public).is_ok());
        let result = load(0o666, Secrecy::Public);
        assert!(matches!(result, Err(FileError::TooOpen(0o666))));
    }

    #[test]
    fn permissions_that_are_opened_later_are_noticed() {
        let dir = TempDir::new().unwrap();
        let path = write(&dir, "numbers", "1");
        let file = watch(&path);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o604)).unwrap();
        assert!(matches!(file.refresh(), Err(FileError::TooOpen(0o604))));
    }

    #[test]
    fn what_is_no_short_text_is_refused() {
        let dir = TempDir::new().unwrap();
        let load = |path: &Path| Watched::load(path, Secrecy::Secret, numbers).unwrap_err();
        assert!(matches!(load(dir.path()), FileError::Io(_)));
        assert!(matches!(load(&dir.path().join("none")), FileError::Io(_)));
        let not_text = write(&dir, "not-text", b"1\xff");
        assert!(matches!(load(&not_text), FileError::Malformed(_)));
        let long = write(&dir, "long", vec![b' '; 4_194_305]);
        assert!(matches!(load(&long), FileError::TooLong));
        // As long as it may be, so what it says counts.
        let longest = write(&dir, "longest", vec![b' '; 4_194_304]);
        assert!(matches!(load(&longest), FileError::Malformed(_)));
    }

    #[test]
    fn files_that_belong_together_change_together() {
        let dir = TempDir::new().unwrap();
        let (first, second) = (write(&dir, "first", "1"), write(&dir, "second", "1"));
        let others = vec![(second.clone(), Secrecy::Secret)];
        let same = |texts: &[Zeroizing<String>]| match texts {
            [first, second] if first == second => Ok(String::clone(first)),
            _ => Err(Malformed {
                line: None,
                reason: "they differ",
            }),
        };
        let pair = Watched::load_all(&first, Secrecy::Secret, others, same).unwrap();
        assert!(!pair.refresh().unwrap());
        fs::rename(write(&dir, "new", "2"), &first).unwrap();
        let error = pair.refresh().unwrap_err();
        assert_eq!(error.to_string(), "they differ");
        assert_eq!(**pair.current(), "1");
        fs::rename(write(&dir, "new", "2"), &second).unwrap();
        assert!(pair.refresh().unwrap());
        assert_eq!(**pair.current(), "2");
        fs::remove_file(&second).unwrap();
        assert!(pair.refresh().is_err());
        fs::set_permissions(write(&dir, "second", "2"), PermissionsExt::from_mode(0o604)).unwrap();
        let error = pair.refresh().unwrap_err().to_string();
        assert!(error.contains("second: is open to others"), "{error}");
    }

    fn watch(path: &Path) -> Watched<Vec<u8>> {
        Watched::load(path, Secrecy::Secret, numbers).unwrap()
    }

    fn numbers(text: &str) -> Result<Vec<u8>, Malformed> {
        let numbered = text.lines().enumerate();
        let parsed = numbered.map(|(index, line)| {
            line.parse().map_err(|_| Malformed {
                line: Some(index + 1),
                reason: "not a number",
            })
        });
        parsed.collect()
    }

    fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    }
}
