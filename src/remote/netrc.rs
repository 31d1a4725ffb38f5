//! Logins by host, in the form that curl and git read: `machine HOST login USER password PASSWORD`.
//!
//! This module opens no file and knows no protocol.

use crate::remote::Secret;

/// User and password for `host` in the text of a netrc file, those of `user` if one is wanted: of its `machine`, or else of
/// `default`.
pub(super) fn login(text: &str, host: &str, user: Option<&str>) -> Option<(Secret, Secret)> {
    let mut words = words(text);
    let mut logins: Vec<Login<'_>> = Vec::new();
    while let Some(word) = words.next() {
        match (word, logins.last_mut()) {
            ("machine", _) => logins.push(Login::at(words.next())),
            ("default", _) => logins.push(Login::at(None)),
            ("login", Some(login)) => login.user = words.next(),
            ("password", Some(login)) => login.password = words.next(),
            ("login" | "password" | "account", _) => {
                words.next();
            }
            _ => {}
        }
    }
    let fits = |login: &&Login<'_>| {
        login.machine.is_none_or(|machine| machine == host)
            && login
                .user
                .is_some_and(|found| user.is_none_or(|wanted| wanted == found))
    };
    let login = logins.iter().find(fits)?;
    Some((
        Secret::new(login.user?),
        Secret::new(login.password.unwrap_or_default()),
    ))
}

/// One entry of a netrc file; without a machine it is the default.
struct Login<'a> {
    machine: Option<&'a str>,
    user: Option<&'a str>,
    password: Option<&'a str>,
}

impl<'a> Login<'a> {
    fn at(machine: Option<&'a str>) -> Self {
        Self {
            machine,
            user: None,
            password: None,
        }
    }
}

/// Its words without comments and macros (`macdef NAME` up to the next empty line).
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut in_macro = false;
    let lines = text.lines().filter(move |line| {
        let begins = line.trim_start().starts_with("macdef");
        in_macro = begins || (in_macro && !line.trim().is_empty());
        !in_macro && !line.trim_start().starts_with('#')
    });
    lines.flat_map(str::split_whitespace)
}
