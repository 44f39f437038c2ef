"""Simulated GPUs: tensors that say they are on cuda:N, keep real values, and are held to CUDA's rules about devices.

    with SimulatedGpus() as gpus:
        place(model, gpus.devices[0])
        ...                            # memedit runs as on a GPU
        gpus.waits, gpus.launches      # counted by line of memedit

An operation that CUDA refuses is refused here. An operation for which the host waits for a GPU is counted as a wait,
one that starts a kernel as a launch. Values are computed by the CPU's kernels, so results are those of the CPU to the
bit. Memory is what tensors hold: a GPU of `memory` bytes runs out of it as a real one does, at the first tensor that
does not fit. Not simulated: time, streams, what kernels take for themselves, and how CUDA's own kernels round.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import memedit
import torch
from memedit.model.load import LanguageModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
PACKAGE = f"{Path(memedit.__file__).parent}/"
OUTSIDE = ("/torch/", "/tests/helpers/", "/contextlib.py")
"""Parts of the paths of files that are never the cause of a wait."""
MEMORY = 60 << 30
"""Bytes of memory of a simulated GPU."""

aten: Any = torch.ops.aten
PARSE_TO: Any = torch._C._nn._parse_to  # type: ignore[attr-defined]
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor, aten._unsafe_index_put.default,
}  # fmt: skip
"""Operations that take indices from the CPU, and copy them to the GPU."""
TAKE_CPU_SCALARS = {aten.fill_.Tensor, aten.fill.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
"""Operations that take a number in a CPU tensor, beside all that are tagged as working element by element."""
WAITING = {
    aten._local_scalar_dense.default: "a value is read",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten._linalg_check_errors.default: "a factorization is checked",
    aten._linalg_eigh.default: "eigh",
    aten._linalg_svd.default: "svd",
    aten.linalg_qr.default: "qr",
}
"""Operations whose result, or its shape, the host must know."""
ONLY_ON_CUDA: dict[Any, Callable[..., Any]] = {
    aten.mm.dtype: lambda one, other, dtype: aten.mm.default(one.to(dtype), other.to(dtype)),
}
"""Operations that the CPU has no kernel for, and what computes the same."""
QUIET = {aten.detach.default, aten.alias.default, aten._local_scalar_dense.default}
"""Operations that start no kernel, beside views."""

_entered: list[SimulatedGpus] = []


class GpuTensor(Tensor):
    """A tensor that says it is on a simulated GPU. To torch's own code it is one of the CPU, which has all kernels."""

    held: Tensor
    """Its values, on the CPU, without a gradient."""
    home: torch.device

    @staticmethod
    def __new__(cls: Any, held: Tensor, home: torch.device) -> GpuTensor:
        make: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        made: GpuTensor = make(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held, made.home = held, home
        _gpus().hold(made)
        return made

    device = property(lambda self: self.home)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.held!r}, {self.home})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _gpus().run(func, args, kwargs or {})


def _gpus() -> SimulatedGpus:
    if not _entered:
        raise RuntimeError("a tensor of a simulated GPU is used after the simulation")
    return _entered[-1]


