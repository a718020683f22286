"""Leaderboards: groups, statistics against independent ones, published figures, and three files
that say the same; the page also in a headless Chromium, where there is one."""

import base64
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats

from benchmarks.__main__ import _file_name, main
from benchmarks.base import ErrorMesh, Metric, Results, Summary
from benchmarks.metrics import error_curve
from benchmarks.report.boards import LAYOUTS, OURS, PAPER, make_boards, spoken
from benchmarks.report.drawings import MOST_VERTICES, UNKNOWN, coarsened, mesh_scale, packed_mesh
from benchmarks.report.pages import cell_text, tex_escaped, to_markdown, to_tex, write_report
from benchmarks.report.published import PAPERS, published_tables
from benchmarks.report.runs import Found, find_runs, labels
from benchmarks.report.statistics import (
    Figure,
    area_percent,
    mean_curve,
    over_seeds,
    paired_bootstrap,
)
from core.errors import AssetNotFoundError, DataError

AFLW = "All 2000 images"
MICC = (
    "53 subjects. Scan cropped to 95 mm around the nose tip; similarity with a scale for each "
    "mesh; error of each scanned vertex to the face."
)
HOSTILE = "</script><img src=x onerror=alert(1)> & 50% of_it \\input{x} | `$"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium",
                "chromium-browser", "google-chrome"))), None)  # fmt: skip
UNITS = {"percent": "%", "mm": "mm", "255": "0..255", "degrees": "degrees"}


def sphere(points=400, error=1.0):
    """Points on a sphere of 80 mm, joined to some triangles."""
    k = torch.arange(points) + 0.5
    polar, turn = torch.arccos(1 - 2 * k / points), math.pi * (1 + 5**0.5) * k
    xyz = torch.stack([turn.cos() * polar.sin(), turn.sin() * polar.sin(), polar.cos()], -1)
    corners = torch.arange(points - 21)
    triangles = torch.stack([corners, corners + 13, corners + 21], -1)
    return ErrorMesh(80 * xyz, triangles, torch.full((points,), error))


def results(means, benchmark="aflw2000", protocol=AFLW, values=None, **more):
    """Results with these means."""
    units = {name: UNITS[name.rpartition("_")[2]] for name in means}
    table = [
        Metric(name, units[name], name, Summary(mean, 0.5, mean, 10))
        for name, mean in means.items()
    ]
    samples = {} if values is None else {"nme": {f"image{k}": v for k, v in enumerate(values)}}
    return Results(benchmark, protocol, table, 10, per_sample=samples, **more)


def write(root, folder, found, **run):
    """A run's results on disk."""
    return found.with_run(**run).save(root / folder / "benchmarks")[0]


def three_seeds(root, name="cest", offset=0.0, config="a" * 12, **more):
    for seed in (1, 2, 3):
        found = results({"nme_mean_percent": seed + offset}, values=[seed + offset] * 5, **more)
        facts = {"method": f"methods.{name}.{name.upper()}", "config_sha256": config}
        write(root, f"{name}_{seed}", found, seed=seed, weights_sha256=f"{name}{seed}", **facts)


def test_results_survive_the_disk(tmp_path):
    mesh = sphere()
    mesh.error[3] = torch.nan
    curve = error_curve(torch.tensor([1.0, 2.0]), 4.0, 5)
    found = results({"nme_mean_percent": 1.0}, values=[1.0, 2.0], curves={"nme": curve}, note="n")
    found = Results(**{**vars(found), "failures": {"bad": ["x"]}, "meshes": {"a/b": mesh}})
    path = found.save(tmp_path)[0]
    again = Results.load(path)
    assert again.to_json() == found.to_json()
    assert torch.equal(again.meshes["a/b"].vertices, mesh.vertices)
    assert torch.equal(again.meshes["a/b"].triangles, mesh.triangles)
    assert again.meshes["a/b"].error.isnan().nonzero().tolist() == [[3]]
    found = Results(**{**vars(found), "meshes": {}})
    found.save(tmp_path)  # no old meshes stay beside new figures
    assert Results.load(path).meshes == {}
    np.savez(path.with_suffix(".npz"), names=np.array(["a"]), vertices_0=np.zeros((2, 3)))
    with pytest.raises(DataError, match="no mesh 'a'"):
        Results.load(path)


