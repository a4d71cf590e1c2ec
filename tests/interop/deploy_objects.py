"""What deploy.sh asks of rendered objects.

    render CHART VALUES…         prints the chart's objects, with one file of values over the other
    compare FILE FILE            fails unless both have the same objects; prints how many
    lint CHART VALUES…           fails on anything that `helm lint` warns of
    refusals CHART               fails unless values that make no sense are refused
    customs FILE…                the objects that are not Kubernetes's own, as JSON
    alerts README FILE           fails unless alerts are PromQL over metrics that the README lists
    configuration FILE           prints kmsgate.toml
    mount FILE DIRECTORY SECRETS…
                                 writes what the pod mounts below DIRECTORY, from those Secrets
    block PAGE SECTION PART      prints the block of commands or values in the section that has PART
"""

import base64
import difflib
import json
import re
import sys
import tomllib
from pathlib import Path

import helm_python
import promql_parser
import yaml

NAME = NAMESPACE = "kmsgate"

# The API groups of Kubernetes itself.
OWN = re.compile(r"v1$|(apps|autoscaling|policy|networking\.k8s\.io)/")

# A series that is not of the release alone.
SERIES = re.compile(r'\b(kmsgate_\w+|up)\b(?!{job="kmsgate",namespace="kmsgate"[,}])')

# Values, over those of examples/cluster.yaml, and a part of what is said of them.
REFUSED = [
    ({"stores": {}}, "stores"),
    ({"nameOverride": "1kms"}, "nameOverride"),
    ({"fullnameOverride": "kms.prod"}, "fullnameOverride"),
    ({"tls": {"enable": True}}, "enable"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"image": {"digest": "sha256:1"}}, "digest"),
    ({"store": {"kind": "postgres"}}, "kind"),
    ({"store": {"etcd": {"endpoints": []}}}, "endpoints"),
    ({"store": {"etcd": {"secretName": ""}}}, "secretName"),
    ({"store": {"etcd": {"endpoints": ["http://etcd-0.etcd:2379"]}}}, "endpoints"),
    ({"store": {"etcd": {"ca": False}}}, "ca"),
    ({"store": {"etcd": {"prefix": "kmsgate"}}}, "prefix"),
    ({"store": {"etcd": {"prefix": "kms gate/"}}}, "prefix"),
    ({"store": {"etcd": {"maxStaleness": "999ms"}}}, "maxStaleness"),
    ({"store": {"etcd": {"maxStaleness": "61s"}}}, "maxStaleness"),
    ({"store": {"etcd": {"maxStaleness": "2m"}}}, "maxStaleness"),
    ({"istio": {"identities": [{"identity": "spiffe://cluster.local/*", "project": "p"}]}}, "identities"),
    ({"rootKey": {"file": ""}}, "needs [pkcs11]"),
    ({"rootKey": {"previous": ["../root.key"]}}, "previous"),
    ({"credentials": {"tokens": False}}, "nobody is let in"),
    ({"credentials": {"tokens": False, "policy": True}}, "nobody is let in"),
    ({"tls": {"clientCa": {"secretName": "clients"}}}, "needs tls.clientCertificates"),
    ({"resources": {"requests": {"cpu": None}}}, "resources.requests.cpu"),
    ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser"),
    ({"networkPolicy": {"dnsPort": 0}}, "dnsPort"),
    # To Kubernetes an empty list is everybody.
    ({"networkPolicy": {"callers": []}}, "callers"),
    ({"networkPolicy": {"dns": []}}, "dns"),
    ({"networkPolicy": {"etcd": []}}, "etcd"),
    ({"autoscaling": {"minReplicas": 11}}, "minReplicas"),
    ({"config": {"lagSeconds": "5s"}}, "lagSeconds"),
    ({"mesh": "istio"}, "one of them encrypts"),
    ({"tls": {"enabled": False}}, "nothing would encrypt"),
    ({"tls": {"enabled": False, "certManager": {"enabled": True}}, "mesh": "linkerd"}, "needs tls.enabled"),
]


def render(chart, *values):
    together = {}
    for path in values:
        together = merged(together, yaml.safe_load(Path(path).read_text()))
    print("\n---\n".join(rendered(chart, together).values()))


def rendered(chart, values):
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name=NAME, namespace=NAMESPACE)
    return {name: text for name, text in files.items() if name.endswith(".yaml") and text.strip()}


