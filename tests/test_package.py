"""The public surface, and what importing it costs."""

import pickle
import subprocess
import sys

import hdf_modules
from hdf_modules import HDFError

PUBLIC = {
    "DistributionalAttention",
    "HDFError",
    "HeterogeneityAwareLoss",
    "SAM",
    "Stage",
    "attach",
    "detach",
    "register_adapter",
    "with_features",
}


def test_public_names():
    assert set(hdf_modules.__all__) == PUBLIC
    assert all(hasattr(hdf_modules, name) for name in PUBLIC)


def test_import_is_light():
    """Neither timm nor torchvision nor the compiler is loaded by the import."""
    code = (
        "import sys, torch; before = set(sys.modules); import hdf_modules; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(out.stdout.split()) <= {"hdf_modules", "einops"} | set(sys.stdlib_module_names)


def test_error_survives_pickling():
    error = HDFError("rho", "a number > 0", -1.0, "use 0.05")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(error) == "rho: use 0.05; expected a number > 0, found -1.0"
