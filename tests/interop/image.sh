#!/usr/bin/env bash
# The container image: it is small, holds nothing that it need not, and serves. Builds it, and the one for
# hardware modules; runs them with buildah, as root, for nothing else starts containers in a container.
#
#   tests/interop/image.sh
source "$(dirname "$0")/common.sh"
cd "$root"

tests/interop/install
# DL3006: which image the one for hardware modules stands on is the user's to say.
target/deploy-venv/bin/hadolint --ignore DL3006 deploy/Dockerfile
ok "hadolint finds nothing wrong with the Dockerfile"
"$root/deploy/image" >"$scratch/said" || fail "$(<"$scratch/said")"
ok "$(<"$scratch/said")"
archive=target/image/kmsgate.tar program=target/image/static/kmsgate
cp "$program" "$scratch/program"

digest() {
  tar --extract --to-stdout --file "$1" index.json | jq --raw-output '.manifests[0].digest'
}
first=$(digest $archive)
BINARY=$scratch/program deploy/image >/dev/null
equal "the digest of a second image" "$first" "$(digest $archive)"
ok "the packaging is reproducible: the same program gives the same image"

# What is inside.
blob() {
  tar --extract --to-stdout --file $archive "blobs/${1/://}"
}
manifest=$(blob "$first")
config=$(blob "$(jq --raw-output .config.digest <<<"$manifest")")
setting() {
  jq --raw-output ".config.$1" <<<"$config"
}
equal architecture "$(dpkg --print-architecture)" "$(jq --raw-output .architecture <<<"$config")"
equal user 65532:65532 "$(setting User)"
equal ports '8080/tcp 9090/tcp 9100/tcp' "$(setting 'ExposedPorts | keys | join(" ")')"
equal entrypoint /kmsgate "$(setting 'Entrypoint | join(" ")')"
equal signal SIGTERM "$(setting StopSignal)"
label() {
  setting "Labels.\"org.opencontainers.image.$1\""
}
equal title kmsgate "$(label title)"
equal licence 'MIT OR Apache-2.0' "$(label licenses)"
equal version "$("$program" --version)" "kmsgate $(label version)"
contains revision "$(git rev-parse HEAD)" "$(label revision)"
equal created "$(git log -1 --format=%ct)" "$(date --date "$(label created)" +%s)"
ok "its labels say what it is, and it runs as 65532"

equal layers 1 "$(jq '.layers | length' <<<"$manifest")"
blob "$(jq --raw-output '.layers[0].digest' <<<"$manifest")" >"$scratch/layer"
files=$(tar --list --gzip --file "$scratch/layer" | grep -v '/$' | sort | tr '\n' ' ')
equal files 'kmsgate usr/share/doc/kmsgate/LICENSE usr/share/doc/kmsgate/LICENSE-APACHE usr/share/doc/kmsgate/LICENSE-MIT usr/share/doc/kmsgate/kmsgate.cdx.json ' "$files"
size=$(stat -c %s "$program")
((size < 20000000)) || fail "the program has $size bytes"
! readelf --program-headers --dynamic "$program" | grep -E 'INTERP|NEEDED' || fail "the program is not static"
for path in "$root" "${CARGO_HOME:-$HOME/.cargo}"; do
  ! grep --text --quiet --fixed-strings "$path/" "$program" || fail "$path is in the program"
done
ok "it holds one static program of $size bytes that knows no path of this machine, and its papers"

