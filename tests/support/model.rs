//! The reference: what the file system is to do, without a disk, a journal or a thread.
//!
//! A tree of nodes with hard links, what waits for its upload, what the remote holds, and the rules of
//! cachedirfs(5) for entries. It is deliberately slow and short: a name is found by looking at every directory.

use std::collections::BTreeMap;
use std::time::Duration;

use cachedirfs::fs::Errno;
use cachedirfs::signature::Meta;

/// A node's number, never used twice.
pub(crate) type Id = u64;

/// The root's.
pub(crate) const ROOT_ID: Id = 0;

/// Prefix directories of the tests.
pub(crate) const PREFIXES: [&str; 2] = ["AB", "CD"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir(BTreeMap<String, Id>),
    File(Vec<u8>),
    Symlink(String),
    Fifo,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    /// All handles, and those that write.
    pub(crate) opens: u32,
    pub(crate) writers: u32,
    /// The entry (`XX/SIG`) that it is being written into place as.
    pub(crate) unsealed: Option<String>,
    /// Committed once, so never written again.
    sealed: bool,
}

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Scratch,
    Prefix,
    /// Its path, `XX/SIG`.
    Entry(String),
}

/// How an operation must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    With(Errno),
    /// The kernel refuses it before it asks anybody: we only must not do it.
    Somehow,
    /// The kernel answers by itself that all is well: nothing changes, whatever we would say.
    Unasked,
}

#[derive(Clone, Debug)]
struct Push {
    seq: u64,
    id: Id,
    mode: u32,
}

pub(crate) struct Model {
    nodes: BTreeMap<Id, Node>,
    pending: BTreeMap<String, Push>,
    next_seq: u64,
    /// What the remote holds, by entry.
    pub(crate) remote: BTreeMap<String, (Meta, Vec<u8>)>,
    /// Until when an entry counts as absent.
    misses: BTreeMap<String, Duration>,
    pub(crate) now: Duration,
    negative_ttl: Duration,
}

