//! One request and its answer, from a thread that blocks. Async code, driven with `block_on`: reqwest on
//! the runtime that all remotes share.
//!
//! A request follows redirects within its scheme, and sends credentials only to the origin of the
//! remote's URL. It is asked again with fresh credentials when they were rotated. Nothing else is retried here.
//!
//! Who signs requests uses [`Client::send_signed`]: one request, signed just before it goes, without redirects. What a
//! refusal means and whether it is worth another signature is the signer's affair.
//!
//! That has threads: a [`Client`] must be made after the process went to the background.

use std::future::Future;
use std::io::{self, Read};
use std::pin::pin;
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use reqwest::{Certificate, Identity, Method, RequestBuilder, Response, StatusCode, redirect};
use tokio::time::timeout;
use url::Url;

use crate::object::Payload;
use crate::remote::http::auth::{Auth, Credentials};
use crate::remote::http::body::{self, Progress};
use crate::remote::http::{content_length, status};
use crate::remote::pace::slowness;
use crate::remote::runtime::{self, Shared};
use crate::remote::{RemoteError, RemoteOptions, trust};

/// Redirects of one request. Caches redirect once (to a mirror or with a slash) if at all.
const REDIRECTS_MAX: usize = 5;

/// Idle connections are closed before nginx does it (75 s): it would close one as we send on it.
const POOL_IDLE: Duration = Duration::from_secs(60);

/// Stall times that an answer may take once all of an upload was handed over: the kernel holds megabytes of
/// it, which a slow line takes a while to carry. A line that is dead is noticed by `TCP_USER_TIMEOUT`.
const STALLS_AFTER_UPLOAD: u32 = 12;

/// A small answer nobody wants (the page of a 404) is read up to this, so that its connection
/// can be used again; with more than that, the connection is closed.
const DRAIN_MAX: u64 = 64 << 10;

/// An HTTP client for one server.
pub(in crate::remote) struct Client {
    engine: Arc<Engine>,
    auth: Auth,
    origin: Url,
}

/// What outlives the client in the readers of its answers.
struct Engine {
    runtime: Arc<Shared>,
    http: reqwest::Client,
    stall: Duration,
    min_speed: u64,
}

/// The head of a request, for who signs it.
pub(in crate::remote) type Head = http::request::Parts;

/// One request.
pub(in crate::remote) struct Request<'a> {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Upload<'a>,
}

enum Upload<'a> {
    Nothing,
    Text(&'static str),
    Bytes(Bytes),
    Payload(&'a Payload),
}

/// An answer, whatever its status.
pub(in crate::remote) struct Answer {
    engine: Arc<Engine>,
    subject: String,
    response: Response,
}

impl<'a> Request<'a> {
    pub(in crate::remote) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Upload::Nothing,
        }
    }

    pub(in crate::remote) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(in crate::remote) fn with_body(mut self, payload: &'a Payload) -> Self {
        self.body = Upload::Payload(payload);
        self
    }

    pub(in crate::remote) fn with_text(mut self, text: &'static str) -> Self {
        self.body = Upload::Text(text);
        self
    }

    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(in crate::remote) fn with_bytes(mut self, bytes: Bytes) -> Self {
        self.body = Upload::Bytes(bytes);
        self
    }

    pub(in crate::remote) fn subject(&self) -> String {
        format!("{} {}", self.method, self.url)
    }

    fn progress(&self) -> Progress {
        match self.body {
            Upload::Payload(payload) => Progress::of(payload.len()),
            Upload::Bytes(ref bytes) => Progress::of(bytes.len() as u64),
            Upload::Nothing | Upload::Text(_) => Progress::of(0),
        }
    }
}

