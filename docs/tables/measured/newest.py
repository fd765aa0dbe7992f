"""Describes the newest results of each benchmark in a sentence, for benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

Results = Sequence[dict[str, Any]]


def describe_map_cost(results: Results) -> str:
    """Describe what the activation map costs an image."""
    without, unused, used = (one["median_ms"] for one in results[0]["ways"].values())
    return f"an image: {without:.1f} ms without the map, {unused:.1f} ms not requested, {used:.1f} ms requested"


def describe_decode_memory(results: Results) -> str:
    """Describe how much of the reserved memory decoding needs."""
    rows = results[0]["bytes_per_pixel"].values()
    shares = [need / held for row in rows for need, held in zip(row["measured"], row["reserved"], strict=True)]
    return f"{len(shares)} images need {min(shares):.0%} to {max(shares):.0%} of what is reserved"


def describe_decoding(results: Results) -> str:
    """Describe the time of decoding small and large files."""
    shown = (
        f"{row['side']} pixels {row['one_thread_us']:,.0f} us, in a thread per core {row['thread_per_core_us']:,.0f} us"
        for row in (results[0]["rows"][0], results[0]["rows"][-1])
    )
    return f"a JPEG of {'; of '.join(shown)}"


def describe_export(results: Results) -> str:
    """Describe the time of an export."""
    return f"{results[0]['wall_s']:.0f} s, {results[0]['bytes_above_weights'] / 1e3:.0f} kB more than the weights"


def describe_hot_path(results: Results) -> str:
    """Describe the time of a request apart from its network."""
    kinds = results[0]["us_per_request"].items()
    shown = (f"{kind} {sum(steps.values()) - steps['network']:.0f} us" for kind, steps in kinds)
    return f"beside the network, a request takes: {', '.join(shown)}"


def describe_many_photos(results: Results) -> str:
    """Describe time and memory of loading many photos."""
    result = results[0]
    images, peak = sum(result["images"].values()), result["peak_resident_bytes"]
    return f"{images:,} photos loaded in {result['loading_s']:.0f} s with {peak / 1e6:.0f} MB resident"


def describe_photo_serving(results: Results) -> str:
    """Describe the share of the processor's time that goes into decoding and the network."""
    medians = results[0]["medians"]
    return f"share of decoding and network: grpcio {medians['grpcio_share']:.2f}, native {medians['native_share']:.2f}"


def describe_serve(results: Results) -> str:
    """Describe the rates of both transports."""
    rates = {name: results[0]["summary"][f"{name} fp32"]["32 in flight"] for name in ("native", "grpcio")}
    shown = (f"{name} {one['rate']['median']:,.0f}/s, {one['of_raw']['median']:.2f}" for name, one in rates.items())
    return f"of ONNX Runtime alone: {'; '.join(shown)}"


def describe_steps(results: Results) -> str:
    """Describe a step of both networks in the layout that training uses."""
    variants = results[0]["variants"]
    shown = (f"{network} {found['channels_last']['median_ms']:.0f} ms" for network, found in variants.items())
    return f"a step: {', '.join(shown)}"


def describe_throughput(results: Results) -> str:
    """Describe the ratios of answers per second after and before a change."""
    ratios = [one["answers_per_s_ratio"] for result in results for one in result["kinds"].values()]
    return f"answers per second after the change: {min(ratios):.2f} to {max(ratios):.2f} of those before"


def describe_worker_figures(results: Results) -> str:
    """Describe what a scrape costs with the most workers."""
    row = results[0]["rows"][-1]
    whole = row["receive_all_ms"] + row["merge_ms"] + row["page_ms"]
    return f"a scrape of {row['workers']} workers takes {whole:.0f} ms of CPU time"


def describe_choosing(results: Results) -> str:
    """Describe what the sample of statistics costs."""
    return f"{results[0]['chosen']['share_of_time']:.1%} of the time"


