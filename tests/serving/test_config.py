"""The configuration of a server: each field is an option of the command and has one range check."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import pytest

from evalmode.cli.serve import serve
from evalmode.errors import UsageError
from evalmode.limits import Limits
from evalmode.options import list_options
from serving.config import VARIABLE_PREFIX, LogConfig, ServeConfig
from serving.engine import memory

OPTIONS = list_options(ServeConfig, LogConfig)


def make_config(**options: Any) -> ServeConfig:
    return ServeConfig.from_options({"repository": "models", **options})


def test_every_field_and_every_limit_is_an_option_of_the_command() -> None:
    names = [*(one.name for config in (ServeConfig, LogConfig, Limits) for one in fields(config))]
    names.remove("limits")
    assert [parameter.name for parameter in serve.params] == names
    assert [parameter.opts for parameter in serve.params] == [[option.flag] for option in OPTIONS]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_command_takes_each_option_from_its_environment_variable(option: Any) -> None:
    (parameter,) = (one for one in serve.params if one.name == option.name)
    context = click.Context(serve, info_name="serve", auto_envvar_prefix="EVALMODE_SERVE")
    value = "1" if option.kind is bool else str(option.rules.get("minimum", [*option.choices, "x"][0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"{VARIABLE_PREFIX}{option.name.upper()}", value)
        assert parameter.value_from_envvar(context)


def test_omitted_options_have_the_defaults_of_the_fields() -> None:
    config = make_config(port=0, max_queue=3)
    assert (config.repository, config.port, config.transport, config.poll) == (Path("models"), 0, "grpcio", 1.0)
    assert (config.limits.max_queue, config.limits.max_batch) == (3, Limits().max_batch)


def test_the_default_limit_on_requests_fits_into_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "read_memory_limit", lambda root: memory.MemoryLimit(512 * 2**20, "the cgroup's limit"))
    with caplog.at_level("INFO"):
        assert make_config().limits.max_request_bytes == 8 * 2**20
        assert make_config(max_request_bytes=2**20 * 32).limits.max_request_bytes == 2**20 * 32
    assert caplog.messages == [
        "requests are limited to 8388608 bytes: the cgroup's limit is 512 MiB; set --max-request-bytes to change this"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"porf": 1}, "a server has no option 'porf': did you mean 'port'?"),
        ({"log_format": "json"}, "a server has no option 'log_format'"),
        ({"port": "8001"}, "port '8001' is not of type int"),
        ({"port": True}, "port True is not of type int"),
        ({"port": 65536}, "port 65536 is out of range: at least 0, at most 65535"),
        ({"poll": 0.01}, "poll 0.01 is out of range: at least 0.05"),
        ({"transport": "http"}, "transport 'http' is unknown: choose grpcio or native"),
        ({"max_queue": 4097}, "max_queue 4097 is out of range: at least 0, at most 4096"),
        ({"max_queue": "many"}, "max_queue 'many' is not of type int"),
        ({"model": 3}, "model 3 is not of type tuple"),
        ({"model": [3]}, "model (3,) is not of type tuple"),
        ({"model": True}, "model True is not of type tuple"),
        ({"follow_links": 1}, "follow_links 1 is not of type tuple"),
        ({"model": "cats"}, "--model 'cats': use NAME@VERSION, such as cats@3"),
        ({"port": 7000, "metrics_port": 7000}, "--port and --metrics-port are both 7000: choose two different ports"),
        ({"tls_cert": "cert.pem"}, "TLS needs both --tls-cert and --tls-key; --tls-client-ca is used in addition"),
        ({"enable_control": True}, "needs both --enable-control and --control-tokens FILE"),
        ({"workers": "0"}, "--workers '0': use a number from 1 to 256, or auto"),
        ({"workers": "many"}, "--workers 'many': use a number from 1 to 256, or auto"),
        ({"workers": "2", "host": "unix:x"}, "several workers cannot share a Unix socket"),
        ({"transport": "native", "host": "unix:x"}, "--transport native does not support unix:PATH"),
        ({"transport": "native", "host": "0.0.0.0"}, "admit trusted clients only and add --allow-unbounded-messages"),
        (
            {"transport": "native", "tls_cert": "cert.pem", "tls_key": "key.pem"},
            "--transport native does not support TLS",
        ),
    ],
    ids=lambda value: " ".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_invalid_options_are_rejected_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_config(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ("/",)),
        (False, ()),
        ("blobs", ("blobs",)),
        (Path("blobs"), ("blobs",)),
        ([Path("blobs"), "volume"], ("blobs", "volume")),
    ],
)
def test_followed_links_are_folders_or_the_flag_of_earlier_releases(value: object, expected: tuple[str, ...]) -> None:
    assert make_config(follow_links=value).follow_links == expected


def test_the_number_of_workers_is_that_of_the_cpus_unless_the_port_cannot_be_shared() -> None:
    with patch("serving.config.count_cpus", lambda: 3):
        assert make_config().worker_count == 1
        assert make_config(workers="2").worker_count == 2
        assert make_config(workers="auto").worker_count == 3
        assert make_config(workers="auto", host="unix:x").worker_count == 1


def test_a_repository_is_required() -> None:
    with pytest.raises(UsageError, match="needs the option 'repository'"):
        ServeConfig.from_options({"port": 0})


def test_python_values_are_converted_to_the_type_of_the_field() -> None:
    config = make_config(model=["cats@3", "dogs@1"], poll=1, tokens="tokens")
    assert config.pinned == {"cats": 3, "dogs": 1}
    assert (config.poll, config.tokens) == (1.0, Path("tokens"))
    assert make_config(model="cats@3").model == ("cats@3",)


def test_a_model_is_pinned_to_one_version() -> None:
    assert make_config(model=["cats@3", "cats@3"]).pinned == {"cats": 3}
    with pytest.raises(UsageError, match="cats is pinned to the versions 3 and 4: choose one"):
        make_config(model=["cats@3", "dogs@1", "cats@4"])


def test_the_constructor_checks_the_configuration_too() -> None:
    with pytest.raises(UsageError, match="port 65536 is out of range"):
        ServeConfig(repository=Path("models"), port=65536)
    with pytest.raises(UsageError, match="log_level 'loud' is unknown: choose debug or info"):
        LogConfig(log_level="loud")


def test_the_health_check_of_the_image_reads_the_options_of_the_server() -> None:
    """It is a script outside the packages: nothing listens on the port that its environment names."""
    script = Path(__file__).parents[2] / "docker" / "healthcheck.py"
    environment = {**os.environ, f"{VARIABLE_PREFIX}METRICS_PORT": "9"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.partition(": ")[0]) == (1, "http://127.0.0.1:9/livez")
