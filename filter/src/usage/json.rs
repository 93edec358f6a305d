//! Usage from a JSON reply, read as it passes: of any length, and without a copy.

mod scan;

use super::report::Reported;
use super::written::least_tokens_of;
use super::{Reading, Sequences, Shape, tokens_of};
use scan::Scan;
use sluice_policy::units::Tokens;

#[derive(Debug)]
pub(crate) struct JsonMeter {
    shape: Shape,
    sequences: Sequences,
    scan: Scan,
}

impl JsonMeter {
    pub(super) fn new(shape: Shape, sequences: Sequences) -> Self {
        Self { shape, sequences, scan: Scan::default() }
    }

    pub(super) fn read(&mut self, piece: &[u8]) {
        self.scan.push(piece);
    }

    pub(super) fn is_of_llama_cpp(&self) -> bool {
        self.scan.is_of_llama_cpp()
    }

    pub(super) fn reading(&self) -> Reading {
        let mut reported = Reported::default();
        if let Some(usage) = self.scan.usage() {
            reported.take(usage, self.shape);
        }
        match reported.counts(self.shape) {
            // It tells of the first of several choices only.
            Some(counts) if self.sequences.are_several() && self.scan.is_of_llama_cpp() => {
                let least = least_tokens_of(self.scan.text_bytes());
                Reading { reported: Some(counts), counted: Tokens(least.0.saturating_sub(counts.output.0)) }
            }
            Some(counts) if counts.output > Tokens::ZERO => Reading { reported: Some(counts), counted: Tokens::ZERO },
            // No output is reported: what came is counted.
            reported => Reading { reported, counted: self.estimate() },
        }
    }

    fn estimate(&self) -> Tokens {
        if self.shape == Shape::Embeddings { Tokens::ZERO } else { tokens_of(self.scan.text_bytes()) }
    }

    /// Bytes of what the model wrote.
    pub(super) fn text_bytes(&self) -> u64 {
        self.scan.text_bytes()
    }

    pub(super) fn is_error(&self) -> bool {
        self.scan.is_error()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REPLY: &[u8] =
        br#"{"choices":[{"message":{"content":"hi \"you\""}}],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#;

    fn read(pieces: &[&[u8]]) -> Reading {
        let mut meter = JsonMeter::new(Shape::OpenAi, Sequences::ONE);
        pieces.iter().for_each(|piece| meter.read(piece));
        meter.reading()
    }

    #[test]
    fn usage_is_the_same_wherever_the_reply_is_cut() {
        for at in 0..=REPLY.len() {
            let (head, tail) = REPLY.split_at(at);
            assert_eq!(read(&[head, tail]).reported.unwrap().output, Tokens(4));
        }
    }

    #[test]
    fn a_reply_without_usage_is_estimated_by_its_text() {
        let reply = br#"{"id":"not output","choices":[{"message":{"role":"assistant","content":"12345678"}}]}"#;
        assert_eq!(read(&[reply]), Reading { reported: None, counted: Tokens(2) });
        assert_eq!(read(&[b"{\"usage\":null}"]).reported, None);
        assert_eq!(read(&[]).counted, Tokens(0));
    }

    #[test]
    fn a_reply_that_broke_off_reports_nothing_and_costs_what_had_come() {
        let cut = br#"{"usage":{"prompt_tokens":9,"completion_tokens":4},"choices":[{"text":"12345678"#;
        assert_eq!(read(&[cut]), Reading { reported: None, counted: Tokens(2) });
    }

    #[test]
    fn usage_is_found_behind_any_length_of_reply() {
        let large =
            format!(r#"{{"data":"{}","usage":{{"prompt_tokens":9,"completion_tokens":4}}}}"#, "x".repeat(9 << 20));
        assert_eq!(read(&[large.as_bytes()]).reported.unwrap().input, Tokens(9));
    }

    #[test]
    fn of_llama_cpps_several_choices_no_less_is_charged_than_so_much_text_must_cost() {
        let text = "x".repeat(864);
        let (one, two) = (Sequences::ONE, Sequences::of(1, 2));
        for (more, sequences, counted) in [(r#","timings":{}"#, one, 0), ("", two, 0), (r#","timings":{}"#, two, 96)] {
            let usage = r#"{"prompt_tokens":9,"completion_tokens":4}"#;
            let reply = format!(r#"{{"choices":[{{"text":"{text}"}}],"usage":{usage}{more}}}"#);
            let mut meter = JsonMeter::new(Shape::OpenAi, sequences);
            meter.read(reply.as_bytes());
            assert_eq!(
                (meter.reading().reported.unwrap().output, meter.reading().counted),
                (Tokens(4), Tokens(counted))
            );
        }
    }

    #[test]
    fn embeddings_without_usage_have_no_output() {
        let mut meter = JsonMeter::new(Shape::Embeddings, Sequences::ONE);
        meter.read(br#"{"data":[{"embedding":[0.1,0.2]}]}"#);
        assert_eq!(meter.reading(), Reading::default());
    }

    proptest! {
        #[test]
        fn any_reply_is_read_without_a_panic(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            read(&pieces);
        }
    }
}