def describe_doubts(results: Results) -> str:
    """Describe how many wrong labels are found."""
    row = next(row for row in results[0]["wrong_labels"] if row["share"] == 0.03)
    return f"of 3% wrong labels {row['recall']:.0%} found, {row['false_alarms']:.1%} false alarms"


def describe_drift(results: Results) -> str:
    """Describe which windows of images are flagged."""
    same, *changed = results[0]["changes"].values()
    flagged, draws = (sum(one[name] for one in changed) for name in ("flagged", "draws"))
    return f"{same['flagged']} of {same['draws']} unchanged windows flagged, {flagged} of {draws} changed ones"


def describe_alarms(results: Results) -> str:
    """Describe how many valid exports are refused."""
    runs = [run for result in results for run in result["runs"]]
    return f"{sum(len(run['alarms']) for run in runs)} false alarms in {len(runs)} exports"


def describe_ladder(results: Results) -> str:
    """Describe the accuracy of the variants."""
    accuracies: dict[str, list[float]] = {}
    for run in results[0]["runs"]:
        accuracies.setdefault(run["variant"], []).append(run["val_accuracy"])
    means = {name: mean(found) for name, found in accuracies.items()}
    low, high = min(means.values()), max(means.values())
    return f"compact {means['compact']:.3f}, {len(means) - 1} variants {low:.3f} to {high:.3f}"


def describe_photos(results: Results) -> str:
    """Describe the accuracy without any option."""
    found = [run["accuracy"] for run in results[0]["runs"] if (run["data"], run["part"]) == ("trashnet", "default")]
    return f"TrashNet without any option: {min(found):.3f} to {max(found):.3f}"


def describe_ranks(results: Results) -> str:
    """Describe what two processes gain."""
    seconds: dict[int, list[float]] = {}
    for run in results[0]["trainings"]:
        seconds.setdefault(run["processes"], []).append(run["epoch_seconds"])
    one, two = (f"{min(seconds[count]):.1f} to {max(seconds[count]):.1f} s" for count in (1, 2))
    return f"an epoch takes {one} with one process, {two} with two"


def describe_resizes(results: Results) -> str:
    """Describe the accuracy by resize."""
    shown = (f"{row['interpolation']} {row['crop_ratio']:.3g}: {row['accuracy']:.3f}" for row in results[0]["rows"])
    return ", ".join(shown)


def describe_scaled_accuracy(results: Results) -> str:
    """Describe the accuracy by both decodes."""
    one = results[0]
    return f"every pixel {one['plain_accuracy']:.3f}, scaled {one['scaled_accuracy']:.3f}, {one['photos']} photos"


def describe_semantics(results: Results) -> str:
    """Describe the accuracy with the settings of Keras and of torch."""
    accuracies: dict[str, list[float]] = {}
    for run in results[0]["trainings"]:
        accuracies.setdefault(run["variant"], []).append(run["test_accuracy"])
    return ", ".join(f"{name} {mean(found):.3f}" for name, found in accuracies.items())


def describe_train(results: Results) -> str:
    """Describe accuracy and time of compact."""
    one = results[0]["summary"]["compact"]
    return f"compact {one['test_accuracy']['mean']:.3f} in {one['seconds']['mean']:.0f} s"


def describe_scaled(results: Results) -> str:
    """Describe the CPU time of a scaled decode."""
    return f"{results[0]['rows']['quality 90']['ratio']:.2f} of a plain decode"


def describe_damage(results: Results) -> str:
    """Describe how many corrupt images are accepted."""
    damaged = results[0]["damaged"]
    return f"{damaged['wrong']} accepted of {damaged['rows']['all']['corrupt']} corrupt images"


def describe_drains(results: Results) -> str:
    """Describe how many accepted requests were lost."""
    drains = [one for result in results for one in result["drains"]]
    answers, misses = sum(one["answers"] for one in drains), sum(len(one["misses"]) for one in drains)
    return f"{misses} requirements missed in {len(drains)} drains with {answers:,} answers"