def test_variants_of_a_protocol_stand_side_by_side(tmp_path):
    """The plain name has the latest; the same protocol is replaced, another one set aside."""
    for protocol, value in (("rigid", 1.0), ("scaled", 2.0), ("rigid", 3.0), ("rigid", 4.0)):
        found = results({"nme_mean_percent": value}, protocol=protocol, meshes={"a": sphere()})
        path = write(tmp_path, "run", found, name="x")
        assert Results.load(path).means() == {"nme_mean_percent": value}
        picture = path.with_suffix(".png")
        assert picture.is_file() == (value == 4.0)  # only that of the same protocol has stayed
        picture.write_text(protocol)
    runs = find_runs([str(tmp_path)]).runs
    table = {run.results.protocol: run.results.means()["nme_mean_percent"] for run in runs}
    assert table == {"rigid": 4.0, "scaled": 2.0}
    names = sorted(file.name for file in path.parent.iterdir())
    (aside,) = {name.partition(".")[0] for name in names} - {path.stem}
    assert aside.startswith(f"{path.stem}_")
    ends = (".json", ".md", ".npz", ".png")
    assert {f"{stem}{end}" for stem in (aside, path.stem) for end in ends} == set(names)
    assert (path.parent / f"{aside}.png").read_text() == "scaled"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"mean": 1.0', '"mean": NaN'),
        ('"mean": 1.0', '"mean": "1"'),
        ('"n": 10', '"m": 10'),
        ('"protocol": "', '"protocol": 3, "x": "'),
        ('"run": {', '"run": [], "x": {'),
        ('"image0": 1.0', '"image0": null'),
        ('"metrics": {', '"metrics": [], "y": {'),
    ],
)
def test_what_is_no_result_is_named_and_left_out(tmp_path, old, new):
    good = write(tmp_path, "good", results({"nme_mean_percent": 2.0}), name="good")
    bad = write(tmp_path, "bad", results({"nme_mean_percent": 1.0}, values=[1.0]), name="bad")
    text = bad.read_text()
    assert old in text
    bad.write_text(text.replace(old, new))
    found = find_runs([str(tmp_path)])
    assert [run.path for run in found.runs] == [good]
    assert list(found.left_out) == [str(bad)]
    assert "no results of a benchmark" in found.left_out[str(bad)]


def test_files_are_found_in_folders_and_by_patterns(tmp_path):
    three_seeds(tmp_path / "runs")
    write(tmp_path / "runs/earlier.1", "cest_1", results({"nme_mean_percent": 9.0}), name="old")
    (tmp_path / "runs/cest_1/run.json").write_text('{"method": "x"}')
    (tmp_path / "runs/cest_1/broken.json").write_text('{"benchmark": ')
    (tmp_path / "runs/notes.txt").write_text("no results")
    folder = str(tmp_path / "runs")
    for places in ([folder], [f"{folder}/**"], [f"{folder}/*", folder, f"{folder}/cest_1"]):
        found = find_runs(places)
        assert [run.results.run["seed"] for run in found.runs] == [1, 2, 3]
        assert list(found.left_out) == [f"{folder}/cest_1/broken.json"]
        assert "no JSON" in found.left_out[f"{folder}/cest_1/broken.json"]


def test_nothing_found_says_where_it_looked(tmp_path, capsys):
    with pytest.raises(AssetNotFoundError, match="nowhere"):
        find_runs([str(tmp_path / "nowhere")])
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(AssetNotFoundError, match=r"1 \.json files looked at.*no JSON"):
        find_runs([str(tmp_path)])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "Results of benchmarks not found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_seeds_of_one_config_make_one_line(tmp_path):
    three_seeds(tmp_path)
    write(tmp_path, "other", results({"nme_mean_percent": 5.0}), name="Theirs", predictions="p")
    (board,) = make_boards(find_runs([str(tmp_path)]).runs)
    lines = {row.label: row for row in board.blocks[0].rows if row.kind == OURS}
    assert lines["CEST"].cells == [Figure(2.0, 1.0, 0.5, 3)]  # of 1, 2, 3
    assert lines["CEST"].source == "3 seeds"
    assert lines["Theirs"].cells == [Figure(5.0, None, 0.5, 1)]
    assert [entry.label for entry in board.entries] == ["CEST", "Theirs"]  # the better one first


