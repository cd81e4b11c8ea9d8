"""Eight CPU devices, a compilation cache on disk, absl flags that count as parsed, and cases that repeat.

Property-based tests draw the same cases every time; WSCA_TEST_CASES=new draws others.

Everything here happens before jax is first imported: its backends read the environment once.
"""

import os
from pathlib import Path

_CACHE = Path(__file__).resolve().parent.parent / ".jax_cache"
# Tests compile much and run little: the code XLA makes need not be the fastest.
_DEVICES = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile(os.environ.get("WSCA_TEST_CASES", "same"))

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags and refuses to before they are parsed


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    assert jax.device_count() == 8, f"tests need 8 CPU devices, found {jax.devices()}"
