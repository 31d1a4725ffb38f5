//! Credentials: from the URL, an option or a file, and fresh from the file when the server says 401
//! (tokens are rotated while we run).
//!
//! They leave this module only as a header of a request.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use percent_encoding::percent_decode_str;
use reqwest::{RequestBuilder, Url};

use crate::remote::{RemoteError, RemoteOptions, Secret};

/// Where credentials come from, and what they are now.
#[derive(Debug)]
pub(super) struct Auth {
    source: Source,
    current: RwLock<Option<Credentials>>,
}

#[derive(Debug)]
enum Source {
    Fixed,
    BasicFile(PathBuf),
    BearerFile(PathBuf),
    Netrc(PathBuf, String),
}

/// What goes into one `Authorization` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    Basic(Secret, Secret),
    Bearer(Secret),
}

impl Credentials {
    /// `request` with them.
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(user, password) => {
                request.basic_auth(user.reveal(), Some(password.reveal()))
            }
            Self::Bearer(token) => request.bearer_auth(token.reveal()),
        }
    }

    fn basic(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        Some(Self::Basic(Secret::new(user), Secret::new(password)))
    }

    /// A token is one word that a header can hold.
    fn bearer(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self::Bearer(Secret::new(text)))
    }
}

impl Auth {
    /// The credentials for `url`. Files are read now, so that a wrong one is known at once.
    pub(super) fn new(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let given = options.basic_file.is_some()
            || options.bearer_file.is_some()
            || options.bearer.is_some();
        let in_url = !url.username().is_empty() || url.password().is_some();
        if given && in_url {
            let text = "credentials: give them in the URL or by an option, not both".to_owned();
            return Err(RemoteError::Misconfigured(text));
        }
        let fixed = match &options.bearer {
            Some(token) => {
                Some(Credentials::bearer(token.reveal()).ok_or_else(|| malformed("bearer token"))?)
            }
            None if in_url => Some(from_url(url)),
            None => None,
        };
        let host = url.host_str().unwrap_or_default().to_owned();
        let source = match options {
            _ if fixed.is_some() => Source::Fixed,
            RemoteOptions {
                basic_file: Some(file),
                ..
            } => Source::BasicFile(file.clone()),
            RemoteOptions {
                bearer_file: Some(file),
                ..
            } => Source::BearerFile(file.clone()),
            RemoteOptions {
                netrc_file: Some(file),
                ..
            } => Source::Netrc(file.clone(), host),
            _ => Source::Fixed,
        };
        let current = match source.read()? {
            Some(credentials) => Some(credentials),
            None => fixed,
        };
        Ok(Self {
            source,
            current: RwLock::new(current),
        })
    }

    /// What to send.
    pub(super) fn current(&self) -> Option<Credentials> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `used` was refused: the ones to try instead, if there are others by now.
    pub(super) fn instead_of(&self, used: Option<&Credentials>) -> Option<Credentials> {
        // A file that cannot be read now is being replaced: the old ones stay.
        if let Ok(Some(fresh)) = self.source.read() {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        }
        self.current().filter(|fresh| Some(fresh) != used)
    }
}

impl Source {
    fn read(&self) -> Result<Option<Credentials>, RemoteError> {
        match self {
            Self::Fixed => Ok(None),
            Self::BasicFile(path) => {
                let found = Credentials::basic(read(path)?.trim());
                found
                    .map(Some)
                    .ok_or_else(|| malformed(&format!("{} (want user:password)", path.display())))
            }
            Self::BearerFile(path) => {
                let found = Credentials::bearer(read(path)?.trim());
                found
                    .map(Some)
                    .ok_or_else(|| malformed(&format!("{} (want one token)", path.display())))
            }
            Self::Netrc(path, host) => Ok(netrc(&read(path)?, host)),
        }
    }
}

fn read(path: &Path) -> Result<String, RemoteError> {
    let wrong =
        |error| RemoteError::Misconfigured(format!("read credentials {}: {error}", path.display()));
    fs::read_to_string(path).map_err(wrong)
}

fn malformed(what: &str) -> RemoteError {
    RemoteError::Misconfigured(format!("credentials: malformed {what}"))
}

