"""The laws that tests/kernels keeps for every backend, on a GPU: the same tests, with the operations taken there."""

from __future__ import annotations

import pytest

from tests.kernels.test_advance import *  # noqa: F403
from tests.kernels.test_agreement import *  # noqa: F403
from tests.kernels.test_emitted_law import *  # noqa: F403
from tests.kernels.test_independence import *  # noqa: F403
from tests.kernels.test_pitfalls import *  # noqa: F403
from tests.kernels.test_row_stats import *  # noqa: F403
from tests.kernels.test_status import *  # noqa: F403
from tests.kernels.test_vocabulary import *  # noqa: F403

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_operations_run_on_the_device")]
