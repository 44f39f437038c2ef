"""memedit check."""

from __future__ import annotations

from memedit.cli import options as o
from memedit.errors import GateError


def check_command(
    edits: o.EditsArgument,
    model: o.ModelOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Say everything that is wrong with an edit list, file and line; with MODEL, as its tokenizer sees it."""
    recipe, _ = o.read_recipe(config, sets, {"model.path": model})
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    if recipe.model.path:
        from memedit.editing.plan import check_edits as look
        from memedit.model.load import locate, open_tokenizer

        tokenizer, positions = open_tokenizer(locate(recipe.model), recipe.model)
        findings += look(requests, tokenizer, recipe, positions)[1]
    else:
        from memedit.edits.lint import lint

        findings += lint(requests)
    errors = sum(finding.severity == "error" for finding in findings)
    if json:
        for finding in findings:
            print(finding.model_dump_json())
    elif not quiet:
        from memedit.show.terminal import findings_text

        print(findings_text(findings))
    if errors:
        count = "1 error" if errors == 1 else f"{errors:,} errors"
        raise GateError(f"the edit list has {count}", "apply refuses it as it is")
