#!/usr/bin/env bash
# deploy/: the chart and the overlays render the same objects, Kubernetes and its extensions take them, and
# kmsgate takes their configuration. Needs no server and no cluster.
source "$(dirname "$0")/common.sh"

export PATH="$root/target/deploy-venv/bin:$PATH"
objects=$root/tests/interop/deploy_objects.py
kustomize=$root/deploy/kustomize chart=$root/deploy/helm/kmsgate
overlays=(single cluster istio linkerd)
command -v kubectl >/dev/null || fail "kubectl 1.21 or newer is not there"
cd "$scratch"
mkdir bin kustomize helm secrets
ln -s "$(realpath "$kmsgate")" bin/kmsgate
PATH=$scratch/bin:$PATH
ln -s "$root/deploy" deploy

# Does what a page has one do: `follow PAGE SECTION PART`, save that no cluster is told of it.
follow() {
  python3 "$objects" block "$root/$1" "$2" "$3" >block.sh
  followed="$1, $3"
  exec 3>&2
  trap 'fail "$followed: $(<"$scratch/said")" 2>&3' ERR
  set -E
  # shellcheck disable=SC1091
  source ./block.sh >"$scratch/said" 2>&1
  set +E
  trap - ERR
}
made=0
kubectl() {
  case $* in
  *--dry-run*) command kubectl "$@" ;;
  *create*)
    made=$((made + 1))
    command kubectl "$@" --dry-run=client --output yaml >"$scratch/secrets/$made.yaml"
    ;;
  *replace*) cat >"$scratch/secrets/$made-replaced.yaml" ;;
  apply*) command kubectl kustomize "$3" >"$scratch/applied.yaml" ;;
  esac
}
helm() {
  python3 "$objects" render "$3" "${*: -1}" >"$scratch/installed.yaml"
}

follow README.md 'Run it on Kubernetes' 'kubectl create namespace'
equal "objects that the README makes" 4 "$made"
for host in kmsgate kmsgate-headless; do
  said=$(openssl x509 -in kmsgate-secrets/tls.crt -noout -checkhost "$host.kmsgate.svc")
  contains "the README's certificate" "does match" "$said"
done
follow README.md 'Run it on Kubernetes' 'kubectl apply'
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
contains objects "image: registry.example.com/kmsgate:$version" "$(<applied.yaml)"
ok "what the README says makes the Secrets, and names an image of this version"

