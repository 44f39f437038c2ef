"""Run a model that is larger than memory: its blocks are read from the checkpoint one at a time, as they run.

The matrices of such blocks lie on the meta device. Before a block runs they are read, and they stay until another block
needs the memory. A gradient needs a block's weights again: the block then runs once more, from its input, which is all
that is kept of it (torch.utils.checkpoint). So one block is in memory at a time, forward and backward, and every number
is that of the model in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.checkpoint import checkpoint

from memedit.config.quantization import Fp8Scheme
from memedit.errors import ResourceError, UnsupportedModelError
from memedit.model.fp8 import StoredTensors
from memedit.results.units import bytes_text

SPARE = 8
"""Weights are kept in memory if they leave at least this part of it, as one part of N, for the work."""
STAYING = 2
"""Blocks that fit stay in memory while the weights take at most this part of it, as one part of N."""


def fit_in(weights: int, memory: int) -> bool:
    """Whether `weights` bytes of weights fit into `memory` bytes of memory, with room for the work."""
    return weights <= memory - memory // SPARE


class Unread(Tensor):
    """Stands for a tensor of a checkpoint while transformers builds the model: a shape, a dtype, and how to read it.

    What transformers computes of it (renamed, stacked, cut, converted) is another of its kind, and is computed when
    that is read. Where a result depends on values, they are read at once.
    """

    read: Callable[[], Tensor]

    @staticmethod
    def __new__(cls: Any, like: Tensor, read: Callable[[], Tensor]) -> Unread:
        """A tensor of the shape and dtype of `like`, which is on the meta device."""
        make: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        made: Unread = make(cls, like.shape, strides=like.stride(), dtype=like.dtype, device="cpu")
        made.read = read
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"Unread({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})

        def run() -> Any:
            values, named = tree_map_only(Unread, lambda one: one.read(), given)
            return func(*values, **named)

        tensors = [one for one in tree_flatten(given)[0] if isinstance(one, Tensor)]
        if func._schema.is_mutable or not all(isinstance(one, Unread) for one in tensors):
            return run()
        shapes, named = tree_map_only(Unread, _shape_of, given)
        try:
            found, form = tree_flatten(func(*shapes, **{**named, **({"device": "meta"} if "device" in named else {})}))
        except (RuntimeError, NotImplementedError):
            return run()
        if not all(isinstance(one, Tensor) for one in found):
            return run()
        later = [Unread(one, lambda n=n: tree_flatten(run())[0][n]) for n, one in enumerate(found)]
        return form.unflatten(later)


def _shape_of(unread: Unread) -> Tensor:
    return torch.empty_strided(unread.shape, unread.stride(), dtype=unread.dtype, device="meta")


def unread_tensors(stored: StoredTensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its stored name; matrices are unread. FP8 weights as numbers in `dtype`."""
    found: dict[str, Tensor] = {}
    for name in stored.names:
        shape, kind = stored.shapes[name], stored.dtype(name, dtype)
        if len(shape) < 2:
            # A copy: what was read can be a view of the file, which would stay mapped.
            found[name] = stored.read(name, dtype).clone()
        else:
            like = torch.empty(shape, dtype=kind, device="meta")
            found[name] = Unread(like, lambda name=name: stored.read(name, dtype))
    return found


