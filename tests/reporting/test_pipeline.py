"""Experiments end to end on tiny notebooks: order, overrides, failures, skipping, interruption."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest

import mmlib
from mmlib import files, pipeline
from mmlib.config import ParameterError
from mmlib.files import InUse
from mmlib.pipeline import plan, run_experiment
from mmlib.reporting.notebooks import notebook_state, read_notebook
from mmlib.reporting.publish import write_index

LR = 'lr: float = 0.1  # learning rate\nrun: str = ""  # run'


def executed(name: str) -> nbformat.NotebookNode:
    return read_notebook(files.REPORTS / "demo" / "executed" / f"{name}.ipynb")


def printed(name: str) -> str:
    return "".join(o.text for c in executed(name).cells for o in c.get("outputs", []) if o.get("text"))


@pytest.fixture
def fake_papermill(monkeypatch):
    """Executes notebooks without a kernel: every code cell gets its number and no output."""
    calls = []

    def execute_notebook(source, copy, parameters, **_):
        calls.append((source.rsplit("/", 1)[-1], parameters))
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata["papermill"] = {"parameters": parameters}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = 1
        nbformat.write(notebook, copy)

    monkeypatch.setattr(pipeline.papermill, "execute_notebook", execute_notebook)
    return calls


def test_runs_in_order_from_the_root_with_parameters_and_overrides(repository, capsys):
    repository.notebook("01_train", "import os\nprint('train', lr, os.getcwd())", parameters=LR)
    repository.params("demo", "01_train", "lr: 0.5\n")
    assert run_experiment("demo", {"lr": 0.25}) == 0
    out = capsys.readouterr().out
    assert f"train 0.25 {files.ROOT}" in out  # streamed while it runs
    assert "01_train 2/2 (Work)" in out
    assert "01_train: complete in" in out
    assert "report: reports/demo/01_train.html" in out
    assert "index:  reports/index.html" in out
    assert "train 0.25" in (files.REPORTS / "demo" / "01_train.html").read_text()


def test_a_failing_cell_stops_the_experiment_and_is_reported(repository, capsys):
    repository.notebook("01_train", "raise ValueError('lr: expected above 0, found -1')", parameters=LR)
    repository.notebook("02_continue", "print('never')", parameters=LR)
    for name in ("01_train", "02_continue"):
        repository.params("demo", name)
    assert run_experiment("demo") == 1
    out = capsys.readouterr().out
    assert "01_train: failed: cell 2 of 2 (Work): ValueError: lr: expected above 0, found -1" in out
    assert "Traceback" not in out
    assert not (files.REPORTS / "demo" / "executed" / "02_continue.ipynb").exists()
    page = (files.REPORTS / "demo" / "01_train.html").read_text()
    assert "This page is not the report of a finished run" in page
    assert "expected above 0, found -1" in page
    report = json.loads((files.REPORTS / "demo" / "results.json").read_text())
    assert report["state"] == "failed"
    assert report["notebooks"]["02_continue"]["state"] == "incomplete"
    assert "failed" in (files.REPORTS / "index.html").read_text()


def test_a_killed_kernel_is_no_success(repository, capsys):
    repository.notebook("01_train", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", parameters=LR)
    repository.params("demo", "01_train")
    assert run_experiment("demo") == 1
    assert "01_train: killed: its process ended without a word" in capsys.readouterr().out
    assert json.loads((files.REPORTS / "demo" / "results.json").read_text())["state"] == "killed"


def test_ending_the_process_politely_is_no_success(repository, capsys):
    repository.notebook("01_train", "import sys\nsys.exit(0)", "print('after')", parameters=LR)
    repository.params("demo", "01_train")
    assert run_experiment("demo") == 1
    assert "01_train: failed: cell 2 of 3 (Work): SystemExit: 0" in capsys.readouterr().out


def test_a_run_that_is_not_complete_fails_the_experiment(repository, fake_papermill, capsys):
    repository.run("demo-train", state="failed", reason="FloatingPointError: loss is nan at epoch 3")
    repository.notebook("01_train", "work()")
    repository.params("demo", "01_train")
    assert run_experiment("demo") == 1
    assert "run demo-train: FloatingPointError: loss is nan at epoch 3" in capsys.readouterr().out


def test_complete_notebooks_are_skipped_until_something_changes(repository, fake_papermill, capsys):
    repository.run("demo-train")
    for name in ("01_train", "02_continue"):
        repository.notebook(name, "work()")
        repository.params("demo", name)
    names = [name for name, _ in fake_papermill]
    assert run_experiment("demo") == 0
    assert run_experiment("demo") == 0
    assert "01_train: complete and unchanged, not executed again" in capsys.readouterr().out
    names = [name for name, _ in fake_papermill]
    assert names == ["01_train.ipynb", "02_continue.ipynb"]
    repository.params("demo", "02_continue", "run: demo-train\n")
    run_experiment("demo")
    repository.notebook("01_train", "other_work()")
    run_experiment("demo")
    (files.REPORTS / "demo" / "executed" / "01_train.ipynb").write_text("{")
    run_experiment("demo")
    names = [name.removesuffix(".ipynb") for name, _ in fake_papermill[2:]]
    assert names == ["02_continue", "01_train", "02_continue", "01_train", "02_continue"]


def test_a_notebook_whose_run_is_gone_is_executed_again(repository, fake_papermill):
    folder = repository.run("demo-train")
    repository.notebook("01_train", "work()")
    repository.params("demo", "01_train")
    assert run_experiment("demo") == 0
    (folder / "status.json").unlink()
    assert run_experiment("demo") == 1
    assert len(fake_papermill) == 2


def test_overwrite_reaches_notebooks_that_train(repository, fake_papermill):
    repository.run("demo-train")
    train = 'run: str = "demo-train"  # run\noverwrite: bool = False  # delete first'
    repository.notebook("01_train", "work()", parameters=train)
    repository.notebook("04_analysis", "work()")
    for name in ("01_train", "04_analysis"):
        repository.params("demo", name)
    assert run_experiment("demo", overwrite=True) == 0
    assert fake_papermill == [("01_train.ipynb", {"overwrite": True}), ("04_analysis.ipynb", {})]


def test_what_was_trained_on_from_replaced_weights_is_trained_anew(repository, fake_papermill, monkeypatch):
    for run in ("demo-train", "demo-continue"):
        repository.run(run)
    own = 'run: str = "demo-train"  # run\noverwrite: bool = False  # delete first'
    repository.notebook("01_train", "work()", parameters=own)
    repository.notebook("02_continue", "work()", parameters=own.replace("demo-train", "demo-continue"))
    for name in ("01_train", "02_continue"):
        repository.params("demo", name)
    assert run_experiment("demo") == 0
    repository.notebook("01_train", "edited()", parameters=own)  # shows its complete run, trains nothing
    assert run_experiment("demo") == 0
    assert fake_papermill[-1] == ("02_continue.ipynb", {})
    execute = pipeline.papermill.execute_notebook

    def training(source, copy, parameters, **more):
        execute(source, copy, parameters, **more)
        if "01_train" in source:
            status = {"state": "complete", "reason": None, "updated": "2026-01-02"}
            (files.RUNS / "demo-train" / "status.json").write_text(json.dumps(status))

    monkeypatch.setattr(pipeline.papermill, "execute_notebook", training)
    (files.RUNS / "demo-train" / "status.json").unlink()
    assert run_experiment("demo") == 0
    assert fake_papermill[-2:] == [("01_train.ipynb", {}), ("02_continue.ipynb", {"overwrite": True})]


def test_ctrl_c_leaves_a_marked_copy_and_exits_130(repository, fake_papermill, monkeypatch, capsys):
    execute = pipeline.papermill.execute_notebook

    def interrupted(*args, **more):
        execute(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.papermill, "execute_notebook", interrupted)
    repository.notebook("01_train", "work()", parameters=LR)
    repository.params("demo", "01_train")
    assert run_experiment("demo") == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().out
    assert notebook_state(executed("01_train")) == ("interrupted", "stopped by the user")
    assert json.loads((files.REPORTS / "demo" / "results.json").read_text())["state"] == "interrupted"
    monkeypatch.setattr(pipeline.papermill, "execute_notebook", execute)
    assert run_experiment("demo") == 0


def test_unknown_experiments_are_named_with_the_nearest(repository):
    repository.params("demo", "01_train")
    with pytest.raises(
        FileNotFoundError, match=r"no experiment 'dmo'.*params/dmo.*did you mean 'demo'\?.*are: demo"
    ):
        plan("dmo", {})
    with pytest.raises(FileNotFoundError, match="no experiment 'x'"):
        plan("params/x", {})


def test_a_folder_without_yaml_is_an_error(repository):
    (files.PARAMS / "empty").mkdir(parents=True)
    (files.PARAMS / "empty" / ".pre-commit-config.yaml").touch()
    with pytest.raises(
        FileNotFoundError, match=r"params/empty: expected one YAML file per notebook.*found none"
    ):
        plan("empty", {})


def test_a_yaml_without_its_notebook_is_an_error(repository):
    repository.notebook("01_train")
    repository.params("demo", "01_trian")
    with pytest.raises(
        FileNotFoundError, match=r"01_trian.ipynb, which does not exist; did you mean '01_train'"
    ):
        plan("demo", {})


def test_a_parameter_that_the_notebook_lacks_is_an_error(repository):
    repository.notebook("01_train", parameters="epochs: int = 3  # passes")
    repository.params("demo", "01_train", "epoch: 3\n")
    with pytest.raises(ParameterError, match=r"sets 'epoch', which 01_train.ipynb.*did you mean 'epochs'\?"):
        plan("demo", {})


def test_an_override_that_no_notebook_has_is_an_error(repository):
    repository.notebook("01_train", parameters="epochs: int = 3  # passes")
    folder = repository.params("demo", "01_train")
    with pytest.raises(
        ParameterError, match=r"no notebook of 'demo' has a parameter 'epoch'; did you mean 'epochs'"
    ):
        run_experiment(folder, {"epoch": 1})
    assert not files.REPORTS.exists()


def test_invalid_yaml_is_named(repository):
    repository.notebook("01_train")
    for text in ("lr: [1\n", "- lr\n"):
        repository.params("demo", "01_train", text)
        with pytest.raises(ParameterError, match=r"params/demo/01_train.yaml"):
            plan("demo", {})


def test_missing_data_stop_before_a_report_is_replaced(repository, fake_papermill):
    data = 'run: str = "a"\nepochs: int = 1\nlr: float = 0.1\n'
    data += 'dataset: str = "flickr8k"  # set\ndata_root: str = "data/none"  # folder'
    repository.notebook("01_train", "pass", parameters=data)
    repository.params("demo", "01_train")
    page = files.REPORTS / "demo" / "01_train.html"
    page.parent.mkdir(parents=True)
    page.write_text("a report that stands")
    with pytest.raises(
        FileNotFoundError, match=r"expected the folder data/none of data set 'flickr8k', found none"
    ) as caught:
        run_experiment("demo")
    assert "-p data_root /path/to/flickr8k" in str(caught.value)
    assert page.read_text() == "a report that stands"
    assert fake_papermill == []
    repository.run("a")
    assert run_experiment("demo", {"data_root": str(page.parent)}) == 0


def test_a_parameter_that_nothing_reads_stops_an_experiment_before_it_begins(repository, fake_papermill):
    train = "\n".join(
        ['run: str = "demo-train"  # run', "epochs: int = 2  # epochs", "lr: float = 0.1  # rate",
         'dataset: str = "shapes"  # set', "data_root: str | None = None  # folder"]
    )  # fmt: skip
    more = train.replace("demo-train", "demo-on") + '\nparent: str = "demo-train"  # run'
    repository.notebook("01_train", "work()", parameters=train)
    repository.notebook("02_continue", "work()", parameters=more)
    repository.params("demo", "01_train", "optimizer: sgd\nmomentum: 0.8\n")
    repository.params("demo", "02_continue", "optimizer: adamw\noptimizer_state: reset\n")
    with pytest.raises(ParameterError) as caught:
        run_experiment("demo", {"data_root": "x"})
    assert str(caught.value).splitlines() == [
        "01_train: 1 parameter(s) that nothing in this run reads:",
        "  data_root is read by dataset 'folder', 'flickr8k', 'flickr30k', 'coco'; this run has dataset"
        " 'shapes'",
        "Leave them out, or choose what reads them.",
        "Nothing was executed.",
    ]
    repository.params("demo", "02_continue", "optimizer: adamw\nmomentum: 0.7\n")
    with pytest.raises(
        ParameterError, match=r"02_continue: .*\n  momentum is read by optimizer 'sgd', 'rmsprop'"
    ):
        run_experiment("demo")
    assert fake_papermill == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", "abc", r"01_train: 1 wrong .*\n  epochs: expected a whole number, found 'abc'"),
        ("warmup_epochs", "7", r"01_train: 1 wrong .*\n  warmup_epochs must be smaller than epochs"),
        ("run", "../x", r"01_train: 1 wrong .*\n  run: expected a name of letters.*found '../x'"),
        ("checkpoint", "lasst", r"03_evaluate: 1 wrong .*\n  checkpoint: .*did you mean 'last'"),
    ],
)
def test_a_wrong_value_stops_an_experiment_before_it_begins(repository, fake_papermill, name, value, said):
    train = 'run: str = "demo-train"  # run\nepochs: int = 2  # epochs\nlr: float = 0.1  # rate'
    repository.notebook("01_train", "work()", parameters=train)
    repository.notebook("03_evaluate", "work()", parameters='runs: list[str] = ["a"]  # runs')
    repository.params("demo", "01_train")
    repository.params("demo", "03_evaluate")
    with pytest.raises(ParameterError, match=said + r".*\nNothing was executed"):
        run_experiment("demo", {name: value})
    assert fake_papermill == []
    assert not files.REPORTS.exists()


def test_notebooks_get_values_and_not_the_text_of_a_file(repository, fake_papermill):
    repository.run("demo-train")
    repository.notebook("03_evaluate", "work()", parameters='runs: list[str] = ["a"]  # runs')
    repository.params("demo", "03_evaluate", "runs: [demo-train]\nwise_ft: 1e-1\nsplit: val\n")
    assert run_experiment("demo", {"gallery_queries": "012"}) == 0
    assert fake_papermill[0][1] == {
        "runs": ["demo-train"], "wise_ft": 0.1, "split": "val", "gallery_queries": 12,
    }  # fmt: skip


def test_settings_of_a_person_neither_change_nor_end_a_run(repository, tmp_path, monkeypatch):
    """Another `python3` kernel on Jupyter's path, startup files that end a kernel, a wild matplotlibrc."""
    home = tmp_path / "home"
    for file, text in {
        "jupyter/kernels/python3/kernel.json": '{"argv": ["false"], "display_name": "", "language": ""}',
        "jupyter/jupyter_config.json": "{",
        "ipython/profile_default/startup/00.py": "import os; os._exit(3)",
        "ipython/profile_default/ipython_kernel_config.py": "raise RuntimeError('theirs')",
        "startup.py": "import os; os._exit(4)",
        "matplotlib/matplotlibrc": "lines.linewidth: 77\n\xff",
    }.items():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(text, encoding="latin-1")
    for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):  # which take seconds to find
        shutil.copy(fonts, home / "matplotlib")
    theirs = {
        "JUPYTER_PATH": "jupyter", "JUPYTER_CONFIG_DIR": "jupyter", "JUPYTER_RUNTIME_DIR": "startup.py/no",
        "IPYTHONDIR": "ipython", "PYTHONSTARTUP": "startup.py", "MPLCONFIGDIR": "matplotlib",
    }  # fmt: skip
    for name, value in theirs.items():
        monkeypatch.setenv(name, str(home / value))
    monkeypatch.setenv("MPLBACKEND", "module://nowhere")
    seen = "import sys, matplotlib as m; print('seen', sys.executable, m.rcParams['lines.linewidth'])"
    child = (
        f"import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', {seen!r}], text=True))"
    )
    repository.notebook("01_train", seen, child, "import matplotlib.pyplot as p\np.plot([1])", parameters=LR)
    repository.params("demo", "01_train")
    done = subprocess.run([sys.executable, "-m", "mmlib", "run", "demo"], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"seen {sys.executable} 1.5") == 2
    assert any(
        "image/png" in o.get("data", {}) for c in executed("01_train").cells for o in c.get("outputs", [])
    )


