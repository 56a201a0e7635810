"""Peak memory of a run: of the caching allocator on a GPU, of torch's own records on a CPU."""

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wemask


def peak(device: str, run: Callable[[], object]) -> int:
    """Bytes that `run` has allocated at its highest point, above what was there before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return _cpu_peak(run)


def _cpu_peak(run: Callable[[], object]) -> int:
    """Highest sum of the profiler's allocations and releases, which name every CPU tensor."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]"]
    highest = now = 0
    for event in sorted(changes, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        highest = max(highest, now)
    return highest


def of_backward(model: nn.Module, ids: Tensor, switch: Callable[[str], None]) -> dict[str, Any]:
    """Peak of forward + backward, softened over unpatched; the weights count too."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())

    def both() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    model.train()
    peaks = {}
    for arm in ("A", "S", "A/A"):
        switch(arm)
        both()  # warm up; then no gradient is there before the run that counts
        model.zero_grad()
        peaks[arm] = weights + peak(ids.device.type, both)
        model.zero_grad()
    switch("S")
    model.eval()
    return {
        "unpatched_bytes": peaks["A"],
        "ratio": peaks["S"] / peaks["A"],
        "ratio_A/A": peaks["A/A"] / peaks["A"],
        "goal": 1.005,
    }


@torch.no_grad()
def of_detection(model: nn.Module, ids: Tensor) -> dict[str, Any]:
    """What `detect` needs above the forward pass of its texts, as a share of the weights."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    mask, device = torch.ones_like(ids), ids.device.type
    forward = peak(device, lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
    detection = peak(device, lambda: wemask.detect(model, input_ids=ids))
    return {
        "forward_bytes": forward,
        "detect_bytes": detection,
        "share_of_weights": (detection - forward) / weights,
        "goal": 0.01,
    }
