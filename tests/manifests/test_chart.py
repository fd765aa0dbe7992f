"""Every variant of the chart is valid and restricted; misspelt fields and values that cannot work are refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError, lint

from deploy.render import BASE, CHART, render, render_base
from tests.manifests.monitors import find_errors
from tests.manifests.pods import check_restricted, find_pods, read_environment
from tests.manifests.schemas import Object, find_misspelt, misspell, validate

VARIANTS = sorted((CHART / "ci").glob("*-values.yaml"))
CLAIM: Object = {"models": {"claim": {"name": "models"}}}
DIGEST = "sha256:" + "4f53cda1" * 8
BOTH = {"tls": {"secret": "pets-tls"}, **CLAIM}

each_variant = pytest.mark.parametrize("values", VARIANTS, ids=lambda path: path.stem)


@functools.cache
def render_variant(values: Path) -> list[Object]:
    return render(yaml.safe_load(values.read_text()))


def render_with(**values: Any) -> dict[str, Object]:
    """The objects by kind; the headless Service by that name."""
    objects = render({**CLAIM, **values})
    named = {one["kind"] if one["metadata"]["name"] == "pets-evalmode" else "Headless": one for one in objects}
    assert len(named) == len(objects)
    return named


def pod_of(**values: Any) -> Object:
    return find_pods([render_with(**values)["Deployment"]])[0]


def environment_of(**values: Any) -> dict[str, str]:
    return read_environment(pod_of(**values)["containers"][0])


@each_variant
def test_every_object_of_a_variant_is_valid(values: Path) -> None:
    objects = render_variant(values)
    for one in objects:
        if one["kind"] != "ServiceMonitor":
            validate(one)
    assert {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"} <= {one["kind"] for one in objects}


@each_variant
def test_every_pod_of_a_variant_is_restricted(values: Path) -> None:
    pods = find_pods(render_variant(values))
    assert len(pods) == 1
    check_restricted(pods[0])


@pytest.mark.parametrize("values", [None, *VARIANTS], ids=lambda path: path.stem if path else "defaults")
def test_lint_finds_no_fault(values: Path | None) -> None:
    report = lint(str(CHART), yaml.safe_load(values.read_text()) if values else None, strict=True)
    assert (report["errors"], [one for one in report["messages"] if one["severity"] > 1]) == ([], [])


def test_the_variants_use_every_value() -> None:
    used = set().union(*(list_paths(yaml.safe_load(path.read_text())) for path in VARIANTS))
    defaults = list_paths(yaml.safe_load((CHART / "values.yaml").read_text()))
    plain = {"image.tag", "models.artifact.image", "models.store.image", "models.downloadSize", "tokens.key"}
    plain |= {"startupSeconds", "minReadySeconds", "resources.requests", "serviceMonitor.interval"}
    plain |= {"autoscaling.minReplicas", "autoscaling.cpuPercent"}  # a default of the same form as in the variants
    assert {path for path in defaults if not any(one == path or one.startswith(f"{path}.") for one in used)} == plain


def list_paths(values: Object, path: str = "") -> set[str]:
    """The paths of all values; those of a map without defaults, such as options, count as one."""
    found = set()
    for key, value in values.items():
        inner = (
            list_paths(value, f"{path}{key}.")
            if isinstance(value, dict) and key not in ("requests", "limits")
            else set()
        )
        found |= inner or {path + key}
    return found


@each_variant
def test_a_misspelt_field_of_any_object_fails(values: Path) -> None:
    for one in render_variant(values):
        if one["kind"] != "ServiceMonitor":
            assert find_misspelt(one) == [], one["kind"]


def test_a_service_monitor_is_valid_and_no_field_of_it_may_be_misspelt() -> None:
    monitor = render_with(serviceMonitor={"enabled": True, "labels": {"release": "prometheus"}})["ServiceMonitor"]
    cases = list(misspell(monitor))
    wrong_interval = {**monitor, "spec": {**monitor["spec"], "endpoints": [{"port": "metrics", "interval": "often"}]}}
    errors = find_errors([monitor, wrong_interval, *(changed for _, changed in cases)])
    assert 0 not in errors, errors[0]
    assert 1 in errors
    assert [path for index, (path, _) in enumerate(cases, 2) if index not in errors] == []


def test_the_service_monitor_finds_one_service_and_its_port() -> None:
    objects = render_with(serviceMonitor={"enabled": True})
    spec = objects["ServiceMonitor"]["spec"]
    services = [objects["Service"], objects["Headless"]]
    found = [one for one in services if spec["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()]
    assert found == [objects["Headless"]]
    ports = {port["name"]: port["targetPort"] for port in found[0]["spec"]["ports"]}
    assert ports[spec["endpoints"][0]["port"]] == "metrics"
    assert found[0]["metadata"]["labels"][spec["jobLabel"]] == "evalmode"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"models": {}}, "0 sources of models are set"),
        ({**CLAIM, "models": {"claim": {"name": "a"}, "store": {"uri": "s3://a/b"}}}, "2 sources of models are set"),
        ({**CLAIM, "shutdown": {"terminationGracePeriodSeconds": 36}}, "set at least 37"),
        ({**CLAIM, "shutdown": {"lameDuckSeconds": 30}}, "is 40, but the server takes up to 61 s"),
        ({**BOTH, "transport": "native", "options": {"allow-unbounded-messages": True}}, "native cannot serve TLS"),
        ({**CLAIM, "transport": "native"}, "options.allow-unbounded-messages to true"),
        ({**CLAIM, "transport": "native", "options": {"allow-unbounded-messages": False}}, "without a limit"),
        ({**CLAIM, "tls": {"clientCaSecret": "ca"}}, "needs tls.secret"),
        ({**CLAIM, "provider": "cuda"}, "include nvidia.com/gpu"),
        ({**CLAIM, "autoscaling": {"enabled": True, "minReplicas": 11}}, "is 11, which is more than maxReplicas, 10"),
        ({**CLAIM, "autoscaling": {"enabled": True, "cpuPercent": 0}}, "autoscaling has no target"),
        ({**CLAIM, "autoscaling": {"enabled": True, "requestsInFlight": 8}}, "set serviceMonitor.enabled to true"),
        ({**CLAIM, "autoscaling": {"enabled": True}, "resources": {"requests": None}}, "which is not set"),
    ],
)  # fmt: skip
def test_values_that_cannot_work_are_refused(values: Object, reason: str) -> None:
    with pytest.raises(HelmError, match=reason):
        render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 3},
        {"replicas": "3"},
        {"image": {"digest": "latest"}},
        {"models": {"artifact": {"reference": "registry.example.com/models/pets:3"}}},
        {"models": {"artifact": {"reference": f"registry.example.com/models/pets@{DIGEST[:-1]}"}}},
        {"models": {"store": {"uri": "/mnt/models"}}},
        {"models": {"store": {"uri": "https://example.com/pets.zip"}}},
        {"transport": "http"},
        {"provider": "gpu"},
        {"options": {"max_queue": 5}},
        {"options": {"max-queue": 5000}},
        {"options": {"port": 9000}},
        {"options": {"no-metrics": True}},
        {"shutdown": {"lameDuckSeconds": 1.5}},
        {"autoscaling": {"enabled": True, "cpuPercent": -1}},
        {"serviceMonitor": {"interval": "often"}},
        {"networkPolicy": {"clients": [{"podSelectors": {}}]}},
        {"networkPolicy": {"clients": [{}]}},
    ],
    ids=str,
)
def test_the_schema_refuses_values(values: Object) -> None:
    render({**CLAIM, "replicas": 3})
    with pytest.raises(HelmError, match="schema"):
        render({**CLAIM, **values})


def test_a_grace_period_of_one_second_more_than_the_shutdown_is_accepted() -> None:
    pod = pod_of(shutdown={"terminationGracePeriodSeconds": 37})
    environment = read_environment(pod["containers"][0])
    assert pod["terminationGracePeriodSeconds"] == 37
    assert (environment["EVALMODE_SERVE_LAME_DUCK"], environment["EVALMODE_SERVE_GRACE"]) == ("5", "30")


def test_options_are_written_as_the_server_reads_them() -> None:
    environment = environment_of(
        options={
            "max-request-bytes": 33554432, "poll": 0.5, "one-thread": True, "no-reflection": False, "workers": "auto",
            "model": ["pets@3", "cats@1"], "follow-links": ["/models", "/mnt"],
        }
    )  # fmt: skip
    written = {name.removeprefix("EVALMODE_SERVE_"): value for name, value in environment.items()}
    assert written["MAX_REQUEST_BYTES"] == "33554432"
    assert (written["POLL"], written["ONE_THREAD"], written["NO_REFLECTION"]) == ("0.5", "1", "0")
    assert (written["WORKERS"], written["MODEL"], written["FOLLOW_LINKS"]) == ("auto", "pets@3 cats@1", "/models:/mnt")


def test_readiness_is_asked_over_grpc_and_with_tls_over_http() -> None:
    plain, tls = (pod_of(**values)["containers"][0] for values in ({}, {"tls": {"secret": "pets-tls"}}))
    ports = {port["name"]: port["containerPort"] for port in plain["ports"]}
    assert plain["readinessProbe"]["grpc"] == {"port": ports["grpc"]}
    assert tls["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    for container in (plain, tls):
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] == 120


def test_secrets_are_mounted_so_that_they_are_renewed() -> None:
    """The kubelet does not renew files that are mounted by subPath."""
    pod = pod_of(tls={"secret": "pets-tls", "clientCaSecret": "ca"}, tokens={"secret": "pets-tokens", "key": "api"})
    container = pod["containers"][0]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"tls": "pets-tls", "client-ca": "ca", "tokens": "pets-tokens"}
    assert all("subPath" not in mounts[name] and mounts[name]["readOnly"] for name in secrets)
    environment = read_environment(container)
    for option, volume in {
        "TLS_CERT": "tls",
        "TLS_KEY": "tls",
        "TLS_CLIENT_CA": "client-ca",
        "TOKENS": "tokens",
    }.items():
        assert environment[f"EVALMODE_SERVE_{option}"].startswith(mounts[volume]["mountPath"] + "/")
    assert mounts["tmp"]["mountPath"] == "/tmp"


def test_only_a_volume_is_served_without_a_download() -> None:
    assert "initContainers" not in pod_of()
    reference = f"registry.example.com/models/pets@{DIGEST}"
    for models, argument in (
        ({"artifact": {"reference": reference}}, reference),
        ({"store": {"uri": "s3://models/pets"}}, "s3://models/pets/"),
    ):
        (download,) = pod_of(models=models)["initContainers"]
        assert argument in download["args"]
        assert {"name": "models", "mountPath": "/models"} in download["volumeMounts"]
        assert {"name": "tmp", "mountPath": "/tmp"} in download["volumeMounts"]  # oras unpacks folders there


def test_a_server_that_downloads_nothing_opens_no_connections() -> None:
    assert render_with()["NetworkPolicy"]["spec"]["egress"] == []
    policy = render_with(models={"store": {"uri": "s3://models/pets"}}, networkPolicy={"downloadPorts": [9000]})
    ports = {port["port"] for rule in policy["NetworkPolicy"]["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 9000}


def test_autoscaling_owns_the_number_of_pods() -> None:
    values = {"autoscaling": {"enabled": True, "requestsInFlight": 16}, "serviceMonitor": {"enabled": True}}
    objects = render_with(**values)
    assert "replicas" not in objects["Deployment"]["spec"]
    metrics = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["ContainerResource", "Pods"]
    assert (
        metrics[0]["containerResource"]["container"]
        == objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["name"]
    )
    assert "HorizontalPodAutoscaler" not in render_with()


def test_every_selector_finds_the_pods() -> None:
    objects = render_with(serviceMonitor={"enabled": True})
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    for service in (objects["Service"], objects["Headless"]):
        assert service["spec"]["selector"].items() <= labels
        assert service["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"
    for constraint in pod_of()["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= labels


def test_a_digest_of_the_image_takes_precedence() -> None:
    image = {"repository": "registry.example.com/evalmode", "tag": "3", "digest": DIGEST}
    assert pod_of(image=image)["containers"][0]["image"] == f"registry.example.com/evalmode@{DIGEST}"


def test_the_base_of_kustomize_is_the_chart() -> None:
    """If this fails, run ``python deploy/render.py`` in the environment of make test-manifests."""
    assert BASE.read_text() == render_base()
