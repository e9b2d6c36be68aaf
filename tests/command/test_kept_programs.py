"""Compiled programs that the command keeps: where, whose, and that they can't break a run."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from deepprop.command import kept_programs as module
from deepprop.command.kept_programs import (
    _delete_oldest,
    _is_safe,
    default_folder,
    kept_programs,
)

RUN = [sys.executable, "-m", "deepprop", "check", "--activation", "tanh", "--hidden", "3"]
needs_quiet_jax = pytest.mark.skipif(
    jax.__version_info__ < module.QUIET, reason="this release of jax prints what it reads"
)
SETTINGS = ["jax_compilation_cache_dir", *module.SETTINGS]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")


def run(caches, *options, **environment):
    """Run a command as a user does, with the user's cache folder in `caches`."""
    of_jax = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")  # which these tests run with
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(of_jax)}
    environment = {**inherited, "XDG_CACHE_HOME": str(caches), **environment}
    done = subprocess.run(
        [*RUN, *options], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def kept(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


@needs_quiet_jax
def test_a_second_run_uses_the_programs_of_the_first_even_if_some_are_damaged(tmp_path):
    out, folder = run(tmp_path), tmp_path / "deepprop"
    first = kept(folder)
    assert len(first) > 2
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run(tmp_path) == out
    assert kept(folder) == first
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert run(tmp_path) == out
    assert not kept(folder)  # so that the next run writes them again


@pytest.mark.ordinary(1)
@pytest.mark.parametrize("options", [["--no-kept-programs"], []])
def test_no_programs_are_kept_if_an_option_or_jax_says_so(tmp_path, options):
    elsewhere = {} if options else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "of jax")}
    run(tmp_path / "caches", *options, **elsewhere)
    assert not (tmp_path / "caches").exists()


def others_can_read(folder):
    folder.mkdir(mode=0o755)


def a_link(folder):
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def a_file(folder):
    folder.write_text("")


def in_a_file(folder):
    folder.parent.rmdir()
    folder.parent.write_text("")


@pytest.mark.parametrize("make", [others_can_read, a_link, a_file, in_a_file])
def test_a_folder_that_is_not_the_users_own_is_not_used(tmp_path, make):
    (tmp_path / "caches").mkdir()
    folder = tmp_path / "caches" / "deepprop"
    assert _is_safe(tmp_path / "other" / "deepprop")
    make(folder)
    assert not _is_safe(folder)
    before = jax.config.jax_compilation_cache_dir
    with kept_programs(folder):
        assert jax.config.jax_compilation_cache_dir == before


def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    assert _is_safe(tmp_path / "deepprop")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not _is_safe(tmp_path / "deepprop")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/deepprop"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/h/.cache/deepprop"),
        ("linux", {}, "/h/.cache/deepprop"),
        ("darwin", {}, "/h/Library/Caches/deepprop"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/deepprop/programs"),
        ("win32", {}, None),
    ],
)
def test_the_folder_follows_the_platforms_convention(monkeypatch, platform, environment, expected):
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/h", **environment}.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == (None if expected is None else Path(expected))


def test_the_oldest_programs_are_deleted_first(tmp_path):
    for age in range(4):
        (tmp_path / str(age)).write_bytes(b"12345")
        os.utime(tmp_path / str(age), (1000 - age, 1000 - age))
    _delete_oldest(tmp_path, 11)
    assert sorted(kept(tmp_path)) == ["0", "1"]
    _delete_oldest(tmp_path / "none", 0)


@needs_quiet_jax
def test_jaxs_warnings_about_kept_programs_are_not_shown(tmp_path, monkeypatch):
    """Nor is one that reads: it makes the command delete the programs."""
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(message))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        for what in ("writing", "reading"):
            with kept_programs(tmp_path / "deepprop"):
                (tmp_path / "deepprop" / "a").write_text("a")
                for message in (f"Error {what} persistent compilation cache entry", "another"):
                    warnings.showwarning(message, UserWarning, "file", 1)
            assert (tmp_path / "deepprop" / "a").exists() == (what == "writing")
            jax.config.update("jax_compilation_cache_dir", None)
    finally:
        for setting in before.items():
            jax.config.update(*setting)
    assert shown == ["another", "another"]
