"""How every verb starts: flags, the cache of compiled programs, user errors as one line."""

from __future__ import annotations

import dataclasses
import sys
import traceback
import typing
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from glm_jax.compilation_cache import keep_compiled_programs
from glm_jax.config import Config, from_dict
from glm_jax.errors import EXIT_RESTART, EXIT_USER_ERROR, RestartError, UserError
from glm_jax.mesh_rules import parse_rule

if typing.TYPE_CHECKING:
    from glm_jax.parallel.place import Place

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of a user error.")


def run(
    main: Callable[[], None], define_flags: Callable[[], None], *, restarts: bool = False
) -> None:
    """Runs a verb's `main()`; a `UserError` becomes one line on stderr and exit code 2.

    Flags are defined here and not on import, so that several verbs can be imported together.

    Args:
      restarts: the verb goes on where it was if it is started again, so that every other exception
        asks for that, with exit code 42.
    """
    define_flags()

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax and TFDS are chatty
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
            keep_compiled_programs()
            main()
        except UserError as error:
            _exit(str(error))
        except RestartError as error:
            _exit(str(error), EXIT_RESTART)
        except Exception:
            if not restarts:
                raise
            traceback.print_exc()
            sys.exit(EXIT_RESTART)

    app.run(guarded, flags_parser=_parse_flags)


def define_config_flag() -> None:
    """The flag `--config=FILE[:variant]` with overrides `--config.section.field=value`."""
    config_flags.DEFINE_config_file("config", None, "Recipe: configs/NAME.py[:variant].")


def load_config() -> Config:
    """The checked config of the recipe that --config names, and its overrides.

    What the command line says goes before `mesh_rules`, which lose their values for it.

    Raises:
      UserError: no recipe was named, or `config.from_dict` rejects it.
    """
    if flags.FLAGS.config is None:
        raise UserError("--config is required, such as --config=configs/glm_tiny.py")
    try:
        values = flags.FLAGS.config.to_dict()
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"--config cannot be loaded: {reason}") from error
    config = from_dict(values)
    said = config_flags.get_override_values(flags.FLAGS["config"])
    rules = tuple(parse_rule(text).without(said) for text in config.mesh_rules)
    return dataclasses.replace(config, mesh_rules=rules)


def define_hosts_flags() -> None:
    """The flags that say which process of how many this is; see `glm_jax.parallel.place`."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, of several.")
    flags.DEFINE_integer("num_processes", None, "Processes that train together.", 1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", 0)
    flags.DEFINE_float("hosts_timeout", 300.0, "Seconds for all processes to come.", 1)


def place() -> Place | None:
    """Where the flags, variables or the cluster put this process; None if it is alone.

    Raises:
      UserError, RestartError: see `find_place`.
    """
    from glm_jax.parallel.place import find_place  # not all verbs need jax

    values = flags.FLAGS
    return find_place(
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        timeout=values.hosts_timeout,
    )


def required(name: str):
    """The value of a flag that has no default.

    Raises:
      UserError: it was not given.
    """
    if not flags.FLAGS[name].value:
        raise UserError(f"--{name} is required")
    return flags.FLAGS[name].value


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS([_with_underscores(arg) for arg in argv])
    except (UserError, flags.Error) as error:
        _exit(" ".join(str(error).split()))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections raises these bare, naming at best the last part of a dotted path.
        message = " ".join(str(error.args[0]).replace("\\n", " ").replace("\\", "").split())
        _exit(f"{_blamed_flag(argv, message)}: {message}")


def _with_underscores(argument: str) -> str:
    """`--max-steps=3` is `--max_steps=3`; names inside a config stay as they are."""
    name, equals, value = argument[2:].partition("=")
    if not argument.startswith("--") or "." in name:
        return argument
    return f"--{name.replace('-', '_')}{equals}{value}"


def _blamed_flag(argv: list[str], message: str) -> str:
    overrides = [arg for arg in argv if arg.startswith("--config")]
    named = [arg for arg in overrides if arg.split("=")[0].split(".")[-1] in message]
    return (named or overrides or ["flags"])[0]


def _exit(message: str, code: int = EXIT_USER_ERROR) -> None:
    if "--debug" in sys.argv or (_DEBUG.present and _DEBUG.value):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
