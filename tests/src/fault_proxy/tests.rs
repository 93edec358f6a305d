use super::pump::arrival;
use super::*;
use crate::wait::wait_until;
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const SLACK: Duration = Duration::from_secs(10);

/// Sends back what it receives, and counts that.
struct Echo {
    address: SocketAddr,
    received: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports::free().unwrap())).await.unwrap();
        let (address, received) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&received);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                connections.spawn(async move {
                    let mut chunk = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                        count.fetch_add(read as u64, Ordering::SeqCst);
                        let _ = stream.write_all(&chunk[..read]).await;
                    }
                });
            }
        });
        Self { address, received, _tasks: tasks }
    }
}

async fn rig() -> (Echo, FaultProxy) {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(echo.address).await.unwrap();
    (echo, proxy)
}

async fn connect(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn round_trip(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, text);
    Ok(())
}

#[tokio::test]
async fn a_whole_link_carries_everything_and_counts_it() {
    let (_echo, proxy) = rig().await;
    let mut stream = connect(&proxy).await;
    round_trip(&mut stream, b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the end goes through too");
    let expected = Counts { connections: 1, bytes_to_server: 5, bytes_to_client: 5, ..Counts::default() };
    assert_eq!(proxy.counts(), expected);
}

#[test]
fn a_delay_is_that_of_its_direction_and_delays_do_not_add_up() {
    let (to_server, to_client) = (Duration::from_millis(120), Duration::from_millis(40));
    let delay = Fault::Delay { to_server, to_client };
    let now = Instant::now();
    let later = now + Duration::from_millis(10);
    for (direction, span) in [(Direction::ToServer, to_server), (Direction::ToClient, to_client)] {
        let due = arrival(direction, delay, now, now, 1);
        assert_eq!(due, now + span);
        assert_eq!(arrival(direction, delay, later, due, 1), later + span);
        // Without a delay they still do not overtake.
        assert_eq!(arrival(direction, Fault::None, later, due, 1), due);
    }
}

#[test]
fn a_throttled_link_carries_so_many_bytes_a_second() {
    let throttle = Fault::Throttle { bytes_per_s: 10_000 };
    let now = Instant::now();
    let due = arrival(Direction::ToServer, throttle, now, now, 3_000);
    assert_eq!(due, now + Duration::from_millis(300));
    assert_eq!(arrival(Direction::ToServer, throttle, now, due, 1_000), now + Duration::from_millis(400));
    let idle = now + Duration::from_secs(1);
    assert_eq!(arrival(Direction::ToServer, throttle, idle, due, 1_000), idle + Duration::from_millis(100));
}

#[tokio::test]
async fn a_slow_link_keeps_the_order_and_loses_nothing() {
    let (_echo, proxy) = rig().await;
    let mut stream = connect(&proxy).await;
    let (to_server, to_client) = (Duration::from_millis(120), Duration::from_millis(40));
    proxy.set(Fault::Delay { to_server, to_client }).await.unwrap();
    for number in 0..50_u8 {
        stream.write_all(&[number]).await.unwrap();
    }
    let mut back = [0; 50];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back.to_vec(), (0..50).collect::<Vec<u8>>());

    // Shorter now; what is on the way stays ahead.
    stream.write_all(b"a").await.unwrap();
    proxy.set(Fault::None).await.unwrap();
    round_trip_of(&mut stream, b"b", b"ab").await;

    proxy.set(Fault::Throttle { bytes_per_s: 10_000 }).await.unwrap();
    round_trip(&mut stream, &[7; 3_000]).await.unwrap();
}

async fn round_trip_of(stream: &mut TcpStream, sent: &[u8], expected: &[u8]) {
    stream.write_all(sent).await.unwrap();
    let mut back = vec![0; expected.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, expected);
}

#[tokio::test]
async fn a_reset_hits_every_connection_there_is_and_no_later_one() {
    let (_echo, proxy) = rig().await;
    let mut streams = [connect(&proxy).await, connect(&proxy).await];
    for stream in &mut streams {
        round_trip(stream, b"x").await.unwrap();
    }
    proxy.reset_all();
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    round_trip(&mut connect(&proxy).await, b"x").await.unwrap();
}

#[tokio::test]
async fn what_was_half_open_stays_silent_and_new_connections_live() {
    let (echo, proxy) = rig().await;
    let mut old = connect(&proxy).await;
    round_trip(&mut old, b"x").await.unwrap();
    proxy.set(Fault::HalfOpen).await.unwrap();
    let mut young = connect(&proxy).await;
    for stream in [&mut old, &mut young] {
        stream.write_all(b"lost").await.unwrap();
    }
    wait_until("all is swallowed", SLACK, || async { proxy.counts().swallowed_bytes == 8 }).await.unwrap();

    proxy.set(Fault::None).await.unwrap();
    round_trip(&mut connect(&proxy).await, b"y").await.unwrap();
    for stream in [&mut old, &mut young] {
        stream.write_all(b"still").await.unwrap();
    }
    wait_until("and goes on being so", SLACK, || async { proxy.counts().swallowed_bytes == 18 }).await.unwrap();
    assert_eq!(echo.received.load(Ordering::SeqCst), 2);
    for stream in [&old, &young] {
        assert_eq!(stream.try_read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[tokio::test]
async fn a_lost_reply_was_applied_and_costs_the_connection() {
    let (echo, proxy) = rig().await;
    let mut stream = connect(&proxy).await;
    round_trip(&mut stream, b"x").await.unwrap();
    proxy.set(Fault::LoseReplies).await.unwrap();
    assert_eq!(round_trip(&mut stream, b"applied").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(echo.received.load(Ordering::SeqCst), 8);
    assert_eq!(proxy.counts().lost_replies, 1);
    proxy.set(Fault::None).await.unwrap();
    round_trip(&mut connect(&proxy).await, b"x").await.unwrap();
}

#[tokio::test]
async fn new_connections_are_refused_while_old_ones_go_on() {
    let (_echo, proxy) = rig().await;
    let mut old = connect(&proxy).await;
    round_trip(&mut old, b"x").await.unwrap();
    proxy.set(Fault::RefuseNew).await.unwrap();
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    round_trip(&mut old, b"y").await.unwrap();
    proxy.set(Fault::None).await.unwrap();
    round_trip(&mut connect(&proxy).await, b"x").await.unwrap();
}

#[tokio::test]
async fn without_a_server_a_connection_is_reset() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free().unwrap()));
    let proxy = FaultProxy::start(nobody).await.unwrap();
    let mut stream = connect(&proxy).await;
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}
