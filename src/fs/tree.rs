//! The inodes that the kernel knows: their names, and how often it looked them up.
//!
//! An inode's number is that of its file on the backing disk, so numbers are stable and hard links are one
//! inode; only the root is always 1. A node keeps every name under which the kernel knows it, and once
//! its last name is gone a descriptor, so that a file that is open or the working directory of somebody
//! can still be reached. A plain structure without a lock or a system call of its own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::handover::{Text, keep};
use crate::name::{Dir, Place};
use crate::sys::exec::{Kept, take_over};

/// The root's inode number, as FUSE wants it.
pub const ROOT: u64 = 1;

/// What the kernel knows of one inode. The kernel may know a million of them, most of which it only looked up: what
/// few nodes have is apart, in [`Rare`].
#[derive(Debug, Default)]
pub struct Node {
    /// The name under which it is known, if it has one.
    known: Option<Known>,
    /// Lookups that the kernel has not taken back.
    lookups: u32,
    /// When the kernel was last told of it, by the tree's count.
    seen: u32,
    rare: Option<Box<Rare>>,
}

/// What few nodes have.
#[derive(Debug)]
pub struct Rare {
    /// What kind of directory, if it is one.
    dir: Dir,
    /// Further names of it.
    more: Vec<Known>,
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
    /// It is not on the disk at all.
    memory: Option<Arc<OwnedFd>>,
}

/// A name and the directory that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    parent: u64,
    name: Short,
}

/// A name in few bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Short {
    /// 32 lower-case hex digits, as most signatures have.
    Hex([u8; 16]),
    Text(Box<OsStr>),
}

impl Known {
    fn new(parent: u64, name: &OsStr) -> Self {
        let bytes = name.as_bytes();
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let pack = || -> Option<[u8; 16]> {
            let mut packed = [0; 16];
            for (to, pair) in packed.iter_mut().zip(bytes.chunks(2)) {
                *to = nibble(pair[0])? << 4 | nibble(*pair.get(1)?)?;
            }
            (bytes.len() == 32).then_some(packed)
        };
        let name = pack().map_or_else(|| Short::Text(name.into()), Short::Hex);
        Self { parent, name }
    }

    /// The directory's inode.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// The name in it.
    pub fn name(&self) -> Cow<'_, OsStr> {
        match &self.name {
            Short::Text(text) => Cow::Borrowed(text),
            Short::Hex(packed) => {
                let digits = packed.iter().flat_map(|b| [b >> 4, b & 15]);
                let text = digits.map(|d| if d < 10 { b'0' + d } else { b'a' + d - 10 });
                Cow::Owned(OsString::from_vec(text.collect()))
            }
        }
    }
}

impl Rare {
    const NONE: Self = Self {
        dir: Dir::Scratch,
        more: Vec::new(),
        writers: 0,
        opens: 0,
        unsealed: None,
        was_entry: false,
        orphan: None,
        memory: None,
    };

    fn is_nothing(&self) -> bool {
        self.dir == Dir::Scratch
            && self.more.is_empty()
            && self.writers == 0
            && self.opens == 0
            && self.unsealed.is_none()
            && !self.was_entry
            && self.orphan.is_none()
            && self.memory.is_none()
    }
}

impl Deref for Node {
    type Target = Rare;

    fn deref(&self) -> &Rare {
        static NONE: Rare = Rare::NONE;
        self.rare.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(|| Box::new(Rare::NONE))
    }
}

/// How to reach a node: by a path below the root, or through a descriptor.
#[derive(Debug)]
pub enum Reach {
    /// Relative to the root of the backing directory.
    Path(PathBuf),
    /// It has no name any more.
    Orphan(Arc<OwnedFd>),
    /// It never was on the disk.
    Memory(Arc<OwnedFd>),
}

/// A node on its way to another program.
#[derive(Debug, Serialize, Deserialize)]
struct PackedNode {
    ino: u64,
    names: Vec<(u64, Text)>,
    lookups: u32,
    seen: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rare: Option<PackedRare>,
}

/// What few nodes have.
#[derive(Debug, Serialize, Deserialize)]
struct PackedRare {
    dir: Dir,
    writers: u32,
    opens: u32,
    was_entry: bool,
    orphan: Option<RawFd>,
    memory: Option<RawFd>,
}

