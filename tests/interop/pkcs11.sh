#!/usr/bin/env bash
# A hardware module: the battery of the providers, and a server, over two tokens in software.
#
#   tests/interop/pkcs11.sh
#
# SoftHSM 2.6.1 has the root key; it does no OAEP with SHA-256, so RSA keys are kryoptic's. Installs
# the first from Debian and builds the second under target/, once; builds kmsgate with the feature.
source "$(dirname "$0")/common.sh"
cd "$root"

kryoptic_version=1.5.4
kryoptic=target/interop-kryoptic

install_modules() {
  local missing=() package
  for package in curl jq libclang-14-dev libsqlite3-dev libssl-dev opensc openssl pkg-config softhsm2 strace; do
    dpkg --status "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if ((${#missing[@]})); then
    local sudo=()
    [[ $(id -u) == 0 ]] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  fi
  if [[ $(cat "$kryoptic/version" 2>/dev/null) != "$kryoptic_version" ]]; then
    # It is a shared library, which `cargo install` does not make, so cargo is asked for its source.
    rm -rf "$kryoptic"
    mkdir -p "$kryoptic/fetch/src"
    touch "$kryoptic/fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nkryoptic = "=%s"\n[workspace]\n' \
      "$kryoptic_version" >"$kryoptic/fetch/Cargo.toml"
    local manifest
    manifest=$(cargo metadata --quiet --format-version 1 --manifest-path "$kryoptic/fetch/Cargo.toml" |
      jq -r '.packages[] | select(.name == "kryoptic") | .manifest_path')
    cp -r "$(dirname "$manifest")" "$kryoptic/source"
    (cd "$kryoptic/source" &&
      cargo build --quiet --release --lib --no-default-features --features minimal,kryoptic-lib/dynamic)
    echo "$kryoptic_version" >"$kryoptic/version"
  fi
}

# Calls a REST operation of the server: `ask OPERATION BODY`. Sets `status` and `body`.
ask() {
  post "$rest" "$1" "$2" --header "x-auth-token: $token"
}

# Serves with a token: `serve NAME MODULE MORE-SETTINGS`. Sets `server`, `rest` and `admin`.
serve() {
  local port
  port=$(free_port)
  rest=http://127.0.0.1:$port/v1.0/project/kms
  admin=127.0.0.1:$(free_port)
  cat >"$scratch/$1.toml" <<TOML
grpc = "127.0.0.1:$(free_port)"
rest = "127.0.0.1:$port"
admin = "$admin"
store = { kind = "sqlite", path = "$scratch/$1.db" }
auth = { token_file = "$scratch/tokens.toml" }
audit = { kind = "file", path = "$scratch/$1.audit" }
shutdown = { lag = "0s" }
$3
[pkcs11]
module = "$2"
token = "kms"
pin_file = "$scratch/pin"
root_key = "root"
TOML
  "$kmsgate" root-key new-in-token --config "$scratch/$1.toml" >/dev/null
  "$kmsgate" serve --config "$scratch/$1.toml" >"$scratch/$1.log" 2>&1 </dev/null &
  server=$!
  started+=("$server")
  await "http://$admin/readyz" "$server"
}

install_modules
cargo build --quiet --features pkcs11
kmsgate=target/debug/kmsgate
(umask 077 && echo 4321 >"$scratch/pin")
token=$(openssl rand -hex 32)
cat >"$scratch/tokens.toml" <<TOML
[[token]]
name = "interop"
sha256 = "$(printf %s "$token" | "$kmsgate" token hash)"
project = "project"
actions = ["kms:*"]
TOML
chmod 600 "$scratch/tokens.toml"

softhsm=/usr/lib/softhsm/libsofthsm2.so
mkdir "$scratch/tokens"
printf 'directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n' "$scratch" \
  >"$scratch/softhsm2.conf"
export SOFTHSM2_CONF=$scratch/softhsm2.conf
softhsm2-util --init-token --free --label kms --so-pin 12345678 --pin 4321 >/dev/null

libkryoptic=$root/$kryoptic/source/target/release/libkryoptic_pkcs11.so
printf '[[slots]]\nslot = 1\ndbtype = "sqlite"\ndbargs = "%s/kryoptic.sql"\n' "$scratch" >"$scratch/kryoptic.conf"
export KRYOPTIC_CONF=$scratch/kryoptic.conf
pkcs11-tool --module "$libkryoptic" --init-token --slot 1 --label kms --so-pin 12345678 >/dev/null
pkcs11-tool --module "$libkryoptic" --slot 1 --login --login-type so --so-pin 12345678 --init-pin --pin 4321 >/dev/null

