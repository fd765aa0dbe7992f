"""docker/compose.yaml is valid, and its profiles name what the configurations that it mounts name."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
FILE: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, Any] = FILE["services"]
BUILT = ("train", "serve", "serve-2")


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [
        Path(sysconfig.get_path("scripts")) / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        path,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def list_mounts(service: str) -> dict[str, str]:
    """The paths that a service mounts from this repository, by the path in the container."""
    pairs = [one.split(":") for one in SERVICES[service].get("volumes", []) if isinstance(one, str)]
    return {pair[1]: pair[0] for pair in pairs if pair[0].startswith(".")}


def list_aliases(service: str) -> list[str]:
    return list(SERVICES[service]["networks"]["default"]["aliases"])


def read(service: str, path: str) -> Any:
    """The content of a file that a service mounts."""
    return yaml.safe_load((COMPOSE.parent / list_mounts(service)[path]).read_text())


def test_the_file_fulfils_the_specification() -> None:
    done = check(COMPOSE)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_key_fails(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("depends_on:", "depend_on:"))
    done = check(tmp_path / "compose.yaml")
    assert done.returncode == 1
    assert "depend_on" in done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_every_file_that_is_mounted_exists(service: str) -> None:
    for path in list_mounts(service).values():
        assert (COMPOSE.parent / path).is_file(), path


def test_without_a_profile_there_are_training_and_one_server() -> None:
    assert [name for name, one in SERVICES.items() if "profiles" not in one] == ["train", "serve"]


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {*BUILT}))
def test_images_of_others_are_pinned(service: str) -> None:
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", SERVICES[service]["image"])


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_open_for_this_machine_alone(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", []))


def test_envoy_finds_both_servers_by_name() -> None:
    (cluster,) = read("envoy", "/etc/envoy/envoy.yaml")["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    names = [one["endpoint"]["address"]["socket_address"]["address"] for one in group["lb_endpoints"]]
    assert len(names) == 2
    for name, service in zip(names, ("serve", "serve-2"), strict=True):
        assert name in list_aliases(service)


def test_prometheus_scrapes_every_server_as_the_job_of_the_alerts() -> None:
    configuration = read("prometheus", "/etc/prometheus/prometheus.yml")
    (job,) = configuration["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert job["job_name"] == "evalmode"
    assert all(discovery["names"][0] in list_aliases(service) for service in ("serve", "serve-2"))
    assert "8002" in (ROOT / "docker" / "serving.Dockerfile").read_text().partition("EXPOSE ")[2].split("\n")[0]
    assert discovery["port"] == 8002
    assert configuration["rule_files"] == ["/etc/prometheus/rules.yaml"]
    assert "/etc/prometheus/rules.yaml" in list_mounts("prometheus")


def test_grafana_reads_the_dashboard_and_asks_prometheus() -> None:
    (source,) = read("grafana", "/etc/grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read("grafana", "/etc/grafana/provisioning/dashboards/evalmode.yaml")["providers"]
    assert f"{provider['options']['path']}/evalmode.json" in list_mounts("grafana")
