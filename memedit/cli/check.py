"""memedit check."""

from __future__ import annotations

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import GateError


@with_terminal("Print nothing but the error line.")
def check_command(
    edits: o.EditsArgument,
    model: o.CheckedModelOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ListConfigOption = None,
    sets: o.SetOption = None,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """List everything that is wrong with an edit list, by file and line; exit 3 if it has errors.

    With MODEL, also check that its tokenizer finds every subject.

    \b
    Examples:
      memedit check edits.yaml
      memedit check edits.yaml -m gpt2
    """
    recipe, _ = o.read_recipe(config, sets, {"model.path": model}, found=o.find_recipe(edits, config, terminal))
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    if recipe.model.path:
        terminal.loading(recipe.model.path)
        from memedit.pipeline import RunInputs, run_check

        findings = run_check(RunInputs(recipe, requests, findings))
    else:  # without a model nothing heavy is imported
        from memedit.edits.lint import in_file_order, lint

        findings = in_file_order([*findings, *lint(requests)])
    errors = sum(finding.severity == "error" for finding in findings)
    if json:
        for finding in findings:
            print(finding.model_dump_json())
    elif not terminal.quiet:
        from memedit.show.terminal import findings_text

        print(findings_text(findings))
    if errors:
        count = "1 error" if errors == 1 else f"{errors:,} errors"
        raise GateError(f"the edit list has {count}", "fix the lines listed above: apply refuses the list as it is")
