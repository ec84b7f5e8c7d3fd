"""A mistake is one sentence and exit status 2, and nothing is lost by it."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fl_sim import run_folder
from fl_sim.flower.run import run
from fl_sim.run_folder import RunFolder
from fl_sim.scenario import Scenario

FlSim = Callable[..., Any]
Tiny = Callable[..., Scenario]
OutcomeOf = Callable[[Path], dict[str, str | bytes]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_one_sentence(ended: Any, status: int, *words: str) -> None:
    assert ended.status == status, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.startswith("fl-sim: ")
    assert ended.stderr.count("\n") == 1
    for part in words:
        assert part in ended.stderr


MISTAKES = [
    # Keys and names
    ("client.lrr=1", "unknown key 'client.lrr'; did you mean 'lr'?"),
    ("clients=3", "unknown key 'clients'"),
    ("attack.0.lable=idlg", "unknown key 'attack.0.lable'; did you mean 'label'?"),
    ("data.name=mnist5k", "unknown dataset 'mnist5k'; did you mean 'mnist"),
    ("data.name=third_party:nothing", "dataset 'third_party:nothing' can't be imported"),
    ("data.name=third_party:linear", "are required"),
    ("model.name=lenett", "unknown model 'lenett'; did you mean 'lenet'?"),
    ("attack.0.label=soft-lable", "unknown label attack 'soft-lable'; did you mean 'soft-label'?"),
    ("attack.0.image=analytik", "unknown image attack 'analytik'; did you mean 'analytic'?"),
    ('defense=[{name="mixpu"}]', "unknown defense 'mixpu'; did you mean 'mixup'?"),
    ("server.strategy=fedavgg", "unknown strategy 'fedavgg'; did you mean 'fedavg'?"),
    ("server.strategy=third_party:nothing", "'third_party:nothing' can't be imported"),
    ("server.strategy=math:pi", "strategy 'math:pi' can't be imported"),
    # Types and ranges
    ("rounds=ten", "rounds: must be a whole number, found 'ten'"),
    ("rounds=1.5", "rounds: must be a whole number, found 1.5"),
    ("rounds=true", "rounds: must be a whole number, found true"),
    ("rounds=0", "rounds: must be at least 1, found 0"),
    ("client.lr=0", "client.lr: must be above 0, found 0"),
    ("client.lr=nan", "client.lr: must be a finite number, found nan"),
    ("client.fraction=1.5", "client.fraction: must be at most 1, found 1.5"),
    ("client.momentum=1.0", "client.momentum: must be below 1, found 1.0"),
    ("client.nesterov=true", "nesterov needs a momentum above 0"),
    ("client.mode=test", "client.mode: must be 'eval' or 'train', found 'test'"),
    ("seed=-1", "seed: must be a whole number from 0 to 2**63 - 1, found -1"),
    ("device=gpu", "device: must be"),
    ("device=cuda:99", "device must be one that PyTorch finds on this machine, found 'cuda:99'"),
    ("attack.0.rounds=0", "attack.0.rounds: must be"),
    ("attack.0.clients=[-1]", "attack.0.clients"),
    ("attack.1.label=idlg", "'1' must be the number of an entry of attack, counted from 0"),
    ("model=mlp", "model: must be a table, found 'mlp'"),
    ('defense=[{name="label-smoothing", smoothing=2}]', "smoothing"),
    ('defense=[{name="label-smoothing", smooting=0.1}]', "unknown option 'smooting'; did you mean"),
    ('defense=[{name="dp-noise", clipping_norm=0, noise_multiplier=1}]', "above 0, found 0"),
    # Defenses that contradict each other
    ('defense=[{name="gradient-clipping", clipping_norm=1.0}, '
     '{name="gradient-clipping", clipping_norm=2.0}]',
     "defense: GradientClipping and GradientClipping both clip each step's gradient, and the"),
    ('defense=[{name="gradient-clipping", clipping_norm=1.0}, '
     '{name="dp-noise", clipping_norm=1.0, noise_multiplier=1.0}]',
     "both clip the one gradient that an update of one local step is"),
    ('defense=[{name="third_party:Velocity"}, '
     '{name="dp-sgd", clipping_norm=1.0, noise_multiplier=1.0}]',
     "DPSGD starts from each example's gradient, so that what Velocity makes of their mean"),
    # Data
    ("data.clients=61", "from 1 to the number of training examples, 60, found 61"),
    ("data.partition=dirichlet\ndata.alpha=0.001\ndata.clients=30",
     "dirichlet with alpha = 0.001 left a client without data in each of 10 draws"),
    ("data.partition=pathological\ndata.classes=5",
     "classes must be from 1 to the number of classes, 4, found 5"),
    ("client.batch_size=21", "client.batch_size must be at most the examples that a client holds"),
    ('client={batch_size=11}\ndefense=[{name="mixup"}]', "client.batch_size × 2 must be at most"),
    ("client.local_steps=2\nclient.local_epochs=3",
     "client: local_epochs take the place of local_steps: leave one out, found 3 and 2"),
    ("client.local_epochs=0", "client.local_epochs: must be a whole number of at least 1, found 0"),
    ("client.local_epochs=1.5", "client.local_epochs: must be a whole number of at least 1"),
    ("data.examples_per_client=0",
     "data.examples_per_client: must be a whole number of at least 1, found 0"),
    ("data.examples_per_client=21",
     "data.examples_per_client must be at most the examples that each client gets: client 0 gets"),
    ('data.examples_per_client=1\nclient.local_epochs=1\ndefense=[{name="mixup"}]',
     "must hold at least the 2 examples that its defenses mix: client 0 has 1"),
    ("data.test_examples=21", "data.test_examples must be at most 20, the test images of"),
    ("data.options.classes=1", "a data set needs at least 2 classes, found 1"),
    ("data.options.colour=true", "unknown option 'colour'"),
    # Options
    ("model.options.bias=true", "can't set 'bias': the simulator does"),
    ("model.options.num_classes=3", "can't set 'num_classes': the simulator does"),
    ("model.options.colour=true", "unknown option 'colour'"),
    ("attack.0.label=soft-label\nattack.0.label_options.tolerence=1",
     "unknown option 'tolerence'; did you mean 'tolerance'?"),
    ("attack.0.label=soft-label\nattack.0.label_options.tolerance=2", "tolerance"),
    ("attack.0.image_options.colour=1", "unknown option 'colour'"),
    ("server.options.colour=1", "strategy 'fedavg': unknown option 'colour'; known: "),
    ("server.options.fraction_train=0.5", "strategy 'fedavg': unknown option 'fraction_train'"),
    # What nothing would read
    ("data.alpha=0.3",
     "data: alpha belongs to partition 'dirichlet', found 0.3 with partition 'iid'"),
    ("data.partition=dirichlet\ndata.classes=2",
     "data: classes belongs to partition 'pathological', found 2 with partition 'dirichlet'"),
    ("client.optimizer=adam\nclient.momentum=0.9",
     "client: momentum is SGD's, found 0.9 with optimizer 'adam'"),
    ('attack=[{label="idlg", image_options={tolerance=1}}]',
     "attack.0: image_options belong to an image attack, found {'tolerance': 1} without one"),
    ("attack.0.rounds=[1, 4]", "attack.0.rounds: must be at most 3, found 4"),
    ("attack.0.rounds={every=4}", "attack.0.rounds.every: must be at most 3, found 4"),
    ("privacy.delta=1e-6",
     "privacy: delta belongs to a defense that guarantees an ε, found 1e-06 without one"),
    ("model.name=third_party:own",
     "model.bias: must be false, since third_party:own has no such parameter, found true"),
    ("model.name=third_party:own\nmodel.bias=false\nmodel.init=he",
     "model.init: must be 'default', since third_party:own has no such parameter, found 'he'"),
    ("model.name=mlp\nmodel.init=xavier",
     "model 'mlp': init must be 'default' or 'he', found 'xavier'"),
    ("model.init=3", "model.init: must be a string, found 3"),
    ("server.strategy=fedadam\nserver.options.eta_l=0.1", "server.options.eta_l: must be left out "
     "with strategy 'fedadam', since clients train with client.lr, found 0.1"),
    ("server.options.arrayrecord_key=weights", "server.options.arrayrecord_key: must be left out "
     "with strategy 'fedavg', since clients expect 'arrays', found 'weights'"),
    ("server.options.evaluate_metrics_aggr_fn=mean",
     "server.options.evaluate_metrics_aggr_fn: must be left out with strategy 'fedavg', since "
     "clients evaluate nothing, found 'mean'"),
    ("server.strategy=krum\nserver.options.weighted_by_key=train-loss",
     "server.options.weighted_by_key: must be left out with strategy 'krum', since Krum keeps a "
     "single reply, found 'train-loss'"),
    ('server.options.weighted_by_key=train-loss\n'
     'defense=[{name="dp-noise", clipping_norm=1.0, noise_multiplier=1.0}]',
     "server: strategy 'fedavg' reads the clients' 'train-loss', which clients whose defenses "
     "claim privacy don't report"),
    # Secure aggregation
    ("server.secure_aggregation=1", "server.secure_aggregation: must be a whole number of at"),
    ("server.secure_aggregation=4", "must be at most the clients of a round, 3, found 4"),
    ("server.secure_aggregation=2\nserver.capture=true",
     "server: capture keeps single updates, which secure_aggregation hides: leave one out"),
    ("server.secure_aggregation=2\nserver.strategy=krum",
     "server: strategy 'krum' compares single updates, which secure_aggregation hides"),
    ("server.secure_aggregation=2\nattack.0.clients=[0]", 'attack.0.clients: must be "all", since'),
    ("server.secure_aggregation=2\nattack.0.when=after", "attack.0.when: must be left out, since"),
    ("data.clients=8\naudit.canaries=6\nserver.secure_aggregation=2",
     "audit.canaries: must be 0 beside an attack, since server.secure_aggregation shows sums"),
    # Canaries
    ("data.clients=5\naudit.canaries=6", "audit.canaries: must be at most the clients, 5, found 6"),
    ("audit.canaries=3", "audit.canaries: must be 0 or at least 5, since fewer bound nothing"),
    ("data.clients=8\naudit.canaries=6\nattack.0.clients=[0, 2]",
     "attack.0.clients: must be clients that train, found 2, which is a canary"),
    ('data.clients=8\naudit.canaries=6\n'
     'defense=[{name="dp-sgd", clipping_norm=1.0, noise_multiplier=1.0}]',
     "audit.canaries send whole updates, and the defenses claim their ε of an example, found 6"),
    # Claims of privacy
    ('defense=[{name="third_party:NoisySteps", noise=-1.0}]',
     "defense 'third_party:NoisySteps': its privacy claim's noise must be a finite number of at"),
    ('defense=[{name="third_party:NoisySteps", noise=1.0, unit="batch"}]',
     "unit must be 'update' or 'example', found 'batch'"),
    ('defense=[{name="third_party:NoisySteps", noise=1.0}, '
     '{name="dp-noise", clipping_norm=1.0, noise_multiplier=1.0}]',
     "must have one unit, found 'example' of defense.0 (third_party:NoisySteps) and 'update' of"),
]  # fmt: skip


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES, ids=lambda value: value[:40])
def test_a_mistake_in_a_change_is_one_sentence(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path, mistake: str, sentence: str
) -> None:
    changes = [f"--set={change}" for change in mistake.split("\n")]
    ended = fl_sim("run", tiny_file, *changes, "--out", tmp_path / "run")
    assert_one_sentence(ended, 2, sentence)
    assert not (tmp_path / "run").exists()


FILES = {
    "an unknown key": ("[client]\nlrr = 1", "unknown key 'client.lrr'; did you mean 'lr'?"),
    "an unknown section": ("[clients]\nlr = 1", "unknown key 'clients'; did you mean 'client'?"),
    "an unknown name": ('[data]\nname = "mnist5k"', "unknown dataset 'mnist5k'; did you mean"),
    "a wrong type": ('[client]\nbatch_size = "one"', "must be a whole number, found 'one'"),
    "out of range": ("[client]\nmomentum = -0.1", "must be at least 0, found -0.1"),
    "steps and epochs": (
        "[client]\nlocal_steps = 1\nlocal_epochs = 2",
        "client: local_epochs take the place of local_steps: leave one out, found 2 and 1",
    ),
    "one table for a list": ("[attack]\nlabel = 'idlg'", "attack: must be tables, each headed"),
    "no name": ("[[defense]]\nsmoothing = 0.1", "defense.0.name: is required, found none"),
    "a date": ("[model.options]\nwhen = 2020-01-01", "model.options: must hold finite numbers"),
    "no TOML": ("rounds = \n", "isn't valid TOML"),
    "no text": ("\x00\xff", "isn't valid TOML"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_mistake_in_a_file_is_one_sentence(fl_sim: FlSim, tmp_path: Path, kind: str) -> None:
    text, sentence = FILES[kind]
    (tmp_path / "mine.toml").write_bytes(text.encode("latin-1"))
    ended = fl_sim("run", tmp_path / "mine.toml", "--out", tmp_path / "run")
    assert_one_sentence(ended, 2, sentence)
    assert not (tmp_path / "run").exists()


def test_a_file_that_cannot_be_read_is_one_sentence(fl_sim: FlSim, tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert_one_sentence(fl_sim("run", missing), 2, f"scenario {missing} can't be read: No such")
    missing.mkdir()
    assert_one_sentence(fl_sim("run", missing), 2, f"scenario {missing} can't be read: Is a dir")


def test_a_folder_of_images_with_one_class_is_one_sentence(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    data = f'--set=data={{name="image-folder", options={{root="{tmp_path / "images"}"}}}}'
    ended = fl_sim("run", tiny_file, data, "--out", tmp_path / "run")
    assert_one_sentence(ended, 2, "must have at least 2 class folders, found 1")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of the tiny scenario."""
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(), folder)
    return folder


