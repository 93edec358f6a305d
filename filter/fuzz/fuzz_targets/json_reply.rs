#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_filter::fuzzing::json_reply(input));
