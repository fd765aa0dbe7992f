"""Strict validation of every kind of object in deploy/: a field that the kind does not have is an error."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

KUBERNETES = "1.37"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.37.0-local-strict"
DEFINITIONS = json.loads((SCHEMAS / "_definitions.json").read_text())
CORE = "io.k8s.api.core.v1."
META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
# Maps whose keys are the user's own.
FREE = {"labels", "annotations", "matchLabels", "limits", "requests", "nodeSelector"}

Object = dict[str, Any]


def validate(one: Object) -> None:
    """Raise ``jsonschema.ValidationError`` if an object of Kubernetes or KServe has an unknown or invalid field."""
    if one["kind"] not in KSERVE:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    find_validator(one["apiVersion"], one["kind"]).validate(one)


def find_misspelt(one: Object) -> list[str]:
    """Return the paths of the fields that may be misspelt. A path that the schema misses is a gap in this test."""
    validator = find_validator(one["apiVersion"], one["kind"])
    return [path for path, changed in misspell(one) if validator.is_valid(changed)]


@functools.cache
def find_validator(api: str, kind: str) -> jsonschema.Draft202012Validator:
    """Read a schema once: kubernetes_validate reads all of them for each object."""
    if kind in KSERVE:
        schema = KSERVE[kind]
    else:
        group, _, version = api.rpartition("/")
        name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
        schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    registry = Resource.from_contents(DEFINITIONS) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=registry)


def misspell(one: Object) -> Iterator[tuple[str, Object]]:
    """Yield the path of each field, and a copy of the object in which this field is misspelt."""
    for path in _walk(one, ()):
        changed = copy.deepcopy(one)
        parent: Any = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        yield ".".join(map(str, path)), changed


def _walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field whose name the kind defines. ``apiVersion`` and ``kind`` choose the schema."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(node, dict) and (path or key not in ("apiVersion", "kind")):
            yield (*path, key)
        if key not in FREE and not (key == "selector" and "matchLabels" not in value):
            yield from _walk(value, (*path, key))


def _properties(name: str) -> Object:
    """The properties of a definition of Kubernetes, which KServe inlines into its own objects."""
    found: Object = _refer(DEFINITIONS["$defs"][name]["properties"])
    return found


def _refer(node: Any) -> Any:
    """Make the references of a definition absolute."""
    if isinstance(node, dict):
        return {key: _absolute(value) if key == "$ref" else _refer(value) for key, value in node.items()}
    return [_refer(value) for value in node] if isinstance(node, list) else node


def _absolute(reference: str) -> str:
    return DEFINITIONS["$id"] + "#" + reference.partition("#")[2]


def _closed(properties: Object, *required: str) -> Object:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _kind(api: str, kind: str, spec: Object) -> Object:
    metadata = {"$ref": f"{DEFINITIONS['$id']}#/$defs/{META}"}
    return _closed(
        {"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": metadata, "spec": spec},
        "apiVersion", "kind", "metadata", "spec",
    )  # fmt: skip


TEXT: Object = {"type": "string", "minLength": 1}
TEXTS: Object = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: Object = {"type": "integer", "minimum": 0}
FLAG: Object = {"type": "boolean"}
PROTOCOL: Object = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}


def _pod_of_runtime() -> Object:
    """The fields of a pod that a serving runtime may set: fewer than a pod has."""
    names = ("volumes", "nodeSelector", "affinity", "tolerations", "imagePullSecrets", "hostIPC")
    pod = _properties(f"{CORE}PodSpec")
    containers = {**pod["containers"], "minItems": 1}
    return {**{name: pod[name] for name in names}, "containers": containers, "labels": TEXTS, "annotations": TEXTS}


def _runtime() -> Object:
    model_format = {"name": TEXT, "version": TEXT, "autoSelect": FLAG, "priority": {"type": "integer", "minimum": 1}}
    own: Object = {
        "supportedModelFormats": {"type": "array", "items": _closed(model_format, "name")},
        "protocolVersions": {"type": "array", "items": PROTOCOL},
        "multiModel": FLAG,
        "disabled": FLAG,
    }
    return _kind(
        "serving.kserve.io/v1alpha1", "ClusterServingRuntime", _closed({**own, **_pod_of_runtime()}, "containers")
    )


def _service() -> Object:
    model = {
        **_properties(f"{CORE}Container"),
        "modelFormat": _closed({"name": TEXT, "version": TEXT}, "name"),
        "runtime": TEXT,
        "runtimeVersion": TEXT,
        "protocolVersion": PROTOCOL,
        "storageUri": {"type": "string", "pattern": "^(s3|gs|pvc|hf|https?|hdfs|webhdfs|oci)://"},
        "storage": _closed({"path": TEXT, "key": TEXT, "parameters": TEXTS, "schemaPath": TEXT}),
    }
    extension: Object = {
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "scaleTarget": COUNT,
        "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
        "containerConcurrency": COUNT,
        "timeout": COUNT,
        "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
        "labels": TEXTS,
        "annotations": TEXTS,
        "deploymentStrategy": {"$ref": f"{DEFINITIONS['$id']}#/$defs/io.k8s.api.apps.v1.DeploymentStrategy"},
    }
    predictor = {**_properties(f"{CORE}PodSpec"), **extension, "model": _closed(model, "modelFormat")}
    return _kind(
        "serving.kserve.io/v1beta1", "InferenceService", _closed({"predictor": _closed(predictor)}, "predictor")
    )


# KServe's kinds by the field names that its documentation publishes, as far as they concern one model in one container.
KSERVE: dict[str, Object] = {"ClusterServingRuntime": _runtime(), "InferenceService": _service()}
