"""The commands: `python -m mmlib run | train | evaluate | compare | report | publish | index | search | …`.

Exit codes: 0 done, 1 failed while working, 2 wrong input (nothing was touched), 130 interrupted.
Heavy imports happen inside the commands, so that `--help` and a wrong word answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmlib import __version__, files
from mmlib.config import (
    ContinueConfig,
    DataConfig,
    EvaluateConfig,
    ParameterError,
    TrainConfig,
    ask,
    read_yaml,
)
from mmlib.files import printable, read_json, shown, write_json
from mmlib.output import Output

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


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
        if _speaks():
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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    overrides = argparse.ArgumentParser(add_help=False)
    overrides.add_argument(
        "-p", "--param", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter, as often as wanted; beats the parameter file",
    )  # fmt: skip

    def add(work: Callable, meaning: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        name = work.__name__.removeprefix("_")
        command = commands.add_parser(name, help=meaning, description=meaning, parents=parents)
        command.set_defaults(command=work)
        return command

    run = add(_run, "execute an experiment's notebooks in order and render its report", overrides)
    run.add_argument("experiment", type=_folder, help="a folder of params/, or its name: params/demo or demo")
    run.add_argument("--overwrite", action="store_true", help="train and execute everything anew")

    train = add(_train, "train or, with `parent`, continue one run, without a notebook", overrides)
    train.add_argument("params", type=Path, help="for example params/demo/01_train.yaml")

    meaning = "evaluate finished runs on the test split, without a notebook; or embeddings of any model"
    evaluate = add(_evaluate, meaning, overrides)
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
    better = "ranks of another model on the same queries: is this better?"
    arrays.add_argument("--compare", type=Path, metavar="NPZ", help=better)

    compare = add(_compare, "say of every pair of evaluated runs, whatever their lineage, which is better")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="names of evaluated runs")

    report = add(_report, "render the report of an experiment again, and the index over all; execute nothing")
    report.add_argument("experiment", nargs="?", help="a folder name of reports/; none: the index alone")

    meaning = "copy a complete report to reports/published/ and renew what README and docs quote of it"
    add(_publish, meaning).add_argument("experiment", help="a folder name of reports/")

    index = add(_index, "embed a folder of photos, or what is new in it, with a trained run, for `search`")
    index.add_argument("run", help="name of a complete run")
    index.add_argument("folder", type=Path, help="of photos")

    search = add(_search, "find photos in the folders that a run has indexed, by a sentence or a photo")
    search.add_argument("run", help="name of a run with an index")
    search.add_argument("text", nargs="?", help='a sentence, as "a dog runs on the beach"')
    search.add_argument("--image", type=Path, metavar="PHOTO", help="search with a photo instead")
    search.add_argument("--top", type=int, default=20, metavar="K", help="how many (20)")
    search.add_argument("--html", type=Path, metavar="PAGE", help="writes a page that shows them")
    search.add_argument("--json", action="store_true", help="prints them as JSON")

    export = add(
        _export, "write both towers of a run as ONNX files that run without torch, and how to use them"
    )
    export.add_argument("run", help="name of a complete run")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")

    meaning = "write the data set of a parameter file as webdataset shards, for training beyond memory"
    shard = add(_shard, meaning, overrides)
    shard.add_argument("params", type=Path, nargs="?", help="for example params/demo/01_train.yaml")
    shard.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the shards go")
    shard.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="images of a shard")
    return parser


def _typed(path: str | Path) -> Path:
    """What was typed, from the current folder."""
    try:
        return Path.cwd() / Path(path).expanduser()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder is gone: change to one that exists") from None


def _folder(text: str) -> str:
    """The folder of an experiment, from the current folder where the root has none; else as it was typed."""
    here = _typed(text)
    known = files.from_root(text).exists() or (files.PARAMS / text).exists()
    return str(here.resolve()) if here.exists() and (text.startswith(".") or not known) else text


def _read(typed: Path) -> dict[str, Any]:
    """The parameters in a file that was typed: from the current folder, or from the root."""
    here, from_root = _typed(typed), files.from_root(typed)
    if not here.exists() and not from_root.exists() and here.resolve() != from_root:
        raise FileNotFoundError(
            f"no parameter file {typed}: found neither {here} nor {from_root}; name one, for example"
            " params/demo/01_train.yaml"
        )
    return read_yaml(here if here.exists() else from_root)


def _run(options: argparse.Namespace) -> int:
    _require_notebooks("run")
    from mmlib.pipeline import run_experiment

    return run_experiment(options.experiment, dict(options.param), options.overwrite)


def _require_notebooks(command: str) -> None:
    """Passes in a clone of the repository."""
    if not files.NOTEBOOKS.is_dir():
        raise FileNotFoundError(
            f"{command!r} needs the notebooks of mmlib's repository: expected the folder {files.NOTEBOOKS},"
            " found none; clone the repository and work there, or say where it is: MMLIB_ROOT=/path/to/mmlib"
            " (train and evaluate need no notebooks)"
        )


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters in the file, beaten by those of the command line."""
    return _read(options.params) | dict(options.param)


