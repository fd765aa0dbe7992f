"""Networks of timm: their stages, their input, their weights, and the errors of each."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evalmode.images.pixels import Resize
from training.errors import NetworkError
from training.networks import PretrainedNetwork, build_network, get_architecture
from training.networks.backbone import AveragePool
from training.networks.timm import OPERATORS, TIMM, _import_timm
from training.networks.timm_stages import Pool, Whole
from training.recipe import Recipe
from training.tensors import save_tensors
from training.trial import try_network

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="evalmode[timm] is not installed")
SIDE = 64  # pixels


def build(name: str, side: int = SIDE) -> Any:
    torch.manual_seed(0)
    return build_network(f"timm:{name}", (side, side, 3), 4, 1.0, 0.2)


def create(name: str) -> Any:
    torch.manual_seed(0)
    return _import_timm("timm:").create_model(name, num_classes=0).eval()


def shake(module: nn.Module) -> dict[str, Tensor]:
    """Give every weight and statistic another value, as training would."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.05)
    return module.state_dict()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stages", "pool"),
    [
        ("test_resnet", 7, AveragePool),  # its stem has two convolutions
        ("test_efficientnet", 7, AveragePool),
        ("test_convnext", 5, Pool),  # a norm after the pooling
        ("test_vit", 1, nn.Identity),  # adds positions and a token: more than its modules in their order
        ("mobilenetv3_small_050", 7, Pool),  # a convolution after the pooling
    ],
)
def test_features_equal_those_of_the_model_with_any_weights(name: str, stages: int, pool: type, tmp_path: Path) -> None:
    model, side = create(name), 160 if name == "test_vit" else SIDE
    (tmp_path / "model.safetensors").write_bytes(save_tensors(shake(model)))
    network = build(name, side)
    described = TIMM.load_weights(network, f"timm:{name}", tmp_path / "model.safetensors")
    assert described.startswith("model.safetensors sha256:")
    assert (len(network.stages), type(network.pool)) == (stages, pool)
    assert isinstance(network.stages[0], Whole) == (stages == 1)
    images = torch.rand((2, 3, side, side)) * 2 - 1
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[one])[:, None, None] for one in ("mean", "std"))
    wanted = model.forward_head(model.forward_features(((images + 1) / 2 - mean) / std), pre_logits=True)
    torch.testing.assert_close(network.eval().extract(images), wanted, rtol=1e-4, atol=1e-5)
    names = [one for one in network.state_dict() if not one.startswith(("head.", "scale."))]
    assert len(names) == len(model.state_dict())  # no weight is saved twice


def test_a_network_of_timm_can_be_trained_and_exported() -> None:
    network = build("test_efficientnet", 32)
    warnings: list[str] = []
    try_network("timm:test_efficientnet", network, (32, 32, 3), 4, warnings.append)
    assert warnings == []


def test_images_are_those_of_the_pretraining() -> None:
    suited = TIMM.describe_input("timm:test_resnet")
    assert suited.size == (160, 160)
    assert suited.resize == Resize(160 / 168, "bilinear")  # timm resizes to int(160 / 0.95)
    assert TIMM.describe_input("timm:resnet18.tv_in1k").resize == Resize(0.875, "bilinear")
    assert TIMM.describe_input("timm:resnet18.a1_in1k").resize == Resize(224 / 235, "bicubic")


def test_an_interpolation_that_evalmode_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = _import_timm("timm:")
    config = timm.data.resolve_data_config(pretrained_cfg={"interpolation": "random"})
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda pretrained_cfg: config)
    with pytest.raises(NetworkError, match="timm:test_vit resizes images by 'random', which is not supported: nearest"):
        TIMM.describe_input("timm:test_vit")


def test_a_network_of_timm_has_the_recipe_of_pretrained_networks() -> None:
    architecture = get_architecture("timm:test_vit")
    assert architecture is TIMM
    assert architecture.options == {"dropout"}
    assert architecture.module is PretrainedNetwork
    assert Recipe("timm:test_vit").network == "timm:test_vit"


def test_grey_images_are_accepted() -> None:
    network: Any = build_network("timm:test_efficientnet", (32, 32, 1), 4, 1.0, 0.2)
    assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


def test_an_unknown_name_is_refused_with_similar_ones() -> None:
    with pytest.raises(NetworkError, match=r"timm \S+ has no network 'resnet19': timm:resnet18"):
        build("resnet19")
    with pytest.raises(NetworkError, match=r"has no network 'hf-hub:somebody/model': timm.list_models"):
        build("hf-hub:somebody/model")


def test_images_of_another_size_than_a_network_takes_are_refused() -> None:
    with pytest.raises(NetworkError, match="does not take images of 64x64, it is made for 224x224: AssertionError: "):
        build("vit_tiny_patch16_224")


def test_weights_that_cannot_be_downloaded_name_the_way_without(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, create_model = _import_timm("timm:"), _import_timm("timm:").create_model

    def fail(name: str, pretrained: bool, **options: Any) -> Any:
        if pretrained:
            raise ConnectionError("[Errno -3] Temporary failure in name resolution\nand more")
        return create_model(name, pretrained, **options)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(NetworkError) as refused:
        TIMM.load_weights(build("test_efficientnet"), "timm:test_efficientnet", None)
    message = str(refused.value)
    assert message.startswith(
        "the weights of timm:test_efficientnet cannot be downloaded: a download failed ([Errno -3]"
    )
    assert message.endswith("Give --weights FILE, its model.safetensors from Hugging Face")
    assert "\n" not in message


def test_weights_of_the_hub_are_described_by_their_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    timm, create_model = _import_timm("timm:"), _import_timm("timm:").create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create_model(name, **options))
    network = build("test_efficientnet")
    torch.manual_seed(5)
    first = TIMM.load_weights(network, "timm:test_efficientnet", None)
    second = TIMM.load_weights(network, "timm:test_efficientnet", None)
    assert first.startswith(f"timm:test_efficientnet of timm {timm.__version__} sha256:")
    assert len(first) == len(second)
    assert first != second  # other weights


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(save_tensors(create("test_resnet").state_dict()))
    with pytest.raises(NetworkError, match=r"does not hold the weights of timm:test_efficientnet: .* are missing"):
        TIMM.load_weights(build("test_efficientnet"), "timm:test_efficientnet", tmp_path / "model.safetensors")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"needs the Python package 'timm': pip install 'evalmode\[serve,train,timm"):
        build("test_resnet")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise ImportError('undefined symbol: _ZN3c10')", "timm cannot be imported: ImportError: undefined symbol"),
        ("raise RuntimeError('operator torchvision::new does not exist')", "timm cannot be imported: RuntimeError: op"),
    ],
)
def test_a_torchvision_that_does_not_fit_torch_is_one_line(
    failure: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text(failure)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    defined: list[str] = []
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    with pytest.raises(NetworkError, match=message):
        build("test_resnet")
    assert len(defined) in (0, len(OPERATORS))
