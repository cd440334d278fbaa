"""Installs xenlb on a machine or below DESTDIR, and removes it again; `make install` calls it.

What is installed (the default of PREFIX is /usr/local):

    PREFIX/lib/xenlb            a virtual environment with the agent and its dependencies
    PREFIX/sbin/xenlb           the command
    PREFIX/lib/systemd/system   the units
    PREFIX/share                man pages, shell completion, documentation
    /etc/xenlb                  the configuration: created if absent, never changed or removed
    /etc/libvirt/hooks/*.d      the hook script, unless there is another file of its name

No installed file contains DESTDIR, so the tree may be moved before its use. The dependencies are
copied from the checkout's virtual environment. Without one pip installs them, offline from a folder
of wheels. This program needs only the standard library.
"""

import argparse
import compileall
import configparser
import gzip
import hashlib
import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
BUILD = HERE / "build"
PYTHON_FOLDER = f"python{sys.version_info[0]}.{sys.version_info[1]}"
COMPLETION = {
    "xenlb.bash": "share/bash-completion/completions/xenlb",
    "_xenlb": "share/zsh/site-functions/_xenlb",
    "xenlb.fish": "share/fish/vendor_completions.d/xenlb.fish",
}
HOOKS = ("libxl.d/xenlb", "qemu.d/xenlb", "lxc.d/xenlb")
# A line in every version of the hook script, and in no other script.
HOOK_MARK = b"# The libvirt hook of xenlb"
LAUNCHER = """\
#!/bin/sh
# The command of xenlb, in its own Python environment; -I ignores the caller's.
python={prefix}/lib/xenlb/bin/python
if ! [ -x "$python" ]; then
    echo "xenlb: {python} is missing; install xenlb again for the Python of this system" >&2
    exit 1
fi
exec "$python" -I -m xenlb.cli "$@"
"""


def die(message: str) -> None:
    """End the program with an error."""
    sys.exit(f"make install: {message}")


def requirements() -> list[str]:
    """Return the requirements of the agent at run time, from setup.cfg."""
    config = configparser.ConfigParser()
    config.read(HERE / "setup.cfg")
    return config["options"]["install_requires"].split("\n")[1:]


