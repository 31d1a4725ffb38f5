//! Calls, from a thread that blocks: the connection, what goes with every call, and how long one may take. Async code,
//! driven with `block_on`: tonic on the runtime that all remotes share.
//!
//! A call that was refused is made again with fresh credentials when they were rotated. Nothing else is retried here. A
//! connection on which nothing was heard in time is given up with the call: it may be half dead, and TCP would
//! take a quarter of an hour to say so.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::stream;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, BinaryMetadataValue, MetadataMap};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use url::Url;

use crate::remote::auth::{Auth, Credentials};
use crate::remote::grpc::message::{Method, REQUEST_METADATA, RequestMetadata, ToolDetails};
use crate::remote::grpc::status;
use crate::remote::runtime::{self, Shared};
use crate::remote::{RemoteError, RemoteOptions, Secret};

/// What a stream may have under way to us …
const STREAM_WINDOW: u32 = 1 << 20;
/// … and all of them together. Readers that pause (a slow disk) keep what is under way to them; the others must not
/// starve for it.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Longest message that is taken: gRPC's own limit, which servers put on batches, with some room.
const MESSAGE_MAX: usize = (4 << 20) + (64 << 10);

/// What the server is given more than we wait ourselves: tonic ends a call by what the server is told, and then we would
/// not know that the connection may be dead.
const SPARE: Duration = Duration::from_secs(1);

/// What is shorter is no credential worth hiding, but may be `Bearer`.
const SECRET_MIN: usize = 8;

/// Stall times that an answer may take once all of an upload was handed over, as over HTTP.
const STALLS_AFTER_UPLOAD: u32 = 12;

/// One server.
pub(super) struct Caller {
    runtime: Arc<Shared>,
    endpoint: Endpoint,
    channel: Mutex<Channel>,
    auth: Auth,
    extra: Extra,
    stall: Duration,
    whole: Duration,
    min_speed: u64,
}

/// Headers from a file, read again when the server refuses us.
struct Extra {
    file: Option<PathBuf>,
    headers: RwLock<Vec<(AsciiMetadataKey, Secret)>>,
}

impl Caller {
    /// For the server of `url`. Nothing is asked of it yet.
    pub(super) fn new(url: &Url, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let auth = Auth::new(url, options)?;
        let extra = Extra::new(options.headers_file.as_deref())?;
        let endpoint = endpoint(url, options)?;
        let runtime = runtime::shared()?;
        // It starts a task.
        let channel = runtime.run(async { endpoint.connect_lazy() });
        Ok(Self {
            runtime,
            endpoint,
            channel: Mutex::new(channel),
            auth,
            extra,
            stall: options.stall_timeout,
            whole: options.request_timeout,
            min_speed: options.min_speed,
        })
    }

    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// How long a call may take that carries so many bytes one way or the other.
    fn patience(&self, bytes: u64) -> Duration {
        if bytes == 0 {
            return self.stall.min(self.whole);
        }
        let secs = bytes.checked_div(self.min_speed).map(Duration::from_secs);
        secs.map_or(self.whole, |secs| (self.stall + secs).min(self.whole))
    }