def describe_hostile(results: Results) -> str:
    """Describe how fast hostile files are refused."""
    files = results[0]["files"].values()
    return f"{len(files)} files refused within {max(one['refused_s'] for one in files):.0f} s"


def describe_failures(results: Results) -> str:
    """Describe how many calls failed."""
    answers, failed = (sum(result[name] for result in results) for name in ("answers", "failed"))
    return f"{failed} of {answers + failed:,} calls failed"


def describe_leaks(results: Results) -> str:
    """Describe the growth of memory."""
    kinds = [one for result in results for one in result["kinds"].values()]
    requests, misses = sum(one["requests"] for one in kinds), sum(len(one["misses"]) for one in kinds)
    return f"{misses} requirements missed in {requests:,} requests"


def describe_overload(results: Results) -> str:
    """Describe how much of the capacity is left under overload."""
    found = [one["goodput_of_capacity"] for one in results[0].get("overloads", [results[0]])]
    return f"{min(found):.2f} of the capacity, at least"


def describe_resume(results: Results) -> str:
    """Describe how many resumed trainings have the same bytes."""
    runs = [run for result in results for run in result["runs"]]
    return f"{sum(run['same'] for run in runs)} of {len(runs)} artifacts with the same bytes"


def describe_strangers(results: Results) -> str:
    """Describe which attacks make a server miss a requirement."""
    missed: dict[str, set[str]] = {}
    attacks = [(_find_transport(result), kind, runs) for result in results for kind, runs in result["attacks"].items()]
    for transport, kind, runs in attacks:
        if any(run["misses"] for run in runs):
            missed.setdefault(transport, set()).add(kind)
    kinds = {kind for _, kind, _ in attacks}
    described = [
        f"{transport} misses requirements under {', '.join(sorted(missed[transport]))}" for transport in sorted(missed)
    ]
    return f"{len(kinds)} kinds of attack; {'; '.join(described) or 'no requirement is missed'}"


def describe_watches(results: Results) -> str:
    """Describe how long honest calls take while watches are opened."""
    begun = sum(one["watches_begun"] for one in results)
    calls = [
        f"{_find_transport(one)}: predict {max(part['predict']['p99_ms'] for part in one['rounds']):.0f} ms, "
        f"check {max(part['check']['p99_ms'] for part in one['rounds']):.0f} ms"
        for one in results
    ]
    return f"{begun:,} watches; p99 meanwhile, {'; '.join(calls)}"


def describe_workers(results: Results) -> str:
    """Describe how long a killed worker is missed."""
    kills = sum(len(one["kills"]) for one in results)
    return f"{kills} kills, ready again after {max(one['back_s']['max'] for one in results):.1f} s at most"


def describe_containers(results: Results) -> str:
    """Describe the size of the serving image and its slowest start."""
    starts = [max(one["starts_s"]) for one in results[0]["servers"]]
    return f"{results[0]['size_mb']:.0f} MB above the base image, ready after at most {max(starts):.1f} s"


def describe_proxies(results: Results) -> str:
    """Describe how many requests each proxy loses."""
    lost = {
        name: sum(count for event in events.values() for count in event["failed"].values())
        for name, events in results[0]["proxies"].items()
    }
    return "requests lost: " + ", ".join(f"{name} {count}" for name, count in lost.items())


def describe_worst_images(results: Results) -> str:
    """Describe the most expensive images."""
    images = results[0]["images"].values()
    slowest, largest = (max(one[name] for one in images) for name in ("seconds", "peak_bytes"))
    beyond = sum(not one["good"] for one in images)
    return f"at most {slowest:.1f} s and {largest / 1e6:.0f} MB; {beyond} of {len(images)} images exceed a bound"


def _find_transport(result: Mapping[str, Any]) -> str:
    """The transport of a result, which older ones have beside their figures."""
    return str(result.get("arguments", result)["transport"])
