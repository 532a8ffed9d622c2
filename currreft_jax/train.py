"""Train a model on the stages of a config.

  python -m currreft_jax.train --config=configs/curriculum.py
  python -m currreft_jax.train --config=configs/stage1.py:3b --config.data.batch_size=16
  python -m currreft_jax.train --config=configs/curriculum.py:3b --rows train/*.jsonl --held-out test/*.jsonl

Every setting of the config can be given on the command line; a misspelt one is refused, with the nearest right name.
--config=FILE --help lists the variants and all settings of a config, as does docs/settings.md. The workdir receives
metrics, completions, checkpoints and the settings. The same command continues an interrupted run and skips finished
stages. SIGTERM, SIGUSR1 and Ctrl-C save after the current step and end with exit code 75: start it again.

`--profile=11:12` traces steps 11 and 12 of each stage, for xprof and Perfetto, to `profile` in the stage's folder.
docs/metrics.md describes the metrics.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from currreft_jax.config.flags import define_config, flags_parser, refuse_command_line
from currreft_jax.config.output import local_path
from currreft_jax.endpoint import EndpointError
from currreft_jax.rewards import RewardError
from currreft_jax.rewards.maths_pool import MathsPoolError
from currreft_jax.rewards.registry import validate_reward_names
from currreft_jax.runtime import distributed
from currreft_jax.runtime.compilation_cache import enable_compilation_cache
from currreft_jax.runtime.multihost import RefusedElsewhere, exit_refused
from currreft_jax.runtime.profiler import ProfileSteps, parse_profile_steps
from currreft_jax.training.console import say
from currreft_jax.training.limits import LimitReached, NonFiniteError
from currreft_jax.training.trainer import run

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for all output; runs/NAME by default")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, without a known launcher")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "number of processes, without a known launcher")
_PROCESS = flags.DEFINE_integer("process_id", None, "index of this process, from 0, without a known launcher")


class _ProfileParser(flags.ArgumentParser):
    """Parses `--profile`."""

    def parse(self, argument: str) -> ProfileSteps:
        """Returns the steps to trace."""
        return parse_profile_steps(argument)


_PROFILE = flags.DEFINE(_ProfileParser(), "profile", None, "FROM:TO, steps of a stage to trace for xprof and Perfetto")

# Errors whose messages stand alone; --verbosity=1 adds the traceback.
_REFUSALS = (
    *(ValueError, OSError, ModuleNotFoundError, NonFiniteError, LimitReached),
    *(RewardError, MathsPoolError, EndpointError, distributed.MissingProcess, RefusedElsewhere),
)


def main(_: Sequence[str]) -> None:
    """Runs the program."""
    config = _CONFIG.value
    try:
        validate_reward_names(config.rewards)
        workdir = local_path(_WORKDIR.value or f"runs/{config.name}")
    except ValueError as error:
        refuse_command_line("train", str(error))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every save at length
    enable_compilation_cache()
    try:
        distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        exported = run(config, workdir, profile=_PROFILE.value)
    except _REFUSALS as error:
        logging.debug("raised here", exc_info=True)
        exit_refused("train", error)
    except KeyboardInterrupt:  # before the run listens for signals
        print("\ntrain: stopped at once; nothing was done yet", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # all is saved: a late one must not change the exit code
        signal.signal(number, signal.SIG_IGN)
    if exported is None:
        sys.exit(distributed.REQUEUE)
    say(f"done: {exported}")


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser("train"))
