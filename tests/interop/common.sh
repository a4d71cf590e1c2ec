# What the shell checks share. Sourced, never run.
#
# A check is a script that is given the dev.env of a running `kmsgate dev`, prints one `ok` line for
# each thing it has seen, and fails at the first that is not so. `tests/interop/install` must have
# run once.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
kmsgate=${KMSGATE:-$root/target/release/kmsgate}
export PATH="$root/target/interop-venv/bin:$root/target/interop-node/node_modules/.bin:$PATH"
check=$(basename "$0" | sed 's/\.[a-z]*$//')
scratch=$(mktemp -d)
started=()

# Leaves nothing behind, neither files nor processes.
clean_up() {
  if ((${#started[@]})); then
    kill -KILL "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
  fi
  rm -rf "$scratch"
}
trap clean_up EXIT

# Reads the server's addresses and credentials: `load_env DIR/dev.env`.
load_env() {
  if [[ $# -ne 1 || ! -r ${1-} ]]; then
    echo "usage: $0 DIR/dev.env" >&2
    exit 2
  fi
  # shellcheck disable=SC1090
  source "$1"
  rest=http://$KMSGATE_REST/v1.0/$KMSGATE_PROJECT/kms
}

ok() {
  echo "ok $check: $1"
}

fail() {
  echo "FAILED $check: $1" >&2
  exit 1
}

# `equal WHAT EXPECTED SEEN`
equal() {
  [[ $2 == "$3" ]] || fail "$1: expected '$2', saw '$3'"
}

# `contains WHAT PART TEXT`
contains() {
  [[ $3 == *"$2"* ]] || fail "$1: '$2' is not in: $3"
}

# Calls a REST operation: `post BASE OPERATION BODY [CURL ARGUMENT…]`. Sets `status` and `body`.
post() {
  local base=$1 operation=$2 data=$3
  shift 3
  body=$(curl --silent --show-error --max-time 20 --write-out '\n%{http_code}' \
    --request POST "$base/$operation" --header 'content-type: application/json' --data-binary "$data" "$@")
  status=${body##*$'\n'}
  body=${body%$'\n'*}
}

# Calls until `status` is 200, but so often at most, ten times a second: `until_200 TRIES COMMAND…`.
until_200() {
  local tries
  for tries in $(seq "$1"); do
    "${@:2}"
    [[ $status == 200 ]] && return
    sleep 0.1
  done
}

# A TCP port that nothing listens on.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits for at most 20 s until URL answers 200, or the process has ended: `await URL PID`.
await() {
  local tries
  for tries in $(seq 200); do
    curl --silent --fail --max-time 1 --output /dev/null "$1" && return
    kill -0 "$2" 2>/dev/null || break
    sleep 0.1
  done
  echo "no answer from $1 after $tries tries" >&2
  return 1
}

# Starts `kmsgate dev` on free ports with its data and log in DIR, and waits until it is ready:
# `start_dev DIR`. Sets `server`, its process.
start_dev() {
  local tries before
  # A server that starts again puts a new file in the place of the old one.
  before=$(stat -c %i "$1/dev.env" 2>/dev/null || true)
  "$kmsgate" dev --data "$1" --grpc 127.0.0.1:0 --rest 127.0.0.1:0 --admin 127.0.0.1:0 >"$1.log" 2>&1 </dev/null &
  server=$!
  started+=("$server")
  for tries in $(seq 200); do
    [[ $(stat -c %i "$1/dev.env" 2>/dev/null || true) != "$before" ]] && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  if [[ $(stat -c %i "$1/dev.env" 2>/dev/null || true) == "$before" ]]; then
    echo "kmsgate dev wrote no dev.env after $tries tries" >&2
    return 1
  fi
  await "http://$(sed -n 's/^KMSGATE_ADMIN=//p' "$1/dev.env")/readyz" "$server"
}

# Makes what a server needs beside its configuration, in the current directory: a root key, and the
# token of an operator who may do everything in PROJECT, in operator.token: `make_files PROJECT`.
make_files() {
  "$kmsgate" root-key new root.key >made
  printf 'secret-of-the-operator' >operator.token
  cat >tokens.toml <<TOML
[[token]]
name = "operator"
sha256 = "$("$kmsgate" token hash <operator.token)"
project = "$1"
actions = ["kms:*"]
TOML
}

# Starts `kmsgate serve` on those files, with LINES at the end of its configuration, and waits until it
# is ready. It writes to NAME.audit and NAME.log: `serve NAME LINES`. Sets `server`, its process, and
# `grpc_port`, `rest_port` and `admin_port`. Its store is what `store` says, a file if that is not set, and its
# root keys are what `root_keys` says, root.key if that is not set.
serve() {
  grpc_port=$(free_port) rest_port=$(free_port) admin_port=$(free_port)
  local file='{ kind = "sqlite", path = "keys.db" }' one_root='root_key_file = "root.key"'
  cat >"$1.toml" <<TOML
grpc = "127.0.0.1:$grpc_port"
rest = "127.0.0.1:$rest_port"
admin = "127.0.0.1:$admin_port"
reflection = true
${root_keys:-$one_root}
store = ${store:-$file}
shutdown = { lag = "0ms" }
[auth]
token_file = "tokens.toml"
$2
TOML
  "$kmsgate" serve --config "$1.toml" >"$1.audit" 2>"$1.log" </dev/null &
  server=$!
  started+=("$server")
  await "http://127.0.0.1:$admin_port/readyz" "$server" || fail "$(<"$1.log")"
}

# Stops a process with SIGTERM and answers with its exit code; after 40 s it is killed: `stop PID`.
stop() {
  local tries
  kill -TERM "$1" 2>/dev/null || true
  for tries in $(seq 400); do
    kill -0 "$1" 2>/dev/null || break
    sleep 0.1
  done
  if kill -KILL "$1" 2>/dev/null; then
    echo "process $1 did not stop after $tries tries" >&2
  fi
  wait "$1"
}
