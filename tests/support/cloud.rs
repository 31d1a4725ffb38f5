//! Object stores on loopback: moto, s3s-fs, azurite and an emulator of Google's, and a second way into each.

pub(crate) mod fake;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{installed, servers, test_tools, wait_until};

/// These start slowly: Python and node, and four others on the machine.
const START_MAX: Duration = Duration::from_secs(90);

pub(crate) const BUCKET: &str = "cache-of-tests";

/// A store that runs, with the keys to it. Ended when dropped.
pub(crate) struct Store {
    child: Child,
    port: u16,
    scheme: &'static str,
    kind: &'static str,
    /// Variables of the environment that let somebody in.
    pub(crate) keys: BTreeMap<String, String>,
    dir: TempDir,
}

impl Store {
    /// moto: everything of S3 that we use. It checks signatures.
    pub(crate) fn moto() -> Self {
        Self::moto_with(&[])
    }

    /// The same behind TLS, with a certificate of our own authority.
    pub(crate) fn moto_tls() -> Self {
        Self::moto_with(&["tls"])
    }

    fn moto_with(how: &[&str]) -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let mut command = Command::new(tool("moto/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        if how.contains(&"tls") {
            servers::certify(dir.path());
            command.arg("-c").arg(dir.path().join("cert.pem"));
            command.arg("-k").arg(dir.path().join("key.pem"));
        }
        // After these many calls, those of `moto_keys`, it wants to know who asks.
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", "4");
        let scheme = if how.contains(&"tls") {
            "https"
        } else {
            "http"
        };
        let mut store = Self::start(command, dir, port, scheme, "s3");
        store.moto_keys();
        store
    }