def test_a_matplotlibrc_in_the_current_folder_is_not_read(tmp_path):
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: wide\n\xff", encoding="latin-1")
    seen = "import mmlib.reporting, matplotlib as m, os; print(m.rcParams['lines.linewidth'], os.getcwd())"
    environment = os.environ | {
        "MATPLOTLIBRC": os.devnull,
        "PYTHONPATH": str(Path(mmlib.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", seen], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == (f"1.5 {tmp_path}\n", "")


def test_folders_with_characters_of_patterns_and_formats_are_folders_like_others(repository, monkeypatch):
    root = files.ROOT / "lab [1] {lr} *%s"
    monkeypatch.setattr(files, "ROOT", root)
    for name in ("PARAMS", "NOTEBOOKS", "RUNS", "REPORTS"):
        monkeypatch.setattr(files, name, root / name.lower())
    monkeypatch.setattr(files, "PUBLISHED", root / "reports" / "published")
    root.mkdir()
    repository.notebook("01_train", "print('lr is', lr)", parameters=LR)
    repository.params("demo", "01_train", "lr: 0.5\n")
    assert run_experiment("demo") == 0
    assert run_experiment(root / "params" / "demo") == 0
    assert "lr is 0.5" in printed("01_train")
    assert (files.REPORTS / "demo" / "01_train.html").is_file()
    assert '<a href="demo/01_train.html">' in (files.REPORTS / "index.html").read_text()


@pytest.mark.parametrize("name", ["demo [1]", "published", ".demo"])
def test_experiments_whose_name_cannot_be_a_report_are_refused(name, repository):
    repository.notebook("01_train")
    repository.params(name, "01_train")
    with pytest.raises(ParameterError, match=r"experiment.*rename"):
        plan(name, {})


def test_two_runs_of_one_experiment_exclude_each_other(repository, fake_papermill, capsys):
    """The second is refused before it touches anything, and one that was killed holds nothing."""
    repository.notebook("01_train", "work()", parameters=LR)
    repository.params("demo", "01_train")
    holds = (
        "import sys; from pathlib import Path; from mmlib.files import locked\n"
        "with locked(Path(sys.argv[1]), 'experiment'): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holds, str(files.REPORTS / "demo")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        (files.REPORTS / "demo" / "01_train.html").write_text("the first one's")
        with pytest.raises(InUse, match=rf"experiment 'demo' is being written.*process {other.pid} on \S+"):
            run_experiment("demo")
        (files.REPORTS / "demo" / ".lock").unlink()  # nor does deleting the file set it free
        with pytest.raises(InUse, match="experiment 'demo' is being written"):
            run_experiment("demo")
        assert fake_papermill == []
        assert (files.REPORTS / "demo" / "01_train.html").read_text() == "the first one's"
        assert not (files.REPORTS / "demo" / "executed").exists()
        other.kill()
    assert run_experiment("demo") == 0


def test_a_report_that_cannot_be_written_names_the_file_and_what_the_system_said(
    repository, fake_papermill, monkeypatch
):
    repository.notebook("01_train", "work()", parameters=LR)
    repository.params("demo", "01_train")
    files.REPORTS.write_text("a file in the way")
    with pytest.raises(OSError, match=r"could not write reports/demo: Not a directory"):
        run_experiment("demo")
    files.REPORTS.unlink()

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        with pytest.raises(
            OSError, match=r"could not write reports/demo: Read-only.*MMLIB_REPORTS"
        ) as caught:
            run_experiment("demo")
        assert "space" not in str(caught.value)
    for number, what_to_do in (
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "The file system is read-only"),
    ):

        def fails(*_, number=number, **__):
            raise OSError(number, "what the system said")

        monkeypatch.setattr(pipeline.papermill, "execute_notebook", fails)
        expected = (
            rf"could not write reports/demo/executed/01_train.ipynb: what the system said. {what_to_do}"
        )
        with pytest.raises(OSError, match=expected):
            run_experiment("demo")
    monkeypatch.setattr("mmlib.files.write_text_atomic", read_only)
    with pytest.raises(OSError, match=r"could not write reports/index.html: Read-only file system"):
        write_index()


def test_a_file_is_no_experiment(repository):
    folder = repository.params("demo", "01_train")
    with pytest.raises(
        ParameterError, match=r"found the file params/demo/01_train.yaml; give its folder: params"
    ):
        plan(folder / "01_train.yaml", {})
