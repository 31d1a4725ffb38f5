//! A TCP proxy in front of a server on loopback, which does to the bytes what networks and dying servers do.
//!
//! It does not look into the bytes, so TLS passes through it as well. What it does is said with [`Proxy::set`], at
//! any time, for connections to come and for those that exist. Offsets are counted for each connection and
//! direction, from the moment the fault was set or the connection was made, whichever was later.
//!
//! A connection has two directions and each of them a reader, a queue, and a writer, on which the fault acts. When
//! the client has closed its side while a fault holds the answer back, the connection is over.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};

#[cfg(test)]
mod tests;

/// Bytes on their way in one direction that the proxy takes before it reads no more: little, so that who sends
/// notices what the reader does …
const QUEUE: usize = 64 * 1024;
/// … but for a delay line, which has to hold what is under way.
const DELAY_QUEUE: usize = 8 << 20;

/// Most bytes that are written at once when bytes are counted.
const PIECE: usize = 16 * 1024;

/// How long it may take until a full backlog has become full, or a closed port closed.
const SETTLED: Duration = Duration::from_millis(300);

/// Which stream of bytes is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client: requests, uploads.
    Request,
    /// From the server: headers, bodies.
    Response,
}

/// What becomes of connections and their bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    Pass,
    /// Nobody listens; connections that exist are reset, as when the server died.
    Refuse,
    /// The network is unplugged: a SYN is never answered, and what is connected hears nothing any more.
    Blackhole,
    /// Connections are accepted and read from, and never answered. Such a connection stays so.
    Silent,
    /// RST once so many bytes have passed; with 0 at once.
    Reset { way: Way, after: u64 },
    /// FIN to both sides once so many bytes have passed; with 0 when the first byte is due.
    Cut { way: Way, after: u64 },
    /// So many bytes pass, and then nothing more.
    Stall { way: Way, after: u64 },
    /// So many bytes pass as they come, and then they trickle.
    Trickle {
        way: Way,
        after: u64,
        bytes_per_second: u64,
    },
    /// One bit of the byte at this offset is the other one.
    FlipBit { way: Way, at: u64 },
    /// A round trip takes so long; bytes under way are not held up by one another. A new connection costs one more.
    Delay { rtt: Duration },
    /// No more bytes than this in a second, in each direction of each connection.
    Bandwidth { bytes_per_second: u64 },
}

impl Fault {
    /// The answer ends early.
    pub(crate) fn cut_after(after: u64) -> Self {
        let way = Way::Response;
        Self::Cut { way, after }
    }

    /// The answer stops coming.
    pub(crate) fn stall_after(after: u64) -> Self {
        let way = Way::Response;
        Self::Stall { way, after }
    }

    /// The connection is reset in the middle of the answer.
    pub(crate) fn reset_after(after: u64) -> Self {
        let way = Way::Response;
        Self::Reset { way, after }
    }

    /// The answer is damaged.
    pub(crate) fn flip_bit(at: u64) -> Self {
        let way = Way::Response;
        Self::FlipBit { way, at }
    }

    /// The answer comes slowly after its first bytes.
    pub(crate) fn trickle(after: u64, bytes_per_second: u64) -> Self {
        let way = Way::Response;
        Self::Trickle {
            way,
            after,
            bytes_per_second,
        }
    }

    /// What a client sees that connects.
    fn door(self) -> Door {
        match self {
            Self::Refuse => Door::Closed,
            Self::Blackhole => Door::Full,
            _ => Door::Open,
        }
    }
}

