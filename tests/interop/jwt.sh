#!/usr/bin/env bash
# JSON Web Tokens that OpenSSL has signed, shown by grpcurl and curl. Starts its server.
source "$(dirname "$0")/common.sh"

cd "$scratch"
umask 077
project=53d1aefc533f4ce9a59c26b01667cbcf
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem 2>/dev/null ||
  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem 2>/dev/null
openssl pkey -in key.pem -pubout -out public.pem
base64url() {
  base64 -w0 | tr '+/' '-_' | tr -d '='
}
modulus=$(openssl rsa -in key.pem -modulus -noout | sed 's/Modulus=//' |
  python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.stdin.read().strip()))' | base64url)
echo "{\"keys\":[{\"kty\":\"RSA\",\"kid\":\"one\",\"alg\":\"RS256\",\"use\":\"sig\",\"n\":\"$modulus\",\"e\":\"AQAB\"}]}" >jwks.json

# A token with these claims, signed so: `token CLAIMS [HEADER [HOW]]`.
token() {
  local header=${2-'{"alg":"RS256","kid":"one","typ":"JWT"}'} signed
  signed=$(printf '%s' "$header" | base64url).$(printf '%s' "$1" | base64url)
  printf '%s.' "$signed"
  case ${3-rsa} in
    rsa) printf '%s' "$signed" | openssl dgst -sha256 -sign key.pem -binary | base64url ;;
    # The public key as the secret of an HMAC, which anybody could do.
    hmac) printf '%s' "$signed" | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$(od -An -tx1 -v public.pem | tr -d ' \n')" -binary | base64url ;;
    none) ;;
  esac
}
now=$(date +%s)
# Claims with others in their place: `claims NAME VALUE`.
claims() {
  jq -cn --argjson now "$now" --arg name "${1-}" --argjson value "${2-null}" '{
    iss: "https://issuer.example", aud: ["kms"], sub: "system:serviceaccount:shop:billing",
    iat: $now, nbf: $now, exp: ($now + 300)
  } | if $name == "" then . else .[$name] = $value end'
}

make_files "$project"
serve jwt "
[[auth.jwt]]
issuer = \"https://issuer.example\"
jwks_file = \"jwks.json\"
audiences = [\"kms\"]
[[auth.jwt.rules]]
claims = { sub = \"system:serviceaccount:shop:billing\" }
project = \"$project\"
actions = [\"kms:cmk:encryptData\", \"kms:cmk:decryptData\"]"
key=$("$kmsgate" key create orders --server "http://127.0.0.1:$grpc_port" --token-file operator.token)
request="{\"key_id\":\"$key\",\"plain_text\":\"hello world\"}"
kms=http://127.0.0.1:$rest_port/v1.0/$project/kms

good=$(token "$(claims)")
answer=$(grpcurl -plaintext -H "authorization: Bearer $good" -d "$request" "127.0.0.1:$grpc_port" kmsgate.v1.CryptoService/EncryptData)
equal key_id "$key" "$(jq -r .key_id <<<"$answer")"
post "$kms" encrypt-data "$request" --header "x-auth-token: $good"
equal "status, $body" 200 "$status"
ok "a token that OpenSSL signed is let in, by grpcurl and by curl"

# `refused WHAT CODE TOKEN`
refused() {
  local code=0
  answer=$(grpcurl -plaintext -H "authorization: Bearer $3" -d "$request" "127.0.0.1:$grpc_port" kmsgate.v1.CryptoService/EncryptData 2>&1) || code=$?
  equal "$1, $answer" $((64 + 16)) "$code"
  contains "$1" "$2" "$answer"
  post "$kms" encrypt-data "$request" --header "x-auth-token: $3"
  equal "$1" "403 $2" "$status $(jq -r .error.error_code <<<"$body")"
}
refused expired KMS.0303 "$(token "$(claims exp $((now - 60)))")"
refused 'not yet valid' KMS.0302 "$(token "$(claims nbf $((now + 600)))")"
refused 'another audience' KMS.0302 "$(token "$(claims aud '"other"')")"
refused 'another issuer' KMS.0302 "$(token "$(claims iss '"https://other.example"')")"
refused 'another account' KMS.0302 "$(token "$(claims sub '"system:serviceaccount:shop:billing2"')")"
refused 'without an end' KMS.0302 "$(token "$(claims exp null)")"
refused none KMS.0302 "$(token "$(claims)" '{"alg":"none"}' none)"
refused 'an HMAC under the public key' KMS.0302 "$(token "$(claims)" '{"alg":"HS256","kid":"one"}' hmac)"
refused truncated KMS.0302 "${good%????}"
refused 'another payload' KMS.0302 "$(token "$(claims aud '"other"')" | cut -d. -f1).$(printf '%s' "$(claims sub '"root"')" | base64url).${good##*.}"
ok "ten tokens that are not good are refused on both faces"
stop "$server" || fail "the server ended with $?"
