#!/usr/bin/env bash
# The schema by buf: it compiles and keeps the rules of proto/buf.yaml. Needs no server.
source "$(dirname "$0")/common.sh"

cd "$root/proto"
buf build --output /dev/null
ok "the schema compiles"
buf lint
ok "the schema keeps the rules"
