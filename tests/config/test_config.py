"""reid/config/schema.py: YAML and flags, what is refused and how, and a line of documentation for every knob."""

import ast
import inspect
from dataclasses import fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from reid.config import (
    Config,
    EvaluateConfig,
    LossConfig,
    OptimConfig,
    check,
    check_evaluation,
    load,
    make_parser,
    parse,
    save,
    schema,
    to_dict,
)

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "sweeps" not in path.parts)


@cache
def shipped(path: Path) -> Config:
    return parse(Config, [f"--config={path}"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_pass_the_checks(path):
    check(shipped(path), world_size=1)


# Every number of the published recipe (Luo et al., 2019; Wieczorek et al., 2021), and below where a config differs.
RECIPE = {
    "data.height": 256, "data.width": 128, "batch.identities": 16, "batch.images": 4, "batch.streams": "auto",
    "batch.short": "keep", "augment.flip": 0.5, "augment.pad": 10, "augment.erase": 0.5,
    "augment.erase_area": (0.02, 0.4), "augment.rotate_degrees": 0.0, "augment.scale": 0.0,
    "model.encoder": "resnet50", "model.weights": "imagenet", "model.last_stride": 1, "model.stem_stride": 4,
    "model.pool": "gap", "model.head": "linear", "model.norm": "batch", "model.sync_batchnorm": False,
    "model.frozen_epochs": 0, "model.drop_path": None,
    "loss.cross_entropy": 1.0, "loss.smoothing": 0.1, "loss.triplet": 1.0,
    "loss.triplet_margin": 0.3, "loss.triplet_scope": "local", "loss.quadruplet": 0.0, "loss.mctl": 1.0,
    "loss.ctl": 0.0, "loss.w1": 0.3, "loss.w2": None, "loss.margin": 1.414, "loss.reading": "paper",
    "loss.space": "neck", "loss.triplet_space": "neck", "loss.circle": 0.0, "loss.contrastive": 0.0,
    "loss.multi_similarity": 0.0, "loss.angular_margin": 0.0, "loss.cosine_margin": 0.0,
    "loss.center": 5e-4, "loss.center_lr": 0.5, "optim.algorithm": "adam", "optim.lr": 3.5e-4,
    "optim.lr_rule": "none", "optim.head_lr_factor": 1.0, "optim.bias_lr_factor": 1.0, "optim.weight_decay": 5e-4,
    "optim.decay_norm": True, "optim.epochs": 120, "optim.schedule": "milestones", "optim.milestones": [40, 70],
    "optim.gamma": 0.1, "optim.warmup_epochs": 10, "optim.warmup_factor": 0.01, "optim.clip_norm": 0.0,
    "optim.layer_decay": 1.0, "optim.nesterov": False, "optim.ema": 0.0,
}  # fmt: skip
RECIPES = {
    "market1501": {"data.root": "data/market1501"},
    "dukemtmc": {"data.root": "data/dukemtmc"},
    "msmt17": {"data.root": "data/msmt17"},
    "cuhk03": {"data.root": "data/cuhk03"},
    "veri776": {"data.root": "data/veri776", "data.width": 256},
    "baselines/bot": {
        "data.root": "data/market1501", "loss.mctl": 0.0, "loss.triplet_space": "raw", "loss.triplet_margin": 0.3,
        "batch.short": "repeat",
    },
    "baselines/ctl": {
        "data.root": "data/market1501", "loss.mctl": 0.0, "loss.ctl": 1.0, "loss.reading": "rounds", "loss.margin": 0.5,
        "loss.triplet_space": "raw", "loss.triplet_margin": 0.5,
        "loss.space": "raw",
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_hold_the_published_numbers(recipe):
    config = shipped(ROOT / "configs" / f"{recipe}.yaml")
    found = {
        name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in RECIPE | RECIPES[recipe]
    }
    assert found == RECIPE | RECIPES[recipe]
    assert config.name == Path(recipe).name


@pytest.mark.parametrize("recipe", ["resnet50_ibn", "vit_s", "swin_s"])
def test_recipes_on_top_of_a_dataset(recipe):
    """The dataset keeps its name, shards and objective; the recipe sets knobs of other sections, so it fits each."""
    folder = ROOT / "configs" / "recipes"
    files = [ROOT / "configs" / "msmt17.yaml", folder / f"{recipe}.yaml", folder / "384x128.yaml"]
    assert yaml.safe_load(files[1].read_text()).keys() == {"model", "optim"}
    dataset, own, size = map(shipped, files)
    config = parse(Config, [f"--config={file}" for file in files])
    check(config, world_size=1)
    assert config.data == replace(dataset.data, height=size.data.height, width=size.data.width)
    assert (config.name, config.loss, config.batch) == (dataset.name, dataset.loss, dataset.batch)
    assert (config.model.encoder, config.optim) == (own.model.encoder, replace(own.optim, milestones=[40, 70]))


def write(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_flags_override_yaml_and_yaml_the_defaults(tmp_path):
    path = write(tmp_path / "x.yaml", name="mine", loss={"w1": 0.3, "margin": 2.0}, optim={"milestones": [3]})
    config = parse(Config, [f"--config={path}", "--loss.w1=0.2", "--augment.erase_area=[0.1,0.2]"])
    assert (config.loss.w1, config.loss.margin, config.name, config.optim.milestones) == (0.2, 2.0, "mine", [3])
    assert config.augment.erase_area == (0.1, 0.2)
    assert config.loss.mctl == Config().loss.mctl
    assert config.batch == Config().batch


def test_no_arguments_give_the_defaults():
    assert parse(Config, []) == Config()
    assert parse(EvaluateConfig, []) == EvaluateConfig()


def test_null_and_later_flags():
    config = parse(Config, ["--loss.triplet_margin=null", "--loss.w2=0.5", "--loss.w2=0.25"])
    assert config.loss.triplet_margin is None and config.loss.w2 == 0.25


def refusal(args: list[str], capsys: pytest.CaptureFixture[str], kind: type = Config) -> str:
    """What the program says as it ends."""
    with pytest.raises(SystemExit) as error:
        parse(kind, args)
    assert error.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--loss.margn=1", "loss.margin"),
        ("--batch.identites=8", "batch.identities"),
        ("--lr=1", "optim.lr"),
        ("--data.heigth=3", "data.height"),
        ("--nme=x", "name"),
    ],
)
def test_an_unknown_flag_names_the_nearest_knob(capsys, flag, nearest):
    text = refusal([flag], capsys)
    assert flag in text
    assert f"nearest known knob is --{nearest}" in text


def test_an_unknown_flag_of_the_evaluation(capsys):
    assert "nearest known knob is --run;" in refusal(["--rum=x"], capsys, EvaluateConfig)


@pytest.mark.parametrize(
    ("values", "unknown", "nearest"),
    [
        ({"loss": {"margn": 1}}, "margn", "loss.margin"),
        ({"batch": {"identities": 8, "imges": 2}}, "imges", "batch.images"),
        ({"losses": {"w1": 1}}, "losses", "loss."),
        ({"sed": 1}, "sed", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest_knob(tmp_path, capsys, values, unknown, nearest):
    text = refusal([f"--config={write(tmp_path / 'x.yaml', **values)}"], capsys)
    assert unknown in text
    assert f"nearest known knob is --{nearest}" in text


@pytest.mark.parametrize(
    ("flag", "value"),
    [("loss.w1", "high"), ("batch.short", "drop"), ("batch.images", "2.5"), ("model.last_stride", "3")],
)
def test_a_value_of_a_wrong_type_names_the_knob(capsys, flag, value):
    text = refusal([f"--{flag}={value}"], capsys)
    assert flag in text and value in text
    assert "nearest known knob" not in text


def test_a_config_file_that_is_not_there(capsys):
    assert "nowhere.yaml" in refusal(["--config=nowhere.yaml"], capsys)


def changed(**knobs) -> Config:
    """The defaults with some knobs, `section__knob=value`."""
    config = Config()
    sections: dict[str, dict[str, object]] = {}
    for name, value in knobs.items():
        section, knob = name.split("__")
        sections.setdefault(section, {})[knob] = value
    return replace(config, **{name: replace(getattr(config, name), **knobs) for name, knobs in sections.items()})


@pytest.mark.parametrize(
    ("knobs", "world_size", "words"),
    [
        (
            {"batch__identities": 20, "batch__streams": 8},
            1,
            r"identities = 20 does not divide among batch\.streams = 8; use one of 1, 2, 4, 5, 10, 20 streams",
        ),
        ({"batch__streams": 8}, 3, r"streams = 8 does not divide among 3 ranks; use a multiple of 3 .*1, 2, 4, 8 proc"),
        ({"batch__streams": 4}, 8, r"batch\.streams = 4 does not divide among 8 ranks"),
        (
            {"batch__ranks": 6},
            4,
            r"batch\.ranks = 6 is not a multiple of the 4 processes; use .* launch 1, 2, 3, 6 proc",
        ),
        ({"batch__ranks": 4}, 8, r"batch\.ranks = 4 is not a multiple of the 8 processes"),
        (
            {"batch__ranks": 16, "batch__streams": 8},
            1,
            r"streams = 8 does not divide among 16 ranks; .* set batch\.ranks to one of 1, 2, 4, 8",
        ),
        ({"batch__ranks": 3, "batch__streams": 8}, 1, r"streams = 8 does not divide among 3 ranks"),
        ({"batch__ranks": 3}, 1, r"identities = 16 does not divide among 3 ranks; .*batch\.ranks to one of 1, 2, 4, 8"),
        ({}, 3, r"identities = 16 does not divide among 3 ranks; use a multiple of 3, or launch 1, 2, 4, 8, 16 proc"),
        ({"data__root": []}, 1, r"data\.root = \[\]: give the folder of shards, or a list"),
        ({"data__root": ["a", ""]}, 1, r"data\.root = \['a', ''\]: give the folder"),
        ({"data__root": ["a", "b"], "batch__shares": []}, 1, r"shares = \[\] are 0 together, not .* = 16; .* null"),
        ({"data__root": ["a", "b"], "batch__shares": [8, 4]}, 1, r"shares = \[8, 4\] are 12 together, not .* = 16"),
        ({"data__root": ["a", "b"], "batch__shares": [16, 0]}, 1, r"batch\.shares = 0 must be at least 1"),
        ({"data__root": ["a", "b"], "batch__shares": [8, 4, 4]}, 1, r"give one number for each of the 2 datasets"),
        ({"batch__shares": [8, 8]}, 1, r"shares = \[8, 8\]: give one number for each of the 1 datasets"),
        ({"data__root": ["a", "b"], "batch__identities": 1}, 1, r"identities = 1: give at least one .* the 2 datasets"),
        ({"data__workers": -1}, 1, r"data\.workers = -1 must be"),
        ({"batch__ranks": 8, "batch__identities": 8, "batch__images": 1}, 1, r"give 8 rank\(s\) one image each"),
        ({"batch__identities": 0}, 1, r"batch\.identities = 0 must be at least 1"),
        ({"batch__streams": 0}, 1, r"batch\.streams = 0"),
        ({"batch__images": 0}, 1, r"batch\.images = 0"),
        ({"data__height": 0}, 1, r"data\.height = 0"),
        ({"optim__epochs": 0}, 1, r"optim\.epochs = 0"),
        ({"track__keep_checkpoints": 0}, 1, r"track\.keep_checkpoints = 0"),
        ({"track__every_steps": 0}, 1, r"track\.every_steps = 0"),
        ({"augment__flip": 1.5}, 1, r"augment\.flip = 1\.5 lies outside \[0, 1\]"),
        ({"augment__erase": -0.1}, 1, r"augment\.erase = -0\.1"),
        ({"loss__w1": 2.0}, 1, r"loss\.w1 = 2\.0"),
        ({"loss__margin": 0.0}, 1, r"loss\.margin = 0\.0 must be greater than 0"),
        ({"loss__triplet_margin": -1.0}, 1, r"loss\.triplet_margin = -1\.0"),
        ({"loss__w2": -0.5}, 1, r"loss\.w2 = -0\.5 must be a finite number, 0 or more"),
        ({"loss__w2": float("nan")}, 1, r"loss\.w2 = nan"),
        ({"loss__margin": float("inf")}, 1, r"loss\.margin = inf must be greater than 0, and finite"),
        ({"optim__lr": float("inf")}, 1, r"optim\.lr = inf"),
        ({"batch__images": 1}, 1, r"batch\.images = 1 leaves loss\.triplet without a second image"),
        ({"batch__images": 1, "batch__identities": 8}, 8, r"give 8 rank\(s\) one image each"),
        ({"optim__lr": float("nan")}, 1, r"optim\.lr = nan"),
        ({"optim__reference_identities": 0}, 1, r"optim\.reference_identities = 0 must be at least 1"),
        ({"optim__head_lr_factor": 0.0}, 1, r"optim\.head_lr_factor = 0\.0 must be greater than 0"),
        ({"optim__bias_lr_factor": -1.0}, 1, r"optim\.bias_lr_factor = -1\.0"),
        ({"optim__momentum": 1.5}, 1, r"optim\.momentum = 1\.5 lies outside"),
        ({"model__drop_path": 1.0}, 1, r"model\.drop_path = 1\.0 would always leave out the last block; give less"),
        ({"optim__layer_decay": 0.0}, 1, r"optim\.layer_decay = 0\.0 must be greater than 0, and at most 1"),
        (
            {"optim__nesterov": True},
            1,
            r"nesterov = true is for SGD .* it is adam, .* set optim\.algorithm = sgd",
        ),
        ({"model__head_temperature": 0.0}, 1, r"model\.head_temperature = 0\.0 must be greater than 0"),
        ({"model__frozen_epochs": -1}, 1, r"model\.frozen_epochs = -1 must be a finite number, 0 or more"),
        (
            {"model__frozen_epochs": 3, "model__weights": "none"},
            1,
            r"frozen_epochs = 3 .*give weights, or leave it at 0",
        ),
        ({"loss__margin": 5.0}, 1, r"loss\.margin = 5\.0 is above 2, .*\(loss\.space = raw\)"),
        ({"loss__triplet_margin": 3.0}, 1, r"loss\.triplet_margin = 3\.0 is above 2, .*\(loss\.triplet_space = raw\)"),
        ({"loss__angular_margin": 0.5}, 1, r"loss\.angular_margin = 0\.5 is for cosines.*set model\.head = cosine"),
        (
            {"model__frozen_epochs": 3, "loss__cross_entropy": 0.0, "loss__space": "raw", "loss__triplet_space": "raw"},
            1,
            r"frozen_epochs = 3 trains only neck and classifier .*loss\.cross_entropy = 0",
        ),
        (
            {"model__weights_grid": (16, 8)},
            1,
            r"weights_grid = \[16, 8\] is about a file, and model\.weights = imagenet",
        ),
        ({"model__norm": "frozen", "model__weights": "none"}, 1, r"norm = frozen .*give weights, or leave it at batch"),
        (
            {f"loss__{name}": 0.0 for name in ("cross_entropy", "triplet", "mctl", "ctl", "center")},
            1,
            "every loss weight is 0",
        ),
    ],
)
def test_check_names_the_knob_the_value_and_the_mend(knobs, world_size, words):
    with pytest.raises(ValueError, match=words):
        check(changed(**knobs), world_size)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_named(seed):
    with pytest.raises(ValueError, match=rf"seed = {seed} must be at least 0"):
        check(replace(Config(), seed=seed), 1)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_check_lets_good_configs_pass(world_size):
    check(Config(), world_size)
    check(changed(loss__triplet_margin=None, loss__mctl=0.0, loss__center=0.0), world_size)
    check(changed(model__norm="frozen", model__frozen_epochs=5), world_size)
    check(changed(loss__w2=0.0, batch__images=2), world_size)
    check(changed(batch__ranks=8, speed__recompute=True), world_size)
    check(replace(changed(batch__images=1, loss__triplet=0.0, loss__mctl=0.0), seed=2**40), world_size)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--ranks=1,5,10"], {"ranks": [1, 5, 10]}),
        (["--ranks", "1,5", "20"], {"ranks": [1, 5, 20]}),
        (["--ranks=[2]"], {"ranks": [2]}),
        (["--protocols=image,centroid", "--rerank"], {"protocols": ["image", "centroid"], "rerank": True}),
        (["--data", "a,b", "c"], {"data": ["a,b", "c"]}),  # paths may have commas
    ],
)
def test_lists_of_the_evaluation_as_people_type_them(words, wanted):
    found = parse(EvaluateConfig, words)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"run": "x", "images": "pictures"}, "--images works only with --features"),
        ({"compare": ["a", "b"], "rerank": True}, "--rerank has no effect on --compare"),
        ({"run": "x", "timeout_s": 0}, "--timeout_s = 0 must be at least 1"),
    ],
)
def test_what_an_evaluation_refuses(knobs, words):
    with pytest.raises(ValueError, match=words):
        check_evaluation(EvaluateConfig(**knobs))


