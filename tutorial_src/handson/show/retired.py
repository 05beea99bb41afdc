"""What Colossal-AI has retired or left unfinished, each row proved by the files of the installed package."""

from __future__ import annotations

from dataclasses import dataclass

from handson.show import components, tables
from handson.show.inventory import Package

PULL = "https://github.com/hpcaitech/ColossalAI/pull/"


@dataclass(frozen=True)
class Absent:
    """The package has none of these modules."""

    modules: tuple[str, ...]

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        there = [name for name in self.modules if package.within(components.full_name(package, name))]
        return None if there else tables.lines(*map(_no_module, self.modules))


@dataclass(frozen=True)
class Unmentioned:
    """No file of the package contains this word."""

    word: str

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        named = any(self.word in m.path.read_text(encoding="utf-8").lower() for m in package.modules.values())
        return None if named else tables.cell(f"no file says “{self.word}”")


@dataclass(frozen=True)
class Unshipped:
    """The package as installed lacks this file, which its own code asks for."""

    module: str
    file: str

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        module = package.modules[components.full_name(package, self.module)]
        line = package.line(module.name, self.file)
        if line is None or (module.path.parent / self.file).exists():
            return None
        return tables.lines(_at(package, module.name, line), f"no file {self.file}")


@dataclass(frozen=True)
class Says:
    """A module contains this text, which does what the row says; none of the `absent` modules exist."""

    module: str
    text: str
    absent: tuple[str, ...] = ()

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        name = components.full_name(package, self.module)
        line = package.line(name, self.text)
        if line is None or (self.absent and Absent(self.absent).proof(package) is None):
            return None
        return tables.lines(_at(package, name, line), tables.code(self.text), *map(_no_module, self.absent))


@dataclass(frozen=True)
class Idle:
    """These functions of a module have no body; or, with none named, the package has no code at all."""

    module: str
    functions: tuple[str, ...] = ()

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        name = components.full_name(package, self.module)
        if not self.functions:
            empty = not sum(module.lines for module in package.within(name))
            return tables.lines(_at(package, name, 1), "0 lines of code") if empty else None
        found = [package.empty_function(name, function) for function in self.functions]
        return None if None in found else tables.lines(*(_at(package, name, line) for line in found), "no body")


@dataclass(frozen=True)
class Dead:
    """Nothing below this module can be imported, on any host."""

    module: str

    def proof(self, package: Package) -> tables.Cell | None:
        """Return what shows it, or None where it does not hold."""
        inside = package.within(components.full_name(package, self.module))
        if not inside or any(module.name not in package.dead for module in inside):
            return None
        cause = package.dead[inside[0].name]
        line, missing = package.nowhere[cause]
        size = f"{len(inside)} module{'s' * (len(inside) != 1)}, {sum(module.lines for module in inside):,} lines"
        named = tables.code(missing.removeprefix(f"{package.name}."))
        wants = tables.Cell(f"imports {named}", f"imports {named.html}")
        return tables.lines(_at(package, cause, line), wants, size)


@dataclass(frozen=True)
class Retired:
    """One thing that a reader of older texts looks for: what became of it, since when, and the proof."""

    what: str
    became: str
    proof: Absent | Unmentioned | Unshipped | Says | Idle | Dead
    pull: int | None = None


GONE = (
    Retired("colossalai.core, .engine, .trainer", "moved below colossalai.legacy, where our lessons take them from",
            Absent(("core", "engine", "trainer", "registry")), 4743),
    Retired("nn.layer.moe", "its layers are gone; experts are left to MoeHybridParallelPlugin and a few models",
            Absent(("nn.layer.moe", "context.moe_context")), 4978),
    Retired("fp16 by AMP_TYPE.TORCH", "stops on PyTorch 2; the lessons train in fp32, or in bf16 through a plugin",
            Says("legacy.amp.torch_amp._grad_scaler", "assert torch_version.major == 1")),
    Retired("autochunk", "never part of the released package; upstream’s repository still has the folder",
            Absent(("autochunk",))),
    Retired("EnergonAI", "served the tutorial’s OPT; a package of its own, which today’s code has forgotten",
            Unmentioned("energon")),
    Retired("legacy.inference", "the inference of 2023; rewritten as colossalai.inference",
            Dead("legacy.inference"), 5143),
)  # fmt: skip

UNFINISHED = (
    Retired("autoparallelize(…)", "works out neither inputs from a data loader nor link speeds of a given mesh",
            Idle("auto_parallel.tensor_shard.initialize",
                 ("extract_meta_args_from_dataloader", "extract_alpha_beta_for_device_mesh"))),
    Retired("“WITH SYNC_BN”", "the sharding solver’s plan says it, nothing makes batch norm do it",
            Idle("auto_parallel.passes.runtime_preparation_pass", ("implicit_comm_action_apply",))),
    Retired("auto_parallel.pipeline_shard", "a folder for pipelines chosen by a solver, and nothing in it",
            Idle("auto_parallel.pipeline_shard")),
    Retired("the checkpoint solver’s code", "calls a function that has moved to colossalai.legacy",
            Says("fx.codegen.activation_checkpoint_codegen", "utils.activation_checkpoint.checkpoint",
                 ("utils.activation_checkpoint",)), 4743),
    Retired("the solver Rotor in C", "its source is not in the package, so that it runs in Python",
            Unshipped("auto_parallel.checkpoint.build_c_ext", "ckpt_solver_rotor.c")),
    Retired("pipelines that generate", "want a module of the inference that was rewritten",
            Dead("pipeline.schedule.generate"), 5143),
    Retired("legacy.utils.profiler", "wants its memory profiler, removed in 2022", Dead("legacy.utils.profiler"), 1970),
)  # fmt: skip


def retired_table(package: Package) -> tables.Table:
    """Return what older texts ask for in vain, with the proof of each."""
    return _table(package, GONE, "what became of it", "Gone: what older texts ask for")


def unfinished_table(package: Package) -> tables.Table:
    """Return what is there and does not work, with the proof of each."""
    return _table(package, UNFINISHED, "what is wrong", "There, and without effect or not to be imported")


def _table(package: Package, rows: tuple[Retired, ...], story: str, caption: str) -> tables.Table:
    drawn = []
    for row in rows:
        proof = row.proof.proof(package)
        if proof is None:
            raise ValueError(f"{package.name} {package.version} does not bear out what retired.py says of {row.what}")
        drawn.append([row.what, _wrapped(_became(row)), _wrapped(proof)])
    return tables.Table(["looked for", story, "seen in the installed files"], drawn, caption)


def _wrapped(cell: tables.Cell) -> tables.Cell:
    return tables.Cell(cell.text, f'<div class="wrapped">{cell.html}</div>')


def _became(row: Retired) -> tables.Cell:
    text = tables.cell(row.became)
    if row.pull is None:
        return text
    pull = tables.link(f"#{row.pull}", f"{PULL}{row.pull}")
    return tables.Cell(f"{text} ({pull})", f"{text.html} ({pull.html})")


def _no_module(name: str) -> tables.Cell:
    return tables.Cell(f"no module {name}", f"no module {tables.code(name).html}")


def _at(package: Package, module: str, line: int) -> tables.Cell:
    """Return a link to a line of the package; its name may break where code may."""
    found = package.modules[module]
    name = found.path.parent.name + "/" if found.is_package else ""
    where, address = tables.code(f"{name}{found.path.name}:{line}"), components.source(package, found, line)
    return tables.Cell(f"{where} <{address}>", f'<a href="{address}">{where.html}</a>')