/// See the module.
pub(crate) struct Proxy {
    /// Bound to the port and never listening, so that nobody else gets the port while we refuse.
    _holder: OwnedFd,
    entrance: Mutex<Entrance>,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy in front of the server that listens on this port of 127.0.0.1.
    pub(crate) fn to(server: u16) -> Self {
        let (holder, port) = hold_a_port();
        let shared = Arc::new(Shared {
            port,
            server,
            plan: Mutex::new(Plan {
                fault: Fault::Pass,
                nth: 0,
                since: Instant::now(),
            }),
            lines: Mutex::default(),
            connections: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            responded: AtomicU64::new(0),
        });
        let entrance = Mutex::new(Entrance::open(&shared));
        Self {
            _holder: holder,
            entrance,
            shared,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.shared.port
    }

    /// `SCHEME://127.0.0.1:PORT/PATH`.
    pub(crate) fn url(&self, scheme: &str, path: &str) -> String {
        let path = path.trim_start_matches('/');
        format!("{scheme}://127.0.0.1:{}/{path}", self.port())
    }

    /// From now on this happens. When it returns, a new connection meets it.
    pub(crate) fn set(&self, fault: Fault) {
        let mut entrance = self.entrance.lock().unwrap();
        if fault.door() != entrance.door {
            entrance.close();
        }
        {
            let mut plan = self.shared.plan.lock().unwrap();
            plan.fault = fault;
            plan.nth += 1;
            plan.since = Instant::now();
        }
        if fault.door() != entrance.door {
            *entrance = match fault.door() {
                Door::Open => Entrance::open(&self.shared),
                Door::Closed => Entrance::closed(),
                Door::Full => Entrance::full(self.port()),
            };
        }
        // Not left to the writers: they would miss a fault that is over soon.
        let at_once = matches!(fault, Fault::Refuse | Fault::Reset { after: 0, .. });
        for line in self.shared.lines() {
            if at_once {
                line.reset();
            } else {
                line.notify();
            }
        }
    }

    pub(crate) fn fault(&self) -> Fault {
        self.shared.plan().fault
    }

    /// Connections that were accepted so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are there now.
    pub(crate) fn open(&self) -> usize {
        self.shared.lines().len()
    }

    /// Bytes that reached the server.
    pub(crate) fn requested(&self) -> u64 {
        self.shared.requested.load(Ordering::SeqCst)
    }

    /// Bytes that reached clients.
    pub(crate) fn responded(&self) -> u64 {
        self.shared.responded.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    /// Every thread has ended when this returns.
    fn drop(&mut self) {
        self.entrance.lock().unwrap().close();
        let mut lines = std::mem::take(&mut *self.shared.lines.lock().unwrap());
        for (line, _) in &lines {
            line.end();
        }
        for (_, threads) in &mut lines {
            let threads = std::mem::take(threads);
            for thread in threads {
                // A thread that panicked has said so.
                let _panicked = thread.join();
            }
        }
    }
}

/// A port of our own, by a socket that holds it.
fn hold_a_port() -> (OwnedFd, u16) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let name = rustix::net::getsockname(&socket).unwrap();
    let port = SocketAddr::try_from(name).unwrap().port();
    (socket, port)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Closed,
    Full,
}

/// The listening end.
struct Entrance {
    door: Door,
    listener: Option<Arc<TcpListener>>,
    acceptor: Option<JoinHandle<()>>,
    /// What fills the backlog.
    fillers: Vec<TcpStream>,
}

impl Entrance {
    fn open(shared: &Arc<Shared>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, shared.port))
            .unwrap_or_else(|e| panic!("port {}: {e}", shared.port));
        let listener = Arc::new(listener);
        let acceptor = {
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(shared));
            thread::spawn(move || accept(&listener, &shared))
        };
        Self {
            door: Door::Open,
            listener: Some(listener),
            acceptor: Some(acceptor),
            fillers: Vec::new(),
        }
    }

    fn closed() -> Self {
        Self {
            door: Door::Closed,
            listener: None,
            acceptor: None,
            fillers: Vec::new(),
        }
    }

    /// A backlog with room for one, taken by ourselves: the kernel drops every further SYN.
    fn full(port: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let listener = TcpListener::from(socket);
        let mut fillers = Vec::new();
        // The first may be somebody else's, who then takes part in filling it.
        while let Ok(filler) = TcpStream::connect_timeout(&address, SETTLED) {
            fillers.push(filler);
        }
        Self {
            door: Door::Full,
            listener: Some(Arc::new(listener)),
            acceptor: None,
            fillers,
        }
    }

    fn close(&mut self) {
        if let Some(listener) = self.listener.take() {
            // Wakes the acceptor. What waits in the backlog is reset.
            let _ended = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
        self.fillers.clear();
        self.door = Door::Closed;
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(_) => return,
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)) else {
            reset(&client);
            continue;
        };
        for socket in [&client, &server] {
            // Of a connection that is gone already, reading will tell.
            let _gone = socket.set_nodelay(true);
        }
        let line = Arc::new(Line {
            accepted: Instant::now(),
            client,
            server,
            silenced: AtomicBool::new(false),
            client_is_gone: AtomicBool::new(false),
            flows: [Flow::default(), Flow::default()],
        });
        shared.run(&line);
    }
}

