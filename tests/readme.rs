//! What the READMEs say is so. (What their commands print is compared where the programs are:
//! `check_console_blocks`.)

mod support;

use std::collections::BTreeSet;
use std::fs;

use support::{READMES, block, blocks, console_blocks, parse_command, root};

const PACKAGES: [&str; 5] = ["pipe", "fifo", "queue", "shm", "socket"];

/// The lines that are not in a fenced block.
fn prose(readme: &str) -> Vec<&str> {
    let outside = readme.split("```").step_by(2);
    outside.flat_map(|text| text.lines()).collect()
}

/// What stands between backticks in a line.
fn code(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn both_languages_have_the_same_blocks_headings_and_tables() {
    let [english, chinese] = READMES;
    for (one, other) in blocks(english).into_iter().zip(blocks(chinese)) {
        assert_eq!(one, other);
    }
    assert_eq!(blocks(english).len(), blocks(chinese).len());
    // The same sections, list items and rows, in the same order, with the same names in the rows.
    let shape = |readme| -> Vec<(String, Vec<&str>)> {
        let lines = prose(readme).into_iter();
        let marked = lines.filter(|line| line.starts_with(['#', '|', '-']));
        let mark = |line: &str| line.chars().take_while(|char| "#|-".contains(*char)).collect();
        marked
            .map(|line| (mark(line), if line.starts_with('|') { code(line) } else { vec![] }))
            .collect()
    };
    for (one, other) in shape(english).into_iter().zip(shape(chinese)) {
        assert_eq!(one, other);
    }
    assert_eq!(shape(english).len(), shape(chinese).len());
}

#[test]
fn every_console_block_is_of_a_program_whose_test_runs_it() {
    for (command, _) in READMES.into_iter().flat_map(console_blocks) {
        let parsed = parse_command(command);
        assert!(parsed.is_some_and(|(_, package, _)| PACKAGES.contains(&package)), "{command}");
    }
}

#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    let kinds = ["console", "mermaid", "rust", "sh", "text", "toml"];
    for (kind, text) in READMES.into_iter().flat_map(blocks) {
        assert!(kinds.contains(&kind), "a block of '{kind}':\n{text}");
    }
}

#[test]
fn every_command_names_what_there_is() {
    let sh = READMES.into_iter().flat_map(blocks).filter(|(kind, _)| *kind == "sh");
    let lines = sh.flat_map(|(_, text)| text.lines());
    let inline = READMES.into_iter().flat_map(prose).flat_map(code);
    for line in lines.chain(inline) {
        let words: Vec<_> = line.split(' ').collect();
        for pair in words.windows(2) {
            match pair {
                ["-p", package] => assert!(root().join(package).join("src").is_dir(), "{line}"),
                ["--test", test] => {
                    assert!(
                        root().join("tests").join(test).with_extension("rs").is_file(),
                        "{line}"
                    );
                }
                _ => {}
            }
        }
        // What comes after a package is a word of its command line.
        let Some(at) = words.iter().position(|word| *word == "-p") else { continue };
        let next =
            words.get(at + 2).filter(|next| next.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some(next) = next {
            let main = fs::read_to_string(root().join(words[at + 1]).join("src/main.rs")).unwrap();
            assert!(main.contains(&format!("\"{next}\"")), "{line}");
        }
    }
}

#[test]
fn every_link_and_every_file_that_is_named_exists() {
    for line in READMES.into_iter().flat_map(prose) {
        for link in line.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            assert!(link.starts_with("https://") || root().join(link).exists(), "{line}");
        }
        for name in code(line).into_iter().filter(|name| !name.contains([' ', ':', '…', '('])) {
            if let Some(rest) = name.strip_prefix("src/") {
                for package in PACKAGES {
                    assert!(root().join(package).join("src").join(rest).exists(), "{line}");
                }
            } else if name.ends_with(".rs") || name.ends_with(".toml") || name.starts_with(".ci/") {
                assert!(root().join(name).exists(), "{line}");
            }
        }
    }
}

#[test]
fn every_name_of_ours_is_in_the_code() {
    let mut seen = BTreeSet::new();
    for name in READMES.into_iter().flat_map(prose).flat_map(code) {
        let Some((package, path)) = name.split_once("::") else { continue };
        if package != "common" && !PACKAGES.contains(&package) {
            continue;
        }
        let files = fs::read_dir(root().join(package).join("src")).unwrap();
        let source: String =
            files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        for part in path.split("::") {
            let kinds = ["pub fn ", "pub struct ", "pub enum ", "    "];
            let declared = kinds.iter().any(|kind| {
                source.match_indices(&format!("{kind}{part}")).any(|(at, found)| {
                    let next = source[at + found.len()..].chars().next();
                    next.is_some_and(|next| "(<, {".contains(next))
                })
            });
            assert!(declared, "{name}: {part} is not in {package}/src");
        }
        seen.insert(name);
    }
    assert!(seen.len() > 20, "{seen:?}");
}

#[test]
fn the_chart_shows_the_numbers_of_the_table() {
    let table = block("text", "$ cargo bench\n");
    let row = "round trip 64 B ";
    let mut rows: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in table.lines().filter(|line| line.contains(row) && !line.contains("lines")) {
        let (name, numbers) = line.split_once(row).unwrap();
        // The first table of the queue is the one against bare channels.
        if rows.iter().all(|(known, _)| *known != name.trim()) {
            rows.push((name.trim(), numbers.split_whitespace().step_by(2).collect()));
        }
    }
    let chart = block("mermaid", "xychart-beta");
    let list = |start: &str| -> Vec<&str> {
        let line = chart.lines().find_map(|line| line.trim().strip_prefix(start)).unwrap();
        line.trim_matches(['[', ']']).split(", ").collect()
    };
    let (ours, bare) = (list("bar "), list("line "));
    assert_eq!((ours.len(), bare.len()), (rows.len(), rows.len()));
    for pair in ours.iter().zip(&bare) {
        let found = rows.iter().any(|(_, numbers)| (&numbers[0], &numbers[1]) == pair);
        assert!(found, "{pair:?} is not in the table");
    }
}
