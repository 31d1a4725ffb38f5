//! What the libraries that find credentials are given of the world: the environment that was handed in, files, HTTP and
//! commands, each bounded.
//!
//! This module knows no kind of credentials.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Env, Error, ErrorKind, FileRead, HttpSend,
    ProvideCredential, ProvideCredentialDyn,
};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use url::Url;

use crate::remote::http::client;
use crate::remote::{Environment, RemoteError, RemoteOptions};

/// Largest file, answer and output that is read.
const READ_MAX: u64 = 1 << 20;

/// Longest request for credentials: a metadata service answers within milliseconds.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// Most of somebody's words that are repeated in an error.
const WORDS_MAX: usize = 300;

/// One place to look for credentials, by the name that people know it by.
pub(super) struct Source<C> {
    pub(super) name: String,
    pub(super) provider: Box<dyn ProvideCredentialDyn<Credential = C>>,
}

/// A source that people know as `name`.
pub(super) fn source<C: Send + Sync + Unpin + 'static>(
    name: &str,
    provider: impl ProvideCredential<Credential = C>,
) -> Source<C> {
    Source {
        name: name.to_owned(),
        provider: Box::new(provider),
    }
}

impl<C> fmt::Debug for Source<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Asks the sources one after the other. The first that has something is taken, and so is the first that fails: what
/// somebody configured and is broken must not be papered over with somebody else's rights.
pub(super) async fn first<C: Send + Sync + Unpin + 'static>(
    sources: &[Source<C>],
    context: &Context,
    advice: &str,
) -> Result<C, RemoteError> {
    for source in sources {
        match source.provider.provide_credential_dyn(context).await {
            Ok(Some(credentials)) => return Ok(credentials),
            Ok(None) => {}
            Err(error) => return Err(failed(&source.name, &error)),
        }
    }
    let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
    let places = names.join(", ");
    Err(RemoteError::Refused(format!(
        "no credentials found (looked at: {places}); {advice}"
    )))
}

/// A metadata service, which comes last. Most machines have none: that it cannot be reached is no failure.
#[derive(Debug)]
pub(super) struct Machine<P>(pub(super) P);

impl<P: ProvideCredential> ProvideCredential for Machine<P> {
    type Credential = P::Credential;

    async fn provide_credential(
        &self,
        context: &Context,
    ) -> reqsign_core::Result<Option<P::Credential>> {
        match self.0.provide_credential(context).await {
            Err(error) if error.is_retryable() => {
                log::debug!("no metadata service: {error}");
                Ok(None)
            }
            found => found,
        }
    }
}

fn failed(source: &str, error: &Error) -> RemoteError {
    let mut text = format!("get credentials from {source}: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    for hint in error.context() {
        text = format!("{text}; {hint}");
    }
    let text = printable(&text);
    match error.kind() {
        _ if error.is_retryable() => RemoteError::Transient(text),
        ErrorKind::RateLimited => RemoteError::Transient(text),
        _ => RemoteError::Refused(text),
    }
}

/// Somebody else's words, short and on one line.
pub(super) fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).take(WORDS_MAX).collect()
}

/// The world as far as `options` say it. Requests to a host that begins with one of `instead` go to that URL.
pub(super) fn context(
    options: &RemoteOptions,
    instead: Vec<(&'static str, Url)>,
) -> Result<Context, RemoteError> {
    Ok(Context::new()
        .with_env(Variables(options.environment.clone()))
        .with_file_read(Files)
        .with_command_execute(Commands)
        .with_http_send(Sender {
            direct: client::build(options, false)?,
            proxied: client::build(options, true)?,
            instead,
        }))
}

#[derive(Debug)]
struct Variables(Environment);

impl Env for Variables {
    fn var(&self, key: &str) -> Option<String> {
        self.0.get(key).map(str::to_owned)
    }

    fn vars(&self) -> HashMap<String, String> {
        let all = self.0.all().iter();
        all.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.0.get("HOME").map(PathBuf::from)
    }
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let name = path.to_owned();
        let read = move || {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(name)?;
            file.take(READ_MAX).read_to_end(&mut bytes).map(|_| bytes)
        };
        let read = spawn_blocking(read).await.map_err(std::io::Error::other);
        read.and_then(|read| read)
            .map_err(|error| Error::config_invalid(format!("read {path}: {error}")))
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute<'a>(
        &'a self,
        program: &'a str,
        args: &'a [&'a str],
    ) -> reqsign_core::Result<CommandOutput> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        let run = spawn_blocking(move || command.output());
        let failed = |error: String| Error::config_invalid(format!("run {program}: {error}"));
        let output = run.await.map_err(|error| failed(error.to_string()))?;
        let output = output.map_err(|error| failed(error.to_string()))?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}

/// Metadata services speak plain HTTP and are on this machine or next to it: no proxy stands before them.
#[derive(Debug)]
struct Sender {
    direct: reqwest::Client,
    proxied: reqwest::Client,
    instead: Vec<(&'static str, Url)>,
}

impl Sender {
    fn target(&self, url: &Url) -> Url {
        let host = url.host_str().unwrap_or_default();
        let other = self
            .instead
            .iter()
            .find(|(begins, _)| host.starts_with(begins));
        other.map_or_else(|| url.clone(), |(_, url)| url.clone())
    }
}

impl HttpSend for Sender {
    async fn http_send(
        &self,
        request: http::Request<Bytes>,
    ) -> reqsign_core::Result<http::Response<Bytes>> {
        let (head, body) = request.into_parts();
        let wrong = |error: String| Error::request_invalid(error);
        let url = Url::parse(&head.uri.to_string()).map_err(|error| wrong(error.to_string()))?;
        let http = if url.scheme() == "http" {
            &self.direct
        } else {
            &self.proxied
        };
        let target = self.target(&url);
        let place = format!("{}://{}", target.scheme(), target.authority());
        let mut builder = http.request(head.method, target.clone());
        if target != url {
            // It is signed for the host that it was meant for.
            builder = builder.header(reqwest::header::HOST, url.authority());
        }
        let sending = builder.headers(head.headers).body(body).send();
        let lost =
            |error: String| Error::unexpected(format!("{place}: {error}")).set_retryable(true);
        let receiving = async {
            let mut response = sending
                .await
                .map_err(|error| lost(client::explain(&error)))?;
            let mut bytes = Vec::new();
            let chunk = response.chunk().await;
            let mut chunk = chunk.map_err(|error| lost(client::explain(&error)))?;
            while let Some(more) = chunk {
                bytes.extend_from_slice(&more);
                if bytes.len() as u64 > READ_MAX {
                    return Err(wrong(format!("{place}: too long an answer")));
                }
                let next = response.chunk().await;
                chunk = next.map_err(|error| lost(client::explain(&error)))?;
            }
            let mut answer = http::Response::new(Bytes::from(bytes));
            *answer.status_mut() = response.status();
            *answer.headers_mut() = response.headers().clone();
            Ok(answer)
        };
        match timeout(REQUEST_MAX, receiving).await {
            Ok(answer) => answer,
            Err(_) => Err(lost("timed out".to_owned())),
        }
    }
}
