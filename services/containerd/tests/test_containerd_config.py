from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from containerd import config
from containerd.cli import main
from containerd.runtime.options import configured_options
from gantry.contracts.containerd.runc.v1.oci_pb2 import Options


def _load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return config.load(str(path), required=True)


def test_the_file_that_dockerd_writes_is_understood(tmp_path: Path) -> None:
    """Everything in it is known or empty: no warning."""
    loaded = _load(
        tmp_path,
        """
        disabled_plugins = ["io.containerd.grpc.v1.cri"]
        imports = []
        oom_score = -500
        required_plugins = []
        root = "/a"
        state = "/b"
        temp = ""
        version = 2
        [cgroup]
          path = ""
        [debug]
          address = ""
          format = "text"
          gid = 0
          level = ""
          uid = 0
        [grpc]
          address = "/c.sock"
          gid = 7
          max_recv_message_size = 1
          max_send_message_size = 2
          tcp_address = ""
          uid = 0
        [metrics]
          address = ""
          grpc_histogram = false
        [plugins]
        [proxy_plugins]
        [stream_processors]
        [timeouts]
        [ttrpc]
          address = ""
          gid = 0
          uid = 0
        """,
    ).resolved()
    assert loaded.warnings == ()
    assert (loaded.root, loaded.state, loaded.address, loaded.ttrpc_address) == ("/a", "/b", "/c.sock", "/c.sock.ttrpc")
    assert (loaded.gid, loaded.max_receive, loaded.max_send, loaded.oom_score) == (7, 1, 2, -500)
    assert (loaded.log_level, loaded.disabled_plugins) == ("info", ("io.containerd.grpc.v1.cri",))


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    """A key without effect is a warning with its full name, wherever it stands."""
    loaded = _load(
        tmp_path,
        'version = 3\nfoo = 1\n[grpc]\nbar = 2\ntcp_address = "1.2.3.4:5"\n'
        '[timeouts]\nbaz = "1s"\n[cgroup]\npath = "/x"\n',
    )
    names = [warning.split(": ")[1].split(" ")[0] for warning in loaded.warnings]
    assert sorted(names) == ["cgroup", "foo", "grpc.bar", "grpc.tcp_address", "timeouts.baz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1", "version 1 is not supported"),
        ("", "version 1 is not supported"),
        ("version = 4", "version 4 is not supported"),
        ("version = 3\nroot = 5", "root has type int, not str"),
        ("version = 3\noom_score = true", "oom_score has type bool, not int"),
        ("version = 3\n[grpc]\nuid = '0'", "grpc: uid has type str"),
        ("version = 3\ngrpc = 5", "grpc has type int, not dict"),
        ("version = 3\n[timeouts]\n'io.containerd.timeout.task.state' = '5 s'", "is not a duration"),
        ("version = ", "config.toml: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    """A value of the wrong kind stops the daemon, and the message says which."""
    with pytest.raises(config.ConfigError, match=message):
        _load(tmp_path, text)


def test_a_missing_file_matters_only_when_it_was_asked_for(tmp_path: Path) -> None:
    """The default file need not exist."""
    assert config.load(str(tmp_path / "none"), required=False) == config.Config()
    with pytest.raises(config.ConfigError, match="cannot read"):
        config.load(str(tmp_path / "none"), required=True)


def test_imports_win_over_the_file_that_names_them(tmp_path: Path) -> None:
    """Files are merged in order, plugins key by key, and a file that imports itself is read once."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "1.toml").write_text(
        'version = 3\nstate = "/two"\nimports = ["../config.toml"]\n[plugins."a.b"]\ny = 2\n'
    )
    loaded = _load(
        tmp_path,
        'version = 3\nroot = "/one"\nstate = "/one"\nimports = ["conf.d/*.toml"]\n'
        '[plugins."a.b"]\nx = 1\n[timeouts]\n"io.containerd.timeout.task.state" = "1m30.5s"\n',
    )
    assert (loaded.root, loaded.state) == ("/one", "/two")
    assert loaded.plugin("a.b") == {"x": 1, "y": 2}
    assert loaded.plugin("none") == {}
    assert loaded.timeout("io.containerd.timeout.task.state") == 90.5


def test_what_is_dumped_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed configuration is the configuration."""
    path = tmp_path / "config.toml"
    path.write_text('version = 2\nroot = "/r\\"x"\n[plugins."a.b"]\nx = ["1", 2]\n[plugins."a.b".deep]\ny = true\n')
    assert main(["--config", str(path), "--state", "/s", "config", "dump"]) == 0
    printed = capsys.readouterr().out
    table = tomllib.loads(printed)
    assert (table["version"], table["root"], table["state"]) == (3, '/r"x', "/s")
    assert table["plugins"]["a.b"] == {"x": ["1", 2], "deep": {"y": True}}
    (tmp_path / "again.toml").write_text(printed)
    again = config.load(str(tmp_path / "again.toml"), required=True)
    assert (again.warnings, config.dump(again)) == ((), printed)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad level and a bad file end with status 1 and one line on standard error."""
    assert main(["-l", "loud", "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]) == 1
    assert "not a valid log level" in capsys.readouterr().err
    assert main(["-c", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("containerd gantry v")


def test_options_of_a_runtime(tmp_path: Path) -> None:
    """As containerd spells them; what is not one of them is named."""
    table = 'version = 3\n[plugins."io.containerd.runtime.v2.task".runtimes."io.containerd.runc.v2".options]\n'
    loaded = _load(tmp_path, table + 'BinaryName = "crun"\nSystemdCgroup = true\nRoot = "/run/x"\n')
    found = configured_options(loaded.plugin("io.containerd.runtime.v2.task"))
    options = Options.FromString(found["io.containerd.runc.v2"].value)
    assert (options.binary_name, options.systemd_cgroup, options.root) == ("crun", True, "/run/x")
    for wrong in ("Binary = 1", "BinaryName = 1"):
        with pytest.raises(config.ConfigError, match="Binary"):
            configured_options(_load(tmp_path, table + wrong).plugin("io.containerd.runtime.v2.task"))


def test_a_plugin_of_version_2_is_known_by_its_newer_name(tmp_path: Path) -> None:
    """Its settings and whether it is disabled; and a dump names the defaults of the others."""
    name = "io.containerd.internal.v1.restart"
    loaded = _load(tmp_path, f'version = 2\ndisabled_plugins = ["{name}"]\n[plugins."{name}"]\ninterval = "1m5s"\n')
    newer = "io.containerd.monitor.container.v1.restart"
    assert loaded.duration(newer, "interval", 1.0) == 65
    assert loaded.disabled(newer)
    dumped = tomllib.loads(config.dump(loaded))["plugins"]
    assert dumped[newer] == {"interval": "1m5s"}
    assert dumped["io.containerd.transfer.v1.local"] == {"config_path": ""}
