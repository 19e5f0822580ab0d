//! The system calls of a program, as the READMEs show them under "Underneath".

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::{can_trace, has, program, readmes, run, skip, temp_dir};

/// A process of a story, by its name, and its rows.
type Rows = Vec<(String, Vec<String>)>;

/// Runs the command that the READMEs show, and holds the block below it to what it traces: for each process its
/// rows, in their order. (What two processes do at the same time has no order.) A row `…` stands for any rows.
#[track_caller]
pub fn check_underneath(exe: &str, package: &str) {
    if !has("strace") || !can_trace() {
        return skip("no strace here to trace the story: install it");
    }
    let start = "$ strace -f -s 64 -e trace=";
    let program = format!(" target/debug/{package}");
    let mut found = 0;
    for readme in readmes() {
        for (_, text) in crate::blocks(readme).into_iter().filter(|(kind, _)| *kind == "text") {
            let command = text.strip_prefix(start).and_then(|text| text.split_once('\n'));
            let Some((calls, args, rows)) = command.and_then(|(command, rows)| {
                // What it prints is in the rows already.
                let (calls, args) = command.strip_suffix(" > /dev/null")?.split_once(&program)?;
                Some((calls, args.split_whitespace().collect::<Vec<_>>(), rows))
            }) else {
                continue;
            };
            found += 1;
            assert!(rows.lines().count() <= 30, "{package}: more than 30 rows");
            let shown = by_process(rows);
            // The first, and the others in the order in which it starts them: by its rows, or as they come.
            let (first, calls_of_first) = &shown[0];
            let mut names = vec![first.as_str()];
            names.extend(calls_of_first.iter().filter_map(|row| row.strip_prefix("clone(…) = ")));
            let others = shown.iter().map(|(name, _)| name.as_str());
            let others: Vec<_> = others.filter(|name| !names.contains(name)).collect();
            names.extend(others);
            let traced = trace(exe, &args, calls, &names);
            assert_eq!(traced.len(), shown.len(), "{package}: rows of a process that there is not");
            for (name, traced) in traced {
                let (_, shown) = shown.iter().find(|(other, _)| *other == name).unwrap();
                let gap = shown.iter().position(|row| row == "…");
                let (head, tail) = match gap {
                    Some(gap) => (&shown[..gap], &shown[gap + 1..]),
                    None => (&shown[..], &[][..]),
                };
                let same = traced.starts_with(head)
                    && traced.ends_with(tail)
                    && (gap.is_some() || traced.len() == head.len());
                let traced = traced.join("\n");
                assert!(
                    same,
                    "{package}, {name}: a README shows\n{}\n\nbut traced is\n{traced}",
                    shown.join("\n")
                );
            }
        }
    }
    assert!(found >= 2 && found % 2 == 0, "{package}: {found} blocks '{start}…' in all READMEs");
}

/// The rows of each process, which begin with its name and two spaces.
fn by_process(rows: &str) -> Rows {
    let mut all = Rows::new();
    for row in rows.lines() {
        let (name, call) = row.split_once("  ").unwrap();
        match all.iter_mut().find(|(other, _)| other == name) {
            Some((_, calls)) => calls.push(call.trim().to_owned()),
            None => all.push((name.to_owned(), vec![call.trim().to_owned()])),
        }
    }
    all
}

/// What the processes do, in the order in which they are started: the program, and its children.
pub fn trace(exe: &str, args: &[&str], calls: &str, names: &[&str]) -> Rows {
    let dir = temp_dir();
    let prefix = dir.path().join("trace");
    let calls = format!("trace={calls}");
    let mut strace = program("strace", &["-ff", "-s", "64", "-o", prefix.to_str().unwrap()]);
    strace.args(["-e", &calls, exe]).args(args);
    #[expect(unsafe_code, reason = "only a child may close what it inherits")]
    // SAFETY: close_range is async-signal-safe. Not covered: nothing.
    unsafe {
        strace.pre_exec(|| {
            // What cargo hands down would shift the numbers.
            nix::libc::close_range(3, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC as i32);
            Ok(())
        });
    }
    run(&mut strace).succeeded();
    // The children of the first process come in its clone calls.
    let mut files: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let id = |file: &Path| file.extension().unwrap().to_str().unwrap().parse::<u32>().unwrap();
    files.sort_by_key(|file| id(file));
    let texts: Vec<_> =
        files.iter().map(|file| (id(file), fs::read_to_string(file).unwrap())).collect();
    // Only clone returns a process: a read of as many bytes as a low process id has nothing to do with it.
    let is_clone_of =
        |line: &str, pid: u32| line.starts_with("clone") && line.ends_with(&format!(" = {pid}"));
    let is_child =
        |pid: u32| texts.iter().any(|(_, text)| text.lines().any(|line| is_clone_of(line, pid)));
    let (parent, text) = texts.iter().find(|(pid, _)| !is_child(*pid)).unwrap();
    let children = text.lines().filter(|line| line.starts_with("clone("));
    let pids = children.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap());
    let pids: Vec<u32> = [*parent].into_iter().chain(pids).collect();
    let rows = |(name, pid): (&&str, &u32)| {
        let (_, text) = texts.iter().find(|(other, _)| other == pid).unwrap();
        // Before the first of these, the program starts.
        let starts = ["pipe2(", "mknod", "memfd_create(", "\"/dev/shm/", "socket"];
        let is_start = |line: &&str| starts.iter().any(|start| line.contains(start));
        let rows = text.lines().skip_while(|line| pid == parent && !is_start(line));
        (name.to_string(), shown(rows, &pids, names))
    };
    names.iter().zip(&pids).map(rows).collect()
}

/// The rows of one process as they are shown: without what looks at /proc, memory of its own, and what spins; what
/// differs from run to run replaced by a word.
fn shown<'a>(rows: impl Iterator<Item = &'a str>, pids: &[u32], names: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    let mut of_proc = None;
    for row in rows.filter(|row| !row.starts_with(['+', '-'])) {
        let (call, result) = row.rsplit_once(" = ").unwrap_or((row, ""));
        let call = call.trim_end();
        if row.contains("\"/proc/") {
            of_proc = Some(format!("close({result})"));
        } else if of_proc.as_deref() == Some(call) {
            of_proc = None;
        } else if !result.starts_with("-1 EAGAIN") && !call.contains("MAP_PRIVATE") {
            let child = pids.iter().position(|pid| result == pid.to_string());
            all.push(match child {
                Some(index) => format!("clone(…) = {}", names.get(index).unwrap_or(&"?")),
                None => in_words(&format!("{call} = {result}")),
            });
        }
    }
    all
}

/// Replaces addresses, unique names, temporary directories and ports.
fn in_words(row: &str) -> String {
    let mut row = row.to_owned();
    if let Some(at) = row.find("= 0x") {
        row.replace_range(at.., "= ADDRESS");
    }
    let port = if row.starts_with("accept4(") { "CLIENT_PORT" } else { "PORT" };
    for (start, end, word) in
        [("/dev/shm/cnblogs-", "\"", "…"), ("\"", "/pipe.", "DIR"), ("htons(", ")", port)]
    {
        let Some((before, rest)) = row.split_once(start) else { continue };
        let Some((what, after)) = rest.split_once(end) else { continue };
        // Port 0, any free one, is always the same.
        if what != "0" {
            row = format!("{before}{start}{word}{end}{after}");
        }
    }
    row
}
