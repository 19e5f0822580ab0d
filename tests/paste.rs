//! Every file that the README offers can be pasted, with the dependency lines that it gives there: as a
//! crate, as a module of a program, and as a module of a library whose own `cargo test` then passes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::{
    ENGLISH, PACKAGES, all_blocks, block, blocks, has, has_cargo, list, root, skip, temp_dir,
};

/// What can be copied together: its name, the README's block of dependencies, and the files, the
/// first of which is the crate's `lib.rs` or the module's file.
const OFFERED: [(&str, &str, &[&str]); 8] = [
    ("pipe", "pipe", &["pipe/src/lib.rs"]),
    ("fifo", "fifo", &["fifo/src/lib.rs"]),
    ("queue", "queue", &["queue/src/lib.rs"]),
    (
        "shm",
        "shm",
        &["shm/src/lib.rs", "shm/src/memory.rs", "shm/src/pair.rs", "shm/src/semaphore.rs"],
    ),
    ("memory", "shm", &["shm/src/memory.rs"]),
    ("semaphore", "shm", &["shm/src/semaphore.rs"]),
    ("socket", "socket", &["socket/src/lib.rs"]),
    ("common", "common", &["common/src/process.rs"]),
];

/// Alone, as a crate of its name: the README's program, or none, builds without a warning, and runs.
#[test]
fn each_is_a_crate() {
    for (name, dependencies, files) in OFFERED {
        let dir = temp_dir();
        let src = dir.path().join("src");
        fs::create_dir_all(src.join("bin")).unwrap();
        let start = format!("// {name}: ");
        let program = all_blocks("rust", &start).next().unwrap_or("fn main() {}\n");
        fs::write(src.join("main.rs"), program).unwrap();
        // process.rs is a module of that program.
        let is_module = name == "common";
        copy(files, &src.join(if is_module { "common.rs" } else { "lib.rs" }), &src);
        let dependencies = block("toml", &format!("# {dependencies}\n"));
        manifest(dir.path(), if is_module { "demo" } else { name }, dependencies);
        // More programs, with Python on the other side, which say in which file they are.
        let start = format!("// {name}, src/bin/");
        let mut others = Vec::new();
        for program in all_blocks("rust", &start) {
            let (other, _) = program[start.len()..].split_once(".rs: ").unwrap();
            fs::write(src.join("bin").join(other).with_extension("rs"), program).unwrap();
            others.push(other);
        }
        assert_eq!(cargo(dir.path(), &["build", "--quiet"]), "", "{name}");
        let printed = if is_module { "the child says Hello\n" } else { "" };
        let bin = if is_module { "demo" } else { name };
        assert_eq!(cargo(dir.path(), &["run", "--quiet", "--bin", bin]), printed, "{name}");
        if !others.is_empty() {
            assert_eq!(run_with_python(dir.path(), &others), "", "{name}");
        }
    }
}

/// Runs programs that start Python, and the one that Python starts; returns what cargo printed.
fn run_with_python(dir: &Path, programs: &[&str]) -> String {
    if !has("python3") {
        skip("no python3 here: install it");
        return String::new();
    }
    fs::write(dir.join("child.py"), block("python", "# child.py: ")).unwrap();
    programs.iter().map(|program| cargo(dir, &["run", "--quiet", "--bin", program])).collect()
}

