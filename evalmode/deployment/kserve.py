"""KServe: a ``ServingRuntime`` that runs evalmode, an ``InferenceService`` for a model, and the folder of its storage.

Source: https://kserve.github.io/website/docs/concepts/resources/servingruntime. KServe mounts the storage at
``/mnt/models`` whatever its name, and appends the arguments of the service to those of the runtime.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from evalmode.artifact.repository import ARTIFACT_FILE
from evalmode.deployment.release import File, Release

STORAGE = "models"  # the folder to upload
MAX_NAME = 40  # characters: Kubernetes adds to the name of the service, and allows 63
RUNTIME = """\
# KServe runs evalmode by this runtime, which all models of a namespace share. It is written once, and not changed
# again. Replace the image by the place of the one that docker/serving.Dockerfile builds.
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: evalmode
spec:
  annotations:
    prometheus.kserve.io/port: "8002"
    prometheus.kserve.io/path: /metrics
  supportedModelFormats:
    - name: onnx
      version: "1"
      autoSelect: false # services that name no runtime keep the one that they have
  protocolVersions: [grpc-v2]
  containers:
    - name: kserve-container
      image: registry.example.com/evalmode-serving:0.3.0
      env:
        - {name: EVALMODE_SERVE_REPOSITORY, value: /mnt/models}
        - {name: EVALMODE_SERVE_MODEL_NAME, value: "{{.Name}}"} # the name of the InferenceService
        - {name: EVALMODE_SERVE_PORT, value: "8001"} # a Service named evalmode-serve would set it
        - {name: EVALMODE_SERVE_METRICS_PORT, value: "8002"}
      ports:
        - {name: h2c, containerPort: 8001, protocol: TCP} # by this name, Knative and KServe forward HTTP/2
      readinessProbe:
        grpc: {port: 8001}
        periodSeconds: 2
        timeoutSeconds: 2
      livenessProbe:
        grpc: {port: 8001} # Knative would send a request for /livez to this port, too
        initialDelaySeconds: 120 # the time to load the models
        periodSeconds: 10
        timeoutSeconds: 5
      resources:
        requests: {cpu: "2", memory: 2Gi}
        limits: {cpu: "2", memory: 2Gi}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}
"""
SERVICE = """\
# The model {name}. This file is written once, and not changed again.
# Upload the folder {storage}, which is beside this file, and replace storageUri by its place.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service}
spec:
  predictor:
    enableServiceLinks: false # otherwise a Service named evalmode-serve sets EVALMODE_SERVE_PORT
    terminationGracePeriodSeconds: 40 # --lame-duck plus --grace plus a margin
    model:
      modelFormat:
        name: onnx
        version: "1"
      runtime: evalmode
      protocolVersion: grpc-v2
      storageUri: s3://BUCKET/{name}/{storage}/ # without the last slash, KServe downloads folders that begin so, too
      env:
        - name: EVALMODE_SERVE_MODEL_NAME
          value: {quoted}
"""


def list_files(release: Release, folder: Path) -> dict[str, File]:
    """List the files of a version.

    Args:
        release: The version.
        folder: The folder of all models.

    Returns:
        The files by path in the folder.
    """
    name = release.name
    service = SERVICE.format(name=name, service=_name_service(name), storage=STORAGE, quoted=json.dumps(name))
    return {
        f"{name}/serving-runtime.yaml": File(RUNTIME.encode(), is_editable=True),
        f"{name}/inference-service.yaml": File(service.encode(), is_editable=True),
        f"{name}/{STORAGE}/{release.version}/{ARTIFACT_FILE}": File(release.artifact),
    }


def _name_service(name: str) -> str:
    """A name that Kubernetes allows: lower-case letters, digits and ``-``, the first a letter."""
    allowed = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    named = allowed if allowed[:1].isalpha() else f"model-{allowed}"
    return named[:MAX_NAME].rstrip("-")
