"""What each command does; `mmlib.cli` reads the words and gives the exit code.

Heavy imports happen inside the commands, so that `--help` and a wrong word answer at once.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from mmlib import files
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

EXIT_FAILED = 1


def _typed(path: str | Path) -> Path:
    """What was typed, from the current folder."""
    try:
        return Path.cwd() / Path(path).expanduser()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder is gone: change to one that exists") from None


def folder_of(text: str) -> str:
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


def run(options: argparse.Namespace) -> int:
    """The command `run`; returns its exit code."""
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


def train(options: argparse.Namespace) -> int:
    """The command `train`; returns its exit code."""
    parameters = _parameters(options)
    continues = "parent" in parameters
    config = ask(ContinueConfig if continues else TrainConfig, parameters)
    from mmlib.training import continue_training, run_folder, train

    (continue_training if continues else train)(config, partial(print, flush=True))
    if speaks():
        print(f"complete: {shown(run_folder(config.run))}")
    return 0


def speaks() -> bool:
    """Whether this process says what is said once: of several that train together, the first one.

    Errors are every process's own, since torchrun ends the others when one has ended.
    """
    return os.environ.get("RANK", "0") == "0"


def evaluate(options: argparse.Namespace) -> int:
    """The command `evaluate`; returns its exit code."""
    given = {name: getattr(options, name) for name in ("images", "texts", "image_of_text")}
    extras = [options.protocol, options.data, options.out, options.ranks, options.compare, options.html]
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
    from mmlib.training.embed import ZeroShot, check_protocol_of

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
    _check_page(options.html)
    others: dict[str | Path, str] = {}
    for other in options.compare or ():
        place = Path(other).resolve() if Path(other).is_file() else other
        if place in others:
            raise ParameterError(
                f"--compare: expected each file and run once, found {others[place]} and {other}, which are"
                " one; leave one out"
            )
        others[place] = other
        if place is other:
            _check_evaluated(other)
    for name, place in (("--out", options.out), ("--ranks", options.ranks)):
        if place and (place.is_symlink() or (place.exists() and not place.is_file())):
            raise ParameterError(
                f"{name} {place}: expected the name of a file, which is replaced as a whole; found a"
                " folder, a link, or a device"
            )


def _check_evaluated(other: str) -> None:
    """Passes if what `--compare` names is an evaluated run."""
    from mmlib.training.runs import evaluated_file

    try:
        evaluated_file(other, "ranks.npz")
    except (FileNotFoundError, ValueError) as error:
        why = str(error) if files.is_name(other) else "its name cannot be that of a run"
        raise FileNotFoundError(
            f"expected ranks to compare with in {other}, found no such file and no such evaluated run"
            f" ({why}); another call writes ranks with --ranks"
        ) from None


def _check_page(page: Path | None) -> None:
    """Passes if a page can be written there: known before minutes of work.

    Raises:
        FileNotFoundError: its folder does not exist.
        ParameterError: it is a folder, a link or a device.
    """
    if page is None:
        return
    if not page.parent.is_dir():
        raise FileNotFoundError(
            f"--html {page}: expected a page in a folder that exists, found no folder {page.parent}; make it"
            " or name another"
        )
    if page.is_symlink() or (page.exists() and not page.is_file()):
        raise ParameterError(
            f"--html {page}: expected the name of a file, which is replaced as a whole; found a folder, a"
            " link, or a device"
        )


def _evaluate_arrays(
    options: argparse.Namespace, arrays: list, where: str, data: str, source: dict[str, Any]
) -> int:
    from mmlib.metrics.embeddings import evaluate_embeddings, results_text
    from mmlib.reporting.comparison import compared_with, write_evaluation

    protocol = options.protocol or "standard"
    found, known = {}, True
    try:
        ranks, summary = evaluate_embeddings(*arrays, protocol=protocol)
        if options.compare:
            facts = _facts_of(summary, source) if "identity" in source else None
            found, known = compared_with(options.compare, ranks, facts)
    except ValueError as error:
        raise ParameterError(f"{error} ({where})") from error
    unsure = "sizes and map agree; that images and captions are the same, files of ranks do not show"
    try:
        if options.ranks:
            ranks.save(options.ranks)
        if options.out:
            only = next(iter(found.values())) if len(found) == 1 else {}
            only = {k: v for k, v in only.items() if k not in ("better", "p_holm")} or None
            result = {"data": data, **source, "summary": summary, "comparison": only, "comparisons": found}
            write_json(options.out, result)
        if options.html:
            name = where if "identity" in source else "Embeddings of files"
            write_evaluation(options.html, name, data, summary, found, "" if known else f"{unsure}.")
    finally:  # what cannot be saved can still be seen
        print(results_text(summary, data))
        for other, comparison in found.items():
            print(f"against {other}: {comparison['verdict']}")
        if len(found) > 1:
            print(f"(p of the verdicts: corrected over {len(found)} comparisons by Holm)")
        if not known:
            print(f"({unsure})")
    return 0


def _facts_of(summary: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """What a pretrained model was measured on, as `measured_on` says it of a run."""
    from mmlib.metrics.compare import measured_on

    result = {
        "data": source["identity"],
        "split": source["split"],
        "protocols": {summary["protocol"]: summary},
    }
    return measured_on(result, summary["protocol"])


def compare(options: argparse.Namespace) -> int:
    """The command `compare`; returns its exit code."""
    _check_page(options.html)
    from mmlib.reporting.comparison import comparison_table, write_comparison

    if options.html:
        print(repr(write_comparison(options.html, *options.runs)))
        print(shown(options.html), file=sys.stderr)
    else:
        print(repr(comparison_table(*options.runs)))
    return 0


def report(options: argparse.Namespace) -> int:
    """The command `report`; returns its exit code."""
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


def publish(options: argparse.Namespace) -> int:
    """The command `publish`; returns its exit code."""
    from mmlib.reporting.publish import publish

    print(f"published: {shown(publish(Path(options.experiment).name))}")
    print("renewed: README.md and docs/results.md between their comments; read what they say around them")
    return 0


def index(options: argparse.Namespace) -> int:
    """The command `index`; returns its exit code."""
    from mmlib.search import Retriever

    found = Retriever.load(options.run).index(options.folder)
    for name, reason in found.unreadable.items():
        print(f"skipped: {_line(name)}: {_line(reason)}", file=sys.stderr)
    if found.outside:
        print(f"skipped: {found.outside:,} links that lead out of the folder", file=sys.stderr)
    print(f"{found.images:,} images can be searched: {found.new:,} new, {found.removed:,} gone or replaced")
    return 0


def _line(text: str | Path) -> str:
    """A file's name in a list of lines: one that holds a line break begins no new one."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def search(options: argparse.Namespace) -> int:
    """The command `search`; returns its exit code."""
    _check_page(options.html)
    from mmlib.search import Retriever

    retriever = Retriever.load(options.run)
    hits = retriever.search(options.text, options.image, options.top)
    if options.json:
        print(json.dumps([{"file": str(hit.file), "similarity": hit.similarity} for hit in hits], indent=1))
    else:
        for hit in hits:
            print(f"{hit.similarity:6.3f}  {_line(hit.file)}")
    if options.html:
        from mmlib.reporting.explorer import write_search_page

        images = retriever.images
        write_search_page(options.html, options.run, images, hits, options.text, options.image)
        print(shown(options.html), file=sys.stderr)
    return 0


def export(options: argparse.Namespace) -> int:
    """The command `export`; returns its exit code."""
    from mmlib.export import export_onnx

    print(f"complete: {shown(export_onnx(options.run, _typed(options.out)))}")
    return 0


def shard(options: argparse.Namespace) -> int:
    """The command `shard`; returns its exit code."""
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