def merged(base, over):
    """As Helm lays one file of values over another."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def compare(one, other):
    left, right = (plain(objects(path)) for path in (one, other))
    if left != right:
        lines = difflib.unified_diff(left.splitlines(), right.splitlines(), one, other, lineterm="", n=6)
        sys.exit("\n".join(lines))
    print(left.count("\n---\n") + 1)


def plain(found):
    """The objects in one order and one spelling, without what Helm and kustomize add of their own."""
    texts = []
    for it in found:
        it = ordered(it)
        for part in (it, it.get("spec", {}).get("template", {})):
            metadata = part.get("metadata", {})
            metadata.get("labels", {}).pop("app.kubernetes.io/managed-by", None)
            metadata.get("labels", {}).pop("helm.sh/chart", None)
            metadata.get("annotations", {}).pop("checksum/config", None)
        if it["kind"] == "ConfigMap":
            it["data"] = {name: tomllib.loads(text) for name, text in it["data"].items()}
        text = yaml.safe_dump(it, sort_keys=True)
        # kustomize puts a hash behind the name of a ConfigMap, where Helm has an annotation with one.
        texts.append(re.sub(r"\bkmsgate-config-[0-9a-z]{10}\b", "kmsgate-config", text))
    return "\n---\n".join(sorted(texts))


def ordered(value):
    """Lists whose elements have a name and whose order means nothing, in the order of the names."""
    if isinstance(value, dict):
        return {
            key: sorted(ordered(it), key=lambda it: it["name"])
            if key in ("volumes", "volumeMounts")
            else ordered(it)
            for key, it in value.items()
        }
    return [ordered(it) for it in value] if isinstance(value, list) else value


def lint(chart, *values):
    for path in values:
        report = helm_python.lint(chart, yaml.safe_load(Path(path).read_text()), strict=True)
        # Severity 1 is advice: there is no icon.
        said = [it for it in report["messages"] if it["severity"] > 1]
        if said or report["errors"] or report["total_charts_linted"] != 1:
            sys.exit(f"{path}: {said} {report['errors']}")


def refusals(chart):
    good = yaml.safe_load((Path(chart) / "examples/cluster.yaml").read_text())
    rendered(chart, good)
    for values, part in REFUSED:
        try:
            rendered(chart, merged(good, values))
        except helm_python.HelmError as error:
            if part not in str(error):
                sys.exit(f"{values} is refused with {error}")
        else:
            sys.exit(f"{values} is not refused")


def customs(*paths):
    found = [it for path in paths for it in objects(path) if not OWN.match(it["apiVersion"])]
    print(json.dumps(found))


def alerts(readme, path):
    rows = re.findall(r"^\| `(kmsgate_\w+)` \| (\w+) \|", Path(readme).read_text(), re.M)
    series = {name for name, _ in rows}
    series |= {f"{name}_bucket" for name, kind in rows if kind == "histogram"}
    (rule,) = (it for it in objects(path) if it["kind"] == "PrometheusRule")
    seen = 0
    for group in rule["spec"]["groups"]:
        for alert in group["rules"]:
            promql_parser.parse(alert["expr"])
            used = set(re.findall(r"\bkmsgate_\w+", alert["expr"]))
            if used - series:
                sys.exit(f"{alert['alert']}: the README has no {used - series}")
            if everywhere := SERIES.search(alert["expr"]):
                sys.exit(f"{alert['alert']}: {everywhere[0]} is of any job in any namespace")
            seen += 1
    if seen < 10:
        sys.exit(f"only {seen} alerts")


def configuration(path):
    (config,) = (it for it in objects(path) if it["kind"] == "ConfigMap")
    print(config["data"]["kmsgate.toml"])


def mount(path, directory, *secrets):
    found = objects(path)
    known = {it["metadata"]["name"]: it for it in found if it["kind"] == "ConfigMap"}
    for it in (it for secret in secrets for it in objects(secret) if it["kind"] == "Secret"):
        known[it["metadata"]["name"]] = it
    (pod,) = (it["spec"]["template"]["spec"] for it in found if it["kind"] in ("Deployment", "StatefulSet"))
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for place in container["volumeMounts"]:
        target = Path(directory) / place["mountPath"].lstrip("/")
        target.mkdir(parents=True)
        volume = volumes.get(place["name"], {})
        if "configMap" in volume:
            for name, text in known[volume["configMap"]["name"]]["data"].items():
                (target / name).write_text(text)
        elif "secret" in volume:
            for name, text in known[volume["secret"]["secretName"]]["data"].items():
                (target / name).write_bytes(base64.b64decode(text))
                (target / name).chmod(volume["secret"]["defaultMode"])
    if pod["automountServiceAccountToken"]:
        # What Kubernetes adds, with some certificate for the cluster's authority.
        target = Path(directory) / "var/run/secrets/kubernetes.io/serviceaccount"
        target.mkdir(parents=True)
        (target / "ca.crt").write_bytes(base64.b64decode(known["kmsgate-tls"]["data"]["tls.crt"]))
        (target / "token").write_text("a token")
        (target / "token").chmod(0o640)


def block(page, section, part):
    text = Path(page).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (found,) = (it for it in re.findall(r"^```\w+\n(.*?)^```$", text, re.M | re.S) if part in it)
    print(found)


def objects(path):
    return [it for it in yaml.safe_load_all(Path(path).read_text()) if it]


def main(command, *arguments):
    commands = [render, compare, lint, refusals, customs, alerts, configuration, mount, block]
    {it.__name__: it for it in commands}[command](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
