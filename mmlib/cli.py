"""The commands: `python -m mmlib run | train | evaluate | compare | report | publish | index | search | …`.

Exit codes: 0 done, 1 failed while working, 2 wrong input (nothing was touched), 130 interrupted.
What each does is in `mmlib.commands`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmlib import __version__, commands
from mmlib.commands import EXIT_FAILED
from mmlib.config import ParameterError
from mmlib.files import printable
from mmlib.output import Output

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    No print can fail the command: its work goes on when the reader of a pipe is gone.  Where text was
    lost for another reason, as a full disk, the code of a command that did its work is 1.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output, errors = Output(sys.stdout), Output(sys.stderr, moves="\r")
    try:
        code = _main(arguments)
        output.flush()
        if output.error is not None:
            print(f"error: could not print everything: {output.error}; what is saved is saved", file=errors)
        return code or (EXIT_FAILED if output.error is not None else 0)
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before


def _main(arguments: Sequence[str] | None) -> int:
    # A person's own settings of matplotlib never change or end a run.
    os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLBACKEND": "agg"}
    try:
        options = _parser().parse_args(arguments)
        return options.command(options)
    except SystemExit as stopped:  # of the parser: help, or wrong words
        return stopped.code
    except KeyboardInterrupt:
        if commands.speaks():
            print("interrupted; the same command goes on where this stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ModuleNotFoundError) as error:
        print(f"error: {printable(str(error)) or type(error).__name__}", file=sys.stderr)
        wrong_input = isinstance(error, ParameterError | FileNotFoundError | FileExistsError)
        return EXIT_USAGE if wrong_input else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmlib", description="Image–text retrieval: train, continue, evaluate, report."
    )
    parser.add_argument("--version", action="version", version=f"mmlib {__version__}")
    names = parser.add_subparsers(required=True, metavar="COMMAND")
    overrides = argparse.ArgumentParser(add_help=False)
    overrides.add_argument(
        "-p", "--param", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter, as often as wanted; beats the parameter file",
    )  # fmt: skip

    def add(name: str, meaning: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = names.add_parser(name, help=meaning, description=meaning, parents=parents)
        command.set_defaults(command=getattr(commands, name))
        return command

    run = add("run", "execute an experiment's notebooks in order and render its report", overrides)
    run.add_argument(
        "experiment", type=commands.folder_of, help="a folder of params/, or its name: params/demo or demo"
    )
    run.add_argument("--overwrite", action="store_true", help="train and execute everything anew")

    train = add("train", "train or, with `parent`, continue one run, without a notebook", overrides)
    train.add_argument("params", type=Path, help="for example params/demo/01_train.yaml")

    meaning = "evaluate finished runs on the test split, without a notebook; or embeddings of any model"
    evaluate = add("evaluate", meaning, overrides)
    evaluate.add_argument("params", type=Path, nargs="?", help="for example params/demo/03_evaluate.yaml")
    arrays = evaluate.add_argument_group(
        "embeddings of any model",
        "FILE is an .npy, .npz or .safetensors file; FILE:NAME takes one of several arrays in it.",
    )
    arrays.add_argument("--images", metavar="FILE", help="image embeddings (N, D), any float type")
    arrays.add_argument("--texts", metavar="FILE", help="caption embeddings (M, D)")
    arrays.add_argument("--image-of-text", metavar="FILE", help="row of each caption's image (M,), from 0")
    pretrained = evaluate.add_argument_group(
        "a pretrained model as it is", "The data set is chosen by -p, as -p dataset flickr8k."
    )
    pretrained.add_argument("--model", metavar="NAME", help="open_clip:<name>")
    pretrained.add_argument("--weights", help="a tag of open_clip (its first, if not given), or a file")
    pretrained.add_argument("--template", help='a prompt around the caption: "a photo of {}"')
    pretrained.add_argument("--split", help="test (for final rows, if not given) or val")
    arrays = evaluate.add_argument_group("for both")
    arrays.add_argument("--protocol", help="a name of mmlib.metrics.PROTOCOLS; standard if not given")
    arrays.add_argument("--data", metavar="TEXT", help="data set and split, to stand beside the numbers")
    arrays.add_argument("--out", type=Path, metavar="JSON", help="writes the result")
    arrays.add_argument("--ranks", type=Path, metavar="NPZ", help="writes the rank of every query")
    better = "ranks of other models on the same queries, or names of evaluated runs: is this better?"
    arrays.add_argument("--compare", nargs="+", metavar="NPZ|RUN", help=better)
    arrays.add_argument("--html", type=Path, metavar="PAGE", help="writes a page of the result")

    compare = add("compare", "say of every pair of evaluated runs, whatever their lineage, which is better")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="names of evaluated runs")
    page = "writes a page: results, differences, curves, queries that differ"
    compare.add_argument("--html", type=Path, metavar="PAGE", help=page)

    report = add(
        "report", "render the report of an experiment again, and the index over all; execute nothing"
    )
    report.add_argument("experiment", nargs="?", help="a folder name of reports/; none: the index alone")

    meaning = "copy a complete report to reports/published/ and renew what README and docs quote of it"
    add("publish", meaning).add_argument("experiment", help="a folder name of reports/")

    index = add("index", "embed a folder of photos, or what is new in it, with a trained run, for `search`")
    index.add_argument("run", help="name of a complete run")
    index.add_argument("folder", type=Path, help="of photos")

    search = add("search", "find photos in the folders that a run has indexed, by a sentence or a photo")
    search.add_argument("run", help="name of a run with an index")
    search.add_argument("text", nargs="?", help='a sentence, as "a dog runs on the beach"')
    search.add_argument("--image", type=Path, metavar="PHOTO", help="search with a photo instead")
    search.add_argument("--top", type=int, default=20, metavar="K", help="how many (20)")
    search.add_argument("--html", type=Path, metavar="PAGE", help="writes a page that shows them")
    search.add_argument("--json", action="store_true", help="prints them as JSON")

    meaning = "write both towers of a run as ONNX files that run without torch, and how to use them"
    export = add("export", meaning)
    export.add_argument("run", help="name of a complete run")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")

    meaning = "write the data set of a parameter file as webdataset shards, for training beyond memory"
    shard = add("shard", meaning, overrides)
    shard.add_argument("params", type=Path, nargs="?", help="for example params/demo/01_train.yaml")
    shard.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    shard.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="images of a shard")
    return parser
