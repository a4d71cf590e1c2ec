//! The arrows of ARCHITECTURE.md, and the other rules about what may be named where, as tests.
//!
//! They read text and not syntax, so imports are written `use crate::a::b`, never `use crate::{a,
//! b}`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn modules_name_only_what_they_may() {
    let table = table();
    for (module, text) in modules() {
        let may = &table[&module];
        for used in names(&text) {
            let fits = used == module || may.contains(used);
            assert!(fits, "{module} may not name crate::{used}");
        }
    }
}

#[test]
fn no_arrow_is_drawn_that_nothing_needs() {
    let modules = modules();
    for (module, may) in table() {
        // The server builds everything, so its row is a rule and not a list.
        if module == "server" {
            continue;
        }
        let used = names(&modules[&module]);
        for name in may {
            assert!(used.contains(name.as_str()), "{module} never names {name}");
        }
    }
}

#[test]
fn every_module_has_a_row_and_every_row_a_module() {
    let rows: Vec<String> = table().into_keys().collect();
    let modules: Vec<String> = modules().into_keys().collect();
    assert_eq!(rows, modules);
}

#[test]
fn the_arrows_run_one_way() {
    let mut left = table();
    while !left.is_empty() {
        let waiting: BTreeSet<String> = left.keys().cloned().collect();
        left.retain(|_, may| !may.is_disjoint(&waiting));
        assert!(left.len() < waiting.len(), "a circle: {left:?}");
    }
}

#[test]
fn the_program_names_the_command_line_alone() {
    let text = fs::read_to_string(root().join("src/main.rs")).unwrap();
    for path in text.split("kmsgate::").skip(1) {
        assert!(path.starts_with("cli::"), "main may not name {path}");
    }
}

#[test]
fn an_import_is_one_path() {
    for (file, text) in sources() {
        assert!(!text.contains("crate::{"), "{}", file.display());
    }
}

#[test]
fn the_gateway_knows_the_generated_code_alone() {
    for path in modules()["gateway"].split("crate::grpc").skip(1) {
        assert!(path.starts_with("::pb"), "crate::grpc{}", word(path));
    }
}

#[test]
fn error_knows_the_errors_of_other_modules_alone() {
    let text = &modules()["error"];
    let imports = text.lines().filter(|line| line.starts_with("use crate::"));
    for import in imports {
        let (_, what) = import.trim_end_matches(';').rsplit_once("::").unwrap();
        for name in what.trim_matches(['{', '}']).split(", ") {
            let error = name.ends_with("Error") || name.starts_with("Invalid");
            let fits = error || ["Denied", "NotAFrame"].contains(&name);
            assert!(fits, "{import}");
        }
    }
}

#[test]
fn statuses_of_transports_are_named_at_the_edge_alone() {
    for (file, text) in sources() {
        let first = module(&file);
        // What etcd answers is no status of ours.
        if file.ends_with("store/etcd/client.rs") {
            continue;
        }
        if ["error", "grpc", "gateway", "server"].contains(&first.as_str()) {
            continue;
        }
        for name in ["StatusCode", "tonic::Code", "Code::"] {
            // Not as the end of a longer word.
            let mut places = text.match_indices(name);
            let named = places.any(|(at, _)| !text[..at].ends_with(char::is_alphanumeric));
            assert!(!named, "{} names {name}", file.display());
        }
    }
}

#[test]
fn the_environment_the_clock_and_random_sources_are_given() {
    // Providers own their random source; the server gives the clock, and random ids.
    let rules: [(&[&str], &[&str]); 3] = [
        (&["std::env", "env::var", "env::args"], &[]),
        (&["SystemTime::now", "Instant::now"], &["server"]),
        (
            &["getrandom", "OsRng", "SysRng", "rand::", "thread_rng"],
            &["crypto", "server"],
        ),
    ];
    for (file, text) in sources() {
        let (code, _tests) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
        let module = module(&file);
        for (names, allowed) in rules {
            for name in names {
                let fits = allowed.contains(&module.as_str()) || !code.contains(name);
                assert!(fits, "{} names {name}", file.display());
            }
        }
    }
}

/// Each module, and the modules it may name, as ARCHITECTURE.md has it.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut lines = text.lines().map(str::trim);
    let header = lines.find(|line| *line == "| module | may name |");
    assert!(header.is_some(), "ARCHITECTURE.md has no table of arrows");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let rows: Vec<(Vec<&str>, &str)> = rows
        .map(|row| {
            let (module, may) = row.trim_matches('|').split_once('|').unwrap();
            (quoted(module), may.trim())
        })
        .collect();
    let all = rows.iter().flat_map(|(names, _)| names);
    let all: BTreeSet<String> = all.map(|name| (*name).to_owned()).collect();
    let mut table = BTreeMap::new();
    for (modules, may) in &rows {
        for module in modules {
            let listed: BTreeSet<String> = quoted(may).into_iter().map(str::to_owned).collect();
            let mut may = match may.strip_prefix("everything but ") {
                Some(_) => &all - &listed,
                None => listed,
            };
            may.remove(*module);
            assert!(may.is_subset(&all), "{module}: {may:?}");
            let twice = table.insert((*module).to_owned(), may);
            assert!(twice.is_none(), "{module} has two rows");
        }
    }
    table
}

/// The words between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The modules that a text names.
fn names(text: &str) -> BTreeSet<&str> {
    text.split("crate::").skip(1).map(word).collect()
}

/// What a text begins with, up to the end of the word.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let path = &text[..end.unwrap_or(text.len())];
    path.split("::").next().unwrap_or_default()
}

/// The whole text of each module of the library.
fn modules() -> BTreeMap<String, String> {
    let mut modules = BTreeMap::<String, String>::new();
    for (file, text) in sources() {
        let module = module(&file);
        if module != "lib" && module != "main" {
            modules.entry(module).or_default().push_str(&text);
        }
    }
    modules
}

/// The module of the top level that a file belongs to.
fn module(file: &Path) -> String {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = Path::new(inside.iter().next().unwrap());
    first.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// Every source file and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    assert!(files.len() > 50, "{files:?}");
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
