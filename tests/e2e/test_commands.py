"""The command line: help, exit codes, environment variables, and one line for a user's mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.soak.damage import make_damaged
from evalmode import __version__
from evalmode.artifact.publishing import publish
from evalmode.cli.main import COMMANDS
from tests.conftest import Server, colour_artifact, encode, plain, serving

Evalmode = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
HEAVY_LIBRARIES = ("torch", "onnxruntime", "onnx", "numpy", "sklearn", "PIL")


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("evalmode")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"evalmode, version {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_heavy_library(command: str) -> None:
    code = (
        "import sys\n"
        "from evalmode.cli.main import cli\n"
        f"cli([{command!r}, '--help'], standalone_mode=False)\n"
        f"print('loaded', [name for name in {HEAVY_LIBRARIES!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("loaded []\n"), done.stderr


def test_serve_never_imports_torch(colours: Path) -> None:
    """While a complete server with models runs."""
    code = (
        "import sys\n"
        "from serving.embedded import start_server\n"
        f"with start_server({str(colours)!r}):\n"
        "    print([name for name in ('torch', 'training') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_serve_logs_the_duration_of_each_phase_of_its_start_at_level_debug(colours: Path) -> None:
    with serving(colours, "--log-level", "debug") as server:
        code, logged = server.stop()
    assert code == 0
    phases = re.findall(r"DEBUG ([\d.]+) s: (.*)", logged)
    assert [name for _, name in phases] == ["imports", "models loaded, checked and replayed", "listening"]
    assert sorted(phases) == phases


@pytest.mark.parametrize(
    ("command", "package", "extra"), [("train", "torch", "serve,train"), ("serve", "onnxruntime", "serve")]
)
def test_a_missing_extra_is_reported(command: str, package: str, extra: str, tmp_path: Path, colours: Path) -> None:
    arguments = {"train": ["digits", "--out", str(tmp_path / "run")], "serve": ["--repository", str(colours)]}[command]
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from evalmode.cli.main import main\n"
        f"sys.argv = ['evalmode', {command!r}, *{arguments!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"evalmode: {command} needs the Python package {package!r}: pip install 'evalmode[{extra}]'\n"


BROKEN = {  # failures of installed packages: a missing library, an incompatible numpy, a missing submodule
    "onnxruntime": ("raise ImportError('libx.so.1: cannot open shared object file')", "libx.so.1: cannot open"),
    "numpy": (
        "try:\n    from numpy import _core\n"
        "except ImportError as error:\n    raise ImportError('\\n\\nREAD THIS\\n\\n') from error",
        "cannot import name '_core'",
    ),
    "simplejpeg": ("raise ValueError('numpy.dtype size changed')", "numpy.dtype size changed"),
    "onnx": ("import onnx.onnx_cpp2py_export", "No module named 'onnx.onnx_cpp2py_export'"),
}


IMPORTING = [
    (command, package) for command in ("check", "compare", "certify", "predict", "serve") for package in BROKEN
]
IMPORTING += [("bench", package) for package in BROKEN if package != "onnx"]  # bench does not import onnx


@pytest.mark.parametrize(("command", "package"), IMPORTING)
def test_a_broken_package_is_reported_in_one_line(
    command: str, package: str, colours: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    code, expected = BROKEN[package]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code)
    artifact = colours / "colours/1/model.onnx"
    arguments: dict[str, list[object]] = {
        "check": [artifact],
        "compare": [artifact, artifact, "--images", tmp_path],
        "certify": [artifact, "--repository", tmp_path, "--name", "x"],
        "predict": [artifact, "--file", artifact],
        "serve": ["--repository", colours, "--port", 0, "--no-metrics"],
        "bench": ["127.0.0.1:1"],
    }
    done = evalmode(command, *arguments[command], env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"evalmode: the Python package {package!r} is installed and cannot be imported: {expected}"
    )
    assert done.stderr.endswith(f". Install it again: pip install --force-reinstall {package}\n")
    assert done.stderr.count("\n") == 1


def test_for_a_broken_package_of_the_user_no_installation_is_suggested() -> None:
    code = (
        "import sys; from evalmode.cli import check\n"
        "def fail(*_, **__): from wave import no_such_name\n"
        "check.check.callback = fail\n"
        "from evalmode.cli.main import main\n"
        f"main(['check', {sys.executable!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "evalmode: the Python package 'wave' is installed and cannot be imported: cannot import"
    )
    assert "pip" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train", "no-such-folder", "--out", "run"],
            "no-such-folder is not a folder, a .npz or .tar.gz file, or the name of a data set",
        ),
        (["train", "digits", "--out", "taken"], "taken is not empty"),
        (["train", "digits", "--out", "run", "--image-size", "big"], "'big' is not HxW"),
        (["train", "digits", "--out", "run", "--image-size", "0x8"], "'0x8' is not HxW"),
        (["train", "digits", "--out", "run", "--image-size", "16x16"], "digits are 8x8"),
        (["train", "digits", "--out", "run", "--network", "resnet"], "no network 'resnet'"),
        (["train", "digits", "--out", "run", "--learning-rate", "0"], "0.0 is not in the range 0<x<=1e+30"),
        (["export", "taken", "--repository", "models", "--name", "x"], "taken holds no run"),
        (["export", "taken", "--repository", "models", "--name", "../x"], "model name '../x' is not allowed"),
        (
            ["serve", "--repository", "nowhere", "--port", "0", "--no-metrics"],
            "nowhere does not exist: publish a model with",
        ),
        (["serve", "--repository", "broken", "--port", "0", "--no-metrics"], "broken/x/1/model.onnx: "),
        (
            ["serve", "--repository", "models", "--port", "0", "--no-metrics", "--provider", "cuda"],
            "built without CUDA",
        ),
        (["serve", "--repository", "broken", "--max-batch", "0"], "0 is not in the range 1<=x<=64"),
        (["predict", "taken", "--file", "broken/x/1/model.onnx"], "taken holds no image"),
        (["predict", "cat.png", "--file", "broken/x/1/model.onnx"], "not an ONNX file"),
        (["predict", "cat.png", "--json", "--csv"], "exclude each other"),
        (["predict", "cat.png", "--address", "127.0.0.1:1"], "UNAVAILABLE"),
        (["predict", "no-such.png"], "does not exist"),
        (["bake"], "No such command 'bake'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, evalmode: Evalmode
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("notes")
    (tmp_path / "broken" / "x" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "x" / "1" / "model.onnx").write_text("no model")
    (tmp_path / "cat.png").write_bytes(encode(plain("red")))
    publish(tmp_path / "models", "colours", colour_artifact())
    done = evalmode(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith(("evalmode: ", "Error: "))]) == 1
    assert (tmp_path / "taken" / "notes.txt").read_text() == "notes"
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_failed_training_can_be_repeated_with_the_same_out(tmp_path: Path, evalmode: Evalmode) -> None:
    """An error that is found late leaves no files that block the next training."""
    assert evalmode("train", "digits", "--out", "run", "--network", "resnet", cwd=tmp_path).returncode == 2
    assert evalmode("train", "digits", "--out", "run", "--epochs", 1, cwd=tmp_path).returncode == 0


def test_a_non_finite_loss_is_exit_code_1(tmp_path: Path, evalmode: Evalmode) -> None:
    done = evalmode("train", "digits", "--out", "run", "--learning-rate", 1e30, cwd=tmp_path)
    assert done.returncode == 1
    assert "epoch 1, step" in done.stderr
    assert "try a lower --learning-rate" in done.stderr


def test_options_override_the_environment_and_the_environment_overrides_defaults(
    colours: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    image = tmp_path / "red.png"
    image.write_bytes(encode(plain("red")))
    command = ("predict", image, "--file", colours / "colours/1/model.onnx", "--json")

    def labels(*options: object, **environment: str) -> int:
        done = evalmode(*command, *options, env={**os.environ, **environment})
        return len(json.loads(done.stdout)["scores"])

    assert labels() == 3
    assert labels(EVALMODE_TOP_K="1") == 3
    assert labels(EVALMODE_PREDICT_TOP_K="1") == 1
    assert labels("--top-k", 2, EVALMODE_PREDICT_TOP_K="1") == 2


def test_predict_continues_after_an_unreadable_image(server: Server, tmp_path: Path, evalmode: Evalmode) -> None:
    for colour in ("red", "green"):
        (tmp_path / colour).mkdir()
        (tmp_path / colour / "a.png").write_bytes(encode(plain((255, 0, 0) if colour == "red" else (0, 255, 0))))
    (tmp_path / "green" / "b.png").write_bytes(b"no image")
    done = evalmode("predict", tmp_path, "--address", server.address, "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(a["image"]).parent.name, a["scores"][0]["label"]) for a in answers] == [
        ("green", "green"),
        ("red", "red"),
    ]
    assert "accuracy 1.0000: 2 of 2" in done.stderr
    assert "b.png: INVALID_ARGUMENT: not an image" in done.stderr
    assert "1 of 3 images were not classified" in done.stderr
    assert done.returncode == 2


def test_predict_continues_after_an_image_that_is_too_large_for_the_server(
    colours: Path, tmp_path: Path, evalmode: Evalmode
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for name, pixels in (("a", plain("red")), ("b", noise), ("c", plain("blue"))):
        (tmp_path / f"{name}.png").write_bytes(encode(pixels))
    with serving(colours, "--max-request-bytes", 1024) as server:
        done = evalmode("predict", tmp_path, "--address", server.address, "--json")
    assert [json.loads(line)["scores"][0]["label"] for line in done.stdout.splitlines()] == ["red", "blue"]
    assert f"{tmp_path / 'b.png'}: RESOURCE_EXHAUSTED" in done.stderr
    assert done.stderr.endswith("1 of 3 images were not classified\n")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("first", "labels", "failure"),
    [(encode(plain("red")), ["red"], None), (b"no image", [], "INVALID_ARGUMENT: not an image")],
    ids=["answered", "refused"],
)
def test_predict_prints_what_it_has_if_the_server_ends(
    first: bytes, labels: list[str], failure: str | None, colours: Path, tmp_path: Path
) -> None:
    (tmp_path / "first.png").write_bytes(first)
    later = tmp_path / "later.png"
    os.mkfifo(later)
    with serving(colours) as server:
        images = (tmp_path / "first.png", later, tmp_path / "first.png")
        command = [
            sys.executable,
            "-m",
            "evalmode",
            "predict",
            *map(str, images),
            "--address",
            server.address,
            "--json",
        ]
        predicting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with later.open("wb") as pipe:  # opened once the first image is answered or refused
            server.process.kill()
            server.process.wait()
            pipe.write(encode(plain("blue")))
        printed, failed = predicting.communicate(timeout=60)
    assert [json.loads(line)["scores"][0]["label"] for line in printed.splitlines()] == labels
    assert failure is None or f"{images[0]}: {failure}" in failed
    assert f"{later}: UNAVAILABLE" in failed
    assert failed.endswith(f"; {3 - len(labels)} of 3 images were not classified\n")
    assert predicting.returncode == 2


def test_predict_asks_a_busy_server_again(colours: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    (tmp_path / "red.png").write_bytes(encode(plain("red")))
    images = [tmp_path / "red.png"] * 50
    with serving(colours, "--max-queue", 1) as server, ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: evalmode("predict", *images, "--address", server.address, "--csv"), range(8)))
        with urlopen(f"http://{server.metrics}/metrics", timeout=10) as page:
            assert 'reason="QUEUE_FULL"' in page.read().decode()
    assert [run.returncode for run in runs] == [0] * 8


def test_predict_prints_a_table(server: Server, tmp_path: Path, evalmode: Evalmode) -> None:
    (tmp_path / "sea.png").write_bytes(encode(plain("blue")))
    done = evalmode("predict", tmp_path / "sea.png", "--address", server.address, "--top-k", 2)
    assert done.returncode == 0
    assert "blue" in done.stdout
    assert "1.000" in done.stdout
    assert "accuracy" not in done.stderr


def test_a_closed_pipe_is_not_an_error(colours: Path, tmp_path: Path) -> None:
    for index in range(300):
        (tmp_path / f"{index}.png").write_bytes(encode(plain("red")))
    command = f"{sys.executable} -m evalmode predict {tmp_path} --file {colours}/colours/1/model.onnx --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


class TestPredictReads:
    """The files that ``predict`` reads, and its messages for the others."""

    @pytest.fixture
    def model(self, colours: Path) -> Path:
        return colours / "colours/1/model.onnx"

    @pytest.mark.parametrize("name", ["-", "/dev/stdin"])
    def test_standard_input(self, model: Path, server: Server, name: str) -> None:
        for where in (("--file", model), ("--address", server.address)):
            command = [sys.executable, "-m", "evalmode", "predict", name, *map(str, where), "--json"]
            done = subprocess.run(command, input=encode(plain("green")), capture_output=True)
            answer = json.loads(done.stdout)
            assert (answer["image"], answer["scores"][0]["label"]) == (name, "green")
            assert done.returncode == 0
            done = subprocess.run(command, input=b"", capture_output=True)
            assert b"image is empty: 0 bytes" in done.stderr
            assert done.returncode == 2

    def test_a_pipe(self, model: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "red.png").write_bytes(encode(plain("red")))
        command = f"cat {tmp_path}/red.png > {tmp_path}/pipe & {sys.executable} -m evalmode predict {tmp_path}/pipe"
        done = subprocess.run(
            f"{command} --file {model} --json", shell=True, capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout)["scores"][0]["label"] == "red"

    def test_an_infinite_pipe_only_up_to_the_limit(self, model: Path, evalmode: Evalmode) -> None:
        done = evalmode("predict", "/dev/zero", "--file", model, "--max-image-bytes", 5000)
        assert done.returncode == 2
        assert "/dev/zero: image is more than 5000 bytes, the limit" in done.stderr

    def test_file_names_of_any_encoding(self, model: Path, tmp_path: Path) -> None:
        name = os.fsencode(tmp_path) + b"/caf\xe9.png"
        Path(os.fsdecode(name)).write_bytes(encode(plain("blue")))
        for option in ("--json", "--csv", "--top-k=1"):
            command: list[str | bytes] = [
                sys.executable,
                "-m",
                "evalmode",
                "predict",
                name,
                "--file",
                str(model),
                option,
            ]
            for locale in ("C", "C.UTF-8", "POSIX"):
                done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": locale})
                assert done.returncode == 0, done.stderr
                assert b"blue" in done.stdout
                assert b"caf" in done.stdout

    def test_images_at_every_depth_and_reports_other_files(
        self, model: Path, tmp_path: Path, evalmode: Evalmode
    ) -> None:
        images = ("red/a.png", "red/day2/b.png", "green/c.jfif", "green/d.JPE")
        for name in (*images, "red/._a.png", "red/@eaDir/a.png", "red/.ipynb_checkpoints/a.png", "red/e.tga"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            image_format = "PNG" if name.endswith("png") else "JPEG"
            (tmp_path / name).write_bytes(encode(plain((0, 255, 0) if "green" in name else "red"), image_format))
        done = evalmode("predict", tmp_path, "--file", model, "--json")
        assert done.returncode == 0
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [Path(answer["image"]).relative_to(tmp_path).as_posix() for answer in answers] == sorted(images)
        suffixes = ".jpg, .jpeg, .jpe, .jfif, .png, .apng, .webp, .bmp, .gif, .tif, .tiff, .avif, .heic, .heif"
        assert f"left out 1 file that is not an image (images end in {suffixes}): {tmp_path}/red/e.tga" in done.stderr
        assert "accuracy 1.0000: 4 of 4" in done.stderr

    def test_no_image_over_its_limits(self, model: Path, tmp_path: Path, evalmode: Evalmode) -> None:
        (tmp_path / "red.png").write_bytes(encode(plain("red", (40, 30))))
        size = (tmp_path / "red.png").stat().st_size
        command = ("predict", tmp_path, "--file", model)
        done = evalmode(*command, "--max-image-pixels", 1199)
        assert "red.png: image is 40x30 = 1200 pixels, the limit is 1199" in done.stderr
        done = evalmode(*command, "--max-image-bytes", size - 1)
        assert f"red.png: image is more than {size - 1} bytes, the limit" in done.stderr
        assert evalmode(*command, "--max-image-pixels", 1200, "--max-image-bytes", size).returncode == 0
        done = evalmode("predict", tmp_path, "--max-image-pixels", 5)
        assert (done.returncode, done.stderr.strip()) == (
            2,
            "evalmode: --max-image-pixels is for --file: a server has its own limit",
        )

    def test_no_damaged_image_with_a_file_or_a_server(
        self, model: Path, server: Server, tmp_path: Path, evalmode: Evalmode
    ) -> None:
        damaged = [one for one in make_damaged(60) if one.is_corrupt()]
        for index, one in enumerate(damaged):
            (tmp_path / f"{index}{one.suffix}").write_bytes(one.image)
        for where in (("--file", model), ("--address", server.address)):
            done = evalmode("predict", tmp_path, *where)
            assert f"{len(damaged)} of {len(damaged)} images were not classified" in done.stderr
            assert done.returncode == 2

    def test_no_image_from_a_closed_standard_input(self, model: Path) -> None:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "evalmode", "predict", "-"]
        done = subprocess.run([*command, "--file", str(model)], capture_output=True, text=True)
        expected = ["evalmode: -: image is empty: 0 bytes", "evalmode: 1 of 1 images were not classified"]
        assert (done.returncode, done.stderr.splitlines()) == (2, expected)

    def test_folder_names_in_the_unicode_form_of_macos(self, tmp_path: Path, evalmode: Evalmode) -> None:
        model = publish(tmp_path / "models", "colours", colour_artifact(("ros\u00e9", "green", "blue")))
        (tmp_path / "images" / "rose\u0301").mkdir(parents=True)
        for name in ("1.png", "2.png"):
            (tmp_path / "images" / "rose\u0301" / name).write_bytes(encode(plain("red")))
        done = evalmode("predict", tmp_path / "images", "--file", model)
        assert "accuracy 1.0000: 2 of 2" in done.stderr

    def test_what_answered_is_named_and_one_image_has_no_accuracy(
        self, model: Path, server: Server, tmp_path: Path, evalmode: Evalmode
    ) -> None:
        (tmp_path / "red").mkdir()
        (tmp_path / "red" / "1.png").write_bytes(encode(plain("red")))
        for where, what in (
            (("--file", model), str(model)),
            (("--address", server.address), f"colours/1 at {server.address}"),
        ):
            done = evalmode("predict", tmp_path / "red" / "1.png", *where)
            assert re.fullmatch(f"model    {re.escape(what)}, sha256:[0-9a-f]{{12}}", done.stdout.splitlines()[-1])
            assert not done.stderr

    def test_the_option_that_names_a_model(self, server: Server, tmp_path: Path, evalmode: Evalmode) -> None:
        (tmp_path / "1.png").write_bytes(encode(plain("red")))
        done = evalmode("predict", tmp_path / "1.png", "--address", server.address, "--model", "colours/1")
        assert done.returncode == 2
        assert "served: colours/1; the version has a field of its own (--model NAME, and --version N" in done.stderr

    def test_no_table_without_an_answer(self, model: Path, tmp_path: Path, evalmode: Evalmode) -> None:
        (tmp_path / "notes.png").write_text("text")
        done = evalmode("predict", tmp_path / "notes.png", "--file", model)
        assert (done.returncode, done.stdout) == (2, "")


UNPRIVILEGED = (
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
)  # root without the capabilities that override permissions


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "hidden/x"),
        ("predict", "hidden/x"),
        ("predict", "x", "--file", "hidden/x"),
        ("bench", "--image", "hidden/x"),
        ("serve", "--repository", ".", "--tokens", "hidden/x"),
        ("compare", "hidden/x", "x", "--images", "."),
        ("certify", "x", "--samples", "hidden/x", "--repository", ".", "--name", "x"),
        ("export", "hidden/x", "--repository", ".", "--name", "x"),
        ("report", "hidden/x"),
    ],
    ids=" ".join,
)
def test_a_forbidden_path_is_not_reported_as_missing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    for place in (tmp_path, tmp_path / "hidden"):
        (place / "x").write_text("")
    (tmp_path / "hidden").chmod(0)
    command = [*UNPRIVILEGED, sys.executable, "-m", "evalmode", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    (tmp_path / "hidden").chmod(0o700)
    assert done.returncode == 2
    assert "'hidden/x': Permission denied" in done.stderr
    assert "does not exist" not in done.stderr


def test_certify_checks_the_repository_before_it_reads_the_network(tmp_path: Path, evalmode: Evalmode) -> None:
    """The repository is writable, but the folder of the model is not."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x").write_text("no folder")
    (tmp_path / "network.onnx").write_text("no network")
    done = evalmode("certify", "network.onnx", "--repository", "models", "--name", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("evalmode: models/x: ") or done.stderr.startswith(f"evalmode: {tmp_path}/models/x: ")


def test_export_checks_the_repository_before_it_reads_the_run(tmp_path: Path, evalmode: Evalmode) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x-int8").write_text("no folder")
    (tmp_path / "run").mkdir()
    done = evalmode("export", "run", "--repository", "models", "--name", "x", "--quantize", "int8", cwd=tmp_path)
    assert done.returncode == 2
    assert "models/x-int8: Not a directory" in done.stderr


@pytest.mark.parametrize("command", ["train", "predict", "certify", "compare", "serve"])
def test_every_command_that_reads_images_has_the_options_of_image_limits(command: str, evalmode: Evalmode) -> None:
    shown = evalmode(command, "--help").stdout
    assert "--max-image-bytes" in shown
    assert "--max-image-pixels" in shown


@pytest.mark.parametrize("command", ["bench", "certify", "predict"])
def test_help_shows_no_empty_default(command: str, evalmode: Evalmode) -> None:
    assert 'default: ""' not in evalmode(command, "--help").stdout


def test_json_output_has_only_the_documented_keys(tmp_path: Path, evalmode: Evalmode) -> None:
    """docs/reference/commands.md lists the keys of each command."""

    def ask(*arguments: object) -> dict[str, object]:
        done = evalmode(*arguments, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        rows = re.findall(rf"^\| `{arguments[0]}` \| (.*) \|$", (ROOT / "docs/reference/commands.md").read_text(), re.M)
        assert [key for key in answer if f"`{key}`" not in rows[0]] == []
        return answer

    trained = ask("train", "digits", "--out", "run", "--epochs", 1, "--quiet")
    assert trained["run"] == "run"
    assert (tmp_path / str(trained["report"])).is_file()
    assert ask("report", "run", "--quiet")["report"] == trained["report"]
    first = ask("export", "run", "--repository", "models", "--name", "digits")
    second = ask("export", "run", "--repository", "models", "--name", "digits")
    assert (first["version"], second["version"], second["path"]) == ("1", "2", "models/digits/2/model.onnx")
    assert first["digest"] == second["digest"]
    pixels, targets = load_digits(return_X_y=True)
    for index in range(0, 400):
        folder = tmp_path / "images" / str(targets[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels[index].reshape(8, 8) / 16 * 255).astype(np.uint8)).save(folder / f"{index}.png")
    compared = ask("compare", first["path"], second["path"], "--images", "images", "--max-changed", "0%")
    assert (compared["images"], compared["changed"], compared["passed"]) == (400, [], True)
    rolled_back = {"name": "digits", "withdrawn": "2", "newest": "1", "kept": "models/digits/.withdrawn-2"}
    assert ask("rollback", "digits", "--repository", "models") == rolled_back


def test_quiet_prints_nothing(colours: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    publish(tmp_path, "colours", colour_artifact())
    publish(tmp_path, "colours", colour_artifact())
    done = evalmode("rollback", "colours", "--repository", tmp_path, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    refused = evalmode("rollback", "colours", "--repository", tmp_path, "--quiet", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has only version 1: there is no version to roll back to" in refused.stderr


def test_answers_before_an_error_are_printed(colours: Path, tmp_path: Path, evalmode: Evalmode) -> None:
    (tmp_path / "a.png").write_bytes(encode(plain("red")))
    (tmp_path / "b.png").write_bytes(b"no image")
    done = evalmode("predict", tmp_path, "--file", colours / "colours/1/model.onnx", "--csv", "--top-k", 1)
    assert done.returncode == 2
    assert [line.split(",")[2] for line in done.stdout.splitlines()] == ["label", "red"]