# `battery MODULE FILTER CASES`
battery() {
  local seen
  seen=$(PKCS11_MODULE=$1 PKCS11_TOKEN=kms PKCS11_PIN_FILE=$scratch/pin \
    cargo test --quiet --features pkcs11 --test providers -- "$2" 2>&1) || fail "$seen"
  contains "the battery of $1" "test result: ok. $3 passed" "$seen"
}
battery "$softhsm" under_a_root_key_in_a_token 22
ok "the battery passes with the root key in SoftHSM"
battery "$libkryoptic" token:: 44
ok "the battery passes with the root key, and with RSA keys, in kryoptic"

# SoftHSM has the root key.
serve softhsm "$softhsm" ""
ask create-key '{"key_alias":"first"}'
equal "create-key" 200 "$status"
key=$(jq -r .key_info.key_id <<<"$body")
ask encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"attack at dawn\"}"
equal "encrypt-data" 200 "$status"
cipher_text=$(jq -r .cipher_text <<<"$body")
stop "$server" || fail "kmsgate serve ended with $?"
"$kmsgate" serve --config "$scratch/softhsm.toml" >"$scratch/softhsm.log" 2>&1 </dev/null &
server=$!
started+=("$server")
await "http://$admin/readyz" "$server"
ask decrypt-data "{\"cipher_text\":\"$cipher_text\"}"
equal "decrypt-data" "attack at dawn" "$(jq -r .plain_text <<<"$body")"
ok "a server whose root key is in a token starts again and decrypts"

# What deploy/README.md has people write for a token, with this one's PIN.
{
  printf '%s = "127.0.0.1:0"\n' grpc rest admin
  sed -n '/^\(store\|auth\) = /p' "$scratch/softhsm.toml"
  sed -n '/^  extra: |$/,/^[^ ]/{s/^    //p}' deploy/README.md | sed "s:/etc/kmsgate/pkcs11/pin:$scratch/pin:"
} >"$scratch/deployed.toml"
"$kmsgate" root-key new-in-token --config "$scratch/deployed.toml" >/dev/null
equal "check-config" "$scratch/deployed.toml is good" \
  "$("$kmsgate" check-config --config "$scratch/deployed.toml")"
ok "kmsgate takes the configuration of a token in deploy/README.md"

# Threads that end slowly, so that one for which nobody waits would outlive the program.
strace --follow-forks --quiet=all --trace=prctl,exit,exit_group --inject=exit:delay_enter=200ms \
  --output="$scratch/trace" "$kmsgate" check-config --config "$scratch/softhsm.toml" >/dev/null
keeper=$(sed -n 's/^\([0-9]*\) .*prctl(PR_SET_NAME, "pkcs11").*/\1/p' "$scratch/trace")
equal "the last to end, after the module's thread" "exit exit_group" \
  "$(sed -n "s/^$keeper *\(exit\)(0) .*/\1/p; s/.* \(exit_group\)(0).*/\1/p" "$scratch/trace" | paste -sd' ')"
ok "the program ends after the module, which otherwise crashes"

ask create-key '{"key_alias":"unopened"}'
unopened=$(jq -r .key_info.key_id <<<"$body")
mv "$scratch/tokens" "$scratch/away"
ask encrypt-data "{\"key_id\":\"$unopened\",\"plain_text\":\"x\"}"
equal "a key that is not open while the token is away" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
ask create-key '{"key_alias":"second"}'
equal "create-key while the token is away" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
ask decrypt-data "{\"cipher_text\":\"$cipher_text\"}"
equal "an open key while the token is away" 200 "$status"
contains "the metric" "kmsgate_pkcs11_token_there 0" "$(curl --silent "http://$admin/metrics")"
ok "without its token a server answers 503, and goes on with open keys"

mv "$scratch/away" "$scratch/tokens"
until_200 100 ask encrypt-data "{\"key_id\":\"$unopened\",\"plain_text\":\"x\"}"
equal "the key once the token is back" 200 "$status"
ask create-key '{"key_alias":"second"}'
equal "create-key once the token is back" 200 "$status"
contains "the metric" "kmsgate_pkcs11_token_there 1" "$(curl --silent "http://$admin/metrics")"
ok "the token is found again without a restart"
stop "$server" || fail "kmsgate serve ended with $?"

