//! One connection to a server: TCP, or TLS over it, with a limit to every wait.
//!
//! This module knows nothing of what is said over it.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_platform_verifier::Verifier;
use url::Url;

use crate::clock::Clock;
use crate::remote::redis::fault;
use crate::remote::{RemoteError, RemoteOptions};

/// Where a Redis listens unless the URL says otherwise.
const PORT: u16 = 6379;

/// Stall times that a write may take, and an answer to one: the kernel holds megabytes of an upload and takes more only when
/// a third of that is gone, for which a slow line takes a while. A line that is dead is noticed by `TCP_USER_TIMEOUT`.
const WRITE_STALLS: u32 = 12;

/// Shortest time that a socket can be told to wait: zero would be for ever.
const SHORTEST: Duration = Duration::from_millis(1);

/// Where to connect to, and how long to wait for what.
pub(super) struct Server {
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    clock: Arc<dyn Clock>,
    connect: Duration,
    stall: Duration,
    request: Duration,
}

/// A connection.
pub(super) struct Wire {
    stream: Stream,
    clock: Arc<dyn Clock>,
    stall: Duration,
    request: Duration,
    /// When the call that uses it is given up.
    until: Duration,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// The URL without user and password.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}{}", url.scheme(), url.path())
}

impl Server {
    /// The server that a URL names.
    pub(super) fn new(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let wrong =
            |why: String| RemoteError::Misconfigured(format!("remote {}: {why}", shown(url)));
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("want a host, as in redis://host/0".to_owned()))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = match url.scheme() {
            "rediss" => {
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| wrong(error.to_string()))?;
                Some((Arc::new(tls(options)?), name))
            }
            _ => None,
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(PORT),
            tls,
            clock: Arc::clone(&options.clock),
            connect: options.connect_timeout,
            stall: options.stall_timeout,
            request: options.request_timeout,
        })
    }

    /// Host and port as in a URL.
    pub(super) fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// A connection over which nothing was said yet.
    pub(super) fn connect(&self) -> Result<Wire, RemoteError> {
        let until = self.now() + self.connect;
        let connected = self.stream(until).map_err(|error| {
            let late = matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            );
            match fault::broken(error) {
                RemoteError::Transient(_) if late => {
                    RemoteError::Transient("timed out connecting".to_owned())
                }
                error => error.during("connect"),
            }
        });
        let mut wire = Wire {
            stream: connected?,
            clock: Arc::clone(&self.clock),
            stall: self.stall,
            request: self.request,
            until,
        };
        wire.begin();
        let limits = wire.limit(self.stall, self.stall * WRITE_STALLS);
        limits.map_err(|error| fault::broken(error).during("connect"))?;
        Ok(wire)
    }

    fn stream(&self, until: Duration) -> io::Result<Stream> {
        let tcp = self.dial(until)?;
        tcp.set_nodelay(true)?;
        let stall = u32::try_from(self.stall.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(&tcp, stall)?;
        let Some((config, name)) = &self.tls else {
            return Ok(Stream::Plain(tcp));
        };
        let session = ClientConnection::new(Arc::clone(config), name.clone());
        let session = session.map_err(io::Error::other)?;
        self.shake_hands(session, tcp, until)
    }

    /// Each address gets its share of the time, so that one that is dead does not hide the next.
    fn dial(&self, until: Duration) -> io::Result<TcpStream> {
        let addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        let mut last = io::Error::other("the name has no address");
        for (at, address) in addresses.iter().enumerate() {
            let share = self.left(until)? / u32::try_from(addresses.len() - at).unwrap_or(1);
            match TcpStream::connect_timeout(address, share.max(SHORTEST)) {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn shake_hands(
        &self,
        mut session: ClientConnection,
        mut tcp: TcpStream,
        until: Duration,
    ) -> io::Result<Stream> {
        while session.is_handshaking() {
            let left = Some(self.left(until)?);
            tcp.set_read_timeout(left)?;
            tcp.set_write_timeout(left)?;
            if session.wants_write() {
                session.write_tls(&mut tcp)?;
            } else if session.read_tls(&mut tcp)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            } else {
                session.process_new_packets().map_err(io::Error::other)?;
            }
        }
        Ok(Stream::Tls(Box::new(StreamOwned::new(session, tcp))))
    }

    fn left(&self, until: Duration) -> io::Result<Duration> {
        let left = until.saturating_sub(self.now());
        if left < SHORTEST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Wire {
    /// A call begins: it may take as long as one request.
    pub(super) fn begin(&mut self) {
        self.until = self.clock.now() + self.request;
    }

    /// Whether nothing came over it that nobody asked for, its end included.
    pub(super) fn is_quiet(&self) -> bool {
        let tcp = self.tcp();
        if tcp.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = tcp.peek(&mut [0]);
        let quiet = peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        quiet && tcp.set_nonblocking(false).is_ok()
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.in_time()?;
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.write_all(bytes),
            Stream::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    /// From now on nothing is waited for longer than this.
    pub(super) fn hurry(&mut self, limit: Duration) {
        // If it cannot be, the usual limit holds.
        let _ = self.limit(limit, limit);
    }

    /// Answers may take as long as writes do, or only the usual time again.
    pub(super) fn be_patient(&mut self, patient: bool) -> io::Result<()> {
        let stalls = if patient { WRITE_STALLS } else { 1 };
        let limit = (self.stall * stalls).max(SHORTEST);
        self.tcp().set_read_timeout(Some(limit))
    }

    fn limit(&self, read: Duration, write: Duration) -> io::Result<()> {
        self.tcp().set_read_timeout(Some(read.max(SHORTEST)))?;
        self.tcp().set_write_timeout(Some(write.max(SHORTEST)))
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    fn in_time(&self) -> io::Result<()> {
        if self.clock.now() >= self.until {
            let text = "timed out: longer than request_timeout".to_owned();
            return Err(RemoteError::Transient(text).into_io());
        }
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.in_time()?;
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.read(buf),
            Stream::Tls(tls) => tls.read(buf),
        }
    }
}

/// The system's authorities and those of `ca_file`.
fn tls(options: &RemoteOptions) -> Result<ClientConfig, RemoteError> {
    let set_up = |error: rustls::Error| RemoteError::Misconfigured(format!("set up TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let extra = match &options.ca_file {
        None => Vec::new(),
        Some(path) => {
            let wrong = |error: String| {
                RemoteError::Misconfigured(format!("read CA file {}: {error}", path.display()))
            };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|error| wrong(error.to_string()))?;
            if found.is_empty() {
                return Err(wrong("no certificate in it".to_owned()));
            }
            found
        }
    };
    let verifier = Verifier::new_with_extra_roots(extra, Arc::clone(&provider)).map_err(set_up)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(set_up)?
        // The verifier is called custom because it asks the system; it verifies.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}
