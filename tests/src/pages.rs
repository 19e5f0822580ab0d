//! The READMEs, and what they show.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use crate::{PACKAGES, program, root, run};

/// The pages in one language: where each is, and its text. The first page, one for each mechanism, and two more.
pub type Pages = Vec<(PathBuf, String)>;

/// The pages in English.
pub static ENGLISH: LazyLock<Pages> = LazyLock::new(|| pages("md"));
/// The pages in Chinese.
pub static CHINESE: LazyLock<Pages> = LazyLock::new(|| pages("zh-CN.md"));

fn pages(ending: &str) -> Pages {
    let page = |(folder, name)| {
        let path = root().join(folder).join(format!("{name}.{ending}"));
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    let folders = [""].into_iter().chain(PACKAGES).chain(["common"]);
    let names = folders.map(|folder| (folder, "README"));
    names.chain([("queue", "ipc-channel")]).map(page).collect()
}

/// All of them.
pub fn readmes() -> impl Iterator<Item = &'static str> {
    ENGLISH.iter().chain(CHINESE.iter()).map(|(_, text)| text.as_str())
}

/// The fenced blocks of a README: the language, and the text.
pub fn blocks(readme: &str) -> Vec<(&str, &str)> {
    let fenced = readme.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

/// The block of this kind that starts like this, of any page in English.
#[track_caller]
pub fn block(kind: &str, start: &str) -> &'static str {
    let found = all_blocks(kind, start).next();
    found.unwrap_or_else(|| panic!("no README has a {kind} block that starts with {start}"))
}

/// All blocks of this kind that start like this.
pub fn all_blocks(kind: &str, start: &str) -> impl Iterator<Item = &'static str> {
    let pages = ENGLISH.iter().flat_map(|(_, text)| blocks(text));
    pages
        .filter(move |(other, text)| *other == kind && text.starts_with(start))
        .map(|(_, text)| text)
}

/// The console blocks of a README: the command, and what is shown below it.
pub fn console_blocks(readme: &str) -> Vec<(&str, &str)> {
    let console = blocks(readme).into_iter().filter(|(language, _)| *language == "console");
    console.map(|(_, text)| text.strip_prefix("$ ").unwrap().split_once('\n').unwrap()).collect()
}

/// A command that a README shows: the variables it sets, the package, and its arguments.
pub type Shown<'a> = (Vec<(&'a str, &'a str)>, &'a str, Vec<&'a str>);

/// Takes `[VARIABLE=value] cargo run -q -p PACKAGE [ARGUMENT…]` apart.
pub fn parse_command(command: &str) -> Option<Shown<'_>> {
    let words: Vec<_> = command.split(' ').collect();
    let variables: Vec<_> = words.iter().map_while(|word| word.split_once('=')).collect();
    match words[variables.len()..] {
        ["cargo", "run", "-q", "-p", package, ref args @ ..] => {
            Some((variables, package, args.to_vec()))
        }
        _ => None,
    }
}

/// Runs the commands of one package that the READMEs show, and compares what they print; all but
/// those that have a test of their own.
#[track_caller]
pub fn check_console_blocks(exe: &str, package: &str, own_test: &[&str]) {
    for (command, shown) in readmes().flat_map(console_blocks) {
        let (variables, of, args) = parse_command(command).unwrap();
        if of != package || own_test.contains(&command) {
            continue;
        }
        let printed = run(program(exe, &args).envs(variables)).succeeded();
        let same = same_each_time(command, &printed) == same_each_time(command, shown);
        assert!(same, "a README shows for '{command}':\n{shown}\nbut it printed:\n{printed}");
    }
}

/// What a README shows below `$ command`.
pub fn readme_shows(command: &str) -> String {
    let shown = readmes().flat_map(console_blocks).find(|(shown, _)| *shown == command);
    shown.unwrap_or_else(|| panic!("no README shows '$ {command}'")).1.to_owned()
}

/// The commands whose output differs from run to run, and only in its numbers.
const VARYING: [&str; 4] = [
    "IPC_LOG=time cargo run -q -p pipe",
    "cargo run -q -p queue workers",
    "cargo run -q -p shm isolation",
    "cargo run -q -p shm race",
];

/// What a command prints, without what differs from run to run.
fn same_each_time(command: &str, printed: &str) -> String {
    if VARYING.contains(&command) { normalised(printed) } else { printed.to_owned() }
}

/// Makes one sign of each number and each address, and one space of several.
pub fn normalised(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hex = rest.strip_prefix("0x");
        rest = if let Some(hex) = hex {
            result.push_str("0x#");
            hex.trim_start_matches(|digit: char| digit.is_ascii_hexdigit())
        } else if first.is_ascii_digit() {
            result.push('#');
            rest.trim_start_matches(|digit: char| digit.is_ascii_digit())
        } else if first == ' ' {
            result.push(' ');
            rest.trim_start_matches(' ')
        } else {
            result.push(first);
            &rest[first.len_utf8()..]
        };
    }
    result
}

/// The numbers in a text.
pub fn numbers(text: &str) -> Vec<u64> {
    let parts = text.split(|char: char| !char.is_ascii_digit());
    parts.flat_map(|part| part.parse()).collect()
}
