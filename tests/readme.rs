//! What the READMEs say is so. (What their commands print is compared where the programs are:
//! `check_console_blocks`; what they offer for copying is compiled in paste.rs.)

use std::fs;

use tests::{
    CHINESE, ENGLISH, PACKAGES, Pages, blocks, console_blocks, parse_command, readmes, root,
};

/// The lines that are not in a fenced block.
fn prose(readme: &str) -> impl Iterator<Item = &str> {
    readme.split("```").step_by(2).flat_map(str::lines)
}

/// What stands between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<String> {
    let row = row.replace("\\|", "\0");
    let inner = row.trim_matches('|').split('|');
    inner.map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// A page without the list that only the Chinese ones have: the reasons that stand in the English comments of main.rs.
fn without_reasons(readme: &str) -> String {
    let Some((before, rest)) = readme.split_once("**读 `main.rs` 之前**") else {
        return readme.to_owned();
    };
    before.to_owned() + &rest[rest.find("\n|").unwrap()..]
}

/// A block without what is prose in it: comments, and the labels of pictures.
fn without_prose(kind: &str, text: &str) -> Vec<String> {
    let comment = match kind {
        "rust" => "//",
        "python" | "sh" | "toml" => "#",
        "mermaid" => return vec![String::new(); text.lines().count()],
        _ => return text.lines().map(str::to_owned).collect(),
    };
    let code = |line: &str| line.split(comment).next().unwrap().trim_end().to_owned();
    text.lines().map(code).collect()
}

#[test]
fn both_languages_have_the_same_blocks_headings_and_tables() {
    for ((path, english), (_, chinese)) in ENGLISH.iter().zip(CHINESE.iter()) {
        let (path, chinese) = (path.display(), &without_reasons(chinese));
        for (one, other) in blocks(english).into_iter().zip(blocks(chinese)) {
            assert_eq!(one.0, other.0, "{path}");
            assert_eq!(without_prose(one.0, one.1), without_prose(other.0, other.1), "{path}");
        }
        assert_eq!(blocks(english).len(), blocks(chinese).len(), "{path}");
        // The same sections, list items and rows, in the same order, with the same code in the rows.
        let shape = |readme| -> Vec<(String, Vec<&str>)> {
            let marked = prose(readme).filter(|line| line.starts_with(['#', '|', '-']));
            let mark = |line: &str| line.chars().take_while(|char| "#|-".contains(*char)).collect();
            marked
                .map(|line| (mark(line), if line.starts_with('|') { code(line) } else { vec![] }))
                .collect()
        };
        for (one, other) in shape(english).into_iter().zip(shape(chinese)) {
            assert_eq!(one, other, "{path}");
        }
        assert_eq!(shape(english).len(), shape(chinese).len(), "{path}");
    }
}

/// Who came for one thing reads no more than this.
#[test]
fn the_pages_are_short() {
    for (path, text) in ENGLISH.iter().chain(CHINESE.iter()) {
        let most = if path.parent() == Some(&*root()) { 130 } else { 180 };
        let lines = text.lines().count();
        assert!(lines <= most, "{}: {lines} lines", path.display());
    }
}

#[test]
fn every_console_block_is_of_a_program_whose_test_runs_it() {
    for (command, _) in readmes().flat_map(console_blocks) {
        let parsed = parse_command(command);
        assert!(parsed.is_some_and(|(_, package, _)| PACKAGES.contains(&package)), "{command}");
    }
}

#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    let kinds = ["console", "mermaid", "python", "rust", "sh", "text", "toml"];
    for (kind, text) in readmes().flat_map(blocks) {
        assert!(kinds.contains(&kind), "a block of '{kind}':\n{text}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for (path, text) in ENGLISH.iter().chain(CHINESE.iter()) {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            let there = path.parent().unwrap().join(file).exists();
            assert!(link.starts_with("https://") || there, "{}: {link}", path.display());
        }
    }
}

/// In a table of the article's calls, the second column is the line that does the same here.
#[test]
fn the_listings_are_the_code() {
    for (path, text) in &ENGLISH[1..=PACKAGES.len()] {
        let mut source: Option<String> = None;
        let mut found = 0;
        for line in prose(text) {
            let cells = cells(line);
            match cells.get(1).map(|cell| code(cell)).unwrap_or_default()[..] {
                [file] if file.starts_with("src/") => {
                    let file = path.parent().unwrap().join(file);
                    source = Some(fs::read_to_string(file).unwrap());
                }
                ref lines if line.starts_with('|') => {
                    for code in lines.iter().filter(|_| source.is_some()) {
                        let there = source.as_ref().unwrap().contains(code);
                        assert!(there, "{}: not in the code: {code}", path.display());
                        found += 1;
                    }
                }
                _ => source = None,
            }
        }
        assert!(found > 5, "{}: {found}", path.display());
    }
}

