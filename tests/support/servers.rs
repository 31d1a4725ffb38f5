//! Real servers on loopback, each with a folder and a port of its own, ended by its process id when dropped.
//!
//! A program that is missing fails the test with the command that installs it: a skipped test proves nothing.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest time a server may take until it listens.
const START_MAX: Duration = Duration::from_secs(10);

/// User and password of every server that asks for Basic credentials.
pub(crate) const USER: &str = "builder";
pub(crate) const PASSWORD: &str = "s3cret-p%ss";
/// The token of the server that asks for one.
pub(crate) const TOKEN: &str = "t0ken-of-the-builder";

/// Largest body that nginx takes.
pub(crate) const BODY_MAX_MIB: usize = 16;

/// A running server whose document root is [`Server::root`].
pub(crate) struct Server {
    child: Option<Child>,
    port: u16,
    scheme: &'static str,
    dir: TempDir,
}

/// What an nginx asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nginx {
    Open,
    /// Takes no more than [`BODY_MAX_MIB`].
    Narrow,
    Basic,
    Bearer,
    /// TLS with HTTP/2 and a certificate of our own authority; see [`Server::ca`].
    Tls,
    /// TLS with a certificate that is wrong in one way.
    BadTls(Flaw),
    /// Answers everything with the page of a login.
    Html,
}

/// What can be wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Expired,
    OtherName,
    /// As `openssl req -x509` makes it: an authority's own.
    SelfSigned,
    /// `basicConstraints=CA:FALSE`: good for nobody but the one who trusts just it.
    SelfSignedLeaf,
}

impl Server {
    /// The URL of the directory `cache` in its root.
    pub(crate) fn url(&self) -> String {
        format!("{}://localhost:{}/cache", self.scheme, self.port)
    }

    /// The same with credentials.
    pub(crate) fn url_with(&self, user: &str, password: &str) -> String {
        self.url()
            .replacen("://", &format!("://{user}:{password}@"), 1)
    }

    /// Where it listens, on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The directory that [`Server::url`] is, on disk.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root/cache")
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The lines of its access log; the last word of nginx' is the number of the connection.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }

    /// Stops it, and with it every connection.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// An nginx answers every request that `what` matches (a condition of its `if`) with this status from now on;
    /// `None` as it should. Its connections end.
    pub(crate) fn set_answer(&mut self, what: &str, status: Option<u16>) {
        let rule = status.map(|status| format!("if ({what}) {{ return {status}; }}"));
        self.stop();
        fs::write(self.dir.path().join("rule.conf"), rule.unwrap_or_default()).unwrap();
        self.child = Some(spawn(nginx_command(self.dir.path()), self.dir.path()));
        self.wait();
    }

    /// Gives an nginx another certificate, by the same authority and without a flaw.
    pub(crate) fn renew_certificate(&mut self) {
        self.stop();
        sign(self.dir.path(), 2);
        self.child = Some(spawn(nginx_command(self.dir.path()), self.dir.path()));
        self.wait();
    }

    /// nginx without a master process: one process to end.
    pub(crate) fn nginx(kind: Nginx) -> Self {
        Self::nginx_with(kind, "")
    }

    /// An nginx that sends everybody to the same path below `to`.
    pub(crate) fn nginx_moved(to: &str) -> Self {
        let to = to.trim_end_matches("/cache");
        Self::nginx_with(Nginx::Open, &format!("return 307 {to}$request_uri;"))
    }