def test_what_is_saved_is_loaded(tmp_path):
    config = changed(
        loss__w2=0.4,
        loss__triplet_margin=None,
        optim__milestones=[1, 5],
        optim__weight_decay=1e-7,
        augment__erase_area=(0.1, 0.2),
        batch__short="repeat",
        model__weights="none",
    )
    config = replace(config, name="no", seed=3)  # a name that YAML could take for a boolean
    save(config, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == config
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == to_dict(config)


def test_load_of_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match=rf"config\.yaml does not exist; is {tmp_path} the folder of a training run"):
        load(tmp_path / "config.yaml")


def test_print_config_can_be_loaded_again(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Config, ["--loss.w1=0.25", "--print_config"])
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse(Config, [f"--config={tmp_path / 'printed.yaml'}"]) == changed(loss__w1=0.25)


def test_a_value_out_of_range_in_code_or_on_the_command_line():
    with pytest.raises(ValueError, match=r"loss\.margin = -1\.0 must be greater than 0"):
        LossConfig(margin=-1.0)
    with pytest.raises(ValueError, match=r"optim\.milestones = -3 must be"):
        OptimConfig(milestones=[40, -3])
    with pytest.raises(ValueError, match=r"^loss\.margin = -1\.0 must be greater than 0, and finite$"):
        parse(Config, ["--loss.margin=-1"])
    config = Config()
    config.loss.margin = -1.0
    with pytest.raises(ValueError, match=r"loss\.margin"):
        check(config, 1)