def name_of(requirement: str) -> str:
    """Return the normalized name of the distribution in a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def closure(site: Path) -> list[importlib.metadata.Distribution]:
    """Return the distributions in `site` that the agent needs, with their own requirements."""
    installed = {
        name_of(distribution.metadata["Name"]): distribution
        for distribution in importlib.metadata.distributions(path=[str(site)])
    }
    wanted, queue = {}, list(requirements())
    while queue:
        requirement = queue.pop()
        name = name_of(requirement)
        if name in wanted or "extra ==" in requirement:
            continue
        if name not in installed:
            if ";" in requirement:  # a condition that did not hold when pip looked at it
                continue
            die(f"{site} lacks {name}; run: make venv")
        wanted[name] = installed[name]
        queue.extend(installed[name].requires or ())
    return [wanted[name] for name in sorted(wanted)]


def compile_to(folder: Path) -> None:
    """Compile a folder to byte code that Python does not compare with its source.

    It stays valid when the tree is copied, and a Dom0 with one slow processor starts the command in
    a fraction of the time.
    """
    compileall.compile_dir(
        folder,
        quiet=2,
        workers=os.cpu_count() or 1,
        stripdir=str(folder),
        prependdir="xenlb",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def dependencies(venv: Path, find_links: str | None) -> Path:
    """Return a folder with the compiled dependencies of the agent; it is made once for each set."""
    site = venv / "lib" / PYTHON_FOLDER / "site-packages"
    from_venv = find_links is None and (venv / ".stamp").exists() and site.is_dir()
    distributions = closure(site) if from_venv else []
    source = [f"{found.metadata['Name']} {found.version}" for found in distributions] or [
        str(find_links),
        *(sorted(os.listdir(find_links)) if find_links else ()),
    ]
    recipe = "\n".join([sys.version, Path(__file__).read_text(), *requirements(), *source])
    ready = BUILD / f"runtime-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if ready.is_dir():
        return ready
    for old in BUILD.glob("runtime-*"):
        if "new" not in old.name:
            shutil.rmtree(old, ignore_errors=True)
    new = BUILD / f"runtime-new-{os.getpid()}"
    new.mkdir(parents=True)
    if from_venv:
        print(f"collecting the dependencies from {venv}", flush=True)
        for distribution in distributions:
            for file in distribution.files or ():
                if file.suffix != ".pyc" and ".." not in file.parts:
                    target = new / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(site / file, target)
    else:
        pip(["install", "--target", str(new), "--no-compile"], find_links)
        shutil.rmtree(new / "bin", ignore_errors=True)
    compile_to(new)
    try:
        new.rename(ready)
    except OSError:  # another process has made the same folder
        shutil.rmtree(new)
    return ready


def pip(arguments: list[str], find_links: str | None) -> None:
    """Run pip in its own environment, because Debian's Python refuses it outside of one."""
    own = BUILD / "pip"
    if not (own / "bin" / "python").exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", own], capture_output=True, text=True, check=False
        )
        if made.returncode:
            die(f"cannot create a virtual environment; try: make deps\n{made.stdout}")
    print("fetching and building the dependencies (a minute)", flush=True)
    offline = ["--no-index", "--find-links", find_links] if find_links else []
    command = [str(own / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments, *offline, *requirements()],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        output = "\n".join(done.stdout.splitlines()[-25:])
        die(
            f"pip failed:\n{output}\nBuilding libvirt-python needs compiler and headers:"
            " make deps. Without network: make wheels WHEELS=DIR on a machine of the same"
            " distribution, then make install WHEELS=DIR here"
        )


def environment(target: Path, *, ready: Path) -> None:
    """Create a virtual environment without the files of `python -m venv` that contain its path."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    site = new / "lib" / PYTHON_FOLDER / "site-packages"
    site.parent.mkdir(parents=True)
    # The exact interpreter: another version of Python would not find its packages here.
    interpreter = Path(sys.executable).resolve()
    (new / "bin").mkdir()
    (new / "bin" / "python").symlink_to(interpreter)
    (new / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\n"
        f"version = {sys.version.split()[0]}\n"
    )
    shutil.copytree(ready, site, symlinks=True)
    package = site / "xenlb"
    shutil.copytree(HERE / "xenlb", package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    compile_to(package)
    for folder, _, files in os.walk(new):
        Path(folder).chmod(0o755)
        for name in files:
            file = Path(folder, name)
            if not file.is_symlink():
                file.chmod(0o755 if os.access(file, os.X_OK) else 0o644)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def write(target: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Replace a file in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.write_bytes(data.encode() if isinstance(data, str) else data)
    new.chmod(mode)
    new.replace(target)


def plain_files(prefix: str) -> dict[str, tuple[bytes, int]]:
    """Return the files below PREFIX except for the environment: path → contents and mode."""
    files = {
        "sbin/xenlb": (
            LAUNCHER.format(prefix=prefix, python=Path(sys.executable).resolve()).encode(),
            0o755,
        )
    }
    for unit in sorted((HERE / "etc" / "systemd").glob("*.*")):
        text = unit.read_text().replace("/usr/local/", f"{prefix.rstrip('/')}/")
        files[f"lib/systemd/system/{unit.name}"] = (text.encode(), 0o644)
    for page in sorted((HERE / "man").glob("*.[1-9]")):
        text = page.read_text().replace("/usr/local/", f"{prefix.rstrip('/')}/")
        packed = gzip.compress(text.encode(), mtime=0)
        files[f"share/man/man{page.suffix[1:]}/{page.name}.gz"] = (packed, 0o644)
    for name, place in COMPLETION.items():
        files[place] = ((HERE / "etc" / "completion" / name).read_bytes(), 0o644)
    for path in (HERE / "README.md", HERE / "CHANGELOG.md", *sorted((HERE / "docs").rglob("*.md"))):
        # What is in etc of the sources is beside the README here.
        text = path.read_text().replace("](etc/", "](")
        files[f"share/doc/xenlb/{path.relative_to(HERE)}"] = (text.encode(), 0o644)
    for path in sorted((HERE / "etc" / "examples").glob("*.yaml")):
        text = with_schema(path.read_text(), prefix)
        files[f"share/doc/xenlb/examples/{path.name}"] = (text.encode(), 0o644)
    schema = (HERE / "etc" / "schema.json").read_bytes()
    files["share/xenlb/schema.json"] = (schema, 0o644)
    annotated = with_schema((HERE / "etc" / "xenlb.yaml").read_text(), prefix)
    files["share/doc/xenlb/xenlb.yaml"] = (annotated.encode(), 0o644)
    return files


def first_configuration(prefix: str) -> bytes:
    """Return the configuration of a new installation.

    It has no service, so that a start by mistake puts no address of an example on a network.
    """
    return f"""\
# yaml-language-server: $schema={prefix}/share/xenlb/schema.json
#
# The configuration of xenlb; there is no service yet. All keys are described in
# {prefix}/share/doc/xenlb/xenlb.yaml and in xenlb.yaml(5); examples/ there has whole set-ups.
#
# director: {{interface: eth0}}
# services:
#   mail:
#     address: 192.0.2.10
#     ports: [25]
#     servers: [{{guest: "mail*"}}]
services: {{}}
""".encode()


def with_schema(text: str, prefix: str) -> str:
    """Return a configuration with the installed path of its schema, for editors."""
    return re.sub(r"(?<=\$schema=)(\.\./)?schema\.json", f"{prefix}/share/xenlb/schema.json", text)


def is_our_hook(hook: Path) -> bool:
    """Tell whether a file is a version of our script; a symbolic link never is."""
    return hook.is_file() and not hook.is_symlink() and HOOK_MARK in hook.read_bytes()[:200]


def install_hooks(folder: Path) -> bool:
    """Install the hook script, and tell whether libvirt must read its folders of hooks again."""
    new = False
    for place in HOOKS:
        hook = folder / place
        if os.path.lexists(hook) and not is_our_hook(hook):
            print(f"{hook} is not xenlb's and stays; the agent gets no hooks of that driver")
            continue
        new = new or not hook.exists()
        write(hook, (HERE / "hooks" / "xenlb").read_bytes(), 0o755)
    return new


def remove_hooks(folder: Path) -> None:
    """Remove the hook script, and its folders if they are empty."""
    for place in HOOKS:
        hook = folder / place
        if is_our_hook(hook):
            hook.unlink()
        with suppress(OSError):
            hook.parent.rmdir()


def libvirt_daemons() -> list[str]:
    """Return the running daemons that call hooks of guests."""
    units = ("libvirtd", "virtxend", "virtqemud", "virtlxcd")
    return [unit for unit in units if systemctl("is-active", unit)]


def systemctl(*arguments: str) -> bool:
    """Tell whether a command of systemctl succeeds; it fails without a running systemd."""
    if not Path("/run/systemd/system").is_dir():
        return False
    done = subprocess.run(["systemctl", *arguments], capture_output=True, check=False)
    return done.returncode == 0


def install(options: argparse.Namespace) -> None:
    """Install xenlb below DESTDIR."""
    os.umask(0o022)
    root = Path(options.destdir or "/")
    base = root / options.prefix.lstrip("/")
    ready = dependencies(Path(options.venv), options.find_links)
    try:
        environment(base / "lib" / "xenlb", ready=ready)
        for place, (data, mode) in plain_files(options.prefix).items():
            write(base / place, data, mode)
        etc = root / options.sysconfdir.lstrip("/") / "xenlb"
        (etc / "templates").mkdir(parents=True, exist_ok=True)
        if not (etc / "xenlb.yaml").exists():
            write(etc / "xenlb.yaml", first_configuration(options.prefix))
        new_hooks = install_hooks(etc.parent / "libvirt" / "hooks")
    except PermissionError as error:
        die(f"{error.filename} cannot be written; run it as root, or give DESTDIR=")
    print(f"xenlb is in {base}, its configuration in {etc}")
    if not options.destdir and systemctl("daemon-reload"):
        if new_hooks and (daemons := libvirt_daemons()):
            # libvirt looks for hooks at its start only; a restart does not stop guests.
            print(f"for libvirt to call the new hooks: systemctl restart {' '.join(daemons)}")
        if systemctl("is-active", "xenlb"):
            print("to restart the agent with the new version: systemctl restart xenlb")
        else:
            print(f"edit {etc}/xenlb.yaml, xenlb check, systemctl enable --now xenlb xenlb-drain")


def uninstall(options: argparse.Namespace) -> None:
    """Remove what install() has installed, except for the configuration."""
    root = Path(options.destdir or "/")
    base = root / options.prefix.lstrip("/")
    try:
        if not options.destdir:
            systemctl("disable", "--now", "xenlb-drain", "xenlb")
        shutil.rmtree(base / "lib" / "xenlb", ignore_errors=True)
        for place in plain_files(options.prefix):
            (base / place).unlink(missing_ok=True)
        for folder in ("share/doc/xenlb", "share/xenlb"):
            shutil.rmtree(base / folder, ignore_errors=True)
        remove_hooks(root / options.sysconfdir.lstrip("/") / "libvirt" / "hooks")
    except PermissionError as error:
        die(f"{error.filename} cannot be removed; run it as root")
    if not options.destdir:
        systemctl("daemon-reload")
    print(f"xenlb is removed from {base}; its configuration and the kernel's table stay")


def main() -> None:
    """Parse the arguments, then install, uninstall or collect wheels."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prefix", default="/usr/local")
    parser.add_argument("--destdir", default="")
    parser.add_argument("--sysconfdir", default="/etc")
    parser.add_argument("--venv", default=str(HERE / ".venv"))
    parser.add_argument("--find-links", metavar="DIR")
    parser.add_argument("--wheels", metavar="DIR", help="only collect wheels in DIR")
    parser.add_argument("--uninstall", action="store_true")
    options = parser.parse_args()
    if options.wheels:
        pip(["wheel", "--wheel-dir", options.wheels], None)
    elif options.uninstall:
        uninstall(options)
    else:
        install(options)


if __name__ == "__main__":
    main()
