use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// `gpu[.instance] namespace/pod load temperature`, a line for each row.
fn rows(text: &str) -> Vec<String> {
    let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
    read(text.as_bytes())
        .rows
        .iter()
        .map(|(key, row)| {
            let instance = key.instance.map_or(String::new(), |id| format!(".{id}"));
            let (load, celsius) = (show(row.load_percent()), show(row.temperature_celsius));
            format!("{}{instance} {}/{} {load} {celsius}", key.gpu, key.namespace, key.pod)
        })
        .collect()
}

#[test]
fn the_load_of_the_whole_gpu_wins_over_that_of_its_engines() {
    let engines = "DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"0\"} 0.25\n";
    let whole = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 40\n";
    assert_eq!(rows(&[engines, whole].concat()), ["0 / 40.0 -"]);
    assert_eq!(rows(&[whole, engines].concat()), ["0 / 40.0 -"]);
    assert_eq!(rows(engines), ["0 / 25.0 -"]);
}

#[test]
fn the_names_and_units_of_newer_exporters_are_understood() {
    let text = "DCGM_FI_DEV_GPU_UTIL_RATIO{gpu=\"3\",hostname=\"n\",namespace=\"a\",pod=\"p\"} 0.5\n\
                DCGM_FI_DEV_GPU_TEMP_CELSIUS{gpu=\"3\",hostname=\"n\",namespace=\"a\",pod=\"p\"} 61\n\
                DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO{gpu=\"3\",GPU_I_ID=\"7\"} 1.001\n";
    assert_eq!(rows(text), ["3 a/p 50.0 61.0", "3.7 / 100.0 -"]);
}

#[test]
fn the_holder_of_a_device_comes_before_the_exporter_itself() {
    let text = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"monitoring\",pod=\"exporter\",\
                exported_namespace=\"dept-a\",exported_pod=\"llm-0\"} 7";
    assert_eq!(rows(text), ["0 dept-a/llm-0 7.0 -"]);
}

#[test]
fn pods_that_share_a_gpu_have_a_row_each() {
    let text = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"a\",pod=\"x\"} 7\n\
                DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",namespace=\"b\",pod=\"y\"} 7";
    assert_eq!(rows(text), ["0 a/x 7.0 -", "0 b/y 7.0 -"]);
}

#[test]
fn a_blank_of_dcgm_is_no_value() {
    for blank in ["9223372036854775794", "140737488355328", "NaN", "+Inf", "-1", "101"] {
        assert_eq!(rows(&format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\"}} {blank}")), [""; 0], "{blank}");
    }
    assert_eq!(rows("DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"} 9223372036854775794"), [""; 0]);
}

#[test]
fn a_sample_without_a_usable_device_number_is_a_bad_line() {
    let text = "DCGM_FI_DEV_GPU_UTIL 1\nDCGM_FI_DEV_GPU_UTIL{gpu=\"-1\"} 1\n\
                DCGM_FI_DEV_GPU_UTIL{gpu=\"70000\"} 1\nDCGM_FI_DEV_GPU_UTIL{gpu=\"0\",GPU_I_ID=\"x\"} 1\n\
                DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 1\nother 1";
    let reading = read(text.as_bytes());
    assert_eq!((reading.rows.len(), reading.bad_lines), (1, 4));
}

#[test]
fn labels_are_cut_and_lose_their_control_characters() {
    let long = "é".repeat(100);
    let text = format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\",namespace=\"a\\nb\x07\",modelName=\"{long}\"}} 1");
    let reading = read(text.as_bytes());
    let (key, row) = reading.rows.first_key_value().unwrap();
    assert_eq!(key.namespace, "a_b_");
    assert_eq!(row.model.len(), MAX_LABEL_BYTES);
}

#[test]
fn rows_beyond_the_bound_are_dropped_and_counted() {
    let text: String =
        (0..MAX_ROWS + 5).map(|pod| format!("DCGM_FI_DEV_GPU_UTIL{{gpu=\"0\",pod=\"{pod}\"}} 1\n")).collect();
    let reading = read(text.as_bytes());
    assert_eq!((reading.rows.len(), reading.dropped), (MAX_ROWS, 5));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r#"((DCGM_FI_DEV_GPU_UTIL|DCGM_FI_DEV_GPU_TEMP)\{gpu="[0-9é]{0,6}",(GPU_I_ID|pod)="[^"]{0,9}"\} -?[0-9]{1,4}\n){0,20}"#) {
        for row in read(text.as_bytes()).rows.values() {
            prop_assert!(row.load_percent().is_none_or(|load| (0.0..=100.0).contains(&load)));
        }
    }
}

/// The folder of recordings, or `None` when this checkout has none. A folder that was named must exist.
fn recordings() -> Option<Vec<PathBuf>> {
    let named = std::env::var_os("SLUICE_TEST_DATA").map(PathBuf::from);
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = named.clone().unwrap_or(usual).join("dcgm");
    if named.is_none() && !folder.is_dir() {
        // Not `eprintln!`, which the test runner would hide.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no recordings of DCGM exporters here; SLUICE_TEST_DATA may name their folder"
        );
        return None;
    }
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    Some(files)
}

/// Reads a recording as crudely as can be: on these, every line that begins like a sample is one.
fn count_naively(text: &str) -> (usize, u64) {
    let is_sample = |line: &&str| line.starts_with("DCGM_") && line.contains('{');
    let is_free_text = |line: &&str| !line.trim().is_empty() && !line.starts_with('#') && !is_sample(line);
    (text.lines().filter(is_sample).count(), text.lines().filter(is_free_text).count() as u64)
}

#[test]
fn every_line_of_every_recording_is_a_sample_or_a_counted_bad_line() {
    for path in recordings().into_iter().flatten() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut samples = 0;
        let bad_lines = exposition::read(text.as_bytes(), |_| samples += 1);
        assert_eq!((samples, bad_lines), count_naively(&text), "{}", path.display());
    }
}

#[test]
fn every_device_of_every_recording_has_a_load_and_a_temperature_in_range() {
    for path in recordings().into_iter().flatten() {
        let text = std::fs::read_to_string(&path).unwrap();
        let reading = read(text.as_bytes());
        // The labels of a device, each once, though one recording says everything twice.
        let devices: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("DCGM_FI_DEV_GPU_TEMP{"))
            .filter_map(|line| line.rsplit_once("} "))
            .map(|(labels, _)| labels)
            .collect();
        let with_temperature = reading.rows.values().filter(|row| row.temperature_celsius.is_some()).count();
        assert_eq!(with_temperature, devices.len(), "{}", path.display());
        for (key, row) in &reading.rows {
            assert!(row.load_percent().is_some(), "{}: {key:?} has no load", path.display());
        }
    }
}

#[test]
fn the_recorded_mig_instances_are_told_apart_and_take_their_engines_load() {
    let find = |part: &str| recordings()?.into_iter().find(|path| path.to_string_lossy().contains(part));
    let Some(path) = find("4_Active_Workloads") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(rows(&text), ["0.5 / 0.0 35.0", "0.7 / 0.0 35.0", "0.8 / 40.8 35.0", "0.9 / 0.0 35.0"]);
}