tar --extract --gzip --to-stdout --file "$scratch/layer" usr/share/doc/kmsgate/kmsgate.cdx.json >"$scratch/sbom.json"
target/deploy-venv/bin/python3 - "$scratch/sbom.json" <<'PYTHON' || fail "the SBOM is not CycloneDX 1.5"
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(Path(sys.argv[1]).read_text())
sys.exit(error and str(error))
PYTHON
count=$(jq '.components | length' "$scratch/sbom.json")
for crate in aws-lc-sys libsqlite3-sys mimalloc; do
  equal "$crate in the SBOM" 1 "$(jq "[.components[] | select(.name == \"$crate\")] | length" "$scratch/sbom.json")"
done
equal criterion 0 "$(jq '[.components[] | select(.name == "criterion")] | length' "$scratch/sbom.json")"
ok "its SBOM is CycloneDX 1.5, of $count crates"

# Runs what is in the image: `container NAME` makes a container of an image, and `run_in COMMAND…` runs a
# command in it as the image's user, with the scratch directories as Kubernetes would mount its volumes.
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
storage=(--root "$root/target/image/storage" --runroot "$root/target/image/run")
containers=()
trap 'buildah "${storage[@]}" rm "${containers[@]}" >/dev/null 2>&1; clean_up' EXIT
container() {
  container=$(buildah "${storage[@]}" from --pull-never "localhost/$1")
  containers+=("$container")
}
run_in() {
  buildah "${storage[@]}" run --isolation chroot --volume "$scratch/etc:/etc/kmsgate:ro" \
    --volume "$scratch/var:/var/lib/kmsgate:rw" "$container" -- "$@"
}
# What a short command in it says. Buildah 1.28 now and then ends before it has passed that on.
said_in() {
  local said tries
  for tries in 1 2 3 4 5; do
    said=$(run_in "$@" 2>&1) || break
    [[ -z $said ]] || break
  done
  echo "$said"
}

# What the overlay for one server mounts, with the rights that fsGroup and defaultMode give.
project=53d1aefc533f4ce9a59c26b01667cbcf
mkdir -p "$scratch"/etc/{config,root-key,credentials,tls} "$scratch/var"
kubectl kustomize deploy/kustomize/overlays/single >"$scratch/objects.yaml"
target/deploy-venv/bin/python3 tests/interop/deploy_objects.py configuration "$scratch/objects.yaml" \
  >"$scratch/etc/config/kmsgate.toml"
grpc_port=$(free_port) rest_port=$(free_port) admin_port=$(free_port)
sed -i "s/:9090\"/:$grpc_port\"/; s/:8080\"/:$rest_port\"/; s/:9100\"/:$admin_port\"/; s/lag = \"5s\"/lag = \"1s\"/" \
  "$scratch/etc/config/kmsgate.toml"
(cd "$scratch" && kmsgate=$scratch/program make_files "$project")
mv "$scratch/root.key" "$scratch/etc/root-key"
mv "$scratch/tokens.toml" "$scratch/etc/credentials"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
  -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:localhost -keyout "$scratch/etc/tls/tls.key" -out "$scratch/etc/tls/tls.crt" 2>/dev/null
cp "$scratch/etc/tls/tls.crt" "$scratch/ca.crt"
chown -R root:65532 "$scratch/etc" "$scratch/var"
find "$scratch/etc" -type f -exec chmod 440 {} +
chmod 755 "$scratch"
chmod 2775 "$scratch/var"

version=$(label version)
container "kmsgate:$version"
equal version "kmsgate $version" "$(said_in /kmsgate --version)"
contains "what it says" 'is good' "$(said_in /kmsgate check-config --config /etc/kmsgate/config/kmsgate.toml)"
! run_in /bin/sh -c true 2>/dev/null || fail "there is a shell"
ok "in the image it takes what the overlay mounts, and there is no shell"

run_in /kmsgate serve --config /etc/kmsgate/config/kmsgate.toml >"$scratch/audit" 2>"$scratch/log" </dev/null &
runner=$!
started+=("$runner")
await "http://127.0.0.1:$admin_port/readyz" "$runner" || fail "$(<"$scratch/log")"
# Buildah and its helpers stand one below the other, and last comes what they run.
served=$runner
while child=$(pgrep --parent "$served"); do
  served=$child
done
started+=("$served")
equal "what runs" kmsgate "$(<"/proc/$served/comm")"
equal "its user and group" "65532 65532" "$(awk '/^(Uid|Gid):/ { print $2 }' "/proc/$served/status" | paste -sd ' ')"
equal "its capabilities" 0000000000000000 "$(awk '/^CapEff:/ { print $2 }' "/proc/$served/status")"
tls=(--server "https://localhost:$grpc_port" --ca-file "$scratch/ca.crt")
key=$("$scratch/program" key create orders "${tls[@]}" --token-file "$scratch/operator.token")
post "https://localhost:$rest_port/v1.0/$project/kms" encrypt-data "{\"key_id\":\"$key\",\"plain_text\":\"hello world\"}" \
  --cacert "$scratch/ca.crt" --header "x-auth-token: $(<"$scratch/operator.token")"
equal "status, $body" 200 "$status"
jq --raw-output .cipher_text <<<"$body" >"$scratch/cipher"
equal plaintext 'hello world' "$("$scratch/program" decrypt "${tls[@]}" --token-file "$scratch/operator.token" <"$scratch/cipher")"
kill -TERM "$served"
wait "$runner" || fail "the server ended with $?"
equal "the store's user and rights" '65532 600' "$(stat -c '%u %a' "$scratch/var/keys.db")"
ok "in the image it serves both faces over TLS, and stops when asked to"

# The image for hardware modules, on a base of what a dynamic program needs of this machine.
cargo build --quiet --features pkcs11
base=$(buildah "${storage[@]}" from scratch)
containers+=("$base")
for library in $(ldd target/debug/kmsgate | grep -o '/[^ ]*'); do
  buildah "${storage[@]}" copy --quiet "$base" "$library" "$library" >/dev/null
done
buildah "${storage[@]}" commit --quiet "$base" kmsgate-test-base >/dev/null
BASE=localhost/kmsgate-test-base BINARY=target/debug/kmsgate deploy/image hsm >/dev/null
container "kmsgate-hsm:$version"
equal version "kmsgate $version" "$(said_in /usr/local/bin/kmsgate --version)"
sed '/^root_key_file/d' "$scratch/etc/config/kmsgate.toml" >"$scratch/hsm.toml"
printf '\n[pkcs11]\nmodule = "/no/such.so"\ntoken = "kms"\npin_file = "/etc/kmsgate/pin"\nroot_key = "root"\n' >>"$scratch/hsm.toml"
echo 4321 >"$scratch/etc/pin"
cp "$scratch/hsm.toml" "$scratch/etc/config/hsm.toml"
contains "what it says" /no/such.so "$(said_in /usr/local/bin/kmsgate serve --config /etc/kmsgate/config/hsm.toml)"
ok "the image for hardware modules has a program that looks for one"
