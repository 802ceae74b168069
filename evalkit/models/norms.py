"""Normalisation layers whose scale can be held fixed in the backward pass.

Gradient × change misjudges a saturated cause partly because a norm's scale answers to the change.
The second estimator therefore differentiates with the scale detached (as in layer-wise relevance
propagation and RelP). One forward serves both estimators: a gate passes or stops the gradient of
the scale at the time of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class _Gate(torch.autograd.Function):
    """The identity, whose gradient is zero while `scales_held` is open."""

    stopped: ClassVar[bool] = False  # a plain flag: backward passes may run on another thread

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.zeros_like(grads[0]) if _Gate.stopped else grads[0]


def _gate(scale: Tensor) -> Tensor:
    gated: Tensor = _Gate.apply(scale)  # type: ignore[no-untyped-call]
    return gated


@contextmanager
def scales_held() -> Iterator[None]:
    """While open, backward passes treat every gated norm's scale as a constant."""
    _Gate.stopped = True
    try:
        yield
    finally:
        _Gate.stopped = False


@contextmanager
def frozen_scales(module: nn.Module) -> Iterator[None]:
    """While open, forward passes of `module` compute its norms through gates; values are unchanged."""
    touched = []
    for part in module.modules():
        forward = _gated_forward(part)
        if forward is not None:
            part.forward = forward
            touched.append(part)
    try:
        yield
    finally:
        for part in touched:
            del part.forward


def _gated_forward(part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A gated twin of a norm's forward that computes the same numbers, or None if it is no known norm."""
    if isinstance(part, nn.LayerNorm):
        return _layer_norm(part)
    if type(part).__name__.endswith("RMSNorm") and isinstance(getattr(part, "weight", None), Tensor):
        eps = getattr(part, "variance_epsilon", getattr(part, "eps", None))
        for offset in (0.0, 1.0):  # Gemma stores weight − 1
            twin = _rms_norm(part.weight, eps, offset) if eps is not None else None  # type: ignore[arg-type]
            if twin is not None and _same(part, twin):
                return twin
    return None


def _layer_norm(part: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        centred: Tensor = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + part.eps)
        y = centred * _gate(scale)
        if part.weight is not None:
            y = y * part.weight
        return y if part.bias is None else y + part.bias

    return forward


def _rms_norm(weight: Tensor, eps: float, offset: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (weight + offset) * (wide * _gate(scale)).to(x.dtype)

    return forward


def _same(part: nn.Module, twin: Callable[[Tensor], Tensor]) -> bool:
    weight = part.weight
    assert isinstance(weight, Tensor)
    probe = torch.linspace(-2.0, 3.0, 2 * weight.shape[-1], device=weight.device, dtype=weight.dtype)
    probe = probe.reshape(2, -1)
    with torch.no_grad():
        return torch.allclose(part(probe), twin(probe), rtol=1e-4, atol=1e-5)