/// The tree likewise.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PackedTree {
    nodes: Vec<PackedNode>,
    epoch: u64,
    told: u32,
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    /// Rises whenever a name goes without the kernel having asked for it.
    pub epoch: u64,
    /// How often the kernel was told of any node.
    told: u32,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::new(Dir::Root);
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            epoch: 0,
            told: 0,
        }
    }
}

impl Node {
    fn new(dir: Dir) -> Self {
        let mut node = Self::default();
        node.set_dir(dir);
        node
    }

    fn set_dir(&mut self, dir: Dir) {
        if self.dir != dir {
            self.dir = dir;
        }
    }

    /// What kind of directory it is, if it is one.
    pub fn dir(&self) -> Dir {
        self.dir
    }

    fn add_name(&mut self, name: Known) {
        if self.names().any(|known| *known == name) {
            return;
        }
        match self.known {
            None => self.known = Some(name),
            Some(_) => self.more.push(name),
        }
    }

    fn drop_name(&mut self, name: &Known) {
        if self.known.as_ref() == Some(name) {
            self.known = None;
            if !self.more.is_empty() {
                self.known = Some(self.more.remove(0));
            }
        } else if !self.more.is_empty() {
            self.more.retain(|known| known != name);
        }
    }

    /// Gives back what it does not need any more.
    fn trim(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_nothing()) {
            self.rare = None;
        }
    }

    /// Whether nobody will ask for it any more, and nothing about it has to be kept.
    fn is_done_with(&self) -> bool {
        self.lookups == 0 && self.opens == 0 && self.unsealed.is_none()
    }

    /// How many names it is known under.
    pub fn known_names(&self) -> usize {
        self.names().count()
    }

    /// When the kernel was last told of it: another number each time, also when it was forgotten in between.
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// Its names.
    pub fn names(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().chain(&self.more)
    }

    fn pack(&self, ino: u64, kept: &mut Kept) -> io::Result<PackedNode> {
        let pack_rare = |rare: &Rare| {
            Ok::<_, io::Error>(PackedRare {
                dir: rare.dir,
                writers: rare.writers,
                opens: rare.opens,
                was_entry: rare.was_entry,
                orphan: keep(kept, rare.orphan.as_deref())?,
                memory: keep(kept, rare.memory.as_deref())?,
            })
        };
        let names = self.names();
        Ok(PackedNode {
            ino,
            names: names
                .map(|known| (known.parent(), Text::new(&known.name())))
                .collect(),
            lookups: self.lookups,
            seen: self.seen,
            rare: self.rare.as_deref().map(pack_rare).transpose()?,
        })
    }
}

impl PackedNode {
    fn unpack(self) -> io::Result<Node> {
        let mut node = Node {
            lookups: self.lookups,
            seen: self.seen,
            ..Node::default()
        };
        for (parent, name) in self.names {
            node.add_name(Known::new(parent, &name.into_name()));
        }
        if let Some(rare) = self.rare {
            let taken = |fd: Option<RawFd>| fd.map(take_over).transpose();
            let more = std::mem::take(&mut node.more);
            *node = Rare {
                dir: rare.dir,
                more,
                writers: rare.writers,
                opens: rare.opens,
                unsealed: None,
                was_entry: rare.was_entry,
                orphan: taken(rare.orphan)?.map(Arc::new),
                memory: taken(rare.memory)?.map(Arc::new),
            };
        }
        node.trim();
        Ok(node)
    }
}

impl PackedTree {
    pub(super) fn unpack(self) -> io::Result<Tree> {
        let nodes = self.nodes.into_iter();
        Ok(Tree {
            nodes: nodes
                .map(|packed| Ok((packed.ino, packed.unpack()?)))
                .collect::<io::Result<_>>()?,
            epoch: self.epoch,
            told: self.told,
        })
    }
}

impl Tree {
    /// Packs it, while nobody changes it.
    pub(super) fn pack(&self, kept: &mut Kept) -> io::Result<PackedTree> {
        let nodes = self.nodes.iter().map(|(ino, node)| node.pack(*ino, kept));
        Ok(PackedTree {
            nodes: nodes.collect::<io::Result<_>>()?,
            epoch: self.epoch,
            told: self.told,
        })
    }

