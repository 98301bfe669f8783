"""YAML files of parameters, right and wrong."""

import random
import tracemalloc

import pytest

from mmlib import files
from mmlib.config import (
    AblationConfig,
    ParameterError,
    TrainConfig,
    build,
    read_yaml,
    training_of,
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "PARAMS", tmp_path / "params")
    return tmp_path


def write_yaml(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- YAML


def test_a_file_is_read_from_the_root_and_is_text_whose_meaning_its_type_decides(root):
    write_yaml(
        root / "params/demo/01_train.yaml", "# header\nrun: démo\nlr: 1e-3\nruns: [a, b]\noverwrite: false\n"
    )
    assert read_yaml("params/demo/01_train.yaml") == {
        "run": "démo", "lr": "1e-3", "runs": ["a", "b"], "overwrite": "false",
    }  # fmt: skip


def test_a_file_of_comments_has_no_parameters(root):
    assert read_yaml(write_yaml(root / "a.yaml", "# nothing\n")) == {}


def test_names_are_text(root):
    assert read_yaml(write_yaml(root / "a.yaml", "1: x\n")) == {"1": "x"}


def test_a_tag_changes_nothing_and_runs_nothing(root):
    text = "run: !!binary aGk=\narms: !!python/object/apply:os.getcwd []\n"
    assert read_yaml(write_yaml(root / "a.yaml", text)) == {"run": "aGk=", "arms": []}


def test_a_missing_file_names_those_beside_it(root):
    write_yaml(root / "params/demo/02_continue.yaml", "")
    write_yaml(root / "params/demo/01_train.yml", "")
    with pytest.raises(FileNotFoundError) as caught:
        read_yaml("params/demo/01_trian.yaml")
    assert str(caught.value) == (
        "no parameter file params/demo/01_trian.yaml; beside it there are 01_train.yml, 02_continue.yaml"
    )


def test_a_hidden_file_is_no_parameter_file(root):
    write_yaml(root / ".pre-commit-config.yaml", "")
    with pytest.raises(FileNotFoundError, match=r"no parameter file a\.yaml; its folder holds none"):
        read_yaml("a.yaml")


def test_a_missing_file_in_an_empty_or_missing_folder_says_so():
    with pytest.raises(FileNotFoundError, match=r"no parameter file nowhere/a\.yaml; its folder holds none"):
        read_yaml("nowhere/a.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# one\nrun: [a\n", "a.yaml, line 3: expected valid YAML, found: did not find expected"),
        ("- run\n", "a.yaml: expected `name: value` lines, found ['run']"),
        ("just words\n", "a.yaml: expected `name: value` lines, found 'just words'"),
        ("lr: 1\n\nlr: 2\n", "a.yaml, line 3: expected valid YAML, found: 'lr' twice"),
        ("arms:\n  a: {lr: 1}\n  b: {lr: 1,\n   lr: 2}\n", "a.yaml, line 4: expected valid YAML, found: 'lr"),
        ("a: &x 1\nb: *x\n", "a.yaml, line 2: expected valid YAML, found: the alias *x; write"),
        ("a: 1\n---\nb: 2\n", "a.yaml, line 2: expected valid YAML, found: but found another document"),
        ("{[a]: b}\n", "a.yaml, line 1: expected valid YAML, found: found unhashable key"),
        ("a: " + "[" * 1000, "a.yaml, line 1: expected valid YAML, found: more than 16 lists and mappings"),
        ("a: 1\nb: x\0\n", "a.yaml, line 2: expected UTF-8 text, found byte 0x00"),
        ("a: 1\nb: \x1b[31m\n", "a.yaml: expected valid YAML, found: unacceptable character #x001b"),
        (b"a: 1\nb: caf\xe9\n", "a.yaml, line 2: expected UTF-8 text, found byte 0xe9"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_of_parameters_is_refused_by_file_and_line(root, text, expected):
    (root / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError) as caught:
        read_yaml("a.yaml")
    assert str(caught.value).startswith(expected)


def test_a_file_of_a_gigabyte_is_not_read(root):
    with open(root / "a.yaml", "wb") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(ParameterError, match="expected at most 1,048,576 bytes, found 1,073,741,824"):
        read_yaml("a.yaml")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_aliases_inside_each_other_cost_nothing(root):
    lines = ["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    with pytest.raises(ParameterError, match=r"a\.yaml, line 2: .* found: the alias \*a0"):
        read_yaml(write_yaml(root / "a.yaml", "\n".join(lines)))


PIECES = (
    "run", "lr", "arms", ": ", ":", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "'", '"', "&a ", "*a",
    "!!int ", "!", "|\n", ">", "# c\n", "---\n", "...\n", "%YAML 1.1\n", "? ", "<<", "\t", "1e-3", "012",
    "9" * 5000, "~", "null", "\0", "\x1b", "\ufeff", "\u2028", "\\x41", "\\ud800", "é", "\r", "[" * 40,
    "{a: " * 40,
)  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "---\n", "# all defaults\n---\n...\n", "\ufeff---\n"]
)
def test_a_file_without_parameters_is_an_empty_one(root, text):
    (root / "a.yaml").write_text(text, encoding="utf-8")
    assert read_yaml("a.yaml") == {}


def read_random_files(root, seed, count):
    """Files of random pieces; returns how many could be read, and what was said of the others."""
    draw, whole, said = random.Random(seed), 0, []
    for _ in range(count):
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 30))).encode("utf-8")
        if draw.random() < 0.1:
            text += bytes(draw.randrange(256) for _ in range(4))
        (root / "a.yaml").write_bytes(text)
        for config_class in (TrainConfig, AblationConfig):
            try:
                values = read_yaml("a.yaml")
                whole += 1
                build(config_class, values)
            except ParameterError as error:  # anything else fails the test
                said.append(str(error))
    return whole, said


def check_random_files(root, seed, count):
    whole, said = read_random_files(root, seed, count)
    assert whole > count // 40
    assert max(map(len, said)) < 30_000
    assert [text for text in said if not text.replace("\n", "").isprintable()] == []


def test_random_files_are_read_or_refused(root):
    check_random_files(root, seed=0, count=400)


@pytest.mark.slow
def test_many_random_files_are_read_or_refused(root):
    check_random_files(root, seed=1, count=200_000)


# --- how a run is trained


@pytest.fixture
def recipes(root):
    write_yaml(root / "params/demo/01_train.yaml", "run: demo\nepochs: 9\n")
    write_yaml(root / "params/other/01_train.yaml", "epochs: 5\n")


@pytest.mark.usefixtures("recipes")
def test_a_run_of_a_parameter_file_is_found():
    values, command = training_of("demo")
    assert values == {"run": "demo", "epochs": "9"}
    assert command == "python -m mmlib train params/demo/01_train.yaml"


@pytest.mark.usefixtures("recipes")
def test_a_run_that_nothing_trains_is_not_found():
    assert training_of("elsewhere") is None