    /// One question and its answer, with about so many bytes.
    pub(super) fn unary<Q, A>(&self, method: Method, question: &Q, bytes: u64) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let patience = self.patience(bytes);
        self.with_credentials(|metadata| {
            let request = request(question.clone(), metadata, patience);
            self.within(patience, async {
                let mut grpc = self.grpc();
                ready(&mut grpc).await?;
                let answer = grpc.unary(request, path(method), ProstCodec::default());
                answer.await.map(tonic::Response::into_inner)
            })
        })
    }

    /// One question and a stream of answers, with the first of them.
    pub(super) fn stream<Q, A>(
        &self,
        method: Method,
        question: &Q,
    ) -> Result<(Option<A>, Streaming<A>), Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.with_credentials(|metadata| {
            let request = request(question.clone(), metadata, self.whole);
            self.within(self.stall, async {
                let mut grpc = self.grpc();
                ready(&mut grpc).await?;
                let stream = grpc.server_streaming(request, path(method), ProstCodec::default());
                let mut stream = stream.await?.into_inner();
                Ok((stream.message().await?, stream))
            })
        })
    }

    /// The next answer; `None` at the end.
    pub(super) fn next<A>(&self, stream: &mut Streaming<A>) -> Result<Option<A>, Status> {
        self.within(self.stall, stream.message())
    }

    /// Begins a stream of questions with one answer. It is refused when it is [`finished`](Self::finish).
    pub(super) fn send<Q, A>(&self, method: Method, queue: usize) -> Sending<Q, A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (sender, mut receiver) = mpsc::channel(queue);
        let credentials = self.auth.current();
        let metadata = self.metadata(credentials.as_ref());
        let questions = stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let request = request(questions, metadata, self.whole);
        let mut grpc = self.grpc();
        let answer = async move {
            ready(&mut grpc).await?;
            let answer = grpc.client_streaming(request, path(method), ProstCodec::default());
            answer.await.map(tonic::Response::into_inner)
        };
        // Spawning needs the runtime around it; waiting for what was spawned comes later.
        #[allow(clippy::async_yields_async)]
        let answer = self.runtime.run(async { tokio::spawn(answer) });
        Sending { sender, answer }
    }

    /// Hands over one more question; `false` when the server has answered already.
    pub(super) fn push<Q, A>(&self, sending: &Sending<Q, A>, question: Q) -> Result<bool, Status> {
        let sent = self.within(self.stall, async {
            Ok(sending.sender.send(question).await.is_ok())
        });
        if sent.is_err() {
            sending.answer.abort();
        }
        sent
    }

    /// Waits for the answer.
    pub(super) fn finish<Q, A>(&self, sending: Sending<Q, A>) -> Result<A, Status> {
        drop(sending.sender);
        let patience = self.stall * STALLS_AFTER_UPLOAD;
        let abort = sending.answer.abort_handle();
        let answer = self.within(patience, async {
            let joined = sending.answer.await;
            joined.unwrap_or_else(|_| Err(Status::internal("the call was given up")))
        });
        abort.abort();
        if matches!(&answer, Err(status) if status.code() == Code::Unauthenticated) {
            // For the next attempt: what was handed over cannot be had again here.
            self.refresh(self.auth.current().as_ref());
        }
        answer
    }

    /// The error that a status stands for. A server may repeat what it was sent.
    pub(super) fn error(
        &self,
        method: Method,
        status: &Status,
        doing: status::Doing,
    ) -> RemoteError {
        let hidden = self.extra.secrets().into_iter().chain(
            self.auth
                .current()
                .into_iter()
                .map(|credentials| credentials.header()),
        );
        let repeats = |secret: &Secret| {
            let mut words = secret.reveal().split(' ');
            words.any(|word| word.len() >= SECRET_MIN && status.message().contains(word))
        };
        if hidden.into_iter().any(|secret| repeats(&secret)) {
            let status = Status::new(status.code(), "(what it says repeats a credential)");
            return status::error(&status, doing).during(method.name());
        }
        status::error(status, doing).during(method.name())
    }

    fn within<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match self.runtime.run(async { timeout(patience, call).await }) {
            Ok(done) => done,
            Err(_) => {
                let fresh = self.runtime.run(async { self.endpoint.connect_lazy() });
                *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                Err(status::stalled())
            }
        }
    }

    fn with_credentials<T>(
        &self,
        call: impl Fn(MetadataMap) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let used = self.auth.current();
        match call(self.metadata(used.as_ref())) {
            Err(status) if status.code() == Code::Unauthenticated => {
                match self.refresh(used.as_ref()) {
                    true => call(self.metadata(self.auth.current().as_ref())),
                    false => Err(status),
                }
            }
            done => done,
        }
    }

    /// Reads credentials again; whether they are others now.
    fn refresh(&self, used: Option<&Credentials>) -> bool {
        let headers = self.extra.refresh();
        self.auth.instead_of(used).is_some() || headers
    }

    fn grpc(&self) -> Grpc<Channel> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        Grpc::new(channel.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// What goes with every call.
    fn metadata(&self, credentials: Option<&Credentials>) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (name, value) in self.extra.read().iter() {
            if let Some(value) = secret_value(value) {
                metadata.append(name.clone(), value);
            }
        }
        if let Some(value) = credentials.and_then(|credentials| secret_value(&credentials.header()))
        {
            metadata.insert("authorization", value);
        }
        let us = RequestMetadata {
            tool_details: Some(ToolDetails {
                tool_name: env!("CARGO_PKG_NAME").to_owned(),
                tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
        };
        let us = BinaryMetadataValue::from_bytes(&us.encode_to_vec());
        metadata.insert_bin(REQUEST_METADATA, us);
        metadata
    }
}

/// A stream of questions under way.
pub(super) struct Sending<Q, A> {
    sender: mpsc::Sender<Q>,
    answer: JoinHandle<Result<A, Status>>,
}

impl<Q, A> Sending<Q, A> {
    /// Gives it up: the server must not take what came for all of it.
    pub(super) fn abandon(self) {
        self.answer.abort();
    }
}

impl Extra {
    fn new(file: Option<&Path>) -> Result<Self, RemoteError> {
        let headers = file.map(read_headers).transpose()?.unwrap_or_default();
        Ok(Self {
            file: file.map(Path::to_owned),
            headers: RwLock::new(headers),
        })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<(AsciiMetadataKey, Secret)>> {
        self.headers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn secrets(&self) -> Vec<Secret> {
        self.read().iter().map(|(_, value)| value.clone()).collect()
    }

    /// Reads the file again; whether it says something else now. One that cannot be read is being replaced.
    fn refresh(&self) -> bool {
        let Some(Ok(fresh)) = self.file.as_deref().map(read_headers) else {
            return false;
        };
        let mut headers = self.headers.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = *headers != fresh;
        *headers = fresh;
        is_other
    }
}

/// `Name: value` a line; empty lines and those that begin with `#` are passed over.
fn read_headers(path: &Path) -> Result<Vec<(AsciiMetadataKey, Secret)>, RemoteError> {
    let wrong =
        |why: String| RemoteError::Misconfigured(format!("read headers {}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let mut headers = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let header = line.split_once(':').and_then(|(name, value)| {
            let name = name.trim().to_ascii_lowercase();
            let key: AsciiMetadataKey = name.parse().ok().filter(|_| !is_reserved(&name))?;
            let value = Secret::new(value.trim());
            secret_value(&value).map(|_| (key, value))
        });
        let why = || format!("line {} is not Name: value", at + 1);
        headers.push(header.ok_or_else(|| wrong(why()))?);
    }
    Ok(headers)
}

/// gRPC's own, and those with binary values.
fn is_reserved(name: &str) -> bool {
    name.starts_with("grpc-")
        || name.ends_with("-bin")
        || matches!(name, "te" | "content-type" | "user-agent")
}

/// As a header that no `Debug` shows.
fn secret_value(secret: &Secret) -> Option<AsciiMetadataValue> {
    let mut value: AsciiMetadataValue = secret.reveal().parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn request<T>(content: T, metadata: MetadataMap, patience: Duration) -> Request<T> {
    let mut request = Request::new(content);
    *request.metadata_mut() = metadata;
    request.set_timeout(patience + SPARE);
    request
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::from_error(Box::new(error)))
}

fn path(method: Method) -> PathAndQuery {
    PathAndQuery::from_static(method.path)
}

fn endpoint(url: &Url, options: &RemoteOptions) -> Result<Endpoint, RemoteError> {
    let is_tls = url.scheme() == "grpcs";
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| wrong("the URL has no host"))?;
    let (scheme, port) = if is_tls { ("https", 443) } else { ("http", 80) };
    let port = url.port().unwrap_or(port);
    let endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}"))
        .and_then(|it| it.user_agent(concat!("cachedirfs/", env!("CARGO_PKG_VERSION"))))
        .map_err(|error| wrong(&error.to_string()))?
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(options.stall_timeout)
        .keep_alive_timeout(options.stall_timeout);
    if !is_tls {
        return match options.client_cert_file {
            Some(_) => Err(wrong("client_cert_file is for grpcs://")),
            None => Ok(endpoint),
        };
    }
    let tls = tls(options)?.timeout(options.connect_timeout);
    // A machine without any certificates may have one of its own, and needs no more.
    let all = endpoint.clone().tls_config(tls.clone().with_native_roots());
    let own = || match options.ca_file {
        Some(_) => endpoint.clone().tls_config(tls.clone()),
        None => endpoint.clone().tls_config(tls.clone().with_native_roots()),
    };
    all.or_else(|_| own())
        .map_err(|error| wrong(&format!("set up TLS: {}", bottom(&error))))
}