    /// An entry that is being written in its place, if there is one.
    pub(super) fn unsealed(&self) -> Option<Place> {
        self.nodes.values().find_map(|node| node.unsealed)
    }

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
        self.told = self.told.wrapping_add(1);
        let node = self.nodes.entry(ino).or_insert_with(|| Node::new(dir));
        node.lookups = node.lookups.saturating_add(1);
        node.seen = self.told;
        node.add_name(Known::new(parent, name));
    }

    /// The node is not on the disk but in this file.
    pub fn keep_in_memory(&mut self, ino: u64, file: Arc<OwnedFd>) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.memory = Some(file);
        }
    }

    /// The kernel takes `count` lookups back. The node goes with the last one.
    pub fn forget(&mut self, ino: u64, count: u64) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != ROOT) else {
            return;
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
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
        } else {
            node.trim();
        }
    }

    /// The name is gone. `last` is a descriptor to keep the node reachable with, if that was its last one.
    pub fn name_gone(&mut self, ino: u64, parent: u64, name: &OsStr, last: Option<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return;
        };
        node.drop_name(&Known::new(parent, name));
        if node.known.is_none() && node.orphan.is_none() && last.is_some() {
            node.orphan = last.map(Arc::new);
        }
    }

    /// The name moved; `dir` is what the node is at its new place.
    pub fn moved(&mut self, ino: u64, from: (u64, &OsStr), to: (u64, &OsStr), dir: Dir) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            return;
        };
        node.set_dir(dir);
        node.drop_name(&Known::new(from.0, from.1));
        node.add_name(Known::new(to.0, to.1));
    }

    /// How to reach the node, or `None` if the kernel does not know it or a directory above it is gone.
    pub fn reach(&self, ino: u64) -> Option<Reach> {
        if ino == ROOT {
            return Some(Reach::Path(PathBuf::from(".")));
        }
        let node = self.nodes.get(&ino)?;
        match (&node.memory, &node.orphan) {
            (Some(file), _) => Some(Reach::Memory(file.clone())),
            (None, Some(fd)) if node.known.is_none() => Some(Reach::Orphan(fd.clone())),
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
            let known = self.nodes.get(&at)?.known.as_ref()?;
            parts.push(known.name());
            at = known.parent();
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
    fn a_node_that_was_only_looked_up_takes_little_and_gives_its_name_back() {
        assert!(size_of::<Node>() <= 48);
        let mut tree = Tree::default();
        for text in [
            "00112233445566778899aabbccddeeff",
            "00112233445566778899AABBCCDDEEFF",
            "config",
            "größe",
        ] {
            tree.remember(10, ROOT, name(text), Dir::Scratch);
            assert_eq!(path(&tree, 10), text);
            tree.get_mut(10).unwrap().opens = 1;
            tree.closed(10, false);
            assert!(tree.get(10).unwrap().rare.is_none());
            tree.forget(10, 1);
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

    #[test]
    fn a_tree_that_was_packed_is_the_same() {
        use std::os::unix::ffi::OsStrExt;
        let mut tree = Tree::default();
        let prefix = crate::name::Name::parse(&Dir::Root, b"AB").as_dir();
        tree.remember(10, ROOT, name("AB"), prefix);
        tree.remember(
            11,
            10,
            name("ab112233445566778899aabbccddeeff"),
            Dir::Scratch,
        );
        tree.remember(11, ROOT, OsStr::from_bytes(b"\xff"), Dir::Scratch);
        tree.remember(12, ROOT, name("gone"), Dir::Scratch);
        let fd = OwnedFd::from(std::fs::File::open("/").unwrap());
        tree.name_gone(12, ROOT, name("gone"), Some(fd));
        tree.get_mut(11).unwrap().opens = 2;
        tree.get_mut(11).unwrap().was_entry = true;
        tree.epoch = 7;
        let mut kept = Kept::default();
        let json = serde_json::to_vec(&tree.pack(&mut kept).unwrap()).unwrap();
        // They are the next program's.
        std::mem::forget(kept);
        let packed: PackedTree = serde_json::from_slice(&json).unwrap();
        let other = packed.unpack().unwrap();
        let shown = |tree: &Tree| {
            let text = format!("{tree:#?}");
            let lines = text.lines().filter(|line| !line.contains("fd: "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(&tree), shown(&other));
        assert!(matches!(other.reach(12), Some(Reach::Orphan(_))));
        assert_eq!(other.get(10).unwrap().dir(), prefix);
    }
}
