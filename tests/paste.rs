//! Every file that the README offers can be pasted, with the dependency lines that it gives there: as a
//! crate, as a module of a program, and as a module of a library whose own `cargo test` then passes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use tests::{ENGLISH, PACKAGES, all_blocks, block, has, has_cargo, list, root, skip, temp_dir};

/// What can be copied together: its name, the README's block of dependencies, and the files, the
/// first of which is the crate's `lib.rs` or the module's file.
const OFFERED: [(&str, &str, &[&str]); 8] = [
    ("pipe", "pipe", &["pipe/src/lib.rs"]),
    ("fifo", "fifo", &["fifo/src/lib.rs"]),
    ("queue", "queue", &["queue/src/lib.rs", "queue/src/tokens.rs"]),
    (
        "shm",
        "shm",
        &[
            "shm/src/lib.rs",
            "shm/src/mailbox.rs",
            "shm/src/memory.rs",
            "shm/src/peers.rs",
            "shm/src/semaphore.rs",
        ],
    ),
    ("memory", "shm", &["shm/src/memory.rs"]),
    ("sema", "shm", &["", "shm/src/memory.rs", "shm/src/semaphore.rs"]),
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
        copy(files, &src.join("lib.rs"), &src);
        let dependencies = block("toml", &format!("# {dependencies}\n"));
        manifest(dir.path(), name, dependencies);
        // More programs, with Python on the other side, which say in which file they are.
        let start = format!("// {name}, src/bin/");
        let mut others = Vec::new();
        for program in all_blocks("rust", &start) {
            let (other, _) = program[start.len()..].split_once(".rs: ").unwrap();
            fs::write(src.join("bin").join(other).with_extension("rs"), program).unwrap();
            others.push(other);
        }
        let mut warnings = cargo(dir.path(), &["build", "--quiet"]);
        warnings += &cargo(dir.path(), &["run", "--quiet", "--bin", name]);
        if !others.is_empty() {
            warnings += &run_with_python(dir.path(), &others);
        }
        assert!(warnings.is_empty(), "{name}: {warnings}");
    }
}

/// Runs programs that start Python, and the one that Python starts; returns what cargo printed.
fn run_with_python(dir: &Path, programs: &[&str]) -> String {
    if !has("python3") {
        skip("no python3 here: install it");
        return String::new();
    }
    for script in ["child", "parent", "python"] {
        let text = block("python", &format!("# {script}.py: "));
        fs::write(dir.join(script).with_extension("py"), text).unwrap();
    }
    let run = |program: &&str| match *program {
        "child" => {
            let child = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debug/child");
            let mut python = Command::new("python3");
            assert!(
                python.arg("parent.py").arg(child).current_dir(dir).status().unwrap().success()
            );
            String::new()
        }
        program => cargo(dir, &["run", "--quiet", "--bin", program]),
    };
    programs.iter().map(run).collect()
}

/// Each example becomes the program of a new crate, by the commands and the lines of its README and nothing else.
#[test]
fn each_example_is_a_program() {
    for package in PACKAGES {
        let source = format!("../ipc/{package}/src/lib.rs ");
        let commands = all_blocks("sh", "cd ..").find(|block| block.contains(&source));
        let commands = commands.unwrap_or_else(|| panic!("{package}: no cargo new"));
        let (_, first) = commands.split_once("cargo new ").unwrap();
        let first = first.split(' ').next().unwrap();
        for example in list(root().join(package).join("examples")) {
            let name = example.strip_suffix(".rs").unwrap();
            let link = format!("| [{name}](examples/{example}) |");
            let offered = ENGLISH.iter().any(|(_, text)| text.contains(&link));
            assert!(offered, "{package}: its README does not offer {example}");

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
            if ["pipe", "queue"].contains(&package) {
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

/// Copies the first file to `first`, or makes one there that has the others as modules.
fn copy(files: &[&str], first: &Path, others: &Path) {
    match files[0] {
        "" => fs::write(first, "pub mod memory;\npub mod semaphore;\n").map(|()| 0).unwrap(),
        file => fs::copy(root().join(file), first).unwrap(),
    };
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
