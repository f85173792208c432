"""Prints the bill of materials of an image as CycloneDX, inside the image's build.

`sbom.py NAME APP_PYTHON BASE_PYTHON`: what pip installed for the program, what pip and dpkg have in
the base, and the base's Python. deploy/requirements/build.txt has the libraries.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Iterator

DPKG_STATUS = Path("/var/lib/dpkg/status")
LAYER = "gpuplugin:layer"
"""A property of each component: `app` for what the build adds, `base` for what the base has."""


def python_packages(python: str, layer: str) -> Iterator[Component]:
    """What an interpreter finds installed, with licences."""
    path = shutil.which(python) or python
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", path],
        stdout=subprocess.PIPE,
        check=True,
    )
    bom: Bom = Bom.from_json(json.loads(done.stdout))  # type: ignore[attr-defined]  # decorated
    for one in bom.components:
        one.bom_ref.value = f"{layer}:pip:{one.name}"
        one.properties.add(Property(name=LAYER, value=layer))
        yield one


def interpreter(python: str) -> Component:
    """The base's Python, which neither pip nor dpkg knows."""
    script = "import platform; print(platform.python_version())"
    done = subprocess.run([python, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    version = done.stdout.strip()
    return Component(
        name="python",
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref="base:python",
        purl=PackageURL("generic", None, "python", version),
        cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        properties=[Property(name=LAYER, value="base")],
    )


def debian_packages(status: str, distribution: str) -> Iterator[Component]:
    """The packages that dpkg has as installed; `status` is the text of its file."""
    for paragraph in status.split("\n\n"):
        package = HeaderParser().parsestr(paragraph.lstrip("\n"))
        if package.get("Status", "").endswith(" installed"):
            name, version, machine = package["Package"], package["Version"], package["Architecture"]
            qualifiers = {"arch": machine, "distro": distribution}
            yield Component(
                name=name,
                version=version,
                bom_ref=f"base:dpkg:{name}:{machine}",
                purl=PackageURL("deb", "debian", name, version, qualifiers),
                properties=[Property(name=LAYER, value="base")],
            )


def bill(name: str, app_python: str, base_python: str) -> Bom:
    """Everything in the image."""
    bom = Bom()
    bom.components.update(python_packages(app_python, "app"))
    (program,) = (one for one in bom.components if one.name == "gpuplugin")
    bom.metadata.component = root = Component(
        name=name, version=program.version, type=ComponentType.CONTAINER, bom_ref="image"
    )
    bom.components.update(python_packages(base_python, "base"))
    bom.components.add(interpreter(base_python))
    if DPKG_STATUS.is_file():
        release = platform.freedesktop_os_release()
        distribution = f"{release['ID']}-{release.get('VERSION_ID', 'unknown')}"
        bom.components.update(debian_packages(DPKG_STATUS.read_text(), distribution))
    else:
        print(f"{DPKG_STATUS} is not there: no Debian package is listed", file=sys.stderr)
    bom.register_dependency(root, bom.components)
    return bom


def main() -> None:
    output = json.loads(JsonV1Dot6(bill(*sys.argv[1:])).output_as_string())
    # The same image has the same bill.
    del output["serialNumber"], output["metadata"]["timestamp"]
    text = json.dumps(output, indent=2)
    for error in JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True) or ():
        raise SystemExit(f"the bill of materials is not CycloneDX 1.6: {error}")
    print(text)


if __name__ == "__main__":
    main()
