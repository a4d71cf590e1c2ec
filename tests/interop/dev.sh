#!/usr/bin/env bash
# `kmsgate dev` as a newcomer meets it: the lines it says to paste work, and what was encrypted
# outlives the process. Starts servers of its own.
source "$(dirname "$0")/common.sh"

start() {
  start_dev "$scratch/dev" || fail "$(<"$scratch/dev.log")"
  load_env "$scratch/dev/dev.env"
  token=(--header "x-auth-token: $KMSGATE_TOKEN")
}

start
lines=$(sed -n 's/^ *\(\. .* && \)/\1/p' "$scratch/dev.log")
for _ in $(seq 50); do
  [[ -n $lines ]] && break
  sleep 0.1
  lines=$(sed -n 's/^ *\(\. .* && \)/\1/p' "$scratch/dev.log")
done
equal 'number of lines to paste' 2 "$(wc -l <<<"$lines")"
while read -r line; do
  answer=$(env -i PATH="$PATH" bash -c "$line" 2>&1 </dev/null) || fail "$line: $answer"
  equal "key_id of $line" "$KMSGATE_AES_KEY" "$(jq -r .key_id <<<"$answer")"
  cipher_text=$(jq -r .cipher_text <<<"$answer")
done <<<"$lines"
ok "the lines to paste work"

before=$KMSGATE_TOKEN
if second=$(timeout 30 "$kmsgate" dev --data "$scratch/dev" \
  --grpc 127.0.0.1:0 --rest 127.0.0.1:0 --admin 127.0.0.1:0 2>&1 </dev/null); then
  fail "a second server opened the same directory: $second"
fi
post "$rest" decrypt-data "{\"cipher_text\":\"$cipher_text\"}" "${token[@]}"
equal "status, $body" 200 "$status"
ok "one server opens a directory"

kill -KILL "$server"
wait "$server" 2>/dev/null || true
start
equal token "$before" "$KMSGATE_TOKEN"
post "$rest" decrypt-data "{\"cipher_text\":\"$cipher_text\"}" "${token[@]}"
equal answer '200 hello world' "$status $(jq -r .plain_text <<<"$body")"
ok "a ciphertext outlives a server that was killed"

stop "$server" || fail "the server ended with $?"
for file in root.key tokens.toml access-keys.toml dev.env; do
  equal "mode of $file" 600 "$(stat -c %a "$scratch/dev/$file")"
done
equal 'mode of the directory' 700 "$(stat -c %a "$scratch/dev")"
# The token is in dev.env alone, the secret key there and where the server reads it.
equal 'files with the token' dev.env "$(cd "$scratch/dev" && grep -rlF "$KMSGATE_TOKEN" . | sed 's,^\./,,' | sort | paste -sd,)"
equal 'files with the secret key' access-keys.toml,dev.env \
  "$(cd "$scratch/dev" && grep -rlF "$KMSGATE_SK" . | sed 's,^\./,,' | sort | paste -sd,)"
! grep -qF -e "$KMSGATE_TOKEN" -e "$KMSGATE_SK" "$scratch/dev.log" || fail "a credential is in the log"
ok "credentials are where only their owner reads them"
