"""Names of containers: which are allowed, and those that a container gets when its user gives none."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

from dockerd import errors

__all__ = ["candidates", "check_name"]

_ALLOWED = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_PATTERN = re.compile(r"/?[a-zA-Z0-9][a-zA-Z0-9_.-]+")

_MANNERS = """
able airy amber ample apt awake balmy brave breezy bright brisk busy calm candid chatty cheery civil clear
clever cosy crisp curious dapper daring deft eager early earnest even fair fleet fluent fond frank free fresh
frosty gentle glad golden grand handy hardy hasty honest humble jaunty jolly keen kind lively loyal lucid lucky
mellow merry mild mindful modest neat nimble noble patient placid plucky polite prompt proud quick quiet ready
robust rosy rustic serene sharp shiny silent sleek smooth snug sober sound spry stable steady still stout sunny
sure swift tame tidy tranquil trusty upbeat vivid warm wise witty zesty
"""

_THINGS = """
abacus alcove anchor anvil arbor arch atlas awning barge basin beacon bellows bobbin bridge brook buoy cabin
cairn canal canoe canopy capstan cask chisel cistern clock comet compass copper cove crane creek crest delta
derrick dock dune easel estuary fender ferry fjord flint forge fountain gable galley garnet gimbal glacier
gondola grove gully hammock harbor hatch haven hearth hedge helm hinge hull inlet island jetty kayak keel kiln
kite lagoon lantern lathe ledge lever lighthouse lock loom mast meadow mill mooring nook oar orchard outrigger
paddle pallet pebble pier pilot plank plough portal prairie pulley quarry quay raft reef ridge rigging rudder
saddle schooner sextant shed ship shoal shore skiff slate sluice spindle spire spool spring steppe stern strait
summit tarn tender terrace thicket tide tiller timber tower trellis trestle tug tundra turbine valley vault
viaduct vista warp weir wharf wheel willow winch windlass yard yawl
"""


def check_name(name: str) -> str:
    """The name without its leading slash. Raises InvalidParameter naming what is allowed."""
    if not _PATTERN.fullmatch(name):
        raise errors.InvalidParameter(f"Invalid container name ({name}), only {_ALLOWED} are allowed")
    return name.removeprefix("/")


def candidates() -> Iterator[str]:
    """Names to try, without end: two words, after some tries with a number behind them."""
    attempt = 0
    while True:
        name = f"{secrets.choice(_MANNERS.split())}_{secrets.choice(_THINGS.split())}"
        yield name if attempt < 6 else f"{name}{secrets.randbelow(10 ** min(attempt - 4, 9))}"
        attempt += 1
