use super::*;
use proptest::prelude::*;

/// What a text holds: `name{labels}=value` for every sample, and the number of bad lines.
fn summary(text: &str) -> (Vec<String>, u64) {
    let mut samples = Vec::new();
    let bad_lines = read(text.as_bytes(), |sample| {
        let labels: Vec<String> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        samples.push(format!("{}[{}] {}", sample.name, labels.join(" "), sample.value));
    });
    (samples, bad_lines)
}

#[test]
fn free_text_around_samples_costs_nothing_but_its_own_lines() {
    let text = "4 Active Workloads\n\n# HELP up Whether.\n# TYPE up gauge\nup 1\n-----\nIdle 1g.5gb allocated\n\
                up{gpu=\"0\",model=\"A 100\"} 2.5\r\nup{gpu=\"0\" 3\nlast{} 4";
    let (samples, bad_lines) = summary(text);
    assert_eq!(samples, ["up[] 1", "up[gpu=0 model=A 100] 2.5", "last[] 4"]);
    assert_eq!(bad_lines, 4);
}

#[test]
fn quotes_braces_commas_and_escapes_may_stand_in_a_label_value() {
    let (samples, bad_lines) = summary(r#"a{x="1,y=\"2\"}",z="b\\n\n\q\\" , } 7"#);
    assert_eq!(samples, ["a[x=1,y=\"2\"} z=b\\n\n\\q\\] 7"]);
    assert_eq!(bad_lines, 0);
}

#[test]
fn a_timestamp_and_an_exemplar_may_follow_the_value_but_no_sentence() {
    let (samples, bad_lines) = summary("a 1 1700000000000\nb 2 # {id=\"x\"} 9\nc 3 1700 # {} 1\nd 4 of them\ne 5 6 7");
    assert_eq!(samples, ["a[] 1", "b[] 2", "c[] 3"]);
    assert_eq!(bad_lines, 2);
}

#[test]
fn the_special_numbers_of_the_format_are_numbers() {
    assert_eq!(summary("a NaN\na +Inf\na -Inf\na 1e3").0, ["a[] NaN", "a[] inf", "a[] -inf", "a[] 1000"]);
}

#[test]
fn lines_that_are_not_samples_are_counted() {
    for line in [
        "a",
        "a{",
        "a{x",
        "a{x=",
        "a{x=\"",
        "a{x=\"1\"",
        "a{x=\"1\"}",
        "a{x=\"1\" y=\"2\"} 1",
        "9a 1",
        "{x=\"1\"} 1",
        "a-5",
        "a{=\"1\"} 1",
        "a one",
        "é 1",
    ] {
        assert_eq!(summary(line), (Vec::new(), 1), "{line}");
    }
}

#[test]
fn bytes_that_are_not_text_and_overlong_lines_are_bad_lines() {
    let long = format!("a{{x=\"{}\"}} 1\n", "x".repeat(MAX_LINE_BYTES));
    let many: String = (0..=MAX_LABELS).map(|index| format!("l{index}=\"\",")).collect();
    assert_eq!(summary(&long), (Vec::new(), 1));
    assert_eq!(summary(&format!("a{{{many}}} 1")), (Vec::new(), 1));
    assert_eq!(read(b"a 1\n\xff\xfe 2\nb 3\0", |_| {}), 2);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_every_line_is_accounted_for(text in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let mut samples = 0;
        let bad_lines = read(&text, |_| samples += 1);
        let lines = text.split(|byte| *byte == b'\n').count() as u64;
        prop_assert!(samples + bad_lines <= lines);
    }

    #[test]
    fn nearly_right_lines_do_not_make_it_panic(text in r#"([a-c]\{([a-c]="[^"]?\\?",?){0,3}\}? ?[0-9a-z.]*[ \n\\"{}=,#é]){0,20}"#) {
        read(text.as_bytes(), |_| {});
    }

    #[test]
    fn what_is_escaped_as_the_format_says_is_read_back(values in prop::collection::vec(any::<String>(), 0..5), number in any::<f64>()) {
        let escape = |text: &String| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = values.iter().enumerate().map(|(index, value)| format!("l{index}=\"{}\"", escape(value))).collect();
        let line = format!("m{{{}}} {number}\n", labels.join(","));
        let mut found = Vec::new();
        let bad_lines = read(line.as_bytes(), |sample| found.push(sample));
        prop_assert_eq!(bad_lines, 0);
        prop_assert_eq!(found.len(), 1);
        prop_assert!(found[0].value == number || (found[0].value.is_nan() && number.is_nan()));
        for (index, value) in values.iter().enumerate() {
            prop_assert_eq!(found[0].label(&format!("l{index}")), value);
        }
    }
}
