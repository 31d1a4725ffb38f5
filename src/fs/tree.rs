//! The inodes that the kernel knows: their names, and how often it looked them up.
//!
//! An inode's number is that of its file on the backing disk, so numbers are stable and hard links are one
//! inode; only the root is always 1. A node keeps every name under which the kernel knows it, and once
//! its last name is gone a descriptor, so that a file that is open or the working directory of somebody
//! can still be reached. A plain structure without a lock or a system call of its own.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::name::{Dir, Place};

/// The root's inode number, as FUSE wants it.
pub const ROOT: u64 = 1;

/// What the kernel knows of one inode.
#[derive(Debug)]
pub struct Node {
    /// What kind of directory, if it is one.
    pub dir: Dir,
    /// Names under which it is known: (directory's inode, name).
    names: Vec<(u64, OsString)>,
    /// Lookups that the kernel has not taken back.
    lookups: u64,
    /// When the kernel was last told of it, by the tree's count.
    seen: u64,
    /// Handles that may write.
    pub writers: u32,
    /// All handles.
    pub opens: u32,
    /// Where the node is being written into place as an entry and is not yet committed.
    pub unsealed: Option<Place>,
    /// A name of it was a committed entry's and is gone: its bytes are for ever what was committed.
    pub was_entry: bool,
    /// Set once its last name is gone.
    orphan: Option<Arc<OwnedFd>>,
}

/// How to reach a node: by a path below the root, or through a descriptor.
#[derive(Debug)]
pub enum Reach {
    /// Relative to the root of the backing directory.
    Path(PathBuf),
    /// It has no name any more.
    Orphan(Arc<OwnedFd>),
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    /// Rises whenever a name goes without the kernel having asked for it.
    pub epoch: u64,
    /// How often the kernel was told of any node.
    told: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::new(Dir::Root);
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            epoch: 0,
            told: 0,
        }
    }
}

impl Node {
    fn new(dir: Dir) -> Self {
        Self {
            dir,
            names: Vec::new(),
            lookups: 0,
            seen: 0,
            writers: 0,
            opens: 0,
            unsealed: None,
            was_entry: false,
            orphan: None,
        }
    }

    /// Whether nobody will ask for it any more, and nothing about it has to be kept.
    fn is_done_with(&self) -> bool {
        self.lookups == 0 && self.opens == 0 && self.unsealed.is_none()
    }

    /// How many names it is known under.
    pub fn known_names(&self) -> usize {
        self.names.len()
    }

    /// When the kernel was last told of it: only ever rises, also when it was forgotten in between.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Its names: (directory's inode, name).
    pub fn names(&self) -> &[(u64, OsString)] {
        &self.names
    }
}

impl Tree {
    /// The node of an inode that the kernel knows.
    pub fn get(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&ino)
    }

    /// The kernel is told of `ino` under this name once more.
    pub fn remember(&mut self, ino: u64, parent: u64, name: &OsStr, dir: Dir) {
        self.told += 1;
        let node = self.nodes.entry(ino).or_insert_with(|| Node::new(dir));
        node.lookups += 1;
        node.seen = self.told;
        if !node.names.iter().any(|(p, n)| *p == parent && n == name) {
            node.names.push((parent, name.to_owned()));
        }
    }

    /// The kernel takes `count` lookups back. The node goes with the last one.
    pub fn forget(&mut self, ino: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != ROOT) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(count);
        if node.is_done_with() {
            self.nodes.remove(&ino);
        }
    }

    /// A handle was closed; the node goes if nothing holds it any more.
    pub fn closed(&mut self, ino: u64, wrote: bool) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return;
        };
        node.opens = node.opens.saturating_sub(1);
        node.writers = node.writers.saturating_sub(u32::from(wrote));
        if node.is_done_with() && ino != ROOT {
            self.nodes.remove(&ino);
        }
    }

    /// The name is gone. `last` is a descriptor to keep the node reachable with, if that was its last one.
    pub fn name_gone(&mut self, ino: u64, parent: u64, name: &OsStr, last: Option<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return;
        };
        node.names.retain(|(p, n)| !(*p == parent && n == name));
        if node.names.is_empty() && node.orphan.is_none() {
            node.orphan = last.map(Arc::new);
        }
    }

    /// The name moved; `dir` is what the node is at its new place.
    pub fn moved(&mut self, ino: u64, from: (u64, &OsStr), to: (u64, &OsStr), dir: Dir) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return;
        };
        node.dir = dir;
        node.names.retain(|(p, n)| !(*p == from.0 && n == from.1));
        if !node.names.iter().any(|(p, n)| *p == to.0 && n == to.1) {
            node.names.push((to.0, to.1.to_owned()));
        }
    }

    /// How to reach the node, or `None` if the kernel does not know it or a directory above it is gone.
    pub fn reach(&self, ino: u64) -> Option<Reach> {
        if ino == ROOT {
            return Some(Reach::Path(PathBuf::from(".")));
        }
        let node = self.nodes.get(&ino)?;
        match &node.orphan {
            Some(fd) if node.names.is_empty() => Some(Reach::Orphan(fd.clone())),
            _ => self.path(ino).map(Reach::Path),
        }
    }

    /// The path of `name` in the directory `parent`, below the root.
    pub fn path_in(&self, parent: u64, name: &OsStr) -> Option<PathBuf> {
        let mut path = self.path(parent)?;
        path.push(name);
        Some(path)
    }

    /// The path of a node below the root: empty for the root itself.
    fn path(&self, ino: u64) -> Option<PathBuf> {
        let mut parts = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.names.first()?;
            parts.push(name);
            at = *parent;
        }
        Some(parts.into_iter().rev().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> &OsStr {
        OsStr::new(s)
    }

    fn path(tree: &Tree, ino: u64) -> String {
        match tree.reach(ino) {
            Some(Reach::Path(path)) => path.display().to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_renamed_directory_takes_what_is_below_it_along() {
        let mut tree = Tree::default();
        tree.remember(10, ROOT, name("a"), Dir::Scratch);
        tree.remember(11, 10, name("b"), Dir::Scratch);
        tree.moved(10, (ROOT, name("a")), (ROOT, name("c")), Dir::Scratch);
        assert_eq!(path(&tree, 11), "c/b");
    }

    #[test]
    fn a_node_is_gone_when_every_lookup_is_taken_back_and_every_handle_closed() {
        let mut tree = Tree::default();
        tree.remember(10, ROOT, name("a"), Dir::Scratch);
        tree.remember(10, ROOT, name("a"), Dir::Scratch);
        tree.get_mut(10).unwrap().opens = 1;
        tree.forget(10, 2);
        assert!(tree.get(10).is_some());
        tree.closed(10, false);
        assert!(tree.get(10).is_none());
    }

    #[test]
    fn one_of_two_hard_links_going_leaves_the_other() {
        let mut tree = Tree::default();
        tree.remember(10, ROOT, name("a"), Dir::Scratch);
        tree.remember(10, ROOT, name("b"), Dir::Scratch);
        tree.name_gone(10, ROOT, name("a"), None);
        assert_eq!(path(&tree, 10), "b");
    }

    #[test]
    fn a_node_without_a_name_is_reached_through_its_descriptor() {
        let mut tree = Tree::default();
        tree.remember(10, ROOT, name("a"), Dir::Scratch);
        let fd = OwnedFd::from(std::fs::File::open("/").unwrap());
        tree.name_gone(10, ROOT, name("a"), Some(fd));
        assert!(matches!(tree.reach(10), Some(Reach::Orphan(_))));
    }
}