impl Client {
    /// A client for who signs requests, and sends them to this origin.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(in crate::remote) fn unsigned(
        base: &Url,
        options: &RemoteOptions,
    ) -> Result<Self, RemoteError> {
        Self::new(base, Auth::none(), options)
    }

    /// A client that sends credentials to the origin of `base` only.
    pub(in crate::remote) fn new(
        base: &Url,
        auth: Auth,
        options: &RemoteOptions,
    ) -> Result<Self, RemoteError> {
        let http = build(options, !is_loopback(base))?;
        let engine = Engine {
            runtime: runtime::shared()?,
            http,
            stall: options.stall_timeout,
            min_speed: options.min_speed,
        };
        Ok(Self {
            engine: Arc::new(engine),
            auth,
            origin: base.clone(),
        })
    }

    /// Sends `request` and waits for the head of the answer.
    pub(in crate::remote) fn send(&self, request: &Request<'_>) -> Result<Answer, RemoteError> {
        let mut url = request.url.clone();
        let mut credentials = self.auth.current();
        let mut redirects = 0;
        loop {
            let sent = credentials
                .as_ref()
                .filter(|_| url.origin() == self.origin.origin());
            let answer = self.send_once(request, &url, sent)?;
            if answer.status() == StatusCode::UNAUTHORIZED
                && let Some(fresh) = self.auth.instead_of(credentials.as_ref())
            {
                credentials = Some(fresh);
            } else if let Some(next) = answer.redirect(&url, &request.method)? {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    return Err(RemoteError::Misconfigured(format!(
                        "{}: too many redirects",
                        answer.subject
                    )));
                }
                url = next;
            } else {
                return Ok(answer);
            }
            answer.drain();
        }
    }

    /// Sends `request` once, with the head that `sign` makes of its own.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(in crate::remote) fn send_signed(
        &self,
        request: &Request<'_>,
        sign: &dyn Fn(&mut Head) -> Result<(), RemoteError>,
    ) -> Result<Answer, RemoteError> {
        let progress = request.progress();
        let unusable =
            |cause: String| RemoteError::Misconfigured(format!("{}: {cause}", request.subject()));
        let mut head = http::Request::new(()).into_parts().0;
        head.method = request.method.clone();
        head.headers = request.headers.clone();
        let uri = request.url.as_str().parse();
        head.uri = uri.map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
        sign(&mut head)?;
        let url = Url::parse(&head.uri.to_string()).map_err(|error| unusable(error.to_string()))?;
        // These were signed; the connection says them in its own way.
        head.headers.remove(HOST);
        head.headers.remove(CONTENT_LENGTH);
        let builder = self.engine.http.request(head.method, url);
        self.finish(request, builder.headers(head.headers), &progress)
    }

    fn send_once(
        &self,
        request: &Request<'_>,
        url: &Url,
        credentials: Option<&Credentials>,
    ) -> Result<Answer, RemoteError> {
        let progress = request.progress();
        let mut builder = self
            .engine
            .http
            .request(request.method.clone(), url.clone());
        builder = builder.headers(request.headers.clone());
        if let Some(credentials) = credentials {
            builder = credentials.apply(builder);
        }
        self.finish(request, builder, &progress)
    }

    /// Adds the body, and waits for the head of the answer.
    fn finish(
        &self,
        request: &Request<'_>,
        builder: RequestBuilder,
        progress: &Progress,
    ) -> Result<Answer, RemoteError> {
        let builder = match &request.body {
            Upload::Nothing => builder,
            Upload::Text(text) => builder.body(*text),
            Upload::Payload(payload) if payload.is_empty() => builder.header(CONTENT_LENGTH, 0),
            Upload::Payload(payload) => {
                let body = body::upload(payload.reader(), payload.len(), progress.clone());
                builder.header(CONTENT_LENGTH, payload.len()).body(body)
            }
            Upload::Bytes(bytes) => {
                let body = body::upload(
                    Box::new(io::Cursor::new(bytes.clone())),
                    bytes.len() as u64,
                    progress.clone(),
                );
                builder.header(CONTENT_LENGTH, bytes.len()).body(body)
            }
        };
        let subject = request.subject();
        let (stall, min_speed) = (self.engine.stall, self.engine.min_speed);
        // Timers begin with `send`, so it must be called on the runtime.
        let sending = async { watched(builder.send(), progress, stall, min_speed).await };
        let response = self.engine.run(sending);
        match response {
            Ok(response) => Ok(Answer {
                engine: Arc::clone(&self.engine),
                subject,
                response,
            }),
            Err(fault) => Err(progress
                .failure()
                .unwrap_or_else(|| fault.into_error())
                .during(&subject)),
        }
    }
}

