//! A directory tree as a value: what build products are compared by.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Everything about a file that a cache has to bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    Symlink(PathBuf),
    File {
        mode: u32,
        length: u64,
        hash: String,
    },
}

/// Path below the tree's top -> what is there.
pub(crate) type Tree = BTreeMap<PathBuf, Node>;

/// Reads a tree; names for which `skip` holds are left out with everything below them.
pub(crate) fn snapshot(top: &Path, skip: impl Fn(&Path) -> bool) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        let full = top.join(&directory);
        for entry in
            fs::read_dir(&full).unwrap_or_else(|e| panic!("read_dir {}: {e}", full.display()))
        {
            let path = directory.join(entry.unwrap().file_name());
            if skip(&path) {
                continue;
            }
            let node = node(&top.join(&path));
            if node == Node::Directory {
                pending.push(path.clone());
            }
            tree.insert(path, node);
        }
    }
    tree
}

/// One file, link or directory.
pub(crate) fn node(path: &Path) -> Node {
    let meta =
        fs::symlink_metadata(path).unwrap_or_else(|e| panic!("lstat {}: {e}", path.display()));
    if meta.is_symlink() {
        return Node::Symlink(fs::read_link(path).unwrap());
    }
    if meta.is_dir() {
        return Node::Directory;
    }
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let length = std::io::copy(&mut file, &mut hasher)
        .unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    Node::File {
        mode: meta.permissions().mode() & 0o7777,
        length,
        hash: hasher.finalize().to_hex().to_string(),
    }
}

/// Fails with the differing paths only: whole trees are unreadable.
#[track_caller]
pub(crate) fn assert_same(expected: &Tree, got: &Tree, what: &str) {
    let names: std::collections::BTreeSet<_> = expected.keys().chain(got.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| expected.get(*name) != got.get(*name))
        .map(|name| {
            format!(
                "{}: expected {:?}, got {:?}",
                name.display(),
                expected.get(name),
                got.get(name)
            )
        })
        .collect();
    assert!(
        differences.is_empty(),
        "{what}:\n  {}",
        differences.join("\n  ")
    );
}