def test_a_figure_that_one_seed_lacks_has_no_mean():
    found = [results({"nme_mean_percent": 1.0}), results({"nme_all_percent": 1.0})]
    assert over_seeds(found, "nme_mean_percent") is None


def test_different_settings_are_different_lines(tmp_path):
    three_seeds(tmp_path / "a", config="a" * 12)
    three_seeds(tmp_path / "b", config="b" * 12, offset=1.0)
    for number in (1, 2):  # of old results nothing but the folder is known
        write(
            tmp_path,
            f"old_{number}",
            results({"nme_mean_percent": 7.0}),
            method="methods.cest.CEST",
        )
    runs = find_runs([str(tmp_path)]).runs
    names = labels(runs)
    assert len(set(names.values())) == len(names) == 4
    (board,) = make_boards(runs)
    assert sorted(len(entry.runs) for entry in board.entries) == [1, 1, 3, 3]


def test_settings_come_from_the_config_where_results_lack_them(tmp_path):
    for seed in (1, 2):
        write(
            tmp_path, f"run{seed}", results({"nme_mean_percent": 1.0}), method="methods.cest.CEST"
        )
        config = {"seed_everything": seed, "model": {"lr": 1}}
        (tmp_path / f"run{seed}/config.yaml").write_text(yaml.safe_dump(config))
    (board,) = make_boards(find_runs([str(tmp_path)]).runs)
    (entry,) = board.entries
    assert [run.facts["seed"] for run in entry.runs] == [1, 2]


def test_of_duplicates_the_newest_counts(tmp_path):
    three_seeds(tmp_path)
    facts = {"method": "methods.cest.CEST", "config_sha256": "a" * 12, "seed": 2}
    newer = write(tmp_path, "again", results({"nme_mean_percent": 2.5}), **facts)
    old = tmp_path / "cest_2/benchmarks/aflw2000.json"
    os.utime(old, (1, 1))
    found = find_runs([str(tmp_path)])
    assert newer in [run.path for run in found.runs]
    assert list(found.left_out) == [str(old)]
    assert "seed 2" in found.left_out[str(old)]
    (board,) = make_boards(found.runs)
    assert board.entries[0].runs[1].results["nme_mean_percent"].value.mean == 2.5


def test_different_protocols_never_share_a_table(tmp_path):
    three_seeds(tmp_path)
    some = results({"nme_mean_percent": 1.0}, protocol="The subset 'x.txt' 8 images")
    write(tmp_path, "some", some, name="Some")
    boards = make_boards(find_runs([str(tmp_path)]).runs)
    assert [b.title for b in boards] == [
        "AFLW2000-3D, landmarks, protocol 1",
        "AFLW2000-3D, landmarks, protocol 2",
    ]
    whole, subset = boards
    assert [entry.label for entry in whole.entries] == ["CEST"]
    assert [entry.label for entry in subset.entries] == ["Some"]
    assert PAPER in [row.kind for row in whole.blocks[0].rows]
    assert PAPER not in [row.kind for row in subset.blocks[0].rows]  # another variant
    assert "All 2000 images" in subset.blocks[1].differs


def test_published_figures_of_other_protocols_stand_apart(tmp_path):
    means = {f"{key}_rmse_mm": 3.0 for key in ("cooperative", "indoor", "outdoor")}
    write(tmp_path, "ours", results(means, "micc", MICC), name="Ours")
    (board,) = make_boards(find_runs([str(tmp_path)]).runs)
    assert [row.label for row in board.blocks[0].rows] == ["Ours"]
    assert board.blocks[0].best == [None] * 3  # nothing to be better than
    first = board.blocks[1]
    assert "forehead" in first.differs
    assert first.rows[0].label == "Deng et al."
    assert first.rows[0].cells[2] == Figure(1.69, over_samples=0.53)
    ((_, columns, other),) = board.separate  # of metrics that ours do not have
    assert [column.metric for column in columns] == ["cooperative_mean_mm", "indoor_mean_mm"]
    assert other.rows[0].label == "PGN"