/// The chart shows what `cargo bench` printed, as it stands above it: the round trips on one CPU.
#[test]
fn the_chart_shows_the_numbers_of_the_table() {
    for (_, page) in [&ENGLISH[0], &CHINESE[0]] {
        let all = blocks(page);
        let table = all.iter().find(|(_, text)| text.starts_with("$ cargo bench\n")).unwrap().1;
        let rows = table.lines().filter(|row| row.contains(" µs"));
        let ours = rows.filter(|row| !row.starts_with("bare") && !row.starts_with("Python"));
        let numbers: Vec<_> =
            ours.map(|row| row.split(" µs").next().unwrap().rsplit(' ').next().unwrap()).collect();
        let chart = all.iter().find(|(kind, _)| *kind == "mermaid").unwrap().1;
        let bar = chart.lines().find_map(|line| line.trim().strip_prefix("bar ")).unwrap();
        assert_eq!(bar, format!("[{}]", numbers.join(", ")));
    }
}

/// The packages that the owner named, in the crates that they are for.
#[test]
fn the_named_packages_are_ordinary_dependencies() {
    for (package, crates) in [
        ("nix", &PACKAGES[..]),
        ("anyhow", &PACKAGES),
        ("memmap2", &["shm"]),
        ("socket2", &["socket"]),
        ("ipc-channel", &["queue"]),
    ] {
        for folder in crates {
            let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
            let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap();
            let dependencies = dependencies.split("\n[").next().unwrap();
            let names = |line: &str| line.split(['.', ' ']).next() == Some(package);
            assert!(dependencies.lines().any(names), "{folder}: no {package}");
            let used = fs::read_dir(root().join(folder).join("src")).unwrap().any(|file| {
                let source = fs::read_to_string(file.unwrap().path()).unwrap();
                source.contains(&format!("{}::", package.replace('-', "_")))
            });
            assert!(used, "{folder}: {package} is not used");
        }
    }
}

/// What a reader sees of a line of prose: `[text]` of a link, and a backtick for what is in code font.
fn visible(line: &str) -> String {
    let outside_code: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut links = outside_code.split("](");
    let first = links.next().unwrap().to_owned();
    links.fold(first, |seen, link| seen + "]" + link.split_once(')').unwrap().1)
}

/// The lines of prose of all pages in one language, as a reader sees them.
fn all_prose(pages: &Pages) -> Vec<String> {
    pages.iter().flat_map(|(_, text)| prose(text).map(visible)).collect()
}

#[test]
fn chinese_prose_has_full_width_punctuation() {
    for line in all_prose(&CHINESE) {
        let chars: Vec<_> = [' '].into_iter().chain(line.chars()).chain([' ']).collect();
        for around in chars.windows(3) {
            let in_number = around[0].is_ascii_digit() && around[2].is_ascii_digit();
            assert!(!",;:?!()".contains(around[1]) || in_number, "'{}' in: {line}", around[1]);
        }
    }
}

/// But for what is quoted from the article.
#[test]
fn chinese_prose_has_a_space_beside_latin_words() {
    let is_chinese = |char: char| ('\u{4e00}'..='\u{9fff}').contains(&char);
    let is_latin = |char: char| char.is_ascii_alphanumeric() || char == '`';
    for line in all_prose(&CHINESE) {
        let quoted = |(index, part)| if index % 2 == 0 { part } else { "" };
        let own: String = line.split(['“', '”', '《', '》']).enumerate().map(quoted).collect();
        let chars: Vec<_> = own.chars().filter(|char| !['[', ']'].contains(char)).collect();
        for pair in chars.windows(2) {
            let touch = [(pair[0], pair[1]), (pair[1], pair[0])];
            let touch = touch.iter().any(|(one, other)| is_chinese(*one) && is_latin(*other));
            assert!(!touch, "{}{} in: {line}", pair[0], pair[1]);
        }
    }
}

#[test]
fn files_errors_and_signals_are_in_code_font() {
    let is_name = |word: &str| {
        let is_upper = word.len() > 4 && word.chars().all(|char| char.is_ascii_uppercase());
        [".rs", ".py", ".toml", "Error"].iter().any(|end| word.ends_with(end))
            || ["/dev/", "/proc", "SIG"].iter().any(|start| word.starts_with(start))
            || is_upper && word.starts_with('E')
    };
    let mut lines = all_prose(&ENGLISH);
    lines.extend(all_prose(&CHINESE));
    for line in lines {
        let is_end =
            |char: char| char.is_whitespace() || ",;:?!()，；：？！（）。、".contains(char);
        for word in line.split(is_end).map(|word| word.trim_end_matches('.')) {
            assert!(!is_name(word), "{word} in: {line}");
        }
    }
}