    fn nginx_with(kind: Nginx, rule: &str) -> Self {
        let (dir, port) = folder();
        let at = dir.path().display();
        let (mut listen, mut rule, mut body_max) = (String::new(), rule.to_owned(), 0);
        match kind {
            Nginx::Open => {}
            Nginx::Narrow => body_max = BODY_MAX_MIB,
            Nginx::Basic => {
                write(&dir, "users", &format!("{USER}:{{PLAIN}}{PASSWORD}\n"));
                rule = format!("auth_basic cache; auth_basic_user_file {at}/users;");
            }
            Nginx::Bearer => {
                rule = format!("if ($http_authorization != \"Bearer {TOKEN}\") {{ return 401; }}");
            }
            Nginx::Html => {
                rule = "default_type text/html; return 200 '<html>log in</html>';".to_owned();
            }
            Nginx::Tls | Nginx::BadTls(_) => {
                certify(dir.path());
                if let Nginx::BadTls(flaw) = kind {
                    spoil(dir.path(), flaw);
                }
                listen = "ssl http2".to_owned();
                rule = format!("ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;");
            }
        }
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ }}
             http {{
               log_format test '$remote_user $request $status $connection'; access_log {at}/access.log test; client_body_temp_path {at}/body; client_max_body_size {body_max}m;
               proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
               default_type application/octet-stream;
               server {{
                 listen 127.0.0.1:{port} {listen}; root {at}/root; {rule} include {at}/rule.conf;
                 location / {{
                   dav_methods PUT DELETE MKCOL; create_full_put_path on;
                   autoindex on; autoindex_format json;
                 }}
               }}
             }}"
        );
        write(&dir, "nginx.conf", &config);
        write(&dir, "rule.conf", "");
        let command = nginx_command(dir.path());
        let tls = matches!(kind, Nginx::Tls | Nginx::BadTls(_));
        let scheme = if tls { "https" } else { "http" };
        Self::start(command, dir, port, scheme)
    }

    /// lighttpd with WebDAV: the one that answers 412 without a race, and 409 for a missing parent.
    pub(crate) fn lighttpd() -> Self {
        let (dir, port) = folder();
        let at = dir.path().display();
        let config = format!(
            "server.document-root = \"{at}/root\"
             server.port = {port}
             server.bind = \"127.0.0.1\"
             server.modules = ( \"mod_webdav\", \"mod_accesslog\" )
             server.upload-dirs = ( \"{at}\" )
             server.errorlog = \"{at}/error.log\"
             accesslog.filename = \"{at}/access.log\"
             webdav.activate = \"enable\"
             mimetype.assign = ( \"\" => \"application/octet-stream\" )"
        );
        write(&dir, "lighttpd.conf", &config);
        let mut command = Command::new(program("lighttpd", "lighttpd lighttpd-mod-webdav"));
        command
            .arg("-D")
            .arg("-f")
            .arg(dir.path().join("lighttpd.conf"));
        Self::start(command, dir, port, "http")
    }

    /// Apache with mod_dav, as one process (`-X`).
    pub(crate) fn apache() -> Self {
        let (dir, port) = folder();
        let at = dir.path().display();
        let modules: String = ["mpm_event", "authz_core", "dav", "dav_fs"]
            .iter()
            .map(|name| {
                format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
            })
            .collect();
        let config = format!(
            "{modules}
             User www-data
             Group www-data
             ServerName localhost
             Listen 127.0.0.1:{port}
             PidFile {at}/pid
             ErrorLog {at}/error.log
             DocumentRoot {at}/root
             DavLockDB {at}/locks
             <Directory {at}/root>
               Dav On
               Require all granted
             </Directory>"
        );
        write(&dir, "apache.conf", &config);
        let mut command = Command::new(program("apache2", "apache2"));
        command
            .args(["-X", "-f"])
            .arg(dir.path().join("apache.conf"));
        Self::start(command, dir, port, "http")
    }

    /// `rclone serve webdav`: a cut upload becomes a visible short object.
    pub(crate) fn rclone() -> Self {
        let (dir, port) = folder();
        let mut command = Command::new(program("rclone", "rclone"));
        command.args([
            "serve",
            "webdav",
            "--vfs-cache-mode",
            "off",
            "--dir-cache-time",
            "0s",
            "--addr",
        ]);
        command
            .arg(format!("127.0.0.1:{port}"))
            .arg(dir.path().join("root"));
        command.env("RCLONE_CONFIG", dir.path().join("rclone.conf"));
        Self::start(command, dir, port, "http")
    }

    fn start(command: Command, dir: TempDir, port: u16, scheme: &'static str) -> Self {
        let child = spawn(command, dir.path());
        let mut server = Self {
            child: Some(child),
            port,
            scheme,
            dir,
        };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            if ended.is_some() || began.elapsed() > START_MAX {
                let read =
                    |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
                panic!(
                    "server does not listen ({ended:?}): {}{}",
                    read("output"),
                    read("error.log")
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(mut command: Command, dir: &Path) -> Child {
    let output = File::create(dir.join("output")).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

fn nginx_command(dir: &Path) -> Command {
    let mut command = Command::new(program("nginx", "nginx-light"));
    command
        .arg("-p")
        .arg(dir)
        .arg("-c")
        .arg(dir.join("nginx.conf"));
    command
}

/// A folder with an empty root that a server of any user may write, and a free port.
fn folder() -> (TempDir, u16) {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    for path in [dir.path(), &dir.path().join("root")] {
        // Apache gives up root for www-data.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    (dir, port)
}

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).unwrap();
}

/// Where a program is; servers live in directories that are not on everybody's path.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}"))
}

/// What makes openssl make a key.
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// An authority of our own (`ca.pem`) and a certificate for localhost by it.
pub(crate) fn certify(dir: &Path) {
    for args in [
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=test-authority -days 2",
        "req {key} -keyout key.pem -out request.pem -subj /CN=localhost",
    ] {
        openssl(dir, &args.replace("{key}", NEW_KEY));
    }
    fs::write(
        dir.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    sign(dir, 2);
}

/// Signs the certificate, for so many days.
fn sign(dir: &Path, days: i32) {
    let signed = "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem";
    openssl(dir, &format!("{signed} -days {days} -extfile names"));
}

/// Replaces the certificate by one with a flaw. A self-signed one is also [`Server::ca`].
fn spoil(dir: &Path, flaw: Flaw) {
    let own = format!(
        "req -x509 {NEW_KEY} -keyout key.pem -out cert.pem -subj /CN=localhost -days 2 -addext subjectAltName=DNS:localhost"
    );
    match flaw {
        Flaw::Expired => sign(dir, -1),
        Flaw::OtherName => {
            fs::write(dir.join("names"), "subjectAltName=DNS:elsewhere\n").unwrap();
            sign(dir, 2);
        }
        Flaw::SelfSigned => openssl(dir, &own),
        Flaw::SelfSignedLeaf => openssl(
            dir,
            &format!("{own} -addext basicConstraints=critical,CA:FALSE"),
        ),
    }
    if matches!(flaw, Flaw::SelfSigned | Flaw::SelfSignedLeaf) {
        fs::copy(dir.join("cert.pem"), dir.join("ca.pem")).unwrap();
    }
}

fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new(program("openssl", "openssl"));
    let done = command
        .args(args.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