def test_names_of_methods_become_folders():
    assert _file_name("Deng et al. / 2019") == "Deng_et_al._2019"
    assert _file_name("..") == _file_name("///") == "unnamed"


def test_unknown_benchmarks_and_metrics_where_more_is_better(tmp_path):
    for name, value in (("A", 60.0), ("B", 80.0)):
        table = [Metric("coverage_percent", "%", "seen", Summary(value, 1.0, value, 3), {}, True)]
        write(tmp_path, name, Results("new", "p", table, 3), name=name)
    (board,) = make_boards(find_runs([str(tmp_path)]).runs)
    assert board.title == "new"
    assert [row.label for row in board.blocks[0].rows] == ["B", "A"]
    assert board.blocks[0].best == [80.0]


def test_variants_of_a_benchmark_are_shown_like_it(tmp_path):
    """And not a benchmark whose name begins alike: aflw2000_dense, or one without these metrics."""
    values = {"nme_percent": 2.0, "shape_mm": 1.0, "something_mm": 3.0}
    for name in ("synthetic", "synthetic_5_frames"):
        write(tmp_path, name, results(values, name), name="A")
    write(tmp_path, "swap", results({"something_mm": 3.0}, "synthetic_swap"), name="A")
    write(tmp_path, "dense", results({"icp_nme_all_percent": 3.0}, "aflw2000_dense"), name="A")
    boards = {board.title: board for board in make_boards(find_runs([str(tmp_path)]).runs)}
    assert set(boards) == {
        "Synthetic faces",
        "Synthetic faces, 5 frames",
        "synthetic_swap",
        "AFLW2000-3D, dense",
    }
    for title in ("Synthetic faces", "Synthetic faces, 5 frames"):
        assert [c.title for c in boards[title].columns] == ["NME", "shape"]


def test_the_bootstrap_agrees_with_scipy():
    random = np.random.default_rng(3)
    first = random.gamma(2.0, 1.0, 200)
    second = first + random.normal(0.1, 0.5, 200)
    found = paired_bootstrap(*({f"i{k}": x for k, x in enumerate(v)} for v in (first, second)))
    assert found.mean == pytest.approx((second - first).mean(), abs=1e-12)
    other = stats.bootstrap(
        (second - first,), np.mean, n_resamples=20000, method="percentile", random_state=5
    ).confidence_interval
    error = (second - first).std(ddof=1) / math.sqrt(200)
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.08 * error)
    closed = [found.mean - 1.96 * error, found.mean + 1.96 * error]
    assert (found.low, found.high) == pytest.approx(closed, abs=0.12 * error)
    assert (found.samples, found.people) == (200, 200)


def test_the_bootstrap_draws_people_not_frames():
    random = np.random.default_rng(0)
    people = random.normal(0.1, 1.0, 40)
    frames = {f"p{k}/f{j}": x for k, x in enumerate(people) for j in range(25)}
    single = {f"p{k}": x for k, x in enumerate(people)}
    wide = paired_bootstrap(dict.fromkeys(frames, 0.0), frames)
    same = paired_bootstrap(dict.fromkeys(single, 0.0), single)
    assert (wide.low, wide.high) == pytest.approx((same.low, same.high))  # 25 copies tell nothing
    assert (wide.samples, wide.people) == (1000, 40)
    assert wide.verdict == "not significant"


def test_a_constant_difference_is_certain_and_few_samples_are_none():
    first = {f"i{k}": float(k) for k in range(9)}
    found = paired_bootstrap(first, {name: value + 2 for name, value in first.items()} | {"x": 0.0})
    assert (found.mean, found.low, found.high, found.samples) == (2.0, 2.0, 2.0, 9)
    assert found.verdict == "significant"
    few = {name: first[name] for name in list(first)[:5]}
    assert paired_bootstrap(few, dict.fromkeys(few, 0.0)).verdict == "too few to tell"
    assert paired_bootstrap(first, {"i1": 2.0, "i77": 1.0}) is None


