"""Builds the kernels: matmul by quantized weights (alhena/model/quantized/csrc/), and decoding (alhena/model/attention/csrc/).

They are optional: without a compiler a slow path runs.

python setup.py build_ext --inplace        in a checkout
"""

from pathlib import Path

import jaxlib
from setuptools import Extension, setup

# Headers of both.
SHARED = Path("alhena/model/csrc")


def kernel(name: str, sources: str) -> Extension:
    """An extension of all sources of a folder."""
    folder = Path(sources)
    return Extension(
        name,
        sources=sorted(path.as_posix() for path in folder.glob("*.cc")),
        depends=sorted(path.as_posix() for where in (folder, SHARED) for path in where.glob("*.h")),
        # Its own loops are included by a shared header; the headers of XLA's custom calls come with jaxlib.
        include_dirs=[folder.as_posix(), SHARED.as_posix(), (Path(jaxlib.__file__).parent / "include").as_posix()],
        extra_compile_args=["-std=c++17", "-O3", "-Wno-psabi"],
        extra_link_args=["-s"],
        optional=True,
        # It uses nothing of Python, so one build serves every version.
        py_limited_api=True,
    )


KERNELS = [
    kernel("alhena.model.quantized._kernel", "alhena/model/quantized/csrc"),
    kernel("alhena.model.attention._kernel", "alhena/model/attention/csrc"),
]
setup(ext_modules=KERNELS, options={"bdist_wheel": {"py_limited_api": "cp311"}})
