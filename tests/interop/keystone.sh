#!/usr/bin/env bash
# IAM tokens of a real Keystone: valid, expired, revoked, of another project, unscoped, garbage, and
# with Keystone stopped and back. Starts its servers.
source "$(dirname "$0")/common.sh"

cd "$scratch"
umask 077
port=$(free_port)
identity=http://127.0.0.1:$port
# Tokens that live for so few seconds also show that kmsgate renews its own.
lifetime=40
mkdir keystone
cat >keystone/keystone.conf <<CONF
[DEFAULT]
log_file = $scratch/keystone.log
[database]
connection = sqlite:///$scratch/keystone/keystone.db
[token]
provider = fernet
expiration = $lifetime
allow_expired_window = 0
[fernet_tokens]
key_repository = $scratch/keystone/fernet
[fernet_receipts]
key_repository = $scratch/keystone/receipts
[credential]
key_repository = $scratch/keystone/credential
[cache]
enabled = false
CONF
manage() {
  # Its last words are a harmless trace.
  keystone-manage --config-file keystone/keystone.conf "$@" >>manage.log 2>&1 || fail "$(tail -n 20 manage.log)"
}
manage db_sync
# Keystone writes on one connection while it reads on another, which SQLite allows with a log alone.
python3 -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("pragma journal_mode = wal")' keystone/keystone.db
manage fernet_setup --keystone-user "$(id -un)" --keystone-group "$(id -gn)"
manage credential_setup --keystone-user "$(id -un)" --keystone-group "$(id -gn)"
manage bootstrap --bootstrap-password admin-secret --bootstrap-admin-url "$identity/v3/" \
  --bootstrap-internal-url "$identity/v3/" --bootstrap-public-url "$identity/v3/" --bootstrap-region-id here

# Starts Keystone and waits until it answers. Sets `keystone`.
start_keystone() {
  OS_KEYSTONE_CONFIG_FILES=$scratch/keystone/keystone.conf OS_KEYSTONE_CONFIG_DIR=$scratch/keystone \
    keystone-wsgi-public --host 127.0.0.1 --port "$port" >>wsgi.log 2>&1 </dev/null &
  keystone=$!
  started+=("$keystone")
  for _ in $(seq 600); do
    [[ $(curl --silent --max-time 5 "$identity/v3" || true) == *'"version"'* ]] && return
    kill -0 "$keystone" 2>/dev/null || break
    sleep 0.1
  done
  fail "Keystone does not answer: $(tail -n 20 wsgi.log)"
}
start_keystone

# A token: `login USER PASSWORD [PROJECT]`.
login() {
  local scope='' headers
  [[ -z ${3-} ]] || scope=", \"scope\": {\"project\": {\"name\": \"$3\", \"domain\": {\"id\": \"default\"}}}"
  headers=$(curl --silent --show-error --max-time 20 --output "$scratch/login" --dump-header - "$identity/v3/auth/tokens" \
    --header 'content-type: application/json' --data "{\"auth\": {\"identity\": {\"methods\": [\"password\"],
      \"password\": {\"user\": {\"name\": \"$1\", \"domain\": {\"id\": \"default\"}, \"password\": \"$2\"}}}$scope}}")
  sed -n 's/^x-subject-token: *//Ip' <<<"$headers" | tr -d '\r'
}
# Makes something and prints its id: `make KINDS KIND JSON`.
make() {
  curl --silent --show-error --max-time 20 "$identity/v3/$1" --header "x-auth-token: $admin" \
    --header 'content-type: application/json' --data "{\"$2\": $3}" | jq -r ".$2.id"
}
# Gives a user a role for a project, by their ids: `grant USER ROLE PROJECT`.
grant() {
  curl --silent --show-error --fail --max-time 20 --request PUT --header "x-auth-token: $admin" \
    "$identity/v3/projects/$3/users/$1/roles/$2"
}
admin=$(login admin admin-secret admin)
shop=$(make projects project '{"name": "shop"}')
other=$(make projects project '{"name": "other"}')
service=$(make projects project '{"name": "service"}')
role=$(make roles role '{"name": "kms_user"}')
admin_role=$(curl --silent --header "x-auth-token: $admin" "$identity/v3/roles?name=admin" | jq -r '.roles[0].id')
alice=$(make users user '{"name": "alice", "password": "alice-secret"}')
gate=$(make users user '{"name": "kmsgate", "password": "gate-secret"}')
grant "$alice" "$role" "$shop"
grant "$alice" "$role" "$other"
grant "$gate" "$admin_role" "$service"