class _Move(torch.autograd.Function):
    """A copy between devices, through which gradients go back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.back = tensor.device
        return _copied(tensor, device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _gpus().moved(gradient, ctx.back), None


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    held = (tensor.held if isinstance(tensor, GpuTensor) else tensor.detach()).clone()
    return held if device == CPU else GpuTensor(held, device)


class SimulatedGpus:
    """`count` GPUs, there while this is entered; counts of waits and launches, by line of memedit.

    `memory` is that of each, in bytes.

    torch.cuda.is_available stays false: other libraries keep its answer, and would give it to later tests.
    """

    def __init__(self, count: int = 1, memory: int = MEMORY) -> None:
        self.devices = [torch.device("cuda", n) for n in range(count)]
        self.memory = self.whole = memory
        self.allocated: Counter[torch.device] = Counter()
        self.peak: Counter[torch.device] = Counter()
        self._users: Counter[int] = Counter()
        self._pinned: set[int] = set()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> SimulatedGpus:
        said: dict[str, Callable[..., Any]] = {
            "empty_cache": lambda: None,
            "synchronize": lambda *_: self.wait("synchronize"),
            "mem_get_info": lambda one="cuda": (self.memory - self.allocated[self.named(one)], self.memory),
            "memory_reserved": lambda one="cuda": self.allocated[self.named(one)],
            "memory_allocated": lambda one="cuda": self.allocated[self.named(one)],
            "max_memory_allocated": lambda one="cuda": self.peak[self.named(one)],
            "set_per_process_memory_fraction": self._limit,
            "reset_peak_memory_stats": lambda one="cuda": self.peak.update({self.named(one): self._above(one)}),
        }
        for name, answer in said.items():
            self._stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        _entered.append(self)
        self._stack.callback(_entered.remove, self)
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _limit(self, part: float, *_: Any) -> None:
        self.memory = int(part * self.whole)

    def _above(self, device: Any) -> int:
        """What takes the peak of a device down to what it holds now."""
        return self.allocated[self.named(device)] - self.peak[self.named(device)]

    def hold(self, tensor: GpuTensor) -> None:
        """Count the memory of a tensor until nothing holds it; views share it. Raises OutOfMemoryError."""
        storage: Any = tensor.held.untyped_storage()
        key, size, home = storage._cdata, storage.nbytes(), tensor.home
        if not self._users[key]:
            if self.allocated[home] + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes on {home}")
            self.allocated[home] += size
            self.peak[home] = max(self.peak[home], self.allocated[home])
        self._users[key] += 1
        weakref.finalize(tensor, self._leave, key, size, home).atexit = False

    def _leave(self, key: int, size: int, home: torch.device) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.allocated[home] -= size

    def wait(self, why: str) -> None:
        """Count a wait of the host."""
        self.waits[f"{_line()} ({why})"] += 1

    def named(self, device: Any) -> torch.device:
        """The device of a name, with its number. Raises RuntimeError for a GPU that is not there, as CUDA does."""
        found = torch.device(device)
        if found.type != "cuda":
            return found
        found = torch.device("cuda", found.index or 0)
        if found not in self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return found

    def moved(self, tensor: Tensor, device: torch.device, *, later: bool = False) -> Tensor:
        """The tensor on a device: itself, or a copy; `later`: in the order of the GPU's work, if it is pinned."""
        if tensor.device == device:
            return tensor
        if later and id(tensor) in self._pinned:
            self.launches[_line()] += 1
        else:
            self._count_copy(tensor, device)
        move = _Move.apply if tensor.requires_grad and torch.is_grad_enabled() else _copied
        return move(tensor, device)

    def pinned(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the CPU in pinned memory. Raises RuntimeError for one of a GPU, as torch does."""
        if tensor.device != CPU:
            raise RuntimeError(f"cannot pin a tensor of {tensor.device}: only tensors of the CPU can be pinned")
        copied = tensor.detach().clone()
        self._pinned.add(id(copied))
        weakref.finalize(copied, self._pinned.discard, id(copied)).atexit = False
        return copied

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation on tensors of which at least one is on a GPU."""
        tensors: list[Tensor] = []
        bare_args, bare_kwargs = _bare(args, tensors), _bare(kwargs, tensors)
        if func is aten.copy_.default:  # from any device to any other
            home = args[0].device
            self._count_copy(args[1], home)
        else:
            home = _home(func, args, tensors)
            self._count(func, args, kwargs)
        kernel: Any = ONLY_ON_CUDA.get(func, func)
        found = kernel(*bare_args, **bare_kwargs)
        if torch.Tag.inplace_view in func.tags:
            raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        if _writes(func):
            return kwargs.get("out", args[0])
        if isinstance(found, tuple | list):
            return type(found)(GpuTensor(one, home) if isinstance(one, Tensor) else one for one in found)
        return GpuTensor(found, home) if isinstance(found, Tensor) else found

    def _count_copy(self, source: Tensor, device: torch.device) -> None:
        if CPU not in (source.device, device):
            self.launches[_line()] += 1
        elif source.numel():
            self.wait("to the GPU" if source.device == CPU else "to the CPU")

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if func in WAITING:
            self.wait(WAITING[func])
        elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        elif func in INDEXING:
            self._count_indices([one for one in args[1] if one is not None], args[2] if len(args) > 2 else None)
        if func not in QUIET and not _is_view(func):
            self.launches[_line()] += 1

    def _count_indices(self, indices: Sequence[Tensor], values: Tensor | None) -> None:
        masks = [one for one in indices if one.dtype in (torch.bool, torch.uint8)]
        if values is not None and values.device == CPU:
            if len(masks) == len(indices) == 1:
                return  # CUDA fills where the mask is true
            self.wait("to the GPU")
        if masks:
            self.wait("a mask is counted")
        if any(one.device == CPU for one in indices):
            self.wait("indices are on the CPU")


def _bare(value: Any, seen: list[Tensor]) -> Any:
    """Arguments with what GPU tensors hold in their place; all tensors are added to `seen`."""
    if isinstance(value, Tensor):
        seen.append(value)
        return value.held if isinstance(value, GpuTensor) else value
    if isinstance(value, tuple | list):
        return [_bare(one, seen) for one in value]
    return {name: _bare(one, seen) for name, one in value.items()} if isinstance(value, dict) else value


@cache
def _is_view(func: Any) -> bool:
    return any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)