/// Why there is no answer.
enum Fault {
    Stalled,
    /// An upload went at so many bytes a second, fewer than so many.
    Slow(u64, u64),
    Failed(reqwest::Error),
}

impl Fault {
    fn into_error(self) -> RemoteError {
        match self {
            Self::Stalled => {
                RemoteError::Transient("timed out: no byte went either way".to_owned())
            }
            Self::Slow(speed, floor) => slowness(speed, floor),
            Self::Failed(error) => match trust::distrusted(&error) {
                Some(why) => RemoteError::Untrusted(why),
                None => RemoteError::Transient(explain(&error)),
            },
        }
    }
}

/// Waits for an answer as long as bytes are being sent, and one stall time more.
///
/// What was handed to the connection is more than what the server has, by what the kernel holds. So the mean since
/// the beginning is what an upload is judged by: it errs in favour of the server. Once all was handed over, no speed can
/// be told any more.
async fn watched(
    sending: impl Future<Output = reqwest::Result<Response>>,
    progress: &Progress,
    stall: Duration,
    min_speed: u64,
) -> Result<Response, Fault> {
    let mut took = Duration::ZERO;
    let mut sending = pin!(sending);
    let (mut seen, mut patience) = (0, 1);
    loop {
        match timeout(stall, sending.as_mut()).await {
            Ok(answered) => return answered.map_err(Fault::Failed),
            Err(_) if progress.sent() > seen => {
                took += stall;
                let speed = mean_speed(progress.sent(), took);
                if !progress.is_complete() && speed < min_speed {
                    return Err(Fault::Slow(speed, min_speed));
                }
                seen = progress.sent();
                patience = if progress.is_complete() {
                    STALLS_AFTER_UPLOAD
                } else {
                    1
                };
            }
            Err(_) if patience > 1 => patience -= 1,
            Err(_) => return Err(Fault::Stalled),
        }
    }
}

/// In bytes a second.
fn mean_speed(bytes: u64, time: Duration) -> u64 {
    let speed = u128::from(bytes) * 1000 / time.as_millis().max(1);
    u64::try_from(speed).unwrap_or(u64::MAX)
}

/// The cause at the bottom, which is what helps; reqwest's own words repeat the URL.
pub(in crate::remote) fn explain(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let what = match error {
        _ if error.is_connect() && error.is_timeout() => return "timed out connecting".to_owned(),
        _ if error.is_timeout() => return "timed out".to_owned(),
        _ if error.is_connect() => "connect",
        _ => "transfer",
    };
    format!("{what}: {cause}")
}

impl Engine {
    fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.run(future)
    }

    /// The next bytes of a body; empty at its end.
    fn chunk(&self, response: &mut Response) -> Result<Vec<u8>, RemoteError> {
        match self.run(async { timeout(self.stall, response.chunk()).await }) {
            Ok(Ok(chunk)) => Ok(chunk.map(Vec::from).unwrap_or_default()),
            Ok(Err(error)) => Err(Fault::Failed(error).into_error()),
            Err(_) => Err(Fault::Stalled.into_error()),
        }
    }
}

impl Answer {
    pub(in crate::remote) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(in crate::remote) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Method and URL, for errors.
    pub(in crate::remote) fn subject(&self) -> &str {
        &self.subject
    }

    /// Length of its body, where the server says so.
    pub(in crate::remote) fn len(&self) -> Option<u64> {
        content_length(self.headers())
    }

    pub(in crate::remote) fn is_type(&self, wanted: &str) -> bool {
        let given = self
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let essence = given.and_then(|value| value.split(';').next());
        self.status().is_success()
            && essence.is_some_and(|given| given.trim().eq_ignore_ascii_case(wanted))
    }

    /// The error that it stands for.
    pub(in crate::remote) fn into_error(self) -> RemoteError {
        let error = status::error(&self.subject, self.status(), self.headers());
        self.drain();
        error
    }

    /// The first `max` bytes of its body, as far as they come.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub(in crate::remote) fn text(self, max: u64) -> String {
        let mut bytes = Vec::new();
        // What came is as good as it gets: this is for errors.
        let _cut = self.into_reader().take(max).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its body.
    pub(in crate::remote) fn into_reader(self) -> AnswerReader {
        AnswerReader {
            answer: self,
            chunk: io::Cursor::default(),
        }
    }

