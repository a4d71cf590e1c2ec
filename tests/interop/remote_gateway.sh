#!/usr/bin/env bash
# The REST gateway as a process of its own, in front of a kmsgate that it reaches over gRPC. Starts
# both.
source "$(dirname "$0")/common.sh"

start_dev "$scratch/dev" || fail "$(<"$scratch/dev.log")"
load_env "$scratch/dev/dev.env"
upstream=$server

port=$(free_port)
"$kmsgate" gateway --shutdown-lag 0ms --upstream "http://$KMSGATE_GRPC" --rest "127.0.0.1:$port" --admin 127.0.0.1:0 >"$scratch/gateway.log" 2>&1 </dev/null &
gateway=$!
started+=("$gateway")
rest=http://127.0.0.1:$port/v1.0/$KMSGATE_PROJECT/kms
request="{\"key_id\":\"$KMSGATE_AES_KEY\",\"plain_text\":\"hello world\"}"
token=(--header "x-auth-token: $KMSGATE_TOKEN")

for _ in $(seq 100); do
  post "$rest" encrypt-data "$request" "${token[@]}" 2>/dev/null && break
  kill -0 "$gateway" 2>/dev/null || fail "$(<"$scratch/gateway.log")"
  sleep 0.1
done
equal "status, $body" 200 "$status"
cipher_text=$(jq -r .cipher_text <<<"$body")
post "$rest" decrypt-data "{\"cipher_text\":\"$cipher_text\"}" "${token[@]}"
equal "status, $body" 200 "$status"
equal plain_text 'hello world' "$(jq -r .plain_text <<<"$body")"
post "$rest" encrypt-data "$request" --header "authorization: Bearer $KMSGATE_TOKEN"
equal "status, $body" 200 "$status"
ok "it passes a token on"

post "$rest" encrypt-data '{"key_id":"0d0466b0-e727-4d9c-b35d-f84bb474a370","plain_text":"x"}' "${token[@]}"
equal answer '404 KMS.0207 The key does not exist.' "$status $(jq -r '.error | "\(.error_code) \(.error_msg)"' <<<"$body")"
post "$rest" encrypt-data '{"key_id":1}' "${token[@]}"
equal answer '400 KMS.0202' "$status $(jq -r .error.error_code <<<"$body")"
post "$rest" encrypt-data "$request"
equal answer '401 APIGW.0301' "$status $(jq -r .error.error_code <<<"$body")"
ok "it answers failures as the server itself does"

post "$rest" encrypt-data "$request" --header 'x-sdk-date: 20261123T065328Z' \
  --header "authorization: SDK-HMAC-SHA256 Access=$KMSGATE_AK, SignedHeaders=host;x-sdk-date, Signature=$(printf '%064d' 0)"
equal answer '401 APIGW.0301' "$status $(jq -r .error.error_code <<<"$body")"
ok "it refuses a signature that its upstream could not verify"

stop "$upstream" || fail "the server ended with $?"
post "$rest" encrypt-data "$request" "${token[@]}"
equal answer '502 APIGW.0201' "$status $(jq -r .error.error_code <<<"$body")"
ok "it answers 502 when its upstream is gone"

stop "$gateway" || fail "the gateway ended with $?"
ok "it stops when asked to"
