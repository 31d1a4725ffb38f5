//! Names of targets by signature, from what SCons writes for `--cache-debug=FILE`.
//!
//! All versions from 3.1 to 4.11 write the same lines: `CacheRetrieve(TARGET):  SIG not in cache`,
//! `CacheRetrieve(TARGET):  retrieving from SIG`, `CachePush(TARGET):  pushing to SIG` and
//! `CachePush(TARGET):  SIG already exists in cache`, each before a line of figures.

use std::collections::{BTreeSet, HashMap};

use crate::signature::Signature;

/// Which targets a signature was asked for or pushed as.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<Signature, BTreeSet<String>>);

impl Names {
    /// Takes in what SCons wrote; how many names were found.
    pub fn add(&mut self, text: &str) -> usize {
        let mut found = 0;
        for (target, sig) in text.lines().filter_map(name_in) {
            self.0.entry(sig).or_default().insert(target.to_owned());
            found += 1;
        }
        found
    }

    /// The targets of a signature.
    pub fn of(&self, sig: &Signature) -> impl Iterator<Item = &str> {
        self.0.get(sig).into_iter().flatten().map(String::as_str)
    }
}

fn name_in(line: &str) -> Option<(&str, Signature)> {
    let rest = ["CacheRetrieve(", "CachePush("]
        .iter()
        .find_map(|head| line.strip_prefix(head))?;
    // A target may be called anything.
    let (target, said) = rest.rsplit_once("):  ")?;
    let sig = said
        .split(' ')
        .find_map(|word| Signature::parse(word.as_bytes()))?;
    Some((target, sig))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_each_line_that_scons_writes() {
        let sig = |digit: char| digit.to_string().repeat(32);
        let (a, b) = (sig('a'), sig('b'));
        let text = format!(
            "CacheRetrieve(hello.o):  {a} not in cache\n\
             requests: 1, hits: 0, misses: 1, hit rate: 0.00%\n\
             CachePush(hello.o):  pushing to {a}\n\
             CacheRetrieve(odd):  name):  retrieving from {b}\n\
             CachePush(same):  {b} already exists in cache\n\
             CachePush(none):  pushing to nowhere\n"
        );
        let mut names = Names::default();
        assert_eq!(names.add(&text), 4);
        let of = |text: &str| {
            let sig = Signature::parse(text.as_bytes()).unwrap();
            names.of(&sig).collect::<Vec<_>>()
        };
        assert_eq!(of(&a), ["hello.o"]);
        assert_eq!(of(&b), ["odd):  name", "same"]);
        assert!(of(&sig('c')).is_empty());
    }
}
