"""Scrapes of a service or of this process, as numbers by series."""

from __future__ import annotations

import asyncio
import shutil

from prometheus_client import parser

from machine import metrics

PROMTOOL = shutil.which("promtool") or "promtool"


def series(scrape: str) -> dict[str, float]:
    """`name{label="value",…}`, labels in the order of their names, → number."""
    found = {}
    for family in parser.text_string_to_metric_families(scrape):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def of_this_process() -> dict[str, float]:
    """The counters and histograms of this process, which all its tests share: compare two scrapes."""
    return series(metrics.text({}).decode())


def grown(before: dict[str, float]) -> dict[str, float]:
    """What grew in this process since `before`, without the buckets and sums of histograms, and without the process itself."""
    after = of_this_process()
    counted = {name for name in after if name.startswith("recorder_") and "_bucket{" not in name}
    return {
        name: after[name] - before.get(name, 0)
        for name in sorted(counted)
        if after[name] != before.get(name, 0) and not name.partition("{")[0].endswith("_sum")
    }


async def promtool(*words: str, given: bytes = b"") -> tuple[int, str]:
    """Run promtool; returns its exit code and all that it prints."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(PROMTOOL, *words, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    printed, _ = await process.communicate(given)
    return process.returncode or 0, printed.decode()
