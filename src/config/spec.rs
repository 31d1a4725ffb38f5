//! Several remotes in one argument: tiers, their attributes, and shards.
//!
//! ```text
//! REMOTE  = TIER { white space TIER }
//! TIER    = URL { "|" ATTRIBUTE }          rw, ro, off, or an option that concerns one remote: NAME=VALUE
//! URL     = text, with at most one group of shards in it
//! GROUP   = "{" SHARD { "," SHARD } "}"    each stands for the group in the URL
//! SHARD   = NAME [ "(" WEIGHT ")" ]        or FROM..TO, which is each number from the one to the other
//! ```
//!
//! A space, `|`, `{` or `}` of a URL is percent-encoded, as is `%`, `|` or a space in the value of an attribute.
//! A text may be anything that was meant to be a URL, so an error shows of it only what cannot be a credential.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::places::{RemoteUrl, has_odd_port, scheme_len};
use super::{ConfigError, Draft, Host, options, places, remote_options};
use crate::remote::RemoteOptions;

/// Most remotes in all, and in one tier: each has a thread and connections of its own.
const MOST_SHARDS: usize = 64;
/// Most tiers: more is a mistake, and a set of them is kept in the bits of a word.
const MOST_TIERS: usize = 16;
/// The greatest weight: beyond, the smallest shard would get nothing.
const MOST_WEIGHT: f64 = 1e6;

/// What a mount may do with a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is read and written.
    ReadWrite,
    /// It is never written.
    ReadOnly,
}

impl Mode {
    /// As it is written in an attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
        }
    }
}

/// One of the remotes that are asked one after the other.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Whether it is written.
    pub mode: Mode,
    /// The URLs that share its entries; one, unless the tier was written with braces.
    pub shards: Vec<Shard>,
    /// What its remotes are opened with, but for the key.
    pub remote_options: RemoteOptions,
    /// File with the key that its objects are authenticated with.
    pub key_file: Option<PathBuf>,
    /// Latest first byte of a lookup.
    pub lookup_timeout: Duration,
    /// The tier as a whole, without credentials.
    pub shown: String,
    /// What stands behind it: `|ro|layout=flat`. Names of files, never what is in them.
    pub attributes: String,
}

/// A part of a tier.
#[derive(Clone, Debug)]
pub struct Shard {
    /// What decides which entries are its own: the text in the braces, without credentials.
    pub name: String,
    /// How many it gets compared with the others.
    pub weight: f64,
    /// Where it is.
    pub url: RemoteUrl,
}

/// The tiers that `texts` name, in order, with the options in `draft` as defaults; those that are off are left out.
pub(super) fn tiers(
    texts: &[String],
    draft: &Draft,
    default_timeout: Duration,
    host: &Host,
) -> Result<Vec<Tier>, ConfigError> {
    let words: Vec<_> = texts
        .iter()
        .flat_map(|text| text.split_ascii_whitespace())
        .collect();
    if words.is_empty() {
        // Says what would be right.
        RemoteUrl::new("")?;
    }
    let mut tiers = Vec::new();
    for word in &words {
        let (url, attributes) = word.split_once('|').unwrap_or((word, ""));
        if !attributes.split('|').all(is_attribute) {
            // Not repeated: it may be the end of a password with a `|` in it.
            return Err(ConfigError::Remote {
                remote: "...".to_owned(),
                why: "what stands behind | is no attribute; expected rw, ro, off or NAME=VALUE (a | in a URL is written %7C)"
                    .to_owned(),
            });
        }
        let group = Group::parse(url)?;
        tiers.extend(tier(url, group, attributes, draft, default_timeout, host)?);
    }
    let refuse = |why: &str| {
        Err(ConfigError::Remote {
            remote: format!("{} tiers", words.len()),
            why: why.to_owned(),
        })
    };
    match tiers.len() {
        0 => refuse("all are off; at least one has to be rw or ro"),
        n if n > MOST_TIERS => refuse("more than 16 cannot be used at once"),
        _ if tiers.iter().map(|tier| tier.shards.len()).sum::<usize>() > MOST_SHARDS => {
            refuse("more than 64 remotes cannot be used at once")
        }
        _ => Ok(tiers),
    }
}

