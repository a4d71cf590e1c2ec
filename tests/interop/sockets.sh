#!/usr/bin/env bash
# Unix sockets by grpcurl, curl and the program's own commands. Starts its own server.
source "$(dirname "$0")/common.sh"
cd "$scratch"

project=53d1aefc533f4ce9a59c26b01667cbcf
rest=http://localhost/v1.0/$project/kms
make_files "$project"
cat >sockets.toml <<TOML
grpc = "unix:$scratch/grpc.sock"
rest = "unix:rest.sock"
admin = "unix:admin.sock"
reflection = true
root_key_file = "root.key"
store = { kind = "sqlite", path = "keys.db" }
shutdown = { lag = "0ms" }
[auth]
token_file = "tokens.toml"
[auth.forwarded]
peers = ["unix"]
[[auth.mtls]]
identity = "spiffe://example.org/ns/shop/*"
project = "$project"
actions = ["kms:cmk:list"]
TOML
"$kmsgate" serve --config sockets.toml >audit.jsonl 2>sockets.log </dev/null &
server=$!
started+=("$server")
for _ in $(seq 200); do
  curl --silent --fail --unix-socket admin.sock --output /dev/null http://localhost/readyz && break
  kill -0 "$server" 2>/dev/null || fail "$(<sockets.log)"
  sleep 0.1
done
equal "mode of the sockets" $'660\n660\n660' "$(stat -c %a ./*.sock)"
ok "the probes answer curl on a socket, which is for its user and group"

token=(-H "x-auth-token: $(<operator.token)")
# grpcurl would name the path as the authority, which no HTTP authority may be.
asked() {
  local method=$1 data=$2
  shift 2
  grpcurl -plaintext -unix -authority localhost -max-time 20 "$@" -d "$data" "$scratch/grpc.sock" "$method" 2>&1
}
key=$(asked kmsgate.v1.KeyService/CreateKey '{"key_alias":"k"}' "${token[@]}" | jq -r .key_info.key_id)
cipher_text=$(asked kmsgate.v1.CryptoService/EncryptData "{\"key_id\":\"$key\",\"plain_text\":\"hello\"}" "${token[@]}" |
  jq -r .cipher_text)
post "$rest" decrypt-data "{\"cipher_text\":\"$cipher_text\"}" --unix-socket rest.sock \
  --header "x-auth-token: $(<operator.token)"
equal "status, $body" 200 "$status"
equal plain_text hello "$(jq -r .plain_text <<<"$body")"
ok "grpcurl encrypts over one socket, and curl decrypts over another"

told='URI=spiffe://example.org/ns/shop/sa/billing'
post "$rest" list-keys '{}' --unix-socket rest.sock --header "x-forwarded-client-cert: $told"
equal "status, $body" 200 "$status"
contains refusal APIGW.0301 "$(asked kmsgate.v1.KeyService/ListKeys '{}' -H 'x-forwarded-client-cert: URI=spiffe://example.org/ns/other' || true)"
ok "what a proxy says over a socket is believed where the configuration says so"

equal health serving "$("$kmsgate" health --server "unix:$scratch/grpc.sock")"
contains list "$key" "$("$kmsgate" key --server unix:grpc.sock --token-file operator.token list)"
ok "the program's own commands ask over a socket"

kill -KILL "$server"
wait "$server" 2>/dev/null || true
[[ -S grpc.sock ]] || fail "a killed server leaves its socket"
"$kmsgate" serve --config sockets.toml >audit.jsonl 2>sockets.log </dev/null &
server=$!
started+=("$server")
for _ in $(seq 200); do
  [[ $("$kmsgate" health --server unix:grpc.sock 2>/dev/null) == serving ]] && break
  kill -0 "$server" 2>/dev/null || fail "$(<sockets.log)"
  sleep 0.1
done
equal health serving "$("$kmsgate" health --server unix:grpc.sock)"
ok "a start takes over what a killed server left"
stop "$server" || fail "the server ended with $?"
equal "sockets that are left" '' "$(ls ./*.sock 2>/dev/null || true)"
ok "a server that stops leaves none"
