//! The schema keeps the rules of a schema: all is documented, nothing is skipped silently, and what
//! the comments promise is what the error catalogue says.

use std::collections::{BTreeSet, HashMap};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

use kmsgate::error::Kind;
use kmsgate::grpc::DESCRIPTORS;

#[test]
fn everything_is_documented() {
    let mut count = 0;
    for file in files() {
        let comments = comments(&file);
        let mut documented = |path: &[i32], name: &str| {
            let comment = comments.get(path).map_or("", |comment| comment.trim());
            // A sentence, not a label.
            assert!(comment.contains('.'), "{name}: {comment:?}");
            count += 1;
        };
        for (path, service) in services(&file) {
            documented(&path, service.name());
            for (index, method) in (0..).zip(&service.method) {
                documented(&[&path[..], &[2, index]].concat(), method.name());
            }
        }
        for (path, message) in messages(&file) {
            documented(&path, message.name());
            for (index, field) in (0..).zip(&message.field) {
                let name = format!("{}.{}", message.name(), field.name());
                documented(&[&path[..], &[2, index]].concat(), &name);
            }
        }
        for (path, numbers) in enums(&file) {
            documented(&path, numbers.name());
            for (index, value) in (0..).zip(&numbers.value) {
                documented(&[&path[..], &[2, index]].concat(), value.name());
            }
        }
    }
    assert!(count > 150, "only {count}");
}

#[test]
fn every_method_says_how_it_fails() {
    for file in files() {
        let comments = comments(&file);
        for (path, service) in services(&file) {
            for (index, method) in (0..).zip(&service.method) {
                let comment = &comments[&[&path[..], &[2, index]].concat()];
                let lists = comment.contains("Fails with") && !codes(comment).is_empty();
                // The list that it shares with others stands above the service.
                let shares = comment.contains("Fails as ");
                assert!(lists || shares, "{}: {comment}", method.name());
            }
        }
    }
}

#[test]
fn every_code_in_a_comment_is_in_the_catalogue() {
    let known: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.row().code).collect();
    let mut count = 0;
    for file in files() {
        for comment in comments(&file).values() {
            for code in codes(comment) {
                assert!(known.contains(code), "{code} in {comment}");
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count}");
}

#[test]
fn every_code_in_a_comment_stands_behind_its_status() {
    // The names of gRPC's status codes in a schema, and in the library.
    let statuses = [
        ("INVALID_ARGUMENT:", "InvalidArgument"),
        ("UNAUTHENTICATED:", "Unauthenticated"),
        ("PERMISSION_DENIED:", "PermissionDenied"),
        ("NOT_FOUND:", "NotFound"),
        ("ALREADY_EXISTS:", "AlreadyExists"),
        ("FAILED_PRECONDITION:", "FailedPrecondition"),
        ("DEADLINE_EXCEEDED:", "DeadlineExceeded"),
        ("UNAVAILABLE:", "Unavailable"),
        ("INTERNAL:", "Internal"),
        ("UNIMPLEMENTED:", "Unimplemented"),
    ];
    let mut count = 0;
    for file in files() {
        for comment in comments(&file).values() {
            let mut places: Vec<(usize, &str)> = statuses
                .iter()
                .flat_map(|(name, status)| {
                    let found = comment.match_indices(*name);
                    found.map(|(at, _)| (at, *status)).collect::<Vec<_>>()
                })
                .collect();
            places.sort_unstable();
            for (index, (from, status)) in places.iter().enumerate() {
                let to = places.get(index + 1).map_or(comment.len(), |next| next.0);
                for code in codes(&comment[*from..to]) {
                    let mut rows = Kind::ALL.iter().map(|kind| kind.row());
                    let fits = |row: kmsgate::error::Row| {
                        row.code == code && format!("{:?}", row.grpc) == *status
                    };
                    assert!(rows.any(fits), "{code} is not {status}: {comment}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 50, "only {count}");
}

#[test]
fn no_number_is_skipped_silently() {
    for file in files() {
        for (_, message) in messages(&file) {
            let mut known: BTreeSet<i32> = message.field.iter().map(|f| f.number()).collect();
            for range in &message.reserved_range {
                // The end of a message's range is exclusive.
                known.extend(range.start()..range.end());
            }
            let last = known.last().copied().unwrap_or_default();
            let all: BTreeSet<i32> = (1..=last).collect();
            assert_eq!(known, all, "{}", message.name());
        }
        for (_, numbers) in enums(&file) {
            let mut known: BTreeSet<i32> = numbers.value.iter().map(|v| v.number()).collect();
            for range in &numbers.reserved_range {
                // The end of an enum's range is inclusive.
                known.extend(range.start()..=range.end());
            }
            let last = known.last().copied().unwrap_or_default();
            let all: BTreeSet<i32> = (0..=last).collect();
            assert_eq!(known, all, "{}", numbers.name());
        }
    }
}

#[test]
fn a_field_has_the_same_name_in_json() {
    for file in files() {
        for (_, message) in messages(&file) {
            for field in &message.field {
                let documented = match field.name() {
                    // The member that the contract adds for bytes.
                    "plain_bytes" => "plain_text_base64",
                    name => name,
                };
                assert_eq!(field.json_name(), documented, "{}", message.name());
            }
        }
    }
}

#[test]
fn the_zero_of_an_enum_means_nothing_was_said() {
    for file in files() {
        for (_, numbers) in enums(&file) {
            let first = &numbers.value[0];
            assert_eq!(first.number(), 0, "{}", numbers.name());
            assert!(first.name().ends_with("_UNSPECIFIED"), "{}", first.name());
        }
    }
}

/// Our files of the compiled schema.
fn files() -> Vec<FileDescriptorProto> {
    let all = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
    let ours = all
        .into_iter()
        .filter(|file| file.package() == "kmsgate.v1");
    let ours: Vec<_> = ours.collect();
    assert_eq!(ours.len(), 4);
    ours
}

/// The comments above things, by the things' paths (descriptor.proto, `SourceCodeInfo.Location`).
fn comments(file: &FileDescriptorProto) -> HashMap<Vec<i32>, String> {
    let info = file.source_code_info.as_ref().unwrap();
    let commented = info.location.iter().filter_map(|location| {
        let comment = location.leading_comments.clone()?;
        Some((location.path.clone(), comment))
    });
    commented.collect()
}

fn services(file: &FileDescriptorProto) -> Vec<(Vec<i32>, &ServiceDescriptorProto)> {
    let numbered = (0..).zip(&file.service);
    numbered
        .map(|(index, service)| (vec![6, index], service))
        .collect()
}

fn messages(file: &FileDescriptorProto) -> Vec<(Vec<i32>, &DescriptorProto)> {
    let numbered = (0..).zip(&file.message_type);
    let messages: Vec<_> = numbered
        .map(|(index, message)| (vec![4, index], message))
        .collect();
    for (_, message) in &messages {
        let flat = message.nested_type.is_empty() && message.enum_type.is_empty();
        assert!(flat, "{} hides types from these tests", message.name());
    }
    messages
}

fn enums(file: &FileDescriptorProto) -> Vec<(Vec<i32>, &EnumDescriptorProto)> {
    let numbered = (0..).zip(&file.enum_type);
    numbered
        .map(|(index, numbers)| (vec![5, index], numbers))
        .collect()
}

/// The codes of the error catalogue that a text names.
fn codes(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_code = |word: &&str| {
        let digits = word
            .strip_prefix("KMS.")
            .or_else(|| word.strip_prefix("APIGW."));
        digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    quoted.filter(is_code).collect()
}
