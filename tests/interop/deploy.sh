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
mkdir kustomize helm

# Each overlay, and each with all the components that fit it.
for overlay in "${overlays[@]}"; do
  kubectl kustomize "$kustomize/overlays/$overlay" >"kustomize/$overlay.yaml"
  python3 "$objects" render "$chart" "$chart/examples/$overlay.yaml" >"helm/$overlay.yaml"

  more=(monitoring) values='monitoring: { enabled: true }'
  case $overlay in single | cluster)
    more+=(cert-manager gateway)
    values+=$'\ntls: { certManager: { enabled: true } }\ngateway: { enabled: true }'
    ;;
  esac
  mkdir "$overlay"
  {
    echo 'apiVersion: kustomize.config.k8s.io/v1beta1'
    echo 'kind: Kustomization'
    echo 'namespace: kmsgate'
    echo "resources: [$(realpath --relative-to="$overlay" "$kustomize/overlays/$overlay")]"
    echo 'components:'
    for component in "${more[@]}"; do
      echo "  - $(realpath --relative-to="$overlay" "$kustomize/components/$component")"
    done
  } >"$overlay/kustomization.yaml"
  echo "$values" >"$overlay.values.yaml"
  kubectl kustomize "$overlay" >"kustomize/$overlay-more.yaml"
  python3 "$objects" render "$chart" "$chart/examples/$overlay.yaml" "$overlay.values.yaml" >"helm/$overlay-more.yaml"
done

count=0
for rendered in kustomize/*.yaml; do
  same=$(python3 "$objects" compare "$rendered" "helm/$(basename "$rendered")") || fail "$same"
  count=$((count + same))
done
((count > 80)) || fail "only $count objects"
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
ok "alerts are PromQL, over metrics that the README lists"

# CKV_K8S_11: no limit on processor time, on purpose. CKV_K8S_15, CKV_K8S_43: which image it is, and whether
# by its digest, is the user's to say.
said=$(checkov --file {kustomize,helm}/*-more.yaml --framework kubernetes --compact --quiet --skip-download \
  --skip-check CKV_K8S_11,CKV_K8S_15,CKV_K8S_43 2>&1) || fail "$said"
ok "checkov finds nothing wrong with them"

# What the README has one do, save that no cluster is told of it. And a Secret for etcd.
kubectl() {
  case $* in
  *create*)
    made=$((made + 1))
    command kubectl "$@" --dry-run=client --output yaml >"$scratch/secrets/$made.yaml"
    ;;
  apply*) command kubectl kustomize "$3" >"$scratch/applied.yaml" ;;
  esac
}
made=0
mkdir secrets
ln -s "$root/deploy" deploy
PATH="$(dirname "$(realpath "$kmsgate")"):$PATH"
for part in 'kubectl create namespace' 'kubectl apply'; do
  python3 "$objects" block "$root/README.md" 'Run it on Kubernetes' "$part" >block.sh
  trap 'fail "$part: $(<"$scratch/said")"' ERR
  source ./block.sh >"$scratch/said" 2>&1
  trap - ERR
done
((made == 4)) || fail "the README makes $made objects"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
contains objects "image: registry.example.com/kmsgate:$version" "$(<applied.yaml)"
contains "the chart's objects" "image: kmsgate:$version" "$(<helm/single.yaml)"
ok "what the README says makes the Secrets, and names an image of this version"
mkdir etcd && cd etcd
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=kmsgate \
  -keyout tls.key -out tls.crt 2>/dev/null
cp tls.crt ca.crt
kubectl create secret generic kmsgate-etcd --from-file=ca.crt --from-file=tls.crt --from-file=tls.key
cd ..

# Every configuration, with all that its pod mounts below a directory of our own.
for rendered in {kustomize,helm}/*.yaml; do
  rm -rf mounted
  python3 "$objects" mount "$rendered" mounted secrets/*.yaml
  config=mounted/etc/kmsgate/config/kmsgate.toml
  sed -i "s:\"/\(etc\|var\)/:\"$scratch/mounted/\1/:" $config
  if grep --quiet 'kind = "etcd"' $config && ! grep --quiet Etcd "$root/src/config.rs"; then
    # This kmsgate has no store in etcd; all else is looked at.
    sed -i '/^\[store\]/,/^$/c [store]\nkind = "memory"\n' $config
  fi
  said=$("$kmsgate" check-config --config $config 2>&1) || fail "$rendered: $said"
done
ok "kmsgate takes every configuration, with what its pod mounts and the Secrets of the README"
