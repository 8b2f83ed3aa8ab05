"""Volumes: names, uses, removal, and the copy-up of image content."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from dockerd import errors
from dockerd.config import Config
from dockerd.volumes import SCHEMA, VolumeService
from gantry.database import Database

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Events:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str, str]] = []

    def publish(self, kind: str, action: str, actor: str, attributes: Mapping[str, str]) -> None:
        self.published.append((kind, action, actor))


def make(directory: Path, events: Events | None = None) -> VolumeService:
    directory.mkdir(exist_ok=True)
    database = Database(directory / "engine.db", [SCHEMA])
    service = VolumeService(Config(data_root=str(directory)), database, events or Events())  # type: ignore[arg-type]
    service.start()
    return service


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeService:
    return make(tmp_path / "data")


def test_a_new_volume_is_an_empty_directory(tmp_path: Path, volumes: VolumeService) -> None:
    """It lies at volumes/NAME/_data, mode 0755, below a directory that others cannot list."""
    volume = volumes.ensure("data", labels={"a": "b"})
    assert volume.mountpoint == str(tmp_path / "data/volumes/data/_data")
    assert (volume.driver, volume.labels, volume.options) == ("local", {"a": "b"}, None)
    assert stat.S_IMODE(os.stat(volume.mountpoint).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "data/volumes").st_mode) == 0o701
    assert volumes.get("data") == volume


def test_ensuring_twice_gives_the_same(volumes: VolumeService) -> None:
    """The first labels stay."""
    first = volumes.ensure("data", labels={"a": "b"})
    Path(first.mountpoint, "file").write_text("kept")
    assert volumes.ensure("data", labels={"c": "d"}) == first
    assert Path(first.mountpoint, "file").read_text() == "kept"


def test_an_anonymous_volume(volumes: VolumeService) -> None:
    """64 hexadecimal digits, and the label by which prune knows it."""
    volume = volumes.ensure(None)
    assert len(volume.name) == 64
    assert volume.labels == {"com.docker.volume.anonymous": ""}
    assert volumes.ensure(None).name != volume.name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x", "create x: volume name is too short, names should be at least two alphanumeric characters"),
        (
            "a/b",
            (
                'create a/b: "a/b" includes invalid characters for a local volume name, only '
                '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            ),
        ),
        ("..", 'create ..: ".." includes invalid characters'),
        ("a\n", 'create a\n: "a\n" includes invalid characters'),
    ],
)
def test_names_in_the_real_engines_words(volumes: VolumeService, name: str, text: str) -> None:
    """A name can never leave the volumes directory."""
    with pytest.raises(errors.InvalidParameter) as caught:
        volumes.ensure(name)
    assert str(caught.value).startswith(text)


def test_drivers_and_options(volumes: VolumeService) -> None:
    """Another driver is not found, an unknown option is wrong, a known one is refused by name; nothing is made."""
    with pytest.raises(
        errors.NotFound, match='create v1: error looking up volume plugin nope: plugin "nope" not found'
    ):
        volumes.ensure("v1", "nope")
    with pytest.raises(errors.InvalidParameter, match='create v1: invalid option: "foo"'):
        volumes.ensure("v1", "local", {"foo": "bar"})
    with pytest.raises(errors.NotSupported, match="device, type"):
        volumes.ensure("v1", "local", {"type": "tmpfs", "device": "tmpfs"})
    assert volumes.list() == []


def test_unknown_volume(volumes: VolumeService) -> None:
    """get, acquire and remove say so; a forced removal does not mind."""
    for call in (volumes.get, volumes.remove, lambda name: volumes.acquire(name, "c1")):
        with pytest.raises(errors.NotFound, match="get nope: no such volume"):
            call("nope")
    volumes.remove("nope", force=True)


def test_a_volume_in_use_stays(tmp_path: Path, volumes: VolumeService) -> None:
    """Uses are remembered over a restart, and end with the container."""
    mountpoint = volumes.ensure("data").mountpoint
    volumes.acquire("data", "c1")
    volumes.acquire("data", "c1")
    volumes.acquire("data", "c2")
    again = make(tmp_path / "data")
    with pytest.raises(errors.Conflict, match=r"remove data: volume is in use - \[c1, c2\]"):
        again.remove("data", force=True)
    assert again.release("c1") == ["data"]
    assert again.users("data") == ["c2"]
    again.release("c2")
    again.remove("data")
    assert not os.path.exists(os.path.dirname(mountpoint))
    assert again.list() == []


def test_list_filters(volumes: VolumeService) -> None:
    """name is a part of the name, labels must all be there, dangling is what no container uses."""
    volumes.ensure("web-data", labels={"tier": "web", "env": "dev"})
    volumes.ensure("db-data", labels={"tier": "db"})
    volumes.acquire("db-data", "c1")

    def names(**filters: list[str]) -> list[str]:
        return [volume.name for volume in volumes.list(filters)]

    assert names() == ["db-data", "web-data"]
    assert names(name=["web"]) == ["web-data"]
    assert names(name=["web", "db"]) == ["db-data", "web-data"]
    assert names(label=["tier"]) == ["db-data", "web-data"]
    assert names(label=["tier=web", "env=dev"]) == ["web-data"]
    assert names(label=["tier=web", "env=prod"]) == []
    assert names(driver=["other"]) == []
    assert names(dangling=["true"]) == ["web-data"]
    assert names(dangling=["0"]) == ["db-data"]
    with pytest.raises(errors.InvalidParameter, match="invalid filter 'foo'"):
        names(foo=["x"])
    with pytest.raises(errors.InvalidParameter, match=r"invalid filter 'dangling=\[maybe\]'"):
        names(dangling=["maybe"])


def test_prune_removes_anonymous_ones(volumes: VolumeService) -> None:
    """Named ones only with all=true or for clients of before 1.42; used ones never."""
    anonymous, used = volumes.ensure(None), volumes.ensure(None)
    volumes.ensure("named")
    volumes.acquire(used.name, "c1")
    Path(anonymous.mountpoint, "file").write_bytes(b"x" * 10000)
    pruned = volumes.prune()
    assert pruned.names == (anonymous.name,)
    assert pruned.space_reclaimed >= 10000
    assert volumes.prune({"all": ["true"], "label!": ["keep"]}).names == ("named",)
    volumes.ensure("named")
    assert volumes.prune(anonymous_only=False).names == ("named",)
    assert [volume.name for volume in volumes.list()] == [used.name]


def test_events(tmp_path: Path) -> None:
    """Making and removing are told, finding again is not."""
    events = Events()
    volumes = make(tmp_path / "data", events)
    volumes.ensure("data")
    volumes.ensure("data")
    volumes.remove("data")
    assert events.published == [("volume", "create", "data"), ("volume", "destroy", "data")]


def test_an_interrupted_removal_is_finished(tmp_path: Path, volumes: VolumeService) -> None:
    """What was set aside for deletion is deleted at the next start; volumes are not."""
    volumes.ensure("data")
    (tmp_path / "data/volumes/old~removed/_data").mkdir(parents=True)
    make(tmp_path / "data")
    assert os.listdir(tmp_path / "data/volumes") == ["data"]


def image(directory: Path) -> Path:
    """A root file system with all kinds of things at /srv/www."""
    content = directory / "rootfs/srv/www"
    (content / "sub").mkdir(parents=True)
    (content / "page").write_text("hello")
    os.link(content / "page", content / "sub/same")
    (content / "link").symlink_to("/etc/passwd")
    os.mkfifo(content / "pipe")
    os.chmod(content / "page", 0o4750)
    os.chmod(content / "sub", 0o2711)
    os.chmod(content, 0o1777)
    os.utime(content / "page", (1, 2))
    return directory / "rootfs"


@root_only
def test_copy_up_keeps_everything(tmp_path: Path, volumes: VolumeService) -> None:
    """Owners, modes, times, links, attributes and kinds of files, of the directory itself too."""
    rootfs = image(tmp_path)
    source = rootfs / "srv/www"
    os.setxattr(source / "page", "user.note", b"kept")
    os.chown(source / "page", 5, 6)
    os.chmod(source / "page", 0o4750)
    os.chown(source, 7, 8)
    os.lchown(source / "link", 9, 10)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    target = Path(volumes.ensure("data").mountpoint)
    volumes.populate("data", str(rootfs), "/srv/www")
    assert sorted(os.listdir(target)) == ["link", "null", "page", "pipe", "sub"]
    for name in ("", "page", "pipe", "sub", "link", "null"):
        before, after = os.lstat(source / name), os.lstat(target / name)
        assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid), name
        assert before.st_rdev == after.st_rdev
        assert before.st_mtime == after.st_mtime, name
    assert os.getxattr(target / "page", "user.note") == b"kept"
    assert os.readlink(target / "link") == "/etc/passwd"
    assert os.stat(target / "page").st_ino == os.stat(target / "sub/same").st_ino != os.stat(source / "page").st_ino


@root_only
def test_copy_up_only_into_an_empty_volume(tmp_path: Path, volumes: VolumeService) -> None:
    """What is in a volume is never touched."""
    target = Path(volumes.ensure("data").mountpoint)
    (target / "mine").write_text("mine")
    assert not volumes.is_empty("data")
    volumes.populate("data", str(image(tmp_path)), "/srv/www")
    assert os.listdir(target) == ["mine"]


@root_only
@pytest.mark.parametrize("destination", ["/nothing", "/srv/www/page", "/srv/www/page/x", "/loop"])
def test_a_destination_that_is_no_directory(tmp_path: Path, volumes: VolumeService, destination: str) -> None:
    """There is nothing to copy, and that is no error."""
    rootfs = image(tmp_path)
    (rootfs / "loop").symlink_to("loop")
    target = volumes.ensure("data").mountpoint
    volumes.populate("data", str(rootfs), destination)
    assert os.listdir(target) == []


@root_only
@pytest.mark.parametrize("link", ["/outside", "../../../../../outside", "{outside}"])
def test_copy_up_stays_inside_the_image(tmp_path: Path, volumes: VolumeService, link: str) -> None:
    """A link in the image leads to where it leads inside the image, whatever it says."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    rootfs = image(tmp_path)
    (rootfs / "outside").mkdir()
    (rootfs / "outside/harmless").write_text("harmless")
    (rootfs / "evil").symlink_to(link.format(outside=outside))
    target = volumes.ensure("data").mountpoint
    volumes.populate("data", str(rootfs), "/evil")
    assert "secret" not in os.listdir(target)
    if "{" not in link:
        assert os.listdir(target) == ["harmless"]


@root_only
def test_too_deep_a_tree_is_said(tmp_path: Path, volumes: VolumeService) -> None:
    """A hostile image cannot exhaust the engine's stack or descriptors."""
    directory = tmp_path / "rootfs/deep"
    directory.mkdir(parents=True)
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    volumes.ensure("data")
    with pytest.raises(errors.SystemFailure, match="nested too deeply"):
        volumes.populate("data", str(tmp_path / "rootfs"), "/deep")
