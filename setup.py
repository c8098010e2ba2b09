"""Build: carries `weights_manifest.json` from the top of the repository into the wheel, beside `zoo/manifest.py`."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MANIFEST = "weights_manifest.json"


class BuildWithManifest(build_py):
    """The usual build, and the manifest."""

    def run(self) -> None:
        """Copy the manifest after the modules."""
        super().run()
        self.copy_file(MANIFEST, str(Path(self.build_lib) / "zoo" / MANIFEST))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List the manifest among what is installed."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / "zoo" / MANIFEST)]


setup(cmdclass={"build_py": BuildWithManifest})
