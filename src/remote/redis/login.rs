//! Who we are to a Redis: the user in the URL, and the password from `basic_file` or `netrc_file`, never from the URL, which
//! anybody can see. Read again when a server does not know the password any more: passwords are rotated while we run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::remote::redis::wire::shown;
use crate::remote::{RemoteError, RemoteOptions, Secret, netrc};

/// Where the password comes from, and what it is now.
#[derive(Debug)]
pub(super) struct Login {
    source: Source,
    user: Option<Secret>,
    current: RwLock<Option<Credentials>>,
}

#[derive(Debug)]
enum Source {
    Nothing,
    File(PathBuf),
    /// A file and the host.
    Netrc(PathBuf, String),
}

/// What goes into one AUTH; without a user it is the server's default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: Option<Secret>,
    pub(super) password: Secret,
}

impl Login {
    /// The login for `url`. Files are read now, so that a wrong one is known at once.
    pub(super) fn new(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let wrong = |why: &str| {
            Err(RemoteError::Misconfigured(format!(
                "remote {}: {why}",
                shown(url)
            )))
        };
        if url.password().is_some() {
            return wrong(
                "a password in a URL can be seen by everybody; write it into a file and name that with -o basic_file=FILE",
            );
        }
        if options.bearer_file.is_some() {
            return wrong("a Redis takes no bearer token; its password is -o basic_file=FILE");
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        let source = match (&options.basic_file, &options.netrc_file) {
            (Some(file), _) => Source::File(file.clone()),
            (None, Some(file)) => Source::Netrc(file.clone(), host),
            (None, None) => Source::Nothing,
        };
        let user = Some(url.username()).filter(|user| !user.is_empty());
        let mut login = Self {
            source,
            user: user.map(|user| Secret::new(percent_decode_str(user).decode_utf8_lossy())),
            current: RwLock::default(),
        };
        login.current = RwLock::new(login.read()?);
        Ok(login)
    }

    /// What to send; `None` when the server is to take us without.
    pub(super) fn current(&self) -> Option<Credentials> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// `used` was refused: the ones to try instead, if there are others by now.
    pub(super) fn instead_of(&self, used: Option<&Credentials>) -> Option<Credentials> {
        // A file that cannot be read now is being replaced: the old ones stay.
        if let Ok(Some(fresh)) = self.read() {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        }
        self.current().filter(|fresh| Some(fresh) != used)
    }

    fn read(&self) -> Result<Option<Credentials>, RemoteError> {
        match &self.source {
            // A user may have no password.
            Source::Nothing => Ok(self.user.clone().map(|user| Credentials {
                user: Some(user),
                password: Secret::new(""),
            })),
            Source::File(path) => {
                let text = read(path)?;
                let text = text.trim_end_matches(['\n', '\r']);
                if text.is_empty() {
                    let path = path.display();
                    return Err(RemoteError::Misconfigured(format!(
                        "credentials: {path} is empty (want user:password, or a password)"
                    )));
                }
                Ok(Some(self.spelled(text)))
            }
            Source::Netrc(path, host) => {
                let user = self.user.as_ref().map(Secret::reveal);
                let found = netrc::login(&read(path)?, host, user);
                if found.is_none() && user.is_some() {
                    let path = path.display();
                    return Err(RemoteError::Misconfigured(format!(
                        "credentials: {path} has no login at {host} for the user in the URL"
                    )));
                }
                Ok(found.map(|(user, password)| Credentials {
                    user: Some(user),
                    password,
                }))
            }
        }
    }

    /// `user:password`, or only a password: of the user in the URL, whose name may stand before it, or of the default user.
    fn spelled(&self, text: &str) -> Credentials {
        let (user, password) = match &self.user {
            Some(user) => {
                let named = text.strip_prefix(user.reveal());
                let password = named.and_then(|rest| rest.strip_prefix(':'));
                (Some(user.clone()), password.unwrap_or(text))
            }
            None => match text.split_once(':') {
                Some((user, password)) => {
                    let user = Some(user).filter(|user| !user.is_empty());
                    (user.map(Secret::new), password)
                }
                None => (None, text),
            },
        };
        Credentials {
            user,
            password: Secret::new(password),
        }
    }
}

fn read(path: &Path) -> Result<String, RemoteError> {
    let wrong =
        |error| RemoteError::Misconfigured(format!("read credentials {}: {error}", path.display()));
    fs::read_to_string(path).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(url: &str, text: &str, netrc: bool) -> Result<Option<(String, String)>, RemoteError> {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, text).unwrap();
        let mut options = RemoteOptions::default();
        *(if netrc {
            &mut options.netrc_file
        } else {
            &mut options.basic_file
        }) = Some(file);
        let login = Login::new(&Url::parse(url).unwrap(), &options)?;
        // The directory's random name may have it.
        let shown = format!("{login:?}").replace(&dir.path().display().to_string(), "");
        assert!(!shown.contains("pw"), "{login:?}");
        let shown = |secret: &Secret| secret.reveal().to_owned();
        Ok(login.current().map(|found| {
            let user = found.user.as_ref().map(shown).unwrap_or_default();
            (user, shown(&found.password))
        }))
    }

    #[test]
    fn the_password_comes_from_a_file_and_the_user_from_the_url_or_the_file() {
        for (url, text, user, password) in [
            ("redis://h", "pw\n", "", "pw"),
            ("redis://h", "me:p:w\n", "me", "p:w"),
            ("redis://h", ":p:w", "", "p:w"),
            ("redis://m%40e@h", "pw:x", "m@e", "pw:x"),
            ("redis://m%40e@h", "m@e:pw", "m@e", "pw"),
        ] {
            let expected = (user.to_owned(), password.to_owned());
            assert_eq!(
                found(url, text, false).unwrap(),
                Some(expected),
                "{url} {text}"
            );
        }
        assert!(found("redis://h", "\n", false).is_err());
        let netrc = "machine h login me password pw";
        let expected = Some(("me".to_owned(), "pw".to_owned()));
        assert_eq!(found("redis://h", netrc, true).unwrap(), expected);
        assert_eq!(found("redis://me@h", netrc, true).unwrap(), expected);
        assert_eq!(found("redis://other", netrc, true).unwrap(), None);
        assert!(found("redis://you@h", netrc, true).is_err());
    }

    #[test]
    fn a_password_in_the_url_and_a_token_are_refused_and_not_shown() {
        let url = Url::parse("redis://me:s3cret@h").unwrap();
        let error = Login::new(&url, &RemoteOptions::default()).unwrap_err();
        assert!(matches!(error, RemoteError::Misconfigured(_)), "{error:?}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        let options = RemoteOptions {
            bearer_file: Some(PathBuf::from("f")),
            ..RemoteOptions::default()
        };
        assert!(Login::new(&Url::parse("redis://h").unwrap(), &options).is_err());
    }
}
