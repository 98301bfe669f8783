"""The kernel of `mmlib run`: this very interpreter, without a person's own settings.

Jupyter would take the first kernel called `python3` that it finds, of any environment; IPython runs a
profile's startup files, and matplotlib reads a matplotlibrc.  None of them may change or end a run.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager


@contextlib.contextmanager
def own_kernel() -> Iterator[type[AsyncKernelManager]]:
    """A class for nbclient's `kernel_manager_class`, whose kernels run `sys.executable`, whatever their name.

    The kernel's settings and its connection file lie in a temporary folder, which is gone afterwards.
    What the kernel starts inherits the same environment.
    """
    with tempfile.TemporaryDirectory(prefix="mmlib-kernel-", ignore_cleanup_errors=True) as folder:
        settings = {
            "IPYTHONDIR": folder,
            "JUPYTER_CONFIG_DIR": folder,
            "JUPYTER_PATH": "",
            "PYTHONSTARTUP": "",
            "MATPLOTLIBRC": os.devnull,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }

        class OwnSpec(KernelSpecManager):
            def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
                return KernelSpec(**get_kernel_dict(), env=settings)

        class OwnKernel(AsyncKernelManager):
            def __init__(self, **given):
                connection = str(Path(folder) / "connection.json")
                super().__init__(kernel_spec_manager=OwnSpec(), connection_file=connection, **given)

        yield OwnKernel