# The root key moves out of the token into a file, and back.
"$kmsgate" root-key new "$scratch/file.key" >/dev/null
printf %s "$token" >"$scratch/operator.token"
# `moved NAME SETTING IN-TOKEN`: serves SoftHSM's store with other root keys, and decrypts. With `none` in
# the token the server knows of no module.
moved() {
  sed --expression '/^root_key = /d' --expression "1i $2" "$scratch/softhsm.toml" >"$scratch/$1.toml"
  if [[ $3 == none ]]; then
    sed --in-place '/^\[pkcs11\]/,$d' "$scratch/$1.toml"
  else
    echo "$3" >>"$scratch/$1.toml"
  fi
  "$kmsgate" serve --config "$scratch/$1.toml" >"$scratch/$1.log" 2>&1 </dev/null &
  server=$!
  started+=("$server")
  await "http://$admin/readyz" "$server"
  ask decrypt-data "{\"cipher_text\":\"$cipher_text\"}"
  equal "decrypt-data with $1" "attack at dawn" "$(jq -r .plain_text <<<"$body")"
}
rotate() {
  local said
  said=$("$kmsgate" root-key rotate --server "http://$(sed -n 's/^grpc = "\(.*\)"/\1/p' "$scratch/softhsm.toml")" \
    --token-file "$scratch/operator.token" 2>&1) || fail "$said"
  contains "rotate" "every record is under the first root key" "$said"
  stop "$server" || fail "kmsgate serve ended with $?"
}
in_file="root_key_file = \"$scratch/file.key\""
moved out "$in_file" 'previous_root_keys = ["root"]'
rotate
moved file "$in_file" none
stop "$server" || fail "kmsgate serve ended with $?"
ok "a root key moves from a token into a file, and the token is needed no more"
moved back "previous_root_key_files = [\"$scratch/file.key\"]" 'root_key = "root"'
rotate
rm "$scratch/file.key"
moved token "# the token alone" 'root_key = "root"'
stop "$server" || fail "kmsgate serve ended with $?"
ok "a root key moves from a file into a token, and the file is needed no more"

# What cannot work is refused at the start, with a sentence.
refused() {
  local said
  said=$("$kmsgate" check-config --config "$scratch/refused.toml" 2>&1) && fail "$1: not refused"
  contains "$1" "$2" "$said"
}
rsa='crypto = { providers = [{ kind = "pkcs11" }, { kind = "rustcrypto" }] }'
sed "1i $rsa" "$scratch/softhsm.toml" >"$scratch/refused.toml"
refused "OAEP" "the module does not do RSA-OAEP with SHA-256"
sed 's/^token = .*/token = "another"/' "$scratch/softhsm.toml" >"$scratch/refused.toml"
refused "a token that is not there" 'no token is labelled "another"'
(umask 077 && echo 9999 >"$scratch/wrong")
sed "s,/pin\",/wrong\"," "$scratch/softhsm.toml" >"$scratch/refused.toml"
refused "a wrong PIN" "the token refuses the PIN"
chmod o+r "$scratch/wrong"
refused "a PIN for everybody" "is open to others"
ok "a module without OAEP-SHA-256, a missing token and a bad PIN are refused at the start"

# kryoptic has the root key and RSA keys.
serve kryoptic "$libkryoptic" "$rsa"
ask create-key '{"key_alias":"rsa","key_spec":"RSA_2048","key_usage":"ENCRYPT_DECRYPT"}'
equal "create-key" 200 "$status"
key=$(jq -r .key_info.key_id <<<"$body")
ask get-publickey "{\"key_id\":\"$key\"}"
jq -r .public_key <<<"$body" >"$scratch/public.pem"
made=$(printf 'attack at dawn' | openssl pkeyutl -encrypt -pubin -inkey "$scratch/public.pem" \
  -pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:sha256 -pkeyopt rsa_mgf1_md:sha256 | base64 -w0)
how='"encryption_algorithm":"RSAES_OAEP_SHA_256"'
ask decrypt-data "{\"key_id\":\"$key\",$how,\"cipher_text\":\"$made\"}"
equal "decrypt-data" "attack at dawn" "$(jq -r .plain_text <<<"$body")"
ok "the token decrypts what OpenSSL encrypted under its public key"

