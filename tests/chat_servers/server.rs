//! A teacher behind HTTP in this process. It answers sums, in the manner that a test asks for.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as it came.
#[derive(Clone)]
pub struct Request {
    /// What is asked: the last message.
    pub prompt: String,
    /// The whole body.
    pub body: Value,
    /// The headers, in lower case.
    pub head: String,
    /// How often these very bytes came before.
    pub before: usize,
    pub at: Instant,
}

/// How it is answered.
pub enum Manner {
    /// This text; it ended by itself.
    Says(String),
    /// These choices and usage, or whatever else.
    Json(Value),
    /// Status, headers, body.
    Status(u16, String, String),
    /// The connection ends in the middle of the answer.
    Cut,
    /// Not in time.
    Silent(Duration),
    /// 200, with this body.
    Body(String),
    /// 200, with so many bytes of this body, which need not be UTF-8.
    Bytes(Vec<u8>, usize),
    /// The server ends, for good.
    Dies,
}

pub fn says(text: &str, finish_reason: &str) -> Value {
    json!({
        "choices": [{ "message": { "role": "assistant", "content": text },
                      "finish_reason": finish_reason }],
        "usage": { "prompt_tokens": 10, "completion_tokens": text.len() },
    })
}

type Answer = dyn Fn(&Request) -> Manner + Send + Sync;

/// A server in threads of its own; it cannot be reached any more once it is dropped.
pub struct Server {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Manner + Send + Sync + 'static) -> Self {
        Self::naming_models(200, answer)
    }

    /// A server that answers with this status when it is asked for its models.
    pub fn naming_models(
        status: u16,
        answer: impl Fn(&Request) -> Manner + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (requests, ended) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::default());
        let server = Self { url, requests: requests.clone(), ended: Arc::clone(&ended) };
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (requests, ended, answer) = (requests.clone(), ended.clone(), answer.clone());
                std::thread::spawn(move || {
                    serve(stream.unwrap(), status, &requests, &ended, &*answer)
                });
            }
        });
        server
    }

    /// The chat completions that were asked for since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let address = self.url.trim_start_matches("http://").trim_end_matches("/v1");
        let _ = TcpStream::connect(address);
    }
}

fn serve(
    stream: TcpStream,
    models: u16,
    requests: &Mutex<Vec<Request>>,
    ended: &AtomicBool,
    answer: &Answer,
) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&lower);
    }
    let mut stream = reader.get_ref().try_clone().unwrap();
    let mut send_bytes = |status: u16, headers: &str, body: &[u8], sent: usize| {
        let head = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body[..sent]);
        let _ = stream.flush();
    };
    let mut send = |status: u16, headers: &str, body: &str, sent: usize| {
        send_bytes(status, headers, body.as_bytes(), sent);
    };
    if head.starts_with("get /v1/models") {
        let body = json!({ "data": [{ "id": "the-model" }] }).to_string();
        return send(models, "", &body, body.len());
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() || ended.load(Ordering::SeqCst) {
        return;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    let mut request = Request {
        prompt: prompt.to_owned(),
        body: body.clone(),
        head,
        before: 0,
        at: Instant::now(),
    };
    {
        let mut requests = requests.lock().unwrap();
        request.before = requests.iter().filter(|other| other.body == body).count();
        requests.push(request.clone());
    }
    match answer(&request) {
        Manner::Says(text) => {
            let body = says(&text, "stop").to_string();
            send(200, "", &body, body.len());
        }
        Manner::Json(json) => {
            let body = json.to_string();
            send(200, "", &body, body.len());
        }
        Manner::Status(status, headers, body) => send(status, &headers, &body, body.len()),
        Manner::Cut => {
            let body = says("half of it", "stop").to_string();
            send(200, "", &body, body.len() / 2);
        }
        Manner::Silent(time) => std::thread::sleep(time),
        Manner::Body(body) => send(200, "", &body, body.len()),
        Manner::Bytes(body, sent) => send_bytes(200, "", &body, sent),
        Manner::Dies => ended.store(true, Ordering::SeqCst),
    }
}

/// The two numbers of a sum that is asked for.
pub fn numbers(prompt: &str) -> (u64, u64) {
    let mut numbers =
        prompt.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u64>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A right answer, with its reasoning in tags.
pub fn long_answer(prompt: &str) -> String {
    let (a, b) = numbers(prompt);
    format!("<think>\n{a} and {b}, let me see.\n</think>\n\nThe sum is \\boxed{{{}}}.", a + b)
}

/// A right answer.
pub fn short_answer(prompt: &str) -> String {
    let (a, b) = numbers(prompt);
    format!("\\boxed{{{}}}", a + b)
}
