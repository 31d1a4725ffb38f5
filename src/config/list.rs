//! Comma-separated lists of options, as texts: split, joined, searched, merged.
//!
//! `\,` stands for a comma in a value and `\\` for a backslash; any other backslash is itself. Nothing here knows what an
//! option does.

use std::path::Path;

use super::foreign;
use super::options::{OptionSpec, by_name, find, kernel_flag};

/// Splits a list at its commas and takes the escapes out.
pub(super) fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' {
            chars.next_if(|next| matches!(next, ',' | '\\'))
        } else {
            None
        };
        match (c, escaped) {
            (',', _) => options.push(String::new()),
            _ => options
                .last_mut()
                .expect("never empty")
                .push(escaped.unwrap_or(c)),
        }
    }
    options
}

pub(super) fn name_of(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

/// A list without what nobody knows, and that: for a mount that is to be sloppy.
pub fn known(list: &str) -> (String, Vec<String>) {
    let is_known = |option: &String| {
        let name = name_of(option);
        let on_list = kernel_flag(name).is_some() || foreign::is_accepted(name);
        option.is_empty() || on_list || find(name, option.split_once('=').map(|(_, v)| v)).is_ok()
    };
    let (known, unknown): (Vec<_>, Vec<_>) = split(list).into_iter().partition(is_known);
    (join(&known), unknown)
}

/// The list of these options.
fn join(options: &[String]) -> String {
    let escaped = options
        .iter()
        .map(|option| option.replace('\\', "\\\\").replace(',', "\\,"));
    escaped.collect::<Vec<_>>().join(",")
}

/// The value that the last of these lists gives an option.
pub fn last(lists: &[String], name: &str) -> Option<String> {
    let options = lists.iter().flat_map(|list| split(list));
    let values = options.filter_map(|option| {
        let (found, value) = option.split_once('=')?;
        (found == name).then(|| value.to_owned())
    });
    values.reduce(|_, later| later)
}

/// Whether one of these lists has an option, with or without a value.
pub fn has(lists: &[String], name: &str) -> bool {
    let mut options = lists.iter().flat_map(|list| split(list));
    options.any(|option| name_of(&option) == name)
}

/// A list without the options of these names.
pub fn without(list: &str, names: &[&str]) -> String {
    let mut options = split(list);
    options.retain(|option| !option.is_empty() && !names.contains(&name_of(option)));
    join(&options)
}

/// A list without what mount(8) itself acts on and what means nothing.
pub fn meaningful(list: &str) -> String {
    let mut options = split(list);
    options.retain(|option| !option.is_empty() && !foreign::is_accepted(name_of(option)));
    join(&options)
}

/// A list in which no path depends on the working directory.
pub fn absolute(list: &str, cwd: &Path) -> String {
    let absolute = |option: String| match option.split_once('=') {
        Some((name, value)) if by_name(name).is_some_and(OptionSpec::is_path) => {
            format!("{name}={}", absolute_path(value, cwd))
        }
        _ => option,
    };
    join(&split(list).into_iter().map(absolute).collect::<Vec<_>>())
}

/// The value of an option for a path, seen from `dir`. What names a credential of the service is no path.
pub(super) fn absolute_path(value: &str, dir: &Path) -> String {
    if value.is_empty() || value.starts_with("credential:") {
        return value.to_owned();
    }
    match dir.join(value).into_os_string().into_string() {
        Ok(path) => path,
        Err(_) => value.to_owned(),
    }
}

/// One list for what stood in `old` and then in `new`: of an option that is given twice, the last. Further remotes
/// in `new` take the place of all in `old`.
pub fn merged(old: &[String], new: &str) -> String {
    let mut options: Vec<_> = old.iter().flat_map(|list| split(list)).collect();
    for option in split(new) {
        let named = subject(&option);
        if named != "remote" || !has(&[new.to_owned()], "remote") {
            options.retain(|old| subject(old) != named);
        }
        options.push(option);
    }
    options.retain(|option| !option.is_empty());
    join(&options)
}

/// What an option is about, however it is written.
fn subject(option: &str) -> &str {
    let name = name_of(option);
    if let Some(flag) = kernel_flag(name) {
        return flag.of;
    }
    let value = option.split_once('=').map(|(_, value)| value);
    find(name, value).map_or(name, |(spec, _)| spec.name)
}
