//! A real redis-server on loopback, with a folder and a port of its own, ended by its process id when dropped.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::servers::{PASSWORD, USER, certify, free_port, program, spawn};
use crate::support::wait_until;

/// A running redis-server.
pub(crate) struct Redis {
    child: Option<Child>,
    port: u16,
    args: Vec<String>,
    scheme: &'static str,
    dir: TempDir,
}

impl Redis {
    /// One that keeps nothing on disk, with more arguments.
    pub(crate) fn start(args: &[&str]) -> Self {
        let port = free_port();
        let listen = ["--port".to_owned(), port.to_string()];
        Self::start_with(
            "redis",
            port,
            listen.into_iter(),
            args,
            TempDir::new().unwrap(),
        )
    }

    /// One that wants [`PASSWORD`], of the default user or of [`USER`], who may do only what a cache needs.
    pub(crate) fn with_password() -> Self {
        let user = format!(
            "{USER} on >{PASSWORD} ~cachedirfs:* +get +set +exists +strlen +getrange +touch +pexpire +pexpiretime \
             +unlink +rename +scan +select +watch +unwatch +multi +exec"
        );
        let words = user.split(' ');
        let mut args = vec!["--requirepass", PASSWORD, "--user"];
        args.extend(words);
        Self::start(&args)
    }

    /// One with TLS only, and a certificate by [`Redis::ca`].
    pub(crate) fn tls() -> Self {
        let dir = TempDir::new().unwrap();
        certify(dir.path());
        let port = free_port();
        let mut listen = vec!["--port".to_owned(), "0".to_owned()];
        listen.extend(["--tls-port".to_owned(), port.to_string()]);
        listen.extend(["--tls-auth-clients".to_owned(), "no".to_owned()]);
        for (option, file) in [
            ("--tls-cert-file", "cert.pem"),
            ("--tls-key-file", "key.pem"),
            ("--tls-ca-cert-file", "ca.pem"),
        ] {
            listen.extend([
                option.to_owned(),
                dir.path().join(file).display().to_string(),
            ]);
        }
        Self::start_with("rediss", port, listen.into_iter(), &[], dir)
    }

    fn start_with(
        scheme: &'static str,
        port: u16,
        listen: impl Iterator<Item = String>,
        args: &[&str],
        dir: TempDir,
    ) -> Self {
        let args = listen.chain(args.iter().map(|arg| (*arg).to_owned()));
        let mut redis = Self {
            child: None,
            port,
            args: args.collect(),
            scheme,
            dir,
        };
        redis.restart();
        redis
    }

    /// Starts it again, empty.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let mut command = Command::new(program("redis-server", "redis-server"));
        command.args([
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--daemonize",
            "no",
            "--dir",
        ]);
        command.arg(self.dir.path()).args(&self.args);
        let mut child = spawn(command, self.dir.path());
        wait_until("redis-server listens", Duration::from_secs(10), || {
            let output = || fs::read_to_string(self.dir.path().join("output"));
            assert!(child.try_wait().unwrap().is_none(), "{:?}", output());
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        self.child = Some(child);
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// The URL of database 0.
    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}/0", self.scheme, self.port)
    }

    /// The same as this user.
    pub(crate) fn url_as(&self, user: &str) -> String {
        self.url().replacen("://", &format!("://{user}@"), 1)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// What it answers to a command, past everything of ours.
    pub(crate) fn ask(&self, args: &[&str]) -> String {
        let mut cli = Command::new(program("redis-cli", "redis-tools"));
        cli.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        let output = cli.args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
