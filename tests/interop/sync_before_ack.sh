#!/bin/sh
# Checks by system calls that the SQLite store syncs its log before it acknowledges a write.
#
# Runs the writer of tests/crash.rs, alone, under strace. Whenever it says that a write was
# acknowledged, the log must have been written since the last time, and synced after its last
# write; the name of the log must have been synced too.
set -eu

cd "$(dirname "$0")/../.."

if ! command -v strace >/dev/null; then
    apt-get install -y --no-install-recommends strace
fi

program=$(cargo test --quiet --test crash --no-run --message-format=json |
    sed -n 's/.*"name":"crash".*"executable":"\([^"]*\)".*/\1/p')
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

# -y names the file of each descriptor. The writer is one task, so nothing else is on its way when
# it says something.
KMSGATE_TEST_STORE="$directory/keys.db" KMSGATE_TEST_WRITERS=1 KMSGATE_TEST_KEYS=40 \
    strace -f -y -s 16 -o "$directory/trace" \
    -e trace=write,pwrite64,writev,pwritev,pwritev2,ftruncate,fsync,fdatasync,sync_file_range,mmap \
    "$program" --exact writer --nocapture >"$directory/said"

awk -v directory="$directory" '
    # A call that another thread interrupts is two lines: it begins with the first and has happened
    # with the second.
    { process = $1 }
    /<unfinished \.\.\.>/ { begun[process] = $0 }
    / resumed>/ { call = begun[process]; happened = 1; began = 0 }
    !/ resumed>/ { call = $0; began = 1; happened = !/<unfinished/ }
    { succeeded = happened && / = 0$/ }

    call ~ /mmap\(.*keys\.db/ { fail("the store is mapped: its writes cannot be seen") }
    call ~ /writev?2?\(|pwrite/ && call ~ /keys\.db-wal>/ {
        if (began) { dirty = 1; written = 1 }
    }
    # A sync counts for what was written before it began, because one thread writes and syncs.
    call ~ /(fsync|fdatasync)\(/ && call ~ /keys\.db-wal>/ && succeeded { dirty = 0 }
    call ~ /(fsync|fdatasync)\(/ && index(call, "<" directory ">") && succeeded { named = 1 }
    # Cutting the log to nothing needs no sync: what it held is in the store, which was synced.
    call ~ /write\(1</ && call ~ /"(made|erased) / && began {
        acknowledged++
        if (!written) fail("acknowledged without a write of the log")
        if (dirty) fail("acknowledged before the log was synced")
        if (!named) fail("acknowledged before the directory was synced")
        written = 0
    }

    function fail(why) { print "line " NR ": " why ": " $0; failed = 1; exit 1 }
    END {
        if (failed) exit 1
        if (acknowledged < 100) { print "only " acknowledged + 0 " acknowledgements seen"; exit 1 }
        print acknowledged " acknowledgements, each after a sync of the log"
    }
' "$directory/trace"
