//! A headless Chromium, asked over its debugging pipe: JSON and a zero byte, in two named pipes.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time for one answer.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Chromium {
    process: Child,
    commands: File,
    answers: File,
    read: Vec<u8>,
    number: u64,
    session: Option<String>,
    /// What it told without being asked, since it was looked at last.
    pub(super) events: Vec<Value>,
    _profile: TempDir,
}

impl Chromium {
    pub(super) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let pipe = |name: &str| {
            let path = profile.path().join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        let log = File::create(profile.path().join("log")).unwrap();
        // No name means anything to it but the one it is sent to.
        let run = r#"exec chromium-headless-shell --remote-debugging-pipe --no-sandbox --disable-gpu --hide-scrollbars \
            --disable-dev-shm-usage --host-resolver-rules='MAP * ~NOTFOUND, EXCLUDE 127.0.0.1' --no-proxy-server \
            --user-data-dir="$1" about:blank 3<"$2" 4>"$3""#;
        let mut process = Command::new("bash")
            .args(["-c", run, "bash"])
            .args([profile.path(), &to, &from])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let found = Command::new("bash")
            .args(["-c", "type chromium-headless-shell"])
            .output()
            .unwrap();
        if !found.status.success() {
            let _ = process.kill();
            let _ = process.wait();
            panic!("chromium-headless-shell is missing, run: scripts/setup look");
        }
        let mut chromium = Self {
            process,
            commands: File::options().write(true).open(to).unwrap(),
            answers: File::open(from).unwrap(),
            read: Vec::new(),
            number: 0,
            session: None,
            events: Vec::new(),
            _profile: profile,
        };
        let target = chromium.ask("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = chromium.ask("Target.attachToTarget", attach);
        chromium.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Network", "Runtime", "Log"] {
            chromium.ask(&format!("{domain}.enable"), json!({}));
        }
        chromium
    }

    /// One command, and its result.
    pub(super) fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut command = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone().into();
        }
        self.commands
            .write_all(format!("{command}\0").as_bytes())
            .unwrap();
        loop {
            let message = self.message();
            if message["id"] == self.number {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Value {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).unwrap();
            }
            let timeout = LIMIT.try_into().unwrap();
            let ready = poll(
                &mut [PollFd::new(&self.answers, PollFlags::IN)],
                Some(&timeout),
            );
            assert!(ready.unwrap() > 0, "Chromium does not answer");
            let mut chunk = [0; 65536];
            let got = self.answers.read(&mut chunk).unwrap();
            assert!(got > 0, "Chromium ended");
            self.read.extend_from_slice(&chunk[..got]);
        }
    }

    /// Loads a page to its end.
    pub(super) fn open(&mut self, url: &str) {
        let loaded = |events: &[Value]| {
            events
                .iter()
                .filter(|e| e["method"] == "Page.loadEventFired")
                .count()
        };
        let before = loaded(&self.events);
        let result = self.ask("Page.navigate", json!({"url": url}));
        assert!(result.get("errorText").is_none(), "{url}: {result}");
        while loaded(&self.events) == before {
            let message = self.message();
            self.events.push(message);
        }
    }

    /// The value of an expression in the page.
    pub(super) fn value(&mut self, expression: &str) -> Value {
        let result = self.ask(
            "Runtime.evaluate",
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true}),
        );
        assert!(
            result.get("exceptionDetails").is_none(),
            "{expression}: {result}"
        );
        result["result"]["value"].clone()
    }

    /// A screen of this width, light or dark.
    pub(super) fn screen(&mut self, width: u32, scheme: &str) {
        let phone = width < 600;
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 800, "deviceScaleFactor": if phone { 2 } else { 1 }, "mobile": phone}),
        );
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// The whole page as a PNG.
    pub(super) fn picture(&mut self, path: &Path) {
        let shot = self.ask(
            "Page.captureScreenshot",
            json!({"format": "png", "captureBeyondViewport": true}),
        );
        let script =
            "import base64,sys; open(sys.argv[1],'wb').write(base64.b64decode(sys.stdin.read()))";
        let path = path.to_str().unwrap();
        let done = super::with_input(
            "python3",
            &["-c", script, path],
            shot["data"].as_str().unwrap(),
        );
        assert!(done.status.success(), "{done:?}");
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
