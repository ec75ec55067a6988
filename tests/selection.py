"""Selection: the tests that `make quick` runs. They need no server, no root and no live media, and each takes a moment.

Rule: a folder is quick as a whole, or its quick modules are listed. A test on the distributed engine never is.
"""

from __future__ import annotations

import re

from tests import both_engines

FOLDERS = ("tests/unit/", "tests/contract/", "tests/simulated/")
MODULES = (
    "tests/integration/test_bootstrap.py",
    "tests/integration/test_cos_resume.py",
    "tests/integration/test_cos_upload.py",
    "tests/integration/test_openapi.py",
    "tests/integration/test_process.py",
    "tests/integration/test_simulator_cos.py",
    "tests/security/test_constant_time.py",
    "tests/security/test_cos_host.py",
    "tests/security/test_flv_fuzz.py",
)


def quick(test: str) -> bool:
    """Whether the test of this id, as pytest prints it, belongs to `make quick`."""
    words = re.split(r"[-\[\]]", test.partition("[")[2])
    distributed = any(both_engines.SIDES.get(word) == both_engines.DISTRIBUTED for word in words)
    return test.startswith((*FOLDERS, *MODULES)) and not distributed