def test_curves_and_areas_against_numpy():
    errors = torch.rand(500, generator=torch.Generator().manual_seed(0)).double() * 8
    errors[:5] = torch.nan  # failures lower the curve
    curve = np.array(error_curve(errors, 10.0))
    below = np.searchsorted(np.sort(errors[5:].numpy()), curve[:, 0], side="right")
    np.testing.assert_allclose(curve[:, 1], 100 * below / 500, atol=1e-9)
    exact = 100 * np.clip(1 - errors[5:].numpy() / 10, 0, 1).sum() / 500  # of the step function
    assert area_percent(curve) == pytest.approx(exact, abs=0.5)
    line = np.stack([np.linspace(0, 4, 9), np.linspace(0, 100, 9)], 1)
    assert area_percent(line) == pytest.approx(50)
    runs = [results({}, curves={"nme": (line * [1, k]).tolist()}) for k in (0.5, 1.0)]
    np.testing.assert_allclose(mean_curve(runs, "nme"), line * [1, 0.75])
    assert mean_curve([*runs, results({})], "nme") is None
    assert mean_curve([runs[0], results({}, curves={"nme": (line * 2).tolist()})], "nme") is None


def test_every_published_figure_is_complete():
    tables = published_tables()
    assert len({table.benchmark for table in tables}) >= 6
    for table in tables:
        assert len(table.protocol) > 30
        assert table.rows
        for row in table.rows:
            assert row.method
            assert re.match(r"(PGN|CEST|FML|Deng|MGCNet|the code's readme)\b", row.source), row
            assert row.figures
            for metric, figure in row.figures.items():
                assert metric in table.titles
                assert UNITS[metric.rpartition("_")[2]] == table.unit
                assert 0 < figure.mean < 100
                assert figure.over_samples is None or 0 < figure.over_samples < figure.mean
    keys = {key for entry in yaml.safe_load(PAPERS.read_text()) for key in entry}
    assert keys == {"benchmark", "unit", "metrics", "protocol", "differs", "requires", "rows"}


def test_published_metrics_are_shown_by_the_layouts():
    for table in published_tables():
        if table.benchmark in LAYOUTS and "mean" not in next(iter(table.titles)).split("_"):
            assert set(table.titles) <= set(LAYOUTS[table.benchmark].columns), table.benchmark


def test_figures_are_printed_as_the_papers_print_them():
    printed = {
        (table.benchmark, row.method, row.source, *cell_text(figure))
        for table in published_tables()
        for row in table.rows
        for figure in row.figures.values()
    }
    assert ("aflw2000", "PGN (landmarks)", "PGN Fig. 3a", "3.30", "") in printed
    assert ("micc", "MVF", "PGN Tab. 1", "1.220", "σ 0.247") in printed
    assert ("micc", "Tran et al.", "MGCNet Tab. 1b", "2.00", "σ 0.55") in printed
    assert cell_text(Figure(3.14159, 0.126, 1.0, 3)) == ("3.14 ± 0.13", "σ 1.00")
    assert cell_text(None) == ("–", "")


def test_meshes_are_packed_for_the_page():
    mesh = sphere(error=1.5)
    mesh.error[0], mesh.error[1] = torch.nan, 9.0
    packed = packed_mesh(mesh, 3.0)
    raw = {key: base64.b64decode(text) for key, text in packed.items()}
    positions = np.frombuffer(raw["positions"], "<i2").reshape(-1, 3) / 32767
    vertices = mesh.vertices.numpy()
    middle = (vertices.min(0) + vertices.max(0)) / 2
    radius = np.linalg.norm(vertices - middle, axis=1).max()
    used = np.unique(mesh.triangles)
    np.testing.assert_allclose(positions * radius + middle, vertices[used], atol=0.01)
    assert len(raw["triangles"]) == 2 * mesh.triangles.numel()
    levels = np.frombuffer(raw["error"], np.uint8)
    assert levels[:3].tolist() == [UNKNOWN, 254, 127]
    assert mesh_scale([mesh]) == 1.5


def test_large_meshes_become_coarser_at_the_same_place():
    mesh = sphere(60_000)
    vertices, triangles, error = coarsened(mesh)
    assert 1000 < len(vertices) <= MOST_VERTICES
    assert triangles.max() < len(vertices)
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 80, atol=0.5)
    np.testing.assert_allclose(error, 1.0)
    cloud = ErrorMesh(mesh.vertices, torch.zeros(0, 3).long(), mesh.error)
    assert 1000 < len(coarsened(cloud)[0]) <= MOST_VERTICES


