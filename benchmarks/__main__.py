"""`python -m benchmarks [--quick] [--only ranks,cold] [--device cuda]`; see README.md beside this."""

import argparse
import datetime
import importlib
import sys
import traceback

from benchmarks import tables

SECTIONS = ("images", "training", "reference", "ranks", "cold", "index", "scaling")


def main(arguments: list[str] | None = None) -> int:
    """Runs the sections, prints tables, writes `results/<machine>.json` and README.md; 1 if one failed."""
    options = _parser().parse_args(arguments)
    if options.readme:
        tables.renew_readme()
        return 0
    import torch

    from benchmarks import machine

    if options.device == "cuda" and not torch.cuda.is_available():
        _parser().error("--device cuda needs a CUDA GPU, found none; use --device cpu")
    sections, failed = {}, []
    for name in options.only:
        print(f"-- {name} …", flush=True)
        try:
            sections[name] = section_rows(name, options.quick, options.device)
        except Exception:  # one section must not cost the results of the others
            traceback.print_exc()
            failed.append(name)
            continue
        print(tables.text(name, sections[name]), flush=True)
    if sections:
        results = {
            "machine": machine.describe(options.device),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "quick": options.quick,
            "sections": sections,
        }
        print(f"written: {tables.write_results(results)}")
        tables.renew_readme()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def section_rows(name: str, quick: bool, device: str) -> list[dict]:
    """The rows of one section.

    Raises:
        ModuleNotFoundError: it does not exist, or a library that it compares with is missing.
    """
    module = importlib.import_module(f"benchmarks.{name}")
    return module.rows(quick, device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions: minutes")
    parser.add_argument(
        "--only", type=_names, default=SECTIONS, metavar="NAMES", help=f"some of {','.join(SECTIONS)}"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models run")
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing: renew the tables of README.md"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SECTIONS)}, found {','.join(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
