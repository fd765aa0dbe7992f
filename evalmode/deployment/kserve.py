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
# KServe runs evalmode by this runtime, which all models share. It is written once, and not changed again.
# Replace the image by the place of the one that docker/serving.Dockerfile builds.
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata:
  name: evalmode
spec:
  supportedModelFormats:
    - name: onnx
      version: "1"
  protocolVersions:
    - grpc-v2
  containers:
    - name: kserve-container
      image: evalmode-serving
      args:
        - serve
        - --repository
        - /mnt/models
        - --follow-links # some versions of KServe make /mnt/models of links to a volume at /mnt/pvc
        - /mnt
      ports:
        - name: h2c
          containerPort: 8001
          protocol: TCP
      readinessProbe:
        grpc:
          port: 8001
        periodSeconds: 2
        failureThreshold: 60
      resources:
        requests:
          cpu: "1"
          memory: 1Gi
        limits:
          memory: 2Gi
      securityContext:
        runAsNonRoot: true
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities:
          drop:
            - ALL
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
    terminationGracePeriodSeconds: 40 # --lame-duck plus --grace plus a margin
    model:
      modelFormat:
        name: onnx
        version: "1"
      runtime: evalmode
      protocolVersion: grpc-v2
      storageUri: s3://BUCKET/{name}/{storage}
      args:
        - --model-name
        - {quoted}
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
