#!/usr/bin/env bash
# Two servers over one etcd, which asks for a certificate and a password; and the battery of the stores
# over it. Starts its servers.
source "$(dirname "$0")/common.sh"

cd "$scratch"
umask 077
project=53d1aefc533f4ce9a59c26b01667cbcf
make_files "$project"

# A certificate of the CA and its key: `issue NAME USAGE`.
issue() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -subj "/CN=$1" \
    -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -out "$1.crt" 2>/dev/null \
    -extfile <(printf 'extendedKeyUsage=%s\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n' "$2")
}
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 1 -subj /CN=ca 2>/dev/null \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
issue etcd serverAuth,clientAuth
issue client clientAuth

client_port=$(free_port) peer_port=$(free_port)
# Starts etcd and waits until it is healthy: `start_etcd NAME MORE…`. Sets `etcd`, its process.
start_etcd() {
  local name=$1
  shift
  etcd --name "$name" --data-dir "$scratch/$name" --log-outputs "$scratch/$name.log" --logger zap \
    --listen-peer-urls "http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" \
    --initial-cluster "$name=http://127.0.0.1:$peer_port" --max-txn-ops 1024 "$@" >"$name.out" 2>&1 </dev/null &
  etcd=$!
  started+=("$etcd")
  for _ in $(seq 200); do
    etcdctl "${ask[@]}" endpoint health >/dev/null 2>&1 && return
    kill -0 "$etcd" 2>/dev/null || break
    sleep 0.1
  done
  fail "etcd is not healthy: $(tail -n 20 "$name.out")"
}
# Ends etcd as a crash does.
crash_etcd() {
  kill -KILL "$etcd"
  wait "$etcd" 2>/dev/null || true
}
export ETCDCTL_API=3