class Page(HTMLParser):
    """Tags of a page; ``open`` is empty if all were closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """All that a report can show, with names that want to be more than names."""
    root = tmp_path_factory.mktemp("runs")
    curve = {"nme": error_curve(torch.tensor([1.0, 2.0, 3.0]), 5.0)}
    three_seeds(root, curves=curve, meshes={f"a/{HOSTILE}": sphere(error=2.0)})
    pictures = root / "cest_1/pictures"
    pictures.mkdir()
    (pictures / "step_000200.png").write_bytes(b"no picture")
    Image.fromarray(np.full((40, 1200, 3), 99, np.uint8)).save(pictures / "step_000100.png")
    theirs = results({"nme_mean_percent": 4.0}, values=[4.0, 5.0, 6.0, 3.0, 4.0], note=HOSTILE,
                     curves=curve, failures={HOSTILE: ["x"]})  # fmt: skip
    write(root, "theirs", theirs, name=HOSTILE, predictions=HOSTILE)
    means = {"cooperative_rmse_mm": 3.0, "indoor_rmse_mm": 3.5}
    write(root, "micc", results(means, "micc", f"{MICC} {HOSTILE}"), name="Ours")
    (root / "broken.json").write_text("{")
    out = root.parent / "out"
    files = write_report(find_runs([str(root)]), out)
    assert [path.name for path in files] == ["index.html", "report.md", "report.tex"]
    return out


def test_the_page_is_whole_and_loads_nothing(report):
    text = (report / "index.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    page = Page(text)
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 + 1  # the viewer's and a mesh's
    assert tags.count("canvas") == 1
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert HOSTILE in page.text
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1  # the last one that can be read, and smaller
    assert images[0].startswith("data:image/jpeg;base64,")
    assert "broken.json" in page.text
    assert "Not comparable" in page.text


def test_all_three_files_have_the_same_figures(report):
    page = Page((report / "index.html").read_text()).text
    markdown, tex = ((report / f"report.{end}").read_text() for end in ("md", "tex"))
    for text in ("2.00 ± 1.00", "4.00", "3.20", "3.34", "3.50"):
        assert text in page
        assert text in markdown
        assert text.replace("±", "$\\pm$") in tex
    assert "+2.400" in page  # 4.4 - 2
    assert "+2.400" in markdown


def test_the_latex_is_well_formed(report):
    text = (report / "report.tex").read_text()
    plain = re.sub(r"\\[&%$#_{}\\]", "", text)
    depth = 0
    for sign in plain:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    for table in text.split("\\begin{table}")[1:]:
        columns = len(re.search(r"\\begin{tabular}{(\w+)}", table)[1])
        for line in table.splitlines():
            if line.endswith("\\\\") and "multicolumn" not in line:
                assert len(re.split(r"(?<!\\)&", line)) == columns, line
        assert table.count("\\toprule") == table.count("\\bottomrule") == 1
    assert "\\input" not in text


TEX_COMMANDS = {"usepackage", "begin", "end", "centering", "toprule", "midrule", "bottomrule"}
TEX_COMMANDS |= {"multicolumn", "linewidth", "emph", "textbf", "caption", "label", "textbackslash"}
TEX_COMMANDS |= {"textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
TEX_COMMANDS |= {"pm", "sigma", "circ", "cdot", "uparrow", "times"}


def test_the_latex_of_every_board_needs_no_package_but_booktabs(tmp_path):
    """No LaTeX is asked for here: plain ASCII, known commands, and no row that begins with what
    ends of rows take for their argument."""
    for k, (name, layout) in enumerate(LAYOUTS.items()):
        for label in (f"[{k}] first", f"*{k}"):
            found = results(dict.fromkeys(layout.columns, 1.0 + k), name, f"{AFLW}, 3 × 5 poses")
            write(tmp_path, f"{name}{label[0]}", found, name=label, predictions=label)
    boards = make_boards(find_runs([str(tmp_path)]).runs)
    text = to_tex(boards, Found([], {}))
    assert text.isascii()
    assert set(re.findall(r"\\([A-Za-z]+)", text)) <= TEX_COMMANDS
    assert not re.search(r"\\\\\s*[\[*]", text)
    assert "{[}0] first" in text
    assert text.count("\\begin{table}") >= len(LAYOUTS)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_itself_takes_every_board(report, tmp_path):
    head = "\\documentclass{article}\n\\IfFileExists{booktabs.sty}{\\usepackage{booktabs}}"
    head += "{\\let\\toprule\\hline\\let\\midrule\\hline\\let\\bottomrule\\hline}\n"
    body = (report / "report.tex").read_text()
    text = f"{head}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(text)
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-2000:]
    assert "multiply defined" not in found.stdout


def test_latex_escapes():
    assert tex_escaped("50% & a_b #1 {x}") == "50\\% \\& a\\_b \\#1 \\{x\\}"
    assert tex_escaped("a\\b~c^d") == "a\\textbackslash{}b\\textasciitilde{}c\\textasciicircum{}d"
    assert tex_escaped("1 ±\n2") == "1 $\\pm$ 2"


def test_hostile_names_stay_in_their_cell_of_markdown(report):
    lines = (report / "report.md").read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("| method"))
    table = [line for line in lines[start : start + 30] if line.startswith("|")]
    for line in table[: table.index(next(x for x in table if "PRN" in x))]:
        assert len(re.split(r"(?<!\\)\|", line)) == len(re.split(r"(?<!\\)\|", table[0]))
    assert "<img" not in "\n".join(lines).replace("\\<", "")


def test_a_report_that_cannot_be_written_is_told(tmp_path, capsys):
    write(tmp_path, "x", results({"nme_mean_percent": 1.0}), name="X")
    (tmp_path / "file").touch()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "the report cannot be written to" in capsys.readouterr().err


def test_reports_without_anything_but_figures(tmp_path):
    write(tmp_path, "x", results({"nme_mean_percent": 1.0}), name="X")
    found = find_runs([str(tmp_path)])
    boards = make_boards(found.runs)
    assert boards[0].comparisons == []
    assert "X" in to_markdown(boards, found)
    assert "left out" not in to_tex(boards, Found(found.runs, {}))
    out = tmp_path / "out"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    page = Page((out / "index.html").read_text())
    assert "canvas" not in [tag for tag, _ in page.tags]


PROBE = """<script>
const problems = [];
for (const kind of ["error", "warn"]) console[kind] = (...x) => problems.push(kind + x.join(" "));
addEventListener("error", (e) => problems.push(e.message || "not loaded: " + e.target.src), true);
addEventListener("load", () => {
  const pixels = (c) => c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  const canvas = document.querySelector("canvas");
  const before = pixels(canvas);
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  const after = pixels(canvas);
  const found = {
    problems,
    fetched: performance.getEntriesByType("resource").map((x) => x.name)
      .filter((x) => !x.startsWith("data:")),
    drawn: before.filter((x, k) => k % 4 === 3 && x > 0).length / (canvas.width * canvas.height),
    turned: before.some((x, k) => x !== after[k]),
    overflow: document.documentElement.scrollWidth - innerWidth,
    images: [...document.images].map((x) => x.naturalWidth),
  };
  document.body.innerHTML = "";
  document.body.append("found" + JSON.stringify(found) + "end");
});
</script>"""


def test_names_of_metrics_are_written_out_with_their_units():
    found = [results({"nme_all_percent": 1.0, "cooperative_rmse_mm": 2.0})]
    assert spoken("cooperative_rmse_mm", found) == "cooperative RMSE, mm"
    assert spoken("photometric_rgb_255", found) == "photometric RGB, 0..255"
    assert spoken("nme", found) == "NME, %"  # as its parts
    assert spoken("something_new", found) == "something new"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_draws_the_page_without_complaint(report, tmp_path, width):
    page = (report / "index.html").read_text().replace("<head>", f"<head>{PROBE}", 1)
    (tmp_path / "probe.html").write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--use-angle=swiftshader", "--dump-dom"]
    command += ["--enable-unsafe-swiftshader", f"--window-size={width},900"]
    command += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    (text,) = re.findall(r"<body>found(.*?)end</body>", done.stdout, re.DOTALL)
    found = json.loads(text)
    assert found["problems"] == []
    assert found["fetched"] == []
    assert found["drawn"] > 0.3
    assert found["turned"]
    assert found["overflow"] <= 0
    assert found["images"] == [960]
