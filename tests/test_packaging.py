"""The wheel and the sdist, and what a user has who installs no more than the runtime: no torch, and all but export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helium_onnx._version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.name for path in (ROOT / "export").glob("*.toml"))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, which is built from the sdist, as ``python -m build`` does."""
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and what it needs to run."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """Run a command of that environment in an empty folder: nothing of the checkout is in reach."""

    def command(name: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        variables = {"PATH": f"{environment}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        done = subprocess.run(
            [environment / name, *map(str, arguments)],
            capture_output=True, text=True, cwd=tmp_path, env=variables, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return command


@pytest.fixture
def bundle(sample_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_bundle, tmp_path / "bundle"))


def test_the_wheel_holds_the_package_and_the_recipes_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    assert wheel.name == f"helium_onnx-{__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"helium_onnx", f"helium_onnx-{__version__}.dist-info"}
    assert (
        sorted(Path(name).name for name in names if name.startswith("helium_onnx/recipes/") and "toml" in name)
        == RECIPES
    )
    assert "helium_onnx/py.typed" in names
    assert {"helium_onnx/recipes/calibration.jsonl", "helium_onnx/evaluation/report.html.jinja"} <= set(names)
    assert f"helium_onnx-{__version__}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if "test" in Path(name).name or name.endswith((".pyc", ".onnx", ".safetensors"))]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "helium_onnx").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required and not any("torch" in line or "onnx-ir" in line for line in required)


def test_the_sdist_holds_what_builds_and_tests_it(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"} <= names
    assert {f"export/{name}" for name in RECIPES} <= names
    assert "samples/helium-docs-7m/model.safetensors" in names
    assert not [name for name in names if ".venv" in name or "__pycache__" in name or name.startswith("out/")]


def test_the_environment_has_no_framework(run: Run) -> None:
    for name in ("torch", "onnx", "transformers", "safetensors"):
        assert (
            f"No module named '{name}'"
            in run("python", "-c", f"try: import {name}\nexcept ImportError as e: print(e)").stdout
        )
    where = run("python", "-c", "import helium_onnx; print(helium_onnx.__file__)").stdout
    assert "site-packages" in where


def test_recipes(run: Run) -> None:
    listed = json.loads(run("helium-onnx", "recipes", "--json").stdout)
    assert sorted(f"{recipe['name']}.toml" for recipe in listed) == RECIPES
    assert "cpu-int4" in run("helium-onnx", "recipes").stdout


def test_generate_inspect_and_verify(run: Run, bundle: Path) -> None:
    text = run("helium-onnx", "generate", bundle, "Pour insérer un tableau", "--max-new-tokens", 12).stdout
    assert len(text) > 10
    code = (
        "import helium_onnx, sys; m = helium_onnx.load(sys.argv[1])\n"
        "print(m.generate('Pour insérer un tableau', max_new_tokens=12)[0].text, end='')"
    )
    assert run("python", "-c", code, bundle).stdout.strip() in text
    assert "prefill" in run("helium-onnx", "inspect", bundle).stdout
    run("helium-onnx", "verify", bundle)


def test_the_sample_application(run: Run, bundle: Path) -> None:
    done = run("python", ROOT / "samples" / "app" / "main.py", bundle, "Pour insérer un tableau")
    assert len(done.stdout.strip()) > 10


def test_an_export_says_which_extra_is_missing(run: Run, tmp_path: Path) -> None:
    done = run("helium-onnx", "export", ROOT / "samples" / "helium-docs-7m", tmp_path / "out", code=1)
    assert "pip install 'helium-onnx[export]'" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_validate_says_which_extra_is_missing(run: Run, bundle: Path) -> None:
    done = run("helium-onnx", "validate", bundle, "--against", ROOT / "samples" / "helium-docs-7m", code=1)
    assert "pip install 'helium-onnx[eval]'" in done.stderr
