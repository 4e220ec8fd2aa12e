# SPDX-License-Identifier: Apache-2.0
"""Runners with a complete log file and short terminal output."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner

_LENGTHY = (
    'Config:\n',
    'Hooks will be executed',
    'paramwise_options -- ',
    '\n' + '-' * 60 + '\nSystem environment',
)


def _is_short(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LENGTHY)


def _quieten(logger: MMLogger, work_dir: str) -> None:
    """Leave lengthy lines to the log file, and print where it is."""
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_short)
    logger.info(f'Config and log are in {work_dir}')


class QuietRunner(Runner):
    """Runner that does not print config, environment, hooks and parameter options.

    These lines, often thousands, are in the log file; the config is also saved separately.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as MMEngine does and filter what it prints.

        Args:
            *args: See ``Runner.build_logger``.
            **kwargs: See ``Runner.build_logger``.

        Returns:
            The logger.
        """
        logger = super().build_logger(*args, **kwargs)
        _quieten(logger, self.work_dir)
        return logger


class QuietFlexibleRunner(FlexibleRunner):
    """MMEngine's ``FlexibleRunner``, as quiet as ``QuietRunner``."""

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """Build the strategy, which has the logger, and filter what the logger prints.

        Args:
            *args: See ``FlexibleRunner.build_strategy``.
            **kwargs: Likewise.

        Returns:
            The strategy.
        """
        strategy = super().build_strategy(*args, **kwargs)
        _quieten(strategy.logger, strategy.work_dir)
        return strategy


QUIET = dict(Runner=QuietRunner, FlexibleRunner=QuietFlexibleRunner)  # by runner_type