/// What is asked of the proxy at the moment.
#[derive(Clone, Copy)]
struct Plan {
    fault: Fault,
    nth: u64,
    since: Instant,
}

struct Shared {
    port: u16,
    server: u16,
    plan: Mutex<Plan>,
    lines: Mutex<Vec<Served>>,
    connections: AtomicU64,
    requested: AtomicU64,
    responded: AtomicU64,
}

impl Shared {
    fn plan(&self) -> Plan {
        *self.plan.lock().unwrap()
    }

    /// The connections whose threads still run.
    fn lines(&self) -> Vec<Arc<Line>> {
        let mut lines = self.lines.lock().unwrap();
        lines.retain(|(_, threads)| threads.iter().any(|thread| !thread.is_finished()));
        lines.iter().map(|(line, _)| Arc::clone(line)).collect()
    }

    fn run(self: &Arc<Self>, line: &Arc<Line>) {
        let mut threads = Vec::new();
        for way in [Way::Request, Way::Response] {
            let at = Arc::clone(line);
            threads.push(thread::spawn(move || at.take_in(way)));
            let (at, shared) = (Arc::clone(line), Arc::clone(self));
            threads.push(thread::spawn(move || Writer::new(&at, &shared, way).run()));
        }
        let mut lines = self.lines.lock().unwrap();
        lines.retain(|(_, threads)| threads.iter().any(|thread| !thread.is_finished()));
        lines.push((Arc::clone(line), threads));
    }

    fn count(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::Request => &self.requested,
            Way::Response => &self.responded,
        };
        counter.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}

/// A connection and its threads.
type Served = (Arc<Line>, Vec<JoinHandle<()>>);

/// One connection of a client, and ours to the server for it.
struct Line {
    accepted: Instant,
    client: TcpStream,
    server: TcpStream,
    /// It was met by `Silent` and will never be answered.
    silenced: AtomicBool,
    client_is_gone: AtomicBool,
    flows: [Flow; 2],
}

/// One direction.
#[derive(Default)]
struct Flow {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// A delay line holds more.
    deep: bool,
    /// When the source said that there is no more.
    ended: Option<Instant>,
    /// Nothing is written any more; what is read is thrown away.
    cut: bool,
}

impl Line {
    fn flow(&self, way: Way) -> &Flow {
        match way {
            Way::Request => &self.flows[0],
            Way::Response => &self.flows[1],
        }
    }

    fn source(&self, way: Way) -> &TcpStream {
        match way {
            Way::Request => &self.client,
            Way::Response => &self.server,
        }
    }

    fn sink(&self, way: Way) -> &TcpStream {
        match way {
            Way::Request => &self.server,
            Way::Response => &self.client,
        }
    }

    fn notify(&self) {
        for flow in &self.flows {
            let _queue = flow.queue.lock().unwrap();
            flow.changed.notify_all();
        }
    }

    /// Reads one direction into its queue.
    fn take_in(&self, way: Way) {
        let flow = self.flow(way);
        let mut chunk = vec![0; PIECE];
        loop {
            {
                let mut queue = flow.queue.lock().unwrap();
                while !queue.cut && queue.bytes >= if queue.deep { DELAY_QUEUE } else { QUEUE } {
                    queue = flow.changed.wait(queue).unwrap();
                }
            }
            match self.source(way).read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    let mut queue = flow.queue.lock().unwrap();
                    if !queue.cut {
                        queue
                            .chunks
                            .push_back((Instant::now(), chunk[..n].to_vec()));
                        queue.bytes += n;
                    }
                    flow.changed.notify_all();
                }
                Err(_) => {
                    // Reset on one side is reset on the other.
                    self.reset();
                    return;
                }
            }
        }
        flow.queue.lock().unwrap().ended = Some(Instant::now());
        if way == Way::Request {
            self.client_is_gone.store(true, Ordering::SeqCst);
        }
        self.notify();
    }

    fn stop_writing(&self) {
        for flow in &self.flows {
            let mut queue = flow.queue.lock().unwrap();
            queue.cut = true;
            queue.chunks.clear();
            queue.bytes = 0;
            flow.changed.notify_all();
        }
    }

    /// Both sides get a RST.
    fn reset(&self) {
        self.stop_writing();
        reset(&self.client);
        reset(&self.server);
    }

    /// Both sides get a FIN. What the client still sends is read: a RST could overtake what it has not read yet.
    fn cut(&self) {
        self.stop_writing();
        // One that is closed already needs no closing.
        let _closed = self.client.shutdown(Shutdown::Write);
        let _closed = self.server.shutdown(Shutdown::Both);
    }

    fn end(&self) {
        self.stop_writing();
        for socket in [&self.client, &self.server] {
            let _closed = socket.shutdown(Shutdown::Both);
        }
    }
}