@cache
def _writes(func: Any) -> bool:
    return any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.returns)


def _home(func: Any, args: Any, tensors: Sequence[Tensor]) -> torch.device:
    """The device that an operation runs on. Raises RuntimeError where CUDA refuses the mixture of devices."""
    homes = {one.device for one in tensors if one.device != CPU}
    strangers = [one for one in tensors if one.device == CPU]
    gpu = next(iter(homes))
    if len(homes) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {sorted(map(str, homes))}")
    if not strangers or func is aten._to_copy.default:
        return gpu
    if func in INDEXING:
        values = args[2] if len(args) > 2 else args[0]
        if args[0].device == CPU:
            raise RuntimeError(f"{func}: indices should be either on cpu or on the same device as the indexed tensor")
        if values.ndim == 0 or values.device == gpu:
            return gpu
    elif torch.Tag.pointwise in func.tags or func in TAKE_CPU_SCALARS:
        written = _writes(func) and args[0].device == CPU
        if not written and all(one.ndim == 0 for one in strangers):
            return gpu
    shapes = [tuple(one.shape) for one in strangers]
    raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {gpu} and cpu, there {shapes}")


def _line() -> str:
    """The innermost line of memedit that runs now, and that of another library which it called, if one did.

    The line that runs every forward says nothing; the one that asked for the forward does.
    """
    frame: FrameType | None = sys._getframe(1)
    library = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and frame.f_code is not LanguageModel.forward.__code__:
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno}{library}"
        if not library and not any(part in file for part in OUTSIDE):
            library = f" in {Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return f"outside of memedit{library}"


