"""The house: rooms whose imports run one way, without a circle; lazy and type-only ones count."""

import grimp
import networkx
import pytest

# A room imports of those below it only; rooms in one line do not know each other.
FLOORS = (
    {"cli"},
    {"study", "analyse"},
    {"report"},
    {"compare"},
    {"evaluate", "launch"},
    {"train", "planted"},
    {"checkpoint"},
    {"settings", "measure"},
    {"operator", "data"},
    {"detection", "embedded"},
    {"decoder"},
    {"terminal"},
    {"distributed", "files"},
    {"errors", "version"},
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("wemask", cache_dir=None)


def test_every_room_has_its_floor(graph: grimp.ImportGraph) -> None:
    rooms = {name.removeprefix("wemask.") for name in graph.find_children("wemask")}
    assert rooms == set().union(*FLOORS)


def test_imports_run_downwards(graph: grimp.ImportGraph) -> None:
    floors = [grimp.Layer(*sorted(rooms), independent=True) for rooms in FLOORS]
    against = graph.find_illegal_dependencies_for_layers(floors, containers={"wemask"})
    assert not [(found.importer, found.imported) for found in against]


def test_no_circle(graph: grimp.ImportGraph) -> None:
    imports = networkx.DiGraph(
        (module, imported)
        for module in graph.modules - {"wemask"}  # which hands names on, when they are asked for
        for imported in graph.find_modules_directly_imported_by(module) - {"wemask"}
    )
    circles = networkx.strongly_connected_components(imports)
    assert not [circle for circle in circles if len(circle) > 1]