make_files "$shop"
printf 'user = "kmsgate"\npassword = "gate-secret"\nproject = "service"\n' >iam.toml
serve server "
[auth.iam]
endpoint = \"$identity\"
credential_file = \"iam.toml\"
cache_time = \"10s\"
[[auth.iam.rules]]
role = \"kms_user\"
actions = [\"kms:cmk:encryptData\", \"kms:cmk:decryptData\"]"
kms=http://127.0.0.1:$rest_port/v1.0
key=$("$kmsgate" key create orders --server "http://127.0.0.1:$grpc_port" --token-file operator.token)
request="{\"key_id\":\"$key\",\"plain_text\":\"hello world\"}"
ok "a token in the file goes on as before"

# `expect WHAT STATUS-AND-CODE TOKEN [PROJECT]`
expect() {
  post "$kms/${4-$shop}/kms" encrypt-data "$request" --header "x-auth-token: $3"
  equal "$1, $body" "$2" "$status$(jq -r '.error.error_code // empty | " " + .' <<<"$body")"
  local answer code=0
  answer=$(grpcurl -plaintext -H "x-auth-token: $3" -d "{\"project_id\":\"${4-$shop}\",${request#\{}" "127.0.0.1:$grpc_port" \
    kmsgate.v1.CryptoService/EncryptData 2>&1) || code=$?
  if [[ $2 == 200 ]]; then
    equal "$1, over gRPC, $answer" 0 "$code"
  else
    contains "$1, over gRPC" "${2#* }" "$answer"
  fi
}
# Asks with a token until Keystone has answered for it, for 20 s at most: `until_answered TOKEN`.
until_answered() {
  for _ in $(seq 200); do
    post "$kms/$shop/kms" encrypt-data "$request" --header "x-auth-token: $1"
    [[ $status == 503 ]] || break
    sleep 0.1
  done
}
token=$(login alice alice-secret shop)
issued=$SECONDS
expect 'a valid token' 200 "$token"
answer=$(grpcurl -plaintext -H "authorization: Bearer $token" -d "$request" "127.0.0.1:$grpc_port" kmsgate.v1.CryptoService/EncryptData)
equal key_id "$key" "$(jq -r .key_id <<<"$answer")"
post "$kms/$shop/kms" list-keys '{}' --header "x-auth-token: $token"
equal 'what no rule gives' '403 KMS.0306' "$status $(jq -r .error.error_code <<<"$body")"
post "$kms/$shop/kms" describe-key "{\"key_id\":\"$key\"}" --header "x-auth-token: $token"
contains audit "\"caller\":\"iam:$alice\"" "$(<server.audit)"
ok "a token of Keystone is its user, with what its role may, on both faces"

expect 'a token of another project' '403 KMS.0321' "$(login alice alice-secret other)"
expect 'an unscoped token' '403 KMS.0302' "$(login alice alice-secret)"
expect 'garbage' '403 KMS.0302' "gAAAAABgarbage"
expect 'a token that was changed' '403 KMS.0302' "${token%??}AA"
ok "another project's, an unscoped and a made-up token are refused"

revoked=$(login alice alice-secret shop)
expect 'before it was taken back' 200 "$revoked"
curl --silent --show-error --fail --request DELETE --header "x-auth-token: $revoked" \
  --header "x-subject-token: $revoked" "$identity/v3/auth/tokens"
expect 'right after it was taken back' 200 "$revoked"
sleep 10
expect 'after it was taken back' '403 KMS.0302' "$revoked"
ok "a token that was taken back works for cache_time and no longer"

# The service's own token has been renewed by now: its time was over after four fifths.
while ((SECONDS - issued < lifetime + 1)); do sleep 0.5; done
post "$kms/$shop/kms" encrypt-data "$request" --header "x-auth-token: $token"
[[ "$status $(jq -r .error.error_code <<<"$body")" =~ ^403\ KMS\.030[23]$ ]] || fail "an expired token: $status $body"
known=$(login alice alice-secret shop)
unknown=$(login alice alice-secret shop)
late=$(login alice alice-secret shop)
expect 'a token after the own one was renewed' 200 "$known"
ok "an expired token is refused, and the own token is renewed"

kill -STOP "$keystone"
expect 'somebody known, while Keystone hangs' 200 "$known"
expect 'somebody new, while Keystone hangs' '503 APIGW.0613' "$late"
kill -CONT "$keystone"
until_answered "$known"
expect 'somebody known, when Keystone goes on' 200 "$known"
kill -KILL "$keystone"
wait "$keystone" 2>/dev/null || true
expect 'somebody known, without Keystone' 200 "$known"
expect 'somebody new, without Keystone' '503 APIGW.0613' "$unknown"
unanswered=$(curl --silent "http://127.0.0.1:$admin_port/metrics" | sed -n 's/^kmsgate_iam_failed_requests_total //p')
((unanswered > 0)) || fail "kmsgate_iam_failed_requests_total is '$unanswered'"
start_keystone
until_answered "$unknown"
equal "somebody new, when Keystone is back, $body" 200 "$status"
ok "without Keystone who is known goes on, who is not gets 503 APIGW.0613, and it is found again"
stop "$server" || fail "the server ended with $?"
