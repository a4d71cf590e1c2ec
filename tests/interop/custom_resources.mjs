// Custom resources, as a JSON array on standard input, against the schemas of their definitions.
//
//   node custom_resources.mjs MODELS < OBJECTS
//
// MODELS has the packages @kubernetes-models/…, which are made from what the projects publish. Linkerd has
// none; the shapes of its objects stand below.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import path from "node:path";

const models = path.join(path.resolve(process.argv[2]), "node_modules");
const packages = {
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
  "networking.istio.io": "istio",
  "security.istio.io": "istio",
};

const text = { type: "string" };
const map = { type: "object", additionalProperties: text };
const metadata = { type: "object", properties: { name: text, namespace: text, labels: map, annotations: map } };
const named = { type: "object", required: ["kind", "name"], properties: { group: text, kind: text, name: text } };
const part = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const identity = { type: "string", pattern: `^(\\*|${part})(\\.${part})*$` };
// What Linkerd's own definitions of these say of the fields that are used here; no registry has them.
const linkerd = {
  "policy.linkerd.io/v1beta3 Server": {
    type: "object",
    required: ["port", "podSelector"],
    properties: {
      podSelector: {
        type: "object",
        properties: { matchLabels: map },
      },
      port: { type: ["string", "integer"] },
      // The names that the proxy knows.
      proxyProtocol: { enum: ["unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"] },
      accessPolicy: { enum: ["deny", "audit", "all-unauthenticated", "all-authenticated", "cluster-unauthenticated", "cluster-authenticated"] },
    },
  },
  "policy.linkerd.io/v1alpha1 MeshTLSAuthentication": {
    type: "object",
    required: ["identities"],
    properties: { identities: { type: "array", minItems: 1, items: identity } },
  },
  "policy.linkerd.io/v1alpha1 AuthorizationPolicy": {
    type: "object",
    required: ["targetRef", "requiredAuthenticationRefs"],
    properties: { targetRef: named, requiredAuthenticationRefs: { type: "array", items: named } },
  },
};

// The schemas let fields pass that they do not know, and the API server drops those silently. A validator
// asks for every field that its schema knows, so one that was not asked for is a misspelt one.
function watched(value, at, unasked) {
  if (typeof value !== "object" || value === null) return value;
  const inside = Array.isArray(value) ? [] : {};
  for (const [key, it] of Object.entries(value)) inside[key] = watched(it, `${at}/${key}`, unasked);
  if (Array.isArray(value)) return inside;
  for (const key of Object.keys(value)) unasked.add(`${at}/${key}`);
  return new Proxy(inside, {
    get(target, key) {
      unasked.delete(`${at}/${String(key)}`);
      return target[key];
    },
    // Of a map any name is right.
    ownKeys(target) {
      for (const key of Object.keys(target)) unasked.delete(`${at}/${key}`);
      return Reflect.ownKeys(target);
    },
  });
}

const { default: Ajv } = createRequire(path.join(models, "x.js"))("ajv");
const ajv = new Ajv({ allErrors: true, allowUnionTypes: true });

async function validatorOf({ apiVersion, kind }) {
  const shape = linkerd[`${apiVersion} ${kind}`];
  if (shape) {
    const properties = { apiVersion: text, kind: text, metadata: metadata, spec: shape };
    return ajv.compile({ type: "object", required: ["spec"], properties });
  }
  const name = packages[apiVersion.split("/")[0]];
  if (!name) throw new Error(`no schema for ${apiVersion} ${kind}`);
  // A model names the compiled schema that it is checked with.
  const model = path.join(models, "@kubernetes-models", name, apiVersion, `${kind}.js`);
  const [, schema] = readFileSync(model, "utf8").match(/import\{validate\}from"([^"]+)"/);
  return (await import(pathToFileURL(path.join(path.dirname(model), schema)))).validate;
}

// What is wrong with an object; empty if nothing is.
async function mistakes(object) {
  const unasked = new Set();
  const validator = await validatorOf(object);
  const good = validator(watched(object, "", unasked));
  const told = good ? [] : validator.errors.map((it) => `${it.instancePath} ${it.message ?? it.keyword}`);
  return [...told, ...[...unasked].map((it) => `${it} is not known`)];
}

const objects = JSON.parse(readFileSync(0, "utf8"));
const kinds = new Set();
for (const object of objects) {
  const kind = `${object.apiVersion} ${object.kind}`;
  kinds.add(kind);
  const wrong = await mistakes(object);
  if (wrong.length) {
    console.log(`${kind}: ${wrong.join("; ")}`);
    process.exit(1);
  }
  // A schema that lets everything pass says nothing.
  const [field] = Object.keys(object.spec);
  for (const spec of [{ ...object.spec, fieldd: 1 }, { ...object.spec, [field]: 1.5 }]) {
    if (!(await mistakes({ ...object, spec })).length) {
      console.log(`${kind}: ${JSON.stringify(spec)} is let through`);
      process.exit(1);
    }
  }
}
console.log(`the schemas of their definitions take ${objects.length} custom resources of ${kinds.size} kinds`);
