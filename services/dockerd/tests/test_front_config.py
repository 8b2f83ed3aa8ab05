"""Flags and daemon.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dockerd import cli
from dockerd.config import AddressPool, Config, ConfigError, load


def write(tmp_path: Path, content: object) -> str:
    path = tmp_path / "daemon.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_defaults_are_gantrys_own_places() -> None:
    """Without flags and file the engine stays out of a real Docker's way."""
    config = Config()
    assert config.hosts == ("unix:///run/gantry/docker.sock",)
    assert config.own_containerd() == ("/var/lib/gantry/containerd", "/run/gantry/containerd")


def test_own_directories_bring_an_own_containerd() -> None:
    """Two engines on one machine do not share the containerd that they start."""
    config = Config(data_root="/a", exec_root="/b")
    assert config.own_containerd() == ("/a/containerd", "/b/containerd")


def test_file_and_flags_are_merged(tmp_path: Path) -> None:
    """Values come from both places when they do not name the same thing."""
    path = write(tmp_path, {"bip": "10.1.0.1/16", "labels": ["a=b"], "log-opts": {"max-size": "1m"}})
    config = load({"config_file": path, "debug": True, "data_root": "/x"})
    assert (config.bip, config.labels, config.debug, config.data_root) == ("10.1.0.1/16", ("a=b",), True, "/x")
    assert config.log_opts == {"max-size": "1m"}


def test_pools_are_read_from_the_file(tmp_path: Path) -> None:
    """default-address-pools is a list of objects."""
    path = write(tmp_path, {"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]})
    assert load({"config_file": path}).default_address_pools == (AddressPool("10.0.0.0/8", 24),)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({"debug": True, "foo": 1, "bar": 2}, {}, "don't match any configuration option: bar, foo"),
        ({"tlsverify": True}, {}, "the following directives are not supported by this engine: tlsverify"),
        ({"registry-mirrors": []}, {}, "not supported by this engine: registry-mirrors"),
        (
            {"debug": True, "hosts": ["unix:///x"]},
            {"debug": True, "hosts": ("unix:///y",)},
            (
                "specified both as a flag and in the configuration file: "
                "debug: (from flag: true, from file: true), hosts: (from flag: [unix:///y], from file: [unix:///x])"
            ),
        ),
        ({"debug": "x"}, {}, "debug must be of type bool"),
        ('{"debug":}', {}, "invalid JSON"),
        ("[]", {}, "not one JSON object"),
    ],
)
def test_file_errors_name_the_file_and_the_key(
    tmp_path: Path, content: object, flags: dict[str, object], message: str
) -> None:
    """Every error in the file begins as the real daemon's and says what is wrong."""
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as raised:
        load({"config_file": path, **flags})
    assert str(raised.value).startswith(f"unable to configure the Docker daemon with file {path}: ")
    assert message in str(raised.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    """Only the file at the default path may be missing."""
    path = str(tmp_path / "no.json")
    with pytest.raises(ConfigError, match="no such file or directory"):
        load({"config_file": path})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"log_level": "foo"}, "invalid logging level: foo"),
        ({"hosts": ("tcp://0.0.0.0:2375",)}, "--tlsverify"),
        ({"hosts": ("foo",)}, "invalid bind address 'foo'"),
        ({"hosts": ("http://x",)}, "invalid protocol 'http'"),
        ({"hosts": ("unix://rel",)}, "not an absolute path"),
        ({"bip": "foo"}, "invalid bip"),
        ({"bip": "10.0.0.1"}, "no prefix length"),
        ({"bip": "10.0.0.1/8", "bridge": "br0"}, "mutually exclusive"),
        ({"dns": ("x",)}, "invalid IP address: x"),
        ({"labels": ("x",)}, "bad attribute format: x"),
        ({"log_driver": "syslog"}, "log-driver 'syslog' is not supported"),
        ({"live_restore": False}, "live-restore cannot be turned off"),
        ({"mtu": 10}, "invalid mtu"),
        ({"data_root": "rel"}, "not an absolute path"),
    ],
)
def test_bad_values_are_refused_by_name(flags: dict[str, object], message: str) -> None:
    """A value that cannot work is an error before anything is touched."""
    with pytest.raises(ConfigError) as raised:
        load(flags)
    assert message in str(raised.value)


def test_version_has_the_shape_that_scripts_parse(capsys: pytest.CaptureFixture[str]) -> None:
    """``dockerd --version`` prints Docker's line."""
    assert cli.main(["-v"]) == 0
    assert capsys.readouterr().out.startswith("Docker version 0.1.0, build ")


def test_validate_says_that_all_is_well(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--validate reads everything and starts nothing."""
    path = write(tmp_path, {"debug": False})
    assert cli.main(["--validate", "--config-file", path, "-H", "unix:///a", "-H", "fd://", "-p", "/x"]) == 0
    assert capsys.readouterr().out == "configuration OK\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["--foo=1"], "unknown flag: --foo"),
        (["extra"], '"dockerd" accepts no arguments, got "extra"'),
        (["--debug=x"], "strconv.ParseBool"),
        (["-H", "tcp://1.2.3.4:1"], "TLS"),
        (["--config-file", "/nope/daemon.json"], "no such file"),
    ],
)
def test_command_line_errors_go_to_stderr(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 1 and the text names the flag."""
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_boolean_flag_takes_no_word_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    """As with Go's flags, a boolean's value is given with ``=`` only."""
    assert cli.main(["--debug", "extra"]) == 1
    assert "accepts no arguments" in capsys.readouterr().err
    assert cli.main(["-D", "--live-restore=true", "--validate"]) == 0
