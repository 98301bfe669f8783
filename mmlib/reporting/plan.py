"""What an experiment will execute: its notebooks in order with their parameters, checked beforehand."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmlib import files
from mmlib.config import (
    CONFIG_OF_NOTEBOOK,
    AblationConfig,
    ContinueConfig,
    ParameterError,
    TrainConfig,
    build,
    continued,
    read_values,
    read_yaml,
    refuse_unread,
    required,
)
from mmlib.files import nearest
from mmlib.reporting.notebook import cell_parameters, read_notebook
from mmlib.reporting.state import report_folder
from mmlib.training.ablation_plan import plan_grid

ON_DISK = {"flickr8k": "Flickr8k", "flickr30k": "Flickr30k", "coco": "MS-COCO"}


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters that it gets.

    Attributes:
        name: of the notebook and of its YAML, without ending.
        notebook: its source.
        parameters: what the YAML and the overrides set, as the notebook's config reads it.
        known: the parameters in the notebook's cell.
        accepted: names of all parameters that the notebook takes.
    """

    name: str
    notebook: Path
    parameters: dict[str, Any]
    known: dict[str, Any]
    accepted: tuple[str, ...]


def plan(params_dir: str | Path, overrides: Mapping[str, Any]) -> tuple[str, list[Step]]:
    """The experiment's name and its steps, one for each YAML file, in the order of their names.

    Args:
        params_dir: folder of `params/`, or its name.
        overrides: parameters by name, given to every notebook that has them.

    Raises:
        FileNotFoundError: no such folder, no YAML in it, or no notebook of a YAML's name.
        ParameterError: a YAML that cannot be read or is no mapping, a notebook without a proper
            parameters cell, or a parameter that no notebook has; names the nearest.
    """
    folder = _folder(params_dir)
    found = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"{files.shown(folder)}: expected one YAML file per notebook, such as 01_train.yaml, found none"
        )
    steps = [_step(file, overrides) for file in found]
    known = {name for step in steps for name in step.accepted}
    for name in overrides:
        if name not in known:
            raise ParameterError(
                f"no notebook of {folder.name!r} has a parameter {name!r}{nearest(name, known)};"
                " nothing was executed"
            )
    return _checked(folder.name), steps


def _checked(experiment: str) -> str:
    """The name, if a report's folder can have it."""
    try:
        return report_folder(experiment).name
    except ValueError as error:
        raise ParameterError(f"{error}; rename its folder") from None


def check_parameters(steps: Iterable[Step]) -> None:
    """Passes if the steps' parameters make their configs and are read; asked before anything is executed.

    Raises:
        ParameterError: names the notebook and the parameters, with what was expected or would read them.
    """
    planned: dict[str, TrainConfig] = {}
    for step in steps:
        config_class, values = CONFIG_OF_NOTEBOOK.get(step.name), step.known | step.parameters
        if config_class is None or not required(config_class) <= values.keys():
            continue  # a notebook that reads its parameters in a way of its own
        try:
            config = build(config_class, values)
            if isinstance(config, TrainConfig):
                refuse_unread(config, TrainConfig.model_fields)
                planned[config.run] = config
            elif isinstance(config, ContinueConfig) and config.parent in planned:
                planned[config.run] = continued(config, planned[config.parent])
        except ParameterError as error:
            raise ParameterError(f"{step.name}: {error}\nNothing was executed.") from None


def check_data_roots(steps: Iterable[Step]) -> None:
    """Passes if the data that the steps name are there; asked before anything is executed.

    A report that stands already is then not replaced by one of a run that could never start.

    Raises:
        FileNotFoundError: no folder where a step expects its data set.
        ParameterError: an ablation that cannot be run as it is asked for, see `plan_grid`.
    """
    for step in steps:
        values = step.known | step.parameters
        if step.name == "05_ablation":
            values = plan_grid(build(AblationConfig, values))[0].config.model_dump()
        dataset = values.get("dataset")
        folder = values.get("data_root") or f"data/{dataset}"
        if dataset in ON_DISK and not files.from_root(folder).is_dir():
            raise FileNotFoundError(
                f"{step.name}: expected the {ON_DISK[dataset]} folder {folder}, found none; unpack or"
                f" link {ON_DISK[dataset]} there, or give its folder: -p data_root /path/to/{dataset}."
                " Nothing was executed"
            )


def _folder(params_dir: str | Path) -> Path:
    given = files.from_root(params_dir)
    if given.is_file():
        raise ParameterError(
            f"expected the folder of an experiment, found the file {files.shown(given)}; give its folder:"
            f" {files.shown(given.parent)}, or train from it alone: python -m mmlib train {params_dir}"
        )
    for folder in (given, files.PARAMS / str(params_dir)):
        if folder.is_dir():
            return folder.resolve()
    there = sorted(p.name for p in files.PARAMS.iterdir() if p.is_dir()) if files.PARAMS.is_dir() else []
    known = f"; there are: {', '.join(there)}" if there else ""
    raise FileNotFoundError(
        f"no experiment {given.name!r}: expected the folder {files.shown(files.PARAMS / given.name)}"
        f"{nearest(given.name, there)}{known}"
    )


def _step(file: Path, overrides: Mapping[str, Any]) -> Step:
    config = CONFIG_OF_NOTEBOOK.get(file.stem)
    text = read_yaml(file)
    source = files.NOTEBOOKS / f"{file.stem}.ipynb"
    if not source.is_file():
        there = [p.stem for p in files.NOTEBOOKS.glob("*.ipynb")]
        raise FileNotFoundError(
            f"{files.shown(file)} needs the notebook {files.shown(source)}, which does not exist"
            f"{nearest(file.stem, there)}"
        )
    known = cell_parameters(source, read_notebook(source))
    names = accepted_parameters(source.stem, known)
    for name in text:
        if name not in names:
            raise ParameterError(
                f"{files.shown(file)} sets {name!r}, which {source.name} does not have{nearest(name, names)}"
            )
    text |= {name: value for name, value in overrides.items() if name in names}
    return Step(file.stem, source, read_values(config, text) if config else text, known, names)


def accepted_parameters(notebook: str, defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """Names that a notebook takes: all fields of its config; those of its cell if it has no config."""
    config = CONFIG_OF_NOTEBOOK.get(notebook)
    return tuple(config.model_fields if config else defaults)
