//! The tables of the README say what the code says.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::FileDescriptorSet;

use kmsgate::domain::caller::Action;
use kmsgate::domain::cost::Work;
use kmsgate::domain::key::KeySpec;
use kmsgate::error::Kind;
use kmsgate::grpc;

const README: &str = include_str!("../README.md");

#[test]
fn the_table_of_errors_is_the_catalogue() {
    let source = include_str!("../src/error.rs");
    let mut listed = table("code").into_iter();
    for kind in Kind::ALL {
        let row = kind.row();
        let facts = [
            format!("`{}`", row.code),
            format!("`{}`", row.name),
            row.http.as_u16().to_string(),
            format!("`{}`", canonical(row.grpc)),
            row.text.to_owned(),
        ];
        let cells = listed.next().unwrap_or_default();
        assert_eq!(cells.len(), 6, "{kind:?}: {cells:?}");
        assert_eq!(cells[..5], facts, "{kind:?}");
        let when = format!("/// {}\n", cells[5]);
        assert!(source.contains(&when), "{kind:?}: {when}");
    }
    assert_eq!(listed.next(), None);
}

#[test]
fn the_table_of_operations_is_the_schema() {
    let listed: Vec<String> = table("REST").into_iter().map(|row| bare(&row[1])).collect();
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(once, methods());
    assert_eq!(once.len(), listed.len());
}

#[test]
fn the_table_of_operations_has_every_action() {
    let listed: BTreeSet<String> = table("REST").into_iter().map(|row| bare(&row[2])).collect();
    let actions = Action::ALL.iter().map(|action| action.name().to_owned());
    assert_eq!(listed, actions.collect());
}

#[test]
fn the_table_of_costs_is_what_is_charged() {
    let listed = table("spec");
    assert_eq!(listed.len(), KeySpec::ALL.len());
    for (cells, spec) in listed.iter().zip(KeySpec::ALL) {
        let work = [Work::Encrypt, Work::Decrypt, Work::Open, Work::Make];
        let charged = work.map(|work| spec.micros(work).to_string());
        assert_eq!(cells[0], spec.name());
        let plain: Vec<String> = cells[1..]
            .iter()
            .map(|cell| cell.replace(',', ""))
            .collect();
        assert_eq!(plain, charged, "{}", spec.name());
    }
}

/// The cells of the table whose first column has this title.
fn table(title: &str) -> Vec<Vec<String>> {
    let mut lines = README.lines();
    let found = lines.any(|line| line.starts_with(&format!("| {title} |")));
    assert!(found, "{title}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// A cell without the marks of code.
fn bare(cell: &str) -> String {
    cell.replace('`', "")
}

/// Every method of the schema, as `Service/Method`.
fn methods() -> BTreeSet<String> {
    let schema = FileDescriptorSet::decode(grpc::DESCRIPTORS).unwrap();
    let services = schema.file.iter().flat_map(|file| &file.service);
    services
        .flat_map(|service| {
            let methods = service.method.iter();
            methods.map(|method| format!("{}/{}", service.name(), method.name()))
        })
        .collect()
}

/// A status by its name in the gRPC documentation, such as `NOT_FOUND`.
fn canonical(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