def test_a_finished_run_goes_on_with_more_rounds(
    fl_sim: FlSim, tiny: Tiny, tiny_file: Path, outcome_of: OutcomeOf, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert fl_sim("run", tiny_file, "--out", out).status == 0
    ended = fl_sim("run", tiny_file, "--set=rounds=5", "--resume", "--out", out)
    assert ended.status == 0, ended.stderr
    run(tiny("rounds=5"), tmp_path / "unbroken")
    assert outcome_of(out) == outcome_of(tmp_path / "unbroken")
    assert "5 of 5" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "exists; name a new or an empty folder, or add --resume"),
        (["--set=rounds=4"], "exists; name a new or an empty folder, or add --resume"),
        (["--set=rounds=2", "--resume"], "rounds must be at least 3, as in"),
        (["--seed=9", "--resume"], "holds another run: seed is 3 there and is 9 here"),
        (["--set=client.lr=0.051", "--resume"], "; choose another --out"),
        (
            ["--set=client.momentum=0.5", "--resume"],
            "client.momentum is 0.0 there and is 0.5 here",
        ),
    ],
)
def test_a_run_is_not_written_over(
    fl_sim: FlSim, tiny_file: Path, finished: Path, arguments: list[str], sentence: str
) -> None:
    before = contents(finished)
    ended = fl_sim("run", tiny_file, *arguments, "--out", finished)
    assert_one_sentence(ended, 2, str(finished), sentence)
    assert contents(finished) == before


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["new", "resume"])
def test_a_folder_with_other_files_is_not_touched(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path, resume: list[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    assert_one_sentence(fl_sim("run", tiny_file, *resume, "--out", tmp_path), 2, str(tmp_path))
    assert contents(tmp_path) == {"thesis.tex": b"all of it"}


def test_a_mistake_in_a_resumed_run_s_change_loses_nothing(
    fl_sim: FlSim, tiny_file: Path, finished: Path
) -> None:
    before = contents(finished)
    wrong = "--set=client.batch_size=21"
    ended = fl_sim("run", tiny_file, wrong, "--resume", "--out", finished)
    assert_one_sentence(ended, 2, "client.batch_size must be at most")
    assert contents(finished) == before


def test_a_folder_in_use_is_refused(
    fl_sim: FlSim, tiny: Tiny, tiny_file: Path, tmp_path: Path
) -> None:
    with RunFolder.open(tmp_path, tiny(), resume=False):
        before = contents(tmp_path)
        ended = fl_sim("run", tiny_file, "--resume", "--out", tmp_path)
        assert_one_sentence(ended, 2, f"{tmp_path} is in use by another run")
        assert contents(tmp_path) == before
    assert fl_sim("run", tiny_file, "--resume", "--out", tmp_path).status == 0


def test_a_damaged_checkpoint_is_one_sentence(
    fl_sim: FlSim, tiny: Tiny, tiny_file: Path, tmp_path: Path
) -> None:
    run(tiny(), tmp_path)
    file = tmp_path / "checkpoint" / "round-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-30])
    ended = fl_sim("run", tiny_file, "--resume", "--out", tmp_path)
    assert_one_sentence(ended, 2, f"checkpoint {file} can't be read")


def test_an_attack_that_raises_costs_its_records(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path
) -> None:
    attacks = '--set=attack=[{label="third_party:Raises"}, {label="third_party:Formula"}]'
    ended = fl_sim("run", tiny_file, attacks, "--out", tmp_path)
    assert ended.status == 0
    lines = [json.loads(line) for line in (tmp_path / "leakage.jsonl").read_text().splitlines()]
    statuses = [(line["attack"], line["label_status"]) for line in lines]
    assert statuses == [(0, "FAILED"), (1, "RECOVERED")] * 9
    assert {line["label_reason"] for line in lines} == {
        None,
        "RuntimeError: index 7 is out of bounds",
    }


def test_a_run_without_attacks_ends_well(fl_sim: FlSim, tiny_file: Path, tmp_path: Path) -> None:
    ended = fl_sim("run", tiny_file, "--set=attack=[]", "--out", tmp_path)
    assert ended.status == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "report.html")


def assert_goes_on(
    fl_sim: FlSim, tiny: Tiny, outcome_of: OutcomeOf, command: list[Any], overrides: list[str]
) -> None:
    """Check that a run that ended early goes on to what an unbroken one leaves."""
    out = command[-1]
    before = (out / "rounds.jsonl").read_text()
    assert fl_sim(*command, "--resume").status == 0
    assert (out / "rounds.jsonl").read_text().startswith(before.rpartition("\n")[0])
    run(tiny(*overrides), out.parent / "unbroken")
    assert outcome_of(out) == outcome_of(out.parent / "unbroken")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has")
@pytest.mark.parametrize("log", ["leakage.jsonl", "rounds.jsonl"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(
    fl_sim: FlSim,
    tiny: Tiny,
    tiny_file: Path,
    tmp_path: Path,
    outcome_of: OutcomeOf,
    log: str,
) -> None:
    out, append_lines = tmp_path / "run", run_folder.append_lines

    def fills_up(path: Path, lines: list[str]) -> None:
        """Let /dev/full take the log's place once the first round is written."""
        if path.name == log and path.exists() and path.read_bytes().count(b"\n") >= 2:
            path.rename(path.with_name("kept"))
            path.symlink_to("/dev/full")
        append_lines(path, lines)

    command = ["run", tiny_file, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "append_lines", fills_up)
        ended = fl_sim(*command)
    again = f"the same command with --resume --out {out} goes on from there"
    sentence = "No space left on device; the run folder is whole; free some space, then " + again
    assert_one_sentence(ended, 1, sentence)
    (out / log).unlink()
    (out / "kept").rename(out / log)
    assert_goes_on(fl_sim, tiny, outcome_of, command, [])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (6000, []),
        (100_000, ["model.name=mlp"]),
        (3000, ["attack.0.rounds=[2]", "attack.0.clients=[0]", "images=1"]),
    ],
    ids=["leakage.jsonl", "checkpoint", "report"],
)
def test_a_write_that_is_cut_off_loses_nothing(
    fl_sim: FlSim,
    tiny: Tiny,
    tiny_file: Path,
    tmp_path: Path,
    outcome_of: OutcomeOf,
    size: int,
    overrides: list[str],
) -> None:
    """A limit on files' sizes writes a part and then fails, as a full disk may."""
    command = ["run", tiny_file, *(f"--set={change}" for change in overrides)]
    command += ["--out", tmp_path / "run"]
    with largest_file(size):
        ended = fl_sim(*command)
    assert_one_sentence(ended, 1, "File too large")
    (tmp_path / "run" / "rounds.jsonl").touch()
    assert_goes_on(fl_sim, tiny, outcome_of, command, overrides)


@pytest.mark.parametrize("debug", [["--debug", "run"], ["run", "--debug"]], ids=["before", "after"])
def test_debug_shows_tracebacks_wherever_it_stands(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path, debug: list[str]
) -> None:
    with pytest.raises(Exception, match="unknown scenario 'nothing'"):
        fl_sim(*debug, "nothing")
    options = [tiny_file, "--set=attack.0.label=third_party:Raises", "--out", tmp_path / "run"]
    ended = fl_sim(*debug, *options)
    assert ended.status == 0
    assert "Traceback" in ended.stderr
    assert "third_party.py" in ended.stderr


def test_without_debug_an_attacks_failure_is_a_line(
    fl_sim: FlSim, tiny_file: Path, tmp_path: Path
) -> None:
    options = ["--set=attack.0.label=third_party:Raises", "--set=rounds=1"]
    ended = fl_sim("run", tiny_file, *options, "--out", tmp_path / "run")
    assert ended.status == 0
    assert "Traceback" not in ended.stderr
    assert "RuntimeError: index 7 is out of bounds" in " ".join(ended.stderr.split())


def test_a_scenario_without_an_attack_says_so_before_it_trains(
    fl_sim: FlSim, tmp_path: Path, tiny_file: Path
) -> None:
    ended = fl_sim("run", tiny_file, "--set=attack=[]", "--out", tmp_path / "run")
    assert ended.status == 0
    first = "fl-sim: the scenario has no [[attack]]: it trains, and nothing else\n"
    assert ended.stderr.startswith(first)


def test_a_run_without_an_accepted_reply_ends_with_1_and_its_report(
    fl_sim: FlSim, tmp_path: Path, tiny_file: Path
) -> None:
    out = tmp_path / "run"
    spoiled = '--set=defense=[{name="third_party:Spoils"}]'
    ended = fl_sim("run", tiny_file, spoiled, "--out", out)
    assert ended.status == 1
    assert ended.stdout.endswith(f"{out / 'report.html'}\n")
    assert ended.stderr.endswith(
        "fl-sim: no reply was accepted in any round, so the model is the initial one; the "
        "commonest reason: array '2.weight' has NaN or infinite entries\n"
    )
    assert "stays as it was" in " ".join(ended.stderr.split())
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [(line["round"], line["replies"]) for line in rounds] == [(n, 0) for n in range(4)]
    again = fl_sim("run", tiny_file, spoiled, "--out", out, "--resume")  # it is complete
    assert again.status == 1 and "no reply was accepted in any round" in again.stderr


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbfrounds = 3\n")
    assert Scenario.load(path).rounds == 3