ask encrypt-data "{\"key_id\":\"$key\",$how,\"plain_text\":\"at noon\"}"
ask decrypt-data "{\"key_id\":\"$key\",$how,\"cipher_text\":$(jq .cipher_text <<<"$body")}"
equal "decrypt-data" "at noon" "$(jq -r .plain_text <<<"$body")"
# A number below the modulus, so that the token is asked.
bad=$({ printf '\0' && openssl rand 255; } | base64 -w0)
ask decrypt-data "{\"key_id\":\"$key\",$how,\"cipher_text\":\"$bad\"}"
equal "a ciphertext that does not open" "400 KMS.0311" "$status $(jq -r .error.error_code <<<"$body")"
contains "the metric" "kmsgate_pkcs11_token_there 1" "$(curl --silent "http://$admin/metrics")"
ok "a ciphertext that does not open costs nobody the token"
stop "$server" || fail "kmsgate serve ended with $?"

# `objects TYPE`: what the tool lists. It warns of each value that it cannot read, so only its failure is told.
objects() {
  pkcs11-tool --module "$libkryoptic" --slot 1 --login --pin 4321 --list-objects --type "$1" 2>"$scratch/warnings" ||
    fail "objects of the type $1: $(<"$scratch/warnings")"
}
private=$(objects privkey)
secret=$(objects secrkey)
contains "the pair's access" "always sensitive, never extractable, local" \
  "$(grep --after-context=4 "kmsgate project/$key/1" <<<"$private")"
# The root keys of the battery and of the server, of two keys each.
equal "secret keys" 4 "$(grep -c '^Secret Key Object' <<<"$secret" || true)"
equal "secret keys that were made there and can never be extracted" 4 \
  "$(grep -c '^ *Access: *sensitive, always sensitive, never extractable, local$' <<<"$secret" || true)"
# The server's pair and those of the battery. What the battery brought in was outside once, so a token cannot say
# "never" of it; what can be extracted now has "extractable" for itself.
pairs=$(grep -c '^Private Key Object' <<<"$private" || true)
((pairs > 1)) || fail "only $pairs private keys: $private"
equal "private keys that cannot be extracted" "$pairs" \
  "$(grep '^ *Access: *sensitive' <<<"$private" | grep -vc ', extractable' || true)"
ok "the token made the key, and none of the $((pairs + 4)) keys there can be extracted"

# The same behind a module that fails when it is told to.
cc -std=gnu17 -shared -fPIC -Wall -Wextra -Werror -o "$scratch/failing.so" tests/interop/failing_module.c
mkdir "$scratch/fails"
export FAILING_MODULE=$libkryoptic FAILING_HOW=$scratch/fails
sed --expression "s,^module = .*,module = \"$scratch/failing.so\"," \
  --expression 's/^shutdown = .*/shutdown = { lag = "0s", drain = "1s" }\nlimits = { cpu_threads = 1 }/' \
  "$scratch/kryoptic.toml" >"$scratch/failing.toml"
"$kmsgate" serve --config "$scratch/failing.toml" >"$scratch/failing.log" 2>&1 </dev/null &
server=$!
started+=("$server")
await "http://$admin/readyz" "$server"

touch "$scratch/fails/gone"
rsa='"key_spec":"RSA_2048","key_usage":"ENCRYPT_DECRYPT"'
ask create-key "{\"key_alias\":\"half\",$rsa}"
equal "a key during whose making the token went away" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
until_200 100 ask create-key "{\"key_alias\":\"half\",$rsa}"
equal "the key once the token is back" 200 "$status"
key=$(jq -r .key_info.key_id <<<"$body")
ask encrypt-data "{\"key_id\":\"$key\",$how,\"plain_text\":\"at noon\"}"
decrypt_rsa="{\"key_id\":\"$key\",$how,\"cipher_text\":$(jq .cipher_text <<<"$body")}"
ask decrypt-data "$decrypt_rsa"
equal "decrypt-data" "at noon" "$(jq -r .plain_text <<<"$body")"
ok "a key is not made a second time when the token goes away in the middle"

