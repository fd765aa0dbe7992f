"""Descriptions of models, and of their counters, in the messages of the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from evalmode.runtime.model import Model
from evalmode.runtime.tensor import Tensor
from evalmode.wire import model_config_pb2 as config
from evalmode.wire import open_inference_pb2 as wire
from serving.services.figures import Counts, Durations, Version
from serving.services.tensors import DATATYPES

PLATFORM = "onnx_onnxv1"


def describe_metadata(model: Model, versions: Sequence[str]) -> wire.ModelMetadataResponse:
    """Describe the inputs, outputs and properties of a model.

    Args:
        model: The model.
        versions: Its loaded versions.
    """
    return wire.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=PLATFORM,
        inputs=map(_describe, model.inputs),
        outputs=map(_describe, model.outputs),
        properties=describe_properties(model),
    )


def describe_config(model: Model, max_batch: int, slots: int) -> config.ModelConfig:
    """Describe how a model is served, in Triton's model configuration format.

    Args:
        model: The model.
        max_batch: The maximum batch size of the server.
        slots: The number of inferences that can run at the same time.
    """
    largest = min(max_batch, model.max_batch)
    kind = config.ModelInstanceGroup.KIND_GPU if model.provider.is_gpu else config.ModelInstanceGroup.KIND_CPU
    return config.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onnxruntime",
        max_batch_size=max_batch,
        version_policy=config.ModelVersionPolicy(latest=config.ModelVersionPolicy.Latest(num_versions=1)),
        input=[
            config.ModelInput(
                name=one.name, data_type=_config_type(one), dims=one.shape, format=_choose_format(model, one)
            )
            for one in model.inputs
        ],
        output=[
            config.ModelOutput(name=one.name, data_type=_config_type(one), dims=one.shape) for one in model.outputs
        ],
        instance_group=[config.ModelInstanceGroup(name=model.name, kind=kind, count=slots)],
        dynamic_batching=config.ModelDynamicBatching(preferred_batch_size=[largest]),
        default_model_filename="model.onnx",
        parameters={
            name: config.ModelParameter(string_value=value) for name, value in describe_properties(model).items()
        },
    )


def describe_properties(model: Model) -> Mapping[str, str]:
    """The properties of a model as JSON values by name, without its golden images.

    Its optional outputs are listed here and nowhere else: some clients request every output that metadata list.
    """
    certificate = model.manifest.certificate
    facts = {
        **model.manifest.properties,
        "labels": model.manifest.labels,
        "digest": model.digest,
        "provider": model.provider.name,
        "batch_invariant": model.batch_invariant,
        "certificate": certificate and {"golden": certificate.golden_count, "tolerance": certificate.tolerance},
    }
    if model.optional.tensors:
        facts["optional_outputs"] = [
            {"name": one.name, "datatype": DATATYPES[one.dtype], "shape": (-1, *one.shape)}
            for one in model.optional.tensors
        ]
    return {name: json.dumps(value) for name, value in facts.items()}


def describe_statistics(version: Version, counts: Counts) -> wire.ModelStatistics:
    """Describe the counters of a model.

    Args:
        version: Its name and version.
        counts: Its counters.
    """
    name, number = version
    return wire.ModelStatistics(
        name=name,
        version=number,
        last_inference=counts.last_ms,
        inference_count=counts.inputs,
        execution_count=sum(run.count for run in counts.runs.values()),
        inference_stats=wire.InferStatistics(
            **{phase: _describe_durations(spent) for phase, spent in counts.durations.items()}
        ),
        batch_stats=[
            wire.InferBatchStatistics(batch_size=size, compute_infer=_describe_durations(run))
            for size, run in sorted(counts.runs.items())
        ],
    )


def _describe_durations(durations: Durations) -> wire.StatisticDuration:
    return wire.StatisticDuration(count=durations.count, ns=durations.ns)


def _describe(tensor: Tensor) -> wire.ModelMetadataResponse.TensorMetadata:
    return wire.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=DATATYPES[tensor.dtype], shape=(-1, *tensor.shape)
    )


def _config_type(tensor: Tensor) -> config.DataType:
    return getattr(config, f"TYPE_{DATATYPES[tensor.dtype]}")  # type: ignore[no-any-return]


def _choose_format(model: Model, tensor: Tensor) -> config.ModelInput.Format:
    takes_images = tensor.name in model.manifest.image_inputs
    return config.ModelInput.FORMAT_NHWC if takes_images else config.ModelInput.FORMAT_NONE