fn from_url(url: &Url) -> Credentials {
    let decoded = |text| Secret::new(percent_decode_str(text).decode_utf8_lossy());
    Credentials::Basic(
        decoded(url.username()),
        decoded(url.password().unwrap_or_default()),
    )
}

/// The login for `host` in the text of a netrc file: that of its `machine`, or else of `default`.
fn netrc(text: &str, host: &str) -> Option<Credentials> {
    let mut words = netrc_words(text);
    let (mut ours, mut user, mut password) = (false, None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" if ours => break,
            "machine" => ours = words.next() == Some(host),
            "default" => ours = true,
            "login" if ours => user = words.next(),
            "password" if ours => password = words.next(),
            "login" | "password" | "account" => {
                words.next();
            }
            _ => {}
        }
    }
    Some(Credentials::Basic(
        Secret::new(user?),
        Secret::new(password.unwrap_or_default()),
    ))
}

/// Its words without comments and macros (`macdef NAME` up to the next empty line).
fn netrc_words(text: &str) -> impl Iterator<Item = &str> {
    let mut in_macro = false;
    let lines = text.lines().filter(move |line| {
        let begins = line.trim_start().starts_with("macdef");
        in_macro = begins || (in_macro && !line.trim().is_empty());
        !in_macro && !line.trim_start().starts_with('#')
    });
    lines.flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic(Secret::new(user), Secret::new(password)))
    }

    fn auth(url: &str, options: &RemoteOptions) -> Result<Auth, RemoteError> {
        Auth::new(&Url::parse(url).unwrap(), options)
    }

    #[test]
    fn credentials_in_the_url_are_decoded() {
        let auth = auth("http://me:p%40ss@h/", &RemoteOptions::default()).unwrap();
        assert_eq!(auth.current(), basic("me", "p@ss"));
        assert!(!format!("{auth:?}").contains("p@ss"));
    }

    #[test]
    fn netrc_finds_the_machine_and_else_the_default() {
        let text = "# mine\nmachine other login o password op\nmachine h\n\tlogin me account x password mp\n\
                    macdef init\nmachine h login bad\n\ndefault login d password dp\n";
        assert_eq!(netrc(text, "h"), basic("me", "mp"));
        assert_eq!(netrc(text, "other"), basic("o", "op"));
        assert_eq!(netrc(text, "elsewhere"), basic("d", "dp"));
        assert_eq!(netrc("machine h login me", "elsewhere"), None);
    }

    #[test]
    fn a_rotated_token_is_read_again_when_the_old_one_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "old\n").unwrap();
        let options = RemoteOptions {
            bearer_file: Some(file.clone()),
            ..RemoteOptions::default()
        };
        let auth = auth("http://h/", &options).unwrap();
        let old = auth.current();
        assert_eq!(auth.instead_of(old.as_ref()), None, "still the same");
        fs::write(&file, "new\n").unwrap();
        let new = Some(Credentials::Bearer(Secret::new("new")));
        assert_eq!(auth.instead_of(old.as_ref()), new);
        fs::remove_file(&file).unwrap();
        assert_eq!(auth.instead_of(new.as_ref()), None);
        assert_eq!(auth.current(), new, "kept while the file is away");
    }

    #[test]
    fn wrong_files_are_known_at_once_and_not_shown() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "s3cret and more").unwrap();
        for options in [
            RemoteOptions {
                basic_file: Some(file.clone()),
                ..RemoteOptions::default()
            },
            RemoteOptions {
                bearer_file: Some(file),
                ..RemoteOptions::default()
            },
            RemoteOptions {
                netrc_file: Some(dir.path().join("missing")),
                ..RemoteOptions::default()
            },
        ] {
            let error = auth("http://h/", &options).unwrap_err();
            assert!(
                matches!(error, RemoteError::Misconfigured(_))
                    && !error.to_string().contains("s3cret")
            );
        }
        let both = RemoteOptions {
            bearer: Some(Secret::new("t")),
            ..RemoteOptions::default()
        };
        assert!(auth("http://u:p@h/", &both).is_err());
    }
}
