"""The kinds of things that the cache keeps. Without pydantic: the help of `memedit cache` names them."""

from __future__ import annotations

from typing import Literal, get_args

CacheKind = Literal["moment", "factor", "text", "partial", "run", "trace", "damaged", "temporary"]
CACHE_KINDS: tuple[CacheKind, ...] = get_args(CacheKind)
