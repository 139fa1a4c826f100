"""python -m jaxclip.report WORKDIR: writes a run's report.html anew, with the evaluations since then."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

from jaxclip.errors import UserError
from jaxclip.exit_status import run_command
from jaxclip.paths import local
from jaxclip.report import Gallery, write


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.report", description=__doc__)
    parser.add_argument("workdir", help="of the run")
    parser.add_argument(
        "--robustness",
        metavar="FILE.csv",
        help="draws the run among reference models: model,IN_DISTRIBUTION,SHIFTED,... with names of evaluated data",
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda _: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    from jaxclip.evaluate import robustness

    workdir = local(arguments.workdir, "WORKDIR")
    if not workdir.is_dir():
        raise UserError(f"no folder {workdir} to report on; name the workdir of a run")
    reference = robustness.read(local(arguments.robustness, "--robustness")) if arguments.robustness else None
    try:
        gallery, charts = _of_model(workdir)
    except UserError as error:
        # The evaluations of a run can be shown without its model, or without its data.
        print(f"without images of the validation data: {error}", file=sys.stderr)
        gallery, charts = None, {}
    print(f"report: {write(workdir, gallery, charts, reference).absolute()}")


def _of_model(workdir: pathlib.Path) -> tuple[Gallery | None, Mapping[str, Sequence[str]]]:
    """The images of the validation data with the newest model's similarities, and the method's charts."""
    from jaxclip import model
    from jaxclip.data.sources import open_source
    from jaxclip.progress import phase
    from jaxclip.report.gallery import gallery

    loaded = model.load(workdir)
    data = loaded.config.data if loaded.config else None
    if data is None or not data.eval:
        return None, loaded.method.charts
    with phase("reading the validation data"):
        source = open_source(data.eval, root=data.root)
        return gallery(*loaded.evaluation_parts(), source), loaded.method.charts


if __name__ == "__main__":
    sys.exit(main())