/// Each example becomes the program of a new crate, by the commands and the lines of its README and nothing else.
#[test]
fn each_example_is_a_program() {
    for package in PACKAGES {
        for example in list(root().join(package).join("examples")) {
            let name = example.strip_suffix(".rs").unwrap();
            let link = format!("| [{name}](examples/{example}) |");
            let page = ENGLISH.iter().find(|(_, text)| text.contains(&link));
            let (_, page) = page.unwrap_or_else(|| panic!("{package}: no page offers {example}"));
            let new = |(kind, text): &(&str, &str)| *kind == "sh" && text.contains("/examples/");
            let (_, commands) = blocks(page).into_iter().find(new).unwrap();
            let (_, first) = commands.split_once("cargo new ").unwrap();
            let first = first.split(' ').next().unwrap();

            // The folder that the commands begin in, as if it were the clone.
            let dir = temp_dir();
            let clone = dir.path().join("ipc");
            fs::create_dir(&clone).unwrap();
            let root = root().canonicalize().unwrap();
            let commands = commands
                .replace("cargo new", "\"$CARGO\" new --vcs none --quiet")
                .replace(&format!(" {first} "), &format!(" {name} "))
                .replace(&format!("cd {first}"), &format!("cd {name}"))
                .replace(&format!("/{first}.rs"), &format!("/{name}.rs"))
                .replace("../ipc", &format!("\"{}\"", root.display()));
            let mut sh = Command::new("sh");
            sh.args(["-ec", &commands]).env("CARGO", env!("CARGO")).current_dir(clone);
            assert!(sh.status().unwrap().success(), "{commands}");
            let dir = dir.path().join(name);
            let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
            let manifest = manifest + block("toml", &format!("# {package}\n"));
            fs::write(dir.join("Cargo.toml"), manifest).unwrap();
            fs::copy(root.join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
            assert_eq!(cargo(&dir, &["build", "--quiet"]), "", "{name}");
            // What needs no second terminal.
            let needs_none =
                ["progress", "workers", "command", "pool", "channel_workers", "long_value"];
            if needs_none.contains(&name) {
                assert_ne!(cargo(&dir, &["run", "--quiet"]), "", "{name}");
            }
        }
    }
}

/// All together, as modules of a program and of a library.
#[test]
fn all_are_modules() {
    let dir = temp_dir();
    let src = dir.path().join("src");
    let (mut library, mut program) = (String::new(), String::new());
    for (name, _, files) in OFFERED {
        fs::create_dir_all(src.join(name)).unwrap();
        copy(files, &src.join(name).with_extension("rs"), &src.join(name));
        library += &format!("pub mod {name};\n");
        program += &format!("mod {name};\n");
    }
    fs::write(src.join("lib.rs"), library).unwrap();
    fs::write(src.join("main.rs"), program + "fn main() {}\n").unwrap();
    manifest(dir.path(), "everything", &merged());
    let printed = cargo(dir.path(), &["test", "--quiet"]);
    assert!(!printed.contains("error"), "{printed}");
    if !has_cargo("clippy") {
        return skip("no cargo clippy here: rustup component add clippy");
    }
    // Nothing is used here, nor what lib.rs hands on.
    let unused = ["-A", "dead_code", "-A", "unused_imports"];
    cargo(dir.path(), &[&["clippy", "--quiet", "--", "-D", "warnings"][..], &unused].concat());
}

/// Copies the first file to `first`, and the others to a folder.
fn copy(files: &[&str], first: &Path, others: &Path) {
    fs::copy(root().join(files[0]), first).unwrap();
    for file in files[1..].iter().map(Path::new) {
        fs::copy(root().join(file), others.join(file.file_name().unwrap())).unwrap();
    }
}

fn manifest(dir: &Path, name: &str, dependencies: &str) {
    // The same versions as here, so that nothing needs to be downloaded.
    fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock")).unwrap();
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{dependencies}"
    );
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
}

/// The dependency lines of all blocks, those for unit tests too. A crate has the same line everywhere, so that whoever
/// takes two blocks can leave out what is there already.
fn merged() -> String {
    let lines = all_blocks("toml", "# ").flat_map(str::lines).filter(|line| line.contains(" = "));
    let lines = lines.map(|line| line.split(" #").next().unwrap());
    let lines: BTreeSet<_> = lines.collect();
    let crates: BTreeSet<_> = lines.iter().map(|line| line.split(' ').next()).collect();
    assert_eq!(crates.len(), lines.len(), "a crate has two lines: {lines:#?}");
    lines.into_iter().collect::<Vec<_>>().join("\n") + "\n"
}

/// Runs cargo, offline, and returns what it printed.
#[track_caller]
fn cargo(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.arg(args[0]).args(["--offline", "--target-dir", env!("CARGO_TARGET_TMPDIR")]);
    let output = command.args(&args[1..]).current_dir(dir).env("TMPDIR", dir).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(output.status.success(), "cargo {args:?}:\n{printed}");
    printed
}