fn is_attribute(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    name.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn tier(
    typed: &str,
    group: Option<Group<'_>>,
    attributes: &str,
    draft: &Draft,
    default_timeout: Duration,
    host: &Host,
) -> Result<Option<Tier>, ConfigError> {
    let shards = match &group {
        None => vec![Shard {
            name: String::new(),
            weight: 1.0,
            url: plain(typed)?,
        }],
        Some(group) => group.shards()?,
    };
    let mut own = draft.clone();
    let mut mode = Some(Mode::ReadWrite);
    for attribute in attributes.split('|').filter(|text| !text.is_empty()) {
        match attribute {
            "rw" => mode = Some(Mode::ReadWrite),
            "ro" => mode = Some(Mode::ReadOnly),
            "off" => mode = None,
            other => options::apply_attribute(other, &mut own)?,
        }
    }
    let shown = match &group {
        None => shards[0].url.to_string(),
        Some(group) => group.shown(&shards),
    };
    let key_file = places::file("key_file", own.key_file, host)?;
    let remote_options = remote_options(own.remote, host)?;
    Ok(mode.map(|mode| Tier {
        mode,
        shards,
        remote_options,
        key_file,
        lookup_timeout: own.lookup_timeout.unwrap_or(default_timeout),
        shown,
        attributes: attributes
            .split('|')
            .filter(|text| !text.is_empty())
            .map(|text| format!("|{text}"))
            .collect(),
    }))
}

/// A URL without a group. One that has a word for a port may be the beginning of a password with a space or a `|`.
fn plain(typed: &str) -> Result<RemoteUrl, ConfigError> {
    if has_odd_port(typed) {
        let scheme = typed.split_once("://").map_or("", |(scheme, _)| scheme);
        return Err(ConfigError::Remote {
            remote: format!("{scheme}://..."),
            why: "the port is not a number; a space, |, { or } in a URL is written %20, %7C, %7B or %7D".to_owned(),
        });
    }
    let url = RemoteUrl::new(typed)?;
    if scheme_len(typed) == 0 {
        return Err(ConfigError::Remote {
            remote: url.to_string(),
            why: "is no URL such as https://host/cache or file:///dir; remotes are separated by white space, \
                  and a space in a URL is written %20"
                .to_owned(),
        });
    }
    Ok(url)
}

/// A URL with a group of shards in it.
struct Group<'a> {
    before: &'a str,
    /// Names and weights.
    inside: Vec<(String, f64)>,
    after: &'a str,
}

impl<'a> Group<'a> {
    fn parse(url: &'a str) -> Result<Option<Self>, ConfigError> {
        let (opened, closed) = (url.matches('{').count(), url.matches('}').count());
        if opened + closed == 0 {
            return Ok(None);
        }
        let parts = url
            .split_once('{')
            .and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
        let Some((before, (inside, after))) = parts.filter(|_| (opened, closed) == (1, 1)) else {
            return Err(wrong(
                "braces hold shards: exactly one pair, as in http://cache{1..8}/c; in a URL itself they are written %7B and %7D",
            ));
        };
        let mut names = Vec::new();
        for text in inside.split(',') {
            let (name, weight) = weighted(text)?;
            match range(name)? {
                Some(all) => names.extend(all.into_iter().map(|name| (name, weight))),
                None if name.is_empty() => {
                    return Err(wrong(
                        "a shard has no name; expected {1..8} or {alpha,beta(3)}",
                    ));
                }
                None => names.push((name.to_owned(), weight)),
            }
        }
        if names.len() > MOST_SHARDS {
            return Err(wrong("more than 64 shards"));
        }
        Ok(Some(Self {
            before,
            inside: names,
            after,
        }))
    }

    fn shards(&self) -> Result<Vec<Shard>, ConfigError> {
        let mut seen = BTreeSet::new();
        let mut shards = Vec::new();
        for (name, weight) in &self.inside {
            let url = plain(&format!("{}{name}{}", self.before, self.after))?;
            // A URL in full: who is logged in there does not decide what belongs there.
            let name = match self.before.is_empty() {
                true => url.to_string(),
                false => name.clone(),
            };
            if !seen.insert(name.clone()) {
                return Err(wrong("two shards have one name"));
            }
            let weight = *weight;
            shards.push(Shard { name, weight, url });
        }
        Ok(shards)
    }

    /// The tier as it was written, without credentials.
    fn shown(&self, shards: &[Shard]) -> String {
        if shards.len() == 1 {
            return shards[0].url.to_string();
        }
        let names: Vec<_> = shards
            .iter()
            .map(|shard| match shard.weight {
                1.0 => shard.name.clone(),
                weight => format!("{}({weight})", shard.name),
            })
            .collect();
        let group = format!("{{{}}}", names.join(","));
        match self.before.is_empty() {
            true => group,
            false => RemoteUrl::shown_of(&format!("{}{group}{}", self.before, self.after)),
        }
    }
}

/// An error about what stands in braces. It repeats nothing of it.
fn wrong(why: &str) -> ConfigError {
    ConfigError::Remote {
        remote: "with shards".to_owned(),
        why: why.to_owned(),
    }
}

/// `NAME(WEIGHT)`.
fn weighted(text: &str) -> Result<(&str, f64), ConfigError> {
    let Some(inside) = text.strip_suffix(')') else {
        return Ok((text, 1.0));
    };
    let split = inside.rsplit_once('(');
    let weight = split.and_then(|(name, weight)| Some((name, weight.parse::<f64>().ok()?)));
    weight
        .filter(|(_, weight)| *weight > 0.0 && *weight <= MOST_WEIGHT)
        .ok_or_else(|| {
            wrong("the weight of a shard is a number above 0 and up to 1000000, as in beta(3)")
        })
}

/// `1..8`, or `01..16` where all are to have two digits.
fn range(text: &str) -> Result<Option<Vec<String>>, ConfigError> {
    let numeric = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some((from, to)) = text
        .split_once("..")
        .filter(|(a, b)| numeric(a) && numeric(b))
    else {
        return Ok(None);
    };
    let digits = from.len();
    let bounds = from.parse::<u32>().ok().zip(to.parse::<u32>().ok());
    match bounds {
        Some((from, to)) if from <= to && (to - from) < 1000 => {
            let padded = |n: u32| format!("{n:0digits$}");
            Ok(Some((from..=to).map(padded).collect()))
        }
        _ => Err(wrong(
            "a range of shards goes up, from a number to a number, as in {1..8}",
        )),
    }
}
