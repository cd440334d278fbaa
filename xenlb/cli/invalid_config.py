"""How a verb fails that cannot do without a configuration that is right."""

from xenlb.cli.options import Failure
from xenlb.control.protocol import INVALID_CONFIGURATION
from xenlb.model.problem import ConfigError


def invalid(error: ConfigError) -> Failure:
    count = len(error.problems)
    return Failure(
        f"the configuration has {count} problem{'s' * (count != 1)}",
        hint="correct the file; xenlb check tells when it is right",
        status=INVALID_CONFIGURATION,
        details=tuple(str(problem) for problem in error.problems),
    )
