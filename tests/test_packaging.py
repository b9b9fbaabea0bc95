"""The wheel and the sdist, and what a user has who installs no more than the runtime: no torch, and all but export."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import helium_onnx
from helium_onnx._version import __version__
from helium_onnx.kernels.build import compiler

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.name for path in (ROOT / "export").glob("*.toml"))

LIBRARY = "helium_onnx/kernels/libhelium_kernels.so"
DEVICE_LIBRARY = "helium_onnx/kernels/libhelium_device.so"
SOURCES = ROOT / "helium_onnx" / "kernels" / "src"
DEVICE_SOURCES = ROOT / "helium_onnx" / "kernels" / "device"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

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
    assert wheel.name == f"helium_onnx-{__version__}-py3-none-{PLATFORM if compiler() else 'any'}.whl"
    assert (LIBRARY in names) == (DEVICE_LIBRARY in names) == (compiler() is not None)
    assert {path.relative_to(ROOT).as_posix() for path in SOURCES.iterdir()} <= set(names)  # to build it later
    assert {path.relative_to(ROOT).as_posix() for path in DEVICE_SOURCES.iterdir()} <= set(names)  # for NVRTC
    assert {name.split("/")[0] for name in names} == {"helium_onnx", f"helium_onnx-{__version__}.dist-info"}
    assert (
        sorted(Path(name).name for name in names if name.startswith("helium_onnx/recipes/") and "toml" in name)
        == RECIPES
    )
    assert "helium_onnx/py.typed" in names
    assert {"helium_onnx/recipes/calibration.jsonl", "helium_onnx/evaluation/report.html.jinja"} <= set(names)
    assert {"helium_onnx/benchmark/bench.html.jinja", "helium_onnx/pages/page.html.jinja"} <= set(names)
    assert f"helium_onnx-{__version__}.dist-info/licenses/LICENSE" in names
    sources = ("c/src/api.cpp", "c/CMakeLists.txt", "android/helium/src/main/cpp/helium_jni.cpp", "ios/Package.swift")
    assert {f"helium_onnx/app_sources/{name}" for name in sources} <= set(names)
    assert not [name for name in names if "test" in Path(name).name or name.endswith((".pyc", ".onnx", ".safetensors"))]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "helium_onnx").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required and not any("torch" in line or "onnx-ir" in line for line in required)
    assert not any("gpu" in line or "cuda" in line for line in required)
    cuda = [line for line in metadata.splitlines() if line.endswith("extra == 'cuda'")]
    assert sorted(re.split(r"[<>=\[]", line.removeprefix("Requires-Dist: "))[0] for line in cuda) == [
        "cuda-bindings", "nvidia-cublas", "onnxruntime-gpu",
    ]  # fmt: skip


def test_the_sdist_holds_what_builds_and_tests_it(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"} <= names
    assert {f"export/{name}" for name in RECIPES} <= names
    assert "samples/helium-docs-7m/model.safetensors" in names
    assert {"hatch_build.py", *(path.relative_to(ROOT).as_posix() for path in SOURCES.iterdir())} <= names
    assert not [name for name in names if ".venv" in name or "__pycache__" in name or name.startswith("out/")]
    assert not [name for name in names if ".so" in Path(name).suffixes]


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist as a user unpacks it."""
    folder = tmp_path_factory.mktemp("sdist")
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HELIUM_ONNX_KERNELS": "0"}, ""),
        ({"CXX": "false"}, "without native kernels"),
        ({"CXX": "none"}, "no C++ compiler"),
    ],
)
def test_a_wheel_without_kernels(variables: dict[str, str], said: str, unpacked: Path, tmp_path: Path) -> None:
    """It is asked for, or the compiler fails, or there is none: for any platform, then."""
    done = build_wheel(unpacked, tmp_path, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    (made,) = tmp_path.iterdir()
    assert made.name == f"helium_onnx-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        assert not {LIBRARY, DEVICE_LIBRARY} & set(archive.namelist())


def test_kernels_that_are_asked_for_and_cannot_be_built(unpacked: Path, tmp_path: Path) -> None:
    done = build_wheel(unpacked, tmp_path, {"HELIUM_ONNX_KERNELS": "1", "CXX": "none"})
    assert done.returncode != 0
    assert "no C++ compiler" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def build_wheel(source: Path, out: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


def test_the_environment_has_no_framework(run: Run) -> None:
    for name in ("torch", "onnx", "transformers"):
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


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_native_kernels(run: Run, bundle: Path) -> None:
    """The library came with the wheel, and what was built there gives the text of the one here."""
    code = (
        "import helium_onnx, sys; from helium_onnx import kernels; print(kernels.instruction_set())\n"
        "with helium_onnx.load(sys.argv[1], kernels='native') as m:\n"
        "    print(m.generate('Pour insérer un tableau', max_new_tokens=12)[0].text)"
    )
    instructions, text = run("python", "-c", code, bundle).stdout.split("\n", 1)
    assert instructions in ("avx512-vnni", "avx2", "generic")
    with helium_onnx.load(bundle, kernels="native") as model:
        assert model.generate("Pour insérer un tableau", max_new_tokens=12)[0].text == text.rstrip("\n")


def test_doctor_without_the_extra(run: Run) -> None:
    """It needs no more than the runtime, and says what the extra would bring."""
    report = json.loads(run("helium-onnx", "doctor", "--json").stdout)
    assert report["can_run"]
    assert report["onnxruntime_package"] == "onnxruntime"
    assert sorted(f"{fit['recipe']}.toml" for fit in report["recipes"]) == RECIPES


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
