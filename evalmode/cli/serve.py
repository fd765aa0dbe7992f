"""``evalmode serve``: parses the options and runs the server's process."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import click
from click.core import ParameterSource

from evalmode.cli.dataclass_options import dataclass_options
from evalmode.errors import EvalmodeError
from serving.config import VARIABLE_PREFIX, LogConfig, ServeConfig
from serving.logs import set_up_log, shut_down_log
from serving.process import run

log = logging.getLogger("serving")

LOG_FORMAT, LOG_FORMAT_VARIABLE = "--log-format", f"{VARIABLE_PREFIX}LOG_FORMAT"


class _Serve(click.Command):
    """Reports errors in the format of the log: as JSON objects with ``--log-format json``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        log_format = os.environ.get(LOG_FORMAT_VARIABLE, "")
        for argument, following in zip(args, [*args[1:], ""], strict=False):
            option, _, value = argument.partition("=")
            log_format = (value or following) if option == LOG_FORMAT else log_format
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if log_format != "json":
                raise
            set_up_log("info", log_format)
            log.critical("%s", error.format_message())
            raise click.exceptions.Exit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EvalmodeError as error:
            if ctx.params["log_format"] != "json":
                shut_down_log()  # so that the error is the last line
                raise
            log.critical("%s", error)
            ctx.exit(error.exit_code)


@click.command(cls=_Serve)
@dataclass_options(ServeConfig, LogConfig)
@click.pass_context
def serve(context: click.Context, /, **options: Any) -> None:
    """Serve the newest version of every model in a repository over gRPC, and load new versions as they are published.

    On the first SIGTERM, SIGINT or SIGHUP the health status becomes NOT_SERVING. The server answers requests for
    --lame-duck more seconds, then waits up to --grace seconds for requests in flight. It exits with 0, or with 1 if
    requests were cut. A second signal ends the process at once.
    """
    log_config = LogConfig(**{name: options.pop(name) for name in asdict(LogConfig())})
    set_up_log(log_config.log_level, log_config.log_format)
    chosen = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    config = ServeConfig.from_options(chosen)
    if config.worker_count == 1:
        run(config, click.echo)
    from serving.workers import supervisor

    supervisor.run(config, log_config, click.echo)
