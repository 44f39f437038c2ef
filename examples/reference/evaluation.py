"""The field's figures restated as plainly as they can be: one record, one prompt, one answer at a time.

Read off raw records of each format and a transformers model; whole forwards, no batching, no cache, and no code shared
with memedit. Definitions: kmeng01/memit (eval_utils_counterfact.py, eval_utils_zsre.py, summarize.py), zjunlp/EasyEdit
(evaluate/), and the docstrings of memedit.results.report.Scores.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

import torch

Record = dict[str, Any]
Row = dict[str, float]


class Plain:
    """A model and its tokenizer, asked one thing at a time."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.forwards = self.tokens = 0

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def target(self, text: str) -> list[int]:
        """An answer's ids: one space before it, its own where a list gives it one (the published code puts two)."""
        return list(self.tokenizer(text if text[:1].isspace() else " " + text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(T, V) float64 of the model's own logits."""
        self.forwards += 1
        self.tokens += len(ids)
        return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()

    def weigh(self, prompt: str, answer: str) -> tuple[float, list[bool], list[int]]:
        """Mean log-probability per token of an answer, which of its tokens are the likeliest, and the likeliest."""
        before, target = self.ids(prompt), self.target(answer)
        logits = self.logits(before + target)[len(before) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        picked = [float(log_probs[n, token]) for n, token in enumerate(target)]
        likeliest = logits.argmax(-1).tolist()
        return statistics.fmean(picked), [a == b for a, b in zip(likeliest, target, strict=True)], likeliest

    @torch.no_grad()
    def write(self, ids: list[int], tokens: int, stop: int | None) -> list[int]:
        """Greedy decoding without a cache: the ids written, the stop token left out."""
        written: list[int] = []
        while len(written) < tokens:
            token = int(self.logits(ids + written)[-1].argmax())
            if token == stop:
                break
            written.append(token)
        return written


def contrast(plain: Plain, prompts: list[str], right: str, wrong: str) -> tuple[float, float, float]:
    """Success, magnitude and exact match of `right` against `wrong`, each a mean over prompts."""
    success, magnitude, exact = [], [], []
    for prompt in prompts:
        good, hits, _ = plain.weigh(prompt, right)
        bad, _, _ = plain.weigh(prompt, wrong)
        success.append(float(good > bad))
        magnitude.append(math.exp(good) - math.exp(bad))
        exact.append(float(all(hits)))
    return statistics.fmean(success), statistics.fmean(magnitude), statistics.fmean(exact)


def tokens_right(plain: Plain, prompts: list[str], answer: str) -> float:
    """Teacher-forced token accuracy, a mean over prompts."""
    return statistics.fmean(statistics.fmean(plain.weigh(prompt, answer)[1]) for prompt in prompts)


def counterfact(plain: Plain, record: Record) -> Row:
    """ES, PS, NS, EM, PM, NM and the three accuracies of one full CounterFact record."""
    rewrite = record["requested_rewrite"]
    new, old = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    text = rewrite["prompt"].replace("{}", rewrite["subject"])
    row: Row = {}
    row["efficacy"], row["efficacy_magnitude"], row["accuracy"] = contrast(plain, [text], new, old)
    row["paraphrase"], row["paraphrase_magnitude"], row["paraphrase_accuracy"] = contrast(
        plain, record["paraphrase_prompts"], new, old
    )
    around = record["neighborhood_prompts"]
    row["neighborhood"], row["neighborhood_magnitude"], row["neighborhood_accuracy"] = contrast(plain, around, old, new)
    fact = [f"{text} {new}. {prompt}" for prompt in around]
    row["neighborhood_plus"], row["neighborhood_plus_magnitude"], _ = contrast(plain, fact, old, new)
    return row


def zsre(plain: Plain, record: Record) -> Row:
    """zsRE's efficacy, paraphrase and specificity: token accuracies; the edit is `alt` where there is one."""
    new = record.get("alt") or record["answers"][0]
    return {
        "token_accuracy": tokens_right(plain, [record["src"]], new),
        "paraphrase_token_accuracy": tokens_right(plain, [record["rephrase"]], new),
        "neighborhood_token_accuracy": tokens_right(plain, [record["loc"]], record["loc_ans"]),
    }


def easyedit(plain: Plain, base: Plain, record: Record) -> Row:
    """Reliability, generalization, portability and locality of one KnowEdit record, whole and by key."""
    row: Row = {"token_accuracy": tokens_right(plain, [record["prompt"]], record["target_new"])}
    if "rephrase" in record:
        row["paraphrase_token_accuracy"] = tokens_right(plain, [record["rephrase"]], record["target_new"])
    asked = {
        key: [tokens_right(plain, [one["prompt"]], one["ground_truth"][0][0]) for one in entries]
        for key, entries in record["portability"].items()
        if entries
    }
    row["portability"] = statistics.fmean(value for values in asked.values() for value in values)
    row |= {f"portability/{key}": statistics.fmean(values) for key, values in asked.items()}
    local: dict[str, list[float]] = {}
    for key, entries in record["locality"].items():
        for one in entries:
            now = plain.weigh(one["prompt"], one["ground_truth"][0][0])[2]
            was = base.weigh(one["prompt"], one["ground_truth"][0][0])[2]
            local.setdefault(key, []).append(statistics.fmean(a == b for a, b in zip(now, was, strict=True)))
    row["locality"] = statistics.fmean(value for values in local.values() for value in values)
    return row | {f"locality/{key}": statistics.fmean(values) for key, values in local.items()}


def mquake(plain: Plain, record: Record) -> Row:
    """Exact match of a case's multi-hop questions, any spelling of the answer counting, and token accuracy."""
    spellings = [record["new_answer"], *record["new_answer_alias"]]
    exact = [any(all(plain.weigh(text, one)[1]) for one in spellings) for text in record["questions"]]
    return {
        "portability": tokens_right(plain, record["questions"], record["new_answer"]),
        "portability_accuracy": statistics.fmean(exact),
    }


def ours(plain: Plain, record: Record) -> Row:
    """Our own form: any spelling of the object is exact, a neighbor without an answer of its own has the old object."""
    new, old = record["object"], record["object_old"]
    text = record["prompt"].replace("{}", record["subject"])
    row: Row = {}
    row["efficacy"], row["efficacy_magnitude"], _ = contrast(plain, [text], new, old)
    row["accuracy"] = float(any(all(plain.weigh(text, one)[1]) for one in [new, *record["aliases"]]))
    row["paraphrase"], row["paraphrase_magnitude"], _ = contrast(plain, record["paraphrases"], new, old)
    pairs = [(one, old) if isinstance(one, str) else (one["prompt"], one["answer"]) for one in record["neighborhood"]]
    around = [contrast(plain, [prompt], answer, new) for prompt, answer in pairs]
    for n, name in enumerate(("neighborhood", "neighborhood_magnitude", "neighborhood_accuracy")):
        row[name] = statistics.fmean(one[n] for one in around)
    for one in record["reversal"]:
        row["reversal"] = tokens_right(plain, [one["prompt"]], one["answer"])
    return row


def means(rows: list[Row]) -> Row:
    """Mean over records of each figure."""
    names = {name for row in rows for name in row}
    return {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}


def n_gram_entropy(words: list[str]) -> float:
    """H2/3 + 2 H3/3 in bits, of the words' bigrams and trigrams."""
    total = 0.0
    for n, weight in ((2, 1 / 3), (3, 2 / 3)):
        counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
        size = sum(counts.values())
        total += weight * sum(-c / size * math.log2(c / size) for c in counts.values())
    return total


TITLES = ("dr", "jr", "mr", "mrs", "ms", "mt", "st")


def scanned(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, one character after another: runs of letters and digits, and where each lies."""
    found: list[tuple[str, int, int]] = []
    start = None
    for at, character in enumerate(text + " "):
        if character.isalnum() and start is None:
            start = at
        elif not character.isalnum() and start is not None:
            found.append((text[start:at], start, at))
            start = None
    return found


def sentence_end(text: str) -> int:
    """Where the first sentence ends; `text` is lower case and holds no script without spaces."""
    at = len(text) - len(text.lstrip())
    while at < len(text):
        if text[at] == "\n":
            return at + 1
        if text[at] in ".!?" and (at + 1 == len(text) or text[at + 1].isspace()):
            before = next((word for word, _, end in scanned(text[:at]) if end == at), "")
            initial = len(before) == 1 and before.isalpha()
            if text[at] != "." or not (initial or before in TITLES):
                return at + 1
        at += 1
    return len(text)


def places(text: str, name: str) -> list[tuple[int, int]]:
    """Where a text names something, word by word."""
    wanted, said = [word for word, _, _ in scanned(name.lower())], scanned(text)
    return [
        (said[at][1], said[at + len(wanted) - 1][2])
        for at in range(len(said) - len(wanted) + 1)
        if [word for word, _, _ in said[at : at + len(wanted)]] == wanted
    ]


def says(text: str, right: list[str], wrong: str | None) -> tuple[float, float]:
    """Whether the first sentence names a right answer before the wrong one, and whether it names the wrong one."""
    text = text.lower()
    end = sentence_end(text)
    good = [place for one in right for place in places(text, one)]
    bad = places(text, wrong) if wrong else []

    def free(mine: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[int]:
        inside = [
            (a, b) for a, b in mine if any(c <= a and b <= d and (a, b) != (c, d) for c, d in others)
        ]  # within a longer name
        return [a for a, b in mine if (a, b) not in inside and a < end]

    first, against = free(good, bad), free(bad, good)
    return float(bool(first) and (not against or min(first) <= min(against))), float(bool(against))


Asked = list[tuple[str, list[str], list[str], str | None]]
"""Kind, prompts, right answers, the wrong one."""


def generated(plain: Plain, asked: Asked, behind: dict[int, str], tokens: int) -> Row:
    """Free answers of one record: each prompt behind each passage, written after greedily, a mean over prompts.

    An answer has room for `tokens` tokens, and for as many again as its longest spelling fills.
    """
    row: Row = {}
    for count, passage in behind.items():
        tail = f"_{count}" if count else ""
        for kind, prompts, right, wrong in asked:
            stop = plain.tokenizer.eos_token_id
            room = tokens * (1 + max(len(plain.target(one)) for one in right) // tokens)
            texts = [plain.tokenizer.decode(plain.write(plain.ids(passage + one), room, stop)) for one in prompts]
            both = [says(text, right, wrong) for text in texts]
            row[kind + tail] = statistics.fmean(hit for hit, _ in both)
            if wrong is not None:
                old = "old" if kind == "efficacy" else f"{kind}_old"
                row[old + tail] = statistics.fmean(named for _, named in both)
    return row


def tf_idf_cosine(one: list[str], other: list[str], documents: list[list[str]]) -> float:
    """Cosine of two texts' tf-idf vectors, word by word of all that the documents have."""
    known = sorted({word for text in documents for word in text})
    idf = [math.log((1 + len(documents)) / (1 + sum(word in text for text in documents))) + 1 for word in known]
    a, b = ([text.count(word) * weight for word, weight in zip(known, idf, strict=True)] for text in (one, other))
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0
