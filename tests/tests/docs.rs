//! Documents that name a file or a recipe name one that exists, so they cannot rot.

use e2e::paths::root;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DOCUMENTS: [&str; 9] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/ADMIN.md",
    "docs/DIALECTS.md",
    "docs/LEDGER.md",
    "docs/QUEUE.md",
    "docs/SECURITY-MODEL.md",
];
/// Made by builds and runs, so absent from a fresh clone.
const GENERATED: [&str; 4] = ["target/", ".tools/", "envoy/run/", "istio/route-secret.env"];

#[test]
fn every_file_that_the_documents_name_exists() {
    let missing: Vec<String> = DOCUMENTS
        .iter()
        .flat_map(|document| {
            let names = named_paths(&read(document));
            names.into_iter().filter(|name| !exists(name)).map(move |name| format!("{document}: {name}"))
        })
        .collect();
    assert!(missing.is_empty(), "named and missing:\n{}", missing.join("\n"));
}

#[test]
fn every_recipe_that_the_documents_name_exists() {
    let recipes = recipes(&read("Justfile"));
    let missing: Vec<String> = DOCUMENTS
        .iter()
        .flat_map(|document| {
            let names = named_recipes(&read(document));
            let recipes = &recipes;
            names.into_iter().filter(|name| !recipes.contains(name)).map(move |name| format!("{document}: {name}"))
        })
        .collect();
    assert!(missing.is_empty(), "named and missing: {missing:?}; the Justfile has {recipes:?}");
}

#[test]
fn no_document_holds_a_gap_that_somebody_meant_to_fill() {
    // What a template leaves to be filled in is marked like this.
    const GAP: &str = "@@";
    for document in DOCUMENTS {
        let open: Vec<_> = read(document).lines().filter(|line| line.contains(GAP)).map(str::to_owned).collect();
        assert!(open.is_empty(), "{document}: {open:?}");
    }
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Paths in code spans, and targets of links.
fn named_paths(document: &str) -> BTreeSet<String> {
    let prose = without_fences(document);
    let spans = prose.split('`').skip(1).step_by(2).flat_map(str::split_whitespace).filter(|word| is_path(word));
    let links = prose.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let local = links.filter(|target| !target.is_empty() && !target.contains("://"));
    spans.chain(local).map(|word| word.trim_end_matches([',', '.', ':']).to_owned()).collect()
}

/// Has a folder in it or an extension that we use, and is neither an address nor a pattern. Rust files are named with
/// their folder; one without (`mod.rs`) is a way of naming.
fn is_path(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let extension = Path::new(word).extension().and_then(|extension| extension.to_str());
    let known = extension.is_some_and(|extension| {
        ["md", "py", "toml", "yaml", "yml", "lua", "lock", "txt", "json"].contains(&extension)
    });
    let in_folder = word.contains('/') && root().join(word.split('/').next().unwrap_or(word)).is_dir();
    plain && !word.starts_with(['/', '-']) && !word.contains("//") && (known || in_folder)
}

fn exists(name: &str) -> bool {
    GENERATED.iter().any(|folder| name.starts_with(folder)) || root().join(name).exists() || is_below_a_room(name)
}

/// A code map names files relative to the room it describes.
fn is_below_a_room(name: &str) -> bool {
    let rooms = ["policy", "filter", "quota-service", "tests", "envoy", "istio", "k8s"];
    rooms.iter().any(|room| {
        let room = root().join(room);
        room.join(name).exists() || room.join("src").join(name).exists()
    })
}

/// What follows `./justw` or `just`, one space after it, in code: spans, fences and indented lines.
fn named_recipes(document: &str) -> BTreeSet<String> {
    let spans_and_fences = document.split('`').skip(1).step_by(2).flat_map(str::lines);
    let indented = document.lines().filter(|line| line.starts_with("    "));
    let called = spans_and_fences.chain(indented).filter_map(|line| {
        let line = line.trim();
        let arguments = line.strip_prefix("./justw ").or_else(|| line.strip_prefix("just "))?;
        arguments.split(' ').next()
    });
    called.filter(|name| is_recipe_name(name)).map(str::to_owned).collect()
}

/// Anything else after `./justw` is an option, a placeholder or prose.
fn is_recipe_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Names at the start of a line, before arguments, dependencies and the colon.
fn recipes(justfile: &str) -> BTreeSet<String> {
    justfile
        .lines()
        .filter(|line| !line.starts_with([' ', '\t', '#', '@', '[']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':')?.0.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn without_fences(document: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}
