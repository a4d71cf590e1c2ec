#!/usr/bin/env bash
# The command line against a running server, in both ways to name one, and its own small tools.
source "$(dirname "$0")/common.sh"
load_env "$@"

dev=(--dev "$(dirname "$1")")
printf '%s\n' "$KMSGATE_TOKEN" >"$scratch/token"
named=(--server "http://$KMSGATE_GRPC" --token-file "$scratch/token")

# Runs a command that must fail, and that says TEXT: `refuses TEXT COMMAND…`
refuses() {
  local text=$1 said
  shift
  ! said=$("$@" 2>&1 </dev/null) || fail "succeeded: $*"
  contains "what it says" "$text" "$said"
}

equal answer serving "$("$kmsgate" health --server "http://$KMSGATE_GRPC")"
refuses 'cannot reach' "$kmsgate" health --server "http://127.0.0.1:$(free_port)"
ok "health tells whether a server serves"

printf 'hello\0world\n' >"$scratch/plain"
"$kmsgate" encrypt "${dev[@]}" "$KMSGATE_AES_KEY" --aad tenant=7 <"$scratch/plain" >"$scratch/cipher"
"$kmsgate" decrypt "${named[@]}" --aad tenant=7 <"$scratch/cipher" >"$scratch/back"
cmp "$scratch/plain" "$scratch/back" || fail "other bytes came back"
refuses 'KMS.2201: Invalid cipher_text.' sh -c "'$kmsgate' decrypt ${dev[*]} <'$scratch/cipher'"
ok "bytes are encrypted and decrypted, bound to their data"

for key in "RSAES_OAEP_SHA_256 $KMSGATE_RSA_KEY" "SM2_ENCRYPT $KMSGATE_SM2_KEY"; do
  read -r algorithm id <<<"$key"
  "$kmsgate" encrypt "${dev[@]}" "$id" --algorithm "$algorithm" <"$scratch/plain" >"$scratch/cipher"
  "$kmsgate" decrypt "${dev[@]}" "$id" --algorithm "$algorithm" <"$scratch/cipher" >"$scratch/back"
  cmp "$scratch/plain" "$scratch/back" || fail "$algorithm: other bytes came back"
done
ok "an asymmetric ciphertext opens with its key and algorithm"

alias=cli-$(od -An -N8 -tx1 /dev/urandom | tr -d ' ')
id=$("$kmsgate" key "${dev[@]}" create "$alias" --description 'made by the command line')
contains list "$id  AES_256   ENCRYPT_DECRYPT  ENABLED           $alias" "$("$kmsgate" key "${dev[@]}" list)"
equal version 'version 2' "$("$kmsgate" key "${dev[@]}" rotate "$id")"
equal state DISABLED "$("$kmsgate" key "${named[@]}" disable "$id")"
refuses 'KMS.1301: The key is not enabled.' "$kmsgate" key "${dev[@]}" disable "$id"
equal state ENABLED "$("$kmsgate" key "${dev[@]}" enable "$id")"
equal state PENDING_DELETION "$("$kmsgate" key "${dev[@]}" delete "$id" --pending-days 7)"
equal state DISABLED "$("$kmsgate" key "${dev[@]}" cancel-deletion "$id")"
described=$("$kmsgate" key "${dev[@]}" describe "$id")
for line in "alias        $alias" 'description  made by the command line' 'state        DISABLED' 'version      2'; do
  contains description "$line" "$described"
done
refuses 'KMS.1104: Duplicate key aliases.' "$kmsgate" key "${dev[@]}" create "$alias"
ok "a key is made, shown and moved through its life"

"$kmsgate" key "${dev[@]}" public-key "$KMSGATE_RSA_KEY" >"$scratch/rsa.pem"
contains key 'Public-Key: (3072 bit)' "$(openssl pkey -pubin -in "$scratch/rsa.pem" -noout -text)"
"$kmsgate" key "${dev[@]}" public-key "$KMSGATE_SM2_KEY" >"$scratch/sm2.pem"
contains key 'ASN1 OID: SM2' "$(openssl pkey -pubin -in "$scratch/sm2.pem" -noout -text)"
ok "OpenSSL reads the public keys"

hash=$(printf %s "$KMSGATE_TOKEN" | "$kmsgate" token hash)
equal hash "$(printf %s "$KMSGATE_TOKEN" | sha256sum | cut -d' ' -f1)" "$hash"
"$kmsgate" root-key new "$scratch/root.key" >/dev/null
equal mode 600 "$(stat -c %a "$scratch/root.key")"
refuses 'root.key' "$kmsgate" root-key new "$scratch/root.key"
ok "token hashes and root keys are made"

printf 'no-such-token' >"$scratch/other"
refuses 'KMS.0302: Invalid X-Auth-Token.' "$kmsgate" key --server "http://$KMSGATE_GRPC" --token-file "$scratch/other" list
ok "a wrong token is refused"
