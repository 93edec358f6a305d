//! `instructions WORDS CALLS`: so many calls through the filter's state machine, each with a stream of so many words, or with
//! a document where they are 0. `just bench instructions` counts what a call costs.

use sluice_filter::bench::{Bench, Kind};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (Some(Ok(words)), Some(Ok(calls))) = (numbers.next(), numbers.next()) else {
        eprintln!("instructions WORDS CALLS");
        std::process::exit(64);
    };
    let kind = if words == 0 { Kind::Document } else { Kind::Stream { words } };
    let mut bench = Bench::new(kind);
    let bytes: usize = (0..calls).map(|_| bench.call().1).sum();
    println!("{bytes} bytes of replies");
}
