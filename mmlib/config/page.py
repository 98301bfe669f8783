"""Parameters for people: the page of all, `docs/parameters.md` (`make docs` writes it); values in words."""

import json
from typing import Any

from pydantic import BaseModel

from mmlib import files
from mmlib.config import (
    AblationConfig,
    AnalysisConfig,
    ContinueConfig,
    EvaluateConfig,
    OptimConfig,
    TrainConfig,
)
from mmlib.config.reading import OTHER_THAN

PAGE = files.ROOT / "docs" / "parameters.md"
TITLES = ("Data", "Tokenizer", "Model", "Loss", "Augmentation", "Fine-tuning", "Optimisation", "Place")
GROUPS = dict(zip(TITLES, TrainConfig.__bases__, strict=True))  # of a training run
OTHERS = {"Evaluate": EvaluateConfig, "Analysis": AnalysisConfig, "Ablation": AblationConfig}
HEAD = f"""# Every parameter

<!-- Written by `make docs` from mmlib/config/parameters.py: change it there. -->

Set one with `-p name value`, as a line `name: value` of a YAML file, or in the second cell of a notebook. \
*Read where* says what another parameter has to be; set elsewhere, a parameter is refused. A name \
(`run`, `runs`, `parent`, `data_name`) is {files.NAME_RULE}.

The first eight groups are those of a training run (notebook 01)."""
CONTINUE = """A continued run (notebook 02) takes what it is not given from its parent: each parameter of \
the groups Data to Optimisation is `null` there, which means as the parent, but for those of its own: {own}. \
Data, tokenizer and model may not differ from the parent's. Those of Place are its own too. It adds:"""


def parameters_page() -> str:
    """The text of `docs/parameters.md`: a table of each group, from the fields of the configs."""
    parts = [HEAD]
    for title, config in GROUPS.items():
        parts += [f"## {title}", config.__doc__, _table(config, config.model_fields)]
    fields = ContinueConfig.model_fields
    own = [name for name in OptimConfig.model_fields if fields[name].default is not None]
    added = [name for name in fields if name not in TrainConfig.model_fields]
    parts += ["## Continue", CONTINUE.format(own=", ".join(f"`{name}`" for name in own))]
    parts += [_table(ContinueConfig, added)]
    for title, config in OTHERS.items():
        parts += [f"## {title}", config.__doc__, _table(config, config.model_fields)]
    return "\n\n".join(parts) + "\n"


def _table(config: type[BaseModel], names) -> str:
    shapes = config.model_json_schema()["properties"]
    reads = {name: _read_where(config, name) for name in names}
    columns = ["parameter", "values", "default", "meaning", *(["read where"] if any(reads.values()) else [])]
    rows = [columns, ["---"] * len(columns)]
    for name in names:
        field = config.model_fields[name]
        meaning = field.description.replace("|", "\\|").replace("<", "&lt;")
        default = "needed" if field.is_required() else f"`{_written(field.default)}`"
        cells = [f"`{name}`", _values(shapes[name]), default, meaning, reads[name]]
        rows += [cells[: len(columns)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _written(value) -> str:
    """A value as a person writes it: text bare, anything else as YAML and JSON have it."""
    return value if isinstance(value, str) else json.dumps(value)


def _values(shape: dict) -> str:
    """The values of a field, from its JSON schema."""
    if "anyOf" in shape:
        return " or ".join(_values(each) for each in shape["anyOf"])
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    if "pattern" in shape:  # the only one is that of what is tuned
        return "`all`, `none`, `last-<n>`"
    if shape["type"] == "array":
        return f"list ({_values(shape['items'])})"
    words = {"boolean": "`true`, `false`", "null": "`null`", "string": "text", "integer": "whole number"}
    words |= {"number": "number", "object": "mapping"}
    signs = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    limits = [f"{sign} {shape[key]:,}" for key, sign in signs.items() if key in shape]
    return " ".join([words[shape["type"]], *limits])


def _read_where(config: type[BaseModel], name: str) -> str:
    rows = [readers for readers, names in config.READ_BY if name in names]
    return "; and ".join(" or ".join(_reader(*each) for each in readers.items()) for readers in rows)


def _reader(name: str, values: tuple) -> str:
    words = ", ".join(f"`{_written(value)}`" for value in values if value != OTHER_THAN)
    return f"`{name}` {'is not' if OTHER_THAN in values else 'is'} {words}"


def given(config: BaseModel) -> list[str]:
    """The names of the parameters that a config has away from their default."""
    fields = type(config).model_fields.items()
    return [
        name
        for name, field in fields
        if field.is_required() or getattr(config, name) != field.get_default(call_default_factory=True)
    ]


def value_text(value: Any) -> str:
    """A parameter's value in words, without the brackets and quotes of a language."""
    if value is None or value == [] or value == {}:
        return "–"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {value_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    files.write_text_atomic(PAGE, parameters_page())
