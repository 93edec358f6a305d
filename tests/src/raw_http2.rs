//! An HTTP/2 client that writes its frames itself, so that it can write what no library would.

use anyhow::{Context, Result, bail};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The one stream that a connection opens.
const STREAM: u32 = 1;
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Types of frames, RFC 9113, 6.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
}

/// How a caller ends its call before the reply has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It closes its connection.
    Close,
    /// `RST_STREAM` with `CANCEL`, as libraries do.
    Cancel,
    /// `RST_STREAM` with `NO_ERROR`.
    NoError,
    /// A `PING` of seven bytes instead of eight.
    MalformedPing,
    /// A `WINDOW_UPDATE` of its stream by nothing.
    EmptyWindowUpdate,
    /// The same of the connection.
    EmptyWindowUpdateOfConnection,
    /// `DATA` on stream 0.
    DataOnStreamZero,
}

impl Leaving {
    pub const ALL: [Leaving; 7] = [
        Leaving::Close,
        Leaving::Cancel,
        Leaving::NoError,
        Leaving::MalformedPing,
        Leaving::EmptyWindowUpdate,
        Leaving::EmptyWindowUpdateOfConnection,
        Leaving::DataOnStreamZero,
    ];

    /// `None`: it only closes.
    fn frame(self) -> Option<Vec<u8>> {
        match self {
            Leaving::Close => None,
            Leaving::Cancel => Some(frame(kind::RST_STREAM, 0, STREAM, &8_u32.to_be_bytes())),
            Leaving::NoError => Some(frame(kind::RST_STREAM, 0, STREAM, &0_u32.to_be_bytes())),
            Leaving::MalformedPing => Some(frame(kind::PING, 0, 0, &[0; 7])),
            Leaving::EmptyWindowUpdate => Some(frame(kind::WINDOW_UPDATE, 0, STREAM, &[0; 4])),
            Leaving::EmptyWindowUpdateOfConnection => Some(frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])),
            Leaving::DataOnStreamZero => Some(frame(kind::DATA, 0, 0, b"x")),
        }
    }
}

/// A connection with one call under way.
pub struct RawCall {
    tcp: TcpStream,
    received: Vec<u8>,
}

impl RawCall {
    /// Sends a POST of JSON with a key to `address`, such as `127.0.0.1:8080`.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn post(address: &str, path: &str, key: &str, body: &str) -> Result<Self> {
        let mut tcp = TcpStream::connect(address).await?;
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(kind::SETTINGS, 0, 0, &[]));
        let bearer = format!("Bearer {key}");
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", address),
            ("content-type", "application/json"),
            ("authorization", &bearer),
        ];
        let block: Vec<u8> = headers.iter().flat_map(|(name, value)| literal(name, value)).collect();
        bytes.extend(frame(kind::HEADERS, flag::END_HEADERS, STREAM, &block));
        bytes.extend(frame(kind::DATA, flag::END_STREAM, STREAM, body.as_bytes()));
        tcp.write_all(&bytes).await?;
        Ok(Self { tcp, received: Vec::new() })
    }

    /// Reads until this text has come.
    ///
    /// # Errors
    /// When the connection ends first, or it takes too long.
    pub async fn read_until(&mut self, text: &str) -> Result<()> {
        let reads = async {
            while !self.received.windows(text.len()).any(|window| window == text.as_bytes()) {
                if self.tcp.read_buf(&mut self.received).await? == 0 {
                    bail!("the connection ended before {text:?} came");
                }
            }
            Ok(())
        };
        timeout(HANGS_AFTER, reads).await.with_context(|| format!("{text:?} did not come"))?
    }

    /// Ends the call. What it sent keeps its connection until that is dropped, and a call that closes it has none any more.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn leave(mut self, how: Leaving) -> Result<Option<Self>> {
        match how.frame() {
            None => Ok(None),
            Some(frame) => {
                self.tcp.write_all(&frame).await?;
                Ok(Some(self))
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let head = [&length[..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header field that no table remembers, without Huffman coding: RFC 7541, 6.2.2.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut coded = Vec::new();
        match text.len() {
            short @ ..127 => coded.push(u8::try_from(short).expect("below 127")),
            long => {
                // The rest after seven bits of ones, here of at most two bytes: RFC 7541, 5.1.
                let rest = long - 127;
                assert!(rest < 1 << 14, "longer than this client writes");
                coded.push(127);
                if rest >= 128 {
                    coded.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                    coded.push(u8::try_from(rest / 128).expect("seven bits"));
                } else {
                    coded.push(u8::try_from(rest).expect("seven bits"));
                }
            }
        }
        coded.extend(text.as_bytes());
        coded
    };
    [vec![0], text(name), text(value)].concat()
}
