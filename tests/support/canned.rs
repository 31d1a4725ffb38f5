//! A server that says what the test wants, byte by byte, whatever it is asked.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A server on loopback that gives every connection its answer, the last one for ever.
pub(crate) struct Canned {
    port: u16,
    asked: Arc<AtomicUsize>,
}

impl Canned {
    /// Answers every request with `answer` and closes the connection.
    pub(crate) fn closing(answer: impl Into<String>) -> Self {
        Self::start(vec![answer.into()], false)
    }

    /// Answers every request with `answer` and then says nothing more, but stays.
    pub(crate) fn stalling(answer: impl Into<String>) -> Self {
        Self::start(vec![answer.into()], true)
    }

    /// The same, but the first connection gets `first`, which closes it.
    pub(crate) fn stalling_after(first: impl Into<String>) -> Self {
        Self::start(vec![first.into(), String::new()], true)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/cache", self.port)
    }

    /// How many connections were made.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Its threads end with the test's process; a listener on loopback disturbs nobody.
    fn start(answers: Vec<String>, stalls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            let mut open = Vec::new();
            for connection in listener.incoming().flatten() {
                let nth = count.fetch_add(1, Ordering::SeqCst);
                let answer = answers.get(nth).or(answers.last()).unwrap();
                let connection = serve(connection, answer);
                if stalls && !answer.contains("Connection: close") {
                    open.push(connection);
                }
            }
        });
        Self { port, asked }
    }
}

fn serve(mut connection: TcpStream, answer: &str) -> TcpStream {
    let mut asked = Vec::new();
    let mut chunk = [0; 4096];
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match connection.read(&mut chunk) {
            Ok(n) if n > 0 => asked.extend_from_slice(&chunk[..n]),
            _ => break,
        }
    }
    // A client that went away is its own affair.
    let _gone = connection.write_all(answer.as_bytes());
    connection
}