/// To take back a connection is to reset it, and wakes whoever reads or writes it.
fn reset(socket: &TcpStream) {
    let no_time = Some(Duration::ZERO);
    // Of a connection that is gone already there is nothing to reset.
    let _gone = sockopt::set_socket_linger(socket, no_time);
    if rustix::net::connect_unspec(socket).is_err() {
        let _gone = socket.shutdown(Shutdown::Both);
    }
}

/// Writes one direction from its queue, as the fault of the moment has it.
struct Writer<'a> {
    line: &'a Line,
    shared: &'a Shared,
    way: Way,
    /// The plan that `passed` is counted under.
    nth: u64,
    passed: u64,
    /// When the next byte may go, where bytes are counted by time.
    next: Instant,
}

/// What to do next.
enum Step {
    /// Nothing, until something changes or this time has come.
    Wait(Option<Instant>),
    /// Write at most so many bytes.
    Write(usize),
    /// The same for one byte, damaged.
    Flip,
    /// Throw away what is there.
    Discard,
    Cut,
    Reset,
    /// The client has left.
    Leave,
    /// The stream has ended, and so it does on the other side.
    End,
}

impl<'a> Writer<'a> {
    fn new(line: &'a Line, shared: &'a Shared, way: Way) -> Self {
        Self {
            line,
            shared,
            way,
            nth: shared.plan().nth,
            passed: 0,
            next: Instant::now(),
        }
    }

    fn run(mut self) {
        let flow = self.line.flow(self.way);
        loop {
            let mut queue = flow.queue.lock().unwrap();
            if queue.cut {
                return;
            }
            match self.step(&mut queue) {
                Step::Wait(until) => self.wait(queue, until),
                Step::Write(most) => {
                    let bytes = take(&mut queue, most);
                    flow.changed.notify_all();
                    drop(queue);
                    if !self.write(&bytes) {
                        return;
                    }
                }
                Step::Flip => {
                    let mut bytes = take(&mut queue, 1);
                    drop(queue);
                    bytes[0] ^= 1 << (self.passed % 8);
                    if !self.write(&bytes) {
                        return;
                    }
                }
                Step::Discard => {
                    queue.chunks.clear();
                    queue.bytes = 0;
                    flow.changed.notify_all();
                }
                Step::Cut => {
                    drop(queue);
                    return self.line.cut();
                }
                Step::Reset => {
                    drop(queue);
                    return self.line.reset();
                }
                Step::Leave => {
                    drop(queue);
                    return self.line.end();
                }
                Step::End => {
                    drop(queue);
                    let _closed = self.line.sink(self.way).shutdown(Shutdown::Write);
                    return;
                }
            }
        }
    }

