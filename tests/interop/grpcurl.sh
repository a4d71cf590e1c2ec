#!/usr/bin/env bash
# gRPC by grpcurl, which knows the service by reflection alone.
source "$(dirname "$0")/common.sh"
load_env "$@"

token=(-H "x-auth-token: $KMSGATE_TOKEN")

# Calls a method with JSON: `call METHOD JSON [GRPCURL ARGUMENT…]`. Sets `code`, grpcurl's exit
# code, and `answer`.
call() {
  local method=$1 data=$2
  shift 2
  code=0
  answer=$(grpcurl -plaintext -max-time 20 "$@" -d "$data" "$KMSGATE_GRPC" "$method" 2>&1) || code=$?
}

services=$(grpcurl -plaintext "$KMSGATE_GRPC" list)
for service in grpc.health.v1.Health kmsgate.v1.CryptoService kmsgate.v1.KeyService; do
  contains services "$service" "$services"
done
ok "reflection lists the services"

contains method 'rpc EncryptData ( .kmsgate.v1.EncryptDataRequest ) returns ( .kmsgate.v1.EncryptDataResponse );' \
  "$(grpcurl -plaintext "$KMSGATE_GRPC" describe kmsgate.v1.CryptoService.EncryptData)"
contains message 'json_name = "plain_text_base64"' \
  "$(grpcurl -plaintext "$KMSGATE_GRPC" describe kmsgate.v1.EncryptDataRequest)"
ok "reflection describes a method and its messages"

request="{\"key_id\":\"$KMSGATE_AES_KEY\",\"plain_text\":\"hello world\",\"encryption_algorithm\":\"SYMMETRIC_DEFAULT\"}"
call kmsgate.v1.CryptoService/EncryptData "$request" "${token[@]}"
equal "exit code, $answer" 0 "$code"
equal key_id "$KMSGATE_AES_KEY" "$(jq -r .key_id <<<"$answer")"
call kmsgate.v1.CryptoService/DecryptData "{\"cipher_text\":$(jq .cipher_text <<<"$answer")}" "${token[@]}"
equal "exit code, $answer" 0 "$code"
equal answer "[\"$KMSGATE_AES_KEY\",\"hello world\",\"aGVsbG8gd29ybGQ=\"]" \
  "$(jq -c '[.key_id, .plain_text, .plain_text_base64]' <<<"$answer")"
ok "what it encrypts, it decrypts, in the members of REST"

for key in "RSAES_OAEP_SHA_256 $KMSGATE_RSA_KEY" "SM2_ENCRYPT $KMSGATE_SM2_KEY"; do
  read -r algorithm id <<<"$key"
  named="\"key_id\":\"$id\",\"encryption_algorithm\":\"$algorithm\""
  call kmsgate.v1.CryptoService/EncryptData "{$named,\"plain_text_base64\":\"AP8QIA==\"}" "${token[@]}"
  equal "exit code, $answer" 0 "$code"
  call kmsgate.v1.CryptoService/DecryptData "{$named,\"cipher_text\":$(jq .cipher_text <<<"$answer")}" "${token[@]}"
  equal "exit code, $answer" 0 "$code"
  equal plain_text_base64 AP8QIA== "$(jq -r .plain_text_base64 <<<"$answer")"
  ok "$algorithm takes bytes that are no text"
done

call kmsgate.v1.CryptoService/EncryptData "$request" -H "authorization: Bearer $KMSGATE_TOKEN"
equal "exit code, $answer" 0 "$code"
ok "a bearer token is a token"

call grpc.health.v1.Health/Check '{}'
equal status SERVING "$(jq -r .status <<<"$answer")"
call grpc.health.v1.Health/Check '{"service":"kmsgate.v1.CryptoService"}'
equal status SERVING "$(jq -r .status <<<"$answer")"
ok "health needs no credential"

# grpcurl exits with 64 plus the gRPC code.
call kmsgate.v1.CryptoService/EncryptData "$request"
equal "exit code, $answer" $((64 + 16)) "$code"
contains refusal 'x-auth-token not found' "$answer"
contains refusal '"error_code":"APIGW.0301"' "${answer//: \"/:\"}"
ok "a call without a credential is unauthenticated"

call kmsgate.v1.CryptoService/EncryptData '{"key_id":"0d0466b0-e727-4d9c-b35d-f84bb474a370","plain_text":"x"}' "${token[@]}"
equal "exit code, $answer" $((64 + 5)) "$code"
contains refusal 'The key does not exist.' "$answer"
contains details '"@type":"type.googleapis.com/kmsgate.v1.ErrorDetail"' "$answer"
contains details '"error_code":"KMS.0207"' "$answer"
contains details '"@type":"type.googleapis.com/google.rpc.ErrorInfo"' "$answer"
contains details '"reason":"KEY_NOT_FOUND"' "$answer"
[[ $answer != *'not recognized'* ]] || fail "a detail's type is unknown to reflection: $answer"
ok "a failure's details are known to reflection"
