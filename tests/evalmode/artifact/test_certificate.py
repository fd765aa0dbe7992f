"""The certificate survives writing and reading; the replay rejects a network that differs from it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from evalmode.artifact.certificate import ClassifierCertificate, TensorCertificate
from evalmode.artifact.manifest import ClassifierManifest, TensorManifest
from evalmode.artifact.sealing import check_digest, open_artifact, seal
from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES, Floats, Tensors, scale_tolerance, softmax
from evalmode.certification.certify import certify, choose_golden, draw_golden
from evalmode.certification.runs import Probe, compare_batches
from evalmode.certification.verdicts import examine
from evalmode.errors import (
    ArtifactInvalid,
    BatchMismatch,
    DecoderMismatch,
    DigestMismatch,
    LabelsMismatch,
    ReplayMismatch,
    Uncertified,
)
from evalmode.images.pixels import PixelContract
from evalmode.runtime.loading import LoadOptions, load_artifact, replay
from evalmode.runtime.model import Model
from evalmode.runtime.provider import CUDA
from tests.conftest import COLOURS, colour_artifact, colour_graph, encode

CONTRACT = PixelContract(4, 4, 3)


@pytest.fixture(scope="module")
def certificate() -> ClassifierCertificate:
    found = open_artifact(colour_artifact())[1].certificate
    assert isinstance(found, ClassifierCertificate)
    return found


def answer(logits: Floats) -> Tensors:
    with np.errstate(invalid="ignore"):
        return {PROBABILITIES: softmax(logits).astype(np.float32), LOGITS: logits}


def with_error(certificate: ClassifierCertificate, error: float, alone: bool = True, batch: bool = True):
    """A network with an error in the last logit of the last golden image."""
    golden = certificate.inputs[INPUT]

    def run(inputs: Tensors) -> Tensors:
        pixels = inputs[INPUT]
        places = [int(np.flatnonzero((golden == image).all((1, 2, 3)))[0]) for image in pixels]
        logits = certificate.outputs[LOGITS][places].copy()
        if (alone and len(pixels) == 1) or (batch and len(pixels) > 1):
            logits[np.array(places) == len(golden) - 1, -1] += error
        return answer(logits)

    return run


def test_a_certificate_survives_the_round_trip(certificate: ClassifierCertificate) -> None:
    again = ClassifierCertificate.from_json(certificate.to_json())
    for read, kept in ((again.inputs, certificate.inputs), (again.outputs, certificate.outputs)):
        assert read.keys() == kept.keys()
        for name, array in kept.items():
            assert read[name].dtype == array.dtype
            assert np.array_equal(read[name], array)
    assert vars(replace(again, inputs=certificate.inputs, outputs=certificate.outputs)) == vars(certificate)


def test_the_recorded_outputs_pass_the_replay(certificate: ClassifierCertificate) -> None:
    assert certificate.replay(with_error(certificate, 0), certificate.tolerance, [64])


@pytest.mark.parametrize(("alone", "batch", "where"), [(True, False, "alone"), (False, True, "in a batch of 64")])
@pytest.mark.parametrize("error", [2e-4, -1.0, np.nan, np.inf])
def test_one_wrong_logit_of_one_image_fails_the_replay(
    certificate: ClassifierCertificate, error: float, alone: bool, batch: bool, where: str
) -> None:
    with pytest.raises(ReplayMismatch, match=f"golden input 15 {where} gives logits that differ"):
        certificate.replay(with_error(certificate, error, alone, batch), certificate.tolerance, [64])


def test_the_replay_reports_batch_invariance_within_the_tolerance(certificate: ClassifierCertificate) -> None:
    assert certificate.replay(with_error(certificate, 5e-5), certificate.tolerance, [64])
    assert not certificate.replay(with_error(certificate, 5e-5, alone=False), certificate.tolerance, [64])


def test_probabilities_must_follow_from_the_logits(certificate: ClassifierCertificate) -> None:
    def run(inputs: Tensors) -> Tensors:
        answered = with_error(certificate, 0)(inputs)
        return {**answered, PROBABILITIES: np.roll(answered[PROBABILITIES], 1, axis=1)}

    certificate = replace(certificate, tolerance=2.0)  # so that only the relation of probabilities and logits fails

    with pytest.raises(ReplayMismatch, match=r"probabilities that are not softmax\(logits / 1\)"):
        certificate.replay(run, certificate.tolerance, [64])


def test_outputs_of_another_shape_fail_the_replay(certificate: ClassifierCertificate) -> None:
    def run(inputs: Tensors) -> Tensors:
        return {name: output[:, :2] for name, output in with_error(certificate, 0)(inputs).items()}

    with pytest.raises(ReplayMismatch, match=r"shape \(16, 2\) for \w+, the certificate \(16, 3\)"):
        certificate.replay(run, certificate.tolerance, [64])


def test_a_missing_output_fails_the_replay(certificate: ClassifierCertificate) -> None:
    def run(inputs: Tensors) -> Tensors:
        return {PROBABILITIES: with_error(certificate, 0)(inputs)[PROBABILITIES]}

    with pytest.raises(ReplayMismatch, match="no output for logits"):
        certificate.replay(run, certificate.tolerance, [64])


def test_a_decoder_with_different_pixels_is_detected(certificate: ClassifierCertificate) -> None:
    certificate.check_decoder(CONTRACT)
    with (
        patch("evalmode.artifact.encoded.decode_image", lambda *_: np.zeros(CONTRACT.shape, np.uint8)),
        pytest.raises(DecoderMismatch, match="image 0 of the certificate is decoded to other pixels than"),
    ):
        certificate.check_decoder(CONTRACT)


def test_a_decoder_that_rejects_an_image_is_detected(certificate: ClassifierCertificate) -> None:
    broken = replace(certificate, encoded=(replace(certificate.encoded[0], image=b"no image"),))
    with pytest.raises(DecoderMismatch, match="image 0 of the certificate cannot be decoded: not an image"):
        broken.check_decoder(CONTRACT)


def test_the_encoded_images_are_jpeg_and_png(certificate: ClassifierCertificate) -> None:
    kinds = {one.image[:4] for one in certificate.encoded}
    assert len(certificate.encoded) == 10
    assert kinds == {b"\xff\xd8\xff\xe0", b"\x89PNG"}


def test_every_batch_size_is_replayed(certificate: ClassifierCertificate) -> None:
    seen: list[int] = []

    def run(inputs: Tensors) -> Tensors:
        seen.append(len(inputs[INPUT]))
        return with_error(certificate, 0)(inputs)

    with pytest.raises(ReplayMismatch, match="golden input 15 in a batch of 21"):
        certificate.replay(with_error(certificate, 2e-4, alone=False), certificate.tolerance, [3, 21, 64])
    certificate.replay(run, certificate.tolerance, [3, 21])
    assert seen == [1] * 16 + [3, 21]


def test_reordered_labels_are_detected(certificate: ClassifierCertificate) -> None:
    certificate.check_labels(COLOURS)
    reordered = tuple(reversed(COLOURS))
    with pytest.raises(LabelsMismatch, match=r"golden image 1 was .* and would be .* they were changed or reordered"):
        certificate.check_labels(reordered)
    graph, manifest = open_artifact(colour_artifact())
    assert isinstance(manifest, ClassifierManifest)
    with pytest.raises(LabelsMismatch):
        load_artifact(seal(graph, replace(manifest, labels=reordered)))


@pytest.mark.parametrize("name", ["tolerance", "batch_invariant", "temperature"])
def test_a_certificate_with_an_invalid_value_is_rejected(name: str) -> None:
    graph, manifest = open_artifact(colour_artifact())
    assert manifest.certificate is not None
    facts = manifest.certificate.to_json() | {name: {"tolerance": 1e9, "batch_invariant": "false"}.get(name, 3.0)}
    with (
        patch.object(ClassifierCertificate, "to_json", lambda _: facts),
        pytest.raises(ArtifactInvalid, match=f"the artifact's metadata is damaged: .*{name}"),
    ):
        open_artifact(seal(graph, manifest))


@pytest.mark.parametrize("field", ["inputs", "outputs", "targets", "answers", "tolerance", "encoded"])
def test_a_damaged_certificate_is_rejected(field: str) -> None:
    graph, manifest = open_artifact(colour_artifact())
    assert manifest.certificate is not None
    facts = manifest.certificate.to_json()
    facts[field] = {"targets": ["", ""], "tolerance": "much"}.get(field, "AAAA")
    with (
        patch.object(ClassifierCertificate, "to_json", lambda _: facts),
        pytest.raises(ArtifactInvalid, match="the artifact's metadata is damaged"),
    ):
        open_artifact(seal(graph, manifest))


def test_data_larger_than_their_shape_are_not_unpacked() -> None:
    """A small file must not expand to gigabytes of memory."""
    import zlib

    graph, manifest = open_artifact(colour_artifact())
    assert manifest.certificate is not None
    facts = manifest.certificate.to_json()
    facts["inputs"][INPUT]["data"] = base64.b64encode(zlib.compress(bytes(2**26), 9)).decode()
    with (
        patch.object(ClassifierCertificate, "to_json", lambda _: facts),
        pytest.raises(ArtifactInvalid, match="the artifact's metadata is damaged"),
    ):
        open_artifact(seal(graph, manifest))


def test_the_unpacked_size_of_all_tensors_is_checked_before_any_is_unpacked(
    certificate: ClassifierCertificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor is below the limit; their sum is above."""
    facts = certificate.to_json()
    rows = len(facts["targets"])
    packed = {"dtype": "uint8", "shape": [rows, 2**26 // rows], "data": "AAAA"}
    facts["outputs"] = {f"output{number}": packed for number in range(3)}
    monkeypatch.setattr("evalmode.artifact.packing.zlib", None)
    with pytest.raises(ValueError, match="unpacks to 201328560 bytes, at most 134217728 are allowed: certify it with"):
        ClassifierCertificate.from_json(facts)


def test_the_unpacked_size_includes_the_encoded_images(certificate: ClassifierCertificate) -> None:
    facts = certificate.to_json()
    picture = Image.new("L", (8000, 6000))
    facts["encoded"] = [{"image": base64.b64encode(encode(picture)).decode(), "digest": ""}]
    rows = len(facts["targets"])
    facts["outputs"] = {"output": {"dtype": "uint8", "shape": [rows, 2**26 * 3 // 2 // rows], "data": "AAAA"}}
    with pytest.raises(ValueError, match="unpacks to 148664064 bytes"):
        ClassifierCertificate.from_json(facts)


@pytest.mark.parametrize(
    "shape", [[16, *[10**4000] * 1000], [16, -4, -4], [16, 0], [16, 2**27], [16, *[1] * 40], [17, 4], []]
)
def test_an_invalid_shape_of_a_golden_tensor_is_rejected(certificate: ClassifierCertificate, shape: list[int]) -> None:
    facts = certificate.to_json()
    facts["outputs"][LOGITS]["shape"] = shape
    with pytest.raises(ValueError, match=r"an array of shape .{0,90} in a certificate of 16 inputs: that many rows"):
        ClassifierCertificate.from_json(facts)


def test_large_golden_inputs_are_reduced_to_the_size_limit_of_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, manifest = open_artifact(colour_artifact())
    golden = draw_golden(CONTRACT, 3)
    monkeypatch.setattr("evalmode.certification.certify.MAX_UNPACKED_BYTES", 2 * 5 * golden[0].nbytes)
    certificate = open_artifact(certify(graph, manifest, {INPUT: golden}, ("",) * 16, 0.0))[1].certificate
    assert isinstance(certificate, ClassifierCertificate)
    assert np.array_equal(certificate.inputs[INPUT], golden[:5])
    assert len(certificate.targets) == 5


# Loading


def test_an_uncertified_artifact_is_rejected_unless_allowed() -> None:
    bare = seal(colour_graph(), ClassifierManifest(COLOURS, CONTRACT))
    with pytest.raises(Uncertified, match="certify it with 'evalmode certify', or use --allow-uncertified"):
        load_artifact(bare)
    model = load_artifact(bare, options=LoadOptions(allow_uncertified=True))
    assert (model.batch_invariant, model.max_batch) == (False, 1)


def test_a_certified_artifact_runs_in_batches() -> None:
    model = load_artifact(colour_artifact())
    assert (model.batch_invariant, model.max_batch) == (True, 64)


def test_an_artifact_that_is_not_batch_invariant_runs_images_one_by_one() -> None:
    graph, manifest = open_artifact(colour_artifact())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.certificate is not None
    other = replace(manifest, certificate=replace(manifest.certificate, batch_invariant=False))
    model = load_artifact(seal(graph, other))
    assert (model.batch_invariant, model.max_batch) == (False, 1)


def test_on_cuda_every_batch_size_is_replayed(certificate: ClassifierCertificate) -> None:
    """Without a GPU: the code path of CUDA, with a session on the CPU."""
    model = replace(load_artifact(colour_artifact()), provider=CUDA)
    seen: list[int] = []
    run = Model.run

    def watch(self: Model, inputs: Tensors, **how: object) -> Tensors:
        seen.append(len(inputs[INPUT]))
        return run(self, inputs)

    with patch.object(Model, "run", watch):
        replayed = replay(model)
    assert {size for size in seen if size > 1} == set(range(2, 65))
    assert (replayed.batch_invariant, replayed.max_batch) == (True, 64)


# Networks of tensors


def scaling_graph(factors: dict[str, float]) -> onnx.ModelProto:
    """A network with named outputs: the input, float32 (N, 3), times the factor of each."""
    nodes = [helper.make_node("Mul", ["numbers", f"{name}_factor"], [name]) for name in factors]
    value = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3)) for name in ("numbers", *factors)
    }
    constants = [numpy_helper.from_array(np.array(factor, np.float32), f"{n}_factor") for n, factor in factors.items()]
    graph = helper.make_graph(nodes, "scaling", [value.pop("numbers")], list(value.values()), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def certify_scaling(factors: dict[str, float]) -> bytes:
    golden = {"numbers": np.random.default_rng(0).uniform(-1, 1, (16, 3)).astype(np.float32)}
    return certify(scaling_graph(factors), TensorManifest(), golden, ("",) * 16, difference=0.0)


def test_outputs_with_the_names_of_a_classifier_do_not_make_a_classifier() -> None:
    artifact = certify_scaling({PROBABILITIES: 2, LOGITS: 3})
    assert load_artifact(artifact).max_batch == 64
    verdicts = examine(artifact)
    assert [verdict for verdict in verdicts if not verdict.passed] == []
    assert "golden labels" not in {verdict.check for verdict in verdicts}


def test_the_tolerance_is_relative_to_the_size_of_each_output() -> None:
    artifact = certify_scaling({"large": 1e6, "small": 1e-3})
    certificate = open_artifact(artifact)[1].certificate
    assert isinstance(certificate, TensorCertificate)
    assert certificate.tolerance == pytest.approx(1e-4)
    run = load_artifact(artifact).run
    for name, share, passes in (
        ("large", 5e-5, True),
        ("large", 2e-4, False),
        ("small", 5e-5, True),
        ("small", 2e-4, False),
    ):
        error = share * np.abs(certificate.outputs[name]).max()

        def run_with_error(inputs: Tensors, name: str = name, error: float = error) -> Tensors:
            answer = dict(run(inputs))
            return {**answer, name: answer[name] + np.float32(error)}

        if passes:
            certificate.replay(run_with_error, certificate.tolerance, [64])
        else:
            with pytest.raises(ReplayMismatch, match=f"gives {name} that differ"):
                certificate.replay(run_with_error, certificate.tolerance, [64])


def test_the_tolerance_of_batches_is_relative_to_the_size_of_each_output() -> None:
    def run(inputs: Tensors) -> Tensors:
        numbers = inputs["numbers"]
        return {"large": numbers * 1e6 + 2e3 * (len(numbers) > 1), "small": numbers * 1e-3}

    golden = {"numbers": np.linspace(-1, 1, 16).reshape(16, 1)}
    found = compare_batches(Probe([run], golden, 0, relative=True), 1e-2)
    assert not found.same_bits
    assert found.largest == pytest.approx(2e-3, rel=0.1)
    with pytest.raises(BatchMismatch, match=r"large differ from those alone by 2\.0e\+03 \(limit 1e\+03\)"):
        compare_batches(Probe([run], golden, 0, relative=False), 1e-2)


@pytest.mark.parametrize(
    ("kind", "shape"), [(TensorProto.STRING, ("batch", 3)), (TensorProto.FLOAT, (2, 3))], ids=["strings", "fixed batch"]
)
def test_unsupported_tensors_are_rejected_at_load(kind: int, shape: tuple[str | int, ...]) -> None:
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("put", "got")]
    graph = helper.make_graph([helper.make_node("Identity", ["put"], ["got"])], "same", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ArtifactInvalid, match=r"put is tensor\(.*\) .*: expected numbers"):
        load_artifact(seal(proto, TensorManifest()), options=LoadOptions(allow_uncertified=True))


# The digest


def test_the_digest_covers_every_byte_except_its_own() -> None:
    artifact = colour_artifact()
    digest = check_digest(artifact)
    place = artifact.index(digest.encode())
    assert artifact.count(digest.encode()) == 1
    assert seal(colour_graph(), open_artifact(artifact)[1]) == artifact
    for changed in (0, place, len(artifact) - 1):
        edited = bytearray(artifact)
        edited[changed] ^= 1
        with pytest.raises(DigestMismatch):
            check_digest(bytes(edited))


def test_a_file_with_two_digests_or_none_is_rejected() -> None:
    artifact = colour_artifact()
    for wrong in (artifact + artifact, artifact.replace(b"evalmode.digest", b"evalmode.dygest")):
        with pytest.raises(DigestMismatch, match="no digest, or more than one"):
            check_digest(wrong)


# Choosing golden images


@pytest.mark.parametrize(
    ("labels", "images", "count"), [(2, 100, 16), (10, 100, 16), (40, 400, 40), (100, 300, 64), (5, 7, 7)]
)
def test_golden_images_have_the_documented_number_and_balanced_labels(labels: int, images: int, count: int) -> None:
    targets = np.random.default_rng(0).permutation(np.arange(images) % labels)
    chosen = choose_golden(targets, labels)
    counts = np.bincount(targets[chosen], minlength=labels)
    assert len(set(chosen)) == count
    assert counts.max() - counts[: min(labels, count)].min() <= 1


def test_synthetic_golden_images_are_reproducible_and_differ_from_each_other() -> None:
    images = draw_golden(CONTRACT, 10)
    assert images.shape == (16, 4, 4, 3)
    assert np.array_equal(images, draw_golden(CONTRACT, 10))
    assert len({image.tobytes() for image in images}) == 16


@pytest.mark.parametrize(
    ("size", "factor"), [(1e-3, 1e-3), (0.5, 0.5), (1.0, 1.0), (10.0, 1.0), (30.0, 3.0), (5000.0, 500.0)]
)
def test_the_tolerance_of_logits_is_scaled_to_their_size(size: float, factor: float) -> None:
    logits = np.array([[size, -size / 3], [0, size / 2]], np.float32)
    assert scale_tolerance(1e-4, logits) == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_replay_passes_rounding_and_detects_errors_at_any_size_of_the_logits(factor: float) -> None:
    """Relative errors of 2e-7 pass; 1e-3 fails with the tolerance of the CPU, 1e-1 with that of CUDA, too."""
    graph = colour_graph()
    for node in graph.graph.node:
        if "logits" in node.output:
            node.output[0] = "raw"
    place = next(i for i, node in enumerate(graph.graph.node) if node.op_type == "Softmax")
    graph.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph.graph.node.insert(place, helper.make_node("Mul", ["raw", "factor"], ["logits"]))
    golden = draw_golden(CONTRACT, 3)
    sealed = certify(graph, ClassifierManifest(COLOURS, CONTRACT), {INPUT: golden}, ("",) * 16, 0.0)
    model, certificate = load_artifact(sealed), open_artifact(sealed)[1].certificate
    assert certificate is not None
    size = np.abs(certificate.outputs[LOGITS]).max()
    assert certificate.tolerance <= 1e-4 * max(size, 1e-30)
    assert certificate.tolerance >= 8 * np.spacing(np.float32(size))

    def run_with_error(share: float) -> Callable[[Tensors], Tensors]:
        def run(inputs: Tensors) -> Tensors:
            logits = model.run(inputs)[LOGITS] + np.float32(share * size)
            return {LOGITS: logits, PROBABILITIES: softmax(logits).astype(np.float32)}

        return run

    certificate.replay(run_with_error(2e-7), certificate.tolerance, [64])
    for tolerance in (certificate.tolerance, certificate.largest_tolerance):
        with pytest.raises(ReplayMismatch):
            certificate.replay(run_with_error(1e-1), tolerance, [64])
    with pytest.raises(ReplayMismatch):
        certificate.replay(run_with_error(1e-3), certificate.tolerance, [64])


def test_a_certificate_may_have_any_tolerance_up_to_a_hundredth() -> None:
    graph, manifest = open_artifact(colour_artifact())
    assert isinstance(manifest, ClassifierManifest)
    assert manifest.certificate is not None
    for tolerance, message in ((1e-2, ""), (1e6, "is damaged")):
        sealed = seal(graph, replace(manifest, certificate=replace(manifest.certificate, tolerance=tolerance)))
        if not message:
            load_artifact(sealed)
        else:
            with pytest.raises(ArtifactInvalid, match=message):
                load_artifact(sealed)


def test_the_tolerance_is_ten_times_the_measured_difference_within_bounds() -> None:
    def tolerance(difference: float) -> float:
        golden = draw_golden(CONTRACT, 3)
        sealed = certify(colour_graph(), ClassifierManifest(COLOURS, CONTRACT), {INPUT: golden}, ("",) * 16, difference)
        certificate = open_artifact(sealed)[1].certificate
        assert certificate is not None
        return certificate.tolerance

    assert [tolerance(difference) for difference in (0.0, 5e-5, 1.0)] == pytest.approx([1e-4, 5e-4, 1e-2])