    /// Makes a user who may do everything with S3, a key of hers, and the bucket.
    fn moto_keys(&mut self) {
        let script = "
import boto3, json, sys
url, bucket, ca = sys.argv[1:]
def of(service):
    return boto3.client(service, endpoint_url=url, region_name='us-east-1', verify=ca or None,
                        aws_access_key_id='any', aws_secret_access_key='any')
iam = of('iam')
iam.create_user(UserName='builder')
allow = {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': ['s3:*', 'sts:*'], 'Resource': '*'}]}
iam.put_user_policy(UserName='builder', PolicyName='all', PolicyDocument=json.dumps(allow))
key = iam.create_access_key(UserName='builder')['AccessKey']
of('s3').create_bucket(Bucket=bucket)
print(key['AccessKeyId'], key['SecretAccessKey'])
";
        let ca = if self.scheme == "https" {
            self.ca()
        } else {
            PathBuf::new()
        };
        let mut command = Command::new(tool("moto/bin/python3"));
        command
            .args(["-c", script, &self.endpoint(), BUCKET])
            .arg(ca);
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let [id, key] = said.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{}", String::from_utf8_lossy(&done.stderr));
        };
        self.keys = keys(&[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", key)]);
    }

    /// s3s-fs: checks signatures, digests and the clock.
    pub(crate) fn s3s_fs() -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        fs::create_dir_all(dir.path().join("root").join(BUCKET)).unwrap();
        let mut command = Command::new(installed(test_tools().join("cargo/bin/s3s-fs"), "s3s"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args([
            "--access-key",
            "builder",
            "--secret-key",
            "s3cret-of-the-builder",
        ]);
        command.arg(dir.path().join("root"));
        let mut store = Self::start(command, dir, port, "http", "s3");
        store.keys = keys(&[
            ("AWS_ACCESS_KEY_ID", "builder"),
            ("AWS_SECRET_ACCESS_KEY", "s3cret-of-the-builder"),
        ]);
        store
    }

    /// azurite, Microsoft's own emulator, with an account of ours.
    pub(crate) fn azurite() -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let key = "c2VjcmV0LWtleS1vZi10aGUtYnVpbGRlci0wMTIzNDU2Nzg5";
        let mut command = Command::new(servers::program("node", "nodejs"));
        command.arg(tool("azurite/node_modules/azurite/dist/src/blob/main.js"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command.args([
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
            "-l",
        ]);
        command.arg(dir.path().join("root"));
        command.env("AZURITE_ACCOUNTS", format!("builder:{key}"));
        let mut store = Self::start(command, dir, port, "http", "azure");
        store.keys = keys(&[
            ("AZURE_STORAGE_ACCOUNT", "builder"),
            ("AZURE_STORAGE_KEY", key),
        ]);
        store.hand().ask("make");
        store
    }

    /// An emulator of Google's store. It knows no conditions, and asks nobody for a name.
    pub(crate) fn gcs() -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let mut command = Command::new(tool("gcs/bin/gcp-storage-emulator"));
        command.args([
            "start",
            "--host=127.0.0.1",
            &format!("--port={port}"),
            "--in-memory",
        ]);
        command.arg(format!("--default-bucket={BUCKET}"));
        let mut store = Self::start(command, dir, port, "http", "gcs");
        store.keys = keys(&[("STORAGE_EMULATOR_HOST", &format!("localhost:{port}"))]);
        store
    }

    fn start(
        mut command: Command,
        dir: TempDir,
        port: u16,
        scheme: &'static str,
        kind: &'static str,
    ) -> Self {
        let output = File::create(dir.path().join("output")).unwrap();
        command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn().unwrap();
        let mut store = Self {
            child,
            port,
            scheme,
            kind,
            keys: BTreeMap::new(),
            dir,
        };
        wait_until("the store listens", START_MAX, || {
            let ended = store.child.try_wait().unwrap();
            let output = || fs::read_to_string(store.dir.path().join("output")).unwrap_or_default();
            assert!(ended.is_none(), "it ended: {}", output());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        store
    }

    /// The emulator of Google's, which lacks some of what the real one does.
    pub(crate) fn is_googles(&self) -> bool {
        self.kind == "gcs"
    }

    pub(crate) fn endpoint(&self) -> String {
        let account = if self.kind == "azure" { "/builder" } else { "" };
        format!("{}://localhost:{}{account}", self.scheme, self.port)
    }

    /// The authority that signed its certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A second way in.
    pub(crate) fn hand(&self) -> Hand {
        let ca = (self.scheme == "https").then(|| self.ca());
        Hand::new(
            self.kind,
            &self.endpoint(),
            BUCKET,
            &self.keys,
            ca.as_deref(),
        )
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

/// A second way into a store, by the cloud's own library.
pub(crate) struct Hand(Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>);

impl Hand {
    pub(crate) fn new(
        kind: &str,
        endpoint: &str,
        bucket: &str,
        keys: &BTreeMap<String, String>,
        ca: Option<&Path>,
    ) -> Self {
        let python = if kind == "azure" {
            "azurite/venv"
        } else {
            "moto"
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/cloud/hand.py");
        let mut command = Command::new(tool(&format!("{python}/bin/python3")));
        command.arg(script).args([kind, endpoint, bucket]);
        command.envs(keys).env("AWS_DEFAULT_REGION", "us-east-1");
        command.envs(ca.map(|ca| ("AWS_CA_BUNDLE", ca)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self(Mutex::new((child, stdin, BufReader::new(stdout))))
    }

    /// What it answers.
    pub(crate) fn ask(&self, command: &str) -> String {
        let (_, stdin, stdout) = &mut *self.0.lock().unwrap();
        writeln!(stdin, "{command}").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "no answer to {:.80}", command);
        answer.trim_end().to_owned()
    }

    pub(crate) fn set(&self, key: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(self.ask(&format!("set {key} {hex}")), "ok");
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        let hex = self.ask(&format!("get {key}"));
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let (child, ..) = self
            .0
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }
}

pub(crate) fn keys(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    owned.collect()
}

/// Something that `scripts/setup cloud` installs.
pub(crate) fn tool(path: &str) -> PathBuf {
    installed(test_tools().join(path), "cloud")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