fn tls(options: &RemoteOptions) -> Result<ClientTlsConfig, RemoteError> {
    let mut tls = ClientTlsConfig::new();
    if let Some(path) = &options.ca_file {
        let pem = read_pem(path, "CERTIFICATE")?;
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    if let (Some(cert), Some(key)) = (&options.client_cert_file, &options.client_key_file) {
        let identity = (
            read_pem(cert, "CERTIFICATE")?,
            read_pem(key, "PRIVATE KEY")?,
        );
        tls = tls.identity(Identity::from_pem(identity.0, identity.1));
    }
    Ok(tls)
}

fn read_pem(path: &Path, holds: &str) -> Result<Vec<u8>, RemoteError> {
    let name = path.display();
    let pem = fs::read(path).map_err(|error| wrong(&format!("read {name}: {error}")))?;
    let ends = format!("{holds}-----");
    match pem.windows(ends.len()).any(|part| part == ends.as_bytes()) {
        true => Ok(pem),
        false => Err(wrong(&format!(
            "read {name}: no {} in it",
            holds.to_lowercase()
        ))),
    }
}

fn wrong(why: &str) -> RemoteError {
    RemoteError::Misconfigured(format!("gRPC: {why}"))
}

/// The cause at the bottom, which is what helps.
fn bottom(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