class _Calls(TorchFunctionMode):
    """What Python asks of torch before any operation runs: tensors on a device, moves, and values."""

    def __init__(self, gpus: SimulatedGpus) -> None:
        super().__init__()
        self.gpus = gpus
        self.moves: dict[Any, Callable[..., Any]] = {
            Tensor.to: self._to,
            Tensor.cuda: lambda one, device="cuda", **_: gpus.moved(one, gpus.named(device)),
            Tensor.pin_memory: lambda one: gpus.pinned(one),
        }
        self.of_gpu_tensors: dict[Any, Callable[..., Any]] = {
            Tensor.cpu: lambda one, **_: gpus.moved(one, CPU),
            Tensor.tolist: self._tolist,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._numpy,
            Tensor.new_tensor: lambda one, data, **more: self._made(
                torch.tensor, (data,), {"device": one.home, **more}
            ),
        }

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.moves:
            return self.moves[func](*args, **kwargs)
        if func in self.of_gpu_tensors and isinstance(args[0], GpuTensor):
            return self.of_gpu_tensors[func](*args, **kwargs)
        if kwargs.get("device") is not None:
            return self._made(func, args, kwargs)
        return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A new tensor on the device that was asked for."""
        device = self.gpus.named(kwargs["device"])
        if device.type == "cuda" and func in (torch.tensor, torch.as_tensor, torch.asarray):
            return self.gpus.moved(func(*args, **{**kwargs, "device": CPU}), device)
        if device.type != "cuda" and not any(isinstance(one, GpuTensor) for one in args):
            return func(*args, **kwargs)
        gradient = kwargs.get("requires_grad", False)
        made = func(
            *args, **{name: value for name, value in kwargs.items() if name != "requires_grad"} | {"device": CPU}
        )
        held = made.held if isinstance(made, GpuTensor) else made
        self.gpus.launches[_line()] += 1
        return (held if device == CPU else GpuTensor(held, device)).requires_grad_(gradient)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        like, copy = args[0] if args else kwargs.get("other"), kwargs.pop("copy", False)
        if isinstance(like, Tensor):
            device, dtype, later = like.device, like.dtype, False
        else:
            device, dtype, later, *_ = PARSE_TO(*args, **kwargs)
            device = tensor.device if device is None else self.gpus.named(device)
        if device.type != "cuda" and not isinstance(tensor, GpuTensor):
            return tensor.to(*args, **kwargs, copy=copy)
        moved = self.gpus.moved(tensor, device, later=later)
        return moved.to(dtype or tensor.dtype, copy=copy and moved is tensor)

    def _tolist(self, tensor: GpuTensor) -> Any:
        self.gpus.wait("values are read")
        return tensor.held.tolist()

    def _numpy(self, tensor: GpuTensor, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {tensor.home} device type tensor to numpy. Use Tensor.cpu() first")


Moved = dict[int, tuple[Tensor, Tensor]]
"""By identity, a tensor and its copy on a GPU. The tensor is held, so that no other gets its identity."""


def place(module: nn.Module, device: torch.device, done: Moved | None = None) -> None:
    """Move a module's parameters and buffers to a device, in place; those that modules share stay shared.

    `done` holds what was moved before. What is on a GPU already stays there.
    """
    done = {} if done is None else done
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, one in table.items():
                if one is None or isinstance(one, GpuTensor):
                    continue
                if id(one) not in done:
                    moved = _copied(one, device)
                    done[id(one)] = one, nn.Parameter(moved, False) if isinstance(one, nn.Parameter) else moved
                table[name] = done[id(one)][1]  # type: ignore[assignment]


def spread(model: Any, blocks: str, devices: Sequence[torch.device]) -> None:
    """Spread a model's blocks over devices in equal parts, the rest on the first, as accelerate does by a device map.

    Inputs are sent to the device of each module, and the logits to the first device.
    """
    done: Moved = {}
    layers = list(model.get_submodule(blocks).children())
    for n, block in enumerate(layers):
        device = devices[n * len(devices) // len(layers)]
        place(block, device, done)
        _send_to(device, block)
    place(model, devices[0], done)
    around = [*model.get_submodule(blocks.rpartition(".")[0]).children(), model.get_output_embeddings()]
    for part in around:
        if not isinstance(part, nn.ModuleList):
            _send_to(devices[0], part)
    _send_to(devices[0], model)


def _send_to(device: torch.device, module: nn.Module) -> None:
    """Send a module's inputs to a device before its forward, and its logits, if it makes some, after it."""
    original = module.forward

    def sent(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, tuple | list):
            return type(value)(sent(one) for one in value)
        return {name: sent(one) for name, one in value.items()} if type(value) is dict else value

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*sent(args), **sent(kwargs))
        if hasattr(output, "logits"):
            output.logits = sent(output.logits)
        return output

    module.__dict__["forward"] = forward
