#!/usr/bin/env bash
# TLS and client certificates with OpenSSL's certificates, curl and grpcurl, and Envoy as the sidecar
# that ends TLS. Starts its servers.
source "$(dirname "$0")/common.sh"

cd "$scratch"
project=53d1aefc533f4ce9a59c26b01667cbcf
spiffe=spiffe://cluster.local/ns/shop/sa/billing

# A certificate of the CA and its key: `issue NAME USAGE SUBJECT-ALTERNATIVE-NAME`.
issue() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -subj "/CN=$1" \
    -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -out "$1.crt" 2>/dev/null \
    -extfile <(printf 'extendedKeyUsage=%s\nsubjectAltName=%s\n' "$2" "$3")
}
umask 077
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 1 -subj /CN=ca 2>/dev/null \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
issue server serverAuth DNS:localhost,IP:127.0.0.1
issue billing clientAuth "URI:$spiffe"
issue stranger clientAuth URI:spiffe://cluster.local/ns/other/sa/stranger

make_files "$project"
rules="
[[auth.mtls]]
identity = \"$spiffe\"
project = \"$project\"
actions = [\"kms:cmk:encryptData\", \"kms:cmk:decryptData\"]"

serve tls "
[tls]
certificate_file = \"server.crt\"
private_key_file = \"server.key\"
client_ca_file = \"ca.crt\"
$rules"
server_tls=(--server "https://localhost:$grpc_port" --ca-file ca.crt)
key=$("$kmsgate" key create orders "${server_tls[@]}" --token-file operator.token)
ok "a command asks over TLS"

request="{\"key_id\":\"$key\",\"plain_text\":\"hello world\"}"
kms=https://localhost:$rest_port/v1.0/$project/kms
for version in --tlsv1.2\ --tls-max\ 1.2 --tlsv1.3; do
  # shellcheck disable=SC2086
  post "$kms" encrypt-data "$request" --cacert ca.crt --cert billing.crt --key billing.key $version
  equal "status, $body" 200 "$status"
done
ok "curl is let in by its certificate, with TLS 1.2 and 1.3"
post "$kms" list-keys '{}' --http1.1 --cacert ca.crt --cert billing.crt --key billing.key
equal answer '403 KMS.0306' "$status $(jq -r .error.error_code <<<"$body")"
for who in stranger ''; do
  post "$kms" encrypt-data "$request" --http1.1 --cacert ca.crt ${who:+--cert $who.crt --key $who.key}
  equal answer '401 APIGW.0301' "$status $(jq -r .error.error_code <<<"$body")"
done
post "$kms" encrypt-data "$request" --http1.1 --cacert ca.crt --cert billing.crt --key billing.key -H 'x-auth-token: no-such'
equal answer '403 KMS.0302' "$status $(jq -r .error.error_code <<<"$body")"
ok "and is refused what its rule does not give, without a rule, and with a bad token"
code=0
curl --silent --max-time 20 --output /dev/null --data-binary "$request" "$kms/encrypt-data" || code=$?
equal "curl's exit code (60: the peer's certificate cannot be authenticated)" 60 "$code"
ok "curl does not take a server whose CA it does not know"

answer=$(grpcurl -cacert ca.crt -cert billing.crt -key billing.key -d "$request" "localhost:$grpc_port" \
  kmsgate.v1.CryptoService/EncryptData)
equal key_id "$key" "$(jq -r .key_id <<<"$answer")"
code=0
answer=$(grpcurl -cacert ca.crt -cert stranger.crt -key stranger.key -d "$request" "localhost:$grpc_port" \
  kmsgate.v1.CryptoService/EncryptData 2>&1) || code=$?
equal "exit code, $answer" $((64 + 16)) "$code"
ok "grpcurl too"
protocols=$(openssl s_client -connect "localhost:$grpc_port" -CAfile ca.crt -alpn h2 -groups X25519MLKEM768:X25519 </dev/null 2>&1 || true)
if [[ $protocols == *'Call to SSL_CONF_cmd'* ]]; then # An OpenSSL that does not know the group.
  protocols=$(openssl s_client -connect "localhost:$grpc_port" -CAfile ca.crt -alpn h2 </dev/null 2>&1 || true)
fi
contains s_client 'ALPN protocol: h2' "$protocols"
contains s_client 'Verify return code: 0 (ok)' "$protocols"
# What a client says that is let offer any version; the last is the one that is taken.
offered() {
  openssl s_client -connect "localhost:$grpc_port" -CAfile ca.crt "$1" -cipher ALL:@SECLEVEL=0 </dev/null 2>&1 || true
}
for old in -tls1 -tls1_1; do
  seen=$(offered "$old")
  contains "$old" 'Cipher is (NONE)' "$seen"
  # The server must have said so, since OpenSSL itself may be told to offer nothing so old. 70 is protocol_version; 40 is
  # handshake_failure, for a client so old does not say which signatures it knows.
  [[ $seen =~ 'SSL alert number '(40|70) ]] || fail "$old: no alert of the server in: $seen"
done
contains -tls1_2 'New, TLSv1.2, Cipher is ' "$(offered -tls1_2)"
ok "OpenSSL agrees on h2, and gets no older version than 1.2"
stop "$server" || fail "the server ended with $?"

serve sidecar "
[auth.forwarded]
peers = [\"loopback\"]
$rules"
kms=http://127.0.0.1:$rest_port/v1.0/$project/kms
envoy=$(free_port)
cat >envoy.yaml <<YAML
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: $envoy}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates:
            - certificate_chain: {filename: $scratch/server.crt}
              private_key: {filename: $scratch/server.key}
            validation_context:
              trusted_ca: {filename: $scratch/ca.crt}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: kmsgate
          forward_client_cert_details: SANITIZE_SET
          set_current_client_cert_details: {subject: true, uri: true, dns: true}
          route_config:
            virtual_hosts:
            - name: kmsgate
              domains: ["*"]
              routes:
              - match: {prefix: /kmsgate.v1.}
                route: {cluster: grpc}
              - match: {prefix: /}
                route: {cluster: rest}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: grpc
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: &loopback
      cluster_name: grpc
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $grpc_port}}}
  - name: rest
    load_assignment:
      cluster_name: rest
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $rest_port}}}
YAML
sed -i 's/ &loopback//' envoy.yaml
"$root/target/interop-venv/bin/envoy" -c envoy.yaml --disable-hot-restart --concurrency 1 --log-level warn >envoy.log 2>&1 </dev/null &
sidecar=$!
started+=("$sidecar")
through=https://localhost:$envoy/v1.0/$project/kms
for _ in $(seq 100); do
  post "$through" encrypt-data "$request" --cacert ca.crt --cert billing.crt --key billing.key 2>/dev/null || true
  [[ $status == 000 ]] || break
  kill -0 "$sidecar" 2>/dev/null || fail "$(tail -n 20 envoy.log)"
  sleep 0.1
done
equal "status, $body, $(tail -n 5 envoy.log)" 200 "$status"
post "$through" encrypt-data "$request" --http1.1 --cacert ca.crt --cert stranger.crt --key stranger.key \
  --header "x-forwarded-client-cert: URI=$spiffe"
equal answer '401 APIGW.0301' "$status $(jq -r .error.error_code <<<"$body")"
answer=$(grpcurl -cacert ca.crt -cert billing.crt -key billing.key -d "$request" \
  -import-path "$root/proto" -proto kmsgate/v1/crypto.proto "localhost:$envoy" kmsgate.v1.CryptoService/EncryptData)
equal key_id "$key" "$(jq -r .key_id <<<"$answer")"
ok "behind Envoy a caller is who its certificate says, and not who it says"
kill -TERM "$sidecar"
stop "$server" || fail "the server ended with $?"
