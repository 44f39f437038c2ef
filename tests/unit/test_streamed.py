"""Blocks that are read from disk as they run: one at a time, and every number is that of the model in memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.recipe import ModelKnobs, Recipe, TargetKnobs
from memedit.editing.batches import MOST_TOKENS, Sizes
from memedit.editing.plan import Edit
from memedit.editing.resources import Pace, check_weights, streaming_note
from memedit.editing.target_search import memory_for
from memedit.editing.targets import Targets, find_targets
from memedit.edits.edit import EditRequest
from memedit.errors import ResourceError, UnsupportedModelError, UsageError
from memedit.forward.suffix import WORTH
from memedit.model.digests import feeding, of_model
from memedit.model.load import LanguageModel, ModelSource, load
from memedit.model.streamed import Streamed
from memedit.model.tokens import Prompt
from memedit.model.weights import applied, put_
from memedit.results.units import bytes_text
from memedit.storage.checkpoint import Checkpoint
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer
from tests.families import each_family, family_model
from tests.helpers.fp8 import quantize
from tests.helpers.in_process import run_main
from torch import Tensor

CPU = ModelKnobs(device="cpu")
LOADED_IN_MANY_WAYS = (
    "gpt2", "llama", "gpt_neox", "bloom", "falcon", "gemma2", "phi3", "olmo2", "mixtral", "deepseek_v3", "gpt_oss",
    "qwen3_5", "gemma3", "llava",
)  # fmt: skip
"""Families whose stored tensors are renamed, merged, cut or kept as they are."""
PROMPT = Prompt((5, 6, 7, 8), 1)


def matrices(lm: LanguageModel, block: int) -> list[Tensor]:
    """The matrices of a block, as they are now."""
    inside = lm.model.get_submodule(f"{lm.architecture.blocks}.{block}")
    return [one for one in inside.parameters() if one.ndim > 1]


def least(lm: LanguageModel) -> int:
    """The fewest bytes in which a model opens: that of its largest block, and of all that is no matrix of a block."""
    blocks = [sum(one.numel() * 4 for one in matrices(lm, n)) for n in range(lm.architecture.n_layers)]
    buffers = sum(one.numel() * one.element_size() for one in lm.model.buffers())
    return lm.size + buffers - sum(blocks) + max(blocks)


def both(folder: Path, **options: bool) -> tuple[LanguageModel, LanguageModel]:
    """A model in memory, and one whose blocks are read from disk."""
    whole = load(folder, CPU, **options)
    streamed = load(folder, CPU, memory=least(whole), **options)
    assert whole.streamed is None and streamed.streamed is not None
    return whole, streamed


@pytest.fixture(scope="module")
def pair(sound: Path) -> tuple[LanguageModel, LanguageModel]:
    return both(sound)


@pytest.mark.parametrize("family", each_family(LOADED_IN_MANY_WAYS))
def test_logits_and_gradients_are_those_of_the_model_in_memory(family: str, tmp_path: Path) -> None:
    family_model(family).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    whole, streamed = both(tmp_path, editing=False)
    assert whole.architecture == streamed.architecture
    states = torch.randn(2, 9, whole.architecture.width)
    found: list[tuple[Tensor, Tensor]] = []
    for lm in (whole, streamed):
        change = torch.zeros_like(states).requires_grad_()
        add: Any = lambda _module, _args, output, change=change: output + change  # noqa: E731
        hook = lm.model.get_input_embeddings().register_forward_hook(add)
        logits = lm.model(input_ids=torch.arange(18).view(2, 9), use_cache=False).logits
        hook.remove()
        (gradient,) = torch.autograd.grad(logits.square().sum(), change)
        found.append((logits.detach(), gradient))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0


def test_one_block_is_in_memory_at_a_time(pair: tuple[LanguageModel, LanguageModel]) -> None:
    lm = pair[1]
    seen: list[list[bool]] = []

    def look(*_: Any) -> None:
        seen.append([all(not one.is_meta for one in matrices(lm, n)) for n in range(4)])
        assert all(len({one.is_meta for one in matrices(lm, n)}) == 1 for n in range(4))

    hooks = [lm.model.get_submodule(path).register_forward_hook(look) for path in lm.architecture.down_projections]
    with torch.no_grad():
        lm.model(torch.arange(6)[None])
    for hook in hooks:
        hook.remove()
    assert seen == [[n == block for n in range(4)] for block in range(4)]


def test_blocks_that_fit_stay_the_last_ones_first(
    sound: Path, pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memedit.model.streamed.STAYING", 1)
    block = sum(one.numel() * 4 for one in matrices(pair[0], 0))
    lm = load(sound, CPU, memory=least(pair[0]) + block)
    assert lm.streamed is not None
    assert list(lm.streamed.blocks) == [0, 1, 2] and lm.streamed.size == least(pair[0]) + block == lm.size
    assert not any(one.is_meta for one in matrices(lm, 3)) and all(one.is_meta for one in matrices(lm, 1))


def test_weights_that_fit_are_all_in_memory(sound: Path, pair: tuple[LanguageModel, LanguageModel]) -> None:
    assert load(sound, CPU, memory=pair[0].size * 8 // 7 + 8, editing=False).streamed is None
    assert load(sound, CPU, memory=pair[0].size * 8 // 7 - 8, editing=False).streamed is not None


def test_memory_for_less_than_a_block_is_refused(sound: Path, pair: tuple[LanguageModel, LanguageModel]) -> None:
    with pytest.raises(ResourceError, match=r"one block .* and the weights outside of the blocks") as caught:
        load(sound, CPU, memory=least(pair[0]) - 1)
    assert caught.value.exit_code == 5
    named = re.search(r"--memory (\d+)MB or more", caught.value.hint)
    assert named
    assert load(sound, CPU, memory=int(named[1]) * 10**6, editing=False).model is not None


def test_a_weight_that_is_not_finite_is_refused_by_its_name(sound: Path, tmp_path: Path) -> None:
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(sound / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds NaN"):
        load(tmp_path, CPU, memory=160_000)


def test_digests_are_those_of_the_model_in_memory(pair: tuple[LanguageModel, LanguageModel]) -> None:
    whole, streamed = pair
    assert of_model(whole) == of_model(streamed) and feeding(whole, [1, 2]) == feeding(streamed, [1, 2])


@pytest.mark.parametrize("loaded", [1, 2, 3])
def test_a_changed_weight_stays_changed_until_it_is_restored(
    pair: tuple[LanguageModel, LanguageModel], loaded: int
) -> None:
    whole, streamed = pair
    assert streamed.streamed is not None
    streamed.streamed.enter(loaded)
    ids, before = torch.arange(7)[None], of_model(streamed)
    weight = torch.randn_like(whole.weight(2))

    def logits(lm: LanguageModel) -> Tensor:
        with torch.no_grad():
            return lm.model(ids).logits

    plain = logits(whole)
    with applied(whole, {2: weight}), applied(streamed) as kept:
        put_(streamed, 2, weight, kept)
        assert torch.equal(streamed.weight(2), weight)
        assert torch.equal(logits(whole), logits(streamed)) and not torch.equal(logits(streamed), plain)
    assert of_model(streamed) == before and torch.equal(logits(streamed), plain)
    assert all(not one.held for one in streamed.streamed.named.values())


def test_fp8_weights_are_read_with_their_scales(sound: Path, tmp_path: Path) -> None:
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole, streamed = both(quantize(tmp_path, block=(16, 16)))
    with torch.no_grad():
        assert torch.equal(whole.model(torch.arange(7)[None]).logits, streamed.model(torch.arange(7)[None]).logits)
    assert of_model(whole) == of_model(streamed)


def test_the_search_has_what_the_weights_leave(pair: tuple[LanguageModel, LanguageModel]) -> None:
    whole, streamed = pair
    recipe = Recipe(memory="2MB")
    assert memory_for(whole, recipe) == 2_000_000 - whole.size
    assert memory_for(streamed, recipe) == 2_000_000 - streamed.size > memory_for(whole, recipe)
    # A model that somebody opened is not counted: nobody knows what else it is for.
    assert memory_for(replace(whole, source=None), recipe) == 2_000_000
    spread = ModelSource(Path(), CPU.model_copy(update={"device_map": "auto"}))
    assert memory_for(replace(whole, source=spread), recipe) == 2_000_000
    assert memory_for(streamed, Recipe(memory="1kB")) == 0


def test_a_limit_below_the_weights_asks_for_no_more_than_the_limit(
    sound: Path, pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Checkpoint.open(sound)
    monkeypatch.setattr("memedit.editing.resources.free_memory", lambda: pair[0].size - 1)
    with pytest.raises(ResourceError, match="the weights take") as caught:
        check_weights(base, CPU)
    assert "--memory" in caught.value.hint
    check_weights(base, CPU, limit=pair[0].size - 1)
    with pytest.raises(ResourceError):
        check_weights(base, CPU, limit=2 * pair[0].size)  # they fit into that, and so are all in memory


def test_the_user_is_told_what_it_costs(pair: tuple[LanguageModel, LanguageModel]) -> None:
    whole, streamed = pair
    assert streaming_note(whole, Pace(0.1), "1GB") is None
    size = bytes_text(whole.size)
    assert streaming_note(streamed, Pace(0.01, 10.24), "1GB") == (
        f"the weights ({size}) do not fit in --memory 1GB: blocks are read from disk as they are needed; expect about "
        "2.0 times the time"
    )
    pace = Pace.of(streamed)
    assert pace.reading > 0 and pace.token > 0 and Pace.of(whole).reading == 0


def searched(lm: LanguageModel, steps: int) -> Targets:
    """The targets of four edits of several lengths under two contexts, at block 0 of four."""
    edits: list[Edit] = []
    prompts: list[list[Prompt]] = []
    for n in range(4):
        request = EditRequest(id=str(n), subject="s", prompt="{} is", object="o", origin=str(n))
        subject, tail = tuple(range(10 + n, 13 + 2 * n)), tuple(range(40, 42 + n))
        prompts.append([Prompt(one + subject + tail, len(one + subject) - 1) for one in ((), (5, 6, 7))])
        edits.append(Edit(request, prompts[-1][0], tuple(range(60, 61 + n)), subject))
    recipe = Recipe(target=TargetKnobs(steps=steps, stop=0, optimizer="adam"))
    return find_targets(lm, edits, prompts, 0, recipe, tokens=MOST_TOKENS["disk"])


def test_a_step_reads_each_block_once_for_the_forward_and_once_for_the_gradient(
    pair: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, streamed = pair
    entered: list[int] = []
    real = Streamed.enter

    def watched(self: Streamed, number: int) -> None:
        if self.loaded != number:
            entered.append(number)
        real(self, number)

    monkeypatch.setattr(Streamed, "enter", watched)
    short = searched(streamed, 4)
    few = len(entered)
    entered.clear()
    longer = searched(streamed, 6)
    # Up to the last block and back: the blocks at both ends stay for the way back.
    assert entered[-10:-2] == 2 * [2, 3, 2, 1] and len(entered) - few == 2 * 4
    assert torch.allclose(longer.wanted, searched(whole, 6).wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(longer.wanted, short.wanted, rtol=0, atol=1e-3)


def test_a_launch_keeps_one_block_s_activations(pair: tuple[LanguageModel, LanguageModel]) -> None:
    whole, streamed = pair
    edit = Edit(EditRequest(id="a", subject="s", prompt="{} is", object="o", origin="1"), PROMPT, (9,), (5, 6))
    one, two = (Sizes.of(lm, [edit], [[PROMPT]], 0) for lm in (whole, streamed))
    width, inner = whole.architecture.width, whole.architecture.mlp_width
    assert one.per_edit == two.per_edit
    assert one.per_token - two.per_token == 4 * (2 * (16 * width + 8 * inner) - 3 * 2 * width)


@pytest.fixture(scope="module")
def outputs(
    small_edits: list[EditRequest], moments_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Three polished edits of the small model: in memory, and by blocks that are read from disk."""
    base = Path(__file__).parents[2] / "examples" / "models" / "made-small"
    place, size = tmp_path_factory.mktemp("streamed"), load(base, CPU, editing=False).size
    limit = {"memory": f"{size * 3 // 4}B"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMEDIT_CACHE", str(moments_folder))
        # Launches of the sizes that they have in memory: sums over rows of other launches differ in their last bits.
        patch.setitem(MOST_TOKENS, "disk", MOST_TOKENS["cpu"])
        patch.setitem(WORTH, "disk", WORTH["cpu"])
        patch.setattr("memedit.editing.target_search.memory_for", lambda *_: 1 << 30)
        for name, more in (("whole", {}), ("streamed", limit)):
            settings = {"target.steps": 6, "polish.steps": 2, "eval.derive": False, **more}
            report = memedit.apply(small_edits[:3], base, place / name, settings=settings)
            assert report.after and report.after.efficacy and report.after.efficacy.mean == 1
    return place / "whole", place / "streamed"


@pytest.mark.slow
def test_a_run_writes_the_bytes_of_a_run_in_memory(outputs: tuple[Path, Path]) -> None:
    whole, streamed = outputs
    for name in ("memedit/ledger.safetensors", "memedit/delta.safetensors", "model.safetensors"):
        assert (whole / name).read_bytes() == (streamed / name).read_bytes(), name


@pytest.mark.slow
def test_a_model_read_from_disk_is_evaluated_and_takes_no_adapter(
    outputs: tuple[Path, Path], small_edits: list[EditRequest], tmp_path: Path
) -> None:
    whole, _ = outputs
    quick, limit = {"eval.tokens": 2}, {"memory": f"{load(whole, CPU, editing=False).size * 3 // 4}B"}
    one, two = (memedit.evaluate(small_edits[:3], whole, settings={**quick, **more}) for more in ({}, limit))
    assert one.after and two.after and one.after.efficacy == two.after.efficacy
    for mine, theirs in zip(one.per_edit, two.per_edit, strict=True):
        assert mine.after == pytest.approx(theirs.after)
    base = Path(__file__).parents[2] / "examples" / "models" / "made-small"
    memedit.export(whole, "lora", base, tmp_path / "adapter")
    with pytest.raises(UsageError, match="read from disk") as caught:
        memedit.evaluate(small_edits[:6], base, adapter=tmp_path / "adapter", settings=limit)
    assert "merge it first: memedit export" in caught.value.hint


@pytest.mark.slow
def test_a_trace_is_that_of_the_model_in_memory() -> None:
    root = Path(__file__).parents[2]
    base = root / "examples" / "models" / "made-small"
    limit = f"memory={load(base, CPU, editing=False).size * 3 // 4}B"
    command = ["trace", str(root / "requests" / "small.jsonl"), "--limit", "1", "-m", str(base), "--samples", "2"]
    one, two = (run_main([*command, "--json", *more]) for more in ([], ["--set", limit]))
    assert one.code == two.code == 0 and one.out == two.out and "read from disk" in two.err
