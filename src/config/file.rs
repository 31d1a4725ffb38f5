//! The configuration file: TOML, every `-o` option by its name, and `remote` and `mountpoint`.
//!
//! ```toml
//! remote = ["https://near/c", { url = "https://far/c", ro = true, layout = "flat" }]
//! mountpoint = "/mnt/c"
//! size = "20G"
//! ro = false
//! fetch_threads = 8
//! ```
//!
//! What is wrong is named with the file and the line. A path is seen from the directory of the file. This module takes a text:
//! who reads the file, and whether he may be trusted who wrote it, is not its business.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::list::absolute_path;
use super::options::{by_name, wrong};
use super::origin::Origin;
use super::{ConfigError, Draft, options};

/// A configuration file, parsed but for the values of its options.
#[derive(Clone, Debug, Default)]
pub struct FileConfig {
    path: PathBuf,
    /// As one would type it, and its line.
    pub(super) remote: Option<(String, usize)>,
    pub(super) mountpoint: Option<(PathBuf, usize)>,
    options: Vec<Entry>,
}

/// One line with an option.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    text: String,
    line: usize,
}

/// A file while it is read.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl FileConfig {
    /// Reads the text of the file at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let reader = Reader { path, text };
        let table = DeTable::parse(text).map_err(|err| {
            let at = err.span().map_or(0, |span| span.start);
            // The whole message would repeat the line, and anything may stand in that.
            reader.wrong(at, err.message())
        })?;
        let mut config = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            reader.take(key.get_ref(), key.span().start, value, &mut config)?;
        }
        Ok(config)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Applies its options.
    pub(super) fn apply(&self, draft: &mut Draft) -> Result<(), ConfigError> {
        for Entry { name, text, line } in &self.options {
            let origin = self.at(*line);
            let applied = options::apply_one(name, Some(text), &origin, draft);
            applied.map_err(|err| err.at(&origin))?;
        }
        Ok(())
    }

    pub(super) fn at(&self, line: usize) -> Origin {
        Origin::File(self.path.clone(), line)
    }
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        before.filter(|byte| **byte == b'\n').count() + 1
    }

    fn wrong(&self, at: usize, why: &str) -> ConfigError {
        self.place(at, ConfigError::Other(why.to_owned()))
    }

    fn place(&self, at: usize, error: ConfigError) -> ConfigError {
        error.at(&Origin::File(self.path.to_owned(), self.line(at)))
    }

    fn take(
        &self,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        to: &mut FileConfig,
    ) -> Result<(), ConfigError> {
        let line = self.line(at);
        match name {
            "remote" => to.remote = Some((self.remotes(value)?, line)),
            "mountpoint" => to.mountpoint = Some((self.mountpoint(at, value)?, line)),
            "config" => {
                let why = "a file cannot name another one";
                return Err(self.place(at, wrong(name, why.to_owned())));
            }
            _ => to.options.push(Entry {
                name: name.to_owned(),
                text: self.option(name, at, value)?,
                line,
            }),
        }
        Ok(())
    }

    /// The value of an option, as one would type it.
    fn option(
        &self,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<String, ConfigError> {
        let spec = by_name(name);
        let is_switch = spec.is_none_or(|spec| spec.value.is_none_or(|v| v.contains("on|off")));
        let refuse = |why: &str| Err(self.place(at, wrong(name, why.to_owned())));
        match value.get_ref() {
            DeValue::Boolean(on) if is_switch => Ok(if *on { "on" } else { "off" }.to_owned()),
            DeValue::Boolean(_) => refuse("is no switch; expected a string or a number"),
            DeValue::Integer(number) => match number_text(name, number) {
                Some(text) => Ok(text),
                None => refuse("more than can be counted, or less than nothing"),
            },
            DeValue::String(text) => {
                let dir = self.path.parent().unwrap_or(Path::new("/"));
                Ok(match spec.is_some_and(options::OptionSpec::is_path) {
                    true => absolute_path(text, dir),
                    false => text.to_string(),
                })
            }
            _ => refuse("expected true or false, a whole number, or a string in quotes"),
        }
    }

    fn mountpoint(&self, at: usize, value: &Spanned<DeValue<'_>>) -> Result<PathBuf, ConfigError> {
        match value.get_ref() {
            DeValue::String(text) if text.starts_with('/') => Ok(PathBuf::from(text.as_ref())),
            _ => Err(self.wrong(at, "`mountpoint`: expected an absolute path in quotes")),
        }
    }

    /// Remotes as one would type them, separated by blanks.
    fn remotes(&self, value: &Spanned<DeValue<'_>>) -> Result<String, ConfigError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Table(table) => self.remote(value.span().start, table),
            DeValue::Array(list) => {
                let each = list.iter().map(|one| self.remotes(one));
                Ok(each.collect::<Result<Vec<_>, _>>()?.join(" "))
            }
            _ => Err(self.wrong(
                value.span().start,
                "`remote`: expected a URL in quotes, a table such as { url = \"https://host/c\", ro = true }, or a list of them",
            )),
        }
    }

    fn remote(&self, at: usize, table: &DeTable<'_>) -> Result<String, ConfigError> {
        let mut typed = None;
        let mut attributes = String::new();
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            match (name, value.get_ref()) {
                ("url", DeValue::String(url)) if !url.contains(char::is_whitespace) => {
                    typed = Some(url.to_string());
                }
                ("url", _) => {
                    return Err(self.wrong(at, "`url`: expected one URL in quotes"));
                }
                ("ro" | "rw" | "off", DeValue::Boolean(true)) => attributes += &format!("|{name}"),
                ("ro", DeValue::Boolean(false)) => attributes += "|rw",
                ("rw", DeValue::Boolean(false)) => attributes += "|ro",
                ("off", DeValue::Boolean(false)) => {}
                _ => {
                    let text = self.option(name, at, value)?;
                    let text = encoded(&text);
                    // Here, and not only with the others, so that the line is right.
                    let attribute = format!("{name}={text}");
                    options::apply_attribute(&attribute, &mut Draft::default())
                        .map_err(|err| self.place(at, err))?;
                    attributes += &format!("|{attribute}");
                }
            }
        }
        match typed {
            Some(url) => Ok(url + &attributes),
            None => Err(self.wrong(at, "`remote`: the table has no url")),
        }
    }
}

/// A whole number as it is typed; `umask` in the digits that it is typed in.
fn number_text(name: &str, number: &DeInteger<'_>) -> Option<String> {
    if name == "umask" && [8, 10].contains(&number.radix()) {
        return Some(number.as_str().to_owned());
    }
    let value = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(value.to_string())
}

/// The value of an attribute of one remote.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for c in text.chars() {
        match c {
            '%' => encoded += "%25",
            '|' => encoded += "%7C",
            '{' => encoded += "%7B",
            '}' => encoded += "%7D",
            c if c.is_ascii_whitespace() => encoded += &format!("%{:02X}", u32::from(c)),
            c => encoded.push(c),
        }
    }
    encoded
}
