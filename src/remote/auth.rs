//! Credentials: from a file, the URL or the environment, and fresh from the file when the server says 401
//! (tokens are rotated while we run).
//!
//! What was said most plainly counts: `basic_file` or `bearer_file`; then the URL's user, whose password is in
//! `netrc_file` where that is given; then what `netrc_file` has for the host; then the token in the environment.
//!
//! They leave this module only as a header of a request.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use percent_encoding::percent_decode_str;
#[cfg(feature = "http")]
use reqwest::RequestBuilder;
use url::Url;

use crate::remote::{RemoteError, RemoteOptions, Secret, netrc};

/// Where credentials come from, and what they are now.
#[derive(Debug)]
pub(in crate::remote) struct Auth {
    source: Source,
    current: RwLock<Option<Credentials>>,
}

#[derive(Debug)]
enum Source {
    Fixed,
    BasicFile(PathBuf),
    BearerFile(PathBuf),
    /// A file, the host, and the user whose password is wanted, if not any.
    Netrc(PathBuf, String, Option<Secret>),
}

/// What goes into one `Authorization` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::remote) enum Credentials {
    Basic(Secret, Secret),
    Bearer(Secret),
}

impl Credentials {
    /// `request` with them.
    #[cfg(feature = "http")]
    pub(in crate::remote) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(user, password) => {
                request.basic_auth(user.reveal(), Some(password.reveal()))
            }
            Self::Bearer(token) => request.bearer_auth(token.reveal()),
        }
    }

    /// The value of an `Authorization` header.
    #[cfg(feature = "grpc")]
    pub(in crate::remote) fn header(&self) -> Secret {
        use base64::Engine;
        Secret::new(match self {
            Self::Basic(user, password) => {
                let both = format!("{}:{}", user.reveal(), password.reveal());
                let coded = base64::engine::general_purpose::STANDARD.encode(both);
                format!("Basic {coded}")
            }
            Self::Bearer(token) => format!("Bearer {}", token.reveal()),
        })
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
    pub(in crate::remote) fn new(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let (source, fixed) = Source::choose(url, options)?;
        let current = source.read()?.or(fixed);
        Ok(Self {
            source,
            current: RwLock::new(current),
        })
    }

    /// No credentials.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(in crate::remote) fn none() -> Self {
        Self {
            source: Source::Fixed,
            current: RwLock::new(None),
        }
    }

    /// What to send.
    pub(in crate::remote) fn current(&self) -> Option<Credentials> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// `used` was refused: the ones to try instead, if there are others by now.
    pub(in crate::remote) fn instead_of(&self, used: Option<&Credentials>) -> Option<Credentials> {
        // A file that cannot be read now is being replaced: the old ones stay.
        if let Ok(Some(fresh)) = self.source.read() {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(fresh);
        }
        self.current().filter(|fresh| Some(fresh) != used)
    }
}