def weight_size(folder: Path, scheme: Fp8Scheme | None, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's floating-point tensors in a dtype; none is read."""
    stored = StoredTensors(folder, scheme)
    kinds = {name: stored.dtype(name, dtype) for name in stored.names}
    return sum(stored.shapes[name].numel() * dtype.itemsize for name, kind in kinds.items() if kind.is_floating_point)


@dataclass(eq=False)
class _OnDisk:
    """A parameter of a block, and how to read it."""

    module: nn.Module
    name: str
    empty: nn.Parameter
    """On the meta device: in the parameter's place while it is not in memory."""
    read: Callable[[], Tensor]
    held: bool = False
    """Whether it stays in memory, since its values are not those of the checkpoint."""

    @property
    def here(self) -> Tensor | None:
        """Its values, if they are in memory."""
        now: Tensor = getattr(self.module, self.name)
        return None if now.is_meta else now.detach()

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.empty.numel() * self.empty.element_size()

    def put(self, values: Tensor | None) -> None:
        """Take these values, or return to the disk."""
        setattr(self.module, self.name, self.empty if values is None else nn.Parameter(values, False))


@dataclass(eq=False)
class Streamed:
    """The blocks of a model that are read from disk, by number, and what the model takes of memory."""

    device: torch.device
    blocks: dict[int, list[_OnDisk]]
    size: int
    """Bytes of the weights in memory at most: all that stays there, and the largest block that is read."""
    named: dict[str, _OnDisk] = field(default_factory=dict[str, _OnDisk])
    loaded: int | None = None
    """The block that is in memory."""

    @classmethod
    def of(cls, model: Any, blocks: str, memory: int, device: torch.device) -> Streamed:
        """Move a model of unread tensors to a device: as many of its last blocks as fit, and all that is no block.

        The last blocks are those that a search of targets runs most. Raises ResourceError where one block and what is
        outside of the blocks do not fit into `memory` bytes, and UnsupportedModelError where matrices of a block were
        read already.
        """
        layers = list(model.get_submodule(blocks).children())
        entries = {n: list(_unread_parameters(block)) for n, block in enumerate(layers)}
        inside = {id(getattr(one.module, one.name)) for of_one in entries.values() for one in of_one}
        # By identity: tied parameters are one.
        outside = {id(one): one for one in (*model.parameters(), *model.buffers()) if id(one) not in inside}
        sizes = {n: sum(one.size for one in of_one) for n, of_one in entries.items()}
        around, largest = sum(one.numel() * one.element_size() for one in outside.values()), max(sizes.values())
        if not largest:
            raise UnsupportedModelError(
                "the blocks of this model cannot be read one at a time: transformers converts all of them as it opens "
                "the model", "leave out --memory, on a machine that holds its weights",
            )  # fmt: skip
        if around + largest > memory:
            raise _too_small(around, largest, memory)
        taken = around + largest
        last = len(layers)
        while last and taken + sizes[last - 1] <= memory // STAYING:
            last -= 1
            taken += sizes[last]
        made = cls(device, {n: entries[n] for n in range(last)}, taken)
        for n in range(last):
            made._wrap(n, layers[n])
        _move(model, device)
        names = {id(module): name for name, module in model.named_modules()}
        made.named = {f"{names[id(one.module)]}.{one.name}": one for n in made.blocks for one in made.blocks[n]}
        return made

    def _wrap(self, number: int, block: nn.Module) -> None:
        """Let a block's forward read its weights first."""
        for one in self.blocks[number]:
            one.put(None)
        inner = block.forward

        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.enter(number)
                return inner(*args, **kwargs)

            tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
            if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
                return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            return run(*args, **kwargs)

        block.__dict__["forward"] = forward

    @torch.no_grad()
    def enter(self, number: int) -> None:
        """Read a block's weights, in the place of those of the last block."""
        if self.loaded == number:
            return
        if self.loaded is not None:
            for one in self.blocks[self.loaded]:
                if not one.held:
                    one.put(None)
        # Set at the end: if memory runs out in between, what was read is dropped by the next call.
        self.loaded = None
        try:
            for one in self.blocks[number]:
                if not one.held:
                    one.put(one.read().to(self.device))
        except BaseException:
            for one in self.blocks[number]:
                if not one.held:
                    one.put(None)
            raise
        self.loaded = number

    @torch.no_grad()
    def value(self, name: str, otherwise: Tensor) -> Tensor:
        """The values of a parameter, to be read only, from memory or the disk; `otherwise` if it is none of these."""
        if (one := self.named.get(name)) is None:
            return otherwise
        here = one.here
        return one.read().to(self.device) if here is None else here

    @torch.no_grad()
    def hold(self, name: str) -> None:
        """Keep a parameter in memory, where its values can be changed; if it is one of these."""
        if (one := self.named.get(name)) is not None and not one.held:
            # Not the tensor that was read: it can be a view of the file's pages, which later reads would see changed.
            one.put(self.value(name, one.empty).clone())
            one.held = True

    def let_go(self, name: str) -> None:
        """Return a held parameter to the values of the checkpoint."""
        if (one := self.named.get(name)) is not None and one.held:
            one.held = False
            one.put(None)
            if self.loaded is not None and one in self.blocks[self.loaded]:
                with torch.no_grad():
                    one.put(one.read().to(self.device))


def _unread_parameters(block: nn.Module) -> Generator[_OnDisk]:
    for module in block.modules():
        for name, one in module.named_parameters(recurse=False):
            if isinstance(one, Unread):
                yield _OnDisk(module, name, nn.Parameter(_shape_of(one), False), one.read)


@torch.no_grad()
def _move(model: nn.Module, device: torch.device) -> None:
    """Read what is unread and not on the meta device, and move all of it to a device; what is shared stays shared."""
    done: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        mine = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, one in mine:
            if one.is_meta:
                continue
            if id(one) not in done:
                moved = (one.read() if isinstance(one, Unread) else one.detach()).to(device)
                # `one` is kept too, so that no other tensor gets its identity.
                done[id(one)] = one, nn.Parameter(moved, False) if isinstance(one, nn.Parameter) else moved
            setattr(module, name, done[id(one)][1])


def _too_small(around: int, block: int, memory: int) -> ResourceError:
    least = -(-(around + block) * SPARE // ((SPARE - 1) * 10**6))
    return ResourceError(
        f"one block ({bytes_text(block)}) and the weights outside of the blocks ({bytes_text(around)}) do not fit in "
        f"--memory {bytes_text(memory)}",
        f"say --memory {least}MB or more, or --dtype bfloat16",
    )
