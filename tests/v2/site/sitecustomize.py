"""Lets Triton believe that it has a driver for this CPU. In every process of the tests of V2.

vLLM's V2 runner wants Triton, which has none. With ``TRITON_INTERPRET=1`` its kernels run in numpy
then: right, and slow. Python imports this file by itself, before vLLM.
"""

from types import SimpleNamespace

import triton.backends  # type: ignore[import-untyped]


class _Driver:
    @staticmethod
    def is_active() -> bool:
        """Say yes."""
        return True


triton.backends.backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)