    fn step(&mut self, queue: &mut Queue) -> Step {
        let plan = self.shared.plan();
        if plan.nth != self.nth {
            (self.nth, self.passed) = (plan.nth, 0);
        }
        if plan.fault == Fault::Silent && !queue.chunks.is_empty() {
            self.line.silenced.store(true, Ordering::SeqCst);
        }
        queue.deep = matches!(plan.fault, Fault::Delay { .. });
        let (arrived, there) = match (queue.chunks.front(), queue.ended) {
            (Some((arrived, _)), _) => (*arrived, queue.bytes),
            (None, Some(ended)) => (ended, 0),
            (None, None) => (Instant::now(), 0),
        };
        let idle = there == 0 && queue.ended.is_none();
        let all = match there {
            0 => Step::End,
            there => Step::Write(there),
        };
        if self.line.silenced.load(Ordering::SeqCst) {
            return match self.way {
                Way::Request if there > 0 => Step::Discard,
                _ => self.hold(),
            };
        }
        let rest = |after: u64| after.saturating_sub(self.passed);
        let within = |left: u64| match there {
            0 => Step::End,
            there => Step::Write(usize::try_from(left).unwrap_or(there).min(there)),
        };
        match plan.fault {
            Fault::Refuse => Step::Reset,
            Fault::Blackhole => self.hold(),
            Fault::Reset { after: 0, .. } => Step::Reset,
            Fault::Reset { way, after } if way == self.way && rest(after) == 0 => Step::Reset,
            Fault::Cut { way, after }
                if way == self.way && rest(after) == 0 && (after > 0 || there > 0) =>
            {
                Step::Cut
            }
            Fault::Stall { way, after } if way == self.way && rest(after) == 0 => self.hold(),
            _ if idle => Step::Wait(None),
            Fault::Reset { way, after }
            | Fault::Cut { way, after }
            | Fault::Stall { way, after }
                if way == self.way =>
            {
                within(rest(after))
            }
            Fault::FlipBit { way, at } if way == self.way && self.passed <= at => match rest(at) {
                0 if there > 0 => Step::Flip,
                left => within(left),
            },
            Fault::Trickle {
                way,
                after,
                bytes_per_second,
            } if way == self.way => match rest(after) {
                0 => self.paced(there, bytes_per_second),
                left => within(left),
            },
            Fault::Bandwidth { bytes_per_second } => self.paced(there, bytes_per_second),
            Fault::Delay { rtt } => {
                let mut due = arrived + rtt / 2;
                // Its handshake took a round trip before the first byte could go.
                if self.line.accepted >= plan.since {
                    due = due.max(self.line.accepted + rtt + rtt / 2);
                }
                match queue.chunks.front() {
                    _ if due > Instant::now() => Step::Wait(Some(due)),
                    Some((_, chunk)) => Step::Write(chunk.len()),
                    None => Step::End,
                }
            }
            _ => all,
        }
    }

    /// So many bytes a second, in pieces of a fiftieth of it. Time that was not used is gone.
    fn paced(&mut self, there: usize, bytes_per_second: u64) -> Step {
        let now = Instant::now();
        if there == 0 {
            return Step::End;
        }
        if self.next > now {
            return Step::Wait(Some(self.next));
        }
        let piece = usize::try_from(bytes_per_second / 50).unwrap_or(PIECE);
        let piece = piece.clamp(1, PIECE).min(there);
        self.next = now + Duration::from_secs_f64(piece as f64 / bytes_per_second as f64);
        Step::Write(piece)
    }

    /// Nothing for now, and an end if the client does not wait any more.
    fn hold(&self) -> Step {
        if self.line.client_is_gone.load(Ordering::SeqCst) {
            Step::Leave
        } else {
            Step::Wait(None)
        }
    }

    fn wait(&self, queue: MutexGuard<'_, Queue>, until: Option<Instant>) {
        let changed = &self.line.flow(self.way).changed;
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Whatever woke it, the caller looks again.
        match left {
            Some(left) => drop(changed.wait_timeout(queue, left).unwrap()),
            None => drop(changed.wait(queue).unwrap()),
        }
    }

    /// Whether the connection is still good.
    fn write(&mut self, bytes: &[u8]) -> bool {
        if self.line.sink(self.way).write_all(bytes).is_err() {
            self.line.end();
            return false;
        }
        self.passed += bytes.len() as u64;
        self.shared.count(self.way, bytes.len());
        true
    }
}

/// The first bytes of the queue, at most so many.
fn take(queue: &mut Queue, most: usize) -> Vec<u8> {
    let mut taken = Vec::new();
    while taken.len() < most {
        let Some((_, chunk)) = queue.chunks.front_mut() else {
            break;
        };
        let left = most - taken.len();
        if chunk.len() <= left {
            taken.append(chunk);
            queue.chunks.pop_front();
        } else {
            taken.extend(chunk.drain(..left));
        }
    }
    queue.bytes -= taken.len();
    taken
}