def test_folder_of_a_run():
    assert replace(Config(), runs="elsewhere", name="mine").folder == Path("elsewhere/mine")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "/", "/a", "a/", "../a", "a/../b", "a\\b", " ", " a", "a\n", "\0", "\x1b[1m", "é" * 101],
)
def test_a_name_that_is_no_plain_folder(name):
    with pytest.raises(ValueError, match=r"^name = .* plain name of a folder"):
        Config(name=name)


def test_names_of_runs_as_people_give_them():
    for name in ("run", "m1-seed.2", "Лауф 2", "a b", "..a", "quickstart-ab12", "x" * 200):
        assert Config(name=name).folder.parent == Path("runs")


def test_a_huge_number_is_refused_at_once():
    for knobs, ranks in (({"batch__identities": 10**15 + 1}, 3), ({f"batch__{k}": 10**15 for k in KNOBS}, 3)):
        with pytest.raises(ValueError, match=r"batch\.(streams|identities) = .* 1, .*\.\.\."):
            check(changed(**knobs), ranks)


KNOBS = ("identities", "streams")


def test_every_knob_has_its_line_of_documentation():
    source = ast.parse(inspect.getsource(schema))
    classes = [node for node in source.body if isinstance(node, ast.ClassDef) and node.decorator_list]
    assert {node.name for node in classes} >= {"Config", "EvaluateConfig", "LossConfig", "BatchConfig"}
    for node in classes:
        assert ast.get_docstring(node), node.name
        knobs = [field for field in node.body if isinstance(field, ast.AnnAssign) and not is_section(field)]
        lines = {field.lineno for field, below in pairwise(node.body) if is_documented(field, below)}
        assert [ast.unparse(field.target) for field in knobs if field.lineno not in lines] == [], node.name


def is_section(field: ast.AnnAssign) -> bool:
    """A field that holds another dataclass, whose own docstring says what it is."""
    return ast.unparse(field.annotation).endswith("Config")


def is_documented(field: ast.stmt, below: ast.stmt) -> bool:
    return isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)


@pytest.mark.parametrize("kind", [Config, EvaluateConfig])
def test_help_shows_every_knob_and_its_line(kind):
    text = " ".join(make_parser(kind).format_help().split())
    for name, doc in documented(kind()):
        assert f"--{name} " in text
        # argparse breaks lines at hyphens, too
        assert "".join(doc.split()) in "".join(text.split()), name


def documented(config: object, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, documentation) of every knob of a dataclass and those inside it."""
    body = ast.parse(inspect.getsource(type(config))).body[0].body
    docs = {f.target.id: d.value.value for f, d in pairwise(body) if is_documented(f, d)}
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found += documented(value, f"{prefix}{field.name}.")
        else:
            found.append((prefix + field.name, docs[field.name]))
    return found
