"""A run's configuration: every key there is, and how a config file and the command line change it.

A config file is a short Python file whose `get_config(variant)` returns what differs from the defaults.
Order of precedence: defaults here and of the method and data set, then the file, then `--config.key=value`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline import SOURCES
from input_pipeline.images import ImageOptions
from input_pipeline.text import TextOptions
from input_pipeline.weak_labels import WeakLabels
from wsca_jax import augment
from wsca_jax.engine.optimizer import OptimizerOptions
from wsca_jax.errors import WscaError
from wsca_jax.methods import METHODS


class ConfigError(WscaError):
    """A configuration that cannot be run. One line says where and what to do."""


def defaults(method: str, data: str) -> ConfigDict:
    """All keys with their defaults, for one method on one data set."""
    config = ConfigDict(
        {
            "seed": 0,
            "method": method,
            "data": {
                "name": data,
                "dir": "",  # folder of the data set; --data_dir sets it
                "images": dataclasses.asdict(ImageOptions(size=224)),
                "text": dataclasses.asdict(TextOptions()),
                "threads": 2,
                "skip_budget": 0,  # corrupt images that a run may skip before it stops
                "options": dataclasses.asdict(SOURCES[data].Options()),
            },
            "weak_labels": dataclasses.asdict(WeakLabels()),
            "augment": {k: v for k, v in dataclasses.asdict(augment.Options()).items() if k != "dtype"},
            "optimizer": dataclasses.asdict(OptimizerOptions()),
            "train": {
                "batch_size": 64,  # of the optimiser step, over all devices and microbatches
                "accumulate": 1,  # microbatches per optimiser step
                "epochs": 10.0,
                "log_every": 10,  # steps
                "stop_after_non_finite": 20,  # in a row
            },
            "evaluation": {
                "batch_size": 256,
                "every_epochs": 1.0,
                "captions": False,  # whether the model may read captions, which name what it is to predict
                "hidden_labels": 0,  # training images whose hidden labels each evaluation looks at, too
            },
            "checkpoint": {
                "every_epochs": 1.0,
                "keep_latest": 2,
                "keep_best": 1,
                "best_metric": "mAP",
            },
            "mesh": {"data": -1, "fsdp": 1},  # -1: all devices that fsdp leaves
        }
    )
    config.update(METHODS[method].default_config())
    return config.lock()


# What may change when a run is resumed: keys that decide where and what is written, not what is computed.
CHANGEABLE = (
    "checkpoint.",
    "data.dir",
    "data.threads",
    "evaluation.",
    "mesh.",
    "train.log_every",
    "train.stop_after_non_finite",
)


def load(spec: str, overrides: Sequence[str] = (), data_dir: Path | None = None) -> ConfigDict:
    """Resolves `FILE[:VARIANT]` and `--config.key=value` overrides to a locked, complete configuration.

    Raises:
      ConfigError: one line naming the file or key, and the nearest right one.
    """
    path, _, variant = spec.partition(":")
    chosen = _run_file(Path(path), variant)
    config = _defaults_for(chosen, path)
    _merge(config, chosen, path, METHODS[config.method].OPTIONAL)
    if data_dir is not None:
        config.data.dir = str(data_dir.absolute())
    return apply_overrides(config, overrides).lock()


def from_json(record: Mapping[str, Any], origin: str, data_dir: Path | None = None) -> ConfigDict:
    """Rebuilds the configuration stored with a run; a key that does not exist is an error.

    Args:
      record: what `to_json` returned.
      origin: where it stood, for the message.
      data_dir: another folder of data than the run's own.
    """
    chosen = ConfigDict(_tuples(dict(record)))
    config = _defaults_for(chosen, origin)
    _merge(config, chosen, origin, METHODS[config.method].OPTIONAL)
    if data_dir is not None:
        config.data.dir = str(data_dir.absolute())
    return config.lock()


def to_json(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def difference(stored: ConfigDict, given: ConfigDict) -> list[str]:
    """One line for each key that changes the meaning of a run and differs."""
    old, new = flat(stored), flat(given)
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(CHANGEABLE)
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer.learning_rate": 1e-4, ...}"""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, ConfigDict | dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies `--config.key=value` (or `--config.key value`) arguments, typed by the present values.

    An optional section as a whole takes None, which leaves it out, or "default", which puts it back.
    """
    overrides = _apply_sections(config, overrides)
    values, arguments = flags.FlagValues(), ["wsca", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        rest = values(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error, config, overrides)) from error
    if rest[1:]:
        raise ConfigError(f"unexpected argument {rest[1]!r}; overrides read --config.key=value")
    return holder.value if overrides else config


def _apply_sections(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
    """Sets optional sections named as a whole; returns the other overrides."""
    rest, optional = [], METHODS[config.method].OPTIONAL
    for argument in overrides:
        key, _, value = argument.removeprefix("--config.").partition("=")
        if key not in optional or not argument.startswith("--config."):
            rest.append(argument)
            continue
        if value not in ("None", "default"):
            raise ConfigError(f"{key} is a section; expected --config.{key}=None or default, found {value!r}")
        section, _, name = key.rpartition(".")
        with config.unlocked():
            holder = config[section] if section else config
            holder[name] = None if value == "None" else ConfigDict(optional[key])
    return rest


def _run_file(path: Path, variant: str) -> ConfigDict:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no config file {path}{hint}")
    try:
        get_config = runpy.run_path(str(path))["get_config"]
    except KeyError:
        raise ConfigError(f"{path}: defines no get_config(variant) function") from None
    except Exception as error:
        raise ConfigError(f"{path}: does not run: {_one_line(error)}") from error
    try:
        return ConfigDict(get_config(variant) if variant else get_config())
    except Exception as error:
        chosen = f"variant {variant!r}" if variant else "get_config()"
        raise ConfigError(f"{path}: {chosen}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _defaults_for(chosen: ConfigDict, origin: str) -> ConfigDict:
    method = chosen.get("method", "wsca")
    data = chosen.get("data", {}).get("name")
    _check_choice(method, METHODS, f"{origin}: method")
    _check_choice(data, SOURCES, f"{origin}: data.name")
    return defaults(method, data)


def _check_choice(name: Any, table: Iterable[str], where: str) -> None:
    if name not in table:
        raise ConfigError(f"{where}: {name!r} is not known; choose one of {', '.join(sorted(table))}")


def _merge(
    config: ConfigDict, chosen: Mapping[str, Any], origin: str, optional: Mapping[str, Any], prefix: str = ""
) -> None:
    """Writes what was chosen over the defaults; of the `optional` sections, over their own where not None."""
    for key, value in chosen.items():
        name = f"{prefix}{key}"
        if key not in config:
            raise ConfigError(f"{origin}: unknown key {name!r}{_nearest(key, config)}")
        if name in optional:
            config[key] = None if value is None else ConfigDict(optional[name])
            if value is None:
                continue
        if isinstance(config[key], ConfigDict):
            if not isinstance(value, ConfigDict | dict):
                raise ConfigError(f"{origin}: {name} is a section, found {value!r}")
            _merge(config[key], value, origin, optional, f"{name}.")
            continue
        try:
            config[key] = value
        except TypeError as error:
            raise ConfigError(f"{origin}: {name}: {error}") from error


def _nearest(key: str, config: Mapping[str, Any]) -> str:
    names = list(config)
    near = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(names)}"


def _explain(error: Exception, config: ConfigDict, overrides: Sequence[str]) -> str:
    known = flat(config)
    for argument in overrides:
        key = argument.removeprefix("--config.").partition("=")[0]
        if argument.startswith("--config.") and key not in known:
            section, _, name = key.rpartition(".")
            if name in METHODS[config.method].OPTIONAL.get(section, {}):
                return f"{section} is None, so there is no {key}; add --config.{section}=default"
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            return f"unknown config key {key!r}{hint}"
    return f"config override: {' '.join(str(error).split())}"


def _tuples(value: Any) -> Any:
    """JSON lists back to the tuples they were."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def data_set(name: str, ability: str) -> ModuleType:
    """The module of a data set that can `ability` ("prepare", "verify").

    Raises:
      ConfigError: there is no such data set, or nothing to prepare or verify about it.
    """
    _check_choice(name, SOURCES, "--data")
    module = SOURCES[name]
    if not hasattr(module, ability):
        raise ConfigError(f"--data {name}: there are no files to {ability}; train on it as it is")
    return module


def recognised(folder: Path) -> str:
    """The name of the data set whose files a folder holds. Raises ConfigError where that cannot be told."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder with a data set, found nothing; check --data_dir")
    kinds = [name for name, module in SOURCES.items() if hasattr(module, "recognises")]
    found = [name for name in kinds if SOURCES[name].recognises(folder)]
    if len(found) != 1:
        what = f"the files of {' and of '.join(found)}" if found else "no data set's files"
        raise ConfigError(f"{folder}: found {what}; say with --data which it is: {', '.join(kinds)}")
    return found[0]
