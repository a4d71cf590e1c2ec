//! The configuration files that we ship, and those that the documentation shows, are right.

use std::fs;
use std::path::Path;

use kmsgate::config::{Config, ConfigError};

/// What a sidecar says of its clients, as the documentation has a reader add it.
const MORE: &str = r#"
[auth.forwarded]
peers = ["loopback"]
[[auth.mtls]]
identity = "dns:backup.example.com"
project = "lab"
actions = ["kms:cmk:*"]
"#;

#[test]
fn every_configuration_file_that_we_ship_parses() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("deploy")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let parsed = Config::parse(&fs::read_to_string(&path).unwrap());
            assert!(parsed.is_ok(), "{}: {parsed:?}", path.display());
            seen += 1;
        }
    }
    assert_ne!(seen, 0);
}

#[test]
fn the_example_names_every_setting() {
    let example = example();
    for (section, name) in settings() {
        let named = example.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            let table = line.trim_matches(['[', ']']);
            let heading = line.starts_with('[') && table.split('.').any(|part| part == name);
            heading || line.starts_with(&format!("{name} ="))
        });
        assert!(named, "{section} {name}");
    }
}

#[test]
fn the_readme_lists_every_setting() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (section, name) in settings() {
        let dot = if section.is_empty() { "" } else { "." };
        let setting = format!("| `{section}{dot}{name}");
        // A section is listed by what is in it.
        let listed = [format!("{setting}` |"), format!("{setting}.")];
        assert!(listed.iter().any(|row| readme.contains(row)), "{setting}");
    }
}

#[test]
fn the_example_names_every_kind() {
    let example = example();
    for section in ["store", "audit", "crypto.providers"] {
        let kinds = expected(&entry(section, "kind = \"no_such_kind\""));
        assert!(!kinds.is_empty(), "{section}");
        for kind in kinds {
            assert!(example.contains(&format!("\"{kind}\": ")), "{kind}");
        }
    }
}

#[test]
fn the_example_says_the_defaults() {
    let example = Config::parse(&example()).unwrap();
    let least = Config::parse(
        r#"
        root_key_file = "/etc/kmsgate/root.key"
        store = { kind = "sqlite", path = "/var/lib/kmsgate/keys.db" }
        [auth]
        token_file = "/etc/kmsgate/tokens.toml"
        access_key_file = "/etc/kmsgate/access-keys.toml"
        "#,
    );
    assert_eq!(example, least.unwrap());
}

#[test]
fn the_configurations_in_the_documentation_parse() {
    for page in ["README.md", "deploy/README.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        let mut blocks = text.split("> kmsgate.toml <<'EOF'\n").skip(1).peekable();
        assert!(blocks.peek().is_some(), "{page}");
        for block in blocks {
            let (block, _) = block.split_once("\nEOF\n").unwrap();
            // A section of another chapter can be added to it.
            for more in ["", MORE] {
                let parsed = Config::parse(&[block, "\n", more].concat());
                assert!(parsed.is_ok(), "{page}: {parsed:?}");
            }
        }
    }
}

#[test]
fn the_sections_in_the_readme_parse() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("\n```toml\n").skip(1);
    let blocks: Vec<&str> = blocks.map(|it| it.split_once("```").unwrap().0).collect();
    let (_, first) = readme.split_once("> kmsgate.toml <<'EOF'\n").unwrap();
    let (first, _) = first.split_once("EOF\n").unwrap();
    let with = |sections: &str| {
        let parsed = Config::parse(&format!("{first}\n{sections}"));
        parsed.unwrap_or_else(|error| panic!("{error}\n{sections}"))
    };
    let of = |section: &str| {
        let mut found = blocks.iter().filter(|block| block.starts_with(section));
        *found.next().unwrap_or_else(|| panic!("no {section}"))
    };
    // Each is added to the configuration that the page begins with.
    for section in ["[auth.iam]", "[[auth.jwt]]"] {
        with(of(section));
    }
    let config = with(&[of("[tls]"), of("[[auth.mtls]]")].concat());
    assert_eq!(config.auth.mtls.len(), 3);
    // Before it, and in the place of its first line or of its store.
    let (_, others) = first.split_once('\n').unwrap();
    let (root, rest) = first.split_once("[store]").unwrap();
    let (_, auth) = rest.split_once("[auth]").unwrap();
    for config in [
        [of("grpc ="), first].concat(),
        [of("root_key_file ="), others].concat(),
        [others, of("[pkcs11]")].concat(),
        [others, of("[pkcs11]"), of("[crypto]")].concat(),
        [root, of("[store]"), "[auth]", auth].concat(),
    ] {
        let parsed = Config::parse(&config);
        assert!(parsed.is_ok(), "{parsed:?}\n{config}");
    }
    // What is left is the file with the server's own credential at IAM.
    of("user =");
    assert_eq!(blocks.len(), 10, "each section is tried");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example() -> String {
    fs::read_to_string(root().join("deploy/kmsgate.toml")).unwrap()
}

/// Every setting: its section, empty at the top, and its name. The parser says itself which names
/// it would have taken.
fn settings() -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    for (section, kind) in [
        ("", ""),
        ("store", "kind = \"memory\", "),
        ("store", "kind = \"sqlite\", "),
        ("tls", ""),
        ("pkcs11", ""),
        ("crypto", ""),
        ("crypto.providers", "kind = \"aws-lc-rs\", "),
        ("crypto.providers", "kind = \"rustcrypto\", "),
        ("auth", ""),
        ("auth.mtls", ""),
        ("auth.forwarded", ""),
        ("auth.iam", ""),
        ("auth.iam.rules", ""),
        ("auth.jwt", ""),
        ("auth.jwt.rules", ""),
        ("audit", "kind = \"stdout\", "),
        ("audit", "kind = \"file\", "),
        ("log", ""),
        ("limits", ""),
        ("limits.per_caller", ""),
        ("limits.per_key", ""),
        ("shutdown", ""),
    ] {
        let text = if section.is_empty() {
            "no_such_setting = 1".to_owned()
        } else {
            entry(section, &format!("{kind}no_such_setting = 1"))
        };
        settings.extend(expected(&text).into_iter().map(|name| (section, name)));
    }
    for (section, name) in [("store", "path"), ("crypto.providers", "key_specs")] {
        let there = settings.contains(&(section, name.to_owned()));
        assert!(there, "{settings:?}");
    }
    settings
}

/// A section that holds `settings`, or its one entry if it is a list.
fn entry(section: &str, settings: &str) -> String {
    match section {
        "crypto.providers" | "auth.mtls" | "auth.jwt" => format!("{section} = [{{ {settings} }}]"),
        "auth.iam.rules" => format!(
            "auth.iam = {{ endpoint = \"https://i\", credential_file = \"c\", rules = [{{ {settings} }}] }}"
        ),
        "auth.jwt.rules" => format!("auth.jwt = [{{ rules = [{{ {settings} }}] }}]"),
        _ => format!("{section} = {{ {settings} }}"),
    }
}

/// The names of which one would have been right in `text`, by the error that it gives.
fn expected(text: &str) -> Vec<String> {
    let Err(ConfigError::Toml(error)) = Config::parse(text) else {
        panic!("{text} is not refused")
    };
    let message = error.message();
    let (_, names) = message.split_once("expected").unwrap_or_default();
    let quoted = names.split('`').skip(1).step_by(2);
    quoted.map(str::to_owned).collect()
}