impl Model {
    pub(crate) fn new(negative_ttl: Duration) -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_seq: 0,
            remote: BTreeMap::new(),
            misses: BTreeMap::new(),
            now: Duration::ZERO,
            negative_ttl,
        };
        model.new_node(Kind::Dir(BTreeMap::new()), 0o755);
        model
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    fn new_node(&mut self, kind: Kind, mode: u32) -> Id {
        let id = self.nodes.len() as Id;
        let node = Node {
            kind,
            mode,
            opens: 0,
            writers: 0,
            unsealed: None,
            sealed: false,
        };
        self.nodes.insert(id, node);
        id
    }

    pub(crate) fn children(&self, dir: Id) -> Option<&BTreeMap<String, Id>> {
        match &self.node(dir).kind {
            Kind::Dir(names) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.node_mut(dir).kind {
            Kind::Dir(names) => names,
            other => panic!("{dir} is {other:?}"),
        }
    }

    fn get(&self, parent: Id, name: &str) -> Option<Id> {
        self.children(parent)?.get(name).copied()
    }

    /// Every name of a node, with its role.
    fn roles(&self, id: Id) -> Vec<Role> {
        let names = |dir: &Id| -> Vec<Role> {
            let names = self.children(*dir).into_iter().flatten();
            names
                .filter(|(_, at)| **at == id)
                .map(|(name, _)| self.role(*dir, name))
                .collect()
        };
        self.reachable().iter().flat_map(names).collect()
    }

    /// Nodes that have a path, the root first.
    fn reachable(&self) -> Vec<Id> {
        let mut found = vec![ROOT_ID];
        let mut next = 0;
        while let Some(dir) = found.get(next) {
            next += 1;
            let children: Vec<Id> = self
                .children(*dir)
                .into_iter()
                .flatten()
                .map(|c| *c.1)
                .collect();
            for child in children {
                if !found.contains(&child) {
                    found.push(child);
                }
            }
        }
        found
    }

    pub(crate) fn links(&self, id: Id) -> usize {
        self.roles(id).len()
    }

    fn is_entry(&self, id: Id) -> bool {
        self.roles(id).iter().any(|r| matches!(r, Role::Entry(_)))
    }

    /// Whether it is both an entry and something else, which only what cannot be written can be.
    pub(crate) fn is_mixed(&self, id: Id) -> bool {
        self.is_entry(id) && self.roles(id).contains(&Role::Scratch)
    }

    pub(crate) fn role(&self, parent: Id, name: &str) -> Role {
        if parent == ROOT_ID && PREFIXES.contains(&name) {
            return Role::Prefix;
        }
        let in_prefix = PREFIXES
            .iter()
            .find(|p| self.get(ROOT_ID, p) == Some(parent) && parent != ROOT_ID);
        match in_prefix {
            Some(prefix) if name.len() == 32 && name.starts_with(&prefix.to_lowercase()) => {
                Role::Entry(format!("{prefix}/{name}"))
            }
            _ => Role::Scratch,
        }
    }

    /// Looks a name up: prefix directories are always there, entries come from the remote.
    pub(crate) fn lookup(&mut self, parent: Id, name: &str) -> Option<Id> {
        if let Some(id) = self.get(parent, name) {
            return Some(id);
        }
        match self.role(parent, name) {
            Role::Scratch => None,
            Role::Prefix => {
                let mode = self.node(ROOT_ID).mode;
                Some(self.add(parent, name, Kind::Dir(BTreeMap::new()), mode))
            }
            Role::Entry(path) => self.fetch(parent, name, &path),
        }
    }

    fn fetch(&mut self, parent: Id, name: &str, path: &str) -> Option<Id> {
        if self.misses.get(path).is_some_and(|until| *until > self.now) {
            return None;
        }
        let Some((meta, bytes)) = self.remote.get(path).cloned() else {
            self.misses
                .insert(path.to_owned(), self.now + self.negative_ttl);
            return None;
        };
        let kind = match meta {
            Meta::File { .. } => Kind::File(bytes),
            Meta::Symlink => Kind::Symlink(String::from_utf8(bytes).unwrap()),
        };
        let id = self.add(parent, name, kind, meta.mode());
        self.node_mut(id).sealed = true;
        Some(id)
    }

    fn add(&mut self, parent: Id, name: &str, kind: Kind, mode: u32) -> Id {
        let id = self.new_node(kind, mode);
        self.names_mut(parent).insert(name.to_owned(), id);
        id
    }

    pub(crate) fn make(&mut self, parent: Id, name: &str, kind: Kind, mode: u32) -> Id {
        let role = self.role(parent, name);
        let id = self.add(parent, name, kind, mode);
        if let Role::Entry(path) = role {
            match self.node(id).kind {
                Kind::File(_) => self.node_mut(id).unsealed = Some(path),
                Kind::Symlink(_) => self.commit(&path, id),
                _ => {}
            }
        }
        id
    }

    /// What stands at an entry's name is pushed, as it is now.
    fn commit(&mut self, path: &str, id: Id) {
        if !matches!(self.node(id).kind, Kind::File(_) | Kind::Symlink(_)) {
            return;
        }
        self.next_seq += 1;
        let push = Push {
            seq: self.next_seq,
            id,
            mode: self.node(id).mode & 0o777,
        };
        self.pending.insert(path.to_owned(), push);
        self.misses.remove(path);
        self.node_mut(id).sealed = true;
    }

    pub(crate) fn may_write(&self, id: Id) -> Result<(), Errno> {
        if self.node(id).sealed {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    pub(crate) fn opened(&mut self, id: Id, writes: bool) {
        let node = self.node_mut(id);
        node.opens += 1;
        node.writers += u32::from(writes);
    }

    pub(crate) fn closed(&mut self, id: Id, writes: bool) {
        let node = self.node_mut(id);
        node.opens -= 1;
        node.writers -= u32::from(writes);
        if node.writers == 0
            && let Some(path) = node.unsealed.take()
        {
            self.commit(&path, id);
        }
    }

    pub(crate) fn write(&mut self, id: Id, at: usize, data: &[u8]) {
        let Kind::File(bytes) = &mut self.node_mut(id).kind else {
            return;
        };
        if data.is_empty() {
            return;
        }
        bytes.resize(bytes.len().max(at + data.len()), 0);
        bytes[at..at + data.len()].copy_from_slice(data);
    }

    pub(crate) fn truncate(&mut self, id: Id, len: usize) -> Result<(), Errno> {
        self.may_write(id)?;
        if let Kind::File(bytes) = &mut self.node_mut(id).kind {
            bytes.resize(len, 0);
        }
        Ok(())
    }

    pub(crate) fn chmod(&mut self, id: Id, mode: u32) {
        let before = std::mem::replace(&mut self.node_mut(id).mode, mode);
        let only_adds_write = before & !0o222 == mode & !0o222 && before & !mode == 0;
        let entry = self.roles(id).into_iter().find_map(|role| match role {
            Role::Entry(path) => Some(path),
            _ => None,
        });
        if let (Some(path), false, None) = (entry, only_adds_write, &self.node(id).unsealed) {
            self.commit(&path, id);
        }
    }

    /// A name goes: of a file that is being written into that place, the rest is scratch.
    fn leave(&mut self, parent: Id, name: &str) {
        let role = self.role(parent, name);
        let id = self.names_mut(parent).remove(name).unwrap();
        if let Role::Entry(path) = role {
            self.node_mut(id).unsealed.take_if(|at| *at == path);
        }
    }

    pub(crate) fn unlink(&mut self, parent: Id, name: &str) -> Result<(), Errno> {
        let id = self.get(parent, name).ok_or(Errno::NOENT)?;
        if self.children(id).is_some() {
            return Err(Errno::ISDIR);
        }
        self.leave(parent, name);
        Ok(())
    }

    pub(crate) fn rmdir(&mut self, parent: Id, name: &str) -> Result<(), Errno> {
        let id = self.get(parent, name).ok_or(Errno::NOENT)?;
        match self.children(id) {
            None => Err(Errno::NOTDIR),
            Some(names) if !names.is_empty() => Err(Errno::NOTEMPTY),
            Some(_) => {
                self.leave(parent, name);
                Ok(())
            }
        }
    }

    pub(crate) fn link(&mut self, id: Id, parent: Id, name: &str) -> Result<Id, Fail> {
        let node = self.node(id).clone();
        if self.get(parent, name).is_some() || self.children(id).is_some() {
            return Err(Fail::Somehow);
        }
        let Role::Entry(path) = self.role(parent, name) else {
            if self.is_entry(id) {
                return Err(Fail::With(Errno::XDEV));
            }
            self.names_mut(parent).insert(name.to_owned(), id);
            return Ok(id);
        };
        if node.writers > 0 || node.unsealed.is_some() || node.kind == Kind::Fifo {
            return Err(Fail::With(Errno::XDEV));
        }
        let copy = self.add(parent, name, node.kind, node.mode & 0o777);
        self.commit(&path, copy);
        Ok(copy)
    }

    /// What the kernel refuses by itself.
    fn refused_rename(&self, from: (Id, Id), to: (Id, Option<Id>), flags: u32) -> bool {
        let is_below = |id: Id, dir: Id| {
            let mut below = vec![dir];
            while let Some(at) = below.pop() {
                if at == id {
                    return true;
                }
                below.extend(self.children(at).into_iter().flatten().map(|c| c.1));
            }
            false
        };
        let into_itself = is_below(to.0, from.1);
        let onto_ancestor = to.1.is_some_and(|to| is_below(from.0, to));
        let exists = to.1.is_some();
        let flagged = match flags {
            libc::RENAME_NOREPLACE => exists,
            libc::RENAME_EXCHANGE => !exists,
            _ => false,
        };
        into_itself || onto_ancestor || flagged
    }

    /// Whether a node may go from one role to the other.
    fn may_move(&self, id: Id, from: &Role, to: &Role) -> bool {
        let regular = matches!(self.node(id).kind, Kind::File(_));
        match (from, to) {
            (Role::Entry(_), Role::Entry(_)) => true,
            (Role::Entry(_), _) if regular => false,
            (_, Role::Entry(_)) if regular && self.links(id) > 1 => false,
            (Role::Prefix, _) | (_, Role::Prefix) => false,
            _ => true,
        }
    }

    pub(crate) fn rename(
        &mut self,
        from: (Id, &str),
        to: (Id, &str),
        flags: u32,
    ) -> Result<(), Fail> {
        let Some(moving) = self.get(from.0, from.1) else {
            return Err(Fail::With(Errno::NOENT));
        };
        let replaced = self.get(to.0, to.1);
        let exchange = flags == libc::RENAME_EXCHANGE;
        if replaced == Some(moving) {
            return Err(Fail::Unasked);
        }
        if self.refused_rename((from.0, moving), (to.0, replaced), flags) {
            return Err(Fail::Somehow);
        }
        let (from_role, to_role) = (self.role(from.0, from.1), self.role(to.0, to.1));
        let back = replaced.filter(|_| exchange);
        if !self.may_move(moving, &from_role, &to_role)
            || back.is_some_and(|back| !self.may_move(back, &to_role, &from_role))
        {
            return Err(Fail::With(Errno::XDEV));
        }
        if let (Some(replaced), false) = (replaced, exchange) {
            self.may_replace(moving, replaced)?;
        }
        self.leave(from.0, from.1);
        if replaced.is_some() {
            self.leave(to.0, to.1);
        }
        if let Some(back) = back {
            self.arrive(back, from, &from_role);
        }
        self.arrive(moving, to, &to_role);
        Ok(())
    }

    fn may_replace(&self, moving: Id, replaced: Id) -> Result<(), Fail> {
        match (self.children(moving), self.children(replaced)) {
            (Some(_), None) => Err(Fail::With(Errno::NOTDIR)),
            (None, Some(_)) => Err(Fail::With(Errno::ISDIR)),
            (Some(_), Some(names)) if !names.is_empty() => Err(Fail::With(Errno::NOTEMPTY)),
            _ => Ok(()),
        }
    }

    fn arrive(&mut self, id: Id, to: (Id, &str), role: &Role) {
        self.names_mut(to.0).insert(to.1.to_owned(), id);
        if let Role::Entry(path) = role {
            if self.node(id).writers > 0 {
                self.node_mut(id).unsealed = Some(path.clone());
            } else {
                self.commit(path, id);
            }
        }
    }

    /// Whether an entry goes when it is to be evicted.
    pub(crate) fn evict(&mut self, path: &str) -> bool {
        let (prefix, name) = path.split_once('/').unwrap();
        let found = self
            .get(ROOT_ID, prefix)
            .and_then(|p| Some((p, self.get(p, name)?)));
        let Some((parent, id)) = found else {
            return true;
        };
        let node = self.node(id);
        if node.opens > 0 || node.unsealed.is_some() || self.pending.contains_key(path) {
            return false;
        }
        self.leave(parent, name);
        true
    }

    /// Everything pending is uploaded; the first content under a signature stays.
    pub(crate) fn drain(&mut self) {
        let mut pushes: Vec<_> = std::mem::take(&mut self.pending).into_iter().collect();
        pushes.sort_by_key(|(_, push)| push.seq);
        for (path, push) in pushes {
            let (meta, bytes) = match &self.node(push.id).kind {
                Kind::File(bytes) => (Meta::file(push.mode), bytes.clone()),
                Kind::Symlink(target) => (Meta::Symlink, target.clone().into_bytes()),
                other => panic!("{other:?} was pushed"),
            };
            self.put(&path, meta, &bytes);
        }
    }

    pub(crate) fn put(&mut self, path: &str, meta: Meta, bytes: &[u8]) {
        let stays = self.remote.get(path).is_some_and(|(theirs, there)| {
            there != bytes || (*theirs == Meta::Symlink) != (meta == Meta::Symlink)
        });
        if !stays {
            self.remote.insert(path.to_owned(), (meta, bytes.to_vec()));
        }
    }

    /// The machine dies: what was being written into place goes, what it knew is forgotten.
    pub(crate) fn crash(&mut self) {
        self.misses.clear();
        let written: Vec<_> = self
            .nodes
            .values_mut()
            .filter_map(|n| n.unsealed.take())
            .collect();
        for path in written {
            let (prefix, name) = path.split_once('/').unwrap();
            let prefix = self.get(ROOT_ID, prefix).unwrap();
            self.leave(prefix, name);
        }
        for node in self.nodes.values_mut() {
            (node.opens, node.writers) = (0, 0);
        }
    }

    /// Entries that count against the limit: their lengths.
    pub(crate) fn entry_lengths(&self) -> Vec<u64> {
        let committed = |id: &Id| {
            let node = self.node(*id);
            node.unsealed.is_none().then_some(match &node.kind {
                Kind::File(bytes) => bytes.len() as u64,
                Kind::Symlink(target) => target.len() as u64,
                _ => return None,
            })
        };
        let entries = |prefix: &&str| {
            let dir = self.get(ROOT_ID, prefix);
            let names = dir.and_then(|dir| Some((dir, self.children(dir)?)));
            let entry = |dir, name: &str| matches!(self.role(dir, name), Role::Entry(_));
            names.into_iter().flat_map(move |(dir, names)| {
                names
                    .iter()
                    .filter(move |(n, _)| entry(dir, n))
                    .map(|(_, id)| *id)
                    .collect::<Vec<_>>()
            })
        };
        let all: Vec<Id> = PREFIXES.iter().flat_map(entries).collect();
        all.iter().filter_map(committed).collect()
    }

    /// How many entries are being written into place.
    pub(crate) fn unsealed(&self) -> usize {
        self.nodes.values().filter(|n| n.unsealed.is_some()).count()
    }

    /// How many uploads are pending.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }
}