def _train(options: argparse.Namespace) -> int:
    parameters = _parameters(options)
    continues = "parent" in parameters
    config = ask(ContinueConfig if continues else TrainConfig, parameters)
    from mmlib.training import continue_training, run_folder, train

    (continue_training if continues else train)(config, partial(print, flush=True))
    if _speaks():
        print(f"complete: {shown(run_folder(config.run))}")
    return 0


def _speaks() -> bool:
    """Whether this process says what is said once: of several that train together, the first one.

    Errors are every process's own, since torchrun ends the others when one has ended.
    """
    return os.environ.get("RANK", "0") == "0"


def _evaluate(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("images", "texts", "image_of_text")}
    extras = [options.protocol, options.data, options.out, options.ranks, options.compare]
    if options.model is not None:
        return _evaluate_model(options, any(given.values()))
    of_model = [name for name in ("weights", "template", "split") if getattr(options, name) is not None]
    if of_model:
        raise ParameterError(
            f"--{', --'.join(of_model)}: expected --model, which reads it, found none; add --model"
            " open_clip:<name>, or leave it out"
        )
    if options.params is None and any(given.values()):
        return _evaluate_files(options, given)
    if options.params is None or any((*given.values(), *extras)):
        found = "both" if options.params else "neither"
        raise ParameterError(
            "expected either a parameter file (runs), --model, or --images, --texts and --image-of-text with"
            f" their options (embeddings), found {found}; see python -m mmlib evaluate --help"
        )
    config = ask(EvaluateConfig, _parameters(options))
    from mmlib.reporting import results_table
    from mmlib.training import evaluate

    for result in evaluate(config):
        for protocol in result["protocols"]:
            print(repr(results_table([result], protocol)), end="\n\n")
    return 0


def _evaluate_files(options: argparse.Namespace, given: dict[str, str | None]) -> int:
    missing = [f"--{name.replace('_', '-')}" for name, place in given.items() if place is None]
    if missing or options.param:
        found = f"no {', '.join(missing)}" if missing else "-p, which is for parameter files"
        raise ParameterError(
            f"expected --images, --texts and --image-of-text, found {found}; correct the command"
        )
    _check_places(options)
    from mmlib.metrics.embeddings import read_array

    names = ("image_ND", "text_MD", "image_of_text_M")
    where = ", ".join(f"{name} is {place}" for name, place in zip(names, given.values()))
    try:
        arrays = [read_array(place) for place in given.values()]
    except ValueError as error:
        raise ParameterError(f"{error} ({where})") from error
    return _evaluate_arrays(options, arrays, where, options.data or "data not named", {"files": given})


def _evaluate_model(options: argparse.Namespace, has_files: bool) -> int:
    if has_files or options.params or options.data:
        raise ParameterError(
            "expected --model with a data set by -p, and neither a parameter file nor --images, --texts,"
            " --image-of-text or --data; leave them out"
        )
    given = dict(options.param)
    config = ask(DataConfig, given)
    passed_over = {"resize"} | ({"image_size"} if config.dataset != "shapes" else set())
    if unread := [name for name in given if name in passed_over]:
        raise ParameterError(
            f"-p {', '.join(unread)}: expected parameters that choose data; the model brings its own"
            " preprocessing, leave these out"
        )
    _check_places(options)
    from mmlib.data import load_dataset
    from mmlib.model.pretrained import is_file
    from mmlib.training.zero_shot import ZeroShot, check_protocol_of

    weights = "default" if options.weights is None else options.weights
    if is_file(weights) and _typed(weights).is_file():
        weights = str(_typed(weights))
    template = "{}" if options.template is None else options.template
    model, dataset = ZeroShot(options.model, weights, template), load_dataset(config)
    split = "test" if options.split is None else options.split
    check_protocol_of(dataset, split, options.protocol or "standard")
    *arrays, preprocess = model.embed(dataset, split)
    what = f"{model.model} ({model.weights}), zero-shot, template {model.template!r}"
    print(what)
    source = {**vars(model), "preprocess": preprocess, "split": split, "identity": dataset.identity}
    return _evaluate_arrays(options, arrays, what, f"{dataset.name}, {split} split", source)


def _check_places(options: argparse.Namespace) -> None:
    """Passes if what is read or written beside the embeddings can be: known before minutes of work."""
    from mmlib.metrics.protocols import PROTOCOLS

    asked, way = "--ranks" if options.ranks else "--compare", PROTOCOLS.get(options.protocol)
    if (options.ranks or options.compare) and way and way.folds > 1:
        raise ParameterError(
            f"{asked}: protocol {way.name!r} ranks in folds, which have no file of ranks; leave it out"
        )
    if options.compare and not options.compare.is_file():
        raise FileNotFoundError(
            f"expected ranks to compare with in {options.compare}, found no such file; another call writes it"
            " with --ranks"
        )
    for name, place in (("--out", options.out), ("--ranks", options.ranks)):
        if place and (place.is_symlink() or (place.exists() and not place.is_file())):
            raise ParameterError(
                f"{name} {place}: expected the name of a file, which is replaced as a whole; found a"
                " folder, a link, or a device"
            )


