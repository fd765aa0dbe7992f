"""The chart's values follow the options of the server, and the manifests set options that the server accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from deploy.generate import CHART, LEFT_OUT, SET_BY_THE_CHART, describe_options, read_values, renew_readme, renew_schema
from evalmode import __version__
from evalmode.cli.serve import serve
from evalmode.cli.train import train
from serving.config import VARIABLE_PREFIX

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVERS = [DEPLOY / name for name in ("kustomize/base/evalmode.yaml", "kserve/runtime.yaml", "kserve/volume.yaml")]
JOBS = [DEPLOY / "kustomize" / "training" / name for name in ("job/job.yaml", "torchrun/torchrun.yaml")]


def test_the_schema_and_the_readme_are_up_to_date() -> None:
    """If this fails, run ``python deploy/generate.py``."""
    for name, renew in {"values.schema.json": renew_schema, "README.md": renew_readme}.items():
        text = (CHART / name).read_text()
        assert renew(text) == text


def test_every_value_has_a_comment() -> None:
    rows = read_values((CHART / "values.yaml").read_text())
    assert len(rows) > 40
    assert [name for name, _, comment in rows if not comment] == []


def test_every_option_of_the_server_is_set_by_the_chart_or_by_its_options_or_left_out() -> None:
    options = {parameter.opts[0].removeprefix("--") for parameter in serve.params} - {"help"}
    assert describe_options().keys() | SET_BY_THE_CHART | LEFT_OUT == options
    assert not SET_BY_THE_CHART & LEFT_OUT


def test_the_template_sets_the_options_that_values_may_not() -> None:
    template = (CHART / "templates" / "_pod.tpl").read_text()
    environment = template[: template.index('define "evalmode.optionValue"')]
    assert (
        set(re.findall(r'^ *(?:\{\{- \$_ := set \$set )?"([a-z-]+)" ', environment, re.MULTILINE)) == SET_BY_THE_CHART
    )


def test_the_chart_is_of_this_release() -> None:
    assert f'appVersion: "{__version__}"' in (CHART / "Chart.yaml").read_text()


@pytest.mark.parametrize("path", SERVERS, ids=lambda path: path.stem)
def test_the_server_accepts_the_variables_of_the_manifests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    flow = re.findall(r"\{name: (EVALMODE_SERVE_\w+), value: (\S+)\}", text)
    found = dict(flow or re.findall(r"- name: (EVALMODE_SERVE_\w+)\n +value: (\S+)", text))
    assert len(found) == text.count("name: EVALMODE_SERVE_") > 0
    for name, value in found.items():
        monkeypatch.setenv(name, value.strip("'\""))
    monkeypatch.setenv("EVALMODE_SERVE_REPOSITORY", str(DEPLOY))
    monkeypatch.setenv("EVALMODE_SERVE_FOLLOW_LINKS", str(DEPLOY))  # /mnt/pvc does not exist on this machine
    context = click.Command("serve", params=serve.params).make_context(
        "serve", [], auto_envvar_prefix=VARIABLE_PREFIX.rstrip("_")
    )
    known = {f"{VARIABLE_PREFIX}{name.upper()}" for name in context.params}
    assert found.keys() <= known


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_scripts_of_the_jobs_call_commands_that_exist(path: Path) -> None:
    text = path.read_text()
    (arguments,) = re.findall(r'evalmode (train /data --out "/work/\$RUN" --resume) "\$@"', text)
    context = train.make_context("train", arguments.replace('"', "").split()[1:])
    assert (context.params["resume"], context.params["out"]) == (True, Path("/work/$RUN"))
    assert 'evalmode export "/work/$RUN" --repository /models --name "$NAME"' in text
    assert 'eval "set -- $TRAIN_OPTIONS"' in text


def test_the_schema_is_a_schema_of_json() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() - {"global"} == {
        name.partition(".")[0] for name, _, _ in read_values((CHART / "values.yaml").read_text())
    }