touch "$scratch/fails/two"
ask create-key "{\"key_alias\":\"two\",$rsa}"
equal "a key for which a session that is idle must be given up, $body" 200 "$status"
rm "$scratch/fails/two"
touch "$scratch/fails/none"
ask create-key "{\"key_alias\":\"none\",$rsa}"
equal "a key without a session left for it" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
contains "the metric" "kmsgate_pkcs11_token_there 1" "$(curl --silent "http://$admin/metrics")"
rm "$scratch/fails/none"
ask create-key "{\"key_alias\":\"none\",$rsa}"
equal "the key when there is one again" 200 "$status"
ask decrypt-data "$decrypt_rsa"
equal "decrypt-data" "at noon" "$(jq -r .plain_text <<<"$body")"
ok "a token with too many sessions is not taken for lost"

touch "$scratch/fails/out"
until_200 100 ask decrypt-data "$decrypt_rsa"
equal "decrypt-data after the token logged everybody out" "200 at noon" "$status $(jq -r .plain_text <<<"$body")"
ok "a session that is logged in no more is replaced when it finds no key"

lost=$(grep --count "the pkcs11 token is lost" "$scratch/failing.log")
touch "$scratch/fails/lacks"
ask decrypt-data "$decrypt_rsa"
equal "a key that is not in the token" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
rm "$scratch/fails/lacks"
ask decrypt-data "$decrypt_rsa"
equal "the key when it is there again" "at noon" "$(jq -r .plain_text <<<"$body")"
equal "how often the token was lost" "$lost" "$(grep --count "the pkcs11 token is lost" "$scratch/failing.log")"
ok "a key that is not in the token costs nobody the token"

touch "$scratch/fails/once"
ask decrypt-data "$decrypt_rsa"
equal "decrypt-data over a fault that passes" "at noon" "$(jq -r .plain_text <<<"$body")"
ask create-key '{"key_alias":"sealed"}'
sealed=$(jq -r .key_info.key_id <<<"$body")
touch "$scratch/fails/init"
ask decrypt-data "$decrypt_rsa"
equal "a key that the module does not begin with" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
ask encrypt-data "{\"key_id\":\"$sealed\",\"plain_text\":\"x\"}"
equal "a root key that the module does not begin with" "503 KMS.0104" "$status $(jq -r .error.error_code <<<"$body")"
rm "$scratch/fails/init"
ask decrypt-data "$decrypt_rsa"
equal "decrypt-data" "at noon" "$(jq -r .plain_text <<<"$body")"
ask decrypt-data "{\"key_id\":\"$key\",$how,\"cipher_text\":\"$bad\"}"
equal "a ciphertext that does not open" "400 KMS.0311" "$status $(jq -r .error.error_code <<<"$body")"
ok "a good ciphertext is not refused for a fault of the module"

ask create-key '{"key_alias":"sm2","key_spec":"SM2","key_usage":"ENCRYPT_DECRYPT"}'
sm2=$(jq -r .key_info.key_id <<<"$body")
how='"encryption_algorithm":"SM2_ENCRYPT"'
ask encrypt-data "{\"key_id\":\"$sm2\",$how,\"plain_text\":\"at dusk\"}"
decrypt_sm2="{\"key_id\":\"$sm2\",$how,\"cipher_text\":$(jq .cipher_text <<<"$body")}"
touch "$scratch/fails/hang"
# Asks the token, and fails if it answers.
unanswered() {
  ask decrypt-data "$decrypt_rsa" 2>/dev/null || true
  [[ $status != 200 ]]
}
# Twice as many as there are sessions, and for less time than a request may take.
hanging=()
for _ in $(seq 8); do
  unanswered &
  hanging+=($!)
done
# `all_hang WHEN`
all_hang() {
  local one
  for one in "${hanging[@]}"; do
    kill -0 "$one" 2>/dev/null || fail "a call ended $1, though the token hangs"
  done
}
sleep 1
all_hang "before the decryption in software"
ask decrypt-data "$decrypt_sm2"
equal "decryption in software while the token hangs" "at dusk" "$(jq -r .plain_text <<<"$body")"
all_hang "during the decryption in software"
began=$SECONDS
stop "$server" || fail "kmsgate serve ended with $?"
((SECONDS - began < 15)) || fail "kmsgate serve ended after $((SECONDS - began)) s"
for one in "${hanging[@]}"; do
  wait "$one" || fail "a token that hangs answered"
done
ok "a token that hangs holds up neither what software computes nor the end of the program"