def _evaluate_arrays(
    options: argparse.Namespace, arrays: list, where: str, data: str, source: dict[str, Any]
) -> int:
    from mmlib.metrics.embeddings import compare_with, evaluate_embeddings, results_text

    protocol = options.protocol or "standard"
    try:
        ranks, summary = evaluate_embeddings(*arrays, protocol=protocol)
        comparison = compare_with(options.compare, ranks) if options.compare else None
    except ValueError as error:
        raise ParameterError(f"{error} ({where})") from error
    try:
        if options.ranks:
            ranks.save(options.ranks)
        if options.out:
            result = {"data": data, **source, "summary": summary, "comparison": comparison}
            write_json(options.out, result)
    finally:  # what cannot be saved can still be seen
        print(results_text(summary, data))
        if comparison:
            print(f"against {options.compare}: {comparison['verdict']}")
            print("(sizes and map agree; that images and captions are the same, files of ranks do not show)")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mmlib.reporting.results import comparison_table

    print(repr(comparison_table(*options.runs)))
    return 0


def _report(options: argparse.Namespace) -> int:
    _require_notebooks("report")
    from mmlib.pipeline import render_again
    from mmlib.reporting.publish import write_index

    problems = []
    if options.experiment is None:
        write_index()
    else:
        report = render_again(Path(options.experiment).name)
        print(shown(report))
        problems = read_json(report / "results.json")["problems"]
    print(shown(files.REPORTS / "index.html"))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return EXIT_FAILED if problems else 0


def _publish(options: argparse.Namespace) -> int:
    from mmlib.reporting.publish import publish

    print(f"published: {shown(publish(Path(options.experiment).name))}")
    print("renewed: README.md and docs/results.md between their comments; read what they say around them")
    return 0


def _index(options: argparse.Namespace) -> int:
    from mmlib.search import Retriever

    found = Retriever.load(options.run).index(options.folder)
    for name, reason in found.unreadable.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    if found.outside:
        print(f"skipped: {found.outside:,} links that lead out of the folder", file=sys.stderr)
    print(f"{found.images:,} images can be searched: {found.new:,} new, {found.removed:,} gone or replaced")
    return 0


def _search(options: argparse.Namespace) -> int:
    from mmlib.search import Retriever

    retriever = Retriever.load(options.run)
    hits = retriever.search(options.text, options.image, options.top)
    if options.json:
        print(json.dumps([{"file": str(hit.file), "similarity": hit.similarity} for hit in hits], indent=1))
    else:
        for hit in hits:
            print(f"{hit.similarity:6.3f}  {printable(str(hit.file))}")
    if options.html:
        from mmlib.reporting.explorer import write_search_page

        images = retriever.images
        write_search_page(options.html, options.run, images, hits, options.text, options.image)
        print(shown(options.html), file=sys.stderr)
    return 0


def _export(options: argparse.Namespace) -> int:
    from mmlib.export import export_onnx

    print(f"complete: {shown(export_onnx(options.run, _typed(options.out)))}")
    return 0


def _shard(options: argparse.Namespace) -> int:
    file, given = _read(options.params) if options.params else {}, dict(options.param)
    passed_over = TrainConfig.model_fields.keys() - DataConfig.model_fields.keys()
    config = ask(DataConfig, {name: v for name, v in (file | given).items() if name not in passed_over})
    passed_over |= {"resize"} | ({"image_size"} if config.dataset != "shapes" else set())
    if unread := [name for name in given if name in passed_over]:
        raise ParameterError(
            f"-p {', '.join(unread)}: expected parameters that choose data; shards hold images and captions"
            " as they are, give these to the training"
        )
    if config.dataset == "shards":
        raise ParameterError("expected a data set to write as shards, found dataset 'shards', which are some")
    if options.samples_per_shard < 1:
        raise ParameterError(f"--samples-per-shard: expected at least 1, found {options.samples_per_shard}")
    from mmlib.data import load_dataset
    from mmlib.data.shards import write_shards

    out = _typed(options.out)
    manifest = write_shards(load_dataset(config), out, samples_per_shard=options.samples_per_shard)
    for name, part in manifest["shards"].items():
        print(f"{name}  {part['samples']:,} images  {part['captions']:,} captions  {part['bytes']:,} bytes")
    print(f"complete: {shown(out)}")
    return 0


# What commands print.  A command saves first and prints then, so a terminal that is gone or full costs
# nothing but what it should have shown.
