//! Real caches of Bazel's kind on loopback, each with a folder and a port of its own, ended by its process id.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::servers::{PASSWORD, TOKEN, USER, certify, program};
use crate::support::{installed, test_tools};

/// Longest time a server may take until it listens: BuildGrid imports for seconds on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// The command that starts a server in a folder, on a port.
type Start = Box<dyn Fn(&Path, u16) -> Command + Send + Sync>;

/// A running server with its folder.
pub(crate) struct Cache {
    child: Option<Child>,
    command: Start,
    port: u16,
    dir: TempDir,
}

/// What is asked of the clients of an nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    Open,
    Basic,
    Bearer,
    /// TLS, and a client shows a certificate by the same authority.
    Certificate,
}

impl Cache {
    fn start(
        dir: TempDir,
        port: u16,
        command: impl Fn(&Path, u16) -> Command + Send + Sync + 'static,
    ) -> Self {
        let mut cache = Self {
            child: None,
            command: Box::new(command),
            port,
            dir,
        };
        cache.restart();
        cache
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `scheme://localhost:PORT/path`.
    pub(crate) fn url(&self, scheme: &str, path: &str) -> String {
        format!("{scheme}://localhost:{}/{path}", self.port)
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote to its standard output and error.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// Ends it, and with it every connection.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let output = File::create(self.dir.path().join("output")).unwrap();
        let mut command = (self.command)(self.dir.path(), self.port);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("start {command:?}: {error}")));
        self.wait();
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let child = self.child.as_mut().expect("just started");
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < START_MAX,
                "server does not listen ({ended:?}): {}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// nginx that takes `/cache/ac/HASH` and `/cache/cas/HASH` and nothing else.
    pub(crate) fn nginx(guard: Guard) -> Self {
        let (dir, port) = folder();
        let at = dir.path().display();
        let mut listen = "";
        let rule = match guard {
            Guard::Open => String::new(),
            Guard::Certificate => {
                certify(dir.path());
                listen = "ssl";
                format!(
                    "ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;
                     ssl_client_certificate {at}/ca.pem; ssl_verify_client on;"
                )
            }
            Guard::Basic => {
                let users = format!("{USER}:{{PLAIN}}{PASSWORD}\n");
                fs::write(dir.path().join("users"), users).unwrap();
                format!("auth_basic cache; auth_basic_user_file {at}/users;")
            }
            Guard::Bearer => {
                format!("if ($http_authorization != \"Bearer {TOKEN}\") {{ return 401; }}")
            }
        };
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ }}
             http {{
               log_format test '$request_method $uri $status'; access_log {at}/access.log test;
               client_body_temp_path {at}/body; client_max_body_size 0; proxy_temp_path {at}/p;
               fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
               server {{
                 listen 127.0.0.1:{port} {listen}; root {at}/root; {rule}
                 location ~ \"^/cache/(ac|cas)/[0-9a-f]{{64}}$\" {{
                   dav_methods PUT DELETE; create_full_put_path on;
                   default_type application/octet-stream;
                 }}
                 location / {{ return 400; }}
               }}
             }}"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        Self::start(dir, port, |dir, _| {
            let mut command = Command::new(program("nginx", "nginx-light"));
            command.arg("-p").arg(dir);
            command.arg("-c").arg(dir.join("nginx.conf"));
            command
        })
    }

    /// Where nginx keeps what stands below `/cache/`.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root/cache")
    }

    /// Method, path and status of every request that nginx answered.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// buildbox-casd, which keeps blobs in `root/cas/objects/` of [`Cache::dir`].
    pub(crate) fn casd() -> Self {
        let (dir, port) = folder();
        Self::start(dir, port, |dir, port| {
            let casd = test_tools().join("buildbox/buildbox-casd");
            let mut command = Command::new(installed(casd, "reapi"));
            command
                .arg(format!("--bind=127.0.0.1:{port}"))
                .args(["--quota-high=2G", "--reserved=0", "--log-level=warning"])
                .arg(dir.join("root"));
            command
        })
    }

    /// BuildGrid with the instance `main`. It keeps blobs where buildbox-casd does.
    pub(crate) fn buildgrid(door: Door) -> Self {
        let (dir, port) = folder();
        let at = dir.path().display();
        let mut channel = format!("address: 'localhost:{port}', insecure-mode: true");
        let mut authorization = "method: none".to_owned();
        if door != Door::Open {
            certify(dir.path());
            let mut credentials =
                format!("tls-server-key: '{at}/key.pem', tls-server-cert: '{at}/cert.pem'");
            if door == Door::ClientCertificate {
                credentials += &format!(", tls-client-certs: '{at}/ca.pem'");
            }
            channel = format!(
                "address: 'localhost:{port}', insecure-mode: false, credentials: {{ {credentials} }}"
            );
        }
        if door == Door::Token {
            fs::write(dir.path().join("secret"), JWT_SECRET).unwrap();
            authorization = format!("method: jwt\n  secret: '{at}/secret'\n  algorithm: hs256");
        }
        let config = format!(
            "server:
  - !channel {{ {channel} }}
authorization:
  {authorization}
storages:
  - !disk-storage &storage {{ path: '{at}/root' }}
caches:
  - !lru-action-cache &actions {{ storage: *storage, max-cached-refs: 10000, allow-updates: {updates} }}
instances:
  - name: main
    services:
      - !action-cache {{ cache: *actions }}
      - !cas {{ storage: *storage }}
      - !bytestream {{ storage: *storage }}
thread-pool-size: 200
",
            updates = door != Door::ReadOnly,
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        Self::start(dir, port, |dir, _| {
            let bgd = test_tools().join("buildgrid/bin/bgd");
            let mut command = Command::new(installed(bgd, "reapi"));
            command
                .args(["server", "start"])
                .arg(dir.join("config.yml"));
            command
        })
    }

    /// A server that lies, in Python on gRPC's own implementation; see `reapi_liar.py`.
    pub(crate) fn liar() -> Self {
        let (dir, port) = folder();
        fs::write(dir.path().join("lies"), "").unwrap();
        Self::start(dir, port, |dir, port| {
            let python = test_tools().join("buildgrid/bin/python");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/reapi_liar.py");
            let mut command = Command::new(installed(python, "reapi"));
            command.arg(script).arg(port.to_string()).arg(dir);
            command
        })
    }

    /// What the liar does from now on.
    pub(crate) fn lie(&self, words: &str) {
        let (new, file) = (self.dir().join("lies.new"), self.dir().join("lies"));
        fs::write(&new, words).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// What the liar was asked since this was asked last.
    pub(crate) fn asked(&self) -> Vec<String> {
        let file = self.dir().join("asked");
        let text = fs::read_to_string(&file).unwrap_or_default();
        drop(fs::remove_file(file));
        text.lines().map(str::to_owned).collect()
    }

    /// A token for a BuildGrid that asks for one, good for so many seconds from now.
    pub(crate) fn token(seconds: i64) -> String {
        let make = format!(
            "import jwt, time; print(jwt.encode({{'exp': int(time.time()) + {seconds}}}, '{JWT_SECRET}', 'HS256'))"
        );
        let python = installed(test_tools().join("buildgrid/bin/python"), "reapi");
        let made = Command::new(python).args(["-c", &make]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }
}

/// What BuildGrid signs its tokens with in tests.
const JWT_SECRET: &str = "a-secret-of-thirty-two-bytes-for-tests";

/// What a BuildGrid asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Takes no updates of its action cache. With TLS.
    ReadOnly,
    Tls,
    /// TLS, and a client shows a certificate by the same authority.
    ClientCertificate,
    /// TLS, and a JWT.
    Token,
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.stop();
    }
}

fn folder() -> (TempDir, u16) {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (dir, listener.local_addr().unwrap().port())
}