ask=(--endpoints "http://127.0.0.1:$client_port")
start_etcd plain --listen-client-urls "http://127.0.0.1:$client_port" --advertise-client-urls "http://127.0.0.1:$client_port"
(cd "$root" && ETCD_ENDPOINTS=http://127.0.0.1:$client_port cargo test --quiet --test stores -- --ignored etcd >"$scratch/battery.log" 2>&1) ||
  fail "the battery: $(tail -n 40 battery.log)"
contains result '0 failed' "$(<battery.log)"
ok "the battery of the stores passes over etcd: $(grep -o '[0-9]* passed' battery.log)"

plain=etcd:http://127.0.0.1:$client_port
here=(--token-file operator.token)
token=(-H "x-auth-token: $(<operator.token)")
# What `sealed` is decrypts at a REST port: `decrypts PORT PLAINTEXT [WHEN]`.
decrypts() {
  post "http://127.0.0.1:$1/v1.0/$project/kms" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
  equal "answer ${3-} $body" "$2" "$(jq -r .plain_text <<<"$body")"
}
serve file ''
moved=$("$kmsgate" key create moved --server "http://127.0.0.1:$grpc_port" "${here[@]}")
post "http://127.0.0.1:$rest_port/v1.0/$project/kms" encrypt-data "{\"key_id\":\"$moved\",\"plain_text\":\"on the way\"}" "${token[@]}"
sealed=$(jq -r .cipher_text <<<"$body")
stop "$server"
"$kmsgate" store copy --config file.toml --from sqlite:keys.db --to "$plain" >made 2>&1 || fail "$(<made)"
store="{ kind = \"etcd\", endpoints = [\"${plain#etcd:}\"] }" serve cluster ''
decrypts "$rest_port" 'on the way'
"$kmsgate" key rotate "$moved" --server "http://127.0.0.1:$grpc_port" "${here[@]}" >made
stop "$server"
"$kmsgate" store copy --config cluster.toml --from config --to sqlite:back.db >made 2>&1 || fail "$(<made)"
store='{ kind = "sqlite", path = "back.db" }' serve back ''
decrypts "$rest_port" 'on the way'
stop "$server"
contains check 'the store is good: keys 1, versions of them 2' "$("$kmsgate" store check --config back.toml)"
ok "a store moves from a file to etcd and back"

# A root key is replaced as deploy/README.md says, with two servers that serve all the time.
store="{ kind = \"etcd\", endpoints = [\"${plain#etcd:}\"], prefix = \"rotated/\" }"
"$kmsgate" root-key new new.key >made
# Starts a server anew with these root keys: `again NAME SEALING PREVIOUS…`. Sets `ports[NAME]`, what it serves at.
declare -A servers=() ports=()
again() {
  local name=$1 sealing=$2 previous
  shift 2
  previous=$(printf '"%s",' "$@")
  [[ -z ${servers[$name]-} ]] || stop "${servers[$name]}"
  (($#)) || previous=
  root_keys="root_key_file = \"$sealing\"
previous_root_key_files = [${previous%,}]" serve "$name" ''
  servers[$name]=$server
  ports[$name]="$grpc_port $rest_port"
}
# What was encrypted decrypts on both: `both WHEN`.
both() {
  local name
  for name in left right; do
    decrypts "${ports[$name]#* }" held "$1, $name"
  done
}
again left root.key new.key
again right root.key new.key
held=$("$kmsgate" key create held --server "http://127.0.0.1:${ports[left]% *}" "${here[@]}")
post "http://127.0.0.1:${ports[right]#* }/v1.0/$project/kms" encrypt-data "{\"key_id\":\"$held\",\"plain_text\":\"held\"}" "${token[@]}"
sealed=$(jq -r .cipher_text <<<"$body")
again left new.key root.key
both 'while they seal under different keys'
again right new.key root.key
"$kmsgate" root-key rotate --server "http://127.0.0.1:${ports[right]% *}" "${here[@]}" >made 2>&1 || fail "$(<made)"
contains rotation 'every record is under the first root key' "$(<made)"
both 'after the rotation'
again left new.key
again right new.key
both 'without the old key'
stop "${servers[left]}"
stop "${servers[right]}"
# What is copied is opened, here with the new key alone.
"$kmsgate" store copy --config left.toml --from config --to sqlite:rotated.db >made 2>&1 || fail "$(<made)"
unset store
ok "a root key is replaced on two servers, one after the other"
stop "$etcd" || true

client_port=$(free_port) peer_port=$(free_port)
tls=(--listen-client-urls "https://127.0.0.1:$client_port" --advertise-client-urls "https://localhost:$client_port"
  --cert-file etcd.crt --key-file etcd.key --client-cert-auth --trusted-ca-file ca.crt)
ask=(--endpoints "https://localhost:$client_port" --cacert ca.crt --cert etcd.crt --key etcd.key)
start_etcd secure "${tls[@]}"
etcdctl "${ask[@]}" user add root:root-secret >made
etcdctl "${ask[@]}" user grant-role root root >made 2>&1 || { etcdctl "${ask[@]}" role add root >made && etcdctl "${ask[@]}" user grant-role root root >made; }
etcdctl "${ask[@]}" role add kmsgate >made
etcdctl "${ask[@]}" role grant-permission kmsgate --prefix=true readwrite kms/ >made
etcdctl "${ask[@]}" user add kmsgate:wrong-at-first >made
etcdctl "${ask[@]}" user grant-role kmsgate kmsgate >made
etcdctl "${ask[@]}" auth enable >made
ask+=(--user root:root-secret)
printf 'not-that\n' >password
# This page holds a store's settings in one line, so an inline table has them.
store="{ kind = \"etcd\", endpoints = [\"https://localhost:$client_port\"], prefix = \"kms/\", ca_file = \"ca.crt\",
  certificate_file = \"client.crt\", private_key_file = \"client.key\", user = \"kmsgate\", password_file = \"password\" }"
store=$(tr -d '\n' <<<"$store")

(
  sleep 2
  etcdctl "${ask[@]}" user passwd kmsgate --interactive=false <<<right >/dev/null
  printf 'right\n' >password.new
  mv password.new password
) &
serve one ''
ok "a server waits for a password that is taken, and reads it again when it changes"
contains log 'waiting for the key store' "$(<one.log)"
one=$server one_admin=$admin_port one_grpc=$grpc_port one_rest=http://127.0.0.1:$rest_port/v1.0/$project/kms
serve two ''
two_admin=$admin_port two_grpc=$grpc_port two_rest=http://127.0.0.1:$rest_port/v1.0/$project/kms
key=$("$kmsgate" key create orders --server "http://127.0.0.1:$one_grpc" "${here[@]}")
post "$one_rest" encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"hello world\"}" "${token[@]}"
equal "status, $body" 200 "$status"
sealed=$(jq -r .cipher_text <<<"$body")
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "answer $body" 'hello world' "$(jq -r .plain_text <<<"$body")"
ok "what one server encrypts the other decrypts, at once"
names=$(etcdctl "${ask[@]}" get --prefix --keys-only '')
contains names "kms/key/$project/$key" "$names"
equal 'others'\'' names' '' "$(grep -v '^kms/' <<<"$names" | tr -d '\n')"
ok "records stay under the prefix"

# The file has the next password before etcd takes it, for longer than a server may serve without etcd.
serving() {
  for _ in {1..12}; do
    sleep 0.5
    post "$one_rest" encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"hello\"}" "${token[@]}"
    equal "status $1, $body" 200 "$status"
  done
}
printf 'next\n' >password.new
mv password.new password
serving 'while etcd takes the old password'
etcdctl "${ask[@]}" user passwd kmsgate --interactive=false <<<next >/dev/null
serving 'when etcd takes the new password'
ok "a password is replaced in the file and then in etcd, while serving"

"$kmsgate" key disable "$key" --server "http://127.0.0.1:$one_grpc" "${here[@]}" >made
sleep 1
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal answer '400 KMS.0209' "$status $(jq -r .error.error_code <<<"$body")"
"$kmsgate" key enable "$key" --server "http://127.0.0.1:$one_grpc" "${here[@]}" >made
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "status at once, $body" 200 "$status"
"$kmsgate" key rotate "$key" --server "http://127.0.0.1:$one_grpc" "${here[@]}" >made
post "$one_rest" encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"again\"}" "${token[@]}"
sealed=$(jq -r .cipher_text <<<"$body")
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "a version that the other made just now, $body" 200 "$status"
ok "a disabled key stops on the other server; an enabled key and a new version work there at once"

crash_etcd
sleep 3.2
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "without etcd, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
code=0
answer=$(grpcurl -plaintext "${token[@]}" -d "{\"cipher_text\":\"$sealed\"}" "127.0.0.1:$two_grpc" \
  kmsgate.v1.CryptoService/DecryptData 2>&1) || code=$?
equal "exit code, $answer" $((64 + 14)) "$code"
contains answer RetryInfo "$answer"
contains metrics 'kmsgate_store_unavailable 1' "$(curl --silent "http://127.0.0.1:$two_admin/metrics")"
# The log is told within a second of it.
for _ in $(seq 20); do
  grep --quiet 'data calls are refused' two.log && break
  sleep 0.1
done
contains log 'data calls are refused' "$(<two.log)"
ok "without etcd data calls are refused after three seconds, with a time to try again"
for _ in $(seq 100); do
  ready=$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$one_admin/readyz")
  [[ $ready == 503 ]] && break
  sleep 0.1
done
equal readiness 503 "$ready"
equal liveness ok "$(curl --silent "http://127.0.0.1:$one_admin/livez")"
health=$(grpcurl -plaintext "127.0.0.1:$one_grpc" grpc.health.v1.Health/Check || true)
sleep 1.1
health=$(grpcurl -plaintext "127.0.0.1:$one_grpc" grpc.health.v1.Health/Check)
equal health NOT_SERVING "$(jq -r .status <<<"$health")"
ok "and after ten the server is not ready, but lives"

start_etcd secure "${tls[@]}"
until_200 50 post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "with etcd back, $body" 200 "$status"
await "http://127.0.0.1:$one_admin/readyz" "$one"
ok "with etcd back they serve again"

# A store that loses everything while it is served, such as one whose members come back without their disks.
etcdctl "${ask[@]}" del --prefix kms/ >made
sleep 2
post "$two_rest" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "a decryption over an emptied store, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
post "$two_rest" create-key '{"key_alias":"orders"}' "${token[@]}"
equal "a new key, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
for name in describe-key disable-key; do
  post "$two_rest" "$name" "{\"key_id\":\"$key\"}" "${token[@]}"
  equal "$name, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
done
post "$two_rest" list-keys '{}' "${token[@]}"
equal "list-keys, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
contains log 'the store was emptied, or is another' "$(<two.log)"
names=$(etcdctl "${ask[@]}" get --prefix --keys-only kms/)
equal 'what is in the store' '' "$(tr -d '\n' <<<"$names")"
ok "a store that was emptied is neither served nor written to"

stop "$one"
stop "$server"
ok "both servers stop when asked to"
serve one ''
post "http://127.0.0.1:$rest_port/v1.0/$project/kms" create-key '{"key_alias":"orders"}' "${token[@]}"
equal "a new key after a restart, $body" 200 "$status"
stop "$server"
ok "until a server is started over it"

# Members that come back without their disks, and are then restored from a snapshot: each time another cluster.
client_port=$(free_port) peer_port=$(free_port)
ask=(--endpoints "http://127.0.0.1:$client_port")
plain=(--listen-client-urls "http://127.0.0.1:$client_port" --advertise-client-urls "http://127.0.0.1:$client_port")
start_etcd first "${plain[@]}"
store="{ kind = \"etcd\", endpoints = [\"http://127.0.0.1:$client_port\"] }" serve three ''
key=$("$kmsgate" key create orders --server "http://127.0.0.1:$grpc_port" "${here[@]}")
post "http://127.0.0.1:$rest_port/v1.0/$project/kms" encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"restored\"}" "${token[@]}"
sealed=$(jq -r .cipher_text <<<"$body")
etcdctl "${ask[@]}" snapshot save snapshot >made 2>&1
crash_etcd
start_etcd second --initial-cluster-token second "${plain[@]}"
for _ in $(seq 100); do
  grep --quiet 'the store was emptied' three.log && break
  sleep 0.1
done
contains log 'the store was emptied' "$(<three.log)"
post "http://127.0.0.1:$rest_port/v1.0/$project/kms" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "over a blank cluster, $body" '503 KMS.0104' "$status $(jq -r .error.error_code <<<"$body")"
crash_etcd
etcdctl snapshot restore snapshot --name third --data-dir third --initial-cluster-token third \
  --initial-cluster "third=http://127.0.0.1:$peer_port" --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" >made 2>&1
start_etcd third "${plain[@]}"
until_200 100 post "http://127.0.0.1:$rest_port/v1.0/$project/kms" decrypt-data "{\"cipher_text\":\"$sealed\"}" "${token[@]}"
equal "over the restored cluster, $body" restored "$(jq -r .plain_text <<<"$body")"
stop "$server"
ok "a cluster that lost everything is not served, and is served again once it is restored"