    /// Where a redirect leads, if it is one that we follow.
    fn redirect(&self, from: &Url, method: &Method) -> Result<Option<Url>, RemoteError> {
        let follow = match self.status() {
            // Only these two promise that the method stays: a PUT must not become a GET.
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
                matches!(*method, Method::GET | Method::HEAD)
            }
            _ => false,
        };
        let Some(location) = self.headers().get(LOCATION).filter(|_| follow) else {
            return Ok(None);
        };
        let wrong =
            |why: &str| RemoteError::Misconfigured(format!("{}: redirected {why}", self.subject));
        let next = location
            .to_str()
            .ok()
            .and_then(|location| from.join(location).ok());
        let next = next.ok_or_else(|| wrong("to something that is no URL"))?;
        if next.scheme() != from.scheme() {
            return Err(wrong(&format!(
                "from {} to {}; name that URL itself",
                from.scheme(),
                next.scheme()
            )));
        }
        Ok(Some(next))
    }

    /// Reads what little is left, so that the connection stays open.
    pub(in crate::remote) fn drain(mut self) {
        let small = self.len().is_none_or(|len| len <= DRAIN_MAX);
        let mut left = DRAIN_MAX;
        while small && left > 0 {
            match self.engine.chunk(&mut self.response) {
                Ok(chunk) if !chunk.is_empty() => left = left.saturating_sub(chunk.len() as u64),
                _ => return,
            }
        }
    }
}

/// The body of an answer.
pub(in crate::remote) struct AnswerReader {
    answer: Answer,
    chunk: io::Cursor<Vec<u8>>,
}

impl Read for AnswerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.chunk.read(buf)?;
        if n > 0 || buf.is_empty() {
            return Ok(n);
        }
        let Answer {
            engine,
            subject,
            response,
        } = &mut self.answer;
        let chunk = engine
            .chunk(response)
            .map_err(|error| error.during(subject).into_io())?;
        self.chunk = io::Cursor::new(chunk);
        self.chunk.read(buf)
    }
}

/// reqwest as `options` want it, through the system's proxy or not.
pub(in crate::remote) fn build(
    options: &RemoteOptions,
    proxied: bool,
) -> Result<reqwest::Client, RemoteError> {
    static PROVIDER: Once = Once::new();
    // An error says that there is one already, which is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("cachedirfs/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .connect_timeout(options.connect_timeout)
        .timeout(options.request_timeout)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_user_timeout(options.stall_timeout)
        .http2_keep_alive_interval(options.stall_timeout)
        .http2_keep_alive_timeout(options.stall_timeout)
        .http2_adaptive_window(true);
    if !proxied {
        builder = builder.no_proxy();
    }
    if let Some(path) = &options.ca_file {
        let wrong = |error: String| {
            RemoteError::Misconfigured(format!("read CA file {}: {error}", path.display()))
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(explain(&error)))?;
        if found.is_empty() {
            return Err(wrong("no certificate in it".to_owned()));
        }
        builder = builder.tls_certs_merge(found);
    }
    if let Some(identity) = identity(options)? {
        builder = builder.identity(identity);
    }
    builder
        .build()
        .map_err(|error| RemoteError::Misconfigured(format!("set up HTTP: {}", explain(&error))))
}

/// The certificate that we show, and its key.
fn identity(options: &RemoteOptions) -> Result<Option<Identity>, RemoteError> {
    let (Some(cert), Some(key)) = (&options.client_cert_file, &options.client_key_file) else {
        return Ok(None);
    };
    let mut pem = Vec::new();
    for path in [key, cert] {
        let wrong = |error| {
            RemoteError::Misconfigured(format!("read certificate {}: {error}", path.display()))
        };
        pem.extend(std::fs::read(path).map_err(wrong)?);
        pem.push(b'\n');
    }
    let identity = Identity::from_pem(&pem).map_err(|error| {
        let name = cert.display();
        RemoteError::Misconfigured(format!(
            "certificate {name} and its key: {}",
            explain(&error)
        ))
    });
    identity.map(Some)
}

/// A server on this machine is never asked through a proxy.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}