# Renders an example with kustomize and Helm: `example NAME OVERLAY COMPONENT…`. The first is the README's
# directory with another overlay and more components, and NAME.toml if that is there; the second has
# NAME.values.yaml.
example() {
  local name=$1 overlay=$2 component
  mkdir "$name"
  sed "s:overlays/single:overlays/$overlay:" kms/kustomization.yaml >"$name/kustomization.yaml"
  [[ ! -e $name.toml ]] || cp "$name.toml" "$name/kmsgate.toml"
  if (($# > 2)); then
    echo 'components:'
    for component in "${@:3}"; do
      echo "  - ../deploy/kustomize/components/$component"
    done
  fi >>"$name/kustomization.yaml"
  echo 'image: { repository: registry.example.com/kmsgate }' >>"$name.values.yaml"
  command kubectl kustomize "$name" >"kustomize/$name.yaml"
  python3 "$objects" render "$chart" "$chart/examples/$overlay.yaml" "$name.values.yaml" >"helm/$name.yaml"
}

# Each overlay, and each with the components that fit it.
for overlay in "${overlays[@]}"; do
  command kubectl kustomize "$kustomize/overlays/$overlay" >"kustomize/$overlay.yaml"
  python3 "$objects" render "$chart" "$chart/examples/$overlay.yaml" >"helm/$overlay.yaml"

  more=(monitoring)
  echo 'monitoring: { enabled: true }' >"$overlay-more.values.yaml"
  case $overlay in single | cluster)
    more+=(cert-manager gateway)
    echo 'tls: { certManager: { enabled: true } }' >>"$overlay-more.values.yaml"
    echo 'gateway: { enabled: true }' >>"$overlay-more.values.yaml"
    ;;
  esac
  example "$overlay-more" "$overlay" "${more[@]}"
done
contains "the chart's objects" "image: kmsgate:$version" "$(<helm/single.yaml)"

# What takes a configuration of one's own: the root key is replaced, clients have a CA of their own, the root
# key is in a hardware module, callers have tokens of their service accounts.
follow deploy/README.md Kubernetes 'configMapGenerator'
same=$(python3 "$objects" compare applied.yaml <(sed 's:image\: kmsgate:image\: registry.example.com/kmsgate:' helm/single.yaml)) ||
  fail "$same"
python3 "$objects" block "$root/deploy/README.md" Kubernetes podSecurityContext >openshift.values.yaml
cp kms/kmsgate.toml openshift.toml
example openshift single openshift

sed 's:^root_key_file.*:root_key_file = "/etc/kmsgate/root-key/new.key"\nprevious_root_key_files = ["/etc/kmsgate/root-key/root.key"]:
  s:^\[tls\]:[tls]\nclient_ca_file = "/etc/kmsgate/client-ca/ca.crt"\nclient_certificates = "required":' kms/kmsgate.toml >keys.toml
cat >keys.values.yaml <<'EOF'
rootKey: { file: new.key, previous: [root.key] }
tls: { clientCertificates: required, clientCa: { secretName: kmsgate-client-ca } }
EOF
example keys single client-ca

python3 "$objects" block "$root/deploy/README.md" Kubernetes '[pkcs11]' >hsm.values.yaml
sed '/^root_key_file/d' kms/kmsgate.toml >hsm.toml
sed -n '/\[pkcs11\]/,/root_key/s/^ *//p' hsm.values.yaml >>hsm.toml
example hsm single hsm no-root-key-file

# The keys of the cluster that checks service accounts' tokens are fetched with a token of one's own.
issuer=$(python3 "$objects" block "$root/README.md" 'JSON Web Tokens' 'kubernetes.default.svc')
printf '%s\n' "$(<kms/kmsgate.toml)" '' "$issuer" >accounts.toml
{
  printf 'serviceAccount: { automountToken: true }\nconfig:\n  extra: |\n'
  sed 's/^/    /' <<<"$issuer"
} >accounts.values.yaml
example accounts single service-account-token

# While the root key moves there, the old one is in a file still.
sed 's/file: ""/file: "", previous: [root.key]/' hsm.values.yaml | grep -v '^image:' >moves.values.yaml
{
  echo 'previous_root_key_files = ["/etc/kmsgate/root-key/root.key"]'
  cat hsm.toml
} >moves.toml
example moves single hsm

count=0
for rendered in kustomize/*.yaml; do
  same=$(python3 "$objects" compare "$rendered" "helm/$(basename "$rendered")") || fail "$same"
  count=$((count + same))
done
((count > 100)) || fail "only $count objects"
ok "the chart and the overlays render the same $count objects"

python3 "$objects" lint "$chart" "$chart"/examples/*.yaml
ok "Helm finds nothing wrong with the chart"
python3 "$objects" refusals "$chart"
ok "values that are misspelt or contradict each other are refused"

# Of the oldest Kubernetes that the chart names, and of the newest that the tool knows.
said=$(kubernetes-validate --quiet --no-warn --strict -k 1.27 -k 1.37 {kustomize,helm}/*.yaml 2>&1) || fail "$said"
sed 's/readOnlyRootFilesystem/readonlyRootFilesystem/' kustomize/single.yaml >wrong.yaml
! kubernetes-validate --quiet --strict wrong.yaml >/dev/null 2>&1 || fail "a misspelt field is let through"
ok "the schemas of Kubernetes 1.27 and 1.37 take them"

python3 "$objects" customs {kustomize,helm}/*.yaml >customs.json
models=$root/target/interop-node/models-of-kubernetes
said=$(node "$root/tests/interop/custom_resources.mjs" "$models" <customs.json) || fail "$said"
ok "$said"

python3 "$objects" alerts "$root/README.md" kustomize/cluster-more.yaml
ok "alerts are PromQL, over metrics that the README lists, of this namespace alone"

# CKV_K8S_11: no limit on processor time, on purpose. CKV_K8S_15, CKV_K8S_43: which image it is, and whether
# by its digest, is the user's to say.
said=$(checkov --file {kustomize,helm}/*-more.yaml --framework kubernetes --compact --quiet --skip-download \
  --skip-check CKV_K8S_11,CKV_K8S_15,CKV_K8S_43 2>&1) || fail "$said"
ok "checkov finds nothing wrong with them"

# The other Secrets: a second root key beside the first, and what etcd, clients and a module take.
cd kmsgate-secrets
follow deploy/README.md 'Replacing the root key' 'kubectl replace'
mkdir etcd && cd etcd
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=kmsgate \
  -keyout tls.key -out tls.crt 2>/dev/null
cp tls.crt ca.crt
ln -s "$root/deploy" deploy
follow deploy/README.md Kubernetes 'examples/cluster.yaml'
contains "what Helm installs" 'kind = "etcd"' "$(<"$scratch/installed.yaml")"
kubectl create secret generic kmsgate-client-ca --from-file=ca.crt
echo 1234 >pin
kubectl create secret generic kmsgate-pkcs11 --from-file=pin
cd "$scratch"

# The pod that copies keys from one server's volume into etcd.
python3 "$objects" block "$root/deploy/README.md" Kubernetes 'kind: Pod' >copy.yaml
kubernetes-validate --quiet --no-warn --strict -k 1.27 -k 1.37 copy.yaml || fail "copy.yaml is refused"
contains "its image" "image: registry.example.com/kmsgate:$version" "$(<copy.yaml)"
mapfile -t arguments < <(python3 -c 'import yaml; print(*yaml.safe_load(open("copy.yaml"))["spec"]["containers"][0]["args"], sep="\n")')
rm -rf mounted
python3 "$objects" mount kustomize/cluster.yaml mounted secrets/*.yaml
said=$("$kmsgate" "${arguments[@]/#\/etc/mounted\/etc}" 2>&1) && fail "a store was copied that is not there"
contains "what the copying says of no store" /var/lib/kmsgate/keys.db "$said"
ok "the pod that copies keys is one, and asks for what the program knows"

# Every configuration, with all that its pod mounts below a directory of our own.
taken=0 untried=0
for rendered in {kustomize,helm}/*.yaml; do
  rm -rf mounted
  python3 "$objects" mount "$rendered" mounted secrets/*.yaml
  config=mounted/etc/kmsgate/config/kmsgate.toml
  sed -i "s:\"/\(etc\|var\)/:\"$scratch/mounted/\1/:" $config
  if said=$("$kmsgate" check-config --config $config 2>&1); then
    taken=$((taken + 1))
    continue
  fi
  # Only a program with the feature pkcs11 looks for the module, and this machine may have none.
  [[ $rendered == */@(hsm|moves).yaml && $said =~ 'feature pkcs11'|libsofthsm2 ]] || fail "$rendered: $said"
  untried=$((untried + 1))
done
said="kmsgate takes $taken configurations, with what their pods mount and the Secrets of the README"
((untried == 0)) || said+="; $untried with a module are for a machine that has it"
ok "$said"
