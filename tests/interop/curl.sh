#!/usr/bin/env bash
# REST by curl: the documented example byte for byte, and what a person tries first.
source "$(dirname "$0")/common.sh"
load_env "$@"

# The request of Huawei's EncryptData page, as it is printed there.
example='{
  "key_id" : "0d0466b0-e727-4d9c-b35d-f84bb474a37f",
  "plain_text" : "hello world",
  "encryption_algorithm" : "SYMMETRIC_DEFAULT"
}'
token=(--header "x-auth-token: $KMSGATE_TOKEN")

post "$rest" encrypt-data "$example" "${token[@]}"
equal status 200 "$status"
equal members cipher_text,key_id "$(jq -r 'keys | join(",")' <<<"$body")"
equal key_id 0d0466b0-e727-4d9c-b35d-f84bb474a37f "$(jq -r .key_id <<<"$body")"
cipher_text=$(jq -r .cipher_text <<<"$body")
equal length 188 "${#cipher_text}"
ok "the documented request is answered"

post "$rest" decrypt-data "{\"cipher_text\":\"$cipher_text\"}" "${token[@]}"
equal status 200 "$status"
equal answer '["0d0466b0-e727-4d9c-b35d-f84bb474a37f","hello world","aGVsbG8gd29ybGQ="]' \
  "$(jq -c '[.key_id, .plain_text, .plain_text_base64]' <<<"$body")"
ok "the ciphertext alone decrypts"

post "$rest" encrypt-data "$example" --header "authorization: Bearer $KMSGATE_TOKEN"
equal status 200 "$status"
ok "a bearer token is a token"

# Reads an answer's error as `STATUS CODE`.
refusal() {
  echo "$status $(jq -r '.error | .error_code' <<<"$body")"
}

post "$rest" encrypt-data "$example"
equal refusal '401 APIGW.0301' "$(refusal)"
equal message 'Incorrect IAM authentication information: x-auth-token not found' \
  "$(jq -r .error.error_msg <<<"$body")"
post "$rest" encrypt-data "$example" --header 'x-auth-token: no-such-token'
equal refusal '403 KMS.0302' "$(refusal)"
ok "a call without a valid token is refused"

post "$rest" encrypt-data '{"key_id":' "${token[@]}"
equal refusal '400 KMS.0202' "$(refusal)"
post "$rest" encrypt-data '{"key_id":"0d0466b0","plain_text":"x"}' "${token[@]}"
equal refusal '400 KMS.0205' "$(refusal)"
post "$rest" encrypt-data '{"key_id":"0d0466b0-e727-4d9c-b35d-f84bb474a370","plain_text":"x"}' "${token[@]}"
equal refusal '404 KMS.0207' "$(refusal)"
equal members error_code,error_msg "$(jq -r '.error | keys | join(",")' <<<"$body")"
post "http://$KMSGATE_REST/v1.0/00000000000000000000000000000000/kms" encrypt-data "$example" "${token[@]}"
equal refusal '403 KMS.0321' "$(refusal)"
post "$rest" no-such-operation '{}' "${token[@]}"
equal refusal '404 APIGW.0101' "$(refusal)"
ok "mistakes are answered with the documented codes"

head -c 70000 /dev/zero | tr '\0' x >"$scratch/long"
post "$rest" encrypt-data "@$scratch/long" "${token[@]}"
equal refusal '400 KMS.0203' "$(refusal)"
status=$(curl --silent --max-time 20 --output "$scratch/answer" --write-out '%{http_code}' "${token[@]}" "$rest/encrypt-data")
body=$(<"$scratch/answer")
equal refusal '405 KMS.0215' "$(refusal)"
ok "a long body and a wrong method are refused"

curl --silent --max-time 20 --output /dev/null --dump-header "$scratch/headers" "${token[@]}" \
  --json "$example" "$rest/encrypt-data"
grep -qiE '^x-request-id: [^ ]' "$scratch/headers" || fail "no x-request-id: $(<"$scratch/headers")"
grep -qiE '^content-type: application/json' "$scratch/headers" || fail "content type: $(<"$scratch/headers")"
ok "every answer names its request"

for path in livez readyz metrics; do
  curl --silent --fail --max-time 5 --output /dev/null "http://$KMSGATE_ADMIN/$path" || fail "/$path"
done
ok "the admin port answers"