impl Source {
    /// Where they come from, and what they are if that is no file.
    fn choose(
        url: &Url,
        options: &RemoteOptions,
    ) -> Result<(Self, Option<Credentials>), RemoteError> {
        let user = Some(url.username()).filter(|user| !user.is_empty());
        let host = url.host_str().unwrap_or_default().to_owned();
        if let Some(file) = &options.basic_file {
            return Ok((Self::BasicFile(file.clone()), None));
        }
        if let Some(file) = &options.bearer_file {
            return Ok((Self::BearerFile(file.clone()), None));
        }
        if let (Some(file), None) = (&options.netrc_file, url.password()) {
            return Ok((Self::Netrc(file.clone(), host, user.map(decoded)), None));
        }
        if user.is_some() || url.password().is_some() {
            return Ok((Self::Fixed, Some(from_url(url))));
        }
        let token = options.bearer.as_ref().map(|token| {
            Credentials::bearer(token.reveal())
                .ok_or_else(|| malformed("CACHEDIRFS_BEARER_TOKEN (want one token)"))
        });
        Ok((Self::Fixed, token.transpose()?))
    }

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
            Self::Netrc(path, host, None) => Ok(netrc(&read(path)?, host, None)),
            Self::Netrc(path, host, Some(user)) => {
                let found = netrc(&read(path)?, host, Some(user.reveal()));
                let lacks = || {
                    RemoteError::Misconfigured(format!(
                        "credentials: {} has no login at {host} for the user in the URL",
                        path.display()
                    ))
                };
                found.map(Some).ok_or_else(lacks)
            }
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

fn decoded(text: &str) -> Secret {
    Secret::new(percent_decode_str(text).decode_utf8_lossy())
}

fn from_url(url: &Url) -> Credentials {
    Credentials::Basic(
        decoded(url.username()),
        decoded(url.password().unwrap_or_default()),
    )
}

/// The login for `host` in the text of a netrc file, that of `user` if one is wanted.
fn netrc(text: &str, host: &str, user: Option<&str>) -> Option<Credentials> {
    let (user, password) = netrc::login(text, host, user)?;
    Some(Credentials::Basic(user, password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert_eq!(netrc(text, "h", None), basic("me", "mp"));
        assert_eq!(netrc(text, "other", None), basic("o", "op"));
        assert_eq!(netrc(text, "elsewhere", None), basic("d", "dp"));
        assert_eq!(netrc("machine h login me", "elsewhere", None), None);
    }

    /// `https://me@host` with a netrc file once sent an empty password.
    #[test]
    fn netrc_has_the_password_of_the_user_in_the_url() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("netrc");
        fs::write(
            &file,
            "machine h login you password yp\nmachine h password mp login m@e",
        )
        .unwrap();
        let options = RemoteOptions {
            netrc_file: Some(file),
            bearer: Some(Secret::new("t")),
            ..RemoteOptions::default()
        };
        let sent = |url| auth(url, &options).unwrap().current();
        assert_eq!(sent("http://m%40e@h/"), basic("m@e", "mp"));
        assert_eq!(sent("http://h/"), basic("you", "yp"));
        let said = auth("http://him@h/", &options).unwrap_err().to_string();
        assert!(
            said.contains("netrc has no login at h") && !said.contains("him"),
            "{said}"
        );
    }

    proptest! {
        /// Words of the language in any order, and noise between them.
        #[test]
        fn any_text_is_a_netrc(words in prop::collection::vec(prop_oneof![
            "(machine|default|login|password|account|macdef|#)", "(h|me|\n\n|\n|\t)", "\\PC{0,6}",
        ], 0..24)) {
            let text = words.join(" ");
            for user in [None, Some("me")] {
                if let Some(Credentials::Basic(found, password)) = netrc(&text, "h", user) {
                    prop_assert!(user.is_none_or(|user| found.reveal() == user));
                    prop_assert!(text.contains(found.reveal()) && text.contains(password.reveal()));
                }
            }
        }

        /// Whatever a machine is followed by, its login is not handed to another one.
        #[test]
        fn a_login_goes_to_its_machine_alone(host in "[a-z.]{1,9}", user in "[a-z]{1,9}", password in "[!-~&&[^#]]{1,9}") {
            let text = format!("machine {host} login {user} password {password}");
            prop_assert_eq!(netrc(&text, &host, None), basic(&user, &password));
            prop_assert_eq!(netrc(&text, "elsewhere!", None), None);
        }
    }

    #[test]
    fn an_option_outweighs_the_url_and_that_the_environment() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("basic");
        fs::write(&file, "a:b").unwrap();
        let environment = RemoteOptions {
            bearer: Some(Secret::new("t")),
            ..RemoteOptions::default()
        };
        let sent = |url, options: &RemoteOptions| auth(url, options).unwrap().current();
        let token = Some(Credentials::Bearer(Secret::new("t")));
        assert_eq!(sent("http://h/", &environment), token);
        assert_eq!(sent("http://u@h/", &environment), basic("u", ""));
        let option = RemoteOptions {
            basic_file: Some(file),
            ..environment
        };
        assert_eq!(sent("http://u@h/", &option), basic("a", "b"));
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
        let token = RemoteOptions {
            bearer: Some(Secret::new("s3cret and more")),
            ..RemoteOptions::default()
        };
        let said = auth("http://h/", &token).unwrap_err().to_string();
        assert!(
            said.contains("CACHEDIRFS_BEARER_TOKEN") && !said.contains("s3cret"),
            "{said}"
        );
    }
}
