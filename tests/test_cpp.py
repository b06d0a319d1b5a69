"""The C++ tests as pytest items: built with CMake once per session, plain and under the sanitizers."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "tests" / "cpp").glob("test_*.cpp"))
TESTS = [(source.stem, name) for source in SOURCES for name in re.findall(r"^TEST\((\w+)\)", source.read_text(), re.M)]
BUILDS = {"plain": ["-DUNITE_BUILD_LIBRARY=ON"], "sanitized": ["-DUNITE_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]}

CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES CXX)
find_package(unite_core REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE unite::unite_core)
"""
CONSUMER_MAIN = """
#include <unite/cpu/fused_step.h>
#include <unite/cpu/isa.h>
#include <cstdio>
int main() {
  unite::fused_step_cpu(unite::StepParams{}, unite::Parallel::serial());
  std::puts(unite::isa_name(unite::best_isa()));
}
"""


def run(*command: str | Path) -> str:
    """The output of a command; the test fails with all of it when the command does."""
    done = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}", pytrace=False)
    return done.stdout


def require_tools() -> None:
    if shutil.which("cmake") is None:
        pytest.skip("the C++ tests need cmake, which is not on the PATH (pip install cmake)")
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    if not any(shutil.which(compiler.split()[0]) for compiler in compilers):
        pytest.skip(f"the C++ tests need a C++ compiler, none of {compilers} is on the PATH")


def configure_and_build(source: Path, folder: Path, *options: str) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", source, "-B", folder, *generator, *options)
    run("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1))
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """From the name of a build to its folder; a build that failed is not tried again."""
    failures: dict[str, str] = {}

    @functools.cache
    def folder(build: str) -> Path:
        return configure_and_build(ROOT, tmp_path_factory.mktemp(f"cpp-{build}"), *BUILDS[build])

    def build_once(build: str) -> Path:
        require_tools()
        if build in failures:
            pytest.fail(f"the {build} build failed, see the first test that asked for it", pytrace=False)
        try:
            return folder(build)
        except pytest.fail.Exception as error:
            failures[build] = str(error)
            raise

    return build_once


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(("program", "name"), TESTS)
def test_cpp(built, build, program, name):
    run(built(build) / program, name)


def test_every_source_has_tests():
    assert {program for program, _ in TESTS} == {source.stem for source in SOURCES}
    assert len(SOURCES) >= 5


def test_ctest_runs_every_program(built):
    listed = run("ctest", "--test-dir", built("plain"), "--show-only")
    assert all(re.search(rf"\b{source.stem}\b", listed) for source in SOURCES), listed


def test_library_serves_another_project(built, tmp_path):
    prefix = tmp_path / "prefix"
    run("cmake", "--install", built("plain"), "--prefix", prefix)
    source = tmp_path / "consumer"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(CONSUMER_CMAKE)
    (source / "main.cpp").write_text(CONSUMER_MAIN)
    folder = configure_and_build(source, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert run(folder / "consumer").strip() in ("scalar", "avx2", "avx512")
